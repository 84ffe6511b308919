//! The source *kernel ledger*: from the slots of the kernel-side ledger to the reasons, cycles and
//! owners of one vCPU's exits.

use std::collections::HashMap;
use std::sync::Arc;

use exit_abi::reason::Reason;

use super::kernel::slots::{self, SLOTS};
use super::kernel::{KernelLedger, Level, RawRecord};
use super::{Sample, Source, SourceKind};
use crate::exits::culprits::{Site, Tally};
use crate::exits::ledger::RowCopy;
use crate::exits::rate::Rate;
use crate::profile::{self, Histogram, KvmKind};

/// One vCPU in the kernel-side ledger, from the moment this was made: the ledger outlives a reset,
/// a vCPU does not. (Rows are cleared between two boots where the kernel lets us; culprits and
/// histograms are not.)
pub struct KernelSource {
    ledger: Arc<KernelLedger>,
    vcpu: u32,
    /// What each slot is booked under.
    reasons: [Option<Reason>; SLOTS],
    rate: Rate,
    /// What the ledger had when this vCPU was made.
    before: Box<Before>,
}

/// Numbers that only grow, as they were.
struct Before {
    record: RawRecord,
    culprits: HashMap<Site, (u64, u64)>,
    histograms: Vec<[u64; super::kernel::BUCKETS]>,
}

impl KernelSource {
    /// From now on.
    pub fn new(ledger: Arc<KernelLedger>, vcpu: u32, kvm: KvmKind) -> Self {
        let mut record = RawRecord::default();
        ledger.read(vcpu, &mut record);
        let histograms = match ledger.level() {
            Level::Histogram => (0..SLOTS).map(|s| ledger.histogram(vcpu, s)).collect(),
            _ => Vec::new(),
        };
        Self {
            before: Box::new(Before {
                record,
                culprits: culprits(&ledger, vcpu),
                histograms,
            }),
            ledger,
            vcpu,
            reasons: std::array::from_fn(|slot| slots::describe(kvm, slot).reason),
            rate: Rate::measured(),
        }
    }

    /// The slots' exits, as reasons'.
    fn exits(&self, into: &mut Sample) {
        let before = &self.before.record;
        for (slot, now) in self.ledger.rows(self.vcpu) {
            let exits = now.exits.saturating_sub(before.exits[slot]);
            if exits == 0 {
                continue;
            }
            into.codes[slot] = exits;
            let Some(reason) = self.reasons[slot] else {
                into.other = into.other.saturating_add(exits);
                continue;
            };
            // Converted apart, so that the guest's cycles stand still while only others are added.
            let own_nanos = now.own_ns.saturating_sub(before.own_ns[slot]);
            let nanos = now.ns.saturating_sub(before.ns[slot]);
            let own_cycles = self.rate.cycles(own_nanos);
            let cycles = self.rate.cycles(nanos.saturating_sub(own_nanos));
            // Where the kernel would not clear them, the extremes of an earlier boot cannot be told
            // from this one's.
            let (min_ns, max_ns) = match before.timed[slot] {
                0 => (now.min_ns, now.max_ns),
                _ => (0, 0),
            };
            let more = RowCopy {
                exits,
                own: 0,
                timed: now.timed.saturating_sub(before.timed[slot]),
                own_timed: now.own_timed.saturating_sub(before.own_timed[slot]),
                cycles: cycles.saturating_add(own_cycles),
                own_cycles,
                min: self.rate.cycles(min_ns),
                max: self.rate.cycles(max_ns),
            };
            add(&mut into.rows[reason.index()], &more);
        }
        into.complete = true;
        into.failed = self.ledger.failed(self.vcpu).saturating_sub(before.failed);
    }

    /// The slots' events, as reasons'.
    fn events(&self, into: &mut Sample) {
        for (slot, now) in self.ledger.rows(self.vcpu) {
            let more = now.exits.saturating_sub(self.before.record.exits[slot]);
            if let Some(reason) = self.reasons[slot] {
                let events = &mut into.events[reason.index()];
                *events = events.saturating_add(more);
            }
        }
    }
}

/// Adds a slot's figures to those of its reason.
fn add(row: &mut RowCopy, more: &RowCopy) {
    row.min = match (row.max > 0, more.max > 0) {
        (true, true) => row.min.min(more.min),
        (false, true) => more.min,
        _ => row.min,
    };
    row.max = row.max.max(more.max);
    row.exits = row.exits.saturating_add(more.exits);
    row.timed = row.timed.saturating_add(more.timed).min(row.exits);
    row.own_timed = row.own_timed.saturating_add(more.own_timed).min(row.timed);
    row.cycles = row.cycles.saturating_add(more.cycles);
    row.own_cycles = row
        .own_cycles
        .saturating_add(more.own_cycles)
        .min(row.cycles);
}

impl Source for KernelSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Kernel
    }

    /// All of them, unless it sees no exits at all.
    fn is_exact(&self, _: Reason) -> bool {
        !self.ledger.is_emulated()
    }

    fn sample(&self, into: &mut Sample) {
        into.clear();
        if self.ledger.is_emulated() {
            self.events(into);
        } else {
            self.exits(into);
        }
    }

    fn culprits(&self) -> Option<Vec<(Site, Tally)>> {
        let before = &self.before.culprits;
        let new = |(site, (count, ns)): (Site, (u64, u64))| {
            let (count_then, ns_then) = before.get(&site).copied().unwrap_or_default();
            let tally = Tally {
                exits: count.saturating_sub(count_then),
                cycles: self.rate.cycles(ns.saturating_sub(ns_then)),
            };
            (site, tally)
        };
        let all = culprits(&self.ledger, self.vcpu).into_iter().map(new);
        Some(all.filter(|(_, tally)| tally.exits > 0).collect())
    }

    fn histograms(&self) -> Vec<Histogram> {
        let mut all: Vec<Histogram> = Vec::new();
        for (slot, before) in self.before.histograms.iter().enumerate() {
            let Some(reason) = self.reasons[slot] else {
                continue;
            };
            let now = self.ledger.histogram(self.vcpu, slot);
            let mut buckets: Vec<u64> = now
                .iter()
                .zip(before)
                .map(|(now, before)| now.saturating_sub(*before))
                .collect();
            let used = buckets
                .iter()
                .rposition(|&n| n > 0)
                .map_or(0, |last| last + 1);
            buckets.truncate(used);
            if !buckets.is_empty() {
                let reason = reason.number();
                all.push(Histogram { reason, buckets });
            }
        }
        // Several codes can have one reason.
        profile::figures::merged(all)
    }
}

/// How often and how many nanoseconds each: several codes can be one to a reader.
fn culprits(ledger: &KernelLedger, vcpu: u32) -> HashMap<Site, (u64, u64)> {
    let mut all = HashMap::new();
    for culprit in ledger.culprits(vcpu) {
        let (count, ns): &mut (u64, u64) = all.entry(culprit.site).or_default();
        *count = count.saturating_add(culprit.count);
        *ns = ns.saturating_add(culprit.ns);
    }
    all
}
