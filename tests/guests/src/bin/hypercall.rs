//! The hypercall at a gate, registered by port: 0x283 and others; and, with 1 on the command line,
//! one that is no gate: it must not hang.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

#[cfg(not(target_os = "none"))]
fn guest(_: u32) -> u32 {
    0
}

#[cfg(target_os = "none")]
fn guest(start_info: u32) -> u32 {
    use exit_abi::gate::{Command, Outcome::*};
    use exit_abi::hypercall;
    use guest_kernel::arch::gate::{gate_hypercall, hypercall_site};
    use test_guests::{check_eq, gate};

    test_guests::traps::install();
    let register = Command::RegisterHypercall as u32;
    let site = hypercall_site();
    check_eq(
        1,
        gate(Command::RegisterCpuid as u32, site),
        Some(NotTheInstruction),
        "no CPUID",
    );
    check_eq(2, gate(register, site), Some(Done), "registered");
    check_eq(
        3,
        gate_hypercall(hypercall::WHO_ARE_YOU),
        hypercall::ANSWER,
        "who are you",
    );
    for number in [0, 1, 0x284, 0x1_0000_0283, u64::MAX] {
        check_eq(
            4,
            gate_hypercall(number),
            hypercall::UNKNOWN,
            "another number",
        );
    }
    check_eq(
        5,
        gate(Command::Withdraw as u32, site),
        Some(Done),
        "withdrawn",
    );
    if test_guests::cmdline_number(start_info) == 1 {
        // KVM's own answer, or #UD where it offers none: never a hang.
        gate_hypercall(hypercall::WHO_ARE_YOU);
    }
    0
}
