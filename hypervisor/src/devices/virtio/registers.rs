//! The registers of virtio-mmio devices as memory that the guest reads without an exit (virtio, 4.2.2).
//!
//! None of them has an effect when it is read, and all that they read as changes by what the driver
//! writes, or by the device. So the guest is given pages that it can only read, one for each device; what
//! it writes comes as an exit. Where KVM has no read-only memory, what it reads comes too, and is answered
//! from the same pages.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VmFd};
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

use crate::layout;

/// `MagicValue`: "virt".
pub const MAGIC_VALUE: u64 = 0x000;
/// `Version`.
pub const VERSION: u64 = 0x004;
/// `DeviceID`.
pub const DEVICE_ID: u64 = 0x008;
/// `VendorID`.
pub const VENDOR_ID: u64 = 0x00C;
/// `DeviceFeatures`: 32 of them.
pub const DEVICE_FEATURES: u64 = 0x010;
/// `DeviceFeaturesSel`: which 32.
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
/// `DriverFeatures`.
pub const DRIVER_FEATURES: u64 = 0x020;
/// `DriverFeaturesSel`.
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
/// `QueueSel`.
pub const QUEUE_SEL: u64 = 0x030;
/// `QueueSizeMax`; 0: no such queue.
pub const QUEUE_SIZE_MAX: u64 = 0x034;
/// `QueueSize`.
pub const QUEUE_SIZE: u64 = 0x038;
/// `QueueReady`.
pub const QUEUE_READY: u64 = 0x044;
/// `QueueNotify`.
pub const QUEUE_NOTIFY: u64 = 0x050;
/// `InterruptStatus`.
pub const INTERRUPT_STATUS: u64 = 0x060;
/// `InterruptACK`.
pub const INTERRUPT_ACK: u64 = 0x064;
/// `Status`.
pub const STATUS: u64 = 0x070;
/// `QueueDescLow`; the high half follows each.
pub const QUEUE_DESC: u64 = 0x080;
/// `QueueDriverLow`.
pub const QUEUE_DRIVER: u64 = 0x090;
/// `QueueDeviceLow`.
pub const QUEUE_DEVICE: u64 = 0x0A0;
/// `SHMLenLow` to `SHMBaseHigh`: all ones, for there is no shared memory.
pub const SHM: [u64; 4] = [0x0B0, 0x0B4, 0x0B8, 0x0BC];
/// `ConfigGeneration`.
pub const CONFIG_GENERATION: u64 = 0x0FC;
/// Where the device's own configuration begins.
pub const CONFIG: u64 = 0x100;

/// Bit of `InterruptStatus`: a buffer has been used.
pub const USED_BUFFER: u32 = 1 << 0;
/// Bit of `InterruptStatus`: the configuration has changed.
pub const CONFIG_CHANGED: u32 = 1 << 1;

/// KVM's slot of the pages: behind those of RAM, of the exit page and of the console's page.
const SLOT: u32 = 19;
/// Size of one.
pub const PAGE: u64 = 0x1000;

/// The pages of all devices.
#[derive(Debug)]
pub struct Registers {
    pages: MmapRegion,
    devices: usize,
}

impl Registers {
    /// Pages for so many devices, of which there is at least one.
    pub fn new(devices: usize) -> io::Result<Arc<Self>> {
        // Shared, so that what is written later never moves to another page of the host's.
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let pages = MmapRegion::build(None, devices * PAGE as usize, access, flags);
        Ok(Arc::new(Self {
            pages: pages.map_err(io::Error::other)?,
            devices,
        }))
    }

    /// Shows them to the guest, which may read them; whether this KVM can.
    ///
    /// Whoever calls keeps `self` until the VM is gone.
    pub fn show(&self, vm: &VmFd) -> Result<bool, kvm_ioctls::Error> {
        if !vm.check_extension(Cap::ReadonlyMem) {
            return Ok(false);
        }
        let region = kvm_userspace_memory_region {
            slot: SLOT,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: layout::VIRTIO,
            memory_size: self.devices as u64 * PAGE,
            userspace_addr: self.pages.as_ptr() as u64,
        };
        // SAFETY: the pages hold nothing else, are never written by the guest, and outlive the VM, as
        // the caller promises. The slot lies in the device hole, where nothing else has memory.
        unsafe { vm.set_user_memory_region(region) }?;
        Ok(true)
    }

    /// The page of one device.
    pub fn page(self: &Arc<Self>, index: usize) -> Page {
        Page {
            base: index.min(self.devices.saturating_sub(1)) * PAGE as usize,
            all: self.clone(),
        }
    }
}

/// The registers of one device.
#[derive(Clone, Debug)]
pub struct Page {
    all: Arc<Registers>,
    base: usize,
}

impl Page {
    /// A register that lies in the page, which all constants here do.
    fn register(&self, register: u64) -> Option<&AtomicU32> {
        let at = usize::try_from(register).ok()?;
        (register < PAGE).then_some(())?;
        self.all.pages.get_atomic_ref(self.base + at).ok()
    }

    /// What a register reads as from now on.
    pub fn set(&self, register: u64, value: u32) {
        if let Some(word) = self.register(register) {
            word.store(value.to_le(), Ordering::SeqCst);
        }
    }

    /// What a register reads as.
    pub fn get(&self, register: u64) -> u32 {
        self.register(register)
            .map_or(0, |word| u32::from_le(word.load(Ordering::SeqCst)))
    }

    /// Sets bits.
    pub fn or(&self, register: u64, bits: u32) {
        if let Some(word) = self.register(register) {
            word.fetch_or(bits.to_le(), Ordering::SeqCst);
        }
    }

    /// Clears bits.
    pub fn and_not(&self, register: u64, bits: u32) {
        if let Some(word) = self.register(register) {
            word.fetch_and(!bits.to_le(), Ordering::SeqCst);
        }
    }

    /// The device's configuration, as much of it as there is room for.
    pub fn set_config(&self, config: &[u8]) {
        let room = (PAGE - CONFIG) as usize;
        let config = &config[..config.len().min(room)];
        // Inside the page, so that it cannot fail.
        let _ = self
            .all
            .pages
            .as_volatile_slice()
            .write_slice(config, self.base + CONFIG as usize);
    }

    /// A read that came as an exit; zeros behind the page's end.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some(left) = PAGE.checked_sub(offset) else {
            return;
        };
        let n = data.len().min(left as usize);
        // Inside the page, so that it cannot fail.
        let _ = self
            .all
            .pages
            .as_volatile_slice()
            .read_slice(&mut data[..n], self.base + offset as usize);
    }
}
