//! Loops for ever with interrupts off.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

fn guest(_: u32) -> u32 {
    loop {
        core::hint::spin_loop();
    }
}
