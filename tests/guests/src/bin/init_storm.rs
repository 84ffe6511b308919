//! As many INIT and start-up IPIs to CPU 1 as its command line says, pairs of them: it must come up
//! once more after the storm, and its gate must answer.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);
guest_kernel::publish_cpuid_gate!();

#[cfg(not(target_os = "none"))]
fn guest(_: u32) -> u32 {
    0
}

#[cfg(target_os = "none")]
extern "sysv64" fn second() -> ! {
    test_guests::smp::alive();
    test_guests::smp::halt()
}

#[cfg(target_os = "none")]
extern "sysv64" fn after() -> ! {
    use exit_abi::leaf;
    let answer = guest_kernel::arch::gate::gate_cpuid(leaf::FLAGS, 30);
    let defined = answer.eax & leaf::flags::DEFINED;
    test_guests::check_eq(2, defined, 1, "the gate answers on CPU 1");
    test_guests::smp::alive();
    test_guests::smp::halt()
}

#[cfg(target_os = "none")]
fn guest(start_info: u32) -> u32 {
    use test_guests::smp;

    smp::start(1, second);
    for n in 0..test_guests::cmdline_number(start_info) {
        smp::init(1);
        // Without one, with one and with two of them, as the SDM's own start-up has it.
        (0..n % 3).for_each(|_| smp::startup(1));
    }
    smp::init(1);
    smp::forget(1);
    smp::start(1, after);
    0
}
