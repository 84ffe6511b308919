//! Writes to the console without end, a line at a time.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
guest_kernel::entry!(main);

#[cfg(target_os = "none")]
fn main(_: u32) -> ! {
    use core::fmt::Write;
    loop {
        let _ = writeln!(guest_kernel::serial::Serial, "all work and no play");
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
