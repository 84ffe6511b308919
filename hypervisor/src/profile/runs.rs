//! Several runs of one boot: how far apart their figures lie.

use super::Profile;
use super::figures::END;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Smallest, median and largest of some figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: u64,
    /// The one in the middle; of an even number, the mean of the two (rounded down).
    pub median: u64,
    /// The largest.
    pub max: u64,
}

impl Spread {
    /// The spread of these figures; all zero if there are none.
    pub fn of(mut figures: Vec<u64>) -> Self {
        figures.sort_unstable();
        let (Some(&min), Some(&max)) = (figures.first(), figures.last()) else {
            return Self::default();
        };
        let upper = figures[figures.len() / 2];
        let lower = figures[(figures.len() - 1) / 2];
        Self {
            min,
            median: lower.midpoint(upper),
            max,
        }
    }

    /// Whether not all figures were the same.
    pub fn varies(&self) -> bool {
        self.min != self.max
    }
}

/// A step over several runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StepSpread {
    /// The milestone's name.
    pub name: String,
    /// Which time this name comes up in a run, from 0.
    pub nth: usize,
    /// In how many runs it was reached.
    pub reached: usize,
    /// The guest's exits up to it, in those runs.
    pub exits: Spread,
    /// The guest's exits that it added, in those runs.
    pub new: Spread,
}

/// A reason over several runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReasonSpread {
    /// Basic exit reason.
    pub reason: u8,
    /// The guest's exits of it.
    pub exits: Spread,
}

/// Several runs of one boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Runs {
    /// How many.
    pub runs: usize,
    /// How many of them were cut short.
    pub cut_short: usize,
    /// How many of them booted again: only their first boots count here.
    pub rebooted: usize,
    /// The guest's exits, all causes.
    pub total: Spread,
    /// The total without what time drives; `None` unless all runs have the kernel ledger.
    pub fixed: Option<Spread>,
    /// The guest's cycles.
    pub cycles: Spread,
    /// The exits whose reason no source shows.
    pub residual: Spread,
    /// Exits without a basic exit reason.
    pub other: Spread,
    /// The profiler's own exits.
    pub own: Spread,
    /// The steps, in the order of the boot.
    pub steps: Vec<StepSpread>,
    /// The reasons, largest median first.
    pub reasons: Vec<ReasonSpread>,
}

impl Runs {
    /// What these profiles have in common, and what not.
    pub fn of(profiles: &[Profile]) -> Self {
        let each = |of: fn(&Profile) -> u64| Spread::of(profiles.iter().map(of).collect());
        Self {
            runs: profiles.len(),
            cut_short: profiles.iter().filter(|p| p.first_end().cut_short).count(),
            rebooted: profiles.iter().filter(|p| p.has_reboots()).count(),
            total: each(|p| p.total.guest_total()),
            fixed: fixed(profiles),
            cycles: each(|p| p.total.guest_cycles()),
            residual: each(|p| p.total.residual),
            other: each(|p| p.total.other),
            own: each(|p| p.total.own()),
            steps: steps(profiles),
            reasons: reasons(profiles),
        }
    }
}

fn fixed(profiles: &[Profile]) -> Option<Spread> {
    let counts = profiles.iter().map(|p| Some(p.fixed(&p.total)?.count()));
    counts.collect::<Option<Vec<u64>>>().map(Spread::of)
}

/// A step's name and which time it comes up: what makes steps of two runs the same.
pub(super) type Key = (String, usize);

/// The steps of a profile by key: exits so far, new exits.
pub(super) fn keyed(profile: &Profile) -> Vec<(Key, u64, u64)> {
    let mut times = BTreeMap::<String, usize>::new();
    let steps = profile.guest_steps();
    let key = |name: &str| {
        let time = times.entry(name.to_owned()).or_default();
        *time += 1;
        (name.to_owned(), *time - 1)
    };
    let keys: Vec<Key> = steps.iter().map(|s| s.name).map(key).collect();
    keys.into_iter()
        .zip(&steps)
        .map(|(key, step)| (key, step.accounts.guest_total(), step.delta.exits))
        .collect()
}

/// The keys of several runs in one order: what a run has and those before it lack stands before
/// the next key that they have in common; the end of the run stands last.
pub(super) fn merged<'a>(runs: impl Iterator<Item = Vec<&'a Key>>) -> Vec<&'a Key> {
    let mut order: Vec<&Key> = Vec::new();
    for run in runs {
        let known: BTreeSet<&Key> = order.iter().copied().collect();
        let mut before = BTreeMap::<&Key, Vec<&Key>>::new();
        let mut waiting = Vec::new();
        for key in run {
            match known.contains(key) {
                true => before.entry(key).or_default().append(&mut waiting),
                false => waiting.push(key),
            }
        }
        let mut next = Vec::with_capacity(order.len() + waiting.len());
        for key in order {
            next.append(&mut before.remove(key).unwrap_or_default());
            next.push(key);
        }
        next.append(&mut waiting);
        order = next;
    }
    order.sort_by_key(|key| key.0 == END);
    order
}

fn steps(profiles: &[Profile]) -> Vec<StepSpread> {
    let runs: Vec<_> = profiles.iter().map(keyed).collect();
    let mut figures = BTreeMap::<&Key, (Vec<u64>, Vec<u64>)>::new();
    for (key, exits, new) in runs.iter().flatten() {
        let entry = figures.entry(key).or_default();
        entry.0.push(*exits);
        entry.1.push(*new);
    }
    let order = merged(
        runs.iter()
            .map(|run| run.iter().map(|(key, ..)| key).collect()),
    );
    order
        .into_iter()
        .filter_map(|key| figures.remove_entry(key))
        .map(|((name, nth), (exits, new))| StepSpread {
            name: name.clone(),
            nth: *nth,
            reached: exits.len(),
            exits: Spread::of(exits),
            new: Spread::of(new),
        })
        .collect()
}

fn reasons(profiles: &[Profile]) -> Vec<ReasonSpread> {
    let mut figures = BTreeMap::<u8, Vec<u64>>::new();
    for account in profiles.iter().flat_map(|p| &p.total.reasons) {
        figures
            .entry(account.reason)
            .or_default()
            .push(account.guest_exits());
    }
    let mut reasons: Vec<_> = figures
        .into_iter()
        .map(|(reason, mut exits)| {
            exits.resize(profiles.len().max(exits.len()), 0);
            ReasonSpread {
                reason,
                exits: Spread::of(exits),
            }
        })
        .filter(|r| r.exits.max > 0)
        .collect();
    reasons.sort_by_key(|r| (std::cmp::Reverse((r.exits.median, r.exits.max)), r.reason));
    reasons
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn spreads() {
        assert_eq!(Spread::of(vec![]), Spread::default());
        assert_eq!(
            Spread::of(vec![3, 1, 2]),
            Spread {
                min: 1,
                median: 2,
                max: 3
            }
        );
        assert_eq!(
            Spread::of(vec![u64::MAX, u64::MAX - 1]).median,
            u64::MAX - 1
        );
        assert!(!Spread::of(vec![4, 4]).varies());
    }

    #[test]
    fn steps_are_matched_by_name() {
        let runs = Runs::of(&[fixtures::cut_short(), fixtures::software()]);
        let names: Vec<_> = runs
            .steps
            .iter()
            .map(|s| (s.name.as_str(), s.reached))
            .collect();
        assert_eq!(names[0], ("reset", 2));
        assert_eq!(names[4], ("exceptions", 2));
        assert!(names.contains(&("interrupts", 1)));
        assert_eq!(runs.cut_short, 1);
        let cpuid = runs.reasons.iter().find(|r| r.reason == 10).unwrap();
        assert_eq!((cpuid.exits.min, cpuid.exits.max), (0, 120));
    }

    #[test]
    fn orders_are_merged() {
        let run = |names: &str| -> Vec<Key> {
            names.split(' ').map(|name| (name.to_owned(), 0)).collect()
        };
        let order = |runs: &[&str]| {
            let runs: Vec<_> = runs.iter().map(|r| run(r)).collect();
            let keys = merged(runs.iter().map(|r| r.iter().collect()));
            keys.iter()
                .map(|k| k.0.as_str())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            order(&["a b (end)", "a c d", "x a d e"]),
            "x a b c d e (end)"
        );
        assert_eq!(order(&["a b", "b a"]), "a b");
        assert_eq!(order(&[]), "");
    }

    #[test]
    fn the_fixed_count_needs_every_run() {
        let (with, without) = (fixtures::ledger(), fixtures::software());
        let fixed = with.fixed(&with.total).unwrap().count();
        let same = Runs::of(&[with.clone(), with.clone()]).fixed.unwrap();
        assert_eq!((same.min, same.max), (fixed, fixed));
        assert_eq!(Runs::of(&[with, without]).fixed, None);
    }

    #[test]
    fn no_run_is_no_panic() {
        assert_eq!(Runs::of(&[]).runs, 0);
    }
}
