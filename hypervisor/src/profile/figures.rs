//! Figures: every ratio, difference and ranking that a report shows, as a method on the model.
//!
//! The boot's cost is what the guest caused: exits without the profiler's own. `guest_*` methods
//! give that; `own*` give what the profiler caused itself. Sums saturate and ratios survive a zero,
//! so a profile from anywhere can be shown.

use super::{Accounts, Histogram, KvmKind, Milestone, Profile, ReasonAccount};
use exit_abi::reason::Reason;
use std::cmp::Reverse;

/// Name of the step from the last milestone to the end of the run.
pub const END: &str = "(end)";

/// The source that sees every exit with its reason.
pub const KERNEL_LEDGER: &str = "kernel ledger";
/// KVM's statistics: every exit, without reasons.
pub const KVM_STATS: &str = "KVM stats";
/// What KVM emulates where the kernel ledger cannot see exits (software KVM): no exits.
pub const EMULATED_EVENTS: &str = "emulated events";
/// What the VMM itself sees return.
pub const KVM_RUN: &str = "KVM_RUN";

/// What exits are booked under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// A basic exit reason.
    Reason(u8),
    /// A KVM exit without a basic exit reason.
    Other,
    /// Known only from KVM's total.
    Residual,
}

/// A number of guest exits and what they are booked under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is booked under.
    pub cause: Cause,
    /// How many exits of the guest's.
    pub exits: u64,
}

/// What was added between two snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// New exits of the guest's, all causes.
    pub exits: u64,
    /// New exits of the profiler's own.
    pub own: u64,
    /// New cycles of the guest's.
    pub cycles: u64,
    /// New exits whose reason no source shows.
    pub residual: u64,
    /// New exits without a basic exit reason.
    pub other: u64,
    /// Per reason, ascending; only those in which something is new.
    pub reasons: Vec<ReasonDelta>,
}

/// What was added to one reason between two snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonDelta {
    /// Basic exit reason.
    pub reason: u8,
    /// New exits of the guest's.
    pub exits: u64,
    /// New exits of the profiler's own.
    pub own: u64,
    /// New cycles of the guest's.
    pub cycles: u64,
}

/// One step of the boot: up to a milestone, or from the last one to the end.
#[derive(Clone, Debug, PartialEq)]
pub struct Step<'a> {
    /// Its place, from 0.
    pub index: usize,
    /// The milestone's name, or [`END`].
    pub name: &'a str,
    /// The milestone that ends it; `None` for the end of the run.
    pub milestone: Option<&'a Milestone>,
    /// The accounts at its end.
    pub accounts: &'a Accounts,
    /// What it added.
    pub delta: Delta,
}

/// Every reason number of 0–127 sorted by what is known of it. Ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sightings {
    /// The guest caused at least one.
    pub seen: Vec<u8>,
    /// The guest caused none, for certain.
    pub never: Vec<u8>,
    /// None was seen, but exits of this reason can hide in the residual.
    pub hidden: Vec<u8>,
    /// This KVM never raises it.
    pub impossible: Vec<u8>,
    /// Not defined, up to the highest number that is.
    pub undefined: Vec<u8>,
}

/// Part of a whole, 0 to 1; `None` if the whole is nothing.
pub fn share(part: u64, whole: u128) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

pub(super) fn saturate(sum: u128) -> u64 {
    u64::try_from(sum).unwrap_or(u64::MAX)
}

/// What there is of these causes, most frequent first (equals: by number).
fn ranked(reasons: impl Iterator<Item = (u8, u64)>, other: u64, residual: u64) -> Vec<Part> {
    let reasons = reasons.map(|(reason, exits)| (Cause::Reason(reason), exits));
    let mut parts: Vec<Part> = reasons
        .chain([(Cause::Other, other), (Cause::Residual, residual)])
        .map(|(cause, exits)| Part { cause, exits })
        .filter(|p| p.exits > 0)
        .collect();
    parts.sort_by_key(|p| (Reverse(p.exits), p.cause));
    parts
}

/// Histograms, one per reason, by number.
pub fn merged(histograms: impl IntoIterator<Item = Histogram>) -> Vec<Histogram> {
    let mut all: Vec<Histogram> = Vec::new();
    for more in histograms {
        match all.binary_search_by_key(&more.reason, |h| h.reason) {
            Err(at) => all.insert(at, more),
            Ok(at) => {
                let buckets = &mut all[at].buckets;
                buckets.resize(buckets.len().max(more.buckets.len()), 0);
                for (bucket, n) in buckets.iter_mut().zip(&more.buckets) {
                    *bucket = bucket.saturating_add(*n);
                }
            }
        }
    }
    all
}

impl ReasonAccount {
    /// Exits of the guest's.
    pub fn guest_exits(&self) -> u64 {
        self.exits.saturating_sub(self.own)
    }

    /// Cycles of the guest's exits.
    pub fn guest_cycles(&self) -> u64 {
        self.cycles.saturating_sub(self.own_cycles)
    }

    /// How many of the guest's exits were timed.
    pub fn guest_timed(&self) -> u64 {
        self.timed
            .saturating_sub(self.own_timed)
            .min(self.guest_exits())
    }

    /// Shortest, mean and longest of the guest's timed exits; `None` if none was timed.
    ///
    /// The mean is kept between the other two, whatever the file says.
    pub fn times(&self) -> Option<(u64, u64, u64)> {
        let timed = self.guest_timed();
        if timed == 0 {
            return None;
        }
        let mean = self.guest_cycles() / timed;
        let max = self.max.max(self.min);
        let mean = if max > 0 {
            mean.clamp(self.min, max)
        } else {
            mean
        };
        Some((self.min, mean, max))
    }
}

impl Accounts {
    /// The account of a reason.
    pub fn reason(&self, number: u8) -> Option<&ReasonAccount> {
        self.reasons.iter().find(|r| r.reason == number)
    }

    fn sum(&self, of: impl Fn(&ReasonAccount) -> u64) -> u64 {
        saturate(self.reasons.iter().map(|r| u128::from(of(r))).sum())
    }

    /// Exits that are booked under a reason, the profiler's own included.
    pub fn attributed(&self) -> u64 {
        self.sum(|r| r.exits)
    }

    /// Exits of the profiler's own.
    pub fn own(&self) -> u64 {
        self.sum(|r| r.own).saturating_add(self.own_residual)
    }

    /// Cycles of the profiler's own exits.
    pub fn own_cycles(&self) -> u64 {
        self.sum(|r| r.own_cycles)
    }

    /// Exits that the guest caused: the boot's cost.
    pub fn guest_total(&self) -> u64 {
        self.total.saturating_sub(self.own())
    }

    /// Cycles of the exits that the guest caused, as far as they were timed.
    pub fn guest_cycles(&self) -> u64 {
        self.sum(ReasonAccount::guest_cycles)
    }

    /// How many of the guest's exits were timed.
    pub fn guest_timed(&self) -> u64 {
        self.sum(ReasonAccount::guest_timed)
    }

    /// What the guest's exits add up to by cause: the whole that shares refer to. It differs from
    /// [`Self::guest_total`] only if the sources disagree.
    pub fn whole(&self) -> u128 {
        let reasons: u128 = self
            .reasons
            .iter()
            .map(|r| u128::from(r.guest_exits()))
            .sum();
        reasons + u128::from(self.other) + u128::from(self.residual)
    }

    /// The guest's exits by cause, most frequent first.
    pub fn ranking(&self) -> Vec<Part> {
        let reasons = self.reasons.iter().map(|r| (r.reason, r.guest_exits()));
        ranked(reasons, self.other, self.residual)
    }

    /// What was added since an earlier snapshot. Nothing is ever negative.
    pub fn since(&self, earlier: &Self) -> Delta {
        let reasons = self.reasons.iter().filter_map(|now| {
            let then = earlier.reason(now.reason);
            let new = |of: fn(&ReasonAccount) -> u64| of(now).saturating_sub(then.map_or(0, of));
            let delta = ReasonDelta {
                reason: now.reason,
                exits: new(ReasonAccount::guest_exits),
                own: new(|r| r.own),
                cycles: new(ReasonAccount::guest_cycles),
            };
            (delta.exits > 0 || delta.own > 0 || delta.cycles > 0).then_some(delta)
        });
        Delta {
            exits: self.guest_total().saturating_sub(earlier.guest_total()),
            own: self.own().saturating_sub(earlier.own()),
            cycles: self.guest_cycles().saturating_sub(earlier.guest_cycles()),
            residual: self.residual.saturating_sub(earlier.residual),
            other: self.other.saturating_sub(earlier.other),
            reasons: reasons.collect(),
        }
    }
}

impl Delta {
    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The new exits of the guest's by cause, most frequent first.
    pub fn ranking(&self) -> Vec<Part> {
        let reasons = self.reasons.iter().map(|r| (r.reason, r.exits));
        ranked(reasons, self.other, self.residual)
    }
}

impl Profile {
    /// The boot step by step: one per milestone, and one up to its end if anything came after the
    /// last milestone.
    pub fn steps(&self) -> Vec<Step<'_>> {
        steps(&self.milestones, &self.total)
    }

    /// [`Self::steps`] without an end to which the guest added nothing: the exit by which it ends
    /// the run is the profiler's own.
    pub fn guest_steps(&self) -> Vec<Step<'_>> {
        let mut steps = self.steps();
        steps.retain(|s| s.milestone.is_some() || s.delta.exits > 0 || s.delta.cycles > 0);
        steps
    }

    /// The new exits of every step in which the count could grow: all but the first milestone and
    /// the end of the run, which count only if something happened there.
    fn growth(&self) -> Vec<u64> {
        self.steps()
            .iter()
            .filter(|s| (s.index > 0 && s.milestone.is_some()) || s.delta.exits > 0)
            .map(|s| s.delta.exits)
            .collect()
    }

    /// How unevenly the count grows: 0 = every step adds the same, 1 = one step adds everything.
    ///
    /// It is the Gini coefficient of the steps' new exits, scaled by n / (n - 1) so that 1 can be
    /// reached with any number of steps. `None` with fewer than two steps, or without any exit.
    pub fn unsteadiness(&self) -> Option<f64> {
        let mut growth = self.growth();
        growth.sort_unstable();
        let n = growth.len();
        let sum: f64 = growth.iter().map(|&x| x as f64).sum();
        if n < 2 || sum == 0.0 {
            return None;
        }
        let weighted: f64 = growth
            .iter()
            .enumerate()
            .map(|(i, &x)| (2.0 * i as f64 + 1.0 - n as f64) * x as f64)
            .sum();
        Some((weighted / ((n - 1) as f64 * sum)).clamp(0.0, 1.0))
    }

    /// The fewest steps that together add half of the exits, of how many steps. `None` without
    /// any exit.
    pub fn half_of_growth(&self) -> Option<(usize, usize)> {
        let mut growth = self.growth();
        growth.sort_unstable_by_key(|&x| Reverse(x));
        let sum: u128 = growth.iter().map(|&x| u128::from(x)).sum();
        let mut reached = 0u128;
        let fewest = growth.iter().position(|&x| {
            reached += u128::from(x);
            reached * 2 >= sum && sum > 0
        })?;
        Some((fewest + 1, growth.len()))
    }

    /// The step that adds the most exits (the first of them, if several do); through what is its
    /// delta's ranking. `None` without any exit.
    pub fn jump(&self) -> Option<Step<'_>> {
        let steps = self.steps();
        let jump = steps
            .into_iter()
            .max_by_key(|s| (s.delta.exits, Reverse(s.index)))?;
        (jump.delta.exits > 0).then_some(jump)
    }

    /// The guest's exit reasons, most frequent first (equals: by number).
    pub fn frequencies(&self) -> Vec<Part> {
        let mut parts = self.total.ranking();
        parts.retain(|p| matches!(p.cause, Cause::Reason(_)));
        parts
    }

    /// Every reason by what is known of it.
    pub fn sightings(&self) -> Sightings {
        let mut all = Sightings::default();
        let highest = self.reasons.iter().map(|r| r.reason).max();
        for reason in Reason::all() {
            let number = reason.number();
            let seen = self
                .total
                .reason(number)
                .is_some_and(|r| r.guest_exits() > 0);
            let list = match self.reasons.iter().find(|r| r.reason == number) {
                _ if seen => &mut all.seen,
                Some(info) if !info.can_occur => &mut all.impossible,
                Some(info) if !info.exact && self.total.residual > 0 => &mut all.hidden,
                Some(_) => &mut all.never,
                None if highest.is_some_and(|h| number < h) => &mut all.undefined,
                None => continue,
            };
            list.push(number);
        }
        all
    }

    /// The name of a reason: the profile's, else the current SDM's.
    pub fn reason_name(&self, number: u8) -> &str {
        match self.reasons.iter().find(|r| r.reason == number) {
            Some(info) => &info.name,
            None => Reason::new(number.into())
                .and_then(Reason::name)
                .unwrap_or("undefined"),
        }
    }

    /// Whether a source served in this run.
    pub fn has_source(&self, name: &str) -> bool {
        self.sources.iter().any(|s| s.available && s.name == name)
    }

    /// Whether the kernel ledger served. On software KVM it can only count what is emulated, and
    /// that makes no exit known.
    pub fn has_kernel_ledger(&self) -> bool {
        self.has_source(KERNEL_LEDGER)
            && self.host.kvm != KvmKind::Software
            && self.total.emulated.is_empty()
    }

    /// Whether a source counted every exit, so that the total is the whole.
    pub fn counts_everything(&self) -> bool {
        self.has_source(KVM_STATS) || self.has_kernel_ledger()
    }

    /// Whether other vCPUs reach this milestone, too.
    pub fn is_per_cpu(&self, milestone: &Milestone) -> bool {
        let others = self.milestones.iter().filter(|m| m.vcpu != milestone.vcpu);
        others
            .into_iter()
            .any(|m| (m.number, &m.name) == (milestone.number, &milestone.name))
    }

    /// What the residual consists of. Where every exit is traced, KVM's statistic is known to
    /// exceed the trace in one case: kvm_intel without unrestricted guest emulates while the
    /// guest's state is invalid (early real mode), and counts each pass as an exit.
    pub fn residual_meaning(&self) -> &'static str {
        match self.host.kvm {
            _ if !self.has_kernel_ledger() => "handled in the kernel, reason not visible",
            KvmKind::Intel => "emulated by KVM without an exit",
            _ => "not attributed by the kernel ledger",
        }
    }

    /// What a reader should know before trusting the figures; none of it is fatal. One line each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.milestones_dropped > 0 {
            let dropped = self.milestones_dropped;
            warnings.push(format!(
                "{dropped} milestones were dropped: no room for a snapshot"
            ));
        }
        if self.reboots_dropped > 0 {
            let dropped = self.reboots_dropped;
            warnings.push(format!("{dropped} reboots were dropped: no room for them"));
        }
        let shrinks = |s: &Step<'_>, before: &Accounts| s.accounts.total < before.total;
        let steps = self.steps();
        if let Some(pair) = steps.windows(2).find(|w| shrinks(&w[1], w[0].accounts)) {
            let (a, b) = (pair[0].name, pair[1].name);
            warnings.push(format!("the count shrinks from milestone {a:?} to {b:?}"));
        }
        if self.total.excess > 0 {
            let excess = self.total.excess;
            warnings.push(format!(
                "{excess} more were attributed than KVM counted as exits: one exit can return to \
                 userspace in parts (a long string, an access over a page's end)"
            ));
        }
        let vcpus: u128 = self.vcpus.iter().map(|v| u128::from(v.total)).sum();
        if !self.vcpus.is_empty() && vcpus != u128::from(self.total.total) {
            let total = self.total.total;
            warnings.push(format!(
                "the vCPUs add up to {vcpus} exits, the total is {total}"
            ));
        }
        if let Some(void) = self.paging_contradiction() {
            warnings.push(format!("this profile is void: {void}"));
        }
        warnings
    }
}

/// The steps that these snapshots and the accounts at the end make.
pub(super) fn steps<'a>(milestones: &'a [Milestone], total: &'a Accounts) -> Vec<Step<'a>> {
    let start = Accounts::default();
    let mut before = &start;
    let mut steps = Vec::with_capacity(milestones.len() + 1);
    for (index, milestone) in milestones.iter().enumerate() {
        steps.push(Step {
            index,
            name: &milestone.name,
            milestone: Some(milestone),
            accounts: &milestone.accounts,
            delta: milestone.accounts.since(before),
        });
        before = &milestone.accounts;
    }
    let rest = total.since(before);
    if !rest.is_empty() {
        steps.push(Step {
            index: steps.len(),
            name: END,
            milestone: None,
            accounts: total,
            delta: rest,
        });
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    fn stepped(growth: &[u64]) -> Profile {
        let mut profile = fixtures::zero();
        let mut total = 0;
        profile.milestones = std::iter::once(&0)
            .chain(growth)
            .enumerate()
            .map(|(i, new)| {
                total += new;
                fixtures::milestone(i as u32 + 1, "m", i as u64, fixtures::accounts(total, &[]))
            })
            .collect();
        profile.total = fixtures::accounts(total, &[]);
        profile
    }

    #[test]
    fn unsteadiness_has_its_two_ends() {
        assert_eq!(stepped(&[5, 5, 5]).unsteadiness(), Some(0.0));
        assert_eq!(stepped(&[0, 9, 0, 0]).unsteadiness(), Some(1.0));
        assert_eq!(stepped(&[9]).unsteadiness(), None);
        assert_eq!(stepped(&[0, 0]).unsteadiness(), None);
        let between = stepped(&[1, 2, 3]).unsteadiness().unwrap();
        assert!((between - 1.0 / 3.0).abs() < 1e-9, "{between}");
    }

    #[test]
    fn half_and_jump() {
        let profile = stepped(&[1, 7, 7, 1]);
        assert_eq!(profile.half_of_growth(), Some((2, 4)));
        assert_eq!(profile.jump().unwrap().index, 2);
        assert_eq!(stepped(&[5, 5]).half_of_growth(), Some((1, 2)));
        assert_eq!(stepped(&[0]).half_of_growth(), None);
        assert_eq!(stepped(&[0]).jump(), None);
    }

    #[test]
    fn own_exits_are_no_cost() {
        let profile = fixtures::software();
        let total = &profile.total;
        assert_eq!(total.guest_total() + total.own(), total.total);
        assert_eq!(u128::from(total.guest_total()), total.whole());
        let new: u64 = profile.steps().iter().map(|s| s.delta.exits).sum();
        assert_eq!(new, total.guest_total());
    }

    #[test]
    fn sightings_part_the_numbers() {
        for profile in [fixtures::software(), fixtures::ledger(), fixtures::zero()] {
            let all = profile.sightings();
            let mut numbers = [
                all.seen,
                all.never,
                all.hidden,
                all.impossible,
                all.undefined,
            ]
            .concat();
            numbers.sort_unstable();
            assert_eq!(numbers, (0..=85).collect::<Vec<u8>>());
        }
        assert!(fixtures::ledger().sightings().hidden.is_empty());
        assert!(!fixtures::software().sightings().hidden.is_empty());
    }

    #[test]
    fn means_survive_zero_and_extremes() {
        let account = fixtures::huge().total.reasons[0].clone();
        assert_eq!(account.times(), Some((u64::MAX, u64::MAX, u64::MAX)));
        assert_eq!(
            ReasonAccount {
                timed: 0,
                ..account.clone()
            }
            .times(),
            None
        );
        // The guest's exit was timed; the profiler's own ended the run and was not.
        let last = ReasonAccount {
            exits: 2,
            own: 1,
            timed: 1,
            own_timed: 0,
            cycles: 70,
            min: 70,
            max: 70,
            ..account
        };
        assert_eq!(last.times(), Some((70, 70, 70)));
        // The profiler's own exit was timed; the guest's ended the run and was not.
        let last = ReasonAccount {
            own_timed: 1,
            own_cycles: 70,
            min: 0,
            max: 0,
            ..last
        };
        assert_eq!(last.times(), None);
        assert_eq!(share(1, 0), None);
    }

    #[test]
    fn a_shrinking_count_is_told() {
        let mut profile = stepped(&[5, 5]);
        profile.vcpus.clear();
        assert_eq!(profile.warnings(), Vec::<String>::new());
        profile.milestones.swap(1, 2);
        assert_eq!(profile.warnings().len(), 1);
    }
}
