//! Exceptions: none is expected, so each prints what the CPU knew and ends the VM as crashed.

use core::sync::atomic::{AtomicU64, Ordering};

use super::gdt;

/// The CPU's own vectors.
const VECTORS: usize = 32;
/// Exceptions that push an error code, one bit each (SDM vol. 3A, table 6-1).
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
const WITH_ERROR_CODE: u64 = 1 << 8 | 0x1F << 10 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;
/// Bytes from one stub to the next.
const STUB: u64 = 16;

#[cfg(target_os = "none")]
core::arch::global_asm!(
    ".pushsection .text.firmware_traps, \"ax\"",
    ".balign 16",
    "firmware_stubs:",
    ".set firmware_vector, 0",
    ".rept {vectors}",
    ".balign {stub}",
    ".if ({with_error_code} >> firmware_vector) & 1",
    ".else",
    ".byte 0x6A, 0", // push 0, where the CPU pushes no error code
    ".endif",
    ".byte 0x6A, firmware_vector", // push the vector
    "jmp firmware_trapped",
    ".set firmware_vector, firmware_vector + 1",
    ".endr",
    // The CPU aligned the stack to 16 before it pushed; 22 quadwords keep it aligned. The order is
    // that of `Frame`. Nothing returns from here.
    "firmware_trapped:",
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
    "call {trapped}",
    "ud2",
    ".popsection",
    vectors = const VECTORS,
    stub = const STUB,
    with_error_code = const WITH_ERROR_CODE,
    trapped = sym trapped,
);

/// Called by the stubs.
#[cfg(target_os = "none")]
extern "sysv64" fn trapped(frame: &guest_kernel::arch::traps::Frame) -> ! {
    guest_kernel::exit::trapped("firmware", frame, guest_kernel::arch::cpu::cr2())
}

/// One gate each, as two quadwords.
static IDT: [[AtomicU64; 2]; VECTORS] = [const { [AtomicU64::new(0), AtomicU64::new(0)] }; VECTORS];

/// An interrupt gate for CPL 0 (SDM vol. 3A, figure 6-8).
const fn interrupt_gate(handler: u64) -> [u64; 2] {
    let low =
        handler & 0xFFFF | (gdt::CODE64 as u64) << 16 | 0x8E << 40 | (handler >> 16 & 0xFFFF) << 48;
    [low, handler >> 32]
}

/// Writes the IDT and loads it: from here on exceptions are caught.
pub fn install() {
    let mut stub = stubs();
    for gate in &IDT {
        let [low, high] = interrupt_gate(stub);
        gate[0].store(low, Ordering::Relaxed);
        gate[1].store(high, Ordering::Relaxed);
        stub += STUB;
    }
    load();
}

#[cfg(target_os = "none")]
fn stubs() -> u64 {
    unsafe extern "sysv64" {
        static firmware_stubs: u8;
    }
    &raw const firmware_stubs as u64
}

#[cfg(not(target_os = "none"))]
fn stubs() -> u64 {
    0
}

#[cfg(target_os = "none")]
fn load() {
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let pointer = Pointer {
        limit: (size_of_val(&IDT) - 1) as u16,
        base: &raw const IDT as u64,
    };
    // SAFETY: the table lives as long as the firmware, and every gate in it leads to a stub that
    // ends the VM.
    unsafe {
        core::arch::asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags));
    }
}

#[cfg(not(target_os = "none"))]
fn load() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_spread_the_address() {
        let [low, high] = interrupt_gate(0xFFFF_8000_1234_5678);
        assert_eq!((low, high), (0x1234_8E00_0008_5678, 0xFFFF_8000));
    }
}
