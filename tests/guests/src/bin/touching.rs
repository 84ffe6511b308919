//! Touches all RAM from 8 MiB to the number of MiB on its command line, page by page: each must read
//! as zero before it is written. Nothing else: no device's address is accessed.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

#[cfg(not(target_os = "none"))]
fn guest(_: u32) -> u32 {
    0
}

#[cfg(target_os = "none")]
fn guest(start_info: u32) -> u32 {
    let end = u64::from(test_guests::cmdline_number(start_info)) << 20;
    // Not the same place of every page.
    let step = 4096 - 8;
    let mut at = 8 << 20;
    while at + 8 <= end {
        let word = at as *mut u64;
        // SAFETY: RAM that nothing lies in, mapped one to one.
        unsafe {
            test_guests::check(1, word.read_volatile() == 0, "RAM reads as zero");
            word.write_volatile(at | 1);
        }
        at += step;
    }
    0
}
