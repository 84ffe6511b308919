//! Two CPUs register and withdraw gates at once, and ask them meanwhile.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);
guest_kernel::publish_cpuid_gate!();

core::arch::global_asm!(
    ".pushsection .text.sites, \"ax\"",
    ".balign 16",
    "site_of_0: cpuid",
    "ret",
    ".balign 16",
    "site_of_1: cpuid",
    "ret",
    ".popsection",
);

#[cfg(not(target_os = "none"))]
fn guest(_: u32) -> u32 {
    0
}

#[cfg(target_os = "none")]
static DONE: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);

#[cfg(target_os = "none")]
fn work(first: u32, site: u64) {
    use exit_abi::gate::Outcome::Done;
    use exit_abi::leaf;
    use guest_kernel::arch::gate::gate_cpuid;
    use test_guests::{check_eq, register, withdraw};

    for _ in 0..30 {
        check_eq(first, register(site), Some(Done), "registered");
        let answer: u32;
        // SAFETY: CPUID and RET; RBX is kept by hand.
        unsafe {
            core::arch::asm!("mov {b}, rbx", "call {at}", "mov rbx, {b}", b = out(reg) _, at = in(reg) site,
                inout("eax") leaf::FLAGS => answer, inout("ecx") 30 => _, out("edx") _);
        }
        check_eq(
            first + 1,
            answer & leaf::flags::DEFINED,
            1,
            "answered at the CPU's own gate",
        );
        check_eq(
            first + 2,
            gate_cpuid(leaf::INFO, 0).eax,
            1,
            "answered at the common gate",
        );
        check_eq(first + 3, withdraw(site), Some(Done), "withdrawn");
    }
}

#[cfg(target_os = "none")]
extern "sysv64" fn second() -> ! {
    unsafe extern "C" {
        static site_of_1: u8;
    }
    test_guests::smp::alive();
    work(11, &raw const site_of_1 as u64);
    DONE.store(1, core::sync::atomic::Ordering::SeqCst);
    test_guests::smp::halt()
}

#[cfg(target_os = "none")]
fn guest(_: u32) -> u32 {
    unsafe extern "C" {
        static site_of_0: u8;
    }
    test_guests::smp::start(1, second);
    work(1, &raw const site_of_0 as u64);
    while DONE.load(core::sync::atomic::Ordering::SeqCst) == 0 {
        core::hint::spin_loop();
    }
    0
}
