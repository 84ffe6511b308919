//! The kernel-side ledger: BPF programs on KVM's tracepoints count and time every exit of this
//! VM's vCPUs, in maps that are updated in place. Nothing is streamed, nothing can be lost.

pub mod asks;
pub mod error;
pub mod slots;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

pub use asks::{Ask, AskKind, TimeDriven};
pub use error::{EnlistError, KernelLedgerError};
pub use slots::SLOTS;

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
    /// Whose exit codes to expect.
    pub kvm: KvmKind,
    /// How many vCPUs the VM has.
    pub vcpus: u32,
    /// Where tracefs is mounted, if not where it is looked for.
    pub tracefs: Option<&'a Path>,
}

/// What the kernel knows of one vCPU, cumulative since the ledger was opened, per slot.
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

/// The kernel-side ledger of one process: opened once, before the first VM, it outlives their
/// resets. Its numbers only grow: a reader takes a baseline.
#[derive(Debug)]
pub struct KernelLedger {
    level: Level,
    kvm: KvmKind,
    vcpus: u32,
}

impl KernelLedger {
    /// Assembles the programs for the running kernel, loads and attaches them. Needs CAP_BPF,
    /// CAP_PERFMON and a readable tracefs, or root; afterwards no capability is needed any more.
    pub fn open(_options: &Options) -> Result<Self, KernelLedgerError> {
        Err(KernelLedgerError::NoTracefs)
    }

    /// How much is kept.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Whose exit codes the slots are: see [`slots::describe`].
    pub fn kvm(&self) -> KvmKind {
        self.kvm
    }

    /// Whether emulated events are counted, not hardware exits.
    pub fn is_emulated(&self) -> bool {
        self.kvm == KvmKind::Software
    }

    /// Makes the calling thread known as this vCPU's, before its first KVM_RUN.
    pub fn enlist(&self, vcpu: u32) -> Result<(), EnlistError> {
        Err(EnlistError::NoSuchVcpu(vcpu))
    }

    /// Forgets the vCPU's thread, because it ends. Any thread may call this.
    pub fn delist(&self, _vcpu: u32) {}

    /// Says whose exit the vCPU's next entry closes. No system call.
    pub fn mark(&self, _vcpu: u32, _mark: Mark) {}

    /// Copies what is known of a vCPU. No system call, no allocation; the vCPU may be running.
    pub fn read(&self, _vcpu: u32, into: &mut RawRecord) {
        into.clone_from(&RawRecord::default());
    }

    /// What the vCPU asked for, sorted.
    pub fn asks(&self, _vcpu: u32) -> Vec<Ask> {
        Vec::new()
    }

    /// The vCPU's asks that depend on time. No system call, no allocation.
    pub fn time_driven(&self, _vcpu: u32) -> TimeDriven {
        TimeDriven::default()
    }

    /// How long the vCPU's exits of a slot took; zeros below [`Level::Histogram`].
    pub fn histogram(&self, _vcpu: u32, _slot: usize) -> [u64; BUCKETS] {
        [0; BUCKETS]
    }

    /// Events of this process that belong to none of the vCPUs: should be 0.
    pub fn stray(&self) -> u64 {
        0
    }

    /// How often the kernel did not run one of the programs because the CPU was already in one:
    /// such events are lost. `None` if the kernel does not say.
    pub fn missed(&self) -> Option<u64> {
        None
    }

    /// How many vCPUs it was opened for.
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }
}
