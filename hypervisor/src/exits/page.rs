//! The exit page ([`exit_abi::page`]): the guest's counters as memory that it can only read.
//!
//! Where the kernel ledger counts exits, its records themselves are shown, as the kernel writes
//! them. Elsewhere the VMM writes rows of the same shape, each vCPU's by its own thread: an exit that
//! reaches it at once, and what only KVM's statistics know at the vCPU's milestones and queries. On
//! the exit path that is a few stores: no system call, no allocation, no lock.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, Release};

use exit_abi::page::{
    ADDRESS, HEAD_SIZE, MAGIC, NO_REASON, PageKind, REASONS, ROWS_MAX, TIMED, VCPUS_MAX, VERSION,
    head, row,
};
use exit_abi::reason::{COUNT, Reason};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VmFd};
use vm_memory::{MmapRegion, VolatileMemory};

use super::books::Figures;
use super::ledger::{Entry, Owner};
use super::source::kernel::{KernelLedger, Records, slots};
use crate::layout;
use crate::memory::MemoryError;

/// KVM's slots of the head and of the records: behind those of RAM.
const HEAD_SLOT: u32 = 16;
const RECORDS_SLOT: u32 = 17;

/// Rows of a record that the VMM writes: one per reason, and one without.
const ROWS: usize = COUNT + 1;
/// From one of them to the next: a cache line.
const ROW_STRIDE: usize = 64;
/// From one record to the next: whole pages.
const STRIDE: usize = (ROWS * ROW_STRIDE).next_multiple_of(4096);

/// One TSC cycle per unit of time.
const CYCLES: u64 = 1 << 32;

const _: () = assert!(ROWS <= ROWS_MAX && slots::SLOTS <= ROWS_MAX);
const _: () = assert!(row::SIZE <= ROW_STRIDE && row::SIZE <= Records::ROW_STRIDE);
const _: () = assert!(crate::config::MAX_CPUS as u64 <= VCPUS_MAX);
const _: () = {
    let (vmm, kernel) = (STRIDE as u64, Records::STRIDE as u64);
    let most = if vmm > kernel { vmm } else { kernel };
    assert!(ADDRESS + HEAD_SIZE + VCPUS_MAX * most <= layout::EXIT_PAGE_END);
};

/// Memory of ours, word by word.
#[derive(Debug)]
struct Words(MmapRegion);

impl Words {
    /// Zeros. Shared, so that what is written later never moves to another page of the host's: the
    /// guest would exit to find it.
    fn map(size: usize) -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        MmapRegion::build(None, size, libc::PROT_READ | libc::PROT_WRITE, flags)
            .map(Self)
            .map_err(io::Error::other)
    }

    /// The word at a multiple of 8 below the size.
    fn word(&self, offset: usize) -> Option<&AtomicU64> {
        self.0.get_atomic_ref(offset).ok()
    }

    fn set(&self, offset: usize, value: u64) {
        if let Some(word) = self.word(offset) {
            word.store(value, Relaxed);
        }
    }

    /// From now on nobody writes it, we neither.
    fn seal(self) -> io::Result<Self> {
        // SAFETY: the range is exactly that of the mapping, which is ours; nothing refers to it as
        // memory that can be written, for `self` is owned here and `set` is not called again.
        let result =
            unsafe { libc::mprotect(self.0.as_ptr().cast(), self.0.size(), libc::PROT_READ) };
        match result {
            0 => Ok(self),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Who writes the records, and where they are.
#[derive(Debug)]
enum Writer {
    Kernel(Arc<KernelLedger>),
    Vmm(Words),
}

/// An exit page. It must outlive the VM that it is given to.
#[derive(Debug)]
pub struct ExitPage {
    head: Words,
    writer: Writer,
    vcpus: u32,
}

/// What the head says, besides who writes.
struct Shape {
    kind: PageKind,
    stride: usize,
    rows: usize,
    row_stride: usize,
    rate: u64,
    timed: bool,
}

impl ExitPage {
    /// The kernel ledger's records. They should be fresh: see [`KernelLedger::clear`].
    pub fn of_kernel(ledger: Arc<KernelLedger>) -> io::Result<Self> {
        let records = ledger.records();
        let shape = Shape {
            kind: PageKind::Kernel,
            stride: Records::STRIDE,
            rows: slots::SLOTS,
            row_stride: Records::ROW_STRIDE,
            rate: records.rate.fraction(),
            timed: records.timed,
        };
        let kvm = ledger.kvm();
        let vcpus = ledger.vcpus();
        let head = make_head(&shape, vcpus, |row| slots::describe(kvm, row).reason)?;
        Ok(Self {
            head,
            writer: Writer::Kernel(ledger),
            vcpus,
        })
    }

    /// Records that the VMM writes.
    pub fn of_vmm(vcpus: u32) -> io::Result<Self> {
        let shape = Shape {
            kind: PageKind::Vmm,
            stride: STRIDE,
            rows: ROWS,
            row_stride: ROW_STRIDE,
            rate: CYCLES,
            timed: true,
        };
        let reason = |row| u32::try_from(row).ok().and_then(Reason::new);
        let head = make_head(&shape, vcpus, reason)?;
        let records = Words::map(vcpus as usize * STRIDE)?;
        for vcpu in 0..vcpus as usize {
            for row in 0..ROWS {
                records.set(vcpu * STRIDE + row * ROW_STRIDE + row::MIN, u64::MAX);
            }
        }
        Ok(Self {
            head,
            writer: Writer::Vmm(records),
            vcpus,
        })
    }

    /// Who writes it.
    pub fn kind(&self) -> PageKind {
        match self.writer {
            Writer::Kernel(_) => PageKind::Kernel,
            Writer::Vmm(_) => PageKind::Vmm,
        }
    }

    /// Size, head and records, in bytes.
    pub fn size(&self) -> u64 {
        HEAD_SIZE + self.records().1 as u64
    }

    /// Where in the host's memory the records are, and their size.
    fn records(&self) -> (u64, usize) {
        match &self.writer {
            Writer::Kernel(ledger) => {
                let words = ledger.records().words;
                (words.as_ptr() as u64, size_of_val(words))
            }
            Writer::Vmm(words) => (words.0.as_ptr() as u64, words.0.size()),
        }
    }

    /// Whether this KVM can give a guest memory that it cannot write.
    pub fn is_possible(vm: &VmFd) -> bool {
        vm.check_extension(Cap::ReadonlyMem)
    }

    /// Gives it to a VM.
    pub fn give_to_kvm(&self, vm: &VmFd) -> Result<(), MemoryError> {
        let head = (self.head.0.as_ptr() as u64, HEAD_SIZE as usize);
        let places = [
            (HEAD_SLOT, ADDRESS, head),
            (RECORDS_SLOT, ADDRESS + HEAD_SIZE, self.records()),
        ];
        for (slot, address, (host, size)) in places {
            let region = kvm_userspace_memory_region {
                slot,
                flags: KVM_MEM_READONLY,
                guest_phys_addr: address,
                memory_size: size as u64,
                userspace_addr: host,
            };
            // SAFETY: the mapping is `size` bytes long from `host` on, whole pages that hold nothing
            // else, and lives in `self`, which the VM's owner keeps until the VM is gone. The guest
            // cannot write it. The slots lie in the device hole, where RAM has none.
            unsafe { vm.set_user_memory_region(region) }
                .map_err(|e| MemoryError::Slot(address, e.into()))?;
        }
        Ok(())
    }

    /// A number of a row that the VMM writes.
    fn number(&self, vcpu: usize, row: usize, number: usize) -> Option<&AtomicU64> {
        match &self.writer {
            Writer::Vmm(words) if vcpu < self.vcpus as usize => {
                words.word(vcpu * STRIDE + row * ROW_STRIDE + number)
            }
            _ => None,
        }
    }
}

/// Makes a head; `reason` says which one a row has.
fn make_head(
    shape: &Shape,
    vcpus: u32,
    reason: impl Fn(usize) -> Option<Reason>,
) -> io::Result<Words> {
    let page = Words::map(HEAD_SIZE as usize)?;
    for (offset, value) in [
        (head::MAGIC, MAGIC),
        (
            head::VERSION_AND_KIND,
            u64::from(VERSION) | u64::from(shape.kind.number()) << 32,
        ),
        (head::VCPUS, vcpus.into()),
        (head::RECORDS, HEAD_SIZE),
        (head::RECORD_STRIDE, shape.stride as u64),
        (head::ROWS, shape.rows as u64),
        (head::ROW_STRIDE, shape.row_stride as u64),
        (head::RATE, shape.rate),
        (head::FLAGS, if shape.timed { TIMED } else { 0 }),
    ] {
        page.set(offset, value);
    }
    let mut reasons = [NO_REASON; ROWS_MAX];
    for (row, byte) in reasons.iter_mut().enumerate().take(shape.rows) {
        *byte = reason(row).map_or(NO_REASON, Reason::number);
    }
    let (words, _) = reasons.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        page.set(REASONS + i * 8, u64::from_le_bytes(*word));
    }
    page.seal()
}

/// What a vCPU's own thread writes its record by. Nothing to do where the kernel does.
#[derive(Debug)]
pub struct Recorder {
    page: Option<Arc<ExitPage>>,
    vcpu: usize,
}

impl Recorder {
    /// A vCPU's; only its own thread may use it.
    pub fn new(page: Option<&Arc<ExitPage>>, vcpu: usize) -> Self {
        let ours = page.filter(|page| page.kind() == PageKind::Vmm);
        Self {
            page: ours.cloned(),
            vcpu,
        }
    }

    fn number(&self, row: usize, number: usize) -> Option<&AtomicU64> {
        self.page.as_deref()?.number(self.vcpu, row, number)
    }

    fn add(&self, row: usize, number: usize, n: u64) {
        if let Some(word) = self.number(row, number) {
            word.store(word.load(Relaxed).wrapping_add(n), Release);
        }
    }

    /// Lets a number grow to this.
    fn raise(&self, row: usize, number: usize, to: u64) {
        if let Some(word) = self.number(row, number)
            && word.load(Relaxed) < to
        {
            word.store(to, Release);
        }
    }

    /// Counts an exit, as [`super::ledger::Ledger::count`] does.
    pub fn count(&self, entry: Entry) {
        if let Some(row) = row_of(entry) {
            self.add(row, row::EXITS, 1);
        }
    }

    /// Books its cycles, as [`super::ledger::Ledger::time`] does: what bounds a number is written
    /// before it.
    pub fn time(&self, entry: Entry, owner: Owner, cycles: u64) {
        let Entry::Reason(reason) = entry else { return };
        let row = reason.index();
        self.add(row, row::TIMED, 1);
        self.add(row, row::TIME, cycles);
        match owner {
            Owner::Own => {
                self.add(row, row::OWN_TIMED, 1);
                self.add(row, row::OWN_TIME, cycles);
            }
            Owner::Guest => {
                if let Some(shortest) = self.number(row, row::MIN)
                    && cycles < shortest.load(Relaxed)
                {
                    shortest.store(cycles, Release);
                }
                self.raise(row, row::MAX, cycles);
            }
        }
    }

    /// Takes in what the books say of the vCPU, if it is this one: what only KVM's statistics know is
    /// added.
    pub fn refresh(&self, vcpu: usize, figures: &Figures) {
        if self.page.is_none() || vcpu != self.vcpu {
            return;
        }
        for (reason, line) in figures.lines.iter() {
            self.raise(reason, row::EXITS, line.row.exits);
        }
        // What had no reason may have found it since: this row alone can shrink, so that the sum is
        // the books' total.
        if let Some(unnamed) = self.number(COUNT, row::EXITS) {
            unnamed.store(figures.other.saturating_add(figures.residual), Release);
        }
    }
}

/// The row of an exit.
fn row_of(entry: Entry) -> Option<usize> {
    match entry {
        Entry::Reason(reason) => Some(reason.index()),
        Entry::Other => Some(COUNT),
        Entry::NotAnExit => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exits::books::{Books, Scratch, VcpuBook};
    use crate::exits::ledger::Ledger;
    use crate::exits::rate::Rate;
    use crate::exits::source::run::RunSource;
    use crate::exits::source::scripted::Scripted;
    use crate::exits::source::{Sample, Source, SourceKind};
    use crate::profile::KvmKind;
    use exit_abi::page::{Head, Row};
    use proptest::prelude::*;

    /// Loads a word as a guest does.
    fn load(page: &ExitPage) -> impl Fn(u64) -> u64 {
        move |at| {
            let at = at as usize;
            let word = match (at.checked_sub(HEAD_SIZE as usize), &page.writer) {
                (None, _) => page.head.word(at),
                (Some(at), Writer::Vmm(words)) => words.word(at),
                (Some(at), Writer::Kernel(ledger)) => ledger.records().words.get(at / 8),
            };
            word.unwrap().load(Relaxed)
        }
    }

    fn head(page: &ExitPage) -> Head {
        Head::read(page.size(), load(page)).unwrap()
    }

    #[test]
    fn a_fresh_page_is_read() {
        for vcpus in [1, 3, crate::config::MAX_CPUS] {
            let page = ExitPage::of_vmm(vcpus).unwrap();
            let head = head(&page);
            assert_eq!((head.kind, head.timed), (PageKind::Vmm, true));
            assert_eq!((head.vcpus, head.size()), (vcpus.into(), page.size()));
            assert_eq!(page.size() % 4096, 0);
            for row in 0..head.rows {
                let expected = Reason::new(row as u32);
                assert_eq!(head.reason(row, load(&page)), expected);
                for vcpu in [0, u64::from(vcpus) - 1] {
                    assert_eq!(head.row(vcpu, row, load(&page)), Row::default());
                    assert_eq!(
                        page.number(vcpu as usize, row as usize, row::MIN)
                            .unwrap()
                            .load(Relaxed),
                        u64::MAX
                    );
                }
            }
            assert_eq!(head.rows, COUNT as u64 + 1);
            assert_eq!(head.cycles(12345), 12345);
        }
    }

    #[test]
    fn the_kernel_s_records_have_their_reasons() {
        use crate::exits::source::kernel::{Level, Options};
        let options = |kvm, level| Options {
            level,
            kvm,
            memory: 0,
            vcpus: 3,
            tracefs: None,
        };
        for (kvm, level) in [
            (KvmKind::Amd, Level::Counts),
            (KvmKind::Intel, Level::Cycles),
        ] {
            // Whoever may not open one has skipped what tests it, aloud.
            let Ok(ledger) = KernelLedger::open(&options(kvm, level)) else {
                return;
            };
            let page = ExitPage::of_kernel(Arc::new(ledger)).unwrap();
            let head = head(&page);
            assert_eq!(head.kind, PageKind::Kernel);
            assert_eq!(head.timed, level > Level::Counts);
            assert_eq!((head.vcpus, head.size()), (3, page.size()));
            for row in 0..head.rows {
                let expected = slots::describe(kvm, row as usize).reason;
                assert_eq!(head.reason(row, load(&page)), expected, "row {row:#x}");
                assert_eq!(head.row(2, row, load(&page)), Row::default());
            }
            let nanos = 987_654_321;
            assert_eq!(head.cycles(nanos), Rate::measured().cycles(nanos));
            // Nothing of the VMM's writes there.
            let recorder = Recorder::new(Some(&Arc::new(page)), 0);
            assert!(recorder.page.is_none());
        }
    }

    /// A vCPU whose KVM tells this total, and so many HLTs.
    fn books(ledger: &Arc<Ledger>, total: u64, halts: u64) -> Books {
        let mut sample = Sample {
            total: Some(total),
            ..Sample::default()
        };
        sample.rows[Reason::HLT.index()].exits = halts;
        let stats = Scripted {
            kind: SourceKind::Stats,
            sample,
            exact: vec![Reason::HLT],
        };
        let sources: Vec<Box<dyn Source>> =
            vec![Box::new(RunSource(ledger.clone())), Box::new(stats)];
        let book = VcpuBook {
            ledger: ledger.clone(),
            sources,
        };
        Books::new(vec![book], KvmKind::Amd)
    }

    /// What the page has of a reason, or of none.
    fn exits(page: &ExitPage, reason: Option<Reason>) -> u64 {
        let head = head(page);
        let rows = (0..head.rows).filter(|&row| head.reason(row, load(page)) == reason);
        rows.map(|row| head.exits(0, row, load(page))).sum()
    }

    fn total(page: &ExitPage) -> u64 {
        let head = head(page);
        (0..head.rows)
            .map(|row| head.exits(0, row, load(page)))
            .sum()
    }

    #[test]
    fn the_vmm_s_exits_show_at_once_and_the_rest_when_it_is_known() {
        let ledger = Arc::new(Ledger::default());
        let page = Arc::new(ExitPage::of_vmm(2).unwrap());
        let recorder = Recorder::new(Some(&page), 0);
        let io = Entry::Reason(Reason::IO);
        for (entry, owner) in [
            (io, Owner::Guest),
            (io, Owner::Own),
            (Entry::Other, Owner::Guest),
            (Entry::NotAnExit, Owner::Guest),
        ] {
            ledger.count(entry, owner);
            recorder.count(entry);
            ledger.time(entry, owner, 70);
            recorder.time(entry, owner, 70);
        }
        assert_eq!((exits(&page, Some(Reason::IO)), exits(&page, None)), (2, 1));
        let row = head(&page).row(0, Reason::IO.index() as u64, load(&page));
        let expected = Row {
            exits: 2,
            timed: 2,
            time: 140,
            own_timed: 1,
            own_time: 70,
        };
        assert_eq!(row, expected);
        for extreme in [row::MIN, row::MAX] {
            let word = page.number(0, Reason::IO.index(), extreme).unwrap();
            assert_eq!(word.load(Relaxed), 70, "the guest's");
        }
        assert_eq!(
            head(&page).row(1, Reason::IO.index() as u64, load(&page)),
            Row::default()
        );

        // KVM knows of more: 5 HLTs and 92 exits of unknown reasons.
        let mut scratch = Scratch::default();
        books(&ledger, 100, 5).all_by(&mut scratch, |vcpu, figures| {
            assert_eq!(vcpu, 0);
            recorder.refresh(vcpu, figures);
        });
        assert_eq!(exits(&page, Some(Reason::HLT)), 5);
        assert_eq!(exits(&page, None), 93);
        assert_eq!(total(&page), scratch.figures.known());
        // From there it goes on at once.
        ledger.count(Entry::Reason(Reason::HLT), Owner::Guest);
        recorder.count(Entry::Reason(Reason::HLT));
        assert_eq!((exits(&page, Some(Reason::HLT)), total(&page)), (6, 101));
        // What had no reason finds it: it counts once.
        books(&ledger, 101, 40).all_by(&mut scratch, |vcpu, figures| {
            recorder.refresh(vcpu, figures);
        });
        let halts = exits(&page, Some(Reason::HLT));
        assert_eq!((halts, total(&page)), (40, 101));
        assert_eq!(total(&page), scratch.figures.known());
        // A reading that knows less than the last takes nothing back of what has a reason.
        books(&ledger, 101, 0).vcpu(0, &mut scratch);
        recorder.refresh(0, &scratch.figures);
        assert_eq!(exits(&page, Some(Reason::HLT)), 40);
        // Nor does another vCPU's.
        books(&ledger, 1000, 100).vcpu(0, &mut scratch);
        let before = total(&page);
        recorder.refresh(1, &scratch.figures);
        assert_eq!(total(&page), before);
    }

    #[test]
    fn without_a_page_nothing_is_written() {
        let recorder = Recorder::new(None, 0);
        recorder.count(Entry::Other);
        recorder.time(Entry::Reason(Reason::IO), Owner::Own, 1);
        recorder.refresh(0, &Figures::default());
        // Nor for a vCPU that has no record.
        let page = Arc::new(ExitPage::of_vmm(1).unwrap());
        let beyond = Recorder::new(Some(&page), 1);
        beyond.count(Entry::Other);
        assert_eq!(total(&page), 0);
    }

    proptest! {
        /// Whatever is booked, the page has what the ledger has.
        #[test]
        fn a_record_is_the_ledger(booked in prop::collection::vec((0..COUNT as u32, any::<bool>(), any::<u32>(), any::<bool>()), 0..200)) {
            let ledger = Arc::new(Ledger::default());
            let page = Arc::new(ExitPage::of_vmm(1).unwrap());
            let recorder = Recorder::new(Some(&page), 0);
            for (reason, own, cycles, refresh) in booked {
                let owner = if own { Owner::Own } else { Owner::Guest };
                let entry = Entry::Reason(Reason::new(reason).unwrap());
                ledger.count(entry, owner);
                recorder.count(entry);
                ledger.time(entry, owner, cycles.into());
                recorder.time(entry, owner, cycles.into());
                if refresh {
                    let mut scratch = Scratch::default();
                    books(&ledger, 0, 0).vcpu(0, &mut scratch);
                    recorder.refresh(0, &scratch.figures);
                }
            }
            let head = head(&page);
            for reason in Reason::all() {
                let (row, expected) = (head.row(0, reason.index() as u64, load(&page)), ledger.row(reason));
                prop_assert_eq!(row.exits, expected.exits);
                prop_assert_eq!((row.timed, row.time), (expected.timed, expected.cycles));
                prop_assert_eq!((row.own_timed, row.own_time), (expected.own_timed, expected.own_cycles));
                prop_assert_eq!(head.cycles_of_times(&row), expected.cycles);
            }
        }
    }
}
