//! As many CPUs as its command line says: each writes a milestone with its name and asks its gate,
//! all at once; then all but the first halt for good, and that goes on exiting.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);
guest_kernel::publish_cpuid_gate!();

#[cfg(not(target_os = "none"))]
fn guest(_: u32) -> u32 {
    0
}

#[cfg(target_os = "none")]
static GO: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
#[cfg(target_os = "none")]
static DONE: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);

/// Queries of each CPU.
#[cfg(target_os = "none")]
const QUERIES: u32 = 20;

#[cfg(target_os = "none")]
fn work() {
    use core::sync::atomic::Ordering::SeqCst;
    use exit_abi::port as ports;
    use guest_kernel::arch::gate::gate_cpuid;
    use guest_kernel::arch::port;

    let total = guest_kernel::abi::leaf::Layout::CLASSIC.total_exits;
    let cpu = test_guests::smp::number() as u32;
    while GO.load(SeqCst) == 0 {
        core::hint::spin_loop();
    }
    b"CPU "
        .iter()
        .for_each(|&b| port::out8(ports::MILESTONE_NAME, b));
    port::out8(ports::MILESTONE_NAME, b'0' + cpu as u8);
    port::out32(ports::MILESTONE, 0x100 + cpu);
    let mut before = 0;
    for _ in 0..QUERIES {
        let now = gate_cpuid(total, 0).eax;
        test_guests::check(10 + cpu, now > before, "the count of all CPUs grows");
        before = now;
    }
    port::out32(ports::MILESTONE, 10);
    DONE.fetch_add(1, SeqCst);
}

#[cfg(target_os = "none")]
extern "sysv64" fn other() -> ! {
    test_guests::smp::alive();
    work();
    test_guests::smp::halt()
}

#[cfg(target_os = "none")]
fn guest(start_info: u32) -> u32 {
    use core::sync::atomic::Ordering::SeqCst;

    let cpus = test_guests::cmdline_number(start_info);
    (1..cpus as usize).for_each(|cpu| test_guests::smp::start(cpu, other));
    GO.store(1, SeqCst);
    work();
    while DONE.load(SeqCst) < u64::from(cpus) {
        core::hint::spin_loop();
    }
    for _ in 0..500 {
        guest_kernel::arch::port::out8(exit_abi::port::SCRATCH, 0);
    }
    0
}
