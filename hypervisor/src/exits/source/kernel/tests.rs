//! The programs, read and run: the very instructions that go on the tracepoints, run by hand on
//! records that a test makes up. Who may not use bpf() skips what needs it, and says so.

use std::io::Write;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use exit_abi::reason::Reason;

use super::asks::{self, Ask, AskKind, TimeDriven};
use super::asm::{Asm, Map, MapFds, Reg, Width};
use super::bpf::{ArrayMap, Kind, Mapping, Program};
use super::disasm::{FDS, disassemble};
use super::format::Field;
use super::layout::{self, Sizes, header, mark, row, thread};
use super::programs::{self, Event, ExitFields, Vm, enlisting};
use super::slots::{self, OTHER, SLOTS};
use super::{
    BUCKETS, EnlistError, KernelLedger, KernelLedgerError as Error, Level, Mark, Options,
    RawRecord, open,
};
use crate::profile::KvmKind;

const fn field(offset: usize, size: usize) -> Field {
    Field { offset, size }
}

/// kvm_exit's record as Linux 6.12 has it.
const EXIT: ExitFields = ExitFields {
    vcpu_id: field(56, 4),
    exit_reason: field(8, 4),
    info1: field(32, 8),
};
/// kvm_msr's arguments.
const MSR: Event = Event {
    direction: Some(field(0, 8)),
    unless: None,
    reasons: None,
    ask: Some((AskKind::MsrRead, field(8, 4))),
};
const EMULATED_MSR: Event = Event {
    reasons: Some((Reason::RDMSR, Reason::WRMSR)),
    ..MSR
};
const EMULATED_PIO: Event = Event {
    reasons: Some((Reason::IO, Reason::IO)),
    ask: Some((AskKind::PortIn, field(8, 4))),
    ..MSR
};
/// kvm_mmio's and kvm_cpuid's records.
const EMULATED_MMIO: Event = Event {
    direction: None,
    unless: Some((field(8, 4), 0)),
    reasons: Some((Reason::EPT_MISCONFIG, Reason::EPT_MISCONFIG)),
    ask: None,
};
const EMULATED_CPUID: Event = Event {
    direction: None,
    unless: None,
    reasons: Some((Reason::CPUID, Reason::CPUID)),
    ask: Some((AskKind::CpuidLeaf, field(8, 4))),
};

fn vm(tgid: u32, vcpus: u32) -> Vm {
    Vm {
        tgid,
        vcpus,
        sizes: Sizes::of(vcpus),
    }
}

#[test]
fn programs_read() {
    let vm = vm(4711, 3);
    let programs = [
        (
            "exit_svm_counts",
            programs::exit(&vm, KvmKind::Amd, Level::Counts, &EXIT),
        ),
        (
            "exit_svm_cycles",
            programs::exit(&vm, KvmKind::Amd, Level::Cycles, &EXIT),
        ),
        (
            "exit_vmx_cycles",
            programs::exit(&vm, KvmKind::Intel, Level::Cycles, &EXIT),
        ),
        ("entry_cycles", programs::entry(&vm, Level::Cycles)),
        ("entry_histogram", programs::entry(&vm, Level::Histogram)),
        ("msr", programs::event(&vm, &MSR)),
        ("emulated_pio", programs::event(&vm, &EMULATED_PIO)),
        ("emulated_mmio", programs::event(&vm, &EMULATED_MMIO)),
        ("enlist", programs::enlist(&vm)),
        ("whoami", programs::whoami()),
    ];
    for (name, program) in programs {
        let insns = program.assemble(&FDS).unwrap();
        insta::assert_snapshot!(name, disassemble(&insns));
    }
}

/// Says that a test cannot run here, in the words that `cargo xtask test` collects.
fn skip(name: &str, why: &str) {
    let line = format!("skipped: {name}: {why}\n");
    eprint!("{line}");
    if let Some(file) = std::env::var_os("EXITVISOR_SKIPPED") {
        let options = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(file);
        let _ = options.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// The maps, with nothing attached: programs run by hand.
struct Rig {
    vm: Vm,
    fds: MapFds,
    ledger: Mapping,
    marks: Mapping,
    asks: Mapping,
    histogram: Mapping,
    _maps: [ArrayMap; 4],
}

impl Rig {
    /// `None`, and the test is skipped, without the right to use bpf().
    fn new(test: &str, vcpus: u32) -> Option<Self> {
        let none = [-1; Map::ALL.len()];
        let whoami = programs::whoami().assemble(&none).unwrap();
        let whoami = match Program::load(Kind::RawTracepoint, &whoami) {
            Ok(program) => program,
            Err(error) => {
                skip(test, &format!("bpf(): {error}"));
                return None;
            }
        };
        let vm = vm(whoami.run(&[]).unwrap(), vcpus);
        let map = |size| ArrayMap::create(size).unwrap();
        let maps = [
            map(vm.sizes.ledger()),
            map(vm.sizes.marks()),
            map(vm.sizes.asks()),
            map(vm.sizes.histogram()),
        ];
        maps[0].fill(&open::fresh_records(vm.sizes)).unwrap();
        maps[2]
            .fill(&asks::fresh_block().repeat(vm.sizes.records))
            .unwrap();
        let mapping = |n: usize| maps[n].map(true).unwrap();
        Some(Self {
            vm,
            fds: std::array::from_fn(|n| maps[n].as_raw_fd()),
            ledger: mapping(0),
            marks: mapping(1),
            asks: mapping(2),
            histogram: mapping(3),
            _maps: maps,
        })
    }

    /// Loads a program; the verifier's whole log if it refuses.
    fn load(&self, asm: Asm) -> Program {
        let insns = asm.assemble(&self.fds).unwrap();
        Program::load(Kind::RawTracepoint, &insns).unwrap_or_else(|error| {
            let log = Program::complaint(Kind::RawTracepoint, &insns);
            panic!("{error}: {log}\n{}", disassemble(&insns));
        })
    }

    /// A number of a vCPU's record.
    fn record(&self, vcpu: u32, offset: usize) -> u64 {
        let offset = ((vcpu as usize) << layout::RECORD_SHIFT) + offset;
        self.ledger.words()[offset / 8].load(Acquire)
    }

    /// A number of a vCPU's header.
    fn header_word(&self, vcpu: u32, offset: usize) -> &std::sync::atomic::AtomicU64 {
        let first = self.vm.sizes.headers();
        let offset = first + ((vcpu as usize) << layout::HEADER_SHIFT) + offset;
        &self.ledger.words()[offset / 8]
    }

    fn header(&self, vcpu: u32, offset: usize) -> u64 {
        self.header_word(vcpu, offset).load(Acquire)
    }

    fn set_header(&self, vcpu: u32, offset: usize, value: u64) {
        self.header_word(vcpu, offset).store(value, Relaxed);
    }

    fn row(&self, vcpu: u32, slot: usize, field: usize) -> u64 {
        self.record(vcpu, (slot << layout::ROW_SHIFT) + field)
    }

    fn exits(&self, vcpu: u32) -> Vec<u64> {
        (0..SLOTS)
            .map(|slot| self.row(vcpu, slot, row::EXITS))
            .collect()
    }

    fn total(&self) -> u64 {
        (0..self.vm.vcpus).flat_map(|vcpu| self.exits(vcpu)).sum()
    }

    fn stray(&self) -> u64 {
        self.ledger.words()[self.vm.sizes.stray() / 8].load(Acquire)
    }

    fn block(&self, vcpu: u32) -> &[std::sync::atomic::AtomicU64] {
        &self.asks.words()[vcpu as usize * layout::ASK_BLOCK / 8..][..layout::ASK_BLOCK / 8]
    }

    fn enlist(&self, vcpu: u64, what: u64) -> u32 {
        self.load(programs::enlist(&self.vm))
            .run(&[vcpu, what])
            .unwrap()
    }

    fn mark(&self, vcpu: u32) -> &std::sync::atomic::AtomicU64 {
        &self.marks.words()[(vcpu as usize) << layout::MARK_SHIFT >> 3]
    }
}

/// A record of kvm_exit as [`EXIT`] has it.
fn exit_record(vcpu: u32, code: u32, info1: u64) -> [u64; 9] {
    [0, code.into(), 0, 0, info1, 0, 0, vcpu.into(), 0]
}

#[test]
fn every_svm_exit_is_counted_in_its_slot() {
    let Some(rig) = Rig::new("every_svm_exit_is_counted_in_its_slot", 1) else {
        return;
    };
    let wide = ExitFields {
        exit_reason: field(8, 8),
        ..EXIT
    };
    let program = |fields| rig.load(programs::exit(&rig.vm, KvmKind::Amd, Level::Counts, fields));
    let programs = [(program(&EXIT), false), (program(&wide), true)];
    let apic = (0..=0xFFF_u64)
        .step_by(8)
        .flat_map(|o| [o, slots::APIC_WRITE | o]);
    let infos: Vec<u64> = apic.chain([1, 8, 0x1_0000_000D, u64::MAX]).collect();
    let plain = (0..0x410).chain([0x500, 0x8000_0001, 0xF000_0000, 1 << 32, (1 << 32) + 0x7C]);
    let negative = (-6..0_i64).flat_map(|code| [code as u64, u64::from(code as u32)]);
    let mut expected = vec![0; SLOTS];
    for code in plain.chain(negative) {
        let infos = match code {
            0x402 => &infos[..],
            _ => &[0, 1, 8, u64::MAX],
        };
        for &info1 in infos {
            for (program, is_wide) in &programs {
                let seen = if *is_wide {
                    code
                } else {
                    u64::from(code as u32)
                };
                let mut record = exit_record(0, 0, info1);
                record[1] = seen;
                program.run(&record).unwrap();
                expected[slots::slot_of(KvmKind::Amd, seen, info1)] += 1;
            }
        }
    }
    assert_eq!(rig.exits(0), expected);
    assert!(expected.iter().all(|&n| n > 0));
    assert_eq!(rig.header(0, header::LAST_OTHER), -5_i64 as u64);
    assert_eq!(rig.stray(), 0);
}

#[test]
fn every_vmx_exit_is_counted_in_its_slot() {
    let Some(rig) = Rig::new("every_vmx_exit_is_counted_in_its_slot", 1) else {
        return;
    };
    let program = rig.load(programs::exit(
        &rig.vm,
        KvmKind::Intel,
        Level::Counts,
        &EXIT,
    ));
    let mut expected = vec![0; SLOTS];
    let mut failed = 0;
    for basic in (0..300).chain([0xFFFF]) {
        for flags in [0, 1 << 16, 1 << 26, 1 << 31, 0xFFFF << 16] {
            program.run(&exit_record(0, basic | flags, 0)).unwrap();
            expected[slots::slot_of(KvmKind::Intel, basic.into(), 0)] += 1;
            failed += u64::from(flags >> 31);
        }
    }
    assert_eq!(rig.exits(0), expected);
    assert_eq!(rig.header(0, header::FAILED), failed);
    assert_eq!(expected[OTHER], (300 - 128 + 1) * 5);
    assert_eq!(rig.header(0, header::LAST_OTHER), 0xFFFF);
}

#[test]
fn only_this_vm_is_counted() {
    let Some(rig) = Rig::new("only_this_vm_is_counted", 3) else {
        return;
    };
    let exit = |vm| rig.load(programs::exit(vm, KvmKind::Amd, Level::Cycles, &EXIT));
    let other = Vm {
        tgid: rig.vm.tgid + 1,
        ..rig.vm
    };
    exit(&other).run(&exit_record(1, 0x72, 0)).unwrap();
    assert_eq!((rig.total(), rig.stray()), (0, 0));
    let exit = exit(&rig.vm);
    for vcpu in 0..5 {
        exit.run(&exit_record(vcpu, 0x72, 0)).unwrap();
    }
    exit.run(&exit_record(u32::MAX, 0x72, 0)).unwrap();
    assert_eq!((rig.total(), rig.stray()), (3, 3));
    for vcpu in 0..3 {
        assert_eq!(rig.row(vcpu, 0x72, row::EXITS), 1);
    }
}

#[test]
fn an_entry_closes_the_open_exit() {
    let Some(rig) = Rig::new("an_entry_closes_the_open_exit", 3) else {
        return;
    };
    let exit = rig.load(programs::exit(&rig.vm, KvmKind::Amd, Level::Cycles, &EXIT));
    let entry = rig.load(programs::entry(&rig.vm, Level::Histogram));
    let cpuid = exit_record(2, 0x72, 0);
    let [timed, ns, own, own_ns, min, max] = [
        row::TIMED,
        row::NS,
        row::OWN_TIMED,
        row::OWN_NS,
        row::MIN_NS,
        row::MAX_NS,
    ]
    .map(|field| move |rig: &Rig| rig.row(2, 0x72, field));

    // Nobody knows whose thread this is.
    exit.run(&cpuid).unwrap();
    entry.run(&[]).unwrap();
    assert_eq!(timed(&rig), 0);
    // Enlisting forgets what was open.
    assert_eq!(rig.enlist(2, enlisting::ENLIST), enlisting::DONE);
    entry.run(&[]).unwrap();
    assert_eq!((timed(&rig), min(&rig)), (0, u64::MAX));

    exit.run(&cpuid).unwrap();
    assert_ne!(rig.header(2, header::OPEN_NS), header::CLOSED);
    entry.run(&[]).unwrap();
    entry.run(&[]).unwrap();
    assert_eq!(
        (timed(&rig), rig.header(2, header::OPEN_NS)),
        (1, header::CLOSED)
    );
    assert!(ns(&rig) > 0);
    assert_eq!((min(&rig), max(&rig)), (ns(&rig), ns(&rig)));

    // Our own, once.
    let guest = ns(&rig);
    rig.mark(2).store(mark::OWN_ONCE, Relaxed);
    entry.run(&[]).unwrap();
    assert_eq!(
        rig.mark(2).load(Relaxed),
        mark::OWN_ONCE,
        "nothing was open"
    );
    exit.run(&cpuid).unwrap();
    entry.run(&[]).unwrap();
    assert_eq!(rig.mark(2).load(Relaxed), mark::GUEST);
    assert_eq!((timed(&rig), own(&rig)), (2, 1));
    assert_eq!(own_ns(&rig), ns(&rig) - guest);
    assert_eq!((min(&rig), max(&rig)), (guest, guest), "the guest's only");

    // Our own, until cleared.
    rig.mark(2).store(mark::OWN, Relaxed);
    for _ in 0..3 {
        exit.run(&cpuid).unwrap();
        entry.run(&[]).unwrap();
    }
    assert_eq!((timed(&rig), own(&rig)), (5, 4));
    rig.mark(2).store(mark::GUEST, Relaxed);
    exit.run(&cpuid).unwrap();
    entry.run(&[]).unwrap();
    assert_eq!((timed(&rig), own(&rig)), (6, 4));
    assert!(min(&rig) <= max(&rig));

    // Another vCPU's mark is not ours.
    rig.mark(1).store(mark::OWN, Relaxed);
    exit.run(&exit_record(2, 0x7C, 1)).unwrap();
    entry.run(&[]).unwrap();
    assert_eq!(rig.row(2, slots::SVM_MSR_WRITE, row::TIMED), 1);
    assert_eq!(rig.row(2, slots::SVM_MSR_WRITE, row::OWN_TIMED), 0);

    // A clock that went back is no time.
    exit.run(&cpuid).unwrap();
    rig.set_header(2, header::OPEN_NS, u64::MAX / 2);
    entry.run(&[]).unwrap();
    assert_eq!((rig.row(2, 0x72, row::EXITS), timed(&rig)), (8, 6));

    let first = (2 << layout::HISTOGRAM_SHIFT) + (0x72 << layout::BUCKETS_SHIFT);
    let in_buckets = rig.histogram.words()[first / 8..][..BUCKETS].iter();
    assert_eq!(
        in_buckets.map(|bucket| bucket.load(Relaxed)).sum::<u64>(),
        6
    );
    let all = rig.histogram.words().iter();
    assert_eq!(all.map(|bucket| bucket.load(Relaxed)).sum::<u64>(), 7);
}

#[test]
fn durations_fall_into_the_bucket_of_their_logarithm() {
    let Some(rig) = Rig::new("durations_fall_into_the_bucket_of_their_logarithm", 2) else {
        return;
    };
    let place = layout::RECORD + (OTHER << layout::ROW_SHIFT);
    let mut asm = Asm::new();
    asm.load(Width::D, Reg::R0, Reg::R1, 0);
    asm.map_value(Reg::R2, Map::Ledger, place);
    programs::bucket(&mut asm, &rig.vm);
    asm.finish_with(0);
    let program = rig.load(asm);
    let mut expected = [0; BUCKETS];
    let edges = (0..64).flat_map(|n| [(1_u64 << n) - 1, 1 << n, (1 << n) + 1, 3 << n >> 1]);
    for ns in edges.chain([u64::MAX]) {
        program.run(&[ns]).unwrap();
        expected[(ns.max(1).ilog2() as usize).min(BUCKETS - 1)] += 1;
    }
    let first = (1 << layout::HISTOGRAM_SHIFT) + (OTHER << layout::BUCKETS_SHIFT);
    let counted: [u64; BUCKETS] =
        std::array::from_fn(|n| rig.histogram.words()[first / 8 + n].load(Relaxed));
    assert_eq!(counted, expected);
}

#[test]
fn threads_come_and_go() {
    let Some(rig) = Rig::new("threads_come_and_go", 3) else {
        return;
    };
    assert_eq!(rig.enlist(3, enlisting::ENLIST), enlisting::NO_SUCH_VCPU);
    assert_eq!(
        rig.enlist(u64::MAX, enlisting::ENLIST),
        enlisting::NO_SUCH_VCPU
    );
    assert_eq!(rig.enlist(1, enlisting::ENLIST), enlisting::DONE);
    let id = rig.header(1, header::THREAD);
    assert_eq!(id >> 32, u64::from(rig.vm.tgid));
    let entry = rig.vm.sizes.threads() + ((id as usize % layout::THREADS) << layout::THREAD_SHIFT);
    let word = |offset: usize| &rig.ledger.words()[(entry + offset) / 8];
    assert_eq!(word(thread::ID).load(Relaxed), id);
    let place = (1_u64 << 32) | (1 << layout::HEADER_SHIFT);
    assert_eq!(word(thread::HEADER).load(Relaxed), place);

    // Again, and as another vCPU's: the former one's delisting leaves it alone.
    assert_eq!(rig.enlist(1, enlisting::ENLIST), enlisting::DONE);
    assert_eq!(rig.enlist(2, enlisting::ENLIST), enlisting::DONE);
    assert_eq!(rig.enlist(1, enlisting::DELIST), enlisting::DONE);
    assert_eq!(word(thread::ID).load(Relaxed), id);
    assert_eq!(rig.enlist(2, enlisting::DELIST), enlisting::DONE);
    assert_eq!(word(thread::ID).load(Relaxed), 0);
    assert_eq!(rig.header(2, header::THREAD), 0);

    // A thread whose id differs by the table's length is in the way until it is delisted.
    let other = id + layout::THREADS as u64;
    word(thread::ID).store(other, Relaxed);
    word(thread::HEADER).store(0, Relaxed);
    rig.set_header(0, header::THREAD, other);
    assert_eq!(rig.enlist(1, enlisting::ENLIST), enlisting::COLLISION);
    assert_eq!(rig.enlist(0, enlisting::DELIST), enlisting::DONE);
    assert_eq!(rig.enlist(1, enlisting::ENLIST), enlisting::DONE);
    assert_eq!(word(thread::ID).load(Relaxed), id);
}

#[test]
fn a_record_is_cleared_and_no_other() {
    let Some(rig) = Rig::new("a_record_is_cleared_and_no_other", 3) else {
        return;
    };
    let fresh: Vec<u64> = open::fresh_records(rig.vm.sizes);
    let exit = rig.load(programs::exit(
        &rig.vm,
        KvmKind::Intel,
        Level::Cycles,
        &EXIT,
    ));
    let entry = rig.load(programs::entry(&rig.vm, Level::Cycles));
    for vcpu in 0..3 {
        assert_eq!(rig.enlist(vcpu.into(), enlisting::ENLIST), enlisting::DONE);
        for slot in (0..300).chain([1 << 31]) {
            rig.mark(vcpu).store(mark::OWN_ONCE, Relaxed);
            exit.run(&exit_record(vcpu, slot, 0)).unwrap();
            entry.run(&[]).unwrap();
        }
        exit.run(&exit_record(vcpu, 0, 0)).unwrap();
    }
    let words = || -> Vec<u64> {
        let all = rig.ledger.words().iter();
        all.map(|word| word.load(Acquire)).collect()
    };
    let before = words();
    assert_eq!(rig.enlist(3, enlisting::CLEAR), enlisting::NO_SUCH_VCPU);
    assert_eq!(words(), before);
    assert_eq!(rig.enlist(1, enlisting::CLEAR), enlisting::DONE);
    let after = words();
    let range = |vcpu: usize, first: usize, shift: u32| {
        (first + (vcpu << shift)) / 8..(first + ((vcpu + 1) << shift)) / 8
    };
    for vcpu in 0..3 {
        let record = range(vcpu, 0, layout::RECORD_SHIFT);
        let header = range(vcpu, rig.vm.sizes.headers(), layout::HEADER_SHIFT);
        for part in [record, header] {
            assert_ne!(before[part.clone()], fresh[part.clone()]);
            let expected = if vcpu == 1 { &fresh } else { &before };
            // What is open: the row stays noted, and nothing looks at it.
            let open = rig.vm.sizes.headers() / 8 + (vcpu << layout::HEADER_SHIFT) / 8;
            let open = open + header::OPEN_ROW / 8;
            let differs = part.filter(|&at| at != open && after[at] != expected[at]);
            assert_eq!(differs.collect::<Vec<_>>(), [0_usize; 0], "vCPU {vcpu}");
        }
    }
}

#[test]
fn what_a_guest_is_shown_is_rows_alone() {
    let Some(rig) = Rig::new("what_a_guest_is_shown_is_rows_alone", 2) else {
        return;
    };
    assert_eq!(rig.enlist(1, enlisting::ENLIST), enlisting::DONE);
    let exit = rig.load(programs::exit(&rig.vm, KvmKind::Amd, Level::Cycles, &EXIT));
    let entry = rig.load(programs::entry(&rig.vm, Level::Cycles));
    for code in [0x72, 0x999] {
        exit.run(&exit_record(1, code, 0)).unwrap();
        entry.run(&[]).unwrap();
        exit.run(&exit_record(1, code, 0)).unwrap();
    }
    let shown = &rig.ledger.words()[..rig.vm.sizes.headers() / 8];
    for (at, word) in shown.iter().enumerate() {
        let value = word.load(Acquire);
        let (slot, number) = (
            at * 8 % layout::RECORD / (1 << layout::ROW_SHIFT),
            at * 8 % (1 << layout::ROW_SHIFT),
        );
        let counts = at * 8 / layout::RECORD == 1 && [0x72, OTHER].contains(&slot);
        match number {
            // Two exits, of which one is closed, and its nanoseconds.
            _ if counts && number < row::OWN_TIMED => assert!(value > 0 && value < 1 << 40),
            row::MIN_NS | row::MAX_NS if counts => assert!(value < 1 << 40),
            row::MIN_NS if slot < SLOTS => assert_eq!(value, u64::MAX),
            _ => assert_eq!(value, 0, "slot {slot:#x}, number {number}"),
        }
    }
}

#[test]
fn asks_are_counted_each_by_its_index() {
    let Some(rig) = Rig::new("asks_are_counted_each_by_its_index", 2) else {
        return;
    };
    let msr = rig.load(programs::event(&rig.vm, &MSR));
    let arguments = |write: u64, ecx: u32| [write, ecx.into()];
    // Not enlisted: ours all the same, so it is not passed over in silence.
    msr.run(&arguments(1, 0x6E0)).unwrap();
    assert_eq!((rig.stray(), asks::collect(rig.block(1)).len()), (1, 0));
    assert_eq!(rig.enlist(1, enlisting::ENLIST), enlisting::DONE);
    for (write, ecx, times) in [
        (1, 0x6E0, 5),
        (0, 0x6E0, 2),
        (1, 0x80B, 3),
        (0, 0xC000_0080, 1),
    ] {
        for _ in 0..times {
            msr.run(&arguments(write, ecx)).unwrap();
        }
    }
    let ask = |kind, index, count| Ask {
        kind,
        index: Some(index),
        count,
    };
    let expected = [
        ask(AskKind::MsrRead, 0x6E0, 2),
        ask(AskKind::MsrRead, 0xC000_0080, 1),
        ask(AskKind::MsrWrite, 0x6E0, 5),
        ask(AskKind::MsrWrite, 0x80B, 3),
    ];
    assert_eq!(asks::collect(rig.block(1)), expected);
    assert_eq!(asks::collect(rig.block(0)), []);

    // More than there is room for: counted, by kind; what is in the table goes on exactly.
    let pio = rig.load(programs::event(&rig.vm, &EMULATED_PIO));
    for port in 0..4000_u32 {
        pio.run(&arguments(1, port)).unwrap();
    }
    pio.run(&arguments(1, 0x40)).unwrap();
    msr.run(&arguments(1, 0x6E0)).unwrap();
    let found = asks::collect(rig.block(1));
    let out = found.iter().filter(|ask| ask.kind == AskKind::PortOut);
    assert_eq!(out.map(|ask| ask.count).sum::<u64>(), 4001);
    let overflow = found.iter().find(|ask| ask.index.is_none()).unwrap();
    assert!((2900..3400).contains(&overflow.count), "{overflow:?}");
    let expected = TimeDriven {
        tsc_deadline: 6,
        x2apic_eoi: 3,
        pic: 4,
        pit: 5,
    };
    assert_eq!(TimeDriven::read(rig.block(1)), expected);
    assert_eq!(rig.row(1, 30, row::EXITS), 4001);
    assert_eq!(rig.stray(), 1);
}

#[test]
fn emulated_events_are_counted_as_their_reasons() {
    let Some(rig) = Rig::new("emulated_events_are_counted_as_their_reasons", 1) else {
        return;
    };
    assert_eq!(rig.enlist(0, enlisting::ENLIST), enlisting::DONE);
    let load = |event| rig.load(programs::event(&rig.vm, event));
    let (msr, mmio, cpuid) = (
        load(&EMULATED_MSR),
        load(&EMULATED_MMIO),
        load(&EMULATED_CPUID),
    );
    for _ in 0..3 {
        msr.run(&[1, 0x1B]).unwrap();
    }
    msr.run(&[0, 0x1B]).unwrap();
    // Not what kvm_msr is taken for: a pointer, say.
    msr.run(&[0xFFFF_8880_0000_0001, 0x1B]).unwrap();
    assert_eq!(rig.stray(), 1);
    for kind in [0, 1, 2, 0, 1] {
        mmio.run(&[0, kind]).unwrap();
    }
    for leaf in [1, 0x4000_0000, 1] {
        cpuid.run(&[0, leaf]).unwrap();
    }
    let exits = rig.exits(0);
    assert_eq!((exits[31], exits[32], exits[49], exits[10]), (1, 3, 3, 3));
    assert_eq!(exits.iter().sum::<u64>(), 10);
    let asked = asks::collect(rig.block(0));
    let leaf_1 = Ask {
        kind: AskKind::CpuidLeaf,
        index: Some(1),
        count: 2,
    };
    assert!(asked.contains(&leaf_1), "{asked:?}");
}

#[test]
fn ledgers_open_and_know_nothing_yet() {
    const NAME: &str = "ledgers_open_and_know_nothing_yet";
    let kinds = [KvmKind::Amd, KvmKind::Intel, KvmKind::Software];
    for (kvm, level) in kinds.into_iter().flat_map(|k| Level::ALL.map(|l| (k, l))) {
        let options = Options {
            level,
            kvm,
            vcpus: 3,
            tracefs: None,
        };
        let ledger = match KernelLedger::open(&options) {
            Ok(ledger) => ledger,
            // A program or a map that the kernel refuses is no reason to skip.
            Err(error @ (Error::Verifier { .. } | Error::Bpf { .. })) => panic!("{error}"),
            Err(error) => return skip(NAME, &error.to_string()),
        };
        let expected = if kvm == KvmKind::Software {
            Level::Counts
        } else {
            level
        };
        assert_eq!(ledger.level(), expected);
        std::thread::scope(|scope| {
            for vcpu in 0..3 {
                let ledger = &ledger;
                scope.spawn(move || {
                    ledger.enlist(vcpu).unwrap();
                    ledger.mark(vcpu, Mark::OwnOnce);
                });
            }
        });
        let mut record = Box::<RawRecord>::default();
        for vcpu in 0..5 {
            record.exits[7] = 7;
            ledger.read(vcpu, &mut record);
            assert_eq!(*record, RawRecord::default());
            assert_eq!(ledger.asks(vcpu), []);
            assert_eq!(ledger.time_driven(vcpu), TimeDriven::default());
            assert_eq!(ledger.histogram(vcpu, OTHER), [0; BUCKETS]);
            assert_eq!(ledger.histogram(vcpu, usize::MAX >> 9), [0; BUCKETS]);
            ledger.mark(vcpu, Mark::OwnUntilCleared);
        }
        for vcpu in [3, 4, u32::MAX] {
            assert!(matches!(ledger.enlist(vcpu), Err(EnlistError::NoSuchVcpu(v)) if v == vcpu));
        }
        ledger.delist(0).unwrap();
        ledger.clear().unwrap();
        assert_eq!(ledger.records().words.len(), 3 * layout::RECORD / 8);
        assert_eq!(ledger.stray(), 0);
        assert_eq!(ledger.missed().unwrap_or(0), 0);
        assert_eq!(ledger.covers(Reason::HLT), kvm != KvmKind::Software);
        assert!(ledger.covers(Reason::WRMSR));
    }
}

#[test]
fn there_is_room_for_all_vcpus() {
    let options = Options {
        level: Level::Histogram,
        kvm: KvmKind::Amd,
        vcpus: crate::config::MAX_CPUS,
        tracefs: None,
    };
    match KernelLedger::open(&options) {
        Ok(ledger) => ledger.enlist(options.vcpus - 1).unwrap(),
        Err(error @ (Error::Verifier { .. } | Error::Bpf { .. })) => panic!("{error}"),
        Err(error) => skip("there_is_room_for_all_vcpus", &error.to_string()),
    }
}

#[test]
fn an_unknown_kvm_is_refused() {
    let options = Options {
        level: Level::Counts,
        kvm: KvmKind::Unknown,
        vcpus: 1,
        tracefs: None,
    };
    let message = KernelLedger::open(&options).unwrap_err().to_string();
    assert!(
        message.starts_with("none of kvm_intel, kvm_amd and kvm_pvm"),
        "{message}"
    );
}

#[test]
fn levels_are_named() {
    for level in Level::ALL {
        assert_eq!(level.to_string().parse(), Ok(level));
    }
    let refused = "all".parse::<Level>();
    assert_eq!(
        refused,
        Err("`all`: give counts, cycles or histogram".into())
    );
}
