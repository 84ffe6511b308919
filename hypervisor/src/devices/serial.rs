//! COM1: vm-superio's 16550A with an interrupt line, a console behind it and input before it.
//!
//! Its registers are ports, or a page of memory ([`super::status_page`]). With the page the ports only
//! print: a firmware does, and whoever looks for a UART at them finds none.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::console::Output;
use super::status_page::StatusPage;

/// How many registers there are.
const REGISTERS: u8 = 8;
/// The transmitter's register to write, the receiver's to read.
const DATA: u8 = 0;
/// The interrupt-enable register, and its bits for received data and for an empty transmitter.
const IER: u8 = 1;
const IER_RECEIVED: u8 = 1;
const IER_EMPTY: u8 = 1 << 1;
/// The interrupt-identification register: FIFOs are enabled, and what is pending.
const IIR: u8 = 2;
const IIR_FIFOS: u8 = 0xC0;
const IIR_RECEIVED: u8 = 1 << 2;
const IIR_EMPTY: u8 = 1 << 1;
const IIR_NONE: u8 = 1;
/// The line-control register, and its bit that turns offsets 0 and 1 into the divisor.
const LCR: u8 = 3;
const LCR_DLAB: u8 = 0x80;

/// The line-status register, and its bit for received data.
const LSR: u8 = 5;
const LSR_RECEIVED: u8 = 1;

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
    uart: Serial<Line, NoEvents, Output>,
    /// The guest wants to be interrupted by input: it reads the terminal.
    listening: Arc<AtomicBool>,
    /// It wants to be now.
    receives: bool,
    /// The registers as memory.
    page: Option<StatusPage>,
    /// With a page: the line-control register of the ports, which has their divisor told from a byte
    /// to print.
    ports_lcr: u8,
}

impl Com1 {
    /// A UART with this interrupt line and console; `listening` tells when the guest wants input.
    pub fn new(line: EventFd, console: Output, listening: Arc<AtomicBool>) -> Self {
        Self {
            uart: Serial::new(Line(line), console),
            listening,
            receives: false,
            page: None,
            ports_lcr: 0,
        }
    }

    /// With its registers in this page.
    #[must_use]
    pub fn with_page(mut self, page: StatusPage) -> Self {
        self.page = Some(page);
        self.refresh();
        self
    }

    /// A byte to the port at `offset`.
    pub fn write(&mut self, offset: u8, byte: u8) {
        if self.page.is_none() {
            return self.write_register(offset, byte);
        }
        match offset {
            DATA if self.ports_lcr & LCR_DLAB == 0 => {
                // Cannot fail: a console takes everything.
                let _ = self.uart.writer_mut().write(&[byte]);
            }
            LCR => self.ports_lcr = byte,
            _ => {}
        }
    }

    /// A byte from the port at `offset`: `None` if nobody is there.
    pub fn read(&mut self, offset: u8) -> Option<u8> {
        self.page.is_none().then(|| self.uart.read(offset))
    }

    /// A store to the page, from this offset on. Whether the page was there to be read.
    pub fn store(&mut self, offset: u64, data: &[u8]) -> bool {
        let shown = self.page.as_ref().is_some_and(StatusPage::is_shown);
        for (register, byte) in registers(offset).zip(data) {
            self.write_register(register, *byte);
        }
        self.refresh();
        shown
    }

    /// A load from the page while it is not there. Beyond the registers there are zeros.
    pub fn load(&mut self, offset: u64, data: &mut [u8]) {
        for (register, byte) in registers(offset).zip(data) {
            *byte = match register {
                IIR => self.pending(),
                _ => self.uart.read(register),
            };
        }
        self.refresh();
    }

    /// What the interrupt-identification register reads as in the page: not what has happened since it
    /// was read last, which nobody knows, but what is so now.
    fn pending(&mut self) -> u8 {
        let enabled = match self.uart.read(LCR) & LCR_DLAB {
            0 => self.uart.read(IER),
            // The divisor is in its place. Nobody asks for interrupts then.
            _ => 0,
        };
        let received = self.uart.read(LSR) & LSR_RECEIVED != 0;
        IIR_FIFOS
            | match enabled {
                enabled if received && enabled & IER_RECEIVED != 0 => IIR_RECEIVED,
                // The transmitter always is.
                enabled if enabled & IER_EMPTY != 0 => IIR_EMPTY,
                _ => IIR_NONE,
            }
    }

    /// Brings the page up to date.
    fn refresh(&mut self) {
        if self.page.is_none() {
            return;
        }
        // Nobody reads vm-superio's own, by which it would raise no interrupt before the last is read.
        self.uart.read(IIR);
        let mut values = [0; REGISTERS as usize];
        for (register, value) in (0..REGISTERS).zip(&mut values) {
            *value = match register {
                IIR => self.pending(),
                // The receiver's, which nobody reads while there is input. The divisor may be read.
                DATA if self.uart.read(LCR) & LCR_DLAB == 0 => 0,
                _ => self.uart.read(register),
            };
        }
        let received = values[usize::from(LSR)] & LSR_RECEIVED != 0;
        if let Some(page) = &mut self.page {
            match received {
                true => page.hide(),
                false => page.show(values),
            }
        }
    }

    /// A byte to the register at `offset`.
    fn write_register(&mut self, offset: u8, byte: u8) {
        // What can fail is an interrupt that is pending already.
        let _ = self.uart.write(offset, byte);
        // With DLAB set the same offset is the divisor's high half. (`Serial::state` would tell it
        // all, and allocate for it.)
        if offset == IER && self.uart.read(LCR) & LCR_DLAB == 0 {
            self.receives = byte & IER_RECEIVED != 0;
            if self.receives {
                self.listening.store(true, Ordering::Release);
            }
        }
    }

    /// How many bytes of input fit now: none while the guest does not want to hear of any, as when a driver
    /// that has only looked for the UART clears what it finds in it.
    pub fn room(&self) -> usize {
        match self.receives {
            true => self.uart.fifo_capacity(),
            false => 0,
        }
    }

    /// Input for the guest; what does not fit is dropped, so ask [`Com1::room`] before.
    pub fn input(&mut self, bytes: &[u8]) {
        if !bytes.is_empty()
            && let Some(page) = &mut self.page
        {
            // Before the interrupt: the guest would look at a page that knows nothing of input.
            page.hide();
        }
        let _ = self.uart.enqueue_raw_bytes(bytes);
        self.refresh();
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
}

/// The registers from this offset in the page on.
fn registers(offset: u64) -> std::ops::Range<u8> {
    u8::try_from(offset).unwrap_or(REGISTERS).min(REGISTERS)..REGISTERS
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::devices::console::Console;
    use crate::devices::control::Control;
    use crate::devices::status_page::Place;

    fn com1() -> (Com1, Arc<AtomicBool>) {
        let control = Arc::new(Control::new().unwrap());
        let console = Console::new(tempfile::tempfile().unwrap(), control);
        let listening = Arc::new(AtomicBool::new(false));
        (
            Com1::new(EventFd::new(0).unwrap(), console.into(), listening.clone()),
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
        assert_eq!(com1.room(), 0);
        com1.write(IER, IER_RECEIVED);
        let room = com1.room();
        com1.input(&vec![7; room]);
        assert_eq!(com1.room(), 0);
        com1.input(b"more");
        assert_eq!(com1.read(0), Some(7));
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

    /// What a guest finds in the page's place: its first bytes, or nothing to read.
    #[derive(Clone, Default)]
    struct Seen(Arc<AtomicU64>);

    impl Place for Seen {
        fn show(&self, host: u64) -> io::Result<()> {
            self.0.store(host, Ordering::Release);
            Ok(())
        }

        fn hide(&self) -> io::Result<()> {
            self.0.store(0, Ordering::Release);
            Ok(())
        }
    }

    impl Seen {
        fn registers(&self) -> Option<[u8; 8]> {
            let host = self.0.load(Ordering::Acquire) as *const [u8; 8];
            // SAFETY: it is null, or a page of the `Com1` that the test still has.
            unsafe { host.as_ref() }.copied()
        }
    }

    fn paged() -> (Com1, Seen, std::fs::File) {
        let control = Arc::new(Control::new().unwrap());
        let file = tempfile::tempfile().unwrap();
        let console = Console::new(file.try_clone().unwrap(), control.clone());
        let seen = Seen::default();
        let page = StatusPage::new(Box::new(seen.clone()), control).unwrap();
        let com1 = Com1::new(EventFd::new(0).unwrap(), console.into(), Arc::default());
        (com1.with_page(page), seen, file)
    }

    fn printed(com1: &mut Com1, file: &mut std::fs::File) -> String {
        use std::io::{Read, Seek};
        com1.uart.writer_mut().drain();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn the_page_says_what_the_registers_read_as() {
        let (mut com1, seen, mut file) = paged();
        assert_eq!(seen.registers(), Some([0, 0, 0xC1, 3, 8, 0x60, 0xB0, 0]));
        com1.store(7, &[0x5A]);
        com1.store(3, &[0x83]);
        com1.store(0, &[1, 2]);
        assert_eq!(
            seen.registers(),
            Some([1, 2, 0xC1, 0x83, 8, 0x60, 0xB0, 0x5A])
        );
        com1.store(3, &[3]);
        // Loopback, as drivers look for a UART's modem lines.
        com1.store(4, &[MCR_LOOP | 0xA]);
        assert_eq!(seen.registers().unwrap()[6] & 0xF0, 0x90);
        com1.store(4, &[0xB]);
        // The transmitter is empty as soon as somebody wants to know.
        com1.store(1, &[IER_EMPTY]);
        assert_eq!(seen.registers().unwrap()[2], 0xC2);
        com1.store(1, &[0]);
        assert_eq!(seen.registers().unwrap()[2], 0xC1);
        com1.store(0, b"h");
        com1.write(DATA, b'i');
        assert_eq!(printed(&mut com1, &mut file), "hi");
        assert_eq!(com1.read(LSR), None);
    }

    #[test]
    fn while_there_is_input_there_is_no_page() {
        let (mut com1, seen, _) = paged();
        com1.store(1, &[IER_RECEIVED]);
        com1.input(b"");
        assert!(seen.registers().is_some());
        com1.input(b"ab");
        assert_eq!(seen.registers(), None);
        let mut load = |offset| {
            let mut byte = [0xEE];
            com1.load(offset, &mut byte);
            byte[0]
        };
        assert_eq!((load(5), load(2)), (0x61, 0xC4));
        assert_eq!((load(0), seen.registers()), (b'a', None));
        assert_eq!(load(0), b'b');
        assert_eq!(seen.registers().unwrap()[5], 0x60);
        assert_eq!(seen.registers().unwrap()[2], 0xC1);
    }

    #[test]
    fn a_loop_of_the_guests_own_is_read_too() {
        let (mut com1, seen, mut file) = paged();
        com1.store(4, &[MCR_LOOP]);
        com1.store(0, b"x");
        assert_eq!(seen.registers(), None);
        let mut bytes = [0xEE; 8];
        com1.load(0, &mut bytes);
        assert_eq!((bytes[0], seen.registers().is_some()), (b'x', true));
        assert_eq!(printed(&mut com1, &mut file), "");
    }

    #[test]
    fn the_ports_of_a_com1_with_a_page_only_print() {
        let (mut com1, seen, mut file) = paged();
        let before = seen.registers();
        for (offset, byte) in [(1, 0xF), (3, 0x80), (0, b'1'), (3, 3), (0, b'b'), (4, 0x10)] {
            com1.write(offset, byte);
        }
        assert_eq!(printed(&mut com1, &mut file), "b");
        assert_eq!(seen.registers(), before);
        assert!(!com1.listening.load(Ordering::Acquire));
    }

    #[test]
    fn the_page_takes_anything() {
        let (mut com1, _, _) = paged();
        for offset in [0, 1, 5, 7, 8, 255, 256, 4095, u64::MAX] {
            for byte in [0, 1, 0x10, 0x80, 0xFF] {
                com1.store(offset, &[byte; 8]);
                com1.load(offset, &mut [0; 8]);
            }
        }
    }

    #[test]
    fn a_page_that_cannot_be_shown_ends_the_run() {
        struct Refuses;
        impl Place for Refuses {
            fn show(&self, _: u64) -> io::Result<()> {
                Err(io::ErrorKind::OutOfMemory.into())
            }
            fn hide(&self) -> io::Result<()> {
                Ok(())
            }
        }
        let control = Arc::new(Control::new().unwrap());
        let page = StatusPage::new(Box::new(Refuses), control.clone()).unwrap();
        let (com1, _) = com1();
        let _com1 = com1.with_page(page);
        assert!(control.stopping());
    }
}
