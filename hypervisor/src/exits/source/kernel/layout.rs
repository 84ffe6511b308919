//! What lies where in the maps: the one description that programs and readers share.
//!
//! ```text
//! ledger     a record per vCPU     a row per slot, 64 bytes: one cache line for one reason
//!            a header per vCPU     64 bytes
//!            the table of threads  {pid_tgid: u64, header offset: u32, vCPU: u32} × 4096
//!            the tail              stray events
//! marks      64 bytes per vCPU     the mark: u64
//! asks       a block per vCPU      overflows per kind, then {key: u64, count: u64} × 1040
//! histogram  64 KiB per vCPU       32 buckets per slot
//! ```
//!
//! There are records for a power of two of vCPUs, so that a masked index is in bounds, which the
//! verifier can see.
//!
//! The guest is shown its vCPUs' records, whole pages, as its exit page ([`exit_abi::page`]): in them
//! is nothing but rows. What is the host's own lies behind them.

use super::asks::AskKind;
use super::slots::SLOTS;

/// A record's size, as a shift.
pub(super) const RECORD_SHIFT: u32 = 14;
pub(super) const RECORD: usize = 1 << RECORD_SHIFT;
/// A row's size, as a shift.
pub(super) const ROW_SHIFT: u32 = 6;

/// A row's numbers: offsets in it, as a guest reads them; times are nanoseconds.
pub(super) mod row {
    use exit_abi::page::row;

    /// Exits.
    pub(in super::super) const EXITS: usize = row::EXITS;
    /// Those whose time is known.
    pub(in super::super) const TIMED: usize = row::TIMED;
    /// Their nanoseconds.
    pub(in super::super) const NS: usize = row::TIME;
    /// The profiler's own among them.
    pub(in super::super) const OWN_TIMED: usize = row::OWN_TIMED;
    /// Their nanoseconds.
    pub(in super::super) const OWN_NS: usize = row::OWN_TIME;
    /// Shortest of the guest's; all ones if none.
    pub(in super::super) const MIN_NS: usize = row::MIN;
    /// Longest of the guest's.
    pub(in super::super) const MAX_NS: usize = row::MAX;
    /// How many words that is.
    pub(in super::super) const WORDS: usize = row::SIZE / 8;
}

/// A header's size, as a shift: a cache line.
pub(super) const HEADER_SHIFT: u32 = 6;

/// A vCPU's header: offsets in it.
pub(super) mod header {
    /// When the open exit happened, ns; [`CLOSED`] if none is open.
    pub(in super::super) const OPEN_NS: usize = 0;
    /// A time that never comes: nothing that happens later than it needs to be closed.
    pub(in super::super) const CLOSED: u64 = u64::MAX;
    /// Offset of the open exit's row in the ledger.
    pub(in super::super) const OPEN_ROW: usize = 8;
    /// Offset of the vCPU's mark in its map.
    pub(in super::super) const MARK: usize = 16;
    /// VMX: failed entries.
    pub(in super::super) const FAILED: usize = 24;
    /// The last code without a slot.
    pub(in super::super) const LAST_OTHER: usize = 32;
    /// The enlisted thread, as the table of threads has it; 0 if none.
    pub(in super::super) const THREAD: usize = 40;
}

/// The table of threads: its length, and an entry's size as a shift.
pub(super) const THREADS: usize = 4096;
pub(super) const THREAD_SHIFT: u32 = 4;

/// An entry of the table of threads: offsets in it.
pub(super) mod thread {
    /// Thread group's and thread's id, as the kernel gives them; 0 if none.
    pub(in super::super) const ID: usize = 0;
    /// Offset of the vCPU's header from the first one.
    pub(in super::super) const HEADER: usize = 8;
    /// The vCPU.
    pub(in super::super) const VCPU: usize = 12;
}

/// What a mark says.
pub(super) mod mark {
    /// The guest's.
    pub(in super::super) const GUEST: u64 = 0;
    /// The profiler's own; becomes [`GUEST`] when an entry has read it.
    pub(in super::super) const OWN_ONCE: u64 = 1;
    /// The profiler's own, until something else is written.
    pub(in super::super) const OWN: u64 = 2;
}

/// A mark's size, as a shift: a cache line, so that vCPUs do not disturb each other.
pub(super) const MARK_SHIFT: u32 = 6;

/// Where an ask may begin to look, as a number of bits.
pub(super) const ASK_HOME_BITS: u32 = 10;
/// How many places it looks at.
pub(super) const ASK_PROBES: usize = 16;
/// Places in all: the last home's probes need no wrapping.
pub(super) const ASK_PLACES: usize = (1 << ASK_HOME_BITS) + ASK_PROBES;
/// An ask's size, as a shift, and the offset of its count (its key is at 0; 0 if free).
pub(super) const ASK_SHIFT: u32 = 4;
pub(super) const ASK_COUNT: usize = 8;
/// Where in a block the asks begin; before them one count of overflows per kind.
pub(super) const ASKS: usize = 64;
/// A block's size.
pub(super) const ASK_BLOCK: usize = ASKS + (ASK_PLACES << ASK_SHIFT);
/// What spreads keys over homes: 2^32 divided by the golden ratio, its complement (Knuth, TAOCP
/// vol. 3, 6.4), which fits a positive immediate.
pub(super) const ASK_SPREAD: u64 = 0x61C8_8647;
/// How far a key's kind is shifted above its index.
pub(super) const ASK_KIND_SHIFT: u32 = 32;

/// An ask's kind in a key, from 1: a key is never 0.
pub(super) const fn ask_code(kind: AskKind) -> u64 {
    kind as u64 + 1
}

/// An ask's key.
pub(super) const fn ask_key(kind: AskKind, index: u32) -> u64 {
    ask_code(kind) << ASK_KIND_SHIFT | index as u64
}

/// The first place where a key may be.
pub(super) const fn ask_home(key: u64) -> usize {
    let (kind, index) = (key >> ASK_KIND_SHIFT, key & 0xFFFF_FFFF);
    let spread = ((index << 3) + kind).wrapping_mul(ASK_SPREAD);
    (spread >> (32 - ASK_HOME_BITS)) as usize & ((1 << ASK_HOME_BITS) - 1)
}

/// A slot's histogram, as a shift: 32 buckets of 8 bytes; and a vCPU's.
pub(super) const BUCKETS_SHIFT: u32 = 8;
pub(super) const HISTOGRAM_SHIFT: u32 = 16;

/// The maps for so many vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// How many records there are: a power of two.
    pub(super) records: usize,
}

impl Sizes {
    pub(super) fn of(vcpus: u32) -> Self {
        let records = (vcpus.max(1) as usize).next_power_of_two();
        Self { records }
    }

    /// Offset of the first header in the ledger.
    pub(super) const fn headers(self) -> usize {
        self.records << RECORD_SHIFT
    }

    /// Offset of the table of threads in the ledger.
    pub(super) const fn threads(self) -> usize {
        self.headers() + (self.records << HEADER_SHIFT)
    }

    /// Offset of the count of stray events in the ledger.
    pub(super) const fn stray(self) -> usize {
        self.threads() + (THREADS << THREAD_SHIFT)
    }

    pub(super) const fn ledger(self) -> usize {
        self.stray() + 64
    }

    pub(super) const fn marks(self) -> usize {
        self.records << MARK_SHIFT
    }

    pub(super) const fn asks(self) -> usize {
        self.records * ASK_BLOCK
    }

    pub(super) const fn histogram(self) -> usize {
        self.records << HISTOGRAM_SHIFT
    }
}

const _: () = {
    assert!(SLOTS << ROW_SHIFT <= RECORD);
    assert!(header::THREAD + 8 <= 1 << HEADER_SHIFT);
    // Records are whole pages: no byte of the host's shares one with them.
    assert!(RECORD.is_multiple_of(4096));
    assert!(row::MAX_NS + 8 <= 1 << ROW_SHIFT);
    assert!(SLOTS << BUCKETS_SHIFT <= 1 << HISTOGRAM_SHIFT);
    assert!(super::BUCKETS * 8 == 1 << BUCKETS_SHIFT);
    assert!(AskKind::ALL.len() * 8 <= ASKS);
};
