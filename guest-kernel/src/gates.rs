//! The gate port: registering and withdrawing sites while the guest runs.

use exit_abi::gate::{Command, Outcome};
use exit_abi::port as ports;

use crate::arch::port;

/// Gives a command about the instruction at a linear address. `None`: no outcome that we know,
/// as where nothing serves the port.
pub fn command(command: Command, address: u64) -> Option<Outcome> {
    raw_command(command as u32, address)
}

/// The same with any number for a command, for guests that try Exitvisor.
pub fn raw_command(number: u32, address: u64) -> Option<Outcome> {
    port::out32(ports::GATE_LOW, address as u32);
    port::out32(ports::GATE_HIGH, (address >> 32) as u32);
    port::out32(ports::GATE_COMMAND, number);
    Outcome::from_number(port::in32(ports::GATE_COMMAND))
}
