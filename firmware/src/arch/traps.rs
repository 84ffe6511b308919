//! Exceptions: none is expected, so each prints what the CPU knew and ends the VM as crashed.

use guest_kernel::arch::idt::{self, Gate};

use super::gdt;

/// The CPU's own vectors.
const VECTORS: usize = 32;
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
    with_error_code = const idt::WITH_ERROR_CODE,
    trapped = sym trapped,
);

/// Called by the stubs.
#[cfg(target_os = "none")]
extern "sysv64" fn trapped(frame: &guest_kernel::arch::traps::Frame) -> ! {
    guest_kernel::exit::trapped("firmware", frame, guest_kernel::arch::cpu::cr2())
}

/// One gate each.
static IDT: [Gate; VECTORS] = [const { idt::empty() }; VECTORS];

/// Writes the IDT and loads it: from here on exceptions are caught.
pub fn install() {
    let mut stub = stubs();
    for gate in &IDT {
        idt::set(gate, stub, gdt::CODE64, 0);
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
    // SAFETY: every gate leads to a stub that ends the VM.
    unsafe { idt::load(&IDT) }
}

#[cfg(not(target_os = "none"))]
fn load() {}
