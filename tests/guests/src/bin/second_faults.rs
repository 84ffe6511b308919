//! The last CPU of as many as its command line says triple-faults; the others wait for it.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

#[cfg(not(target_os = "none"))]
fn guest(_: u32) -> u32 {
    0
}

#[cfg(target_os = "none")]
extern "sysv64" fn waits() -> ! {
    test_guests::smp::alive();
    test_guests::smp::halt()
}

#[cfg(target_os = "none")]
extern "sysv64" fn faults() -> ! {
    let none = [0_u16; 5];
    // SAFETY: an empty IDT turns UD2 into a triple fault, which is what this guest is for.
    unsafe { core::arch::asm!("lidt [{}]", "ud2", in(reg) &none, options(noreturn)) }
}

#[cfg(target_os = "none")]
fn guest(start_info: u32) -> u32 {
    use test_guests::smp;

    let last = test_guests::cmdline_number(start_info) as usize - 1;
    (1..last).for_each(|cpu| smp::start(cpu, waits));
    smp::prepare(last, faults);
    smp::init(last);
    smp::startup(last);
    loop {
        core::hint::spin_loop();
    }
}
