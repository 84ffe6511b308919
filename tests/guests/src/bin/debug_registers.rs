//! MOV DR a hundred times without a gate, with one, and once more without: on each of as many CPUs
//! as its command line says, one after the other, with milestones between.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

core::arch::global_asm!(
    ".pushsection .text.sites, \"ax\"",
    ".global gated_site",
    "gated_site: cpuid",
    "ret",
    ".popsection",
);

#[cfg(not(target_os = "none"))]
fn guest(_: u32) -> u32 {
    0
}

/// How often each phase writes DR3.
#[cfg(target_os = "none")]
const WRITES: u32 = 100;

#[cfg(target_os = "none")]
static DONE: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);

#[cfg(target_os = "none")]
fn phase(name: &[u8], number: u32) {
    use exit_abi::port as ports;
    use guest_kernel::arch::{cpu, port};

    for _ in 0..WRITES {
        cpu::clear_dr3();
    }
    name.iter()
        .for_each(|&b| port::out8(ports::MILESTONE_NAME, b));
    port::out32(ports::MILESTONE, number);
}

#[cfg(target_os = "none")]
fn work() {
    use exit_abi::gate::Outcome::Done;
    use test_guests::{check_eq, register, smp, withdraw};

    unsafe extern "C" {
        static gated_site: u8;
    }
    let (cpu, site) = (smp::number() as u32, (&raw const gated_site) as u64);
    phase(b"before", 0x100 + 16 * cpu);
    check_eq(1, register(site), Some(Done), "registered");
    phase(b"armed", 0x101 + 16 * cpu);
    check_eq(2, withdraw(site), Some(Done), "withdrawn");
    phase(b"after", 0x102 + 16 * cpu);
    DONE.fetch_add(1, core::sync::atomic::Ordering::SeqCst);
}

#[cfg(target_os = "none")]
extern "sysv64" fn other() -> ! {
    test_guests::smp::alive();
    work();
    test_guests::smp::halt()
}

#[cfg(target_os = "none")]
fn guest(start_info: u32) -> u32 {
    let cpus = u64::from(test_guests::cmdline_number(start_info));
    work();
    for cpu in 1..cpus {
        test_guests::smp::start(cpu as usize, other);
        while DONE.load(core::sync::atomic::Ordering::SeqCst) <= cpu {
            core::hint::spin_loop();
        }
    }
    0
}
