//! Passes: the boots of one run side by side, and what a reboot costs.

use super::figures::{Part, Step, steps};
use super::runs::Spread;
use super::{Accounts, End, Milestone, Pass, Profile};

/// Bytes of JSON that the reboots of a run may come to, by our estimate: a guest that resets itself
/// for ever fills neither memory nor disk, and the profile stays one that can be read.
const ROOM: usize = 32 << 20;
/// What is spent on milestones at most, so that the passes themselves find room for longer.
const ROOM_FOR_MILESTONES: usize = ROOM / 2;
/// Bytes of JSON, indented: a pass or a milestone without its accounts, accounts without what they
/// list, a reason, a code, what is asked for or emulated, a place of a histogram or a count, a
/// culprit, and what memory was made of.
const ITEM: usize = 900;
const ACCOUNTS: usize = 450;
const REASON: usize = 400;
const CODE: usize = 200;
const ASK: usize = 150;
const PLACE: usize = 30;
const CULPRIT: usize = 250;
const MEMORY: usize = 250;
const DEVICE: usize = 350;

/// One boot of a run: the first, or one that followed a reset.
#[derive(Clone, Copy, Debug)]
pub struct Boot<'a> {
    /// Which: 0 is the first boot, from 1 on they are reboots.
    pub number: usize,
    /// When its VM started, in nanoseconds since the first did.
    pub start_nanos: u64,
    /// Snapshots.
    pub milestones: &'a [Milestone],
    /// The accounts at its end.
    pub total: &'a Accounts,
    /// How it ended.
    pub end: &'a End,
}

impl<'a> Boot<'a> {
    /// Step by step, as [`Profile::steps`].
    pub fn steps(&self) -> Vec<Step<'a>> {
        steps(self.milestones, self.total)
    }

    /// The guest's exits by cause, most frequent first.
    pub fn ranking(&self) -> Vec<Part> {
        self.total.ranking()
    }
}

/// What a reboot costs: over all reboots that came to an end of their own, or, if there is none,
/// over all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebootCost {
    /// Over how many reboots.
    pub reboots: usize,
    /// The guest's exits.
    pub exits: Spread,
    /// The guest's cycles.
    pub cycles: Spread,
    /// Nanoseconds from the VM's start to its end.
    pub nanos: Spread,
    /// Nanoseconds from a boot's end to the next one's start: the old VM goes, a new one is built.
    pub between: Spread,
}

impl Profile {
    /// How the first boot ended; the end of the run if there was no other.
    pub fn first_end(&self) -> &End {
        self.first_end.as_ref().unwrap_or(&self.end)
    }

    /// Whether the machine was booted again.
    pub fn has_reboots(&self) -> bool {
        self.all_reboots() > 0
    }

    /// How often the machine was booted again, kept or not.
    pub fn all_reboots(&self) -> u64 {
        self.reboots_dropped
            .saturating_add(self.reboots.len() as u64)
    }

    /// All boots that were kept, the first one first.
    pub fn boots(&self) -> Vec<Boot<'_>> {
        let first = Boot {
            number: 0,
            start_nanos: 0,
            milestones: &self.milestones,
            total: &self.total,
            end: self.first_end(),
        };
        let reboots = self.reboots.iter().zip(1..).map(|(pass, number)| Boot {
            number,
            start_nanos: pass.start_nanos,
            milestones: &pass.milestones,
            total: &pass.total,
            end: &pass.end,
        });
        std::iter::once(first).chain(reboots).collect()
    }

    /// What a reboot costs. `None` without any.
    pub fn reboot_cost(&self) -> Option<RebootCost> {
        let boots = self.boots();
        let reboots = boots.get(1..).unwrap_or_default();
        let whole: Vec<&Boot<'_>> = reboots.iter().filter(|b| !b.end.cut_short).collect();
        let counted = match whole.is_empty() {
            true => reboots.iter().collect(),
            false => whole,
        };
        if counted.is_empty() {
            return None;
        }
        let spread = |of: fn(&Boot<'_>) -> u64| Spread::of(counted.iter().map(|b| of(b)).collect());
        let between = boots.windows(2).map(|pair| {
            let end = pair[0].start_nanos.saturating_add(pair[0].end.nanos);
            pair[1].start_nanos.saturating_sub(end)
        });
        Some(RebootCost {
            reboots: counted.len(),
            exits: spread(|b| b.total.guest_total()),
            cycles: spread(|b| b.total.guest_cycles()),
            nanos: spread(|b| b.end.nanos),
            between: Spread::of(between.collect()),
        })
    }
}

/// Collects the reboots of a run, within bounds.
#[derive(Debug, Default)]
pub struct Reboots {
    /// Those kept.
    pub kept: Vec<Pass>,
    /// How many were not.
    pub dropped: u64,
    used: usize,
}

impl Reboots {
    /// Adds one: whole, without its milestones, or as a number.
    pub fn push(&mut self, mut pass: Pass) {
        if self.used + weight(&pass) > ROOM_FOR_MILESTONES {
            let lost = std::mem::take(&mut pass.milestones);
            pass.milestones_dropped = pass.milestones_dropped.saturating_add(lost.len() as u64);
        }
        let weight = weight(&pass);
        // Without gaps: once a reboot is dropped, so are those that follow.
        if self.dropped > 0 || self.used + weight > ROOM {
            self.dropped += 1;
        } else {
            self.used += weight;
            self.kept.push(pass);
        }
    }
}

/// What a pass comes to as JSON.
fn weight(pass: &Pass) -> usize {
    let accounts = |a: &Accounts| {
        let asks = a.asks.len() + a.emulated.len();
        let counts = a.culprits.len() + a.culprit_cycles.len();
        ACCOUNTS + REASON * a.reasons.len() + CODE * a.codes.len() + ASK * asks + PLACE * counts
    };
    let milestones = pass.milestones.iter().map(|m| ITEM + accounts(&m.accounts));
    let vcpus = pass.vcpus.iter().map(accounts);
    let places = pass.histograms.iter().map(|h| 3 + h.buckets.len());
    ITEM + if pass.memory.is_some() { MEMORY } else { 0 }
        + accounts(&pass.total)
        + milestones.sum::<usize>()
        + vcpus.sum::<usize>()
        + PLACE * places.sum::<usize>()
        + CULPRIT * pass.culprits.len()
        + DEVICE * pass.devices.len()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;
    use crate::profile::EndKind;

    #[test]
    fn a_run_without_reboots_has_one_boot() {
        let profile = fixtures::software();
        assert_eq!(profile.boots().len(), 1);
        assert_eq!(profile.reboot_cost(), None);
        assert_eq!(profile.first_end(), &profile.end);
    }

    #[test]
    fn a_reboot_costs_what_whole_ones_cost() {
        let mut profile = fixtures::reboots();
        let cost = profile.reboot_cost().unwrap();
        assert_eq!(cost.reboots, profile.reboots.len());
        let last = profile.reboots.last_mut().unwrap();
        last.end.cut_short = true;
        last.end.kind = EndKind::Timeout;
        last.total = Accounts::default();
        let whole = profile.reboot_cost().unwrap();
        assert_eq!(whole.reboots, cost.reboots - 1);
        assert!(whole.exits.min > 0);
        profile.reboots.drain(..profile.reboots.len() - 1);
        assert_eq!(profile.reboot_cost().unwrap().exits.max, 0);
    }

    #[test]
    fn the_estimate_is_no_less_than_what_is_written() {
        for profile in [
            fixtures::reboots(),
            fixtures::histograms(),
            fixtures::emulated(),
        ] {
            let pass = Pass {
                start_nanos: u64::MAX,
                end: profile.end,
                milestones: profile.milestones,
                milestones_dropped: 0,
                milestones_missed: Vec::new(),
                total: profile.total,
                vcpus: profile.vcpus,
                gates: profile.gates,
                memory: profile.memory,
                devices: profile.devices,
                histograms: profile.histograms,
                culprits: profile.culprits,
            };
            let mut whole = fixtures::zero();
            let without = crate::report::json::render(&whole).len();
            whole.reboots.push(pass.clone());
            let written = crate::report::json::render(&whole).len() - without;
            assert!(weight(&pass) >= written, "{written}");
            assert!(weight(&pass) < 2 * written, "{written}");
        }
    }

    #[test]
    fn a_storm_stays_within_bounds() {
        let mut reboots = Reboots::default();
        let pass = fixtures::reboots().reboots.remove(0);
        let all = 20_000;
        for _ in 0..all {
            reboots.push(pass.clone());
        }
        let bare = reboots.kept.iter().position(|p| p.milestones.is_empty());
        let last = reboots.kept.last().unwrap();
        assert!(bare.unwrap() > 100);
        assert_eq!(last.milestones_dropped, pass.milestones.len() as u64);
        assert!(reboots.kept.len() > 1000);
        assert_eq!(reboots.kept.len() as u64 + reboots.dropped, all);
        let mut profile = fixtures::zero();
        profile.reboots = reboots.kept;
        let json = crate::report::json::render(&profile);
        assert!((json.len() as u64) < crate::profile::load::MAX_BYTES);
    }
}
