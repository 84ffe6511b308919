//! Milestones: a port write that carries a number.

use exit_abi::port as abi;

use crate::arch::port;
use crate::ports;

/// Tells Exitvisor that this milestone ([`exit_abi::milestone`] or one of the guest's own) is reached.
pub fn reached(number: u32) {
    port::out32(ports::MILESTONE.get(), number);
}

/// The same for a milestone that the guest names here and now (at most 32 bytes of the name count).
pub fn reached_as(number: u32, name: &str) {
    port::out_bytes(abi::MILESTONE_NAME, name.as_bytes());
    reached(number);
}
