//! Emulated events: what software KVM did for the guest, where no exit is traced. They are no
//! exits, so they stand apart from all that are.

use super::asks;
use super::format::{WIDTH, bar, clean, count, count_or_none, fit, labelled, percent, width};
use super::table::{Side, Table};
use super::text::{mostly, step_name};
use crate::profile::figures::{Cause, Part, share};
use crate::profile::{Accounts, EventAccount, Profile};
use Side::{Left, Right};

const BAR: usize = 14;
/// Widest name of a reason.
const NAME: usize = 26;

/// Both tables under their heading; nothing without emulated events.
pub(super) fn section(profile: &Profile) -> String {
    if profile.total.emulated.is_empty() {
        return String::new();
    }
    let heading = "emulated events, not hardware exits: what KVM did for the guest in software, by \
                   the reason that hardware would have exited for; in none of the sums of exits";
    labelled("", 0, heading) + "\n" + &milestones(profile) + "\n" + &reasons(profile)
}

fn ranking(events: &[EventAccount]) -> Vec<Part> {
    let parts = events.iter().map(|e| Part {
        cause: Cause::Reason(e.reason),
        exits: e.guest_events(),
    });
    parts.filter(|p| p.exits > 0).collect()
}

fn milestones(profile: &Profile) -> String {
    let steps = profile.steps();
    let none = Accounts::default();
    let build = |most: usize, asked: usize| {
        let mut table = Table::new(&[
            ("milestone", Left),
            ("events", Right),
            ("new", Right),
            ("mostly", Left),
            ("asked for", Left),
        ]);
        let mut before = &none;
        for step in &steps {
            let new = step.accounts.new_events(before);
            let events: u64 = new
                .iter()
                .map(EventAccount::guest_events)
                .fold(0, u64::saturating_add);
            let asks = step.accounts.new_asks(before);
            before = step.accounts;
            if step.milestone.is_none() && events == 0 {
                continue;
            }
            table.row(vec![
                step_name(profile, step),
                count(step.accounts.guest_events()),
                count_or_none(events),
                mostly(profile, &ranking(&new), most),
                asks::mostly(&asks, asked),
            ]);
        }
        table
    };
    // What the other columns leave free, one half each.
    let (first, second) = (width("mostly"), width("asked for"));
    let rest = build(1, 1).width();
    let free = (WIDTH + first + second).saturating_sub(rest);
    let most = (free / 2).max(first);
    build(most, free.saturating_sub(most).max(second)).render()
}

fn reasons(profile: &Profile) -> String {
    let total = &profile.total;
    let all = total.new_events(&Accounts::default());
    let most = all.first().map_or(0, EventAccount::guest_events);
    let mut table = Table::new(&[
        ("", Right),
        ("emulated as", Left),
        ("events", Right),
        ("share", Right),
        ("", Left),
        ("own (apart)", Right),
    ]);
    for event in &all {
        table.row(vec![
            event.reason.to_string(),
            fit(&clean(profile.reason_name(event.reason)), NAME),
            count(event.guest_events()),
            percent(share(event.guest_events(), total.guest_events().into())),
            bar(event.guest_events(), most, BAR),
            own(event.own),
        ]);
    }
    table.rule();
    table.row(vec![
        String::new(),
        "total".to_owned(),
        count(total.guest_events()),
        String::new(),
        String::new(),
        own(total.own_events()),
    ]);
    table.render()
}

/// The profiler's own, where there are any.
fn own(events: u64) -> String {
    match events {
        0 => String::new(),
        n => count(n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixtures;

    #[test]
    fn they_are_in_no_sum_of_exits() {
        let (with, without) = (fixtures::emulated(), fixtures::software());
        assert_eq!(with.total.guest_total(), without.total.guest_total());
        assert_eq!(with.total.whole(), without.total.whole());
        assert_eq!(with.counts_everything(), without.counts_everything());
        assert_eq!(section(&without), "");
        assert!(section(&with).starts_with("emulated events, not hardware exits"));
    }
}
