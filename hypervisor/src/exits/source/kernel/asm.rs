//! A small assembler for BPF programs: typed instructions, labels, and maps by name.
//!
//! Source: linux/include/uapi/linux/bpf.h, linux/include/uapi/linux/bpf_common.h, and
//! linux/Documentation/bpf/standardization/instruction-set.rst.

use std::fmt;

/// One instruction as the kernel takes it (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Insn {
    pub(super) code: u8,
    /// Destination in the low half, source in the high one.
    pub(super) regs: u8,
    pub(super) off: i16,
    pub(super) imm: i32,
}

/// A register. R0 holds results; R1–R5 arguments, which a call destroys; R6–R9 survive calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    /// The top of the program's own stack: what lies below it (an offset that has wrapped) is its to
    /// use, at most 512 bytes.
    R10,
}

/// The width of a load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Width {
    /// 8 bits.
    B = 0x10,
    /// 16 bits.
    H = 0x08,
    /// 32 bits.
    W = 0x00,
    /// 64 bits.
    D = 0x18,
}

impl Width {
    /// The width of so many bytes.
    pub(super) fn of(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::B),
            2 => Some(Self::H),
            4 => Some(Self::W),
            8 => Some(Self::D),
            _ => None,
        }
    }
}

/// When a jump is taken; all comparisons are unsigned, on 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum If {
    Eq = 0x10,
    Above = 0x20,
    AtLeast = 0x30,
    /// Any common bit.
    Test = 0x40,
    NotEq = 0x50,
    Below = 0xA0,
}

/// What arithmetic does; the destination is its first operand and takes the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Op {
    Add = 0x00,
    Sub = 0x10,
    Mul = 0x20,
    Or = 0x40,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Move = 0xB0,
    /// Keeps the sign.
    ArithmeticShiftRight = 0xC0,
}

/// A kernel function that programs may call (`enum bpf_func_id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Helper {
    /// Nanoseconds of CLOCK_MONOTONIC.
    KtimeGetNs = 5,
    /// The thread group's id in the upper half, the thread's in the lower: those of the initial
    /// PID namespace.
    GetCurrentPidTgid = 14,
    /// Copies from the process's own memory, where it is present; not 0 if it is not (from 5.5 on).
    ProbeReadUser = 112,
    /// Copies from the kernel's memory, likewise.
    ProbeReadKernel = 113,
    /// Sends a signal to the current thread (from 5.6 on).
    SendSignalThread = 117,
}

/// A map, by what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Map {
    /// Records and the table of threads.
    Ledger,
    /// Whose exit is next.
    Marks,
    /// Who caused exits.
    Culprits,
    /// Durations.
    Histogram,
    /// What only the programs see.
    Private,
}

impl Map {
    /// All of them, in the order of their descriptors.
    pub(super) const ALL: [Self; 5] = [
        Self::Ledger,
        Self::Marks,
        Self::Culprits,
        Self::Histogram,
        Self::Private,
    ];
}

/// Descriptors of the maps, in the order of [`Map::ALL`].
pub(super) type MapFds = [i32; Map::ALL.len()];

/// Instruction classes and modifiers.
pub(super) mod opcode {
    pub(in super::super) const LD: u8 = 0x00;
    pub(in super::super) const LDX: u8 = 0x01;
    pub(in super::super) const ST: u8 = 0x02;
    pub(in super::super) const STX: u8 = 0x03;
    pub(in super::super) const JMP: u8 = 0x05;
    pub(in super::super) const ALU64: u8 = 0x07;
    #[cfg(test)]
    pub(in super::super) const CLASS: u8 = 0x07;
    /// Second operand is a register.
    pub(in super::super) const REG: u8 = 0x08;
    pub(in super::super) const MEM: u8 = 0x60;
    pub(in super::super) const ATOMIC: u8 = 0xC0;
    pub(in super::super) const CALL: u8 = 0x85;
    pub(in super::super) const EXIT: u8 = 0x95;
    /// The first half of a load of 64 bits.
    pub(in super::super) const LD_IMM64: u8 = 0x18;
    /// Its source register: the address of a map's value (BPF_PSEUDO_MAP_VALUE).
    pub(in super::super) const MAP_VALUE: u8 = 2;
}

/// A place in the program that can be jumped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// A program that cannot be: a fault of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AsmError(String);

impl fmt::Display for AsmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A program in the making.
#[derive(Debug, Default)]
pub(super) struct Asm {
    insns: Vec<Insn>,
    /// Where each label is, once it is placed.
    labels: Vec<Option<usize>>,
    /// Jumps to be completed: where, and to which label.
    jumps: Vec<(usize, Label)>,
    /// Loads of map addresses to be completed.
    maps: Vec<(usize, Map)>,
    /// The first thing that does not fit.
    misfit: Option<String>,
}

impl Asm {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) {
        self.insns.push(Insn {
            code,
            regs: dst | src << 4,
            off,
            imm,
        });
    }

    /// An offset as an instruction holds it.
    fn offset(&mut self, offset: usize) -> i16 {
        i16::try_from(offset.cast_signed()).unwrap_or_else(|_| {
            self.misfit
                .get_or_insert_with(|| format!("offset {offset:#x} does not fit"));
            0
        })
    }

    /// A constant as an instruction holds it: its sign is extended.
    fn immediate(&mut self, value: u64) -> i32 {
        i32::try_from(value.cast_signed()).unwrap_or_else(|_| {
            self.misfit
                .get_or_insert_with(|| format!("constant {value:#x} does not fit"));
            0
        })
    }

    /// A label, to be placed later.
    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Places a label here.
    pub(super) fn place(&mut self, label: Label) {
        if self.labels[label.0].replace(self.insns.len()).is_some() {
            self.misfit
                .get_or_insert_with(|| format!("label {} is placed twice", label.0));
        }
    }

    /// `dst = memory[src + offset]`, zero-extended.
    pub(super) fn load(&mut self, width: Width, dst: Reg, src: Reg, offset: usize) {
        let offset = self.offset(offset);
        let code = opcode::LDX | opcode::MEM | width as u8;
        self.push(code, dst as u8, src as u8, offset, 0);
    }

    /// `memory[dst + offset] = src`.
    pub(super) fn store(&mut self, width: Width, dst: Reg, offset: usize, src: Reg) {
        let offset = self.offset(offset);
        let code = opcode::STX | opcode::MEM | width as u8;
        self.push(code, dst as u8, src as u8, offset, 0);
    }

    /// `memory[dst + offset] = value`.
    pub(super) fn store_imm(&mut self, width: Width, dst: Reg, offset: usize, value: u64) {
        let (offset, value) = (self.offset(offset), self.immediate(value));
        let code = opcode::ST | opcode::MEM | width as u8;
        self.push(code, dst as u8, 0, offset, value);
    }

    /// `lock memory[dst + offset] += src`, 64 bits.
    pub(super) fn atomic_add(&mut self, dst: Reg, offset: usize, src: Reg) {
        let offset = self.offset(offset);
        let code = opcode::STX | opcode::ATOMIC | Width::D as u8;
        self.push(code, dst as u8, src as u8, offset, 0);
    }

    /// `dst = dst op src`, on 64 bits.
    pub(super) fn op(&mut self, op: Op, dst: Reg, src: Reg) {
        let code = opcode::ALU64 | opcode::REG | op as u8;
        self.push(code, dst as u8, src as u8, 0, 0);
    }

    /// `dst = dst op value`, on 64 bits.
    pub(super) fn op_imm(&mut self, op: Op, dst: Reg, value: u64) {
        let value = self.immediate(value);
        self.push(opcode::ALU64 | op as u8, dst as u8, 0, 0, value);
    }

    /// `dst` = address of a map's value, plus an offset.
    pub(super) fn map_value(&mut self, dst: Reg, map: Map, offset: usize) {
        let offset = i32::try_from(offset).unwrap_or_else(|_| {
            self.misfit
                .get_or_insert_with(|| format!("map offset {offset:#x} does not fit"));
            0
        });
        self.maps.push((self.insns.len(), map));
        self.push(opcode::LD_IMM64, dst as u8, opcode::MAP_VALUE, 0, 0);
        self.push(opcode::LD, 0, 0, 0, offset);
    }

    /// Calls a helper.
    pub(super) fn call(&mut self, helper: Helper) {
        self.push(opcode::CALL, 0, 0, 0, helper as i32);
    }

    /// Jumps.
    pub(super) fn jump(&mut self, to: Label) {
        self.jumps.push((self.insns.len(), to));
        self.push(opcode::JMP, 0, 0, 0, 0);
    }

    /// Jumps if `dst` compares so with `src`.
    pub(super) fn jump_if(&mut self, cond: If, dst: Reg, src: Reg, to: Label) {
        self.jumps.push((self.insns.len(), to));
        let code = opcode::JMP | opcode::REG | cond as u8;
        self.push(code, dst as u8, src as u8, 0, 0);
    }

    /// Jumps if `dst` compares so with a constant.
    pub(super) fn jump_if_imm(&mut self, cond: If, dst: Reg, value: u64, to: Label) {
        let value = self.immediate(value);
        self.jumps.push((self.insns.len(), to));
        self.push(opcode::JMP | cond as u8, dst as u8, 0, 0, value);
    }

    /// `memory[dst + offset] += 1` by plain load and store: for memory with one writer.
    pub(super) fn increment(&mut self, dst: Reg, offset: usize, scratch: Reg) {
        self.load(Width::D, scratch, dst, offset);
        self.op_imm(Op::Add, scratch, 1);
        self.store(Width::D, dst, offset, scratch);
    }

    /// `memory[dst + offset] += src`, likewise.
    pub(super) fn accumulate(&mut self, dst: Reg, offset: usize, src: Reg, scratch: Reg) {
        self.load(Width::D, scratch, dst, offset);
        self.op(Op::Add, scratch, src);
        self.store(Width::D, dst, offset, scratch);
    }

    /// Ends the program with this result.
    pub(super) fn finish_with(&mut self, result: u64) {
        self.op_imm(Op::Move, Reg::R0, result);
        self.finish();
    }

    /// Ends the program with the result in R0.
    pub(super) fn finish(&mut self) {
        self.push(opcode::EXIT, 0, 0, 0, 0);
    }

    /// Completes jumps and maps.
    pub(super) fn assemble(mut self, fds: &MapFds) -> Result<Vec<Insn>, AsmError> {
        if let Some(misfit) = self.misfit {
            return Err(AsmError(misfit));
        }
        for (at, label) in self.jumps {
            let away = self.labels[label.0].map(|to| to as i64 - (at as i64 + 1));
            let off = away.and_then(|n| i16::try_from(n).ok());
            self.insns[at].off =
                off.ok_or_else(|| AsmError(format!("no way from {at} to label {}", label.0)))?;
        }
        for (at, map) in self.maps {
            self.insns[at].imm = fds[map as usize];
        }
        Ok(self.insns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Reg::{R0, R1};

    const FDS: MapFds = [3, 4, 5, 6, 7];

    #[test]
    fn instructions_are_those_of_the_kernel() {
        assert_eq!(size_of::<Insn>(), 8);
        let mut asm = Asm::new();
        let out = asm.label();
        asm.load(Width::W, R1, R1, 56);
        asm.jump_if_imm(If::Above, R1, 3, out);
        asm.map_value(R0, Map::Culprits, 64);
        asm.atomic_add(R0, 8, R1);
        asm.place(out);
        asm.finish_with(0);
        let bytes: Vec<_> = asm
            .assemble(&FDS)
            .unwrap()
            .iter()
            .map(|i| (i.code, i.regs, i.off, i.imm))
            .collect();
        assert_eq!(
            bytes,
            [
                (0x61, 0x11, 56, 0),
                (0x25, 0x01, 3, 3),
                (0x18, 0x20, 0, 5),
                (0, 0, 0, 64),
                (0xDB, 0x10, 8, 0),
                (0xB7, 0, 0, 0),
                (0x95, 0, 0, 0),
            ]
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |make: fn(&mut Asm)| {
            let mut asm = Asm::new();
            make(&mut asm);
            asm.assemble(&FDS).unwrap_err().to_string()
        };
        let offset = refused(|asm| asm.load(Width::D, R0, R1, 0x8000));
        assert_eq!(offset, "offset 0x8000 does not fit");
        let constant = refused(|asm| asm.op_imm(Op::Move, R0, 1 << 31));
        assert_eq!(constant, "constant 0x80000000 does not fit");
        let nowhere = refused(|asm| {
            let label = asm.label();
            asm.jump(label);
        });
        assert_eq!(nowhere, "no way from 0 to label 0");
        let twice = refused(|asm| {
            let label = asm.label();
            asm.place(label);
            asm.place(label);
        });
        assert_eq!(twice, "label 0 is placed twice");
    }
}
