//! Guests of the black-box tests: one behaviour each, under `src/bin/`.
//!
//! A guest checks itself with [`check`]: the first check that fails ends it with the check's number
//! as exit status, after a line on the console; one whose checks all hold ends with 0.
#![cfg_attr(not(test), no_std)]

#[cfg(target_os = "none")]
pub mod page;

#[cfg(target_os = "none")]
pub mod traps;

#[cfg(target_os = "none")]
pub mod smp;

use core::fmt::Write;

use exit_abi::gate::{Command, Outcome};
use exit_abi::port as ports;
use guest_kernel::arch::port;
use guest_kernel::serial::Serial;

/// Ends the guest with status `number` (1–63) unless `ok`.
pub fn check(number: u32, ok: bool, what: &str) {
    if !ok {
        let _ = writeln!(Serial, "check {number} failed: {what}");
        guest_kernel::exit::exit(number);
    }
}

/// Like [`check`], for two values that must be equal.
pub fn check_eq<T: PartialEq + core::fmt::Debug>(number: u32, got: T, expected: T, what: &str) {
    if got != expected {
        let _ = writeln!(
            Serial,
            "check {number} failed: {what}: {got:x?}, not {expected:x?}"
        );
        guest_kernel::exit::exit(number);
    }
}

/// Gives a gate command through the ports.
pub fn gate(command: u32, address: u64) -> Option<Outcome> {
    port::out32(ports::GATE_LOW, address as u32);
    port::out32(ports::GATE_HIGH, (address >> 32) as u32);
    port::out32(ports::GATE_COMMAND, command);
    Outcome::from_number(port::in32(ports::GATE_COMMAND))
}

/// Registers a `cpuid` instruction as a gate.
pub fn register(address: u64) -> Option<Outcome> {
    gate(Command::RegisterCpuid as u32, address)
}

/// Withdraws a gate.
pub fn withdraw(address: u64) -> Option<Outcome> {
    gate(Command::Withdraw as u32, address)
}

/// The number that begins the command line; 0 if there is none.
pub fn cmdline_number(start_info: u32) -> u32 {
    // SAFETY: start info is where PVH's entry said, in the first 4 GiB, which are mapped one to
    // one; `cmdline_paddr` stands at offset 24 of it, and the command line ends with a NUL.
    let mut at = unsafe { *(start_info as usize as *const u64).add(3) } as *const u8;
    let mut number = 0_u32;
    loop {
        // SAFETY: as above: this is at or before the NUL.
        let byte = unsafe { *at };
        if !byte.is_ascii_digit() {
            return number;
        }
        number = number.wrapping_mul(10).wrapping_add(u32::from(byte - b'0'));
        // SAFETY: the byte was a digit, not the NUL.
        at = unsafe { at.add(1) };
    }
}
