//! Handing the gates over: the firmware's is withdrawn, the kernel's are registered, so that all
//! slots are the kernel's, as if the VMM had read its notes.

use exit_abi::gate::{Command, Outcome};
use guest_kernel::arch::gate;
use guest_kernel::gates::command;

use crate::error::Error;
use crate::kernel::{Gate, Gates};

/// Does it, through the gate port. Memory must still be mapped one to one: the port checks the
/// bytes at each address.
pub fn hand_over(kernel: &Gates) -> Result<(), Error> {
    // `None`: nobody serves the gate port, so that nobody would answer at a gate either.
    if command(Command::Withdraw, gate::cpuid_site()).is_none() {
        return Ok(());
    }
    for gate in kernel.iter() {
        let &Gate {
            address,
            command: kind,
        } = gate;
        match command(kind, address) {
            Some(Outcome::Done) | None => {}
            Some(outcome) => return Err(Error::Gate(address, outcome)),
        }
    }
    Ok(())
}
