//! The books: what all sources together say of all vCPUs, at one instant.
//!
//! For each reason the source that saw more exits wins: what a source misses is more than what it
//! sees twice. (One exit can return from KVM_RUN several times: a long string, a wide or
//! page-crossing MMIO access. What the sum of reasons has beyond KVM's total is the excess.) What the
//! total has beyond the sum is the residual: shown, never spread. Both are per vCPU, so that an
//! excess on one does not hide a residual on another.

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, MutexGuard};

use exit_abi::leaf::flags;
use exit_abi::reason::{COUNT, Edition, Reason};

use super::culprits::{Lost, Registry, Site, Tally};
use super::hypercall::Mechanism;
use super::ledger::{Ledger, RowCopy};
use super::source::kernel::slots::{self, SLOTS};
use super::source::{Sample, Source, SourceKind};
use super::sparse::Sparse;
use crate::profile::figures::merged;
use crate::profile::fixed::driver;
use crate::profile::{
    Accounts, Ask, CodeAccount, Culprit, EventAccount, Histogram, KvmKind, ReasonAccount,
};

/// One vCPU's ledger and the sources that speak of it.
pub struct VcpuBook {
    /// Written by the vCPU's thread.
    pub ledger: Arc<Ledger>,
    /// In rising order of trust.
    pub sources: Vec<Box<dyn Source>>,
}

impl VcpuBook {
    fn culprits(&self) -> Vec<(Site, Tally)> {
        let told = self.sources.iter().find_map(|source| source.culprits());
        told.unwrap_or_default()
    }
}

/// What a reason came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The figures.
    pub row: RowCopy,
    /// Who counted `row.exits`.
    pub source: SourceKind,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            row: RowCopy::default(),
            source: SourceKind::Run,
        }
    }
}

/// Figures at one instant: fixed size, copied in place.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Per reason.
    pub lines: Sparse<Line, COUNT>,
    /// KVM's own total where a source has one, else what is attributed.
    pub total: u64,
    /// Exits without a basic exit reason.
    pub other: u64,
    /// What no source attributes.
    pub residual: u64,
    /// How much of the residual is the profiler's own.
    pub own_residual: u64,
    /// What was attributed beyond `total`.
    pub excess: u64,
    /// Failed entries among the exits.
    pub failed: u64,
    /// Exits that reached userspace.
    pub userspace: u64,
    /// How many of them are the profiler's own.
    pub own_userspace: u64,
    /// TSC cycles in the VMM.
    pub vmm_cycles: u64,
    /// How many of them are the profiler's own.
    pub own_vmm_cycles: u64,
    /// TSC cycles that vCPUs waited in HLT: in timed exits alone, where every exit is timed.
    pub blocked_cycles: u64,
    /// Exits by the processor's own code, by the kernel ledger's slots.
    pub codes: Sparse<u64, SLOTS>,
    /// What KVM emulated, per reason: events, not exits.
    pub events: Sparse<Events, COUNT>,
}

/// Events of one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// All of them.
    pub all: u64,
    /// The profiler's own.
    pub own: u64,
}

/// The reason of a place in a table of reasons.
fn named(place: usize) -> Option<Reason> {
    Reason::new(u32::try_from(place).ok()?)
}

impl Figures {
    /// Makes all zeros.
    fn clear(&mut self) {
        let Self {
            lines,
            total,
            other,
            residual,
            own_residual,
            excess,
            failed,
            userspace,
            own_userspace,
            vmm_cycles,
            own_vmm_cycles,
            blocked_cycles,
            codes,
            events,
        } = self;
        lines.clear();
        codes.clear();
        events.clear();
        for sum in [
            total,
            other,
            residual,
            own_residual,
            excess,
            failed,
            userspace,
            own_userspace,
            vmm_cycles,
            own_vmm_cycles,
            blocked_cycles,
        ] {
            *sum = 0;
        }
    }

    /// Attributed exits.
    pub fn attributed(&self) -> u64 {
        self.lines
            .iter()
            .map(|(_, l)| l.row.exits)
            .fold(self.other, u64::saturating_add)
    }

    /// What a guest is told as the total: never less than its parts.
    pub fn known(&self) -> u64 {
        self.total.max(self.attributed())
    }

    /// All cycles.
    pub fn cycles(&self) -> u64 {
        self.lines
            .iter()
            .map(|(_, l)| l.row.cycles)
            .fold(0, u64::saturating_add)
    }

    /// The reasons seen, as [`exit_abi::leaf::MAP`] tells them.
    pub fn map(&self) -> u128 {
        self.lines
            .iter()
            .filter(|(_, l)| l.row.exits > 0)
            .fold(0, |map, (i, _)| map | 1 << i)
    }

    /// Takes in what one more source says of the same vCPU.
    fn merge(&mut self, sample: &Sample, kind: SourceKind) {
        if sample.complete {
            self.other = sample.other;
            self.failed = sample.failed;
            self.codes.clear();
            for (slot, exits) in sample.codes.iter() {
                self.codes[slot] = *exits;
            }
        } else {
            self.other = self.other.max(sample.other);
        }
        for (reason, all) in sample.events.iter() {
            let events = &mut self.events[reason];
            events.all = events.all.max(*all);
        }
        for reason in self.lines.used_with(&sample.rows) {
            let (line, row) = (&mut self.lines[reason], &sample.rows[reason]);
            if !sample.complete && row.exits <= line.row.exits {
                continue;
            }
            // A source that only counts must not wipe out what another has timed.
            let timed = if row.timed > 0 { *row } else { line.row };
            line.row = RowCopy {
                exits: row.exits,
                own: row.own.max(line.row.own),
                ..timed
            };
            line.row.timed = line.row.timed.min(row.exits);
            line.source = kind;
        }
    }

    /// Adds another vCPU's.
    fn add(&mut self, other: &Self) {
        for (reason, more) in other.lines.iter() {
            let line = &mut self.lines[reason];
            let (a, b) = (&mut line.row, &more.row);
            // A longest exit tells that the guest has a timed one; to compare `timed` with `own`
            // does not, for the profiler's last is counted and not timed yet.
            a.min = match (a.max > 0, b.max > 0) {
                (true, true) => a.min.min(b.min),
                (false, true) => b.min,
                _ => a.min,
            };
            a.max = a.max.max(b.max);
            a.exits = a.exits.saturating_add(b.exits);
            a.own = a.own.saturating_add(b.own);
            a.timed = a.timed.saturating_add(b.timed);
            a.own_timed = a.own_timed.saturating_add(b.own_timed);
            a.cycles = a.cycles.saturating_add(b.cycles);
            a.own_cycles = a.own_cycles.saturating_add(b.own_cycles);
            line.source = line.source.max(more.source);
        }
        self.total = self.total.saturating_add(other.total);
        self.other = self.other.saturating_add(other.other);
        self.residual = self.residual.saturating_add(other.residual);
        self.own_residual = self.own_residual.saturating_add(other.own_residual);
        self.excess = self.excess.saturating_add(other.excess);
        self.failed = self.failed.saturating_add(other.failed);
        self.userspace = self.userspace.saturating_add(other.userspace);
        self.own_userspace = self.own_userspace.saturating_add(other.own_userspace);
        self.vmm_cycles = self.vmm_cycles.saturating_add(other.vmm_cycles);
        self.own_vmm_cycles = self.own_vmm_cycles.saturating_add(other.own_vmm_cycles);
        self.blocked_cycles = self.blocked_cycles.saturating_add(other.blocked_cycles);
        for (slot, more) in other.codes.iter() {
            let code = &mut self.codes[slot];
            *code = code.saturating_add(*more);
        }
        for (reason, more) in other.events.iter() {
            let events = &mut self.events[reason];
            events.all = events.all.saturating_add(more.all);
            events.own = events.own.saturating_add(more.own);
        }
    }

    /// As a profile keeps them; `kvm` tells what the codes mean.
    pub fn accounts(&self, kvm: KvmKind, asks: &Asks) -> Accounts {
        Accounts {
            total: self.total,
            residual: self.residual - self.own_residual,
            own_residual: self.own_residual,
            excess: self.excess,
            other: self.other,
            reasons: self
                .lines
                .iter()
                .filter(|(_, l)| l.row.exits > 0)
                .map(|(reason, l)| ReasonAccount {
                    reason: reason as u8,
                    exits: l.row.exits,
                    own: l.row.own,
                    timed: l.row.timed,
                    own_timed: l.row.own_timed,
                    cycles: l.row.cycles,
                    own_cycles: l.row.own_cycles,
                    min: l.row.min,
                    max: l.row.max,
                    source: l.source.name().to_owned(),
                })
                .collect(),
            failed: self.failed,
            userspace: self.userspace,
            own_userspace: self.own_userspace,
            vmm_cycles: self.vmm_cycles,
            own_vmm_cycles: self.own_vmm_cycles,
            blocked_cycles: self.blocked_cycles,
            codes: self
                .codes
                .iter()
                .filter(|(_, exits)| **exits > 0)
                .map(|(slot, &exits)| {
                    let slot = slots::describe(kvm, slot);
                    CodeAccount {
                        code: slot.code,
                        name: slot.name.to_owned(),
                        reason: slot.reason.map(Reason::number),
                        exits,
                    }
                })
                .collect(),
            emulated: self
                .events
                .iter()
                .filter(|(_, events)| events.all > 0)
                .map(|(reason, events)| EventAccount {
                    reason: reason as u8,
                    events: events.all,
                    own: events.own,
                })
                .collect(),
            asks: asks.list.clone(),
            asks_dropped: asks.dropped,
            culprits: asks.culprits.clone(),
            culprit_cycles: Vec::new(),
        }
    }
}

/// How often a vCPU is read at most until its sources agree. (Where they never do, because KVM
/// counts what was no exit, that is what a reading costs.)
const READINGS: usize = 3;

/// Most that are told apart of what all vCPUs together asked for. One vCPU's table has some thousand
/// places, and an honest guest needs a tenth of it.
const ASKS_MOST: usize = 8192;

/// What was asked for, all vCPUs together.
#[derive(Clone, Debug, Default)]
pub struct Asks {
    /// By kind, then by number.
    pub list: Vec<Ask>,
    /// Accesses for which there was no room.
    pub dropped: u64,
    /// Exits by the number of who caused them.
    pub culprits: Vec<u64>,
}

impl Asks {
    /// What the causes of exits tell of it, whoever they are.
    fn of(seen: &[(Site, Tally)]) -> Self {
        let mut sum = Self::default();
        for (site, tally) in seen {
            if let Some((kind, index)) = site.ask {
                let count = tally.exits;
                sum.list.push(Ask { kind, index, count });
            } else if site.lost == Some(Lost::NoRoom) {
                sum.dropped = sum.dropped.saturating_add(tally.exits);
            }
        }
        sum.list.sort_unstable();
        sum.list.dedup_by(|later, kept| {
            let same = (later.kind, later.index) == (kept.kind, kept.index);
            if same {
                kept.count = kept.count.saturating_add(later.count);
            }
            same
        });
        sum
    }

    /// Keeps no more than so many, the most frequent, and those that time drives: they tell the
    /// fixed count. The others are counted as dropped.
    pub fn shorten(&mut self, most: usize) {
        if self.list.len() <= most {
            return;
        }
        let (mut kept, mut rest): (Vec<Ask>, Vec<Ask>) =
            self.list.iter().partition(|ask| driver(ask).is_some());
        rest.sort_unstable_by_key(|ask| (Reverse(ask.count), ask.kind, ask.index));
        let lost = rest.split_off(most.min(rest.len()));
        for ask in lost {
            self.dropped = self.dropped.saturating_add(ask.count);
        }
        kept.append(&mut rest);
        kept.sort_unstable();
        self.list = kept;
    }
}

/// Room for reading the books without allocating: one per vCPU thread.
#[derive(Default)]
pub struct Scratch {
    sample: Sample,
    vcpu: Figures,
    /// The result.
    pub figures: Figures,
}

/// The books of a VM.
pub struct Books {
    vcpus: Vec<VcpuBook>,
    kvm: KvmKind,
    hypercalls: Mechanism,
    registry: Mutex<Registry>,
}

impl Books {
    /// Opens the books.
    pub fn new(vcpus: Vec<VcpuBook>, kvm: KvmKind) -> Self {
        Self {
            vcpus,
            kvm,
            hypercalls: Mechanism::Gate,
            registry: Mutex::default(),
        }
    }

    /// The same, where hypercalls reach the VMM so.
    pub fn with_hypercalls(self, hypercalls: Mechanism) -> Self {
        Self { hypercalls, ..self }
    }

    /// Which KVM they are of.
    pub fn kvm(&self) -> KvmKind {
        self.kvm
    }

    /// How many vCPUs they cover.
    pub fn vcpu_count(&self) -> usize {
        self.vcpus.len()
    }

    /// Figures of one vCPU, by way of `sample`.
    ///
    /// A vCPU that runs on meanwhile can move between one source and the next. Where a source has
    /// every exit, it must agree with KVM's total: if not, they are read again, a few times.
    fn read_vcpu(book: &VcpuBook, sample: &mut Sample, into: &mut Figures) {
        for _ in 0..READINGS {
            let complete = Self::read_once(book, sample, into);
            if !complete || (into.residual, into.excess) == (0, 0) {
                return;
            }
        }
    }

    /// One reading; whether some source sees every exit with its reason.
    fn read_once(book: &VcpuBook, sample: &mut Sample, into: &mut Figures) -> bool {
        into.clear();
        let mut total = None;
        let (mut complete, mut times_all) = (false, false);
        for source in &book.sources {
            source.sample(sample);
            total = sample.total.or(total);
            into.blocked_cycles = into.blocked_cycles.max(sample.blocked_cycles);
            complete |= sample.complete;
            times_all |= sample.complete && sample.rows.iter().any(|(_, row)| row.timed > 0);
            into.merge(sample, source.kind());
            if source.kind() == SourceKind::Run {
                // What the loop has timed is the VMM's share; a better source times the whole.
                let sum = |of: fn(&RowCopy) -> u64| {
                    let rows = into.lines.iter().map(|(_, line)| of(&line.row));
                    rows.fold(0, u64::saturating_add)
                };
                (into.userspace, into.own_userspace) = (
                    sum(|row| row.exits).saturating_add(sample.other),
                    sum(|row| row.own),
                );
                (into.vmm_cycles, into.own_vmm_cycles) =
                    (sum(|row| row.cycles), sum(|row| row.own_cycles));
            }
        }
        if times_all {
            // KVM has waits, too, that are no part of a timed exit: for a start-up IPI, and in the
            // HLT in which a run ends.
            let halted = into.lines[Reason::HLT.index()].row.cycles;
            into.blocked_cycles = into.blocked_cycles.min(halted);
        }
        into.total = total.unwrap_or_else(|| into.attributed());
        let attributed = into.attributed();
        into.residual = into.total.saturating_sub(attributed);
        into.own_residual = book.ledger.own_residual().min(into.residual);
        into.excess = attributed.saturating_sub(into.total);
        for reason in into.lines.used() {
            let row = &mut into.lines[reason].row;
            let unseen = named(reason).map_or(0, |r| book.ledger.unseen_own(r));
            row.own = row.own.saturating_add(unseen).min(row.exits);
        }
        let guarded = &mut into.lines[Reason::DR_ACCESS.index()];
        if guarded.source == SourceKind::Kernel {
            let own = book.ledger.own_guarded(guarded.row.into());
            let row = &mut guarded.row;
            row.own = row.own.max(own.exits);
            row.own_timed = row.own_timed.max(own.timed);
            row.own_cycles = row.own_cycles.max(own.cycles);
        }
        for reason in into.lines.used() {
            let row = &mut into.lines[reason].row;
            row.own = row.own.min(row.exits);
            row.own_timed = row.own_timed.min(row.own).min(row.timed);
            row.own_cycles = row.own_cycles.min(row.cycles);
            if row.own == row.exits {
                // The extremes are the guest's, and it has none. (A guarded MOV DR stays in the
                // kernel, which takes it for the guest's.)
                (row.min, row.max) = (0, 0);
            }
        }
        for place in into.events.used() {
            let seen = match named(place) {
                // Each event of these has reached the VMM.
                Some(Reason::IO | Reason::EPT_MISCONFIG) => into.lines[place].row.own,
                reason => reason.map_or(0, |r| book.ledger.unseen_own_events(r)),
            };
            let events = &mut into.events[place];
            events.own = seen.min(events.all);
        }
        complete
    }

    /// Books a section of the profiler's own that lies between two readings of its vCPU: whatever
    /// the sources counted in it, KVM_RUN having seen it or not, was the profiler's doing.
    pub fn settle(&self, vcpu: usize, before: &Figures, after: &Figures) {
        let ledger = &self.vcpus[vcpu].ledger;
        for (place, a) in after.lines.iter() {
            let Some(reason) = named(place) else { continue };
            let b = &before.lines[place];
            let exits = a.row.exits.saturating_sub(b.row.exits);
            let seen = a.row.own.saturating_sub(b.row.own);
            ledger.settle(reason, exits.saturating_sub(seen));
        }
        for (place, a) in after.events.iter() {
            let Some(reason) = named(place) else { continue };
            let b = &before.events[place];
            ledger.settle_events(reason, a.all.saturating_sub(b.all));
        }
        let total = after.total.saturating_sub(before.total);
        let attributed = after.attributed().saturating_sub(before.attributed());
        ledger.settle_residual(total.saturating_sub(attributed));
    }

    /// Figures of one vCPU.
    pub fn vcpu(&self, index: usize, scratch: &mut Scratch) {
        Self::read_vcpu(
            &self.vcpus[index],
            &mut scratch.sample,
            &mut scratch.figures,
        );
    }

    /// Figures of all vCPUs together.
    pub fn all(&self, scratch: &mut Scratch) {
        self.all_by(scratch, |_, _| ());
    }

    /// The same, showing `each` those of each vCPU on the way.
    pub fn all_by(&self, scratch: &mut Scratch, each: impl Fn(usize, &Figures)) {
        if let [only] = self.vcpus.as_slice() {
            Self::read_vcpu(only, &mut scratch.sample, &mut scratch.figures);
            return each(0, &scratch.figures);
        }
        scratch.figures.clear();
        for (vcpu, book) in self.vcpus.iter().enumerate() {
            Self::read_vcpu(book, &mut scratch.sample, &mut scratch.vcpu);
            each(vcpu, &scratch.vcpu);
            scratch.figures.add(&scratch.vcpu);
        }
    }

    /// What was asked for and by whom, as far as a source keeps it.
    pub fn asks(&self) -> Asks {
        let mut seen = Vec::new();
        for book in &self.vcpus {
            seen.extend(book.culprits());
        }
        let mut all = Asks::of(&seen);
        all.shorten(ASKS_MOST);
        let mut tallies = Vec::new();
        self.registry().add(&mut tallies, seen);
        all.culprits = tallies.iter().map(|tally: &Tally| tally.exits).collect();
        all
    }

    /// Who caused exits, in the order of their numbers; and their cycles, all vCPUs together.
    pub fn culprits(&self) -> (Vec<Culprit>, Vec<u64>) {
        let mut registry = self.registry();
        let mut tallies: Vec<Tally> = Vec::new();
        for book in &self.vcpus {
            registry.add(&mut tallies, book.culprits());
        }
        let mut cycles: Vec<u64> = tallies.iter().map(|tally| tally.cycles).collect();
        let used = cycles
            .iter()
            .rposition(|&n| n > 0)
            .map_or(0, |last| last + 1);
        cycles.truncate(used);
        (registry.culprits(), cycles)
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// How long exits took, per reason, all vCPUs together.
    pub fn histograms(&self) -> Vec<Histogram> {
        let sources = self.vcpus.iter().flat_map(|book| &book.sources);
        merged(sources.flat_map(|source| source.histograms()))
    }

    /// The same of one vCPU.
    pub fn vcpu_asks(&self, index: usize) -> Asks {
        let mut asks = Asks::of(&self.vcpus[index].culprits());
        asks.shorten(ASKS_MOST);
        asks
    }

    /// Whether every exit of this reason is counted, on every vCPU.
    pub fn is_exact(&self, reason: Reason) -> bool {
        self.vcpus
            .iter()
            .all(|v| v.sources.iter().any(|s| s.is_exact(reason)))
    }

    /// What [`exit_abi::leaf::FLAGS`] answers.
    pub fn flags(&self, reason: Reason, edition: Edition) -> u32 {
        let defined = reason.is_defined(edition);
        let occurs = defined && super::reason::can_occur(self.kvm, reason);
        let mut answer = 0;
        if defined {
            answer |= flags::DEFINED;
        }
        if occurs {
            answer |= flags::CAN_OCCUR;
        }
        if occurs && self.is_exact(reason) {
            answer |= flags::EXACT;
        }
        // Ports and addresses that the VMM serves cannot be finished by KVM, nor what it passes on.
        let served = match reason {
            Reason::IO | Reason::EPT_MISCONFIG => true,
            Reason::VMCALL => self.hypercalls == Mechanism::Xen,
            _ => false,
        };
        if occurs && served {
            answer |= flags::EXACT_IN_VMM;
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exits::ledger::Guarded;
    use crate::exits::source::scripted::Scripted;

    fn row(exits: u64, timed: u64) -> RowCopy {
        RowCopy {
            exits,
            timed,
            cycles: timed * 10,
            ..RowCopy::default()
        }
    }

    fn sample(total: Option<u64>, rows: &[(Reason, RowCopy)]) -> Sample {
        let mut sample = Sample {
            total,
            ..Sample::default()
        };
        for (reason, row) in rows {
            sample.rows[reason.index()] = *row;
        }
        sample
    }

    fn books(samples: Vec<(SourceKind, Sample)>) -> Books {
        let sources = samples
            .into_iter()
            .map(|(kind, sample)| {
                Box::new(Scripted {
                    kind,
                    sample,
                    exact: vec![Reason::HLT],
                }) as Box<dyn Source>
            })
            .collect();
        let book = VcpuBook {
            ledger: Arc::default(),
            sources,
        };
        Books::new(vec![book], KvmKind::Amd)
    }

    #[test]
    fn what_no_source_attributes_is_the_residual() {
        let run = sample(None, &[(Reason::IO, row(5, 5))]);
        let stats = sample(
            Some(12),
            &[(Reason::HLT, row(3, 0)), (Reason::IO, row(2, 0))],
        );
        let books = books(vec![(SourceKind::Run, run), (SourceKind::Stats, stats)]);
        let mut scratch = Scratch::default();
        books.all(&mut scratch);
        let accounts = scratch.figures.accounts(KvmKind::Amd, &Asks::default());
        assert_eq!(
            (accounts.total, accounts.residual, accounts.excess),
            (12, 4, 0)
        );
        let io = &accounts.reasons[1];
        assert_eq!(
            (io.exits, io.cycles, io.source.as_str()),
            (5, 50, "KVM_RUN")
        );
        let hlt = &accounts.reasons[0];
        assert_eq!(
            (hlt.exits, hlt.cycles, hlt.source.as_str()),
            (3, 0, "KVM stats")
        );
        assert_eq!(scratch.figures.map(), 1 << 12 | 1 << 30);
    }

    #[test]
    fn a_count_without_cycles_keeps_the_cycles_of_another_source() {
        let run = sample(None, &[(Reason::IO, row(5, 5))]);
        let stats = sample(Some(9), &[(Reason::IO, row(9, 0))]);
        let books = books(vec![(SourceKind::Run, run), (SourceKind::Stats, stats)]);
        let mut scratch = Scratch::default();
        books.all(&mut scratch);
        let io = scratch.figures.lines[Reason::IO.index()];
        assert_eq!((io.row.exits, io.row.timed, io.row.cycles), (9, 5, 50));
        assert_eq!(io.source, SourceKind::Stats);
    }

    #[test]
    fn sources_that_disagree_show_an_excess() {
        let run = sample(None, &[(Reason::IO, row(5, 5))]);
        let stats = sample(Some(3), &[]);
        let books = books(vec![(SourceKind::Run, run), (SourceKind::Stats, stats)]);
        let mut scratch = Scratch::default();
        books.all(&mut scratch);
        let accounts = scratch.figures.accounts(KvmKind::Amd, &Asks::default());
        assert_eq!(
            (accounts.total, accounts.residual, accounts.excess),
            (3, 0, 2)
        );
        assert_eq!(scratch.figures.known(), 5);
    }

    #[test]
    fn a_source_that_sees_all_replaces_the_others() {
        // One exit for MMIO returned twice, and a guarded MOV DR was taken for a #DB.
        let run = sample(
            None,
            &[
                (Reason::EPT_MISCONFIG, row(2, 2)),
                (Reason::EXCEPTION, row(1, 1)),
                (Reason::IO, row(4, 4)),
            ],
        );
        let stats = sample(Some(10), &[(Reason::IO, row(7, 0))]);
        let mut kernel = sample(
            None,
            &[
                (Reason::EPT_MISCONFIG, row(1, 0)),
                (Reason::DR_ACCESS, row(1, 0)),
                (Reason::IO, row(6, 6)),
                (Reason::CPUID, row(1, 1)),
            ],
        );
        kernel.complete = true;
        kernel.other = 1;
        kernel.failed = 1;
        kernel.codes[0x7B] = 6;
        let books = books(vec![
            (SourceKind::Run, run),
            (SourceKind::Stats, stats),
            (SourceKind::Kernel, kernel),
        ]);
        let mut scratch = Scratch::default();
        books.all(&mut scratch);
        let accounts = scratch.figures.accounts(KvmKind::Amd, &Asks::default());
        let reasons: Vec<_> = accounts
            .reasons
            .iter()
            .map(|r| (r.reason, r.exits, r.timed))
            .collect();
        // What the kernel's has not timed keeps the VMM's times.
        assert_eq!(
            reasons,
            [(10, 1, 1), (29, 1, 0), (30, 6, 6), (49, 1, 1)],
            "no reason 0"
        );
        let from = |r: &ReasonAccount| r.source == "kernel ledger";
        assert!(accounts.reasons.iter().all(from));
        assert_eq!(
            (accounts.total, accounts.residual, accounts.excess),
            (10, 0, 0)
        );
        assert_eq!((accounts.other, accounts.failed), (1, 1));
        assert_eq!(accounts.vmm_cycles, 70);
        let code = &accounts.codes[0];
        assert_eq!(
            (code.code, code.name.as_str(), code.reason, code.exits),
            (Some(0x7B), "IOIO", Some(30), 6)
        );
    }

    #[test]
    fn a_guarded_mov_dr_is_the_profilers_own() {
        let mut kernel = sample(None, &[(Reason::DR_ACCESS, row(5, 5))]);
        kernel.complete = true;
        let books = books(vec![(SourceKind::Kernel, kernel)]);
        // Armed after two, disarmed after four.
        let ledger = &books.vcpus[0].ledger;
        let guarded = |n| Guarded {
            exits: n,
            timed: n,
            cycles: n * 10,
        };
        ledger.guard(true, guarded(2));
        assert_eq!(ledger.own_guarded(guarded(3)), guarded(1));
        ledger.guard(false, guarded(4));
        let mut scratch = Scratch::default();
        books.all(&mut scratch);
        let row = scratch.figures.lines[Reason::DR_ACCESS.index()].row;
        assert_eq!((row.exits, row.own), (5, 2));
        assert_eq!((row.own_timed, row.own_cycles), (2, 20));
    }

    #[test]
    fn events_are_in_no_sum_of_exits() {
        let mut kernel = Sample::default();
        kernel.events[Reason::CPUID.index()] = 9;
        kernel.events[Reason::IO.index()] = 4;
        let mut run = sample(None, &[(Reason::IO, row(4, 4))]);
        run.rows[Reason::IO.index()].own = 3;
        let books = books(vec![(SourceKind::Run, run), (SourceKind::Kernel, kernel)]);
        let mut scratch = Scratch::default();
        books.all(&mut scratch);
        assert_eq!(
            (scratch.figures.total, scratch.figures.attributed()),
            (4, 4)
        );
        let before = Figures::default();
        books.settle(0, &before, &scratch.figures.clone());
        books.all(&mut scratch);
        let accounts = scratch
            .figures
            .accounts(KvmKind::Software, &Asks::default());
        let events: Vec<_> = accounts
            .emulated
            .iter()
            .map(|e| (e.reason, e.events, e.own))
            .collect();
        assert_eq!(events, [(10, 9, 9), (30, 4, 4)]);
    }

    #[test]
    fn what_was_asked_for_adds_up() {
        let msr = |index, rip, exits| {
            let site = Site {
                ask: Some((crate::profile::AskKind::MsrWrite, index)),
                rip,
                ..Site::of(Some(32))
            };
            (site, Tally { exits, cycles: 0 })
        };
        let lost = |lost, exits| {
            let site = Site {
                lost: Some(lost),
                ..Site::of(Some(32))
            };
            (site, Tally { exits, cycles: 0 })
        };
        let seen = [
            msr(0x6E0, Some(0x1000), 5),
            msr(0x80B, None, 3),
            msr(0x6E0, Some(0x2000), 2),
            msr(0x10, Some(0x1000), 1),
            lost(Lost::NoRoom, 3),
            lost(Lost::NotTold, 4),
        ];
        let all = Asks::of(&seen);
        let ask = |index, count| Ask {
            kind: crate::profile::AskKind::MsrWrite,
            index,
            count,
        };
        assert_eq!(all.list, [ask(0x10, 1), ask(0x6E0, 7), ask(0x80B, 3)]);
        assert_eq!(all.dropped, 3);
    }

    #[test]
    fn what_time_drives_outlives_any_shortening() {
        let ask = |index, count| Ask {
            kind: crate::profile::AskKind::MsrWrite,
            index,
            count,
        };
        let mut asks = Asks {
            list: vec![ask(0x10, 1), ask(0x20, 9), ask(0x30, 4), ask(0x6E0, 2)],
            dropped: 1,
            culprits: Vec::new(),
        };
        asks.shorten(4);
        assert_eq!((asks.list.len(), asks.dropped), (4, 1));
        asks.shorten(1);
        assert_eq!(asks.list, [ask(0x20, 9), ask(0x6E0, 2)]);
        assert_eq!(asks.dropped, 1 + 1 + 4);
        asks.shorten(0);
        assert_eq!((asks.list, asks.dropped), (vec![ask(0x6E0, 2)], 15));
    }

    /// KVM's total, one exit late until it has been read so often.
    struct Late(std::sync::atomic::AtomicU64);

    impl Source for Late {
        fn kind(&self) -> SourceKind {
            SourceKind::Stats
        }

        fn is_exact(&self, _: Reason) -> bool {
            false
        }

        fn sample(&self, into: &mut Sample) {
            into.clear();
            let reads = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            into.total = Some(if reads >= 2 { 5 } else { 4 });
        }
    }

    #[test]
    fn a_vcpu_that_runs_on_is_read_again() {
        let mut kernel = sample(None, &[(Reason::IO, row(5, 5))]);
        kernel.complete = true;
        let mut books = books(vec![(SourceKind::Kernel, kernel)]);
        let late = Late(0.into());
        books.vcpus[0].sources.insert(0, Box::new(late));
        let mut scratch = Scratch::default();
        books.all(&mut scratch);
        assert_eq!((scratch.figures.total, scratch.figures.excess), (5, 0));
    }

    #[test]
    fn no_vcpu_waits_longer_than_its_halts_take() {
        let with = |timed| {
            let stats = Sample {
                total: Some(1),
                blocked_cycles: 500,
                ..Sample::default()
            };
            let mut kernel = sample(None, &[(Reason::HLT, row(1, timed))]);
            kernel.complete = true;
            let books = books(vec![
                (SourceKind::Stats, stats),
                (SourceKind::Kernel, kernel),
            ]);
            let mut scratch = Scratch::default();
            books.all(&mut scratch);
            scratch.figures.blocked_cycles
        };
        assert_eq!(with(1), 10, "the HLT's");
        assert_eq!(with(0), 500, "nothing is timed: nothing to compare with");
    }

    #[test]
    fn a_section_settles_what_kvm_run_did_not_see() {
        let stats = sample(Some(20), &[(Reason::IO, row(9, 0))]);
        let books = books(vec![(SourceKind::Stats, stats)]);
        let mut before = Figures {
            total: 10,
            ..Figures::default()
        };
        before.lines[30].row = row(5, 5);
        let mut scratch = Scratch::default();
        books.all(&mut scratch);
        // Of four exits for I/O in the section KVM_RUN saw three.
        let mut after = scratch.figures.clone();
        after.lines[30].row.own = 3;
        books.settle(0, &before, &after);
        books.all(&mut scratch);
        let accounts = scratch.figures.accounts(KvmKind::Amd, &Asks::default());
        assert_eq!(
            accounts.reasons[0].own, 1,
            "beside the three that the ledger has"
        );
        assert_eq!((accounts.residual, accounts.own_residual), (5, 6));
        assert_eq!(accounts.total, 9 + 5 + 6);
    }

    #[test]
    fn vcpus_add_up() {
        let mut a = Figures {
            total: 4,
            ..Figures::default()
        };
        let mut b = Figures {
            total: 6,
            other: 1,
            ..Figures::default()
        };
        let io = |exits, own, min, max| Line {
            row: RowCopy {
                exits,
                own,
                timed: exits,
                own_timed: own,
                cycles: 9,
                own_cycles: 0,
                min,
                max,
            },
            source: SourceKind::Run,
        };
        a.lines[30] = io(2, 2, 0, 0);
        b.lines[30] = io(3, 0, 7, 9);
        a.add(&b);
        let row = a.lines[30].row;
        assert_eq!(
            (row.exits, row.own, row.min, row.max, row.cycles),
            (5, 2, 7, 9, 18)
        );
        assert_eq!((a.total, a.other), (10, 1));
    }

    #[test]
    fn the_only_timed_exit_of_a_vcpu_is_not_forgotten() {
        // One of the guest's, timed; one of the profiler's, under way.
        let one = |min, max| {
            let mut figures = Figures::default();
            figures.lines[30].row = RowCopy {
                exits: 2,
                own: 1,
                timed: 1,
                own_timed: 0,
                cycles: max,
                own_cycles: 0,
                min,
                max,
            };
            figures
        };
        for (first, second) in [(5, 9), (9, 5)] {
            let mut sum = Figures::default();
            sum.add(&one(first, first));
            sum.add(&one(second, second));
            let row = sum.lines[30].row;
            assert_eq!((row.min, row.max), (5, 9));
        }
    }

    #[test]
    fn flags_tell_zero_from_never() {
        let books = books(vec![(SourceKind::Stats, Sample::default())]);
        let flags_of = |n| Reason::new(n).map(|r| books.flags(r, Edition::Current));
        assert_eq!(
            flags_of(12),
            Some(flags::DEFINED | flags::CAN_OCCUR | flags::EXACT)
        );
        assert_eq!(flags_of(35), Some(0));
        assert_eq!(flags_of(11), Some(flags::DEFINED), "GETSEC: AMD has none");
    }
}
