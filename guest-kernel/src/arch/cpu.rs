//! Single instructions that a kernel needs: halting, interrupts on and off.

use core::arch::asm;

/// Stops this CPU for good.
pub fn stop() -> ! {
    loop {
        // SAFETY: CLI and HLT change no memory; nothing waits for this CPU any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}
