//! Sections whose exits are the profiler's own: what the exit log itself costs.

use exit_abi::port as ports;

use crate::arch::port;

/// An open section: every exit of this vCPU is booked as the profiler's own until it is dropped.
/// Sections do not nest.
pub struct OwnSection(());

impl OwnSection {
    /// Opens one.
    pub fn open() -> Self {
        port::out8(ports::OWN_SECTION, 1);
        Self(())
    }
}

impl Drop for OwnSection {
    fn drop(&mut self) {
        port::out8(ports::OWN_SECTION, 0);
    }
}
