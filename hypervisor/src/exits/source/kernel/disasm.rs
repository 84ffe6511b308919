//! A disassembler, for tests: programs as people read them.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::asm::{Insn, Map, MapFds, opcode};

/// Descriptors for programs that are only read.
pub(super) const FDS: MapFds = [100, 101, 102, 103, 104];

/// The program, a line per instruction, jump targets marked.
pub(super) fn disassemble(program: &[Insn]) -> String {
    let mut targets = BTreeSet::new();
    for (at, insn) in program.iter().enumerate() {
        let is_jump = insn.code & opcode::CLASS == opcode::JMP
            && ![opcode::CALL, opcode::EXIT].contains(&insn.code);
        if is_jump {
            targets.insert(target(at, insn));
        }
    }
    let mut text = String::new();
    let mut insns = program.iter().enumerate();
    while let Some((at, insn)) = insns.next() {
        let mark = if targets.contains(&at) { ">" } else { " " };
        let line = match insn.code {
            opcode::LD_IMM64 => {
                let offset = insns.next().map_or(0, |(_, second)| second.imm);
                let place = (insn.imm - FDS[0]) as usize;
                let map = Map::ALL.get(place).map(|m| format!("{m:?}"));
                let map = map.unwrap_or_else(|| format!("fd {}", insn.imm));
                format!("r{} = &{map}[{offset:#x}]", dst(insn))
            }
            _ => one(at, insn),
        };
        writeln!(text, "{at:3}{mark} {line}").unwrap();
    }
    text
}

fn dst(insn: &Insn) -> u8 {
    insn.regs & 0xF
}

fn src(insn: &Insn) -> u8 {
    insn.regs >> 4
}

fn target(at: usize, insn: &Insn) -> usize {
    (at as i64 + 1 + i64::from(insn.off)) as usize
}

fn one(at: usize, insn: &Insn) -> String {
    let (dst, src) = (dst(insn), src(insn));
    let width = match insn.code & 0x18 {
        0x10 => "u8",
        0x08 => "u16",
        0x18 => "u64",
        _ => "u32",
    };
    let operand = if insn.code & opcode::REG == 0 {
        format!("{:#x}", insn.imm)
    } else {
        format!("r{src}")
    };
    let memory = |base| match insn.off {
        0.. => format!("{width}[r{base} + {:#x}]", insn.off),
        _ => format!("{width}[r{base} - {:#x}]", insn.off.unsigned_abs()),
    };
    let op = insn.code & 0xF0;
    match (insn.code, insn.code & opcode::CLASS) {
        (opcode::CALL, _) => match insn.imm {
            5 => "call ktime_get_ns".to_owned(),
            14 => "call get_current_pid_tgid".to_owned(),
            112 => "call probe_read_user".to_owned(),
            113 => "call probe_read_kernel".to_owned(),
            117 => "call send_signal_thread".to_owned(),
            other => format!("call {other}"),
        },
        (opcode::EXIT, _) => "exit".to_owned(),
        (opcode::JMP, _) => format!("goto {}", target(at, insn)),
        (_, opcode::JMP) => {
            let cond = match op {
                0x10 => "==",
                0x20 => ">",
                0x30 => ">=",
                0x40 => "&",
                0x50 => "!=",
                0xA0 => "<",
                _ => "?",
            };
            format!("if r{dst} {cond} {operand} goto {}", target(at, insn))
        }
        (_, opcode::ALU64) => {
            let op = match op {
                0x00 => "+=",
                0x10 => "-=",
                0x20 => "*=",
                0x40 => "|=",
                0x50 => "&=",
                0x60 => "<<=",
                0x70 => ">>=",
                0xB0 => "=",
                0xC0 => "s>>=",
                _ => "?=",
            };
            format!("r{dst} {op} {operand}")
        }
        (_, opcode::LDX) => format!("r{dst} = {}", memory(src)),
        (_, opcode::ST) => format!("{} = {:#x}", memory(dst), insn.imm),
        (code, opcode::STX) if code & 0xE0 == opcode::ATOMIC => {
            format!("lock {} += r{src}", memory(dst))
        }
        (_, opcode::STX) => format!("{} = r{src}", memory(dst)),
        _ => format!("{insn:?}"),
    }
}
