//! Writes to the console without end, a line at a time.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

fn guest(_: u32) -> u32 {
    use core::fmt::Write;
    loop {
        let _ = writeln!(guest_kernel::serial::Serial, "all work and no play");
    }
}
