//! The programs, assembled for the running kernel: offsets and the process are immediates.
//!
//! The two on the exit path are written for few instructions. Neither calls more than it must, and
//! what is rare stands behind the result. A vCPU runs one program at a time, on one CPU: its
//! memory has one writer, so that plain additions are exact.

use exit_abi::reason::Reason;

use super::Level;
use super::asm::{Asm, Helper, If, Label, Map, Op, Reg, Width};
use super::callers::{self, Callers};
use super::format::Field;
use super::layout::{self, Sizes, header, mark, private, row, thread, what};
use super::slots::{self, OTHER, SLOTS};
use crate::profile::KvmKind;

use Reg::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9};

/// Whose vCPUs are counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vm {
    /// The process, by the id that programs see.
    pub(super) tgid: u32,
    /// Its vCPUs.
    pub(super) vcpus: u32,
    /// The maps.
    pub(super) sizes: Sizes,
    /// Where its RAM above 1 MiB lies.
    pub(super) ram: Ram,
    /// How callers are found, if they are.
    pub(super) callers: Option<Callers>,
}

/// Guest RAM above 1 MiB, by pages: first, and the one after the last. Its pages are told apart by 2 MiB,
/// all others by 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ram {
    /// Below the device hole.
    pub(super) low: (u64, u64),
    /// From 4 GiB on; empty if there is none.
    pub(super) high: (u64, u64),
}

impl Vm {
    /// What keeps an offset of records in bounds.
    fn record_mask(&self) -> u64 {
        (self.vcpu_mask()) << layout::RECORD_SHIFT
    }

    fn vcpu_mask(&self) -> u64 {
        self.sizes.records as u64 - 1
    }

    fn last_vcpu(&self) -> u64 {
        u64::from(self.vcpus.saturating_sub(1))
    }
}

/// What the exit program reads of `kvm:kvm_exit`.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExitFields {
    pub(super) vcpu_id: Field,
    pub(super) exit_reason: Field,
    /// SVM: EXITINFO1; VMX: the exit qualification.
    pub(super) info1: Field,
    /// SVM: EXITINFO2.
    pub(super) info2: Field,
    /// VMX: the VM-exit interruption information.
    pub(super) intr_info: Field,
    /// The guest's instruction pointer.
    pub(super) rip: Field,
}

/// Loads a field of the record at `R6`. Its size has been checked.
pub(super) fn load_field(asm: &mut Asm, dst: Reg, field: Field) {
    let width = Width::of(field.size).unwrap_or(Width::D);
    asm.load(width, dst, R6, field.offset);
}

/// On `kvm:kvm_exit`: counts the exit in its slot and, if exits are timed, notes it as open.
pub(super) fn exit(vm: &Vm, kvm: KvmKind, level: Level, fields: &ExitFields) -> Asm {
    let mut asm = Asm::new();
    let (out, stray) = (asm.label(), asm.label());
    asm.op(Op::Move, R6, R1);
    asm.call(Helper::GetCurrentPidTgid);
    asm.op_imm(Op::ShiftRight, R0, 32);
    asm.jump_if_imm(If::NotEq, R0, vm.tgid.into(), out);

    // R3 = the offset of the vCPU's record
    load_field(&mut asm, R3, fields.vcpu_id);
    asm.jump_if_imm(If::Above, R3, vm.last_vcpu(), stray);
    asm.op_imm(Op::ShiftLeft, R3, layout::RECORD_SHIFT.into());

    // R2 = the exit's slot
    load_field(&mut asm, R2, fields.exit_reason);
    let count = asm.label();
    let rare = if kvm == KvmKind::Amd {
        let (msr, beyond) = (asm.label(), asm.label());
        asm.jump_if_imm(If::Eq, R2, slots::SVM_MSR, msr);
        asm.jump_if_imm(If::AtLeast, R2, slots::SVM_DIRECT as u64, beyond);
        Rare::Svm { msr, beyond }
    } else {
        let (failed, basic, other) = (asm.label(), asm.label(), asm.label());
        asm.jump_if_imm(If::Test, R2, i64::from(i32::MIN).cast_unsigned(), failed);
        asm.place(basic);
        asm.op_imm(Op::And, R2, 0xFFFF);
        asm.jump_if_imm(If::AtLeast, R2, slots::VMX_DIRECT as u64, other);
        Rare::Vmx {
            failed,
            basic,
            other,
        }
    };

    // R8 = the slot, R7 = the vCPU's header, R2 = the row
    asm.place(count);
    asm.op(Op::Move, R8, R2);
    asm.op_imm(Op::ShiftLeft, R2, layout::ROW_SHIFT.into());
    asm.op(Op::Add, R2, R3);
    header_of_record(&mut asm, vm, R7, R3);
    if level >= Level::Cycles {
        asm.store(Width::D, R7, header::OPEN_ROW, R2);
    }
    asm.map_value(R1, Map::Ledger, 0);
    asm.op(Op::Add, R2, R1);
    asm.increment(R2, row::EXITS, R1);
    culprit(&mut asm, vm, kvm, level, fields);
    if level >= Level::Cycles {
        // Last, so that the exit's time does not contain this program.
        asm.call(Helper::KtimeGetNs);
        asm.store(Width::D, R7, header::OPEN_NS, R0);
    }
    asm.place(out);
    asm.finish_with(0);

    let other = match rare {
        Rare::Svm { msr, beyond } => rare_svm(&mut asm, fields.info1, msr, beyond, count),
        Rare::Vmx {
            failed,
            basic,
            other,
        } => {
            asm.place(failed);
            header_of_record(&mut asm, vm, R4, R3);
            asm.increment(R4, header::FAILED, R1);
            asm.jump(basic);
            other
        }
    };
    asm.place(other);
    header_of_record(&mut asm, vm, R4, R3);
    asm.store(Width::D, R4, header::LAST_OTHER, R2);
    asm.op_imm(Op::Move, R2, OTHER as u64);
    asm.jump(count);

    asm.place(stray);
    count_stray(&mut asm, vm);
    asm.jump(out);
    asm
}

/// Where the rare codes of a processor are treated.
enum Rare {
    Svm {
        msr: Label,
        beyond: Label,
    },
    Vmx {
        failed: Label,
        basic: Label,
        other: Label,
    },
}

/// `R2` = slot of the exit code in `R2`, for those that are not simply their own slot. Returns
/// where codes without a slot go.
fn rare_svm(asm: &mut Asm, info1: Field, msr: Label, beyond: Label, count: Label) -> Label {
    let other = asm.label();
    let slot = |asm: &mut Asm, slot: usize| asm.op_imm(Op::Move, R2, slot as u64);

    asm.place(msr);
    load_field(asm, R1, info1);
    slot(asm, slots::SVM_MSR_WRITE);
    asm.jump_if_imm(If::Test, R1, slots::MSR_WRITE, count);
    slot(asm, slots::SVM_MSR as usize);
    asm.jump(count);

    // A code that was cut to 32 bits is made negative again.
    asm.place(beyond);
    let wide = asm.label();
    asm.op(Op::Move, R1, R2);
    asm.op_imm(Op::ShiftRight, R1, 32);
    asm.jump_if_imm(If::NotEq, R1, 0, wide);
    asm.op_imm(Op::ShiftLeft, R2, 32);
    asm.op_imm(Op::ArithmeticShiftRight, R2, 32);
    asm.place(wide);

    let (negative, fault, avic) = (asm.label(), asm.label(), asm.label());
    asm.op(Op::Move, R1, R2);
    asm.op_imm(Op::Sub, R1, slots::SVM_HIGH_FIRST);
    asm.jump_if_imm(If::AtLeast, R1, slots::SVM_HIGH_COUNT, negative);
    asm.jump_if_imm(If::Eq, R1, slots::SVM_NPF - slots::SVM_HIGH_FIRST, fault);
    asm.jump_if_imm(If::Eq, R1, slots::SVM_AVIC - slots::SVM_HIGH_FIRST, avic);
    asm.op(Op::Move, R2, R1);
    asm.op_imm(Op::Add, R2, slots::SVM_HIGH as u64);
    asm.jump(count);

    asm.place(fault);
    load_field(asm, R1, info1);
    slot(asm, slots::SVM_NPF_RESERVED);
    asm.jump_if_imm(If::Test, R1, slots::FAULT_RESERVED, count);
    slot(asm, slots::SVM_HIGH);
    asm.jump(count);

    asm.place(avic);
    load_field(asm, R1, info1);
    asm.op(Op::Move, R4, R1);
    asm.op_imm(
        Op::ShiftRight,
        R4,
        slots::APIC_WRITE.trailing_zeros().into(),
    );
    let write = asm.label();
    slot(
        asm,
        slots::SVM_HIGH + (slots::SVM_AVIC - slots::SVM_HIGH_FIRST) as usize,
    );
    asm.jump_if_imm(If::Test, R4, 1, write);
    asm.jump(count);
    asm.place(write);
    asm.op_imm(Op::And, R1, slots::APIC_OFFSET);
    for class in [slots::SVM_AVIC_EOI, slots::SVM_AVIC_TRAP] {
        let (found, next) = (asm.label(), asm.label());
        for (first, last) in runs(slots::apic_class(class)) {
            asm.op(Op::Move, R4, R1);
            asm.op_imm(Op::Sub, R4, first);
            asm.jump_if_imm(If::Below, R4, last - first + 1, found);
        }
        asm.jump(next);
        asm.place(found);
        slot(asm, class);
        asm.jump(count);
        asm.place(next);
    }
    asm.jump(count);

    asm.place(negative);
    asm.op(Op::Move, R1, R2);
    asm.op_imm(Op::Add, R1, slots::SVM_NEGATIVE_COUNT);
    asm.jump_if_imm(If::AtLeast, R1, slots::SVM_NEGATIVE_COUNT, other);
    asm.op(Op::Move, R2, R1);
    asm.op_imm(Op::Add, R2, slots::SVM_NEGATIVE as u64);
    asm.jump(count);
    other
}

/// Runs of multiples of 16 that follow each other.
fn runs(offsets: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for offset in offsets {
        match runs.last_mut() {
            Some((_, last)) if *last + 16 == offset => *last = offset,
            _ => runs.push((offset, offset)),
        }
    }
    runs
}

/// Counts an event of the process that belongs to none of its vCPUs. Several threads may.
fn count_stray(asm: &mut Asm, vm: &Vm) {
    asm.op_imm(Op::Move, R1, 1);
    asm.map_value(R2, Map::Ledger, vm.sizes.stray());
    asm.atomic_add(R2, 0, R1);
}

/// `R2` = the calling thread's place in the table of threads, whose id is in `R0`.
fn thread_place(asm: &mut Asm, vm: &Vm) {
    asm.op(Op::Move, R1, R0);
    asm.op_imm(Op::And, R1, layout::THREADS as u64 - 1);
    asm.op_imm(Op::ShiftLeft, R1, layout::THREAD_SHIFT.into());
    asm.map_value(R2, Map::Ledger, vm.sizes.threads());
    asm.op(Op::Add, R2, R1);
}

/// How much further apart records are than headers, as a shift.
const RECORD_OVER_HEADER: u32 = layout::RECORD_SHIFT - layout::HEADER_SHIFT;

/// `dst` = the header of the vCPU whose record has the offset in `record`. Destroys R1.
fn header_of_record(asm: &mut Asm, vm: &Vm, dst: Reg, record: Reg) {
    asm.op(Op::Move, dst, record);
    asm.op_imm(Op::ShiftRight, dst, RECORD_OVER_HEADER.into());
    asm.map_value(R1, Map::Ledger, vm.sizes.headers());
    asm.op(Op::Add, dst, R1);
}

/// `dst` = the offset of the header of the thread at `R2` from the first header.
fn header_of_thread(asm: &mut Asm, vm: &Vm, dst: Reg) {
    asm.load(Width::W, dst, R2, thread::HEADER);
    asm.op_imm(Op::And, dst, vm.vcpu_mask() << layout::HEADER_SHIFT);
}

/// On the raw tracepoint `kvm_entry`: closes the open exit.
pub(super) fn entry(vm: &Vm, level: Level) -> Asm {
    let mut asm = Asm::new();
    let (out, own, booked) = (asm.label(), asm.label(), asm.label());
    if vm.callers.is_some() {
        asm.op(Op::Move, R7, R1);
    }
    asm.call(Helper::GetCurrentPidTgid);
    thread_place(&mut asm, vm);
    asm.load(Width::D, R1, R2, thread::ID);
    asm.jump_if(If::NotEq, R1, R0, out);
    // R6 = the vCPU's header
    header_of_thread(&mut asm, vm, R6);
    if vm.callers.is_some() {
        // The first argument is KVM's vCPU.
        asm.load(Width::D, R7, R7, 0);
        private_of(&mut asm, R2, R6, layout::HEADER_SHIFT);
        asm.store(Width::D, R2, private::VCPU, R7);
    }
    asm.map_value(R1, Map::Ledger, vm.sizes.headers());
    asm.op(Op::Add, R6, R1);

    // R0 = how long it took, R2 = its row. One comparison finds that nothing is open, and that
    // this CPU's clock is behind that of the exit's, which would be no time.
    asm.call(Helper::KtimeGetNs);
    asm.load(Width::D, R1, R6, header::OPEN_NS);
    asm.jump_if(If::Below, R0, R1, out);
    asm.store_imm(Width::D, R6, header::OPEN_NS, header::CLOSED);
    asm.op(Op::Sub, R0, R1);
    asm.load(Width::D, R2, R6, header::OPEN_ROW);
    asm.op_imm(Op::And, R2, vm.record_mask() | rows_mask());
    asm.map_value(R1, Map::Ledger, 0);
    asm.op(Op::Add, R2, R1);
    asm.increment(R2, row::TIMED, R1);
    asm.accumulate(R2, row::NS, R0, R1);
    let nobody = asm.label();
    asm.load(Width::D, R3, R6, header::OPEN_PLACE);
    asm.jump_if_imm(If::Above, R3, vm.sizes.last_place(), nobody);
    asm.map_value(R1, Map::Culprits, 0);
    asm.op(Op::Add, R3, R1);
    asm.accumulate(R3, layout::FIRST_PLACE + layout::PLACE_NS, R0, R1);
    asm.place(nobody);

    // R4 = the vCPU's mark, R3 = what it says
    asm.load(Width::D, R3, R6, header::MARK);
    asm.op_imm(Op::And, R3, vm.vcpu_mask() << layout::MARK_SHIFT);
    asm.map_value(R4, Map::Marks, 0);
    asm.op(Op::Add, R4, R3);
    asm.load(Width::D, R3, R4, 0);
    asm.jump_if_imm(If::NotEq, R3, mark::GUEST, own);
    for (extreme, within) in [(row::MIN_NS, If::AtLeast), (row::MAX_NS, If::Below)] {
        let kept = asm.label();
        asm.load(Width::D, R1, R2, extreme);
        asm.jump_if(within, R0, R1, kept);
        asm.store(Width::D, R2, extreme, R0);
        asm.place(kept);
    }
    asm.place(booked);
    if level >= Level::Histogram {
        bucket(&mut asm, vm);
    }
    asm.place(out);
    asm.finish_with(0);

    asm.place(own);
    asm.increment(R2, row::OWN_TIMED, R1);
    asm.accumulate(R2, row::OWN_NS, R0, R1);
    asm.jump_if_imm(If::NotEq, R3, mark::OWN_ONCE, booked);
    asm.store_imm(Width::D, R4, 0, mark::GUEST);
    asm.jump(booked);
    asm
}

/// What keeps the offset of a row inside its record.
fn rows_mask() -> u64 {
    (layout::RECORD as u64 - 1) & !((1 << layout::ROW_SHIFT) - 1)
}

/// Counts `R0` ns in the bucket of its binary logarithm, for the row at `R2`. Destroys both.
pub(super) fn bucket(asm: &mut Asm, vm: &Vm) {
    // A row's histogram lies where the row does, at four times the offset.
    const SCALE: u32 = layout::BUCKETS_SHIFT - layout::ROW_SHIFT;
    const { assert!(layout::HISTOGRAM_SHIFT - layout::RECORD_SHIFT == SCALE) };
    let mask = (vm.record_mask() | rows_mask()) << SCALE;
    asm.map_value(R1, Map::Ledger, 0);
    asm.op(Op::Sub, R2, R1);
    asm.op_imm(Op::ShiftLeft, R2, SCALE.into());
    asm.op_imm(Op::And, R2, mask);
    asm.map_value(R3, Map::Histogram, 0);
    asm.op(Op::Add, R3, R2);

    let (longest, add) = (asm.label(), asm.label());
    asm.jump_if_imm(If::Above, R0, i32::MAX as u64, longest);
    for bits in [16_u64, 8, 4, 2, 1] {
        let short = asm.label();
        asm.jump_if_imm(If::Below, R0, 1 << bits, short);
        if bits > 1 {
            asm.op_imm(Op::ShiftRight, R0, bits);
        }
        asm.op_imm(Op::Add, R3, bits * 8);
        asm.place(short);
    }
    asm.place(add);
    asm.increment(R3, 0, R1);
    let done = asm.label();
    asm.jump(done);
    asm.place(longest);
    asm.op_imm(Op::Add, R3, 31 * 8);
    asm.jump(add);
    asm.place(done);
}

/// What a key is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// The number itself.
    Number(Field),
    /// A port, with the direction.
    Port(Field),
    /// The page of a guest-physical address.
    Page(Field),
}

/// What a program on another tracepoint of KVM's does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    /// A field that is 0 for a read and 1 for a write.
    pub(super) direction: Option<Field>,
    /// Events whose field has this value are passed over.
    pub(super) unless: Option<(Field, u64)>,
    /// The slots of a read, and (not a lower one) of a write.
    pub(super) slots: (u64, u64),
    /// What the exit was for.
    pub(super) key: Option<Key>,
    /// Where it stands to the exit.
    pub(super) role: Role,
    /// Whether exits are timed.
    pub(super) timed: bool,
}

/// What an event is to its exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It is all that there is, and counts as one.
    Emulated,
    /// It comes after the exit and tells its key.
    After,
    /// The same, but a write's can come before it.
    Around,
}

/// On a tracepoint that a vCPU's own thread passes.
pub(super) fn event(vm: &Vm, event: &Event) -> Asm {
    let mut asm = Asm::new();
    let (out, foreign, stray) = (asm.label(), asm.label(), asm.label());
    let unmatched = match event.role {
        Role::Around => asm.label(),
        Role::After | Role::Emulated => out,
    };
    asm.op(Op::Move, R6, R1);
    asm.call(Helper::GetCurrentPidTgid);
    thread_place(&mut asm, vm);
    asm.load(Width::D, R1, R2, thread::ID);
    asm.jump_if(If::NotEq, R1, R0, foreign);
    if let Some((field, value)) = event.unless {
        load_field(&mut asm, R1, field);
        asm.jump_if_imm(If::Eq, R1, value, out);
    }
    // R8 = the slot, R5 = the direction
    let (read, write) = event.slots;
    if let Some(direction) = event.direction {
        load_field(&mut asm, R5, direction);
        // Were it something else, the event would not be what it is taken for.
        asm.jump_if_imm(If::Above, R5, 1, stray);
        asm.op(Op::Move, R8, R5);
        asm.op_imm(Op::Mul, R8, write - read);
        asm.op_imm(Op::Add, R8, read);
    } else {
        asm.op_imm(Op::Move, R8, read);
    }
    // R3 = the header's offset, R7 = the header
    header_of_thread(&mut asm, vm, R3);
    asm.map_value(R7, Map::Ledger, vm.sizes.headers());
    asm.op(Op::Add, R7, R3);
    match event.role {
        Role::Emulated => {
            asm.op(Op::Move, R4, R3);
            asm.op_imm(Op::ShiftLeft, R4, RECORD_OVER_HEADER.into());
            asm.map_value(R1, Map::Ledger, 0);
            asm.op(Op::Add, R4, R1);
            asm.op(Op::Move, R1, R8);
            asm.op_imm(Op::ShiftLeft, R1, layout::ROW_SHIFT.into());
            asm.op(Op::Add, R4, R1);
            asm.increment(R4, row::EXITS, R1);
            asm.op_imm(Op::Move, R2, 0);
        }
        // R2 = where the exit was
        Role::After | Role::Around => {
            asm.op(Op::Move, R1, R8);
            asm.op_imm(Op::Or, R1, what::USED);
            asm.load(Width::D, R2, R7, header::PENDING);
            asm.jump_if(If::NotEq, R1, R2, unmatched);
            asm.store_imm(Width::D, R7, header::PENDING, 0);
            asm.load(Width::D, R2, R7, header::PENDING_RIP);
        }
    }
    block_of(&mut asm, R3, layout::HEADER_SHIFT);
    key(&mut asm, vm, event.key);
    if vm.callers.is_some() {
        asm.load(Width::D, R9, R7, header::PENDING_CALLER);
    }
    enter(&mut asm, event.timed, vm.callers.is_some());
    asm.place(out);
    asm.finish_with(0);

    if event.role == Role::Around {
        asm.place(unmatched);
        // No exit is open: this one's is yet to come.
        asm.load(Width::D, R1, R7, header::OPEN_NS);
        asm.jump_if_imm(If::NotEq, R1, header::CLOSED, out);
        asm.jump_if_imm(If::NotEq, R8, write, out);
        key(&mut asm, vm, event.key);
        asm.store(Width::D, R7, header::EARLY, R1);
        asm.jump(out);
    }

    asm.place(foreign);
    asm.op_imm(Op::ShiftRight, R0, 32);
    asm.jump_if_imm(If::NotEq, R0, vm.tgid.into(), out);
    asm.place(stray);
    count_stray(&mut asm, vm);
    asm.jump(out);
    asm
}

/// `R1` = the culprit of the slot in `R8`, with the key of the event at `R6`, whose direction is in `R5`.
/// Destroys R4 and R5.
fn key(asm: &mut Asm, vm: &Vm, key: Option<Key>) {
    let keyed = what::USED | what::KEYED;
    match key {
        None => {
            asm.op(Op::Move, R1, R8);
            asm.op_imm(Op::Or, R1, what::USED);
            return;
        }
        Some(Key::Number(field)) => load_field(asm, R1, field),
        Some(Key::Port(field)) => {
            load_field(asm, R1, field);
            asm.op_imm(Op::And, R1, 0xFFFF);
            // A read is 0.
            let write = asm.label();
            asm.jump_if_imm(If::NotEq, R5, 0, write);
            asm.op_imm(Op::Or, R1, what::IN);
            asm.place(write);
        }
        Some(Key::Page(field)) => {
            load_field(asm, R1, field);
            return page(asm, vm);
        }
    }
    asm.op_imm(Op::ShiftLeft, R1, layout::what::KEY_SHIFT.into());
    asm.op_imm(Op::Or, R1, keyed);
    asm.op(Op::Or, R1, R8);
}

/// `R1` = the culprit of the slot in `R8`, for the guest-physical address in `R1`.
fn page(asm: &mut Asm, vm: &Vm) {
    let (small, large, done) = (asm.label(), asm.label(), asm.label());
    let keyed = what::USED | what::KEYED;
    asm.op_imm(Op::ShiftRight, R1, layout::PAGE_SHIFT.into());
    let Ram { low, high } = vm.ram;
    for (first, end) in [low, high].into_iter().filter(|(first, end)| first < end) {
        asm.jump_if_imm(If::Below, R1, first, small);
        asm.jump_if_imm(If::Below, R1, end, large);
    }
    asm.place(small);
    asm.op_imm(Op::ShiftLeft, R1, what::KEY_SHIFT.into());
    asm.op_imm(Op::Or, R1, keyed);
    asm.jump(done);
    asm.place(large);
    asm.op_imm(Op::And, R1, !(layout::LARGE_PAGES - 1));
    asm.op_imm(Op::ShiftLeft, R1, what::KEY_SHIFT.into());
    asm.op_imm(Op::Or, R1, keyed | what::LARGE);
    asm.place(done);
    asm.op(Op::Or, R1, R8);
}

/// `dst` = the vCPU's part of what only programs see, from its number times 2^`shift`. Destroys R1.
pub(super) fn private_of(asm: &mut Asm, dst: Reg, offset: Reg, shift: u32) {
    asm.op(Op::Move, dst, offset);
    asm.op_imm(Op::ShiftRight, dst, (shift - layout::PRIVATE_SHIFT).into());
    asm.map_value(R1, Map::Private, 0);
    asm.op(Op::Add, dst, R1);
}

/// As what a culprit is tried to be entered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Try {
    /// With everything.
    Caller,
    /// Without who called.
    Place,
    /// Without its place.
    Key,
}

/// `R3` = the vCPU's block, from its number times 2^`shift`. Destroys R1.
fn block_of(asm: &mut Asm, offset: Reg, shift: u32) {
    const { assert!(layout::BLOCK.is_multiple_of(64)) };
    asm.op_imm(Op::ShiftRight, offset, shift.into());
    asm.op_imm(Op::Mul, offset, layout::BLOCK as u64);
    asm.map_value(R1, Map::Culprits, 0);
    asm.op(Op::Add, offset, R1);
}

/// On kvm_exit: enters whom the exit of the slot in `R8` is due to, as far as its record at `R6` tells;
/// `R3` is the record's offset, `R7` the header.
fn culprit(asm: &mut Asm, vm: &Vm, kvm: KvmKind, level: Level, fields: &ExitFields) {
    let (flush, flushed, done) = (asm.label(), asm.label(), asm.label());
    let (io, faulted, later, nowhere, plain, found) = (
        asm.label(),
        asm.label(),
        asm.label(),
        asm.label(),
        asm.label(),
        asm.label(),
    );
    if let Some(how) = &vm.callers {
        callers::find(asm, vm, how, fields.rip);
    }
    block_of(asm, R3, layout::RECORD_SHIFT);
    asm.load(Width::D, R1, R7, header::PENDING);
    asm.jump_if_imm(If::NotEq, R1, 0, flush);
    asm.place(flushed);
    load_field(asm, R2, fields.rip);
    let keyed = what::USED | what::KEYED;
    let (vector, register, early) = (asm.label(), asm.label(), asm.label());
    if kvm == KvmKind::Amd {
        asm.jump_if_imm(If::Eq, R8, slots::SVM_IOIO, io);
        for fault in [slots::SVM_NPF_RESERVED, slots::SVM_HIGH] {
            asm.jump_if_imm(If::Eq, R8, fault as u64, faulted);
        }
        asm.jump_if_imm(If::Eq, R8, slots::SVM_MSR_WRITE as u64, early);
        asm.jump_if_imm(If::Eq, R8, slots::SVM_MSR, later);
        asm.jump_if_imm(If::Eq, R8, slots::SVM_CPUID, later);
        for driven in [slots::SVM_INTR, slots::SVM_VINTR, slots::SVM_NMI] {
            asm.jump_if_imm(If::Eq, R8, driven, nowhere);
        }
    } else {
        let is = |asm: &mut Asm, reason: Reason, then| {
            asm.jump_if_imm(If::Eq, R8, reason.number().into(), then);
        };
        is(asm, Reason::IO, io);
        for reason in [
            Reason::WRMSR,
            Reason::RDMSR,
            Reason::CPUID,
            Reason::EPT_MISCONFIG,
            Reason::EPT_VIOLATION,
        ] {
            is(asm, reason, later);
        }
        asm.jump_if_imm(If::Eq, R8, slots::VMX_PREEMPTION_TIMER, nowhere);
        is(asm, Reason::EXTERNAL_INTERRUPT, vector);
        is(asm, Reason::EXCEPTION, vector);
        is(asm, Reason::CR_ACCESS, register);
        for driven in [Reason::INTERRUPT_WINDOW, Reason::NMI_WINDOW] {
            is(asm, driven, nowhere);
        }
    }
    asm.jump(plain);

    if kvm == KvmKind::Amd {
        // AMD APM vol. 2, 15.10.2: bit 0 is 1 for IN, bits 31:16 are the port.
        asm.place(io);
        port(asm, fields.info1, |asm| {
            asm.op_imm(Op::ShiftLeft, R4, 16);
            asm.op_imm(Op::And, R4, what::IN);
        });
        asm.jump(found);
        // 15.25.6: EXITINFO2 is the guest-physical address.
        asm.place(faulted);
        load_field(asm, R1, fields.info2);
        page(asm, vm);
        asm.jump(found);
        asm.place(early);
        if level >= Level::Cycles {
            asm.load(Width::D, R1, R7, header::EARLY);
            asm.jump_if_imm(If::Eq, R1, 0, later);
            asm.store_imm(Width::D, R7, header::EARLY, 0);
            asm.jump(found);
        }
        for unused in [vector, register] {
            asm.place(unused);
        }
    } else {
        // SDM vol. 3C, table 28-5: bit 3 is 1 for IN, bits 31:16 are the port.
        asm.place(io);
        port(asm, fields.info1, |asm| {
            asm.op_imm(Op::ShiftLeft, R4, 13);
            asm.op_imm(Op::And, R4, what::IN);
        });
        asm.jump(found);
        // SDM vol. 3C, 25.9.2: the vector, if bit 31 says that there is one. An interrupt comes from
        // anywhere: were it told from where, it alone would fill the table.
        asm.place(vector);
        load_field(asm, R1, fields.intr_info);
        let interrupt = asm.label();
        asm.jump_if_imm(
            If::NotEq,
            R8,
            Reason::EXTERNAL_INTERRUPT.number().into(),
            interrupt,
        );
        asm.op_imm(Op::Move, R2, 0);
        asm.place(interrupt);
        asm.op(Op::Move, R4, R1);
        asm.op_imm(Op::ShiftRight, R4, 31);
        asm.jump_if_imm(If::Eq, R4, 0, plain);
        asm.op_imm(Op::And, R1, 0xFF);
        asm.op_imm(Op::ShiftLeft, R1, what::KEY_SHIFT.into());
        asm.op_imm(Op::Or, R1, keyed);
        asm.op(Op::Or, R1, R8);
        asm.jump(found);
        // SDM vol. 3C, table 28-3: the register, and how it is accessed.
        asm.place(register);
        load_field(asm, R1, fields.info1);
        asm.op_imm(Op::And, R1, 0x3F);
        asm.op_imm(Op::ShiftLeft, R1, what::KEY_SHIFT.into());
        asm.op_imm(Op::Or, R1, keyed);
        asm.op(Op::Or, R1, R8);
        asm.jump(found);
        for unused in [faulted, early] {
            asm.place(unused);
        }
    }

    // Its key comes with another event.
    asm.place(later);
    asm.op_imm(Op::Or, R8, what::USED);
    asm.store(Width::D, R7, header::PENDING, R8);
    asm.store(Width::D, R7, header::PENDING_RIP, R2);
    if vm.callers.is_some() {
        asm.store(Width::D, R7, header::PENDING_CALLER, R9);
    }
    if level >= Level::Cycles {
        asm.store_imm(Width::D, R7, header::OPEN_PLACE, layout::NO_PLACE);
    }
    asm.jump(done);

    asm.place(flush);
    asm.store_imm(Width::D, R7, header::PENDING, 0);
    asm.op_imm(Op::And, R1, what::SLOT);
    asm.op_imm(Op::ShiftLeft, R1, 3);
    asm.op(Op::Add, R1, R3);
    asm.increment(R1, layout::NO_KEY, R2);
    asm.jump(flushed);

    asm.place(nowhere);
    asm.op_imm(Op::Move, R2, 0);
    asm.place(plain);
    asm.op(Op::Move, R1, R8);
    asm.op_imm(Op::Or, R1, what::USED);
    asm.place(found);
    enter(asm, level >= Level::Cycles, vm.callers.is_some());
    asm.place(done);
}

/// `R1` = the culprit of the slot in `R8`: a port, from bits 31:16 of a field and the direction that
/// `is_in` leaves in `R4`.
fn port(asm: &mut Asm, info: Field, is_in: impl Fn(&mut Asm)) {
    load_field(asm, R1, info);
    asm.op(Op::Move, R4, R1);
    is_in(asm);
    asm.op_imm(Op::ShiftRight, R1, 16);
    asm.op_imm(Op::And, R1, 0xFFFF);
    asm.op(Op::Or, R1, R4);
    asm.op_imm(Op::ShiftLeft, R1, what::KEY_SHIFT.into());
    asm.op_imm(Op::Or, R1, what::USED | what::KEYED);
    asm.op(Op::Or, R1, R8);
}

/// Counts the culprit in `R1`, from the place in the guest in `R2`, in the block at `R3`; if it is to be
/// timed, says so in the header at `R7`. With callers, who called is in `R9`, or 0: one for which there is no
/// room is tried again without.
fn enter(asm: &mut Asm, timed: bool, callers: bool) {
    let (known, new, done) = (asm.label(), asm.label(), asm.label());
    let tries: &[Try] = match callers {
        true => &[Try::Caller, Try::Place, Try::Key],
        false => &[Try::Place, Try::Key],
    };
    for &which in tries {
        let next_try = asm.label();
        let is_last = which == Try::Key;
        match which {
            Try::Caller => asm.jump_if_imm(If::Eq, R9, 0, next_try),
            Try::Place if callers => asm.op_imm(Op::Move, R9, 0),
            Try::Place => {}
            Try::Key => asm.op_imm(Op::Move, R2, 0),
        }
        // R5 = the first place, as `layout::home` has it
        asm.op(Op::Move, R4, R1);
        asm.op_imm(Op::Mul, R4, layout::SPREAD);
        if !is_last {
            asm.op(Op::Move, R5, R2);
            if which == Try::Caller {
                asm.op(Op::Add, R5, R9);
            }
            asm.op_imm(Op::Mul, R5, layout::SPREAD_RIP);
            asm.op(Op::Add, R4, R5);
        }
        asm.op_imm(Op::ShiftRight, R4, layout::SPREAD_SHIFT.into());
        asm.op_imm(Op::And, R4, layout::UPPER_HALF - 1);
        let lower = asm.label();
        asm.jump_if_imm(If::Test, R1, what::LARGE, lower);
        asm.op_imm(Op::Or, R4, layout::UPPER_HALF);
        asm.place(lower);
        asm.op_imm(Op::Mul, R4, layout::PLACE as u64);
        asm.op(Op::Move, R5, R3);
        asm.op(Op::Add, R5, R4);
        for _ in 0..layout::PROBES {
            let (other, next) = (asm.label(), asm.label());
            asm.load(Width::D, R0, R5, layout::FIRST_PLACE);
            asm.jump_if(If::NotEq, R0, R1, other);
            asm.load(Width::D, R0, R5, layout::FIRST_PLACE + layout::PLACE_RIP);
            if callers {
                asm.jump_if(If::NotEq, R0, R2, next);
                asm.load(Width::D, R0, R5, layout::FIRST_PLACE + layout::PLACE_CALLER);
                asm.jump_if(If::Eq, R0, R9, known);
            } else {
                asm.jump_if(If::Eq, R0, R2, known);
            }
            asm.jump(next);
            asm.place(other);
            asm.jump_if_imm(If::Eq, R0, 0, new);
            asm.place(next);
            asm.op_imm(Op::Add, R5, layout::PLACE as u64);
        }
        asm.place(next_try);
    }
    asm.op_imm(Op::And, R1, what::SLOT);
    asm.op_imm(Op::ShiftLeft, R1, 3);
    asm.op(Op::Add, R3, R1);
    asm.increment(R3, layout::NO_ROOM, R1);
    if timed {
        asm.store_imm(Width::D, R7, header::OPEN_PLACE, layout::NO_PLACE);
    }
    asm.jump(done);
    asm.place(new);
    asm.store(Width::D, R5, layout::FIRST_PLACE, R1);
    asm.store(Width::D, R5, layout::FIRST_PLACE + layout::PLACE_RIP, R2);
    if callers {
        asm.store(Width::D, R5, layout::FIRST_PLACE + layout::PLACE_CALLER, R9);
    }
    asm.place(known);
    asm.increment(R5, layout::FIRST_PLACE + layout::PLACE_COUNT, R1);
    if timed {
        asm.map_value(R1, Map::Culprits, 0);
        asm.op(Op::Sub, R5, R1);
        asm.store(Width::D, R7, header::OPEN_PLACE, R5);
    }
    asm.place(done);
}

/// Run by hand: the id of the calling process, as programs see it.
pub(super) fn whoami() -> Asm {
    let mut asm = Asm::new();
    asm.call(Helper::GetCurrentPidTgid);
    asm.op_imm(Op::ShiftRight, R0, 32);
    asm.finish();
    asm
}

/// What the enlisting program is asked to do, in its second argument.
pub(super) mod enlisting {
    /// The calling thread is the vCPU's.
    pub(in super::super) const ENLIST: u64 = 0;
    /// The vCPU has no thread any more.
    pub(in super::super) const DELIST: u64 = 1;
    /// The vCPU has no thread any more, and its record shall be as when the ledger was opened.
    pub(in super::super) const CLEAR: u64 = 2;
    /// Done.
    pub(in super::super) const DONE: u32 = 0;
    /// Another vCPU's thread has the place.
    pub(in super::super) const COLLISION: u32 = 1;
    /// There is no such vCPU.
    pub(in super::super) const NO_SUCH_VCPU: u32 = 2;
}

/// Run by hand: enters the calling thread as that of the vCPU in the first argument, whose former
/// thread is forgotten, and so is its open exit. Or clears the vCPU's record: user space cannot, for
/// the map is frozen.
pub(super) fn enlist(vm: &Vm) -> Asm {
    let mut asm = Asm::new();
    let (no_such, done, collision) = (asm.label(), asm.label(), asm.label());
    asm.op(Op::Move, R6, R1);
    asm.call(Helper::GetCurrentPidTgid);
    // R4 = the header's offset, R3 = the header
    asm.load(Width::D, R4, R6, 0);
    asm.jump_if_imm(If::Above, R4, vm.last_vcpu(), no_such);
    asm.op_imm(Op::ShiftLeft, R4, layout::HEADER_SHIFT.into());
    asm.map_value(R3, Map::Ledger, vm.sizes.headers());
    asm.op(Op::Add, R3, R4);
    if vm.callers.is_some() {
        private_of(&mut asm, R5, R4, layout::HEADER_SHIFT);
        asm.store_imm(Width::D, R5, private::VCPU, 0);
        asm.store_imm(Width::D, R5, private::PAGE, 0);
    }

    // The former thread's place may have become another vCPU's.
    let forgotten = asm.label();
    asm.store_imm(Width::D, R3, header::OPEN_NS, header::CLOSED);
    asm.load(Width::D, R5, R3, header::THREAD);
    asm.store_imm(Width::D, R3, header::THREAD, 0);
    asm.op(Op::Move, R1, R5);
    asm.op_imm(Op::And, R1, layout::THREADS as u64 - 1);
    asm.op_imm(Op::ShiftLeft, R1, layout::THREAD_SHIFT.into());
    asm.map_value(R2, Map::Ledger, vm.sizes.threads());
    asm.op(Op::Add, R2, R1);
    asm.load(Width::D, R1, R2, thread::ID);
    asm.jump_if(If::NotEq, R1, R5, forgotten);
    asm.load(Width::W, R1, R2, thread::HEADER);
    asm.jump_if(If::NotEq, R1, R4, forgotten);
    asm.store_imm(Width::D, R2, thread::ID, 0);
    asm.place(forgotten);
    let clear = asm.label();
    asm.load(Width::D, R1, R6, 8);
    asm.jump_if_imm(If::Eq, R1, enlisting::CLEAR, clear);
    asm.jump_if_imm(If::NotEq, R1, enlisting::ENLIST, done);

    let free = asm.label();
    thread_place(&mut asm, vm);
    asm.load(Width::D, R1, R2, thread::ID);
    asm.jump_if_imm(If::Eq, R1, 0, free);
    asm.jump_if(If::NotEq, R1, R0, collision);
    asm.place(free);
    asm.store(Width::W, R2, thread::HEADER, R4);
    asm.op_imm(Op::ShiftRight, R4, layout::HEADER_SHIFT.into());
    asm.store(Width::W, R2, thread::VCPU, R4);
    asm.store(Width::D, R2, thread::ID, R0);
    asm.store(Width::D, R3, header::THREAD, R0);
    asm.place(done);
    asm.finish_with(enlisting::DONE.into());

    // R4 = the row, R1 = how many are left
    asm.place(clear);
    asm.store_imm(Width::D, R3, header::FAILED, 0);
    asm.store_imm(Width::D, R3, header::LAST_OTHER, 0);
    asm.op_imm(Op::ShiftLeft, R4, RECORD_OVER_HEADER.into());
    asm.map_value(R2, Map::Ledger, 0);
    asm.op(Op::Add, R4, R2);
    asm.op_imm(Op::Move, R1, SLOTS as u64);
    let next = asm.label();
    asm.place(next);
    // A counter before what it bounds: no reader sees more timed than exits.
    for number in [
        row::OWN_NS,
        row::OWN_TIMED,
        row::NS,
        row::TIMED,
        row::EXITS,
        row::MAX_NS,
    ] {
        asm.store_imm(Width::D, R4, number, 0);
    }
    asm.store_imm(Width::D, R4, row::MIN_NS, u64::MAX);
    asm.op_imm(Op::Add, R4, 1 << layout::ROW_SHIFT);
    asm.op_imm(Op::Sub, R1, 1);
    asm.jump_if_imm(If::NotEq, R1, 0, next);
    asm.jump(done);

    asm.place(collision);
    asm.finish_with(enlisting::COLLISION.into());
    asm.place(no_such);
    asm.finish_with(enlisting::NO_SUCH_VCPU.into());
    asm
}
