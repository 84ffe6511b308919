//! All leaves, through the layout that discovery names, with every kind of reason and of ECX.
//! Its command line is the edition: 2020 or nothing.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);
guest_kernel::publish_cpuid_gate!();

fn guest(start_info: u32) -> u32 {
    use core::fmt::Write;
    use exit_abi::leaf::{self, Layout, Registers, flags};
    use exit_abi::port as ports;
    use guest_kernel::arch::{gate::cpuid, gate::gate_cpuid, port};
    use guest_kernel::serial::Serial;
    use test_guests::{check, check_eq};

    let old = test_guests::cmdline_number(start_info) == 2020;
    let discovery = cpuid(leaf::DISCOVERY, 0);
    let mut signature = [0; 12];
    for (to, word) in signature
        .chunks_mut(4)
        .zip([discovery.ebx, discovery.ecx, discovery.edx])
    {
        to.copy_from_slice(&word.to_le_bytes());
    }
    check_eq(1, signature, leaf::SIGNATURE, "the signature");
    check_eq(2, discovery.eax, leaf::HIGHEST, "the highest leaf");
    check_eq(
        3,
        gate_cpuid(leaf::DISCOVERY, 9),
        discovery,
        "discovery at a gate",
    );
    let info = cpuid(leaf::INFO, 0);
    check_eq(4, info.eax, exit_abi::VERSION, "the version");
    check_eq(5, gate_cpuid(leaf::INFO, 0), info, "information at a gate");
    let layout = Layout::unpack(info.edx);
    check(6, layout.is_valid(), "the layout");
    // How many exits a line costs is KVM's business: they are booked as the profiler's own.
    port::out8(ports::OWN_SECTION, 1);
    let _ = writeln!(Serial, "layout {:x?}", layout.leaves());
    port::out8(ports::OWN_SECTION, 0);

    // Outside a gate the leaves are empty, on every vendor.
    for leaf in layout.leaves() {
        check_eq(
            7,
            cpuid(leaf, 30),
            Registers::default(),
            "a leaf at an ordinary site",
        );
    }

    // 500 exits of reason 30 between two questions, and nothing else of that reason.
    let before = gate_cpuid(layout.exits_of, 30);
    let cycles_before = gate_cpuid(layout.cycles_of, 30);
    for _ in 0..500 {
        port::out8(ports::SCRATCH, 0);
    }
    let after = gate_cpuid(layout.exits_of, 30);
    let cycles_after = gate_cpuid(layout.cycles_of, 30);
    check_eq(8, after.exits() - before.exits(), 500, "port writes");
    check_eq(
        9,
        (after.ecx, after.edx),
        (0, 0),
        "registers that are not named",
    );
    check(
        10,
        cycles_after.cycles() > cycles_before.cycles(),
        "their cycles",
    );
    check_eq(
        11,
        (cycles_after.eax, cycles_after.edx),
        (0, 0),
        "registers that are not named",
    );
    let total = gate_cpuid(layout.total_exits, u32::MAX);
    check(12, total.exits() >= after.exits(), "the total");
    check_eq(
        13,
        (total.ecx, total.edx),
        (0, 0),
        "registers that are not named",
    );
    let cycles = gate_cpuid(layout.total_cycles, 12345);
    check(14, cycles.cycles() >= cycles_after.cycles(), "all cycles");
    check_eq(
        15,
        (cycles.eax, cycles.edx),
        (0, 0),
        "registers that are not named",
    );

    // A query counts itself, as reason 0.
    let first = gate_cpuid(layout.exits_of, 0).exits();
    check_eq(
        16,
        gate_cpuid(layout.exits_of, 0).exits(),
        first + 1,
        "a query counts itself",
    );

    let undefined: &[u32] = if old {
        &[
            35,
            38,
            42,
            65,
            69,
            70,
            85,
            86,
            127,
            128,
            256 + 30,
            0x1_0000 + 30,
            0x8000_001E,
            u32::MAX,
        ]
    } else {
        &[
            35,
            38,
            42,
            71,
            82,
            83,
            86,
            127,
            128,
            256 + 30,
            0x1_0000 + 30,
            0x8000_001E,
            u32::MAX,
        ]
    };
    for &reason in undefined {
        check_eq(
            17,
            gate_cpuid(layout.exits_of, reason),
            Registers::undefined(),
            "undefined",
        );
        check_eq(
            18,
            gate_cpuid(layout.cycles_of, reason),
            Registers::undefined(),
            "undefined",
        );
        check_eq(
            19,
            gate_cpuid(leaf::FLAGS, reason).eax & flags::DEFINED,
            0,
            "its flag",
        );
    }
    // Defined, and raised by no KVM: I/O SMI, GETSEC.
    for reason in [5, 11] {
        check_eq(
            20,
            gate_cpuid(layout.exits_of, reason),
            Registers::default(),
            "not enabled",
        );
        check_eq(
            21,
            gate_cpuid(layout.cycles_of, reason),
            Registers::default(),
            "not enabled",
        );
        check_eq(
            22,
            gate_cpuid(leaf::FLAGS, reason).eax,
            flags::DEFINED,
            "its flag",
        );
    }
    let io = gate_cpuid(leaf::FLAGS, 30).eax;
    let expected = flags::DEFINED | flags::CAN_OCCUR | flags::EXACT_IN_VMM;
    check_eq(23, io & expected, expected, "flags of I/O");

    // The map: what it shows is not zero, what it hides is.
    let map = gate_cpuid(leaf::MAP, 0).map();
    check(
        24,
        map & 1 != 0 && map & 1 << 30 != 0,
        "the map has 0 and 30",
    );
    for reason in 0..86 {
        let seen = gate_cpuid(layout.exits_of, reason).exits() > 0;
        let mapped = map & 1 << reason != 0;
        // An external interrupt or a window may come in between.
        check(
            25,
            seen == mapped || matches!(reason, 1 | 7 | 48),
            "the map is true",
        );
    }
    0
}
