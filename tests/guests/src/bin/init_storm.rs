//! As many INITs to CPU 1 as its command line says, with and without start-up IPIs, and a gate
//! registered now and then, for which every CPU has to stop: CPU 1 must come up once more after the
//! storm, and its gate must answer.
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

/// CPU 1 has asked. That it is alive does not tell: on a busy host it may come to say so of an
/// earlier start only now.
#[cfg(target_os = "none")]
static HAS_ASKED: core::sync::atomic::AtomicBool = core::sync::atomic::AtomicBool::new(false);

#[cfg(target_os = "none")]
extern "sysv64" fn after() -> ! {
    use core::sync::atomic::Ordering::Release;
    use exit_abi::leaf;
    let answer = guest_kernel::arch::gate::gate_cpuid(leaf::FLAGS, 30);
    let defined = answer.eax & leaf::flags::DEFINED;
    test_guests::check_eq(2, defined, 1, "the gate answers on CPU 1");
    test_guests::smp::alive();
    HAS_ASKED.store(true, Release);
    test_guests::smp::halt()
}

#[cfg(target_os = "none")]
fn guest(start_info: u32) -> u32 {
    use exit_abi::gate::Outcome;
    use test_guests::{check_eq, register, smp, withdraw};

    smp::start(1, second);
    for n in 0..test_guests::cmdline_number(start_info) {
        smp::init(1);
        // Without one, with one and with two of them, as the SDM's own start-up has it.
        (0..n % 3).for_each(|_| smp::startup(1));
        if n % 100 < 3 {
            let site = guest_kernel::arch::gate::cpuid_site();
            check_eq(3, withdraw(site), Some(Outcome::Done), "withdrawn");
            check_eq(4, register(site), Some(Outcome::Done), "registered");
        }
    }
    smp::init(1);
    smp::forget(1);
    smp::start(1, after);
    while !HAS_ASKED.load(core::sync::atomic::Ordering::Acquire) {
        core::hint::spin_loop();
    }
    0
}
