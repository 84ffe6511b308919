//! The exit page: the live counters of this VM's exits, which a guest reads by plain loads, at no
//! exit. The VMM gives it to KVM as read-only memory; a store changes nothing.
//!
//! ```text
//! page + 0            head: numbers of 64 bits, then a reason per row (a byte each)
//! page + records      record of vCPU 0: a row per slot
//! page + records + stride   record of vCPU 1 …
//! ```
//!
//! A row is numbers of 64 bits at the offsets [`row`]. Each is written by one CPU at a time and
//! loaded whole: it never tears. Numbers that depend on each other are loaded in the order of
//! [`Head::row`], against that in which they are written, so that a row never contradicts itself:
//! own ≤ timed ≤ exits. Counters only grow while a machine runs, and begin at 0 with each boot; but what
//! a row without a reason holds may find its reason, and move there.
//!
//! A row's times are in a unit of its own; [`Head::cycles_of_times`] turns them into TSC cycles, in
//! the very way in which the leaves' answers are made.

use crate::reason::Reason;

/// First number of the head: the bytes `ExitPage`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"ExitPage");
/// Version of this layout.
pub const VERSION: u32 = 1;
/// Guest-physical address of the page; the device tree and [`crate::leaf::INFO`] tell it too.
pub const ADDRESS: u64 = 0xD100_0000;
/// Size of the head: a page. Records follow.
pub const HEAD_SIZE: u64 = 4096;
/// Where in the head the rows' reasons begin, a byte each.
pub const REASONS: usize = 128;
/// A row without a reason: codes that the SDM has no name for.
pub const NO_REASON: u8 = 0xFF;
/// Most rows of a record: what the head has room for.
pub const ROWS_MAX: usize = HEAD_SIZE as usize - REASONS;
/// Most records.
pub const VCPUS_MAX: u64 = 254;

/// Offsets of the head's numbers.
pub mod head {
    /// [`super::MAGIC`].
    pub const MAGIC: usize = 0;
    /// [`super::VERSION`] in the low, [`super::PageKind`] in the high half.
    pub const VERSION_AND_KIND: usize = 8;
    /// How many records there are.
    pub const VCPUS: usize = 16;
    /// Offset of the first record from the page.
    pub const RECORDS: usize = 24;
    /// From one record to the next, bytes.
    pub const RECORD_STRIDE: usize = 32;
    /// Rows of a record.
    pub const ROWS: usize = 40;
    /// From one row to the next, bytes.
    pub const ROW_STRIDE: usize = 48;
    /// TSC cycles per unit of time, as a binary fraction with 32 bits behind the point.
    pub const RATE: usize = 56;
    /// Bits: [`super::TIMED`].
    pub const FLAGS: usize = 64;
}

/// Bit of [`head::FLAGS`]: times are kept, not only counts.
pub const TIMED: u64 = 1 << 0;

/// Offsets of a row's numbers.
pub mod row {
    /// Exits, the profiler's own included.
    pub const EXITS: usize = 0;
    /// Those whose time is known: an exit's is, once the guest runs again.
    pub const TIMED: usize = 8;
    /// Their time.
    pub const TIME: usize = 16;
    /// The profiler's own among the timed.
    pub const OWN_TIMED: usize = 24;
    /// Their time.
    pub const OWN_TIME: usize = 32;
    /// Shortest of the guest's; all ones if none.
    pub const MIN: usize = 40;
    /// Longest of the guest's.
    pub const MAX: usize = 48;
    /// Bytes of a row that mean something.
    pub const SIZE: usize = 56;
}

/// Who writes the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// The kernel-side ledger: every exit, at once.
    Kernel,
    /// The VMM, at its own exits: those at once; what only KVM's statistics know, as of the vCPU's
    /// last milestone or query.
    Vmm,
}

impl PageKind {
    /// As the head has it.
    pub const fn number(self) -> u32 {
        match self {
            Self::Kernel => 1,
            Self::Vmm => 2,
        }
    }

    /// From the head.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Kernel),
            2 => Some(Self::Vmm),
            _ => None,
        }
    }

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel ledger",
            Self::Vmm => "VMM",
        }
    }
}

/// Why a page cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPage {
    /// It does not begin with [`MAGIC`].
    NoPage,
    /// Its version is another.
    Version(u32),
    /// Its kind is unknown.
    Kind(u32),
    /// Its parts do not fit each other, or the memory that it has.
    Shape,
}

impl core::fmt::Display for BadPage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoPage => f.write_str("what is said to be the exit page is none"),
            Self::Version(v) => write!(f, "the exit page is of version {v}"),
            Self::Kind(k) => write!(f, "the exit page is of an unknown kind, {k}"),
            Self::Shape => f.write_str("the exit page's parts do not fit each other"),
        }
    }
}

/// The head, read and checked: nothing that it leads to lies beyond the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Who writes it.
    pub kind: PageKind,
    /// How many records.
    pub vcpus: u64,
    /// Offset of the first.
    pub records: u64,
    /// From one to the next.
    pub record_stride: u64,
    /// Rows of each.
    pub rows: u64,
    /// From one to the next.
    pub row_stride: u64,
    /// TSC cycles per unit of time, 32 bits behind the point.
    pub rate: u64,
    /// Whether times are kept.
    pub timed: bool,
}

/// A row, read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Exits.
    pub exits: u64,
    /// Those whose time is known.
    pub timed: u64,
    /// Their time, in the page's unit.
    pub time: u64,
    /// The profiler's own among the timed.
    pub own_timed: u64,
    /// Their time.
    pub own_time: u64,
}

impl Head {
    /// Reads the head of a page of `size` bytes, records included. `load` loads the 64-bit number at
    /// an offset from the page, which is a multiple of 8 below `size`.
    pub fn read(size: u64, load: impl Fn(u64) -> u64) -> Result<Self, BadPage> {
        if size < HEAD_SIZE || load(head::MAGIC as u64) != MAGIC {
            return Err(BadPage::NoPage);
        }
        let number = |offset: usize| load(offset as u64);
        let version_and_kind = number(head::VERSION_AND_KIND);
        let (version, kind) = (version_and_kind as u32, (version_and_kind >> 32) as u32);
        if version != VERSION {
            return Err(BadPage::Version(version));
        }
        let head = Self {
            kind: PageKind::from_number(kind).ok_or(BadPage::Kind(kind))?,
            vcpus: number(head::VCPUS),
            records: number(head::RECORDS),
            record_stride: number(head::RECORD_STRIDE),
            rows: number(head::ROWS),
            row_stride: number(head::ROW_STRIDE),
            rate: number(head::RATE),
            timed: number(head::FLAGS) & TIMED != 0,
        };
        if head.is_within(size) {
            Ok(head)
        } else {
            Err(BadPage::Shape)
        }
    }

    fn is_within(&self, size: u64) -> bool {
        let aligned = (self.records | self.record_stride | self.row_stride).is_multiple_of(8);
        let rows_fit = self.rows <= ROWS_MAX as u64
            && self.row_stride >= row::SIZE as u64
            && self
                .rows
                .checked_mul(self.row_stride)
                .is_some_and(|length| length <= self.record_stride);
        let end = self
            .vcpus
            .checked_mul(self.record_stride)
            .and_then(|length| length.checked_add(self.records));
        aligned
            && rows_fit
            && (1..=VCPUS_MAX).contains(&self.vcpus)
            && self.records >= HEAD_SIZE
            && end.is_some_and(|end| end <= size)
    }

    /// Size of the whole page: head and records.
    pub const fn size(&self) -> u64 {
        self.records + self.vcpus * self.record_stride
    }

    /// The reason of a row; `None` if it has none.
    pub fn reason(&self, row: u64, load: impl Fn(u64) -> u64) -> Option<Reason> {
        if row >= self.rows {
            return None;
        }
        let at = REASONS as u64 + row;
        let number = (load(at & !7) >> (at % 8 * 8)) as u8;
        Reason::new(number.into()).filter(|_| number != NO_REASON)
    }

    /// Offset of a row's number from the page; the row and the vCPU exist.
    const fn at(&self, vcpu: u64, row: u64, number: usize) -> u64 {
        self.records + vcpu * self.record_stride + row * self.row_stride + number as u64
    }

    /// Exits of a row alone: one load. 0 if there is no such row.
    pub fn exits(&self, vcpu: u64, row: u64, load: impl Fn(u64) -> u64) -> u64 {
        if vcpu < self.vcpus && row < self.rows {
            load(self.at(vcpu, row, row::EXITS))
        } else {
            0
        }
    }

    /// A row whole, its numbers loaded against the order in which they are written. Empty if there
    /// is no such row.
    pub fn row(&self, vcpu: u64, row: u64, load: impl Fn(u64) -> u64) -> Row {
        if vcpu >= self.vcpus || row >= self.rows {
            return Row::default();
        }
        let number = |number| load(self.at(vcpu, row, number));
        let (own_time, own_timed) = (number(row::OWN_TIME), number(row::OWN_TIMED));
        let (time, timed) = (number(row::TIME), number(row::TIMED));
        Row {
            exits: number(row::EXITS),
            timed,
            time,
            own_timed,
            own_time,
        }
    }

    /// TSC cycles of a time in the page's unit.
    pub fn cycles(&self, time: u64) -> u64 {
        let cycles = (u128::from(time) * u128::from(self.rate)) >> 32;
        u64::try_from(cycles).unwrap_or(u64::MAX)
    }

    /// TSC cycles of a row, as the leaves count them: the guest's and the profiler's own are
    /// converted apart.
    pub fn cycles_of_times(&self, row: &Row) -> u64 {
        let guest = self.cycles(row.time.saturating_sub(row.own_time));
        guest.saturating_add(self.cycles(row.own_time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page of two vCPUs with three rows.
    fn words() -> [u64; 1024] {
        let mut words = [0; 1024];
        words[head::MAGIC / 8] = MAGIC;
        words[head::VERSION_AND_KIND / 8] = u64::from(VERSION) | 1 << 32;
        words[head::VCPUS / 8] = 2;
        words[head::RECORDS / 8] = HEAD_SIZE;
        words[head::RECORD_STRIDE / 8] = 2048;
        words[head::ROWS / 8] = 3;
        words[head::ROW_STRIDE / 8] = 64;
        words[head::RATE / 8] = 5 << 31;
        words[head::FLAGS / 8] = TIMED;
        words[REASONS / 8] = u64::from_le_bytes([30, 10, NO_REASON, 0, 0, 0, 0, 0]);
        // vCPU 1, row 1
        let row = (HEAD_SIZE as usize + 2048 + 64) / 8;
        words[row..row + 5].copy_from_slice(&[9, 8, 100, 2, 40]);
        words
    }

    #[test]
    fn a_page_is_read() {
        let words = words();
        let load = |at: u64| words[at as usize / 8];
        let head = Head::read(8192, load).unwrap();
        assert_eq!(
            (head.kind, head.vcpus, head.size()),
            (PageKind::Kernel, 2, 8192)
        );
        assert_eq!(head.reason(0, load), Some(Reason::IO));
        assert_eq!(head.reason(1, load), Some(Reason::CPUID));
        assert_eq!((head.reason(2, load), head.reason(3, load)), (None, None));
        let row = head.row(1, 1, load);
        assert_eq!((row.exits, row.timed, row.own_timed), (9, 8, 2));
        assert_eq!(head.cycles_of_times(&row), 150 + 100);
        assert_eq!(head.exits(1, 1, load), 9);
        assert_eq!((head.exits(2, 1, load), head.exits(1, 3, load)), (0, 0));
        assert_eq!(head.row(2, 0, load), Row::default());
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let read = |change: &dyn Fn(&mut [u64; 1024]), size| {
            let mut words = words();
            change(&mut words);
            Head::read(size, |at| words[at as usize / 8])
        };
        assert_eq!(read(&|w| w[0] = 1, 8192), Err(BadPage::NoPage));
        assert_eq!(read(&|_| (), 4095), Err(BadPage::NoPage));
        assert_eq!(read(&|_| (), 8184), Err(BadPage::Shape));
        assert_eq!(
            read(&|w| w[1] = 2 | 1 << 32, 8192),
            Err(BadPage::Version(2))
        );
        assert_eq!(read(&|w| w[1] = 1 | 3 << 32, 8192), Err(BadPage::Kind(3)));
        for (word, value) in [
            (head::VCPUS, 0),
            (head::VCPUS, 255),
            (head::VCPUS, u64::MAX),
            (head::RECORDS, 64),
            (head::RECORDS, u64::MAX - 7),
            (head::RECORD_STRIDE, 2049),
            (head::RECORD_STRIDE, 1 << 63),
            (head::ROWS, 33),
            (head::ROWS, u64::MAX),
            (head::ROW_STRIDE, 48),
            (head::ROW_STRIDE, !7),
        ] {
            let outcome = read(&|w| w[word / 8] = value, 8192);
            assert_eq!(outcome, Err(BadPage::Shape), "{word} = {value:#x}");
        }
    }
}
