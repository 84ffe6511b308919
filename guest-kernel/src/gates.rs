//! The gate port: registering and withdrawing sites while the guest runs.

use exit_abi::gate::{Command, Outcome};

use crate::arch::port;
use crate::ports;

/// Gives a command about the instruction at a linear address. `None`: no outcome that we know,
/// as where nothing serves the port.
pub fn command(command: Command, address: u64) -> Option<Outcome> {
    raw_command(command as u32, address)
}

/// The same with any number for a command, for guests that try Exitvisor.
pub fn raw_command(number: u32, address: u64) -> Option<Outcome> {
    port::out32(ports::GATE_LOW.get(), address as u32);
    port::out32(ports::GATE_HIGH.get(), (address >> 32) as u32);
    port::out32(ports::GATE_COMMAND.get(), number);
    Outcome::from_number(port::in32(ports::GATE_COMMAND.get()))
}
