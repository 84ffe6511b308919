//! Further CPUs, started by INIT and SIPI, on the first one's page tables.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Most CPUs that these guests start, the first one included.
pub const MOST: usize = 8;

/// How often it is looked whether a CPU lives before it is sent another start-up IPI.
const PATIENCE: u32 = 300_000;

/// Where the start-up IPI sends a CPU: a page below 1 MiB, in 4 KiB units.
const VECTOR: u64 = 0x8;
const TRAMPOLINE: u64 = VECTOR << 12;
/// The local APIC's interrupt command register (SDM vol. 3A, 12.6.1).
const ICR: u64 = 0xFEE0_0300;

global_asm!(
    ".pushsection .rodata.trampoline, \"a\"",
    ".balign 16",
    ".global smp_trampoline, smp_trampoline_end",
    "smp_trampoline:",
    ".code16",
    "cli",
    "xor ax, ax",
    "mov ds, ax",
    "lgdt [smp_gdt_pointer_at]",
    "mov eax, 0x20", // PAE
    "mov cr4, eax",
    "mov eax, [smp_cr3_at]",
    "mov cr3, eax",
    "mov ecx, 0xC0000080", // IA32_EFER: LME, NXE
    "rdmsr",
    "or eax, 0x900",
    "wrmsr",
    "mov eax, 0x80010011", // PG, WP, ET, PE: from real mode straight to long mode
    "mov cr0, eax",
    // jmp far 0x08:smp_long
    ".byte 0x66, 0xEA",
    ".long {base} + smp_long - smp_trampoline",
    ".word 0x08",
    ".code64",
    "smp_long:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov rsp, [smp_stack_at]",
    "call [smp_entry_at]",
    "2: hlt",
    "jmp 2b",
    ".balign 8",
    "smp_gdt:",
    ".quad 0",
    ".quad 0x00AF9B000000FFFF",
    ".quad 0x00CF93000000FFFF",
    "smp_gdt_pointer:",
    ".word 23",
    ".long {base} + smp_gdt - smp_trampoline",
    ".balign 8",
    "smp_cr3: .quad 0",
    "smp_stack: .quad 0",
    "smp_entry: .quad 0",
    "smp_trampoline_end:",
    // Where these are once the trampoline is in its place.
    ".set smp_gdt_pointer_at, {base} + smp_gdt_pointer - smp_trampoline",
    ".set smp_cr3_at, {base} + smp_cr3 - smp_trampoline",
    ".set smp_stack_at, {base} + smp_stack - smp_trampoline",
    ".set smp_entry_at, {base} + smp_entry - smp_trampoline",
    ".popsection",
    base = const TRAMPOLINE,
);

/// A stack per CPU.
static mut STACKS: [[u64; 2048]; MOST] = [[0; 2048]; MOST];
/// The CPUs that live, as bits.
static ALIVE: AtomicU64 = AtomicU64::new(0);

/// This CPU's number: its APIC's identifier, as CPUID says it (SDM vol. 2A, leaf 1, EBX 31:24).
pub fn number() -> usize {
    (core::arch::x86_64::__cpuid(1).ebx >> 24) as usize
}

/// Says, on another CPU, that it lives.
pub fn alive() {
    ALIVE.fetch_or(1 << number(), SeqCst);
}

/// Whether this CPU has said that it lives.
pub fn is_alive(cpu: usize) -> bool {
    ALIVE.load(SeqCst) & 1 << cpu != 0
}

/// Forgets that it lived.
pub fn forget(cpu: usize) {
    ALIVE.fetch_and(!(1 << cpu), SeqCst);
}

/// Halts this CPU for good: interrupts are off.
pub fn halt() -> ! {
    loop {
        // SAFETY: HLT changes nothing.
        unsafe { asm!("hlt", options(nomem, nostack)) }
    }
}

/// Starts a CPU in `entry`, which must call [`alive`] and never return; waits for that. One at a
/// time: the trampoline has room for one stack.
pub fn start(cpu: usize, entry: extern "sysv64" fn() -> !) {
    prepare(cpu, entry);
    init(cpu);
    // As often as it takes: the SDM has two (vol. 3A, 10.4.4.1), and where an earlier INIT is still
    // being obeyed, KVM spends the start-up IPI on that one. A CPU that runs ignores it.
    while !is_alive(cpu) {
        startup(cpu);
        for _ in 0..PATIENCE {
            if is_alive(cpu) {
                break;
            }
            core::hint::spin_loop();
        }
    }
}

/// Makes the trampoline ready: the next start-up IPI sends this CPU to `entry`.
pub fn prepare(cpu: usize, entry: extern "sysv64" fn() -> !) {
    unsafe extern "C" {
        static smp_trampoline: u8;
        static smp_trampoline_end: u8;
    }
    // SAFETY: the page at 0x8000 is RAM that nobody uses (start info, memory map and command line
    // lie elsewhere) and mapped one to one; the last 24 bytes of the trampoline are its three
    // variables; the CPU's stack is its own, and `cpu` is below MOST or this panics.
    unsafe {
        let from = &raw const smp_trampoline;
        let length = (&raw const smp_trampoline_end as usize) - from as usize;
        let to = TRAMPOLINE as *mut u8;
        core::ptr::copy_nonoverlapping(from, to, length);
        let variables = to.add(length - 24).cast::<u64>();
        let cr3: u64;
        asm!("mov {}, cr3", out(reg) cr3);
        variables.write_unaligned(cr3);
        let stack = &raw mut STACKS[cpu] as u64 + size_of::<[u64; 2048]>() as u64;
        variables.add(1).write_unaligned(stack);
        variables.add(2).write_unaligned(entry as *const () as u64);
    }
}

/// Sends INIT to a CPU.
pub fn init(cpu: usize) {
    send(cpu, 0x0000_C500); // INIT, assert, level
}

/// Sends a start-up IPI to a CPU.
pub fn startup(cpu: usize) {
    send(cpu, 0x0000_0600 | VECTOR as u32);
}

fn send(cpu: usize, command: u32) {
    let icr = ICR as *mut u32;
    // SAFETY: the APIC's registers are mapped and understood as the SDM says.
    unsafe {
        icr.add(4).write_volatile((cpu as u32) << 24);
        icr.write_volatile(command);
    }
}
