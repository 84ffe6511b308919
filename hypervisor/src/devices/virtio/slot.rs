//! A device in its place: where its registers are, who hears its kicks, and what it has cost.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::mmio::{Effect, Transport};
use super::registers::{self, PAGE, Page, Registers};
use super::rings::{Figures, Interrupt, add};
use super::{Device, Kicked, Kind};
use crate::devices::control::Control;
use crate::error::{Error, host as host_error, kvm as kvm_error};
use crate::layout;
use crate::memory::Ram;
use crate::profile;

/// Where a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What it is called: its kind, and its number among these.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Where its registers begin.
    pub address: u64,
    /// Its interrupt.
    pub gsi: u32,
}

/// Where devices of these kinds are, in this order.
pub fn place(kinds: impl IntoIterator<Item = Kind>) -> Vec<Placed> {
    let mut placed: Vec<Placed> = Vec::new();
    for (index, kind) in (0_u32..).zip(kinds) {
        let number = placed.iter().filter(|other| other.kind == kind).count();
        placed.push(Placed {
            name: format!("{}{number}", kind.name()),
            kind,
            address: layout::VIRTIO + u64::from(index) * PAGE,
            gsi: layout::VIRTIO_GSI + index,
        });
    }
    placed
}

/// A device in its place.
pub struct Slot {
    /// Where.
    pub placed: Placed,
    transport: Mutex<Transport>,
    page: Page,
    interrupt: Arc<Interrupt>,
    figures: Arc<Figures>,
    /// Where KVM puts kicks, if it takes them.
    kick: Option<EventFd>,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Transport> {
        self.transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, if nobody else has it: for whoever must not wait.
    fn try_lock(&self) -> Option<MutexGuard<'_, Transport>> {
        match self.transport.try_lock() {
            Ok(transport) => Some(transport),
            Err(std::sync::TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }

    /// Kicks that KVM took.
    pub fn kick(&self) -> Option<&EventFd> {
        self.kick.as_ref()
    }

    /// A vCPU writes; whether the device has thereupon looked at its queues.
    fn write(&self, offset: u64, data: &[u8], control: &Control) -> bool {
        add(&self.figures.exits, 1);
        if let (registers::INTERRUPT_ACK, &[a, b, c, d]) = (offset, data) {
            // Not under the lock: whoever has it may be waiting for a disk.
            self.interrupt.acknowledge(u32::from_le_bytes([a, b, c, d]));
            return false;
        }
        let mut transport = self.lock();
        match transport.write(offset, data) {
            Effect::None => return false,
            Effect::Kick => add(&self.figures.kicks, 1),
        }
        if let Some(kick) = &self.kick {
            // KVM had it not, for its width was odd, or there are no ioeventfds: the thread's all the
            // same. Fails only if the thread has 2^64 - 1 kicks to look at.
            let _ = kick.write(1);
            return false;
        }
        while transport.process() && !control.stopping() {}
        true
    }

    /// The thread has been kicked, or the source has something.
    pub(super) fn turn(&self, kicked: bool) -> Turn {
        if kicked {
            add(&self.figures.kicks, 1);
        }
        let mut transport = self.lock();
        let more = transport.process();
        let wants = transport.is_running() && transport.device().wants_source();
        Turn { more, wants }
    }

    /// Something has come from outside, which the device may hand on. False if somebody else has the
    /// device: then ask again.
    pub fn offer(&self) -> bool {
        self.try_lock()
            .map(|mut transport| transport.offer())
            .is_some()
    }

    /// The device's configuration has changed from outside. False if somebody else has the device.
    pub fn changed(&self) -> bool {
        self.try_lock()
            .map(|mut transport| transport.changed())
            .is_some()
    }

    /// The descriptor from which it gets what it brings.
    pub(super) fn source(&self) -> Option<std::os::fd::RawFd> {
        self.lock().device().source()
    }

    /// What it has done.
    pub fn account(&self) -> profile::Device {
        let figure = |figure: &std::sync::atomic::AtomicU64| figure.load(Ordering::Relaxed);
        profile::Device {
            name: self.placed.name.clone(),
            address: self.placed.address,
            gsi: self.placed.gsi,
            exits: figure(&self.figures.exits),
            kicks: figure(&self.figures.kicks),
            requests: figure(&self.figures.requests),
            interrupts: figure(&self.figures.interrupts),
            to_guest: figure(&self.figures.to_guest),
            from_guest: figure(&self.figures.from_guest),
            broken: figure(&self.figures.broken),
        }
    }
}

/// What follows a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// There may be more to do.
    pub(super) more: bool,
    /// The source is worth waiting for.
    pub(super) wants: bool,
}

/// The devices of a machine.
#[derive(Default)]
pub struct Set {
    slots: Vec<Arc<Slot>>,
    /// What the guest reads; like guest memory, it outlives the VM.
    _registers: Option<Arc<Registers>>,
    /// Writes find a page there, which forbids them.
    is_shown: bool,
}

impl Set {
    /// Puts devices into a VM that has no vCPUs yet.
    pub fn new(vm: &VmFd, devices: Vec<Box<dyn Device>>, memory: &Arc<Ram>) -> Result<Self, Error> {
        if devices.is_empty() {
            return Ok(Self::default());
        }
        let all = Registers::new(devices.len()).map_err(host_error("make pages for devices"))?;
        let placed = place(devices.iter().map(|device| device.kind()));
        let mut slots = Vec::new();
        for (index, (device, placed)) in devices.into_iter().zip(placed).enumerate() {
            let line = event()?;
            vm.register_irqfd(&line, placed.gsi)
                .map_err(kvm_error("an interrupt line for a device"))?;
            let kick = match device.kicked() {
                Kicked::Here => None,
                Kicked::Worker => {
                    let kick = event()?;
                    let at = IoEventAddress::Mmio(placed.address + registers::QUEUE_NOTIFY);
                    // Without it, kicks come as exits.
                    if let Err(error) = vm.register_ioevent(&kick, &at, NoDatamatch) {
                        tracing::debug!(%error, device = placed.name, "KVM takes no kicks");
                    }
                    Some(kick)
                }
            };
            let page = all.page(index);
            let interrupt = Arc::new(Interrupt::new(page.clone(), line));
            let figures = Arc::<Figures>::default();
            let transport = Transport::new(
                device,
                page.clone(),
                interrupt.clone(),
                figures.clone(),
                memory.clone(),
            );
            let transport =
                transport.map_err(|e| host_error("make a device")(io::Error::other(e)))?;
            slots.push(Arc::new(Slot {
                placed,
                transport: Mutex::new(transport),
                page,
                interrupt,
                figures,
                kick,
            }));
        }
        let is_shown = all.show(vm).map_err(kvm_error("pages for devices"))?;
        Ok(Self {
            slots,
            _registers: Some(all),
            is_shown,
        })
    }

    /// The devices.
    pub fn slots(&self) -> &[Arc<Slot>] {
        &self.slots
    }

    /// The first device of a kind.
    pub fn first(&self, kind: Kind) -> Option<&Arc<Slot>> {
        self.slots.iter().find(|slot| slot.placed.kind == kind)
    }

    /// Whether the guest reads registers without an exit.
    pub fn is_shown(&self) -> bool {
        self.is_shown
    }

    fn at(&self, address: u64) -> Option<(&Slot, u64)> {
        let offset = address.checked_sub(layout::VIRTIO)?;
        let slot = self.slots.get(usize::try_from(offset / PAGE).ok()?)?;
        Some((slot, offset % PAGE))
    }

    /// A vCPU reads, where there may be a device.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        if let Some((slot, offset)) = self.at(address) {
            add(&slot.figures.exits, 1);
            slot.page.read(offset, data);
        }
    }

    /// A vCPU writes; if there is a device, whether the guest has thereby written to its console.
    pub fn write(&self, address: u64, data: &[u8], control: &Control) -> Option<bool> {
        let (slot, offset) = self.at(address)?;
        Some(slot.write(offset, data, control) && slot.placed.kind == Kind::Console)
    }
}

fn event() -> Result<EventFd, Error> {
    EventFd::new(EFD_NONBLOCK).map_err(host_error("make an event descriptor"))
}
