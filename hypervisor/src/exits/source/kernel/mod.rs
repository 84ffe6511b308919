//! The kernel-side ledger: BPF programs on KVM's tracepoints count and time every exit of this
//! VM's vCPUs, in maps that are updated in place. Nothing is streamed, nothing can be lost.

mod asm;
mod bpf;
mod btf;
mod callers;
pub mod culprits;
#[cfg(test)]
mod disasm;
pub mod error;
mod format;
mod layout;
mod open;
mod programs;
pub mod slots;
pub mod stop;
#[cfg(test)]
mod tests;
mod tracefs;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

pub use culprits::Culprit;
pub use error::{EnlistError, KernelLedgerError};
pub use slots::SLOTS;

use exit_abi::reason::Reason;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use bpf::{Mapping, Program};
use layout::{Sizes, header, ram, row};
use programs::enlisting;

use crate::exits::rate::Rate;
use crate::layout as guest_layout;
use crate::memory::Memory;
use crate::profile::KvmKind;

/// How many buckets a histogram has: bucket n counts durations from 2^n ns to below 2^(n+1) ns
/// (0 ns in the first, the longest in the last).
pub const BUCKETS: usize = 32;

/// How much the kernel ledger keeps. Each level costs more per exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Exits are counted.
    Counts,
    /// And timed, from exit to next entry.
    #[default]
    Cycles,
    /// And a histogram of durations is kept per slot.
    Histogram,
}

impl Level {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Counts, Self::Cycles, Self::Histogram];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counts => "counts",
            Self::Cycles => "cycles",
            Self::Histogram => "histogram",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let level = Self::ALL.into_iter().find(|l| l.name() == s);
        level.ok_or_else(|| format!("`{s}`: give counts, cycles or histogram"))
    }
}

/// Whose is the exit that the next entry closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The guest's.
    Guest,
    /// The profiler's own, this once.
    OwnOnce,
    /// The profiler's own, and so are the next, until something else is said.
    OwnUntilCleared,
}

/// What is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// How much is kept.
    pub level: Level,
    /// Whose exit codes to expect; a software KVM's emulated events are counted instead of exits.
    pub kvm: KvmKind,
    /// How many vCPUs the VM has.
    pub vcpus: u32,
    /// How much memory, bytes: its RAM is told from what is none.
    pub memory: u64,
    /// Where tracefs is mounted, if not where it is looked for.
    pub tracefs: Option<&'a Path>,
}

/// What the kernel knows of one vCPU, cumulative since the ledger was opened or cleared, per slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawRecord {
    /// Exits, the profiler's own included.
    pub exits: [u64; SLOTS],
    /// Those that an entry has closed, so that their time is known.
    pub timed: [u64; SLOTS],
    /// Their nanoseconds, from exit to next entry.
    pub ns: [u64; SLOTS],
    /// The profiler's own among the timed.
    pub own_timed: [u64; SLOTS],
    /// Their nanoseconds.
    pub own_ns: [u64; SLOTS],
    /// Shortest of the guest's, in ns; 0 if none.
    pub min_ns: [u64; SLOTS],
    /// Longest of the guest's, in ns.
    pub max_ns: [u64; SLOTS],
    /// VMX: exits that were failed entries (bit 31 of the reason).
    pub failed: u64,
    /// The last code that had no slot of its own; 0 if none.
    pub last_other: u64,
}

/// What the kernel knows of one vCPU's exits of one slot: the fields are [`RawRecord`]'s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawRow {
    /// Exits.
    pub exits: u64,
    /// Those whose time is known.
    pub timed: u64,
    /// Their nanoseconds.
    pub ns: u64,
    /// The profiler's own among the timed.
    pub own_timed: u64,
    /// Their nanoseconds.
    pub own_ns: u64,
    /// Shortest of the guest's; 0 if none.
    pub min_ns: u64,
    /// Longest of the guest's.
    pub max_ns: u64,
}

impl Default for RawRecord {
    fn default() -> Self {
        Self {
            exits: [0; SLOTS],
            timed: [0; SLOTS],
            ns: [0; SLOTS],
            own_timed: [0; SLOTS],
            own_ns: [0; SLOTS],
            min_ns: [0; SLOTS],
            max_ns: [0; SLOTS],
            failed: 0,
            last_other: 0,
        }
    }
}

impl RawRecord {
    /// All exits.
    pub fn total(&self) -> u64 {
        self.exits.iter().sum()
    }
}

/// The records of a VM's vCPUs, and what is to be known to read them as [`exit_abi::page`] says.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    /// All of them: whole pages, which nobody but the kernel can write.
    pub(crate) words: &'a [AtomicU64],
    /// What turns their times into cycles.
    pub(crate) rate: Rate,
    /// Whether they have times.
    pub(crate) timed: bool,
}

impl Records<'_> {
    /// From one record to the next, bytes.
    pub(crate) const STRIDE: usize = layout::RECORD;
    /// From one row to the next, bytes.
    pub(crate) const ROW_STRIDE: usize = 1 << layout::ROW_SHIFT;
}

/// A program at work.
#[derive(Debug)]
struct Attached {
    program: Program,
    /// Open as long as the program is to run.
    _link: OwnedFd,
}

/// The kernel-side ledger of one process: opened once, before the first VM, it outlives their
/// resets. Between two [`KernelLedger::clear`] its numbers only grow: a reader takes a baseline.
#[derive(Debug)]
pub struct KernelLedger {
    level: Level,
    kvm: KvmKind,
    vcpus: u32,
    sizes: Sizes,
    /// Read-only for good; the programs alone write it.
    ledger: Mapping,
    marks: Mapping,
    culprits: Mapping,
    histogram: Option<Mapping>,
    enlister: Program,
    /// Two threads with one place in the table must not both find it free.
    enlisting: Mutex<()>,
    attached: Vec<Attached>,
    /// Why callers are not looked for.
    no_callers: Option<String>,
}

impl KernelLedger {
    /// Assembles the programs for the running kernel, loads and attaches them. Needs CAP_BPF,
    /// CAP_PERFMON and a readable tracefs, or root; afterwards no capability is needed any more.
    pub fn open(options: &Options) -> Result<Self, KernelLedgerError> {
        open::open(options)
    }

    /// How much is kept. Emulated events are only counted.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Whose exit codes the slots are: see [`slots::describe`].
    pub fn kvm(&self) -> KvmKind {
        self.kvm
    }

    /// How many vCPUs it was opened for.
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// Whether emulated events are counted, not hardware exits.
    pub fn is_emulated(&self) -> bool {
        self.kvm == KvmKind::Software
    }

    /// Whether every event of this reason is counted. For hardware exits all are; of emulated
    /// events some are not traced.
    pub fn covers(&self, reason: Reason) -> bool {
        !self.is_emulated() || open::is_emulated_for(reason)
    }

    /// Makes the calling thread known as this vCPU's, before its first KVM_RUN. What an earlier
    /// thread of the vCPU left open is forgotten.
    pub fn enlist(&self, vcpu: u32) -> Result<(), EnlistError> {
        self.mark(vcpu, Mark::Guest);
        self.enlisting(vcpu, enlisting::ENLIST)
    }

    /// Forgets the vCPU's thread, because it ends: its id may soon be another's. Any thread may
    /// call this.
    pub fn delist(&self, vcpu: u32) -> Result<(), EnlistError> {
        self.enlisting(vcpu, enlisting::DELIST)
    }

    /// Forgets all exits of all vCPUs, none of which may be running: what boots next is counted from
    /// 0. Culprits and histograms stay. Once capabilities are dropped, kernels before
    /// 5.19 refuse this.
    pub fn clear(&self) -> Result<(), EnlistError> {
        (0..self.vcpus).try_for_each(|vcpu| self.enlisting(vcpu, enlisting::CLEAR))
    }

    fn enlisting(&self, vcpu: u32, what: u64) -> Result<(), EnlistError> {
        let _one_at_a_time = self.enlisting.lock().unwrap_or_else(|e| e.into_inner());
        match self.enlister.run(&[vcpu.into(), what]) {
            Ok(enlisting::DONE) => Ok(()),
            Ok(enlisting::COLLISION) => Err(EnlistError::Collision),
            Ok(_) => Err(EnlistError::NoSuchVcpu(vcpu)),
            Err(error) => Err(EnlistError::Refused(error)),
        }
    }

    /// Tells where in this process guest RAM lies, before the vCPUs run that have it. It stays there while
    /// they do.
    pub(crate) fn tell_memory(&self, memory: &Memory) {
        let base = |start: u64| {
            let host = memory.get_host_address(GuestAddress(start)).ok()?;
            Some((host as u64).wrapping_sub(start))
        };
        let words = self.marks.words();
        for (offset, start) in [(ram::LOW, 0), (ram::HIGH, guest_layout::HOLE_END)] {
            if let Some(word) = words.get((self.sizes.ram() + offset) / 8) {
                word.store(base(start).unwrap_or(0), Relaxed);
            }
        }
        self.tell_code((callers::KERNEL, callers::KERNEL_SIZE), (0, 0));
    }

    /// Tells where the guest's kernel has its code, and that of its start, once that is known: first
    /// address and length. Until then whatever lies where a kernel does is taken for code.
    pub(crate) fn tell_code(&self, text: (u64, u64), init: (u64, u64)) {
        let words = self.marks.words();
        for (offset, (start, length)) in [(ram::TEXT, text), (ram::INIT, init)] {
            let at = (self.sizes.ram() + offset) / 8;
            if let Some([first, second]) = words.get(at..at + 2) {
                // Nothing is taken for code while the two do not belong together.
                second.store(0, Relaxed);
                first.store(start, Relaxed);
                second.store(length, Release);
            }
        }
    }

    /// Why it is not known who called the function that an exit came from; `None` if it is looked for.
    pub fn no_callers(&self) -> Option<&str> {
        self.no_callers.as_deref()
    }

    /// Says whose exit the vCPU's next entry closes. No system call.
    pub fn mark(&self, vcpu: u32, mark: Mark) {
        let says = match mark {
            Mark::Guest => layout::mark::GUEST,
            Mark::OwnOnce => layout::mark::OWN_ONCE,
            Mark::OwnUntilCleared => layout::mark::OWN,
        };
        let place = (vcpu as usize) << layout::MARK_SHIFT >> 3;
        if let Some(word) = self.marks.words().get(place) {
            word.store(says, Relaxed);
        }
    }

    /// A vCPU's record; empty if there is no such vCPU.
    fn record(&self, vcpu: u32) -> &[AtomicU64] {
        let vcpu = vcpu as usize;
        let words = layout::RECORD / 8;
        if vcpu < self.sizes.records {
            &self.ledger.words()[vcpu * words..][..words]
        } else {
            &[]
        }
    }

    /// What is known of a vCPU, slot by slot, of those that have exits. No system call, no
    /// allocation; the vCPU may be running.
    ///
    /// Numbers that depend on each other are read against the order in which they are written, so
    /// that a row never contradicts itself: own ≤ timed ≤ exits.
    pub fn rows(&self, vcpu: u32) -> impl Iterator<Item = (usize, RawRow)> {
        let record = self.record(vcpu);
        slots::possible(self.kvm).filter_map(move |slot| {
            let at = (slot << layout::ROW_SHIFT) / 8;
            let row = record.get(at..at + row::WORDS)?;
            let field = |offset: usize| row[offset / 8].load(Acquire);
            // Most are empty: one look.
            if field(row::EXITS) == 0 {
                return None;
            }
            let (own_ns, own_timed) = (field(row::OWN_NS), field(row::OWN_TIMED));
            let min_ns = match field(row::MIN_NS) {
                u64::MAX => 0,
                shortest => shortest,
            };
            let max_ns = field(row::MAX_NS).max(min_ns);
            let (ns, timed) = (field(row::NS), field(row::TIMED));
            let row = RawRow {
                exits: field(row::EXITS),
                timed,
                ns,
                own_timed,
                own_ns,
                min_ns,
                max_ns,
            };
            Some((slot, row))
        })
    }

    /// Copies what is known of a vCPU: see [`Self::rows`].
    pub fn read(&self, vcpu: u32, into: &mut RawRecord) {
        *into = RawRecord::default();
        for (slot, row) in self.rows(vcpu) {
            into.exits[slot] = row.exits;
            into.timed[slot] = row.timed;
            into.ns[slot] = row.ns;
            into.own_timed[slot] = row.own_timed;
            into.own_ns[slot] = row.own_ns;
            into.min_ns[slot] = row.min_ns;
            into.max_ns[slot] = row.max_ns;
        }
        into.failed = self.header(vcpu, header::FAILED);
        into.last_other = self.header(vcpu, header::LAST_OTHER);
    }

    /// Exits of the vCPU that were failed entries (VMX, bit 31 of the reason).
    pub fn failed(&self, vcpu: u32) -> u64 {
        self.header(vcpu, header::FAILED)
    }

    /// A number of a vCPU's header.
    fn header(&self, vcpu: u32, offset: usize) -> u64 {
        let known = (vcpu as usize) < self.sizes.records;
        let at = self.sizes.headers() + ((vcpu as usize) << layout::HEADER_SHIFT) + offset;
        let word = self.ledger.words().get(at / 8).filter(|_| known);
        word.map_or(0, |word| word.load(Acquire))
    }

    /// The records of exactly the VM's vCPUs, as they lie in memory: fit to be shown to the guest.
    pub(crate) fn records(&self) -> Records<'_> {
        let words = self.ledger.words();
        let length = (self.vcpus as usize) << layout::RECORD_SHIFT;
        Records {
            words: &words[..length / 8],
            rate: Rate::measured(),
            timed: self.level >= Level::Cycles,
        }
    }

    /// A vCPU's block of culprits; empty if there is no such vCPU.
    fn block(&self, vcpu: u32) -> &[AtomicU64] {
        let vcpu = vcpu as usize;
        let words = layout::BLOCK / 8;
        if vcpu < self.sizes.records {
            &self.culprits.words()[vcpu * words..][..words]
        } else {
            &[]
        }
    }

    /// What the vCPU exited for, and from where. It adds up to its exits, slot by slot, unless the vCPU
    /// runs meanwhile.
    pub fn culprits(&self, vcpu: u32) -> Vec<Culprit> {
        let pending = self.header(vcpu, header::PENDING);
        culprits::collect(self.kvm, self.block(vcpu), pending)
    }

    /// How long the vCPU's exits of a slot took, the profiler's own included: bucket n counts those
    /// from 2^n ns to below 2^(n+1) ns. Zeros below [`Level::Histogram`].
    pub fn histogram(&self, vcpu: u32, slot: usize) -> [u64; BUCKETS] {
        let words = self.histogram.as_ref().map_or(&[][..], Mapping::words);
        let known = (vcpu as usize) < self.sizes.records && slot < SLOTS;
        let base = ((vcpu as usize) << layout::HISTOGRAM_SHIFT) + (slot << layout::BUCKETS_SHIFT);
        std::array::from_fn(|bucket| {
            let word = words.get(base / 8 + bucket).filter(|_| known);
            word.map_or(0, |word| word.load(Relaxed))
        })
    }

    /// Events of this process that belong to none of the vCPUs: should be 0.
    pub fn stray(&self) -> u64 {
        let word = self.ledger.words().get(self.sizes.stray() / 8);
        word.map_or(0, |word| word.load(Relaxed))
    }

    /// How often the kernel did not run a program because the CPU was already in one: these events
    /// are lost. `None` if the kernel does not say. Kernels before 6.7 do not count what the
    /// programs on kvm_exit missed: there only KVM's statistic shows it.
    pub fn missed(&self) -> Option<u64> {
        self.attached.iter().map(|a| a.program.misses()).sum()
    }
}
