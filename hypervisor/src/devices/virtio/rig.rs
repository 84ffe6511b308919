//! A driver for tests: it sets a device up by its registers, as a guest does, and makes requests, sensible
//! or not.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Device;
use super::mmio::{Effect, Transport};
use super::registers::{self as r, Page, Registers};
use super::rings::{Figures, Interrupt};
use crate::memory::{self, Ram};

/// Entries of each queue that the rig sets up.
pub(crate) const SIZE: u16 = 16;
/// Guest memory of the rig.
pub(crate) const MEMORY: u64 = 4 << 20;
/// Where buffers may lie: behind the rings.
pub(crate) const BUFFERS: u64 = 1 << 20;
/// Flags of a descriptor.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// A descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

pub(crate) struct Rig {
    pub(crate) transport: Transport,
    pub(crate) page: Page,
    pub(crate) memory: Arc<Ram>,
    pub(crate) figures: Arc<Figures>,
    pub(crate) line: EventFd,
    /// What has been made available on each queue.
    available: Vec<u16>,
    /// Of what has been given back, how much has been looked at.
    seen: Vec<u16>,
}

/// Where the table, the available ring and the used ring of a queue lie.
pub(crate) fn rings(queue: usize) -> [u64; 3] {
    let base = 0x1_0000 + queue as u64 * 0x4000;
    [base, base + 0x1000, base + 0x2000]
}

impl Rig {
    /// A device as it is after reset.
    pub(crate) fn new(device: Box<dyn Device>) -> Self {
        let memory = Arc::new(memory::map(MEMORY).unwrap());
        let page = Registers::new(1).unwrap().page(0);
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let interrupt = Interrupt::new(page.clone(), line.try_clone().unwrap());
        let figures = Arc::<Figures>::default();
        let queues = device.queues().len();
        let transport = Transport::new(
            device,
            page.clone(),
            Arc::new(interrupt),
            figures.clone(),
            memory.clone(),
        );
        Self {
            transport: transport.unwrap(),
            page,
            memory,
            figures,
            line,
            available: vec![0; queues],
            seen: vec![0; queues],
        }
    }

    /// The same, set up by a driver that takes these features besides version 1.
    pub(crate) fn running(device: Box<dyn Device>, features: u64) -> Self {
        let mut rig = Self::new(device);
        rig.set_up(features);
        rig
    }

    pub(crate) fn write(&mut self, register: u64, value: u32) -> Effect {
        self.transport.write(register, &value.to_le_bytes())
    }

    /// All that a driver does until the device runs.
    pub(crate) fn set_up(&mut self, features: u64) {
        let features = features | 1 << 32;
        self.write(r::STATUS, 0);
        self.write(r::STATUS, 1);
        self.write(r::STATUS, 3);
        for half in 0..2 {
            self.write(r::DRIVER_FEATURES_SEL, half);
            self.write(r::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        self.write(r::STATUS, 11);
        assert_eq!(self.page.get(r::STATUS), 11, "features are refused");
        for queue in 0..self.available.len() {
            self.write(r::QUEUE_SEL, queue as u32);
            self.write(r::QUEUE_SIZE, SIZE.into());
            let [table, available, used] = rings(queue);
            for (register, address) in [
                (r::QUEUE_DESC, table),
                (r::QUEUE_DRIVER, available),
                (r::QUEUE_DEVICE, used),
            ] {
                self.write(register, address as u32);
                self.write(register + 4, (address >> 32) as u32);
                self.memory
                    .write_slice(&[0; 0x1000], GuestAddress(address))
                    .unwrap();
            }
            self.write(r::QUEUE_READY, 1);
            assert_eq!(self.page.get(r::QUEUE_READY), 1, "a queue is refused");
        }
        self.available.fill(0);
        self.seen.fill(0);
        self.write(r::STATUS, 15);
        assert!(self.transport.is_running());
    }

    /// Puts a descriptor into a queue's table.
    pub(crate) fn describe(&self, queue: usize, index: u16, descriptor: Descriptor) {
        let at = rings(queue)[0] + u64::from(index) * 16;
        self.describe_at(at, descriptor);
    }

    /// Puts a descriptor anywhere.
    pub(crate) fn describe_at(&self, at: u64, descriptor: Descriptor) {
        let Descriptor {
            address,
            len,
            flags,
            next,
        } = descriptor;
        let memory = &self.memory;
        memory.write_obj(address, GuestAddress(at)).unwrap();
        memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes a chain available that begins with this descriptor.
    pub(crate) fn offer(&mut self, queue: usize, head: u16) {
        let ring = rings(queue)[1];
        let at = ring + 4 + u64::from(self.available[queue] % SIZE) * 2;
        self.memory.write_obj(head, GuestAddress(at)).unwrap();
        self.available[queue] = self.available[queue].wrapping_add(1);
        let memory = &self.memory;
        memory
            .write_obj(self.available[queue], GuestAddress(ring + 2))
            .unwrap();
    }

    /// Makes a request: (address, bytes, whether the device writes them), one after the other.
    pub(crate) fn request(&mut self, queue: usize, pieces: &[(u64, u32, bool)]) {
        let last = pieces.len() as u16 - 1;
        for (index, &(address, len, writes)) in (0..).zip(pieces) {
            let goes_on = if index == last { 0 } else { NEXT };
            let descriptor = Descriptor {
                address,
                len,
                flags: goes_on | if writes { WRITE } else { 0 },
                next: index + 1,
            };
            self.describe(queue, index, descriptor);
        }
        self.offer(queue, 0);
    }

    /// Lets the device work until it has nothing more to do.
    pub(crate) fn kick(&mut self) {
        while self.transport.process() {}
    }

    /// What has been given back since: heads and bytes.
    pub(crate) fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let ring = rings(queue)[2];
        let index: u16 = self.memory.read_obj(GuestAddress(ring + 2)).unwrap();
        let mut used = Vec::new();
        while self.seen[queue] != index {
            let at = ring + 4 + u64::from(self.seen[queue] % SIZE) * 8;
            used.push((
                self.memory.read_obj(GuestAddress(at)).unwrap(),
                self.memory.read_obj(GuestAddress(at + 4)).unwrap(),
            ));
            self.seen[queue] = self.seen[queue].wrapping_add(1);
        }
        used
    }

    /// Interrupts since this was asked last.
    pub(crate) fn interrupts(&self) -> u64 {
        self.line.read().unwrap_or(0)
    }

    /// Whether the device stands still until it is reset.
    pub(crate) fn is_broken(&self) -> bool {
        self.page.get(r::STATUS) & 64 != 0
    }
}
