//! The other CPUs: from the start-up IPI to Rust in long mode.
//!
//! A page below 1 MiB is all that a start-up IPI can name: the code there goes from real mode
//! straight to long mode, on the kernel's own tables, and jumps to the image. Everything it needs
//! is a constant, so that it is copied and never patched.

use core::sync::atomic::{AtomicU64, Ordering};

/// The page of the start-up code. Boot information may be there (the VMM puts it elsewhere, a
/// firmware need not): by the time it is overwritten, all of that has been read.
pub const TRAMPOLINE: u64 = 0x8000;

/// The stack that the next CPU to arrive takes, by an exchange with 0: a CPU that comes later than
/// it was waited for finds nothing, and halts.
#[unsafe(export_name = "SECONDARY_STACK")]
static STACK: AtomicU64 = AtomicU64::new(0);

#[cfg(target_os = "none")]
core::arch::global_asm!(
    ".pushsection .rodata.trampoline, \"a\"",
    ".balign 16",
    "trampoline:",
    ".code16",
    "cli",
    "xor ax, ax",
    "mov ds, ax",
    "inc dword ptr [trampoline_arrivals_in_place]",
    // A 16-bit LGDT loads 24 bits of the base: the linker script keeps the image below that.
    "lgdt [trampoline_gdt_in_place]",
    "mov eax, 0x20", // PAE
    "mov cr4, eax",
    "mov eax, offset KERNEL_PML4",
    "mov cr3, eax",
    "mov ecx, 0xC0000080", // IA32_EFER: LME, NXE
    "rdmsr",
    "or eax, 0x900",
    "wrmsr",
    "mov eax, 0x80010011", // PG, WP, ET, PE: from real mode straight to long mode
    "mov cr0, eax",
    // jmp CODE:secondary_long_mode, in bytes: the assembler's Intel syntax cannot spell it.
    ".byte 0x66, 0xEA",
    ".long secondary_long_mode",
    ".word {code}",
    ".balign 4",
    "trampoline_gdt:",
    ".word {gdt_limit}",
    ".long KERNEL_GDT",
    ".balign 4",
    "trampoline_arrivals:",
    ".long 0",
    "trampoline_end:",
    ".set trampoline_arrivals_in_place, {base} + trampoline_arrivals - trampoline",
    ".set trampoline_gdt_in_place, {base} + trampoline_gdt - trampoline",
    ".code64",
    ".popsection",
    ".pushsection .text.secondary, \"ax\"",
    "secondary_long_mode:",
    "mov eax, {data}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "xor eax, eax",
    "mov fs, eax",
    "mov gs, eax",
    "xchg [SECONDARY_STACK], rax",
    "test rax, rax",
    "jz 4f",
    "mov rsp, rax",
    "mov rdi, rax",
    "xor ebp, ebp",
    "cld",
    "call {main}",
    "4: cli",
    "hlt",
    "jmp 4b",
    ".popsection",
    base = const TRAMPOLINE,
    gdt_limit = const super::gdt::LIMIT,
    code = const super::gdt::CODE,
    data = const super::gdt::DATA,
    main = sym crate::smp::secondary_main,
);

/// Copies the start-up code to its place and makes that executable.
#[cfg(target_os = "none")]
pub fn place_trampoline() {
    unsafe extern "sysv64" {
        static trampoline: u8;
        static trampoline_end: u8;
    }
    let from = &raw const trampoline;
    let length = &raw const trampoline_end as usize - from as usize;
    // SAFETY: the page is RAM that nobody uses any more, mapped one to one and writable until the
    // next line; the code is shorter than a page.
    unsafe { core::ptr::copy_nonoverlapping(from, TRAMPOLINE as *mut u8, length) };
    super::paging::make_code(TRAMPOLINE);
}

/// The host starts no CPUs.
#[cfg(not(target_os = "none"))]
pub fn place_trampoline() {}

/// How many CPUs have begun the start-up code since it was placed. One that has begun will arrive,
/// however long the host lets it wait: another INIT would only send it back.
#[cfg(target_os = "none")]
pub fn arrivals() -> u32 {
    unsafe extern "sysv64" {
        static trampoline: u8;
        static trampoline_arrivals: u8;
    }
    let offset = &raw const trampoline_arrivals as u64 - &raw const trampoline as u64;
    // SAFETY: `place_trampoline` has put the count there, aligned, in a page that stays mapped; others
    // write it meanwhile, whence the volatile read.
    unsafe { ((TRAMPOLINE + offset) as *const u32).read_volatile() }
}

/// The host starts no CPUs.
#[cfg(not(target_os = "none"))]
pub fn arrivals() -> u32 {
    0
}

/// Offers a stack to the CPU that is to come.
pub fn offer_stack(top: u64) {
    STACK.store(top, Ordering::SeqCst);
}

/// Whether a CPU has taken the stack.
pub fn stack_is_taken() -> bool {
    STACK.load(Ordering::SeqCst) == 0
}

/// Takes the offer back; `false` if a CPU has taken it meanwhile.
pub fn withdraw_stack() -> bool {
    STACK.swap(0, Ordering::SeqCst) != 0
}
