//! What exits ask for, what KVM emulated, and the processor's codes: rankings and differences.

use super::{Accounts, Ask, AskKind, CodeAccount, EventAccount};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Most frequent first; equals by kind and number.
fn ranked(mut asks: Vec<Ask>) -> Vec<Ask> {
    asks.sort_by_key(|a| (Reverse(a.count), a.kind, a.index));
    asks
}

impl EventAccount {
    /// Events of the guest's.
    pub fn guest_events(&self) -> u64 {
        self.events.saturating_sub(self.own)
    }
}

impl Accounts {
    /// What is asked for, most frequent first.
    pub fn top_asks(&self) -> Vec<Ask> {
        ranked(self.asks.clone())
    }

    /// What was asked for since an earlier snapshot, most frequent first.
    pub fn new_asks(&self, earlier: &Self) -> Vec<Ask> {
        let then: BTreeMap<(AskKind, u64), u64> = earlier
            .asks
            .iter()
            .map(|a| ((a.kind, a.index), a.count))
            .collect();
        let new = self.asks.iter().map(|a| Ask {
            count: a
                .count
                .saturating_sub(then.get(&(a.kind, a.index)).copied().unwrap_or(0)),
            ..*a
        });
        ranked(new.filter(|a| a.count > 0).collect())
    }

    /// Events of the guest's that KVM emulated: no exits, and in no sum of exits.
    pub fn guest_events(&self) -> u64 {
        let events = self.emulated.iter().map(|e| u128::from(e.guest_events()));
        super::figures::saturate(events.sum())
    }

    /// Events that the profiler caused itself.
    pub fn own_events(&self) -> u64 {
        let own = self.emulated.iter().map(|e| u128::from(e.own));
        super::figures::saturate(own.sum())
    }

    /// What KVM emulated since an earlier snapshot, most frequent of the guest's first.
    pub fn new_events(&self, earlier: &Self) -> Vec<EventAccount> {
        let then = |reason| earlier.emulated.iter().find(|e| e.reason == reason);
        let new = self.emulated.iter().map(|now| {
            let (events, own) = then(now.reason).map_or((0, 0), |e| (e.events, e.own));
            EventAccount {
                reason: now.reason,
                events: now.events.saturating_sub(events),
                own: now.own.saturating_sub(own),
            }
        });
        let mut new: Vec<EventAccount> = new.filter(|e| e.events > 0).collect();
        new.sort_by_key(|e| (Reverse(e.guest_events()), e.reason));
        new
    }

    /// The codes behind a reason, most frequent first; `None` for those that have no reason.
    pub fn codes_of(&self, reason: Option<u8>) -> Vec<&CodeAccount> {
        let codes = self.codes.iter().filter(|c| c.reason == reason);
        let mut codes: Vec<&CodeAccount> = codes.filter(|c| c.exits > 0).collect();
        codes.sort_by_key(|c| Reverse(c.exits));
        codes
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn differences_add_up() {
        let profile = fixtures::emulated();
        let steps = profile.steps();
        let mut sum = BTreeMap::<(AskKind, u64), u64>::new();
        let mut before = &Accounts::default();
        let mut events = 0;
        for step in &steps {
            for ask in step.accounts.new_asks(before) {
                *sum.entry((ask.kind, ask.index)).or_default() += ask.count;
            }
            let new = step.accounts.new_events(before);
            events += new.iter().map(EventAccount::guest_events).sum::<u64>();
            before = step.accounts;
        }
        let all = profile.total.asks.iter();
        assert_eq!(
            sum,
            all.map(|a| ((a.kind, a.index), a.count))
                .collect::<BTreeMap<_, _>>()
        );
        assert_eq!(events, profile.total.guest_events());
        assert!(profile.total.own_events() > 0);
    }

    #[test]
    fn most_frequent_first() {
        let top = fixtures::ledger().total.top_asks();
        assert!(top.windows(2).all(|w| w[0].count >= w[1].count));
        assert!(top.len() > 3);
    }

    #[test]
    fn codes_stand_behind_their_reason() {
        let total = fixtures::ledger().total;
        let names: Vec<&str> = total
            .codes_of(Some(28))
            .iter()
            .map(|c| c.name.as_str())
            .collect();
        assert_eq!(names, ["CR0_WRITE", "CR4_WRITE", "CR0_READ"]);
        assert_eq!(total.codes_of(None), Vec::<&CodeAccount>::new());
    }
}
