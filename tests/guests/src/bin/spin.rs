//! Loops for ever with interrupts off.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
guest_kernel::entry!(main);

#[cfg(target_os = "none")]
fn main(_: u32) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
