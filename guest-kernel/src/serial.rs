//! COM1, written a line at a time.
//!
//! The transmitter's status is not read before a byte: that would double the exits, and the
//! 16550A that Exitvisor serves always takes the next byte.

use core::fmt;

use crate::arch::port;
use crate::line::Line;
use crate::ports;

/// Sends bytes as they are.
pub fn send(bytes: &[u8]) {
    port::out_bytes(ports::COM1.get(), bytes);
}

/// Sends a line that was built before.
pub fn send_line(line: &mut Line) {
    send(line.end().as_bytes());
}

/// Formats and sends a line: convenient, but an interpreted CPU pays thousands of instructions.
pub fn println(text: fmt::Arguments<'_>) {
    let mut line = Line::new();
    // A `Line` takes what fits and never fails.
    let _ = fmt::write(&mut line, text);
    send_line(&mut line);
}

/// COM1 as a place to write text to, piece by piece.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        send(text.as_bytes());
        Ok(())
    }
}
