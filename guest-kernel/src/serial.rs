//! COM1, written byte by byte: each costs an exit, which is why the exit log is kept for the end.

use core::fmt;

use crate::arch::port;

/// COM1 as a place to write text to.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            port::out8(exit_abi::port::COM1, byte);
        }
        Ok(())
    }
}
