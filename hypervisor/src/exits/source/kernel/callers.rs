//! Callers: who called the function that an exit came from. The guest's stack says so, which the exit
//! program reads on AMD: KVM has the stack pointer and CR3 in the VMCB by then (AMD APM vol. 2, table
//! B-2), and the vCPU's thread has guest memory mapped.
//!
//! A guest is free to point its stack and its tables anywhere: four entries are read and one piece of
//! stack, from guest RAM or not at all. What they hold decides nothing but the number that is entered.

use super::asm::{Asm, Helper, If, Map, Op, Reg, Width};
use super::btf;
use super::format::Field;
use super::layout::{self, private, ram};
use super::programs::{Ram, Vm, load_field, private_of};
use super::{Level, slots};
use crate::profile::KvmKind;

use Reg::{R0, R1, R2, R3, R4, R5, R8, R9, R10};

/// How callers are found on the running kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Callers {
    /// Where in KVM's vCPU the address of its VMCB is.
    pub(super) vmcb: usize,
    /// What reads the kernel's memory (tests have theirs in user space).
    pub(super) read: Helper,
}

/// Where a kernel lies that runs where Linux does, its modules, and what is behind them
/// (linux/Documentation/arch/x86/x86_64/mm.rst): negative numbers of 32 bits.
pub(super) const KERNEL: u64 = 0xFFFF_FFFF_8000_0000;
pub(super) const KERNEL_SIZE: u64 = 1 << 30;
const MODULES: u64 = KERNEL + KERNEL_SIZE;
const KERNEL_END: u64 = 0xFFFF_FFFF_FF00_0000;

/// In a VMCB (AMD APM vol. 2, appendix B): CR4, CR3 and RSP.
const CR4: usize = 0x400 + 0x148;
const CR3: usize = 0x400 + 0x150;
const RSP: usize = 0x400 + 0x1D8;
/// CR4.LA57, as a bit: five levels of tables.
const LA57: u64 = 1 << 12;

/// How many words of the stack are looked at: what a small function has saved, and its return address.
const WORDS: usize = 8;

/// The program's own stack: offsets from its top, downwards.
mod own {
    use super::{CR3, CR4, RSP, WORDS};

    /// An address below the top, as instructions hold it.
    const fn below(bytes: usize) -> usize {
        0_usize.wrapping_sub(bytes)
    }
    /// The vCPU's part of [`super::Map::Private`].
    pub(super) const PRIVATE: usize = below(8);
    /// What was read last.
    pub(super) const WORD: usize = below(16);
    /// Where it was read.
    pub(super) const AT: usize = below(24);
    /// The VMCB, from CR4 to RSP.
    pub(super) const SAVED_SIZE: usize = RSP + 8 - CR4;
    pub(super) const SAVED: usize = below(24 + SAVED_SIZE);
    pub(super) const SAVED_CR3: usize = SAVED.wrapping_add(CR3 - CR4);
    pub(super) const SAVED_RSP: usize = SAVED.wrapping_add(RSP - CR4);
    /// The guest's stack.
    pub(super) const STACK: usize = SAVED.wrapping_sub(WORDS * 8);
}

/// How they are found, or why they are not looked for.
pub(super) fn how(kvm: KvmKind, level: Level) -> Result<Callers, String> {
    match (kvm, level) {
        (KvmKind::Amd, Level::Cycles | Level::Histogram) => {}
        (KvmKind::Amd, Level::Counts) => return Err("--ledger counts keeps no callers".into()),
        (KvmKind::Intel, _) => return Err("on Intel KVM's memory has no stack pointer".into()),
        _ => return Err("emulated events have none".into()),
    }
    // With shadow paging the VMCB has KVM's own tables.
    let nested = std::fs::read_to_string("/sys/module/kvm_amd/parameters/npt");
    if !nested.is_ok_and(|value| matches!(value.trim(), "Y" | "1")) {
        return Err("with shadow paging the guest's tables are not known".into());
    }
    let vmcb = btf::member("kvm_amd", "vcpu_svm", "vmcb").map_err(|why| why.to_string())?;
    Ok(Callers {
        vmcb,
        read: Helper::ProbeReadKernel,
    })
}

/// `dst` = the address of something on the program's own stack.
fn own_address(asm: &mut Asm, dst: Reg, offset: usize) {
    asm.op(Op::Move, dst, R10);
    asm.op_imm(Op::Add, dst, offset as u64);
}

/// Reads the bytes at `R3` to the program's own stack; `none` if they are not there. Destroys R0 to R5.
fn read(asm: &mut Asm, helper: Helper, to: usize, bytes: usize, none: super::asm::Label) {
    own_address(asm, R1, to);
    asm.op_imm(Op::Move, R2, bytes as u64);
    asm.call(helper);
    asm.jump_if_imm(If::NotEq, R0, 0, none);
}

/// Leaves of an entry or of CR3 the address, bits 51:12. (A mask of 64 bits fits no instruction.)
fn address(asm: &mut Asm, reg: Reg) {
    asm.op_imm(Op::ShiftLeft, reg, 12);
    asm.op_imm(Op::ShiftRight, reg, 24);
    asm.op_imm(Op::ShiftLeft, reg, 12);
}

/// `R3` = where the process has the guest-physical address in `R3`; `none` if it is not RAM. Destroys R1
/// and R2.
fn host(asm: &mut Asm, vm: &Vm, none: super::asm::Label) {
    let (high, found) = (asm.label(), asm.label());
    let Ram { low, high: above } = vm.ram;
    asm.op(Op::Move, R1, R3);
    asm.op_imm(Op::ShiftRight, R1, layout::PAGE_SHIFT.into());
    asm.map_value(R2, Map::Marks, vm.sizes.ram());
    asm.jump_if_imm(If::AtLeast, R1, low.1, high);
    asm.load(Width::D, R2, R2, ram::LOW);
    asm.jump(found);
    asm.place(high);
    if above.0 < above.1 {
        asm.jump_if_imm(If::Below, R1, above.0, none);
        asm.jump_if_imm(If::AtLeast, R1, above.1, none);
        asm.load(Width::D, R2, R2, ram::HIGH);
    } else {
        asm.jump(none);
    }
    asm.place(found);
    asm.jump_if_imm(If::Eq, R2, 0, none);
    asm.op(Op::Add, R3, R2);
}

/// `R9` = the caller of where the exit came from whose slot is in `R8`, 0 if it has none or it is not
/// found: the first address of code that lies on the stack, a kernel's or a module's. `R6` is the exit's record,
/// `R3` the offset of the vCPU's ledger, which stays; all else but R7 and R8 is destroyed.
pub(super) fn find(asm: &mut Asm, vm: &Vm, how: &Callers, rip: Field) {
    let (wanted, none, found, done) = (asm.label(), asm.label(), asm.label(), asm.label());
    asm.op_imm(Op::Move, R9, 0);
    for slot in [
        slots::SVM_IOIO,
        slots::SVM_MSR_WRITE as u64,
        slots::SVM_MSR,
        slots::SVM_CPUID,
    ] {
        asm.jump_if_imm(If::Eq, R8, slot, wanted);
    }
    asm.jump(done);
    asm.place(wanted);
    // User space and early code have none.
    load_field(asm, R2, rip);
    asm.jump_if_imm(If::Below, R2, KERNEL, done);

    asm.op(Op::Move, R9, R3);
    private_of(asm, R4, R3, layout::RECORD_SHIFT);
    asm.store(Width::D, R10, own::PRIVATE, R4);
    asm.load(Width::D, R3, R4, private::VCPU);
    asm.jump_if_imm(If::Eq, R3, 0, none);
    asm.op_imm(Op::Add, R3, how.vmcb as u64);
    read(asm, how.read, own::WORD, 8, none);
    asm.load(Width::D, R3, R10, own::WORD);
    asm.op_imm(Op::Add, R3, CR4 as u64);
    read(asm, how.read, own::SAVED, own::SAVED_SIZE, none);
    asm.load(Width::D, R1, R10, own::SAVED);
    asm.jump_if_imm(If::Test, R1, LA57, none);
    // A stack of the kernel's: in the upper half.
    asm.load(Width::D, R4, R10, own::SAVED_RSP);
    asm.op(Op::Move, R1, R4);
    asm.op_imm(Op::ShiftRight, R1, 47);
    asm.jump_if_imm(If::NotEq, R1, 0x1_FFFF, none);

    // The same page by the same tables: one entry tells whether it still is.
    let (walk, stack) = (asm.label(), asm.label());
    asm.load(Width::D, R5, R10, own::PRIVATE);
    asm.load(Width::D, R1, R10, own::SAVED_CR3);
    asm.load(Width::D, R2, R5, private::CR3);
    asm.jump_if(If::NotEq, R1, R2, walk);
    asm.op_imm(Op::ShiftRight, R4, layout::PAGE_SHIFT.into());
    asm.load(Width::D, R2, R5, private::PAGE);
    asm.jump_if(If::NotEq, R2, R4, walk);
    asm.load(Width::D, R3, R5, private::ENTRY_AT);
    read(asm, Helper::ProbeReadUser, own::WORD, 8, walk);
    asm.load(Width::D, R5, R10, own::PRIVATE);
    asm.load(Width::D, R1, R10, own::WORD);
    asm.load(Width::D, R2, R5, private::ENTRY);
    asm.load(Width::D, R3, R5, private::HOST);
    asm.jump_if(If::Eq, R1, R2, stack);

    asm.place(walk);
    tables(asm, vm, none);
    asm.place(stack);
    let whole = asm.label();
    asm.load(Width::D, R1, R10, own::SAVED_RSP);
    asm.op_imm(Op::And, R1, 0xFFF);
    asm.op(Op::Add, R3, R1);
    // Not beyond the page: what is not read is 0.
    asm.op_imm(Op::Move, R2, 0x1000);
    asm.op(Op::Sub, R2, R1);
    asm.jump_if_imm(If::Below, R2, WORDS as u64 * 8 + 1, whole);
    asm.op_imm(Op::Move, R2, WORDS as u64 * 8);
    asm.place(whole);
    for word in 0..WORDS {
        asm.store_imm(Width::D, R10, own::STACK.wrapping_add(word * 8), 0);
    }
    own_address(asm, R1, own::STACK);
    asm.call(Helper::ProbeReadUser);
    asm.jump_if_imm(If::NotEq, R0, 0, none);
    asm.map_value(R1, Map::Marks, vm.sizes.ram());
    asm.load(Width::D, R2, R1, ram::TEXT);
    asm.load(Width::D, R3, R1, ram::TEXT + 8);
    asm.load(Width::D, R4, R1, ram::INIT);
    asm.load(Width::D, R5, R1, ram::INIT + 8);
    for word in 0..WORDS {
        let (next, module) = (asm.label(), asm.label());
        asm.load(Width::D, R0, R10, own::STACK.wrapping_add(word * 8));
        asm.jump_if_imm(If::Below, R0, KERNEL, next);
        asm.jump_if_imm(If::AtLeast, R0, MODULES, module);
        for (start, length) in [(R2, R3), (R4, R5)] {
            asm.op(Op::Move, R1, R0);
            asm.op(Op::Sub, R1, start);
            asm.jump_if(If::Below, R1, length, found);
        }
        asm.jump(next);
        asm.place(module);
        asm.jump_if_imm(If::Below, R0, KERNEL_END, found);
        asm.place(next);
    }
    asm.place(none);
    asm.op_imm(Op::Move, R0, 0);
    asm.place(found);
    asm.op(Op::Move, R3, R9);
    asm.op(Op::Move, R9, R0);
    asm.place(done);
}

/// `R3` = where the process has the page of the guest's stack: a walk through its tables (AMD APM vol. 2,
/// 5.3). What was found is noted. Whether the guest may access it is not asked.
fn tables(asm: &mut Asm, vm: &Vm, none: super::asm::Label) {
    /// Present; a page, not a table.
    const PRESENT: u64 = 1 << 0;
    const PAGE_SIZE: u64 = 1 << 7;
    let page = asm.label();
    let mut large = Vec::new();
    asm.load(Width::D, R3, R10, own::SAVED_CR3);
    address(asm, R3);
    for shift in [39, 30, 21, 12] {
        host(asm, vm, none);
        asm.load(Width::D, R1, R10, own::SAVED_RSP);
        asm.op_imm(Op::ShiftRight, R1, shift);
        asm.op_imm(Op::And, R1, 0x1FF);
        asm.op_imm(Op::ShiftLeft, R1, 3);
        asm.op(Op::Add, R3, R1);
        asm.store(Width::D, R10, own::AT, R3);
        read(asm, Helper::ProbeReadUser, own::WORD, 8, none);
        asm.load(Width::D, R3, R10, own::WORD);
        let present = asm.label();
        asm.jump_if_imm(If::Test, R3, PRESENT, present);
        asm.jump(none);
        asm.place(present);
        if [30, 21].contains(&shift) {
            let is_page = asm.label();
            asm.jump_if_imm(If::Test, R3, PAGE_SIZE, is_page);
            large.push((is_page, shift));
        }
        address(asm, R3);
    }
    asm.place(page);
    host(asm, vm, none);
    let noted = asm.label();
    asm.load(Width::D, R5, R10, own::PRIVATE);
    for (from, to) in [
        (own::SAVED_CR3, private::CR3),
        (own::AT, private::ENTRY_AT),
        (own::WORD, private::ENTRY),
    ] {
        asm.load(Width::D, R1, R10, from);
        asm.store(Width::D, R5, to, R1);
    }
    asm.load(Width::D, R1, R10, own::SAVED_RSP);
    asm.op_imm(Op::ShiftRight, R1, layout::PAGE_SHIFT.into());
    asm.store(Width::D, R5, private::PAGE, R1);
    asm.store(Width::D, R5, private::HOST, R3);
    asm.jump(noted);
    for (is_page, shift) in large {
        asm.place(is_page);
        let within = (1_u64 << shift) - 1;
        address(asm, R3);
        asm.op_imm(Op::And, R3, !within);
        asm.load(Width::D, R1, R10, own::SAVED_RSP);
        asm.op_imm(Op::And, R1, within & !0xFFF);
        asm.op(Op::Or, R3, R1);
        asm.jump(page);
    }
    asm.place(noted);
}
