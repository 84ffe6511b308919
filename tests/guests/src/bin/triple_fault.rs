//! Loads an empty IDT and raises an exception: a triple fault.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

fn guest(_: u32) -> u32 {
    let empty = [0_u16; 5];
    // SAFETY: that no handler exists from here on is what this guest is for.
    unsafe { core::arch::asm!("lidt [{}]", "ud2", in(reg) &empty, options(noreturn)) }
}
