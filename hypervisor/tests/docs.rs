//! The documents say what the code says: tables in `docs/` against the constants and fields they
//! describe.

use exit_abi::page::{self, head, row};
use exit_abi::{gate, leaf, milestone, note, port};
use exitvisor::platform::{acpi, cpuid};
use exitvisor::{profile, status};

const STATUSES: &str = include_str!("../../docs/exit-statuses.md");
const PLATFORM: &str = include_str!("../../docs/platform.md");
const LINUX: &str = include_str!("../../docs/linux.md");
const FIRMWARE: &str = include_str!("../../docs/firmware.md");
const INTERFACE: &str = include_str!("../../docs/guest-interface.md");
const SCHEMA: &str = include_str!("../../docs/profile-schema.md");

/// The cells of every table row in a document, but for headings and rules.
fn rows(document: &str) -> Vec<Vec<&str>> {
    let rows = document
        .lines()
        .filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
    rows.map(|row| row.split('|').map(str::trim).collect())
        .filter(|cells: &Vec<&str>| !cells[0].starts_with('-'))
        .collect()
}

/// Whether a row begins with these two cells.
fn has_row(document: &str, first: &str, second: &str) -> bool {
    rows(document)
        .iter()
        .any(|cells| cells.starts_with(&[first, second]))
}

#[test]
fn exit_statuses() {
    let documented: Vec<_> = rows(STATUSES).split_off(1);
    let defined = status::ALL.iter();
    let defined: Vec<_> = defined
        .map(|(number, name, meaning)| {
            [&number.to_string(), *name, meaning.trim()].map(String::from)
        })
        .collect();
    assert_eq!(documented, defined);
}

#[test]
fn firmware_statuses() {
    let documented: Vec<_> = rows(FIRMWARE)
        .into_iter()
        .filter(|cells| cells[0].parse::<u32>().is_ok())
        .collect();
    let defined = exit_abi::status::firmware::ALL.iter();
    let defined: Vec<_> = defined
        .map(|(number, name, meaning)| {
            [&number.to_string(), *name, meaning.trim()].map(String::from)
        })
        .collect();
    assert_eq!(documented, defined);
    for (number, ..) in exit_abi::status::firmware::ALL {
        assert!((40..=55).contains(number), "not of the range documented");
    }
}

/// The picture in `docs/firmware.md` shows the window of `layout.rs` and the start of the linker's
/// script.
#[test]
fn the_firmwares_place() {
    let script = include_str!("../../firmware/firmware.ld");
    let (start, end) = (exitvisor::layout::FIRMWARE, exitvisor::layout::FIRMWARE_END);
    assert!(script.contains(&format!(". = {start:#x};")));
    for address in [start, end] {
        let shown = format!("0x{:04X}_{:04X}", address >> 16, address & 0xFFFF);
        assert!(FIRMWARE.contains(&shown), "{shown}");
    }
}

#[test]
fn what_linux_is_told() {
    for (argument, why) in exitvisor::boot::arguments::ARGUMENTS {
        assert!(has_row(LINUX, &format!("`{argument}`"), why), "{argument}");
    }
}

#[test]
fn ports_that_nobody_has() {
    for (first, last, answer, why) in exitvisor::devices::absent::PORTS {
        let ports = match first == last {
            true => format!("{first:#x}"),
            false => format!("{first:#x}–{last:#x}"),
        };
        let row = [&ports, &answer.to_string(), *why];
        let found = rows(PLATFORM).iter().any(|cells| cells[..] == row);
        assert!(found, "{row:?}");
    }
}

#[test]
fn milestones() {
    for number in 1..milestone::FIRST_OWN {
        let Some(name) = milestone::name(number) else {
            continue;
        };
        assert!(
            has_row(INTERFACE, &number.to_string(), name),
            "milestone {number} {name}"
        );
    }
}

#[test]
fn ports() {
    for (number, name) in [
        (port::MILESTONE, "MILESTONE"),
        (port::MILESTONE_NAME, "MILESTONE_NAME"),
        (port::EXIT, "EXIT"),
        (port::OWN_SECTION, "OWN_SECTION"),
        (port::GATE_LOW, "GATE_LOW"),
        (port::GATE_HIGH, "GATE_HIGH"),
        (port::GATE_COMMAND, "GATE_COMMAND"),
        (port::SCRATCH, "SCRATCH"),
        (port::SLEEP_CONTROL, "SLEEP_CONTROL"),
        (port::SLEEP_STATUS, "SLEEP_STATUS"),
        (port::RESET, "RESET"),
        (port::COM1, "COM1"),
    ] {
        assert!(
            has_row(
                INTERFACE,
                &format!("`{number:#06X}`").replace("0X", "0x"),
                name
            ),
            "{name}"
        );
    }
}

/// The bytes that the power-off and reset ports want, and the words for the ends of a run.
#[test]
fn power_and_ends() {
    for value in [port::POWER_OFF, port::RESET_VALUE] {
        assert!(
            INTERFACE.contains(&format!("`0x{value:02X}`")),
            "{value:#x}"
        );
    }
    use profile::EndKind::*;
    let kinds = [
        Exit,
        Crash,
        PowerOff,
        Reset,
        ResetLimit,
        TripleFault,
        Timeout,
        Interrupted,
        KvmError,
        Internal,
    ];
    for kind in kinds {
        let word = serde_json::to_string(&kind).unwrap().replace('"', "`");
        assert!(SCHEMA.contains(&word), "{word}");
    }
}

#[test]
fn gate_commands_and_outcomes() {
    for number in 0..100 {
        if let Some(command) = gate::Command::from_number(number) {
            assert!(
                has_row(INTERFACE, &number.to_string(), &format!("{command:?}")),
                "{command:?}"
            );
        }
        if let Some(outcome) = gate::Outcome::from_number(number) {
            assert!(
                has_row(INTERFACE, &number.to_string(), &format!("{outcome:?}")),
                "{outcome:?}"
            );
        }
    }
}

#[test]
fn leaves_flags_and_notes() {
    for (number, name) in [
        (leaf::DISCOVERY, "DISCOVERY"),
        (leaf::FLAGS, "FLAGS"),
        (leaf::MAP, "MAP"),
        (leaf::INFO, "INFO"),
    ] {
        assert!(
            has_row(INTERFACE, &format!("`0x{number:08X}`"), name),
            "{name}"
        );
    }
    for (flag, name) in [
        (leaf::flags::DEFINED, "DEFINED"),
        (leaf::flags::CAN_OCCUR, "CAN_OCCUR"),
        (leaf::flags::EXACT, "EXACT"),
        (leaf::flags::EXACT_IN_VMM, "EXACT_IN_VMM"),
    ] {
        assert!(
            has_row(INTERFACE, &flag.trailing_zeros().to_string(), name),
            "{name}"
        );
    }
    for (number, name) in [
        (note::CPUID_GATES, "CPUID_GATES"),
        (note::HYPERCALL_GATES, "HYPERCALL_GATES"),
        (note::MILESTONE_NAME, "MILESTONE_NAME"),
    ] {
        assert!(has_row(INTERFACE, &number.to_string(), name), "{name}");
    }
}

#[test]
fn the_exit_page() {
    let documented: Vec<_> = rows(INTERFACE)
        .into_iter()
        .filter(|cells| cells[0].parse::<usize>().is_ok())
        .map(|cells| (cells[0].to_owned(), cells[1].to_owned()))
        .collect();
    for (offset, name) in [
        (head::MAGIC, "MAGIC"),
        (head::VERSION_AND_KIND, "VERSION_AND_KIND"),
        (head::VCPUS, "VCPUS"),
        (head::RECORDS, "RECORDS"),
        (head::RECORD_STRIDE, "RECORD_STRIDE"),
        (head::ROWS, "ROWS"),
        (head::ROW_STRIDE, "ROW_STRIDE"),
        (head::RATE, "RATE"),
        (head::FLAGS, "FLAGS"),
        (page::REASONS, "REASONS"),
        (row::EXITS, "EXITS"),
        (row::TIMED, "TIMED"),
        (row::TIME, "TIME"),
        (row::OWN_TIMED, "OWN_TIMED"),
        (row::OWN_TIME, "OWN_TIME"),
        (row::MIN, "MIN"),
        (row::MAX, "MAX"),
    ] {
        let row = (offset.to_string(), name.to_owned());
        assert!(documented.contains(&row), "{name}");
    }
    assert!(INTERFACE.contains(&format!("`{:#X}`", page::ADDRESS).replace("0X", "0x")));
    let node = exit_abi::devicetree::EXIT_PAGE;
    assert!(INTERFACE.contains(&format!("`{node}`")));
}

#[test]
fn acpi_flags() {
    let flags = acpi::FADT_FLAGS.iter().chain(acpi::BOOT_FLAGS);
    let defined: Vec<Vec<String>> = flags
        .map(|(bit, name, why)| vec![bit.to_string(), (*name).into(), (*why).into()])
        .collect();
    let documented: Vec<_> = rows(PLATFORM)
        .into_iter()
        .filter(|cells| cells.len() == 3 && cells[0].parse::<u8>().is_ok())
        .collect();
    assert_eq!(documented, defined);
}

/// The leaves that are shaped, in the order of the code.
#[test]
fn cpuid_leaves() {
    let defined = cpuid::LEAVES.iter();
    let defined: Vec<Vec<&str>> = defined.map(|(leaf, change)| vec![*leaf, *change]).collect();
    let documented: Vec<_> = rows(PLATFORM)
        .into_iter()
        .filter(|cells| cells.len() == 2)
        .skip_while(|cells| cells[0] != "1")
        .take(defined.len())
        .collect();
    assert_eq!(documented, defined);
}

/// Every public field of the model has a row; the schema's version is the code's.
#[test]
fn profile_schema() {
    let model = include_str!("../src/profile/mod.rs");
    let mut fields = 0;
    for line in model
        .lines()
        .filter_map(|line| line.strip_prefix("    pub "))
    {
        // A space before the colon: a method with arguments.
        let field = line.split_once(": ").map(|(field, _)| field);
        let Some(field) = field.filter(|field| !field.contains(' ')) else {
            continue;
        };
        let cell = format!("`{field}`");
        assert!(rows(SCHEMA).iter().any(|cells| cells[0] == cell), "{field}");
        fields += 1;
    }
    assert!(fields > 40, "{fields} fields: is the model elsewhere?");
    assert!(SCHEMA.contains(&format!("\"schema\": \"{}\"", profile::SCHEMA)));
    assert!(SCHEMA.contains(&format!("\"version\": {}", profile::VERSION)));
}

/// The words for what is asked for, and the indices that the fixed count takes off.
#[test]
fn what_is_asked_for() {
    use profile::AskKind::*;
    for kind in [
        MsrRead, MsrWrite, PortIn, PortOut, Cpuid, Page, Ram, Exception, Interrupt, CrRead, CrWrite,
    ] {
        let word = serde_json::to_string(&kind).unwrap().replace('"', "`");
        assert!(SCHEMA.contains(&word), "{word}");
        let driven = (0..0x1000).filter(|&index| {
            let count = 1;
            profile::fixed::driver(&profile::Ask { kind, index, count }).is_some()
        });
        let expected: &[u64] = match kind {
            MsrWrite => &[0x6E0, 0x80B],
            PortOut => &[0x20, 0x21, 0x40, 0x41, 0x42, 0x43, 0xA0, 0xA1],
            _ => &[],
        };
        assert_eq!(
            driven.collect::<Vec<_>>(),
            expected,
            "the document says these"
        );
    }
}
