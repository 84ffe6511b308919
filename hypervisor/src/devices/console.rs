//! Where the guest's console goes: buffered by line, never a reason for the VM to hang.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use nix::poll::{PollFd, PollFlags, poll};

use super::control::{Cause, Control};
use super::last_words::{Listener, Word};
use crate::marks::Label;
use crate::marks::pattern::Patterns;

/// Most bytes held back before they are written.
const BUFFER: usize = 4096;
/// How long a reader gets to take the last bytes of a run that is over.
const LAST_CHANCE_MS: u8 = 200;

/// How the guest reaches its console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// COM1 at ports: two exits a byte, one to see that the transmitter is empty.
    #[default]
    Ports,
    /// COM1 in a page that the guest reads without an exit: one exit a byte.
    Page,
    /// A virtio device, Linux's hvc0: one exit for up to 16 bytes.
    Virtio,
}

/// A sink for the bytes that a device is given to print.
///
/// vm-superio flushes after each byte; that flush does nothing here. Bytes leave at a newline,
/// when the buffer is full, and at [`Console::drain`], which the event loop calls when it is idle.
pub struct Console {
    out: File,
    buffer: Vec<u8>,
    control: Arc<Control>,
    /// The reader is gone: bytes are dropped from then on.
    closed: bool,
    /// Hears what a Linux says last.
    listener: Option<Listener>,
    patterns: Patterns,
}

impl Console {
    /// A console on `out`.
    pub fn new(out: File, control: Arc<Control>) -> Self {
        Self {
            out,
            buffer: Vec::with_capacity(BUFFER),
            control,
            closed: false,
            listener: None,
            patterns: Patterns::default(),
        }
    }

    /// The same, listening for a Linux that cannot go on.
    pub fn listening(self) -> Self {
        let listener = Some(Listener::default());
        Self { listener, ..self }
    }

    /// Hears a byte of the guest's.
    fn hear(&mut self, byte: u8) {
        match self.listener.as_mut().and_then(|l| l.hear(byte)) {
            Some(Word::Panic(message)) => self.control.panicked(message),
            Some(Word::End) => {
                let halted = "it stopped, and did not say why".to_owned();
                self.control.finish(Cause::Panic(halted));
            }
            None => {}
        }
    }

    /// The same, looking for these in what it is given.
    pub fn looking_for(self, patterns: Patterns) -> Self {
        Self { patterns, ..self }
    }

    /// What has been seen since this was asked last.
    pub fn take_seen(&mut self) -> Vec<Label> {
        self.patterns.take_seen()
    }

    /// Writes what is held back. A reader that is slow holds up the guest, not our end: the kick
    /// that stops a vCPU interrupts this write, and what is left is then dropped.
    pub fn drain(&mut self) {
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() && !self.closed {
            if self.control.stopping() && !self.takes_more() {
                break;
            }
            match self.out.write(rest) {
                Ok(0) => self.closed = true,
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                    if self.control.stopping() {
                        break;
                    }
                }
                Err(_) => self.closed = true,
            }
        }
        self.buffer.clear();
    }

    /// Whether the reader takes what we write without making us wait long. A pipe that polls as
    /// writable takes a whole page, which is the most we hold back.
    fn takes_more(&self) -> bool {
        let mut fds = [PollFd::new(self.out.as_fd(), PollFlags::POLLOUT)];
        matches!(poll(&mut fds, LAST_CHANCE_MS), Ok(n) if n > 0)
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            self.hear(byte);
            self.patterns.feed(byte);
            self.buffer.push(byte);
            if byte == b'\n' || self.buffer.len() >= BUFFER {
                self.drain();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A console that several devices write to.
#[derive(Clone)]
pub struct Output(Arc<Mutex<Console>>);

impl From<Console> for Output {
    fn from(console: Console) -> Self {
        Self(Arc::new(Mutex::new(console)))
    }
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Console> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been seen since this was asked last.
    pub fn take_seen(&self) -> Vec<Label> {
        self.lock().take_seen()
    }

    /// Writes what is held back.
    pub fn drain(&self) {
        self.lock().drain();
    }

    /// The same, unless somebody is writing: a vCPU that waits for a slow reader has the console, and whoever
    /// must not wait with it asks again.
    pub fn try_drain(&self) {
        match self.0.try_lock() {
            Ok(mut console) => console.drain(),
            Err(TryLockError::Poisoned(error)) => error.into_inner().drain(),
            Err(TryLockError::WouldBlock) => {}
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn who_must_not_wait_does_not() {
        let file = tempfile::tempfile().unwrap();
        let console = Console::new(file.try_clone().unwrap(), Arc::new(Control::new().unwrap()));
        let mut output = Output::from(console);
        output.write_all(b"held").unwrap();
        let guard = output.0.lock().unwrap();
        output.try_drain();
        assert_eq!(file.metadata().unwrap().len(), 0);
        drop(guard);
        output.try_drain();
        assert_eq!(file.metadata().unwrap().len(), 4);
    }

    #[test]
    fn bytes_leave_by_line() {
        let file = tempfile::tempfile().unwrap();
        let mut reader = file.try_clone().unwrap();
        let mut console = Console::new(file, Arc::new(Control::new().unwrap()));
        let mut seen = || {
            let mut text = String::new();
            reader.rewind().unwrap();
            reader.read_to_string(&mut text).unwrap();
            text
        };
        console.write_all(b"one\ntwo").unwrap();
        assert_eq!(seen(), "one\n");
        console.drain();
        assert_eq!(seen(), "one\ntwo");
    }

    #[test]
    fn a_reader_that_left_is_no_error() {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let out = File::from(std::os::fd::OwnedFd::from(write));
        let mut console = Console::new(out, Arc::new(Control::new().unwrap()));
        assert!(console.write_all(b"lost\nlost\n").is_ok());
        assert!(console.closed);
    }
}
