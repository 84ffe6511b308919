//! COM1: vm-superio's 16550A with an interrupt line, a console behind it and input before it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::console::Console;
use crate::marks::Label;

/// The interrupt-enable register, and its bit for received data.
const IER: u8 = 1;
const IER_RECEIVED: u8 = 1;
/// The line-control register, and its bit that turns offsets 0 and 1 into the divisor.
const LCR: u8 = 3;
const LCR_DLAB: u8 = 0x80;

/// The modem-control register's bit for loopback mode.
const MCR_LOOP: u8 = 1 << 4;

/// An interrupt line, as KVM's irqfd takes it.
pub struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// COM1.
pub struct Com1 {
    uart: Serial<Line, NoEvents, Console>,
    /// The guest wants to be interrupted by input: it reads the terminal.
    listening: Arc<AtomicBool>,
}

impl Com1 {
    /// A UART with this interrupt line and console; `listening` tells when the guest wants input.
    pub fn new(line: EventFd, console: Console, listening: Arc<AtomicBool>) -> Self {
        Self {
            uart: Serial::new(Line(line), console),
            listening,
        }
    }

    /// A byte to the register at `offset`.
    pub fn write(&mut self, offset: u8, byte: u8) {
        // What can fail is an interrupt that is pending already.
        let _ = self.uart.write(offset, byte);
        // With DLAB set the same offset is the divisor's high half. (`Serial::state` would tell it
        // all, and allocate for it.)
        let enables = offset == IER && byte & IER_RECEIVED != 0;
        if enables && self.uart.read(LCR) & LCR_DLAB == 0 {
            self.listening.store(true, Ordering::Release);
        }
    }

    /// A byte from the register at `offset`.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.uart.read(offset)
    }

    /// How many bytes of input fit now.
    pub fn room(&self) -> usize {
        self.uart.fifo_capacity()
    }

    /// Input for the guest; what does not fit is dropped, so ask [`Com1::room`] before.
    pub fn input(&mut self, bytes: &[u8]) {
        let _ = self.uart.enqueue_raw_bytes(bytes);
    }

    /// The input that the guest has not read.
    pub fn unread(&self) -> Vec<u8> {
        let state = self.uart.state();
        // In loopback mode these are bytes of the guest's own.
        if state.modem_control & MCR_LOOP != 0 {
            return Vec::new();
        }
        state.in_buffer
    }

    /// What has been seen on the console since this was asked last.
    pub fn take_seen(&mut self) -> Vec<Label> {
        self.uart.writer_mut().take_seen()
    }

    /// Writes out what the console holds back.
    pub fn drain(&mut self) {
        self.uart.writer_mut().drain();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::control::Control;

    fn com1() -> (Com1, Arc<AtomicBool>) {
        let control = Arc::new(Control::new().unwrap());
        let console = Console::new(tempfile::tempfile().unwrap(), control);
        let listening = Arc::new(AtomicBool::new(false));
        (
            Com1::new(EventFd::new(0).unwrap(), console, listening.clone()),
            listening,
        )
    }

    #[test]
    fn a_guest_that_enables_the_receive_interrupt_listens() {
        let (mut com1, listening) = com1();
        com1.write(0, b'x');
        com1.write(LCR, LCR_DLAB);
        com1.write(IER, 1);
        com1.write(LCR, 3);
        assert!(!listening.load(Ordering::Acquire));
        com1.write(IER, IER_RECEIVED);
        assert!(listening.load(Ordering::Acquire));
    }

    #[test]
    fn input_is_bounded() {
        let (mut com1, _) = com1();
        let room = com1.room();
        com1.input(&vec![7; room]);
        assert_eq!(com1.room(), 0);
        com1.input(b"more");
        assert_eq!(com1.read(0), 7);
        assert_eq!(com1.unread(), vec![7; room - 1]);
        com1.write(4, MCR_LOOP);
        assert_eq!(com1.unread(), Vec::<u8>::new());
    }

    #[test]
    fn any_register_and_byte_is_taken() {
        let (mut com1, _) = com1();
        for offset in 0..=255 {
            for byte in [0, 1, 0x80, 0xFF] {
                com1.write(offset, byte);
                com1.read(offset);
            }
        }
    }
}
