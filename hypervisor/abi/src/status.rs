//! The exit status a guest writes to [`crate::port::EXIT`].

pub mod firmware;

/// Highest status that is the guest's own; a larger one (but [`CRASH`]) is cut to it.
pub const GUEST_MAX: u32 = 63;
/// Says that the guest crashed (panic, unhandled exception): Exitvisor ends with its own status.
pub const CRASH: u32 = 0xFF;
