//! Single instructions that a kernel needs: halting, interrupts, control registers.

use core::arch::asm;

/// Lets interrupts in and halts until one has been handled; returns with interrupts off.
///
/// STI opens only after the instruction that follows it (SDM vol. 2B, STI), so that an interrupt
/// that is already pending ends the HLT instead of being lost before it.
pub fn wait_for_interrupt() {
    // SAFETY: the handlers keep every register and touch only atomics. Without an IDT the CPU
    // would end in a triple fault, which stops it and corrupts nothing.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}

/// Stops this CPU for good.
pub fn stop() -> ! {
    loop {
        // SAFETY: CLI and HLT change no memory; nothing waits for this CPU any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// The linear address that faulted last.
pub fn cr2() -> u64 {
    let value;
    // SAFETY: reading CR2 changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}
