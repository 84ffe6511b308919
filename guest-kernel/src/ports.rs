//! The ports in use: the interface's own until a device tree names others.

use core::sync::atomic::{AtomicU16, Ordering};

use exit_abi::port as abi;

/// A port that a device tree may move.
pub struct Port(AtomicU16);

impl Port {
    const fn at(port: u16) -> Self {
        Self(AtomicU16::new(port))
    }

    /// Where it is.
    pub fn get(&self) -> u16 {
        self.0.load(Ordering::Relaxed)
    }

    /// Moves it.
    pub fn set(&self, port: u16) {
        self.0.store(port, Ordering::Relaxed);
    }
}

/// COM1's data register.
pub static COM1: Port = Port::at(abi::COM1);
/// [`abi::MILESTONE`].
pub static MILESTONE: Port = Port::at(abi::MILESTONE);
/// [`abi::EXIT`].
pub static EXIT: Port = Port::at(abi::EXIT);
/// [`abi::SCRATCH`].
pub static SCRATCH: Port = Port::at(abi::SCRATCH);
/// [`abi::GATE_LOW`].
pub static GATE_LOW: Port = Port::at(abi::GATE_LOW);
/// [`abi::GATE_HIGH`].
pub static GATE_HIGH: Port = Port::at(abi::GATE_HIGH);
/// [`abi::GATE_COMMAND`].
pub static GATE_COMMAND: Port = Port::at(abi::GATE_COMMAND);
