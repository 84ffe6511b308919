//! The gate port, used and abused: every outcome, and what a gate does to ordinary leaves and to
//! bytes that are no longer CPUID.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);
guest_kernel::publish_cpuid_gate!();

// Sites of its own, in memory that it can rewrite: `cpuid; ret` six times, 16 bytes apart, and one
// that lies across two pages.
core::arch::global_asm!(
    ".pushsection .data.sites, \"awx\"",
    ".balign 4096",
    "sites:",
    ".rept 6",
    "push rbx",
    "push rcx",
    "cpuid",
    "mov r8d, ebx",
    "pop rcx",
    "pop rbx",
    "ret",
    ".balign 16",
    ".endr",
    ".balign 4096",
    ".fill 4095, 1, 0x90",
    "across:",
    "cpuid",
    "ret",
    ".popsection",
);

fn guest(_: u32) -> u32 {
    use core::arch::asm;
    use exit_abi::gate::Outcome::*;
    use exit_abi::leaf::{self, Layout};
    use guest_kernel::arch::gate;
    use test_guests::{check, check_eq, register, withdraw};

    unsafe extern "C" {
        static sites: [[u8; 16]; 6];
        static across: u8;
    }
    // Behind `push rbx; push rcx`.
    let site = |i: usize| (&raw const sites) as u64 + 16 * i as u64 + 2;
    let across_site = (&raw const across) as u64;
    // EAX of CPUID at a site, with what a debugger could have disturbed: flags kept.
    let call = |at: u64, eax: u32, ecx: u32| -> u32 {
        let answer;
        // SAFETY: the routine keeps everything but RAX, RDX and R8.
        unsafe {
            asm!("call {}", in(reg) at, inout("eax") eax => answer, in("ecx") ecx,
                out("edx") _, out("r8") _);
        }
        answer
    };
    let exits = Layout::CLASSIC.total_exits;

    // The note's gate takes one slot of four.
    check_eq(
        1,
        gate::gate_cpuid(leaf::INFO, 0).eax,
        exit_abi::VERSION,
        "the note's gate",
    );
    check_eq(
        2,
        call(site(0) - 2, exits, 0),
        0,
        "an ordinary site answers zeros",
    );
    check_eq(3, register(site(0)), Some(Done), "a first gate");
    check(4, call(site(0) - 2, exits, 0) > 0, "a gate answers");
    check_eq(5, register(site(0)), Some(Duplicate), "the same again");
    check_eq(6, register(site(1)), Some(Done), "a second");
    check_eq(7, register(across_site), Some(Done), "one across two pages");
    check_eq(8, register(site(2)), Some(Full), "a fifth");
    let got: u32;
    // SAFETY: CPUID and RET; RBX is kept by hand.
    unsafe {
        asm!("mov {b}, rbx", "call {at}", "mov rbx, {b}", b = out(reg) _, at = in(reg) across_site,
            inout("eax") exits => got, inout("ecx") 0 => _, out("edx") _);
    }
    check(9, got > 0, "a gate across two pages answers");
    check_eq(10, withdraw(site(1)), Some(Done), "withdrawn");
    check_eq(11, withdraw(site(1)), Some(NotFound), "withdrawn twice");
    check_eq(
        12,
        call(site(1) - 2, exits, 0),
        0,
        "a withdrawn gate answers no more",
    );
    check_eq(13, register(1 << 47), Some(BadAddress), "not canonical");
    check_eq(14, register(0x10_0000_0000), Some(BadAddress), "not mapped");
    check_eq(
        15,
        register(u64::MAX),
        Some(BadAddress),
        "the last byte there is",
    );
    check_eq(
        16,
        register(exit_abi::SCRATCH_PAGE),
        Some(BadAddress),
        "a device's address",
    );
    check_eq(
        17,
        register(site(1) + 1),
        Some(NotTheInstruction),
        "no CPUID there",
    );
    check_eq(
        18,
        test_guests::gate(2, site(1)),
        Some(NotTheInstruction),
        "no VMCALL there",
    );
    for command in [0, 5, u32::MAX] {
        check_eq(
            19,
            test_guests::gate(command, site(1)),
            Some(BadCommand),
            "no such command",
        );
    }
    check_eq(20, register(site(2)), Some(Done), "the slot is free again");

    // A gate and an ordinary leaf: exactly what CPUID gives.
    for (eax, ecx) in [
        (0, 0),
        (1, 0),
        (4, 1),
        (7, 0),
        (0xD, 1),
        (0x4000_0000, 0),
        (0x8000_0008, 0),
        (0x1234_5678, 0),
    ] {
        let (gated, plain) = (gate::gate_cpuid(eax, ecx), gate::cpuid(eax, ecx));
        check_eq(
            21,
            gated.eax,
            plain.eax,
            "EAX of an ordinary leaf at a gate",
        );
        check_eq(
            22,
            gated.ecx,
            plain.ecx,
            "ECX of an ordinary leaf at a gate",
        );
        check_eq(
            23,
            gated.edx,
            plain.edx,
            "EDX of an ordinary leaf at a gate",
        );
    }

    // Bytes that are no longer CPUID are executed as what they are.
    let at = site(0) as *mut u16;
    // SAFETY: the site lies in this guest's own data; nobody executes it now.
    unsafe { at.write_volatile(0x9090) };
    for _ in 0..3 {
        check_eq(
            24,
            call(site(0) - 2, exits, 0),
            exits,
            "two NOPs leave EAX alone",
        );
    }
    // `mov al, 7`
    // SAFETY: as above.
    unsafe { at.write_volatile(0x07B0) };
    check_eq(
        25,
        call(site(0) - 2, exits, 0),
        exits & !0xFF | 7,
        "a MOV is executed",
    );
    // SAFETY: as above.
    unsafe { at.write_volatile(0xA20F) };
    check(
        26,
        call(site(0) - 2, exits, 0) > 0,
        "CPUID again: a gate again",
    );

    // A hundred registrations and withdrawals leave nothing behind.
    for _ in 0..100 {
        check_eq(27, withdraw(site(2)), Some(Done), "again withdrawn");
        check_eq(28, register(site(2)), Some(Done), "again registered");
    }
    0
}
