//! What lies where in the maps: the one description that programs and readers share.
//!
//! ```text
//! ledger     a record per vCPU     a row per slot, 64 bytes: one cache line for one reason
//!            a header per vCPU     128 bytes
//!            the table of threads  {pid_tgid: u64, header offset: u32, vCPU: u32} × 4096
//!            the tail              stray events
//! marks      64 bytes per vCPU     the mark: u64
//!            64 bytes              where guest RAM lies in the process,
//!                                  and the guest's kernel in its address space
//! culprits   a block per vCPU      without room, without a key: a count per slot each; then
//!                                  {what, rip, count, nanoseconds, caller: u64 each} × 4108
//! histogram  64 KiB per vCPU       32 buckets per slot
//! private    64 bytes per vCPU     where KVM keeps the vCPU, and where its stack was last
//! ```
//!
//! There are records for a power of two of vCPUs, so that a masked index is in bounds, which the
//! verifier can see.
//!
//! The guest is shown its vCPUs' records, whole pages, as its exit page ([`exit_abi::page`]): in them
//! is nothing but rows. What is the host's own lies behind them.

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

/// A header's size, as a shift: two cache lines.
pub(super) const HEADER_SHIFT: u32 = 7;

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
    /// What the last exit was, as a culprit, while its key is not known yet; 0 if it is.
    pub(in super::super) const PENDING: usize = 48;
    /// Where in the guest it was.
    pub(in super::super) const PENDING_RIP: usize = 56;
    /// A culprit whose key came before its exit; 0 if none.
    pub(in super::super) const EARLY: usize = 64;
    /// Offset of the open exit's culprit from the first block's first; [`super::NO_PLACE`] if none.
    pub(in super::super) const OPEN_PLACE: usize = 72;
    /// Who called where the last exit was, while its key is not known yet; 0 if that is not known.
    pub(in super::super) const PENDING_CALLER: usize = 80;
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

/// Behind the marks: what is told of the guest.
pub(super) mod ram {
    /// The process's address of guest-physical 0, and of what would be guest-physical 0 if RAM above the
    /// device hole began there; 0 if there is none.
    pub(in super::super) const LOW: usize = 0;
    pub(in super::super) const HIGH: usize = 8;
    /// Where its kernel's code lies, and that of its start: first address and length.
    pub(in super::super) const TEXT: usize = 16;
    pub(in super::super) const INIT: usize = 32;
    pub(in super::super) const SIZE: usize = 64;
}

/// A vCPU's part of what only programs see: its size, as a shift, and offsets in it.
pub(super) const PRIVATE_SHIFT: u32 = 6;
pub(super) mod private {
    /// KVM's `struct kvm_vcpu`; 0 if it is not known.
    pub(in super::super) const VCPU: usize = 0;
    /// By which CR3 the stack was found last.
    pub(in super::super) const CR3: usize = 8;
    /// Its page's number, linear; 0 if there is none.
    pub(in super::super) const PAGE: usize = 16;
    /// Where in the process the entry lies that maps it, and what it said.
    pub(in super::super) const ENTRY_AT: usize = 24;
    pub(in super::super) const ENTRY: usize = 32;
    /// Where in the process the page lies.
    pub(in super::super) const HOST: usize = 40;
}

/// What a culprit is, in a word: the slot, flags, and from [`what::KEY_SHIFT`] on the key.
pub(super) mod what {
    /// The slot.
    pub(in super::super) const SLOT: u64 = 0xFF;
    /// There is one: never 0.
    pub(in super::super) const USED: u64 = 1 << 8;
    /// It has a key.
    pub(in super::super) const KEYED: u64 = 1 << 9;
    /// The key is the first page of a large page.
    pub(in super::super) const LARGE: u64 = 1 << 10;
    /// The first bit of the key.
    pub(in super::super) const KEY_SHIFT: u32 = 16;
    /// A port's key: it was read.
    pub(in super::super) const IN: u64 = 1 << 16;
}

/// A page's number is its address, shifted so; a large page has so many.
pub(super) const PAGE_SHIFT: u32 = 12;
pub(super) const LARGE_PAGES: u64 = 512;

/// Where a culprit may be looked for first, as a number of bits: RAM in the lower half, all others in
/// the upper one, so that a guest that touches all of its memory leaves room.
pub(super) const HOME_BITS: u32 = 12;
pub(super) const UPPER_HALF: u64 = 1 << (HOME_BITS - 1);
/// How many places are looked at.
pub(super) const PROBES: usize = 12;
/// Places in all: the last home's probes need no wrapping.
pub(super) const PLACES: usize = (1 << HOME_BITS) + PROBES;
/// A place's size, and the offsets of its numbers (what it is stands at 0; 0 if free).
pub(super) const PLACE: usize = 40;
pub(super) const PLACE_RIP: usize = 8;
pub(super) const PLACE_COUNT: usize = 16;
pub(super) const PLACE_NS: usize = 24;
pub(super) const PLACE_CALLER: usize = 32;
/// Where in a block the counts without room begin, by slot; and those whose key nobody told.
pub(super) const NO_ROOM: usize = 0;
pub(super) const NO_KEY: usize = 2048;
/// Where in a block the places begin.
pub(super) const FIRST_PLACE: usize = 4096;
/// A block's size.
pub(super) const BLOCK: usize = (FIRST_PLACE + PLACES * PLACE).next_multiple_of(64);
/// No culprit's offset.
pub(super) const NO_PLACE: u64 = u64::MAX;
/// What spreads culprits over homes: 2^32 divided by the golden ratio, its complement (Knuth, TAOCP
/// vol. 3, 6.4), which fits a positive immediate; and the lower half of 2^64 divided by it for the
/// instruction pointer.
pub(super) const SPREAD: u64 = 0x61C8_8647;
pub(super) const SPREAD_RIP: u64 = 0x7F4A_7C15;
/// Which bits of the sum tell the home: so low that instructions that follow each other have homes
/// apart, and so high that pages of 2 MiB do.
pub(super) const SPREAD_SHIFT: u32 = 28;

/// The first place where a culprit may be; `rip` is the instruction pointer, plus the caller's if there is
/// one.
pub(super) const fn home(what: u64, rip: u64) -> usize {
    let spread = what
        .wrapping_mul(SPREAD)
        .wrapping_add(rip.wrapping_mul(SPREAD_RIP));
    let half = if what & what::LARGE == 0 {
        UPPER_HALF
    } else {
        0
    };
    ((spread >> SPREAD_SHIFT & (UPPER_HALF - 1)) + half) as usize
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
        self.ram() + ram::SIZE
    }

    /// Offset of what is told of guest RAM, behind the marks.
    pub(super) const fn ram(self) -> usize {
        self.records << MARK_SHIFT
    }

    pub(super) const fn private(self) -> usize {
        self.records << PRIVATE_SHIFT
    }

    pub(super) const fn culprits(self) -> usize {
        self.records * BLOCK
    }

    /// Offset of the last culprit of all from the first.
    pub(super) const fn last_place(self) -> u64 {
        (self.culprits() - BLOCK + (PLACES - 1) * PLACE) as u64
    }

    pub(super) const fn histogram(self) -> usize {
        self.records << HISTOGRAM_SHIFT
    }
}

const _: () = {
    assert!(SLOTS << ROW_SHIFT <= RECORD);
    assert!(header::PENDING_CALLER + 8 <= 1 << HEADER_SHIFT);
    assert!(private::HOST + 8 <= 1 << PRIVATE_SHIFT);
    assert!(ram::INIT + 16 <= ram::SIZE);
    // Records are whole pages: no byte of the host's shares one with them.
    assert!(RECORD.is_multiple_of(4096));
    assert!(row::MAX_NS + 8 <= 1 << ROW_SHIFT);
    assert!(SLOTS << BUCKETS_SHIFT <= 1 << HISTOGRAM_SHIFT);
    assert!(super::BUCKETS * 8 == 1 << BUCKETS_SHIFT);
    assert!(SLOTS * 8 <= NO_KEY - NO_ROOM && SLOTS * 8 <= FIRST_PLACE - NO_KEY);
    assert!(SLOTS <= what::SLOT as usize);
};
