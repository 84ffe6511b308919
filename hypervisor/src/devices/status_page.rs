//! COM1's registers as a page of memory that the guest reads without an exit.
//!
//! What a 16550A's registers read as changes by what is written to them, and by input alone. So the
//! guest is given a read-only page that says what each would read as, and its stores come as exits,
//! after each of which the page says what is true then. One register has an effect when it is read: the
//! receiver's, which takes a byte of input away. While there is input the page is therefore not there,
//! and every access comes as an exit.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VmFd};
use vm_memory::{MmapRegion, VolatileMemory};

use super::control::{Cause, Control};
use crate::layout;

/// KVM's slot of the page: behind those of RAM and of the exit page.
const SLOT: u32 = 18;
/// Its size.
const PAGE: u64 = 0x1000;

/// Where a page is shown to a guest.
pub trait Place: Send {
    /// Shows the page at this address of the host's.
    fn show(&self, host: u64) -> io::Result<()>;
    /// Takes it away.
    fn hide(&self) -> io::Result<()>;
}

/// A slot of KVM's.
pub struct Slot(VmFd);

impl Slot {
    /// A slot of a VM; `vm` is a descriptor of its own.
    pub fn new(vm: VmFd) -> Self {
        Self(vm)
    }

    /// Whether this KVM can give a guest memory that it cannot write.
    pub fn is_possible(vm: &VmFd) -> bool {
        vm.check_extension(Cap::ReadonlyMem)
    }

    fn set(&self, size: u64, host: u64) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot: SLOT,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: layout::STATUS_PAGE,
            memory_size: size,
            userspace_addr: host,
        };
        // SAFETY: with a size, the page at `host` holds nothing else and is never written by the guest;
        // it is unmapped only after `StatusPage` has dropped this, upon which KVM forgets it too. The
        // slot lies in the device hole, where RAM has none. Without a size nothing is mapped.
        unsafe { self.0.set_user_memory_region(region) }.map_err(io::Error::from)
    }
}

impl Place for Slot {
    fn show(&self, host: u64) -> io::Result<()> {
        self.set(PAGE, host)
    }

    fn hide(&self) -> io::Result<()> {
        self.set(0, 0)
    }
}

/// The page. Not shown at first.
pub struct StatusPage {
    place: Box<dyn Place>,
    page: MmapRegion,
    shown: bool,
    control: Arc<Control>,
}

impl StatusPage {
    /// A page to be shown there. `control` hears of it if KVM refuses.
    pub fn new(place: Box<dyn Place>, control: Arc<Control>) -> io::Result<Self> {
        // Shared, so that what is written later never moves to another page of the host's.
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let page = MmapRegion::build(None, PAGE as usize, access, flags);
        Ok(Self {
            place,
            page: page.map_err(io::Error::other)?,
            shown: false,
            control,
        })
    }

    /// Whether the guest reads it.
    pub fn is_shown(&self) -> bool {
        self.shown
    }

    /// Says what the registers read as, and shows it.
    pub fn show(&mut self, registers: [u8; 8]) {
        if let Ok(word) = self.page.get_atomic_ref::<AtomicU64>(0) {
            word.store(u64::from_le_bytes(registers), Ordering::Release);
        }
        if !self.shown {
            let host = self.page.as_ptr() as u64;
            self.shown = self.done(self.place.show(host));
        }
    }

    /// Takes it away: from when this returns every access is an exit.
    pub fn hide(&mut self) {
        if self.shown {
            self.shown = !self.done(self.place.hide());
        }
    }

    fn done(&self, result: io::Result<()>) -> bool {
        if let Err(error) = &result {
            let what = format!("KVM cannot show or hide the console's page: {error}");
            self.control.finish(Cause::Kvm(what));
        }
        result.is_ok()
    }
}
