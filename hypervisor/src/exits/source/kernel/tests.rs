//! The programs, read and run: the very instructions that go on the tracepoints, run by hand on
//! records that a test makes up. Who may not use bpf() skips what needs it, and says so.

use std::io::Write;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use exit_abi::reason::Reason;

use super::asm::{Asm, Helper, Map, MapFds, Reg, Width};
use super::bpf::{ArrayMap, Kind, Mapping, Program};
use super::callers::Callers;
use super::culprits;
use super::disasm::{FDS, disassemble};
use super::format::Field;
use super::layout::{self, Sizes, header, mark, row, thread, what};
use super::programs::{self, Event, ExitFields, Key, Ram, Role, Vm, enlisting};
use super::slots::{self, OTHER, SLOTS};
use super::{
    BUCKETS, EnlistError, KernelLedger, KernelLedgerError as Error, Level, Mark, Options,
    RawRecord, open,
};
use crate::exits::culprits::{Lost, Site};
use crate::profile::{AskKind, KvmKind};

const fn field(offset: usize, size: usize) -> Field {
    Field { offset, size }
}

/// kvm_exit's record as Linux 6.12 has it.
const EXIT: ExitFields = ExitFields {
    vcpu_id: field(56, 4),
    exit_reason: field(8, 4),
    rip: field(16, 8),
    info1: field(32, 8),
    info2: field(40, 8),
    intr_info: field(48, 4),
};
/// kvm_msr's arguments.
const MSR: Event = Event {
    direction: Some(field(0, 8)),
    unless: None,
    slots: (slots::SVM_MSR, slots::SVM_MSR_WRITE as u64),
    key: Some(Key::Number(field(8, 4))),
    role: Role::Around,
    timed: true,
};
const CPUID: Event = Event {
    direction: None,
    slots: (slots::SVM_CPUID, slots::SVM_CPUID),
    key: Some(Key::Number(field(0, 4))),
    role: Role::After,
    ..MSR
};
/// kvm_page_fault's arguments, on Intel.
const PAGE_FAULT: Event = Event {
    direction: None,
    slots: (48, 48),
    key: Some(Key::Page(field(8, 8))),
    role: Role::After,
    ..MSR
};
const EMULATED_MSR: Event = Event {
    slots: (31, 32),
    role: Role::Emulated,
    timed: false,
    ..MSR
};
const EMULATED_PIO: Event = Event {
    slots: (30, 30),
    key: Some(Key::Port(field(8, 4))),
    ..EMULATED_MSR
};
/// kvm_mmio's and kvm_cpuid's records.
const EMULATED_MMIO: Event = Event {
    direction: None,
    unless: Some((field(8, 4), 0)),
    slots: (49, 49),
    key: Some(Key::Page(field(16, 8))),
    ..EMULATED_MSR
};
const EMULATED_CPUID: Event = Event {
    direction: None,
    slots: (10, 10),
    key: Some(Key::Number(field(8, 4))),
    ..EMULATED_MSR
};

/// 4 GiB of RAM.
const RAM: Ram = Ram {
    low: (0x100, 0xC_0000),
    high: (0x10_0000, 0x14_0000),
};

fn vm(tgid: u32, vcpus: u32) -> Vm {
    Vm {
        tgid,
        vcpus,
        sizes: Sizes::of(vcpus),
        ram: RAM,
        callers: None,
    }
}

/// The same VM, with callers; what KVM has of its vCPU is this process's.
fn with_callers(vm: Vm) -> Vm {
    Vm {
        callers: Some(Callers {
            vmcb: 24,
            read: Helper::ProbeReadUser,
        }),
        ram: Ram {
            low: (0x100, Stage::PAGES as u64),
            high: (0, 0),
        },
        ..vm
    }
}

/// KVM's vCPU, its VMCB, and a guest's RAM, as the programs look at them.
struct Stage {
    vcpu: [u64; 8],
    vmcb: Vec<u64>,
    ram: Vec<u64>,
}

impl Stage {
    const PAGES: usize = 512;
    const CR3: usize = 0x550;
    const RSP: usize = 0x5D8;
    /// Where a stack is, and where its last page is mapped to; the page before is at the end of RAM, the one
    /// behind is not there.
    const STACK: u64 = 0xFFFF_C900_0000_4000;

    fn new() -> Box<Self> {
        let mut stage = Box::new(Self {
            vcpu: [0; 8],
            vmcb: vec![0; 0x800 / 8],
            ram: vec![0; Self::PAGES * 512],
        });
        stage.vcpu[3] = stage.vmcb.as_ptr() as u64;
        for (at, value) in [
            (0x1000 + 0x192 * 8, 0x2000),
            (0x2000, 0x3000),
            (0x3000, 0x4000),
            (0x4000 + 3 * 8, (Self::PAGES as u64 - 1) << 12),
            (0x4000 + 4 * 8, 0x9000),
            // 2 MiB, 1 GiB.
            (0x3000 + 8, 0x80),
            (0x2000 + 8, 0x80),
        ] {
            stage.set(at, value | 0x8000_0000_0000_0063);
        }
        stage.vmcb[Self::CR3 / 8] = 0x1005;
        stage
    }

    fn set(&mut self, at: u64, value: u64) {
        self.ram[at as usize / 8] = value;
    }

    fn stack(&mut self, rsp: u64) {
        self.vmcb[Self::RSP / 8] = rsp;
    }
}

/// A rig whose vCPU 0 is a stage's.
fn staged(rig: &Rig, stage: &Stage) {
    let base = rig.vm.sizes.ram() / 8;
    rig.marks.words()[base].store(stage.ram.as_ptr() as u64, Relaxed);
    let text = [
        (layout::ram::TEXT, 0xFFFF_FFFF_8100_0000),
        (layout::ram::TEXT + 8, 0x20_0000),
        (layout::ram::INIT, 0xFFFF_FFFF_8200_0000),
        (layout::ram::INIT + 8, 0x1000),
    ];
    for (offset, value) in text {
        rig.marks.words()[base + offset / 8].store(value, Relaxed);
    }
    assert_eq!(rig.enlist(0, enlisting::ENLIST), enlisting::DONE);
    let entry = rig.load(programs::entry(&rig.vm, Level::Cycles));
    entry
        .run(&[std::ptr::from_ref(&stage.vcpu) as u64])
        .unwrap();
}

/// In a kernel's text: where an exit is, and who calls it.
const INSTRUCTION: u64 = 0xFFFF_FFFF_8123_4567;
const CALLER: u64 = 0xFFFF_FFFF_8111_2222;

#[test]
fn callers_are_on_the_stack() {
    let Some(mut rig) = Rig::new("callers_are_on_the_stack", 1) else {
        return;
    };
    rig.vm = with_callers(rig.vm);
    let mut stage = Stage::new();
    staged(&rig, &stage);
    let exit = rig.load(programs::exit(&rig.vm, KvmKind::Amd, Level::Cycles, &EXIT));
    let msr = rig.load(programs::event(&rig.vm, &MSR));
    let mut before = rig.culprits(0, KvmKind::Amd);
    let mut caller = |stage: &Stage, rip: u64| -> Option<u64> {
        // The exits are those of a machine that looks at this memory now.
        std::hint::black_box(stage);
        exit.run(&exit_at(rip, slots::SVM_IOIO, [0x80 << 16, 0], 0))
            .unwrap();
        let after = rig.culprits(0, KvmKind::Amd);
        let is_new = |c: &&(Site, u64)| !before.contains(c);
        let (site, _) = *after.iter().find(is_new).unwrap();
        assert_eq!(site.rip, Some(rip));
        before = after;
        site.caller
    };

    // At once, behind what was saved, and too far away.
    stage.stack(Stage::STACK);
    assert_eq!(caller(&stage, INSTRUCTION), None, "nothing is there");
    stage.set(0x9000, CALLER);
    assert_eq!(caller(&stage, INSTRUCTION), Some(CALLER));
    // Code of the start, a module's, data, an error.
    for (word, is_code) in [
        (0xFFFF_FFFF_8200_0FFF, true),
        (0xFFFF_FFFF_8200_1000, false),
        (0xFFFF_FFFF_C000_1234, true),
        (0xFFFF_FFFF_8120_0000, false),
        (0xFFFF_8880_0000_1234, false),
        (0xFFFF_FFFF_FFFF_FFEA, false),
    ] {
        stage.set(0x9000, word);
        assert_eq!(
            caller(&stage, INSTRUCTION),
            is_code.then_some(word),
            "{word:#x}"
        );
    }
    stage.set(0x9000 + 7 * 8, CALLER + 1);
    assert_eq!(caller(&stage, INSTRUCTION), Some(CALLER + 1));
    stage.stack(Stage::STACK + 8);
    assert_eq!(caller(&stage, INSTRUCTION), Some(CALLER + 1));
    assert_eq!(caller(&stage, 0x40_0000), None, "user space");
    // The page has moved.
    stage.set(0xA008, CALLER + 2);
    stage.set(0x4000 + 4 * 8, 0xA001);
    assert_eq!(caller(&stage, INSTRUCTION), Some(CALLER + 2));
    // Up to the end of a page, and of RAM, and no further.
    stage.stack(Stage::STACK - 8);
    stage.set((Stage::PAGES as u64) * 0x1000 - 8, CALLER + 3);
    assert_eq!(caller(&stage, INSTRUCTION), Some(CALLER + 3));
    stage.stack(Stage::STACK - 7);
    assert_eq!(caller(&stage, INSTRUCTION), None);
    // Large pages.
    stage.stack(Stage::STACK - 0x4000 + 0x20_0000 + 0x9038);
    assert_eq!(caller(&stage, INSTRUCTION), Some(CALLER + 1));
    stage.stack(Stage::STACK - 0x4000 + 0x4000_0000 + 0x9038);
    assert_eq!(caller(&stage, INSTRUCTION), Some(CALLER + 1));
    // Not mapped, not canonical, five levels.
    for rsp in [
        Stage::STACK + 0x1000,
        Stage::STACK ^ 1 << 62,
        0x40_0000,
        0,
        u64::MAX,
    ] {
        stage.stack(rsp);
        assert_eq!(caller(&stage, INSTRUCTION), None, "{rsp:#x}");
    }
    stage.stack(Stage::STACK + 8);
    assert_eq!(caller(&stage, INSTRUCTION), Some(CALLER + 2));
    stage.vmcb[0x548 / 8] = 1 << 12;
    assert_eq!(caller(&stage, INSTRUCTION), None);
    stage.vmcb[0x548 / 8] = 0;

    // One whose key comes later, and one whose key came before.
    let write = exit_at(INSTRUCTION, slots::SVM_MSR, [1, 0], 0);
    let site = |caller| Site {
        caller: Some(caller),
        ..site(32, Some((AskKind::MsrWrite, 0x6E0)), INSTRUCTION)
    };
    exit.run(&write).unwrap();
    msr.run(&[1, 0x6E0]).unwrap();
    rig.set_header(0, header::OPEN_NS, header::CLOSED);
    msr.run(&[1, 0x6E0]).unwrap();
    exit.run(&write).unwrap();
    let found = rig.culprits(0, KvmKind::Amd);
    assert!(found.contains(&(site(CALLER + 2), 2)), "{found:?}");
    rig.check_sums(0, KvmKind::Amd);
    // The next vCPU has no stack yet.
    assert_eq!(rig.enlist(0, enlisting::ENLIST), enlisting::DONE);
    let mut before = found;
    exit.run(&exit_at(INSTRUCTION, slots::SVM_IOIO, [0x70 << 16, 0], 0))
        .unwrap();
    let mut after = rig.culprits(0, KvmKind::Amd);
    after.retain(|c| !before.contains(c));
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].0.caller, None);
    before.clear();
}

#[test]
fn any_tables_and_any_stack_end_in_a_count() {
    let Some(mut rig) = Rig::new("any_tables_and_any_stack_end_in_a_count", 1) else {
        return;
    };
    rig.vm = with_callers(rig.vm);
    let mut stage = Stage::new();
    staged(&rig, &stage);
    let exit = rig.load(programs::exit(&rig.vm, KvmKind::Amd, Level::Cycles, &EXIT));
    // A fixed sequence (Knuth's MMIX generator): entries that point at tables, at themselves, beyond
    // RAM, nowhere.
    let mut state = 1_u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 11
    };
    const EXITS: u64 = 20_000;
    for n in 0..EXITS {
        let page = random() % (Stage::PAGES as u64 + 16);
        let entry = page << 12 | random() & 0xFF;
        let entry = if n % 7 == 0 {
            entry << (random() % 40)
        } else {
            entry
        };
        let table = 1 + random() % 8;
        for index in [0, 3, 4, 0x192, 0x1FF] {
            stage.set((table << 12) + index * 8, entry);
        }
        let rsp = [Stage::STACK, u64::MAX - 7, 0x8000_0000_0000, 1 << 63][random() as usize % 4];
        stage.stack(rsp.wrapping_add(random() % 0x40).wrapping_sub(0x20));
        stage.vmcb[Stage::CR3 / 8] = match n % 5 {
            0 => random() << (random() % 50),
            _ => table << 12,
        };
        std::hint::black_box(&stage);
        exit.run(&exit_at(INSTRUCTION, slots::SVM_IOIO, [0x80 << 16, 0], 0))
            .unwrap();
    }
    rig.check_sums(0, KvmKind::Amd);
    assert_eq!(rig.row(0, slots::SVM_IOIO as usize, row::EXITS), EXITS);
}

#[test]
fn a_flood_of_callers_is_counted_without_them() {
    let Some(mut rig) = Rig::new("a_flood_of_callers_is_counted_without_them", 1) else {
        return;
    };
    rig.vm = with_callers(rig.vm);
    let mut stage = Stage::new();
    staged(&rig, &stage);
    let exit = rig.load(programs::exit(&rig.vm, KvmKind::Amd, Level::Cycles, &EXIT));
    stage.stack(Stage::STACK);
    const EXITS: u64 = 6000;
    for n in 0..EXITS {
        stage.set(0x9000, CALLER + 5 * n);
        std::hint::black_box(&stage);
        exit.run(&exit_at(INSTRUCTION, slots::SVM_IOIO, [0x80 << 16, 0], 0))
            .unwrap();
    }
    rig.check_sums(0, KvmKind::Amd);
    let found = rig.culprits(0, KvmKind::Amd);
    let known = found
        .iter()
        .filter(|(site, _)| site.caller.is_some())
        .count();
    assert!((1000..EXITS as usize).contains(&known), "{known}");
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
        (
            "exit_svm_callers",
            programs::exit(&with_callers(vm), KvmKind::Amd, Level::Cycles, &EXIT),
        ),
        ("entry_cycles", programs::entry(&vm, Level::Cycles)),
        (
            "entry_callers",
            programs::entry(&with_callers(vm), Level::Cycles),
        ),
        ("msr_callers", programs::event(&with_callers(vm), &MSR)),
        ("enlist_callers", programs::enlist(&with_callers(vm))),
        ("entry_histogram", programs::entry(&vm, Level::Histogram)),
        ("msr", programs::event(&vm, &MSR)),
        ("page_fault", programs::event(&vm, &PAGE_FAULT)),
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
    culprits: Mapping,
    histogram: Mapping,
    _maps: [ArrayMap; 5],
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
            map(vm.sizes.culprits()),
            map(vm.sizes.histogram()),
            map(vm.sizes.private()),
        ];
        maps[0].fill(&open::fresh_records(vm.sizes)).unwrap();
        maps[2]
            .fill(&culprits::fresh_block(KvmKind::Amd).repeat(vm.sizes.records))
            .unwrap();
        let mapping = |n: usize| maps[n].map(true).unwrap();
        Some(Self {
            vm,
            fds: std::array::from_fn(|n| maps[n].as_raw_fd()),
            ledger: mapping(0),
            marks: mapping(1),
            culprits: mapping(2),
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

    /// What is known of who caused a vCPU's exits; sorted, without places whose count is 0.
    fn culprits(&self, vcpu: u32, kvm: KvmKind) -> Vec<(Site, u64)> {
        let words = layout::BLOCK / 8;
        let block = &self.culprits.words()[vcpu as usize * words..][..words];
        let pending = self.header(vcpu, header::PENDING);
        let all = culprits::collect(kvm, block, pending);
        let mut all: Vec<_> = all.iter().map(|c| (c.site, c.count)).collect();
        all.sort_unstable();
        all
    }

    /// The counts of one slot's culprits add up to its exits, whatever they are.
    #[track_caller]
    fn check_sums(&self, vcpu: u32, kvm: KvmKind) {
        let mut sums = std::collections::BTreeMap::<Option<u8>, u64>::new();
        for (slot, exits) in self.exits(vcpu).into_iter().enumerate() {
            let reason = slots::describe(kvm, slot).reason.map(|r| r.number());
            *sums.entry(reason).or_default() += exits;
        }
        for (site, count) in self.culprits(vcpu, kvm) {
            *sums.entry(site.reason).or_default() -= count;
        }
        assert!(sums.values().all(|&left| left == 0), "{sums:?}");
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

/// The same, of vCPU 0, from a place in the guest.
fn exit_at(rip: u64, code: u64, info: [u64; 2], intr_info: u64) -> [u64; 9] {
    [0, code, rip, 0, info[0], info[1], intr_info, 0, 0]
}

fn site(reason: u8, ask: Option<(AskKind, u64)>, rip: u64) -> Site {
    Site {
        ask,
        rip: (rip != 0).then_some(rip),
        ..Site::of(Some(reason))
    }
}

fn lost(reason: u8, lost: Lost) -> Site {
    Site {
        lost: Some(lost),
        ..Site::of(Some(reason))
    }
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
            let first = rig.vm.sizes.headers() / 8 + (vcpu << layout::HEADER_SHIFT) / 8;
            let open = [
                header::OPEN_ROW,
                header::PENDING,
                header::PENDING_RIP,
                header::PENDING_CALLER,
                header::OPEN_PLACE,
            ];
            let open = open.map(|offset| first + offset / 8);
            let differs = part.filter(|at| !open.contains(at) && after[*at] != expected[*at]);
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
fn an_svm_exit_tells_its_culprit() {
    let Some(rig) = Rig::new("an_svm_exit_tells_its_culprit", 1) else {
        return;
    };
    use AskKind::{CrWrite, Exception, Page, PortIn, PortOut, Ram};
    for level in [Level::Counts, Level::Cycles] {
        let exit = rig.load(programs::exit(&rig.vm, KvmKind::Amd, level, &EXIT));
        for (rip, code, info) in [
            (0x1000, slots::SVM_IOIO, [0x03F8_0001 | 0x50, 0]),
            (0x1000, slots::SVM_IOIO, [0x03F8_0010, 0]),
            (0x1000, slots::SVM_IOIO, [0x03F8_0010, 0]),
            (0xFFFF_FFFF_8100_0000, slots::SVM_IOIO, [0x03F8_0010, 0]),
            (0x2000, slots::SVM_NPF, [8, 0xFEE0_0300]),
            (0x2000, slots::SVM_NPF, [4, 0x0009_F123]),
            (0x2000, slots::SVM_NPF, [4, 0x1234_5678]),
            (0x2000, slots::SVM_NPF, [4, 0x1230_0000]),
            (0x2000, slots::SVM_NPF, [4, 0x1_4000_0000 - 1]),
            (0x2000, slots::SVM_NPF, [4, 0x1_4000_0000]),
            (0x3000, 0x4E, [0, 0]),
            (0x3000, 0x14, [0, 0]),
            (0x3000, 0x78, [0, 0]),
            // What time drives comes from anywhere.
            (0x3000, slots::SVM_INTR, [0, 0]),
            (0x3001, slots::SVM_INTR, [0, 0]),
        ] {
            exit.run(&exit_at(rip, code, info, 0)).unwrap();
        }
    }
    let mut expected = vec![
        (site(30, Some((PortIn, 0x3F8)), 0x1000), 2),
        (site(30, Some((PortOut, 0x3F8)), 0x1000), 4),
        (site(30, Some((PortOut, 0x3F8)), 0xFFFF_FFFF_8100_0000), 2),
        (site(49, Some((Page, 0xFEE0_0000)), 0x2000), 2),
        (site(48, Some((Page, 0x9_F000)), 0x2000), 2),
        (site(48, Some((Ram, 0x1220_0000)), 0x2000), 4),
        (site(48, Some((Ram, 0x1_3FE0_0000)), 0x2000), 2),
        (site(48, Some((Page, 0x1_4000_0000)), 0x2000), 2),
        (site(0, Some((Exception, 14)), 0x3000), 2),
        (site(28, Some((CrWrite, 4)), 0x3000), 2),
        (site(12, None, 0x3000), 2),
        (site(1, None, 0), 4),
    ];
    expected.sort_unstable();
    assert_eq!(rig.culprits(0, KvmKind::Amd), expected);
    rig.check_sums(0, KvmKind::Amd);
}

#[test]
fn a_vmx_exit_tells_its_culprit_or_an_event_does() {
    let Some(rig) = Rig::new("a_vmx_exit_tells_its_culprit_or_an_event_does", 1) else {
        return;
    };
    use AskKind::{CrRead, Exception, Interrupt, Page, PortIn, PortOut, Ram};
    assert_eq!(rig.enlist(0, enlisting::ENLIST), enlisting::DONE);
    let level = Level::Cycles;
    let exit = rig.load(programs::exit(&rig.vm, KvmKind::Intel, level, &EXIT));
    let fault = rig.load(programs::event(&rig.vm, &PAGE_FAULT));
    let run = |rip, code, info1, intr_info| {
        exit.run(&exit_at(rip, code, [info1, 0], intr_info))
            .unwrap();
    };
    run(0x1000, 30, 0x0070_0008, 0);
    run(0x1000, 30, 0x0070_0000, 0);
    run(0x1000, 1, 0, 0x8000_00EC);
    run(0x1000, 1, 0, 0xEC);
    run(0x1000, 0, 0, 0x8000_030E);
    run(0x1000, 28, 0x0713, 0);
    run(0x1000, 7, 0, 0);
    run(0x2000, 48, 0, 0);
    fault.run(&[0, 0xFEC0_0010, 0]).unwrap();
    // A page fault that is no violation of EPT's, or a second one, tells nothing.
    fault.run(&[0, 0xFEC0_0010, 0]).unwrap();
    run(0x2000, 48, 0, 0);
    fault.run(&[0, 0x40_1000, 0]).unwrap();
    run(0x2000, 48, 0, 0);
    let before = rig.culprits(0, KvmKind::Intel);
    assert!(before.contains(&(lost(48, Lost::NotTold), 1)), "{before:?}");
    rig.check_sums(0, KvmKind::Intel);
    run(0x2000, 12, 0, 0);
    let mut expected = vec![
        (site(30, Some((PortIn, 0x70)), 0x1000), 1),
        (site(30, Some((PortOut, 0x70)), 0x1000), 1),
        (site(1, Some((Interrupt, 0xEC)), 0), 1),
        (site(1, None, 0), 1),
        (site(0, Some((Exception, 14)), 0x1000), 1),
        (site(28, Some((CrRead, 3)), 0x1000), 1),
        (site(7, None, 0), 1),
        (site(48, Some((Page, 0xFEC0_0000)), 0x2000), 1),
        (site(48, Some((Ram, 0x40_0000)), 0x2000), 1),
        (lost(48, Lost::NotTold), 1),
        (site(12, None, 0x2000), 1),
    ];
    expected.sort_unstable();
    assert_eq!(rig.culprits(0, KvmKind::Intel), expected);
    rig.check_sums(0, KvmKind::Intel);
}

#[test]
fn an_event_tells_the_key_of_its_exit() {
    let Some(rig) = Rig::new("an_event_tells_the_key_of_its_exit", 2) else {
        return;
    };
    use AskKind::{Cpuid, MsrRead, MsrWrite};
    let msr = rig.load(programs::event(&rig.vm, &MSR));
    let cpuid = rig.load(programs::event(&rig.vm, &CPUID));
    // Not enlisted: ours all the same, so it is not passed over in silence.
    msr.run(&[1, 0x6E0]).unwrap();
    assert_eq!((rig.stray(), rig.culprits(0, KvmKind::Amd).len()), (1, 0));
    assert_eq!(rig.enlist(0, enlisting::ENLIST), enlisting::DONE);
    let level = Level::Cycles;
    let exit = rig.load(programs::exit(&rig.vm, KvmKind::Amd, level, &EXIT));
    let entry = rig.load(programs::entry(&rig.vm, level));
    let run = |rip, code, info1| {
        exit.run(&exit_at(rip, code, [info1, 0], 0)).unwrap();
    };
    for _ in 0..5 {
        run(0x1000, slots::SVM_MSR, 1);
        msr.run(&[1, 0x6E0]).unwrap();
        entry.run(&[]).unwrap();
    }
    run(0x1000, slots::SVM_MSR, 0);
    msr.run(&[0, 0xC000_0080]).unwrap();
    entry.run(&[]).unwrap();
    run(0x2000, slots::SVM_CPUID, 0);
    // Another kind of event is none of this exit's.
    msr.run(&[1, 0x10]).unwrap();
    cpuid.run(&[7]).unwrap();
    entry.run(&[]).unwrap();
    // One that nobody told of.
    run(0x2000, slots::SVM_CPUID, 0);
    entry.run(&[]).unwrap();
    // A write that was done before its exit was traced.
    msr.run(&[1, 0x830]).unwrap();
    run(0x3000, slots::SVM_MSR, 1);
    entry.run(&[]).unwrap();
    // A read cannot be.
    msr.run(&[0, 0x830]).unwrap();
    run(0x3000, slots::SVM_MSR, 0);
    entry.run(&[]).unwrap();
    let mut expected = vec![
        (site(32, Some((MsrWrite, 0x6E0)), 0x1000), 5),
        (site(31, Some((MsrRead, 0xC000_0080)), 0x1000), 1),
        (site(10, Some((Cpuid, 7)), 0x2000), 1),
        (lost(10, Lost::NotTold), 1),
        (site(32, Some((MsrWrite, 0x830)), 0x3000), 1),
        (lost(31, Lost::NotTold), 1),
    ];
    expected.sort_unstable();
    assert_eq!(rig.culprits(0, KvmKind::Amd), expected);
    rig.check_sums(0, KvmKind::Amd);
    assert_eq!(rig.culprits(1, KvmKind::Amd), []);

    // Their time is theirs: all but that of the three that nobody knew at the entry.
    let words = layout::BLOCK / 8;
    let all = culprits::collect(KvmKind::Amd, &rig.culprits.words()[..words], 0);
    let known: u64 = all.iter().map(|c| c.ns).sum();
    assert!(all.iter().all(|c| (c.ns > 0) == c.site.lost.is_none()));
    let timed: u64 = (0..SLOTS).map(|slot| rig.row(0, slot, row::NS)).sum();
    assert!(known > 0 && known < timed);
    assert_eq!(rig.stray(), 1);
}

#[test]
fn a_full_table_loses_places_then_keys_and_no_exit() {
    let Some(rig) = Rig::new("a_full_table_loses_places_then_keys_and_no_exit", 1) else {
        return;
    };
    let level = Level::Cycles;
    let exit = rig.load(programs::exit(&rig.vm, KvmKind::Amd, level, &EXIT));
    let run = |rip, code, info| {
        exit.run(&exit_at(rip, code, info, 0)).unwrap();
    };
    // RAM alone does not push others out.
    for n in 0..6000_u64 {
        run(0x1000 + n, slots::SVM_NPF, [4, 0x20_0000 * (1 + n % 64)]);
    }
    run(0x1000, slots::SVM_IOIO, [0x03F8_0010, 0]);
    let port = site(30, Some((AskKind::PortOut, 0x3F8)), 0x1000);
    assert!(rig.culprits(0, KvmKind::Amd).contains(&(port, 1)));
    rig.check_sums(0, KvmKind::Amd);
    // Ports from everywhere: the PIT's are found all the same.
    for n in 0..20_000_u64 {
        run(0x1000 + n / 7, slots::SVM_IOIO, [n << 16 & 0xFFFF_0000, 0]);
    }
    run(0xFFFF, slots::SVM_IOIO, [0x43 << 16, 0]);
    run(0x1000, slots::SVM_IOIO, [0x03F8_0010, 0]);
    let all = rig.culprits(0, KvmKind::Amd);
    rig.check_sums(0, KvmKind::Amd);
    let of = |site: Site| all.iter().find(|(s, _)| *s == site).map_or(0, |(_, n)| *n);
    assert_eq!(of(port), 2, "who was first stays");
    let ask = Some((AskKind::PortOut, 0x43));
    let pit = all.iter().filter(|(s, _)| s.ask == ask);
    assert_eq!(pit.map(|(_, n)| n).sum::<u64>(), 2);
    assert!(of(lost(30, Lost::NoRoom)) > 15_000);
    assert!(of(lost(48, Lost::NoRoom)) > 2000);
    assert!(all.len() > layout::PLACES * 3 / 4, "{}", all.len());
}

#[test]
fn what_lies_close_together_has_room() {
    let Some(rig) = Rig::new("what_lies_close_together_has_room", 1) else {
        return;
    };
    let exit = rig.load(programs::exit(&rig.vm, KvmKind::Amd, Level::Counts, &EXIT));
    // Code that writes a port by each of its instructions, a walk of ports, of devices' pages, of RAM.
    for n in 0..400_u64 {
        for (rip, code, info) in [
            (0x10_0000 + 3 * n, slots::SVM_IOIO, [0x80 << 16, 0]),
            (0x2000, slots::SVM_IOIO, [(0x4000 + n) << 16, 0]),
            (0x2000, slots::SVM_NPF, [8, (0xFEC00 + n) << 12]),
            (0x2000, slots::SVM_NPF, [4, n << 21]),
        ] {
            exit.run(&exit_at(rip, code, info, 0)).unwrap();
        }
    }
    let all = rig.culprits(0, KvmKind::Amd);
    let whole = |(site, count): &&(Site, u64)| site.rip.is_some() && *count == 1;
    assert_eq!(all.iter().filter(whole).count(), 4 * 400, "{}", all.len());
}

#[test]
fn a_home_is_where_the_program_looks() {
    let Some(rig) = Rig::new("a_home_is_where_the_program_looks", 1) else {
        return;
    };
    let exit = rig.load(programs::exit(&rig.vm, KvmKind::Amd, Level::Counts, &EXIT));
    for n in 0..500_u64 {
        let (rip, page) = (n.wrapping_mul(0x9E37_79B9_7F4A_7C15), n * 7919);
        let info = [4, page << layout::PAGE_SHIFT];
        exit.run(&exit_at(rip, slots::SVM_NPF, info, 0)).unwrap();
    }
    let word = |at: usize| rig.culprits.words()[at / 8].load(Acquire);
    let mut found = 0;
    for place in 0..layout::PLACES {
        let at = layout::FIRST_PLACE + place * layout::PLACE;
        let (what, rip) = (word(at), word(at + layout::PLACE_RIP));
        if what != 0 {
            let home = layout::home(what, rip);
            assert!((home..home + layout::PROBES).contains(&place));
            assert_eq!(what & what::USED, what::USED);
            found += word(at + layout::PLACE_COUNT);
        }
    }
    assert_eq!(found, 500);
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
        mmio.run(&[0, kind, 0xFEE0_0300]).unwrap();
    }
    for leaf in [1, 0x4000_0000, 1] {
        cpuid.run(&[0, leaf]).unwrap();
    }
    let exits = rig.exits(0);
    assert_eq!((exits[31], exits[32], exits[49], exits[10]), (1, 3, 3, 3));
    assert_eq!(exits.iter().sum::<u64>(), 10);
    let mut expected = vec![
        (site(10, Some((AskKind::Cpuid, 1)), 0), 2),
        (site(10, Some((AskKind::Cpuid, 0x4000_0000)), 0), 1),
        (site(31, Some((AskKind::MsrRead, 0x1B)), 0), 1),
        (site(32, Some((AskKind::MsrWrite, 0x1B)), 0), 3),
        (site(49, Some((AskKind::Page, 0xFEE0_0000)), 0), 3),
    ];
    expected.sort_unstable();
    // The block was made ready for an AMD.
    let mut found = rig.culprits(0, KvmKind::Software);
    found.retain(|(_, count)| *count > 0);
    assert_eq!(found, expected);
    rig.check_sums(0, KvmKind::Software);
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
            memory: 64 << 20,
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
            assert_eq!(ledger.culprits(vcpu), []);
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
        memory: 8 << 30,
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
        memory: 0,
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
