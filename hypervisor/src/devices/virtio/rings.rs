//! The queues of a device, as it sees them: requests come out, answers go in, and the guest hears of it.

use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::Chain;
use super::registers::{self, Page};
use crate::memory::Memory;

/// Requests of one turn: then whoever waits for the device gets it.
const TURN: u32 = 256;
/// The driver wants no interrupt (virtio, 2.7.6).
const NO_INTERRUPT: u16 = 1;

/// A queue that makes no sense: the device needs a reset (virtio, 2.1.2).
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Broken {
    /// A buffer is not in guest memory.
    #[error("a buffer of {1} bytes at {0:#x} is not in guest memory")]
    Outside(u64, u32),
    /// What the device reads comes after what it writes.
    #[error("in a chain of descriptors, one to read comes after one to write")]
    Order,
    /// A chain of descriptors has no end, or no beginning.
    #[error("the chain of descriptors from {0} on has no end, or leaves its table")]
    Chain(u16),
    /// The rings themselves.
    #[error("a queue cannot be used: {0}")]
    Queue(String),
    /// A request of which nothing can be said, because it has no room for an answer.
    #[error("a request has no room for its answer")]
    NoAnswer,
}

impl From<virtio_queue::Error> for Broken {
    fn from(error: virtio_queue::Error) -> Self {
        Self::Queue(error.to_string())
    }
}

/// What a device has done since its machine was built.
#[derive(Debug, Default)]
pub struct Figures {
    /// Accesses that reached the VMM.
    pub exits: AtomicU64,
    /// Kicks: those that KVM took (an ioeventfd) as often as the thread has heard of them, which is less
    /// often if they come fast.
    pub kicks: AtomicU64,
    /// Requests.
    pub requests: AtomicU64,
    /// Interrupts.
    pub interrupts: AtomicU64,
    /// Bytes that the guest has got.
    pub to_guest: AtomicU64,
    /// Bytes that it has sent.
    pub from_guest: AtomicU64,
    /// How often it was found broken.
    pub broken: AtomicU64,
}

/// Counts.
pub(super) fn add(figure: &AtomicU64, n: u64) {
    figure.fetch_add(n, Ordering::Relaxed);
}

/// A line to the guest's interrupt controller.
#[derive(Debug)]
pub struct Interrupt {
    page: Page,
    line: vmm_sys_util::eventfd::EventFd,
}

impl Interrupt {
    /// By this line, for the device with these registers.
    pub fn new(page: Page, line: vmm_sys_util::eventfd::EventFd) -> Self {
        Self { page, line }
    }

    /// Raises it for this (virtio, 4.2.2, `InterruptStatus`).
    pub(super) fn raise(&self, why: u32) {
        self.page.or(registers::INTERRUPT_STATUS, why);
        // Fails only if it has been raised 2^64 - 1 times and KVM has looked at none of them.
        let _ = self.line.write(1);
    }

    /// The guest has seen these.
    pub(super) fn acknowledge(&self, seen: u32) {
        self.page.and_not(registers::INTERRUPT_STATUS, seen);
    }
}

/// The queues of a device that is being looked at.
pub struct Rings<'a> {
    pub(super) queues: &'a mut [Queue],
    pub(super) memory: &'a Memory,
    pub(super) interrupt: &'a Interrupt,
    pub(super) figures: &'a Figures,
    pub(super) left: u32,
    /// The turn is over, and there may be more to do.
    pub(super) more: bool,
}

impl<'a> Rings<'a> {
    pub(super) fn new(
        queues: &'a mut [Queue],
        memory: &'a Memory,
        interrupt: &'a Interrupt,
        figures: &'a Figures,
    ) -> Self {
        Self {
            queues,
            memory,
            interrupt,
            figures,
            left: TURN,
            more: false,
        }
    }

    /// Guest memory.
    pub fn memory(&self) -> &'a Memory {
        self.memory
    }

    /// What the device has done.
    pub fn figures(&self) -> &'a Figures {
        self.figures
    }

    fn queue(&mut self, queue: usize) -> Option<&mut Queue> {
        self.queues.get_mut(queue).filter(|queue| queue.ready())
    }

    /// Takes the next request out of a queue. False when there is none, and then the guest's next kick
    /// will be heard; or when the turn is over.
    pub fn pop(&mut self, queue: usize, chain: &mut Chain) -> Result<bool, Broken> {
        let memory = self.memory;
        let Some(left) = self.left.checked_sub(1) else {
            self.more = true;
            return Ok(false);
        };
        let Some(queue) = self.queue(queue) else {
            return Ok(false);
        };
        loop {
            if let Some(next) = queue.iter(memory)?.next() {
                chain.fill(memory, next)?;
                self.left = left;
                add(&self.figures.requests, 1);
                add(&self.figures.from_guest, chain.readable_bytes());
                return Ok(true);
            }
            if !queue.enable_notification(memory)? {
                return Ok(false);
            }
        }
    }

    /// Puts back the request that was taken last: there is nothing to answer it with yet.
    pub fn unpop(&mut self, queue: usize) {
        if let Some(queue) = self.queue(queue) {
            queue.go_to_previous_position();
        }
    }

    /// Whether a queue has a request.
    pub fn has(&mut self, queue: usize) -> Result<bool, Broken> {
        let memory = self.memory;
        match self.queue(queue) {
            Some(queue) => Ok(queue.avail_idx(memory, Ordering::Acquire)?.0 != queue.next_avail()),
            None => Ok(false),
        }
    }

    /// Gives a request back, with so many bytes written.
    pub fn push(&mut self, queue: usize, head: u16, written: u32) -> Result<(), Broken> {
        let memory = self.memory;
        add(&self.figures.to_guest, written.into());
        match self.queue(queue) {
            Some(queue) => Ok(queue.add_used(memory, head, written)?),
            None => Ok(()),
        }
    }

    /// Interrupts the guest, if it wants to hear of what was given back.
    pub fn signal(&mut self, queue: usize) -> Result<(), Broken> {
        let memory = self.memory;
        let Some(queue) = self.queue(queue) else {
            return Ok(());
        };
        let wanted = match queue.event_idx_enabled() {
            true => queue.needs_notification(memory)?,
            false => {
                let flags: u16 = memory
                    .load(GuestAddress(queue.avail_ring()), Ordering::SeqCst)
                    .map_err(|error| Broken::Queue(error.to_string()))?;
                u16::from_le(flags) & NO_INTERRUPT == 0
            }
        };
        if wanted {
            add(&self.figures.interrupts, 1);
            self.interrupt.raise(registers::USED_BUFFER);
        }
        Ok(())
    }
}
