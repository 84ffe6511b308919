//! Ends with the exit status that its command line names.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

fn guest(start_info: u32) -> u32 {
    test_guests::cmdline_number(start_info)
}
