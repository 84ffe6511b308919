//! The kernel module, which is C, speaks the interface that `exit-abi` defines: its numbers are the
//! crate's.

// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use exit_abi::gate::{Command, Outcome};
use exit_abi::leaf::{self, SIGNATURE};
use exit_abi::{hypercall, port};

const SOURCE: &str = include_str!("../../module/exitlog.c");

/// The number of `#define EXITLOG_NAME number`.
fn defined(name: &str) -> u64 {
    let mut lines = SOURCE.lines().map(str::split_whitespace);
    let value = lines.find_map(|mut words| {
        let found =
            words.next() == Some("#define") && words.next()?.strip_prefix("EXITLOG_") == Some(name);
        found.then(|| words.next()).flatten()
    });
    let value = value.unwrap_or_else(|| panic!("{name} is not defined"));
    let number = match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => value.parse(),
    };
    number.unwrap()
}

#[test]
fn its_numbers_are_the_interfaces() {
    let expected: [(&str, u64); 15] = [
        ("GATE_LOW", port::GATE_LOW.into()),
        ("GATE_HIGH", port::GATE_HIGH.into()),
        ("GATE_COMMAND", port::GATE_COMMAND.into()),
        ("REGISTER_CPUID", Command::RegisterCpuid as u64),
        ("REGISTER_HYPERCALL", Command::RegisterHypercall as u64),
        ("WITHDRAW", Command::Withdraw as u64),
        ("DONE", Outcome::Done as u64),
        ("FULL", Outcome::Full as u64),
        ("DISCOVERY", leaf::DISCOVERY.into()),
        ("MAP", leaf::MAP.into()),
        ("INFO", leaf::INFO.into()),
        ("PREFIX", leaf::PREFIX.into()),
        ("REASONS", exit_abi::reason::COUNT as u64),
        ("VERSION", exit_abi::VERSION.into()),
        ("HYPERCALL", hypercall::WHO_ARE_YOU),
    ];
    for (name, number) in expected {
        assert_eq!(defined(name), number, "{name}");
    }
    let definitions = SOURCE.matches("#define EXITLOG_").count();
    assert_eq!(definitions, expected.len(), "each is compared");
    let signature = std::str::from_utf8(&SIGNATURE).unwrap();
    assert!(SOURCE.contains(&format!("\"{signature}\"")));
}
