//! A small IDT: #DB, #UD and #GP are counted and returned from; all else is a triple fault.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How many #DB came.
#[unsafe(no_mangle)]
pub static DEBUG_COUNT: AtomicU64 = AtomicU64::new(0);
/// DR6 and RIP of the last #DB.
#[unsafe(no_mangle)]
pub static DEBUG_DR6: AtomicU64 = AtomicU64::new(0);
/// Where the last #DB would have returned to.
#[unsafe(no_mangle)]
pub static DEBUG_RIP: AtomicU64 = AtomicU64::new(0);
/// How many #UD came; each skips three bytes (UD2 with a NOP, VMCALL, VMMCALL).
#[unsafe(no_mangle)]
pub static UNDEFINED_COUNT: AtomicU64 = AtomicU64::new(0);

global_asm!(
    ".pushsection .text.traps, \"ax\"",
    ".global trap_debug, trap_undefined, trap_protection",
    "trap_debug:",
    "push rax",
    "mov rax, dr6",
    "mov [rip + DEBUG_DR6], rax",
    "xor eax, eax",
    "mov dr6, rax",
    // Not every CPU honours RF: a breakpoint must not hit again on return.
    "mov dr7, rax",
    "mov rax, [rsp + 8]",
    "mov [rip + DEBUG_RIP], rax",
    "inc qword ptr [rip + DEBUG_COUNT]",
    // One step is enough: TF of the interrupted code is cleared.
    "and qword ptr [rsp + 24], -257",
    "pop rax",
    "iretq",
    "trap_undefined:",
    "inc qword ptr [rip + UNDEFINED_COUNT]",
    "add qword ptr [rsp], 3",
    "iretq",
    "trap_protection:",
    "inc qword ptr [rip + PROTECTION_COUNT]",
    // Behind the error code.
    "add qword ptr [rsp + 8], 2",
    "add rsp, 8",
    "iretq",
    ".popsection",
);

/// How many #GP came; each skips two bytes (RDMSR, WRMSR).
#[unsafe(no_mangle)]
pub static PROTECTION_COUNT: AtomicU64 = AtomicU64::new(0);

static mut IDT: [[u64; 2]; 32] = [[0; 2]; 32];

/// An interrupt gate of the 64-bit code segment, present (SDM vol. 3A, 7.14.1).
fn gate(handler: u64) -> [u64; 2] {
    [
        handler & 0xFFFF | 0x08 << 16 | 0x8E00 << 32 | (handler & 0xFFFF_0000) << 32,
        handler >> 32,
    ]
}

/// Loads the IDT.
pub fn install() {
    unsafe extern "C" {
        fn trap_debug();
        fn trap_undefined();
        fn trap_protection();
    }
    #[repr(C, packed)]
    struct Pointer(u16, u64);
    // SAFETY: there is one CPU and no exception yet: nobody else uses the table while it is made;
    // the handlers return by IRETQ to where they came from.
    unsafe {
        IDT[1] = gate(trap_debug as *const () as u64);
        IDT[6] = gate(trap_undefined as *const () as u64);
        IDT[13] = gate(trap_protection as *const () as u64);
        let pointer = Pointer(
            size_of::<[[u64; 2]; 32]>() as u16 - 1,
            &raw const IDT as u64,
        );
        asm!("lidt [{}]", in(reg) &pointer);
    }
}

/// Makes an exception lead elsewhere: to code that takes the frame it is given.
pub fn set(vector: usize, handler: u64) {
    // SAFETY: there is one CPU, and the exception does not come while its gate is written.
    unsafe { IDT[vector] = gate(handler) };
}

/// The number of #DB so far.
pub fn debug_count() -> u64 {
    DEBUG_COUNT.load(Relaxed)
}
