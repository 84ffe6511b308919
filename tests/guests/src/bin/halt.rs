//! Halts with interrupts off: nothing can wake it.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

fn guest(_: u32) -> u32 {
    loop {
        // SAFETY: CLI and HLT change no memory.
        unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) }
    }
}
