//! The console (virtio, 5.3): one port, without `VIRTIO_CONSOLE_F_MULTIPORT`, as Linux's hvc0 takes it.
//!
//! The guest's driver spins until what it has sent comes back (linux/drivers/char/virtio_console.c,
//! `__send_to_port`), so it is written before the vCPU that kicked goes on. What is typed comes from the
//! event loop by a [`Terminal`]; into the guest's buffers it goes when there are any, by whoever is there
//! first: the event loop, or the vCPU that brings buffers.
//!
//! For the same reason a driver that has sent something wants no interrupt for it; yet it asks for one
//! each time. So the device waits a little before it looks whether one is wanted: until the next kick, or the
//! event loop's next tick. A driver that has taken its buffer back by then asks for the next
//! (`VIRTIO_F_EVENT_IDX`), one that sleeps is woken.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::chain::Chain;
use super::{Broken, Device, Kicked, Kind, Rings};
use crate::devices::console::Output;
use crate::devices::control::Control;
use crate::terminal::Size;

/// `VIRTIO_CONSOLE_F_SIZE` (virtio, 5.3.3): `cols` and `rows` are valid.
const SIZE: u64 = 1 << 0;

/// The queues of port 0 (virtio, 5.3.2).
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Entries of each queue. Linux fills the first with pages, and has one request in the other.
const ENTRIES: u16 = 16;

/// Most bytes typed ahead that wait for buffers of the guest's.
pub const TYPED: usize = 4096;

/// How long after its start a driver that has printed nothing is taken to be able to take what is typed.
/// Linux's gives buffers before it has registered its console, and throws away what comes into them until
/// then (linux/drivers/char/virtio_console.c, `in_intr`, `guest_connected`); once it prints, it has.
const SETTLED: Duration = Duration::from_millis(500);

/// Bytes written at a time: between them, a run that is over ends.
const PIECE: usize = 4096;

/// The person's end of the console: what is typed, and the window. The event loop writes it, the device
/// reads it.
#[derive(Debug)]
pub struct Terminal {
    /// Typed, and not yet in a buffer of the guest's.
    typed: Mutex<VecDeque<u8>>,
    /// The window's size, if there is a window: columns, and rows in the upper half.
    size: Option<AtomicU32>,
    /// The guest has given buffers for input.
    listening: Arc<AtomicBool>,
    /// The driver has started, and has not been told of the window.
    untold: AtomicBool,
    /// The guest has printed since this was asked last.
    printed: AtomicBool,
    /// Whether the guest wants an interrupt for what it has printed, is to be looked at.
    owed: AtomicBool,
}

fn packed(size: Size) -> u32 {
    u32::from(size.rows) << 16 | u32::from(size.columns)
}

impl Terminal {
    /// With a window of this size, or without one; `listening` tells when the guest wants input.
    pub fn new(size: Option<Size>, listening: Arc<AtomicBool>) -> Self {
        Self {
            typed: Mutex::default(),
            size: size.map(|size| AtomicU32::new(packed(size))),
            listening,
            untold: AtomicBool::new(false),
            printed: AtomicBool::new(false),
            owed: AtomicBool::new(false),
        }
    }

    fn typed(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.typed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes may be typed now.
    pub fn room(&self) -> usize {
        TYPED.saturating_sub(self.typed().len())
    }

    /// Takes what is typed; what does not fit is dropped, so ask [`Terminal::room`] before.
    pub fn input(&self, bytes: &[u8]) {
        let mut typed = self.typed();
        let room = TYPED.saturating_sub(typed.len());
        typed.extend(&bytes[..bytes.len().min(room)]);
    }

    /// Whether the device has something to do by itself ([`super::slot::Slot::offer`]).
    pub fn is_due(&self) -> bool {
        self.owed.load(Ordering::Acquire) || !self.typed().is_empty()
    }

    /// Takes back what the guest has not got.
    pub fn take_unread(&self) -> Vec<u8> {
        self.typed().drain(..).collect()
    }

    /// Whether there is a window.
    pub fn has_window(&self) -> bool {
        self.size.is_some()
    }

    /// The window has this size now. Whether that is news.
    pub fn resize(&self, size: Size) -> bool {
        let now = packed(size);
        self.size
            .as_ref()
            .is_some_and(|size| size.swap(now, Ordering::AcqRel) != now)
    }

    /// Whether there is a window of which the driver has not been told since it started.
    pub fn is_untold(&self) -> bool {
        self.untold.load(Ordering::Acquire)
    }

    /// The driver is told of the window.
    pub fn told(&self) {
        self.untold.store(false, Ordering::Release);
    }

    /// Whether the guest has printed since this was asked last.
    pub fn take_printed(&self) -> bool {
        self.printed.swap(false, Ordering::AcqRel)
    }
}

/// The device.
pub struct Console {
    output: Output,
    terminal: Arc<Terminal>,
    control: Arc<Control>,
    /// When what is typed may come, if the guest prints nothing before; none: it has, or it may now.
    settles: Option<Instant>,
    settling: Duration,
    chain: Chain,
    piece: Box<[u8; PIECE]>,
}

impl Console {
    /// A console that prints there and is typed at here.
    pub fn new(output: Output, terminal: Arc<Terminal>, control: Arc<Control>) -> Self {
        Self {
            output,
            terminal,
            control,
            settles: None,
            settling: SETTLED,
            chain: Chain::default(),
            piece: Box::new([0; PIECE]),
        }
    }

    /// Prints what the guest has sent.
    fn send(&mut self, rings: &mut Rings<'_>) -> Result<(), Broken> {
        self.notify(rings)?;
        let mut printed = false;
        while rings.pop(TRANSMIT, &mut self.chain)? {
            printed = true;
            for piece in &self.chain.readable {
                let (mut at, mut left) = (piece.address, piece.len as usize);
                while left > 0 {
                    if self.control.stopping() {
                        // A guest can send more than anybody reads. It will not run again.
                        return Ok(());
                    }
                    let bytes = &mut self.piece[..left.min(PIECE)];
                    // The chain has been checked.
                    if rings.memory().read_slice(bytes, GuestAddress(at)).is_err() {
                        return Err(Broken::Outside(piece.address, piece.len));
                    }
                    // Cannot fail: a console takes everything.
                    let _ = self.output.write(bytes);
                    at += bytes.len() as u64;
                    left -= bytes.len();
                }
            }
            rings.push(TRANSMIT, self.chain.head, 0)?;
        }
        if printed {
            self.settles = None;
            self.terminal.printed.store(true, Ordering::Release);
            self.terminal.owed.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Interrupts the guest for what it has sent some time ago, if it waits for that.
    fn notify(&mut self, rings: &mut Rings<'_>) -> Result<(), Broken> {
        match self.terminal.owed.swap(false, Ordering::AcqRel) {
            true => rings.signal(TRANSMIT),
            false => Ok(()),
        }
    }

    /// Puts what is typed into the guest's buffers. Nothing is taken out of the queue, and no kick is asked
    /// for, before there is something to put there.
    fn receive(&mut self, rings: &mut Rings<'_>) -> Result<(), Broken> {
        if !self.terminal.listening.load(Ordering::Acquire) && rings.has(RECEIVE)? {
            self.terminal.listening.store(true, Ordering::Release);
        }
        if self.settles.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        self.settles = None;
        let mut typed = self.terminal.typed();
        let mut given = false;
        while !typed.is_empty() && rings.pop(RECEIVE, &mut self.chain)? {
            let mut written = 0;
            for piece in &self.chain.writable {
                let len = (piece.len as usize).min(typed.len());
                let bytes = &typed.make_contiguous()[..len];
                // The chain has been checked.
                if rings
                    .memory()
                    .write_slice(bytes, GuestAddress(piece.address))
                    .is_err()
                {
                    return Err(Broken::Outside(piece.address, piece.len));
                }
                typed.drain(..len);
                written += len;
            }
            rings.push(RECEIVE, self.chain.head, written as u32)?;
            given = true;
        }
        drop(typed);
        match given {
            true => rings.signal(RECEIVE),
            false => Ok(()),
        }
    }
}

impl Device for Console {
    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn features(&self) -> u64 {
        match self.terminal.size {
            Some(_) => SIZE,
            None => 0,
        }
    }

    fn queues(&self) -> &'static [u16] {
        &[ENTRIES, ENTRIES]
    }

    fn kicked(&self) -> Kicked {
        Kicked::Here
    }

    /// `cols`, `rows`, `max_nr_ports`, `emerg_wr`: the last two are of features that are not offered.
    fn config(&self) -> Vec<u8> {
        let size = self.terminal.size.as_ref();
        let size = size.map_or(0, |size| size.load(Ordering::Acquire));
        [size.to_le_bytes(), [0; 4], [0; 4]].concat()
    }

    fn start(&mut self, features: u64) {
        let untold = features & SIZE != 0;
        self.terminal.untold.store(untold, Ordering::Release);
        self.settles = Instant::now().checked_add(self.settling);
    }

    fn reset(&mut self) {
        self.terminal.owed.store(false, Ordering::Release);
        self.terminal.untold.store(false, Ordering::Release);
    }

    fn process(&mut self, rings: &mut Rings<'_>) -> Result<(), Broken> {
        self.receive(rings)?;
        self.send(rings)
    }

    fn offer(&mut self, rings: &mut Rings<'_>) -> Result<(), Broken> {
        self.receive(rings)?;
        self.notify(rings)
    }
}

#[cfg(test)]
mod tests;
