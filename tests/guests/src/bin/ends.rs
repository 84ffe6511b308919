//! Ends with the exit status that its command line names.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
guest_kernel::entry!(main);

#[cfg(target_os = "none")]
fn main(start_info: u32) -> ! {
    test_guests::exit(test_guests::cmdline_number(start_info))
}

#[cfg(not(target_os = "none"))]
fn main() {}
