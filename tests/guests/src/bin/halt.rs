//! Halts with interrupts off: nothing can wake it.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
guest_kernel::entry!(main);

#[cfg(target_os = "none")]
fn main(_: u32) -> ! {
    loop {
        // SAFETY: CLI and HLT change no memory.
        unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
