//! Culprits: who caused the exits of a boot, or of one of its steps, by what they were for or by where
//! in the guest they came from.
//!
//! Counts contain the profiler's own exits. What is counted adds up to the exits of each reason; what
//! does not is the residual, shown.

use super::figures::saturate;
use super::{Accounts, Ask, AskKind, Culprit, Lost, Milestone, Pass, Profile};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// By what exits are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// Ports (reason 30).
    Port,
    /// Model-specific registers (31 and 32).
    Msr,
    /// CPUID leaves (10).
    Leaf,
    /// Guest-physical pages (48 and 49).
    Page,
    /// Exceptions' and interrupts' vectors (0 and 1).
    Vector,
    /// Control registers (28).
    Register,
    /// Every reason, and what is known of it.
    Reason,
    /// The guest's functions, whatever the reason.
    Symbol,
}

impl By {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Port,
        Self::Msr,
        Self::Leaf,
        Self::Page,
        Self::Vector,
        Self::Register,
        Self::Reason,
        Self::Symbol,
    ];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Msr => "msr",
            Self::Leaf => "leaf",
            Self::Page => "page",
            Self::Vector => "vector",
            Self::Register => "register",
            Self::Reason => "reason",
            Self::Symbol => "symbol",
        }
    }

    /// Whether it shows exits of this reason.
    pub fn shows(self, reason: Option<u8>) -> bool {
        match self.reasons() {
            None => true,
            Some(reasons) => reason.is_some_and(|r| reasons.contains(&r)),
        }
    }

    /// The reasons whose exits it tells apart; `None`: all.
    fn reasons(self) -> Option<&'static [u8]> {
        match self {
            Self::Port => Some(&[30]),
            Self::Msr => Some(&[31, 32]),
            Self::Leaf => Some(&[10]),
            Self::Page => Some(&[48, 49]),
            Self::Vector => Some(&[0, 1]),
            Self::Register => Some(&[28]),
            Self::Reason | Self::Symbol => None,
        }
    }
}

/// Where in the guest exits came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In this function.
    Function(String),
    /// At this address.
    Address(u64),
    /// Not known, or anywhere: time drives them.
    Unknown,
}

/// What exits were for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Object {
    /// The basic exit reason; `None` for codes that have none.
    pub reason: Option<u8>,
    /// What was asked for.
    pub kind: Option<AskKind>,
    /// Which.
    pub index: Option<u64>,
}

impl Object {
    /// As something that is asked for, so often.
    pub fn ask(&self, count: u64) -> Option<Ask> {
        let (kind, index) = self.kind.zip(self.index)?;
        Some(Ask { kind, index, count })
    }
}

/// Exits of one cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Exits, the profiler's own included.
    pub exits: u64,
    /// Their TSC cycles, so far as they are timed; known of a whole boot.
    pub cycles: u64,
}

impl Tally {
    fn add(&mut self, more: Self) {
        self.exits = self.exits.saturating_add(more.exits);
        self.cycles = self.cycles.saturating_add(more.cycles);
    }
}

/// Who called the function that exits came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Caller {
    /// The function, with the offset to which the called one returns; absent: not known, or not looked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    /// The address of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<u64>,
    /// Which function it called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// Exits.
    pub count: u64,
}

impl Caller {
    /// Its function, without the offset.
    pub fn function(&self) -> Option<&str> {
        self.symbol.as_deref().map(function)
    }
}

/// A symbol without its offset.
fn function(symbol: &str) -> &str {
    symbol.rsplit_once('+').map_or(symbol, |(name, _)| name)
}

/// Exits of one object, or of one place; and which places, or objects, those were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row<K, D> {
    /// Which.
    pub key: K,
    /// How many.
    #[serde(flatten)]
    pub tally: Tally,
    /// Of which, most frequent first.
    pub of: Vec<(D, u64)>,
    /// Who called the functions that they came from, most frequent first, and last those of whom that is
    /// not known: they add up to the exits. Empty if it is known of none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub callers: Vec<Caller>,
}

/// The exits of one reason, told apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// The reason; `None` for codes that have none.
    pub reason: Option<u8>,
    /// Its exits, as the accounts have them.
    pub exits: u64,
    /// Most frequent first.
    pub rows: Vec<Row<Object, Place>>,
    /// Those of which nothing else is known: the table was full.
    pub no_room: u64,
    /// KVM did not trace what for.
    pub not_told: u64,
    /// Exits that are in none of these.
    pub residual: u64,
}

/// Who caused the exits of a boot, or of a step of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Culprits<'a> {
    list: &'a [Culprit],
    tallies: Vec<Tally>,
    exits: BTreeMap<Option<u8>, u64>,
}

impl<'a> Culprits<'a> {
    /// Between two snapshots of a boot whose culprits are these. `None` if nothing is known of one.
    pub fn between(list: &'a [Culprit], earlier: &Accounts, later: &Accounts) -> Option<Self> {
        let is_known =
            |a: &Accounts| !a.culprits.is_empty() || exits_of(a).values().all(|&n| n == 0);
        if list.is_empty() || !is_known(earlier) || !is_known(later) {
            return None;
        }
        let count = |a: &Accounts, n: usize| a.culprits.get(n).copied().unwrap_or(0);
        let tally = |n: usize| Tally {
            exits: count(later, n).saturating_sub(count(earlier, n)),
            // Cycles are known of the whole boot.
            cycles: match earlier.culprits.is_empty() {
                true => later.culprit_cycles.get(n).copied().unwrap_or(0),
                false => 0,
            },
        };
        let before = exits_of(earlier);
        let mut exits = exits_of(later);
        for (reason, exits) in &mut exits {
            *exits = exits.saturating_sub(before.get(reason).copied().unwrap_or(0));
        }
        Some(Self {
            list,
            tallies: (0..list.len()).map(tally).collect(),
            exits,
        })
    }

    /// Those with any exits.
    pub fn each(&self) -> impl Iterator<Item = (&'a Culprit, Tally)> {
        let all = self.list.iter().zip(self.tallies.iter().copied());
        all.filter(|(_, tally)| tally.exits > 0)
    }

    /// The exits of one reason, as the accounts have them.
    pub fn exits(&self, reason: Option<u8>) -> u64 {
        self.exits.get(&reason).copied().unwrap_or(0)
    }

    /// All exits.
    pub fn total(&self) -> u64 {
        saturate(self.exits.values().map(|&n| u128::from(n)).sum())
    }

    /// Reason by reason, by what exits were for: reasons in the order of their exits.
    pub fn groups(&self, by: By) -> Vec<Group> {
        let mut reasons: Vec<Option<u8>> = self.exits.keys().copied().collect();
        reasons.retain(|&reason| by.shows(reason) && self.exits(reason) > 0);
        reasons.sort_by_key(|&reason| (Reverse(self.exits(reason)), reason));
        reasons.into_iter().map(|r| self.group(r)).collect()
    }

    fn group(&self, reason: Option<u8>) -> Group {
        let mut lost = [0_u64; 2];
        let mut found = Vec::new();
        for (culprit, tally) in self.each().filter(|(c, _)| c.reason == reason) {
            match culprit.lost {
                Some(Lost::NoRoom) => lost[0] = lost[0].saturating_add(tally.exits),
                Some(Lost::NotTold) => lost[1] = lost[1].saturating_add(tally.exits),
                None => found.push((culprit.object(), culprit.place(), culprit, tally)),
            }
        }
        let rows = rows(found);
        let named = rows.iter().map(|row| row.tally.exits);
        let known = named.chain(lost).fold(0, u64::saturating_add);
        let exits = self.exits(reason);
        Group {
            reason,
            exits,
            rows,
            no_room: lost[0],
            not_told: lost[1],
            residual: exits.saturating_sub(known),
        }
    }

    /// By function, all reasons together; those without a place are not among them.
    pub fn places(&self) -> Vec<Row<Place, Object>> {
        let found = self
            .each()
            .map(|(c, tally)| (c.place(), c.object(), c, tally));
        let mut rows = rows(found.collect());
        rows.retain(|row| row.key != Place::Unknown);
        rows
    }
}

/// Sums up by key; within each, by detail. Most frequent first.
fn rows<K: Ord + Clone, D: Ord + Clone>(found: Vec<(K, D, &Culprit, Tally)>) -> Vec<Row<K, D>> {
    type Sums<D> = (Tally, BTreeMap<D, u64>, BTreeMap<Caller, u64>);
    let mut sums = BTreeMap::<K, Sums<D>>::new();
    for (key, detail, culprit, tally) in found {
        let (sum, details, callers) = sums
            .entry(key)
            .or_insert_with(|| (Tally::default(), BTreeMap::new(), BTreeMap::new()));
        sum.add(tally);
        let exits = details.entry(detail).or_default();
        *exits = exits.saturating_add(tally.exits);
        if let Some(caller) = culprit.called_by() {
            let exits = callers.entry(caller).or_default();
            *exits = exits.saturating_add(tally.exits);
        }
    }
    let row = |(key, (tally, details, callers)): (K, Sums<D>)| {
        let mut of: Vec<(D, u64)> = details.into_iter().collect();
        of.sort_by_key(|(_, exits)| Reverse(*exits));
        Row {
            key,
            tally,
            of,
            callers: with_unknown(callers, tally.exits),
        }
    };
    let mut rows: Vec<Row<K, D>> = sums.into_iter().map(row).collect();
    rows.sort_by_key(|row| Reverse(row.tally.exits));
    rows
}

/// Callers, most frequent first, and those of whom none is known.
fn with_unknown(callers: BTreeMap<Caller, u64>, exits: u64) -> Vec<Caller> {
    let counted = |(caller, count)| Caller { count, ..caller };
    let mut callers: Vec<Caller> = callers.into_iter().map(counted).collect();
    callers.sort_by_key(|caller| Reverse(caller.count));
    let known = callers
        .iter()
        .fold(0, |sum: u64, c| sum.saturating_add(c.count));
    let unknown = exits.saturating_sub(known);
    if unknown > 0 && !callers.is_empty() {
        callers.push(Caller {
            symbol: None,
            address: None,
            via: None,
            count: unknown,
        });
    }
    callers
}

impl Culprit {
    /// Who called its function, if that is known; nothing is counted.
    fn called_by(&self) -> Option<Caller> {
        let symbol = self.called_from.clone()?;
        Some(Caller {
            symbol: Some(symbol),
            address: self.caller,
            via: self.symbol.as_deref().map(|via| function(via).to_owned()),
            count: 0,
        })
    }

    /// What the exits were for.
    pub fn object(&self) -> Object {
        Object {
            reason: self.reason,
            kind: self.kind,
            index: self.index,
        }
    }

    /// Where they came from.
    pub fn place(&self) -> Place {
        match (&self.symbol, self.rip) {
            (Some(symbol), _) => Place::Function(function(symbol).to_owned()),
            (None, Some(rip)) => Place::Address(rip),
            (None, None) => Place::Unknown,
        }
    }
}

/// Exits by reason; emulated events where there are no exits to be told apart.
fn exits_of(accounts: &Accounts) -> BTreeMap<Option<u8>, u64> {
    if !accounts.emulated.is_empty() {
        let events = accounts.emulated.iter();
        return events.map(|e| (Some(e.reason), e.events)).collect();
    }
    let reasons = accounts.reasons.iter().map(|r| (Some(r.reason), r.exits));
    reasons.chain([(None, accounts.other)]).collect()
}

/// Exits of one reason, in the same way.
pub(super) fn exits(accounts: &Accounts, reason: Option<u8>) -> u64 {
    exits_of(accounts).get(&reason).copied().unwrap_or(0)
}

/// A boot's snapshots and culprits.
struct Boot<'a> {
    list: &'a [Culprit],
    milestones: &'a [Milestone],
    total: &'a Accounts,
}

impl<'a> Boot<'a> {
    fn of(profile: &'a Profile) -> Self {
        Self {
            list: &profile.culprits,
            milestones: &profile.milestones,
            total: &profile.total,
        }
    }

    /// Whole.
    fn whole(&self) -> Option<Culprits<'a>> {
        Culprits::between(self.list, &Accounts::default(), self.total)
    }

    /// Step by step: its name, and who caused what it added. `None` where a snapshot kept nothing.
    fn steps(&self) -> Vec<(String, Option<Culprits<'a>>)> {
        let mut steps = Vec::new();
        let none = Accounts::default();
        let mut before = &none;
        for milestone in self.milestones {
            let now = &milestone.accounts;
            steps.push((
                milestone.name.clone(),
                Culprits::between(self.list, before, now),
            ));
            before = now;
        }
        steps.push((
            super::figures::END.to_owned(),
            Culprits::between(self.list, before, self.total),
        ));
        steps
    }
}

impl Profile {
    /// Who caused the exits of the first boot; `None` if that was not kept.
    pub fn culprits(&self) -> Option<Culprits<'_>> {
        Boot::of(self).whole()
    }

    /// The same of each of its steps, by name: what was added on the way to this milestone.
    pub fn culprits_by_step(&self) -> Vec<(String, Option<Culprits<'_>>)> {
        Boot::of(self).steps()
    }
}

impl Pass {
    /// Who caused the exits of this boot; `None` if that was not kept.
    pub fn culprits(&self) -> Option<Culprits<'_>> {
        let boot = Boot {
            list: &self.culprits,
            milestones: &self.milestones,
            total: &self.total,
        };
        boot.whole()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn every_reason_adds_up_in_every_step() {
        let profile = fixtures::culprits();
        let steps = profile.culprits_by_step();
        assert!(steps.len() > 5);
        let mut sum = BTreeMap::<Option<u8>, u64>::new();
        for (name, culprits) in &steps {
            for group in culprits.as_ref().unwrap().groups(By::Reason) {
                let rows: u64 = group.rows.iter().map(|r| r.tally.exits).sum();
                let all = rows + group.no_room + group.not_told + group.residual;
                assert_eq!(all, group.exits, "{name} {:?}", group.reason);
                assert_eq!(group.residual, 0, "{name} {:?}", group.reason);
                *sum.entry(group.reason).or_default() += group.exits;
            }
        }
        for group in profile.culprits().unwrap().groups(By::Reason) {
            assert_eq!(sum.get(&group.reason), Some(&group.exits));
        }
    }

    #[test]
    fn each_view_shows_its_reasons_most_frequent_first() {
        let profile = fixtures::culprits();
        let all = profile.culprits().unwrap();
        for by in By::ALL {
            for group in all.groups(by) {
                if let Some(reasons) = by.reasons() {
                    assert!(reasons.contains(&group.reason.unwrap()));
                }
                let sorted = |w: &[Row<Object, Place>]| w[0].tally.exits >= w[1].tally.exits;
                assert!(group.rows.windows(2).all(sorted));
                for row in &group.rows {
                    let of: u64 = row.of.iter().map(|(_, n)| n).sum();
                    assert_eq!(of, row.tally.exits);
                    let called: u64 = row.callers.iter().map(|c| c.count).sum();
                    assert!(row.callers.is_empty() || called == row.tally.exits);
                }
            }
        }
        let places = all.places();
        let deadline = Place::Function("lapic_next_deadline".to_owned());
        assert!(places.iter().any(|row| row.key == deadline));
    }

    #[test]
    fn a_profile_that_kept_none_has_none() {
        assert!(fixtures::ledger().culprits().is_none());
        assert!(fixtures::software().culprits_by_step()[0].1.is_none());
        let mut profile = fixtures::culprits();
        // Room for counts was used up.
        profile.milestones[3].accounts.culprits.clear();
        let steps = profile.culprits_by_step();
        let known: Vec<bool> = steps.iter().map(|(_, c)| c.is_some()).collect();
        assert_eq!(known.iter().filter(|k| !**k).count(), 2, "{known:?}");
    }
}
