//! Exceptions and interrupts: the IDT, the stubs it points to, and what becomes of a trap.

use super::idt::{self, Gate};
use super::{cpu, fault, gdt, lapic};

/// How many vectors the IDT has: the CPU's 32 and 16 for interrupts.
const VECTORS: usize = 48;
/// The LAPIC timer's vector.
pub const TIMER: u8 = 0x20;
/// The LAPIC's spurious vector: its low four bits must be ones on old CPUs (SDM vol. 3A, 11.9).
pub const SPURIOUS: u8 = 0x2F;
const DOUBLE_FAULT: usize = 8;
/// Bytes from one stub to the next.
const STUB: u64 = 16;

/// What the stubs leave on the stack.
#[derive(Debug)]
#[repr(C)]
#[allow(missing_docs)] // the registers' names say it
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

#[cfg(target_os = "none")]
core::arch::global_asm!(
    ".pushsection .text.traps, \"ax\"",
    ".balign 16",
    "trap_stubs:",
    ".set trap_vector, 0",
    ".rept {vectors}",
    ".balign {stub}",
    ".if ({with_error_code} >> trap_vector) & 1",
    ".else",
    ".byte 0x6A, 0", // push 0, where the CPU pushes no error code
    ".endif",
    ".byte 0x6A, trap_vector", // push the vector
    "jmp trap_common",
    ".set trap_vector, trap_vector + 1",
    ".endr",
    // The CPU aligned the stack to 16 before it pushed; 22 quadwords keep it aligned.
    "trap_common:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rbp",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "call {handle}",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rbp",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16", // vector and error code
    "iretq",
    ".popsection",
    vectors = const VECTORS,
    stub = const STUB,
    with_error_code = const idt::WITH_ERROR_CODE,
    handle = sym handle,
);

/// Called by the stubs, with interrupts off.
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
extern "sysv64" fn handle(frame: &mut Frame) {
    match frame.vector as u8 {
        TIMER => lapic::ticked(),
        SPURIOUS => {}
        _ => {
            let address = cpu::cr2();
            if !fault::recover(frame, address) {
                crate::exit::trapped("guest", frame, address)
            }
        }
    }
}

/// One gate each.
static IDT: [Gate; VECTORS] = [const { idt::empty() }; VECTORS];

/// Writes the IDT and loads it: from here on exceptions are caught.
pub fn install() {
    gdt::load_task_state();
    let mut stub = stubs();
    for (vector, gate) in IDT.iter().enumerate() {
        let stack = if vector == DOUBLE_FAULT {
            gdt::DOUBLE_FAULT_STACK
        } else {
            0
        };
        idt::set(gate, stub, gdt::CODE, stack);
        stub += STUB;
    }
    load();
}

#[cfg(target_os = "none")]
fn stubs() -> u64 {
    unsafe extern "sysv64" {
        static trap_stubs: u8;
    }
    &raw const trap_stubs as u64
}

#[cfg(not(target_os = "none"))]
fn stubs() -> u64 {
    0
}

/// Loads the IDT that [`install`] wrote: once on each CPU.
#[cfg(target_os = "none")]
pub fn load() {
    // SAFETY: every gate leads to a stub that keeps all registers.
    unsafe { idt::load(&IDT) }
}

/// The host has its own.
#[cfg(not(target_os = "none"))]
pub fn load() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_keeps_the_stack_aligned() {
        assert_eq!(size_of::<Frame>() % 16, 0);
    }
}
