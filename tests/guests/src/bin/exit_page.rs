//! The exit page beside the leaves and the milestones: the same figures, by plain loads.
//!
//! Command line: 0 compares and prints, 1 resets the machine after it has compared, 2 expects no
//! page, 1000 and more: as many CPUs besides the first as is beyond 1000.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);
guest_kernel::publish_cpuid_gate!();

#[cfg(not(target_os = "none"))]
fn guest(_: u32) -> u32 {
    0
}

/// Reads in a row.
#[cfg(target_os = "none")]
const READS: u64 = 100_000;
/// How often leaf and page are read until no interrupt of the host's came between them.
#[cfg(target_os = "none")]
const PATIENCE: u32 = 50;
/// Port writes of each further CPU.
#[cfg(target_os = "none")]
const WRITES: u64 = 40;

/// Asks until leaf and page agree.
#[cfg(target_os = "none")]
fn agree(number: u32, ask: impl Fn() -> u64, look: impl Fn() -> u64, what: core::fmt::Arguments) {
    use core::fmt::Write;
    let mut last = (0, 0);
    for _ in 0..PATIENCE {
        last = (ask(), look());
        if last.0 == last.1 {
            return;
        }
    }
    let (leaf, page) = last;
    let _ = writeln!(
        guest_kernel::serial::Serial,
        "check {number} failed: {what}: the leaf says {leaf}, the page {page}"
    );
    guest_kernel::exit::exit(number);
}

/// The page is what the leaves say.
#[cfg(target_os = "none")]
fn compare(head: &exit_abi::page::Head) {
    use exit_abi::leaf::Layout;
    use guest_kernel::arch::gate::gate_cpuid;
    use test_guests::page;

    let leaves = Layout::CLASSIC;
    for reason in 0..86_u8 {
        if gate_cpuid(leaves.exits_of, reason.into()).edx != 0 {
            continue;
        }
        agree(
            10,
            || gate_cpuid(leaves.exits_of, reason.into()).exits(),
            || page::exits_of(head, Some(reason)),
            format_args!("exits of {reason}"),
        );
        // What the query itself takes is known when the page is read, and not yet when it asks.
        if reason != 0 && head.timed {
            agree(
                11,
                || gate_cpuid(leaves.cycles_of, reason.into()).cycles(),
                || page::cycles_of(head, reason),
                format_args!("cycles of {reason}"),
            );
        }
    }
    agree(
        12,
        || gate_cpuid(leaves.total_exits, 0).exits(),
        || page::total(head),
        format_args!("all exits"),
    );
    page::check_rows(13, head);
}

#[cfg(target_os = "none")]
fn guest(start_info: u32) -> u32 {
    use core::fmt::Write;
    use exit_abi::{leaf, port as ports};
    use guest_kernel::arch::{gate::cpuid, port};
    use guest_kernel::serial::Serial;
    use test_guests::{check, check_eq, page};

    let part = test_guests::cmdline_number(start_info);
    if part == 2 {
        let info = cpuid(leaf::INFO, 0);
        check_eq(20, (info.ebx, info.ecx), (0, 0), "no exit page");
        check_eq(21, page::load(0), 0, "nothing is there");
        return 0;
    }
    let head = page::find();
    if part >= 1000 {
        return processors(&head, u64::from(part) - 1000);
    }
    compare(&head);
    if part == 1 {
        port::out8(ports::RESET, ports::RESET_VALUE);
    }

    // At each milestone the page's figures are kept, and printed in the end.
    const MILESTONES: usize = 3;
    let mut kept = [[0; 129]; MILESTONES];
    for (n, kept) in kept.iter_mut().enumerate() {
        for _ in 0..50 * (n + 1) {
            port::out8(ports::SCRATCH, 0);
        }
        port::out32(ports::MILESTONE, 0x200 + n as u32);
        for vcpu in 0..head.vcpus {
            for row in 0..head.rows {
                let place = head.reason(row, page::load).map_or(128, |r| r.index());
                kept[place] += head.exits(vcpu, row, page::load);
            }
        }
    }
    // Reading costs no exit.
    let mut sum = 0;
    port::out32(ports::MILESTONE, 0x210);
    for n in 0..READS {
        sum |= head.exits(0, n % head.rows, page::load);
    }
    port::out32(ports::MILESTONE, 0x211);
    check(14, sum > 0, "something was read");
    compare(&head);

    let _ = writeln!(Serial, "{} {}", head.kind.name(), head.vcpus);
    for (n, kept) in kept.iter().enumerate() {
        for (reason, exits) in kept.iter().enumerate().filter(|(_, exits)| **exits > 0) {
            let _ = writeln!(Serial, "page {} {reason} {exits}", 0x200 + n);
        }
    }
    0
}

#[cfg(target_os = "none")]
static DONE: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);

#[cfg(target_os = "none")]
extern "sysv64" fn other() -> ! {
    use core::sync::atomic::Ordering::SeqCst;
    test_guests::smp::alive();
    for _ in 0..WRITES {
        guest_kernel::arch::port::out8(exit_abi::port::SCRATCH, 0);
    }
    // The last exit's time is known once it is over.
    DONE.fetch_add(1, SeqCst);
    test_guests::smp::halt()
}

/// Every CPU has its own record.
#[cfg(target_os = "none")]
fn processors(head: &exit_abi::page::Head, others: u64) -> u32 {
    use core::sync::atomic::Ordering::SeqCst;
    use test_guests::{check_eq, page};

    check_eq(30, head.vcpus, others + 1, "a record per CPU");
    for cpu in 1..=others {
        test_guests::smp::start(cpu as usize, other);
        while DONE.load(SeqCst) < cpu {
            core::hint::spin_loop();
        }
        let of = |vcpu: u64| {
            (0..head.rows)
                .filter(|&row| head.reason(row, page::load) == Some(exit_abi::reason::Reason::IO))
                .fold(0, |sum, row| sum + head.exits(vcpu, row, page::load))
        };
        check_eq(31, of(cpu), WRITES, "its port writes are in its record");
        for silent in cpu + 1..=others {
            check_eq(32, of(silent), 0, "and in no other");
        }
        page::check_rows(33, head);
    }
    0
}
