//! The interrupt controllers: all of them KVM's, or the local APICs KVM's and an IOAPIC of our own.

use std::io;
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X86_APIC_BUS_CYCLES_NS, KVM_IRQ_ROUTING_MSI,
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_irqchip,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::devices::ioapic::{IoApic, Msi};
use crate::error::{Error, kvm as kvm_error};
use crate::layout;

/// Which interrupt controllers a machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Wish {
    /// Split for Linux where KVM can do it, KVM's own otherwise.
    #[default]
    Auto,
    /// KVM's: local APICs, an IOAPIC of 24 pins, two 8259s.
    Kernel,
    /// KVM's local APICs, and an IOAPIC of Exitvisor's with only the pins that are wired.
    Split,
}

/// Which there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// KVM's own.
    Kernel,
    /// KVM's local APICs alone.
    Split,
}

impl Kind {
    /// The global interrupt of the IOAPIC's first pin.
    pub fn first_gsi(self) -> u32 {
        match self {
            Self::Kernel => 0,
            Self::Split => layout::COM1_GSI,
        }
    }
}

/// How many pins our own IOAPIC has with so many virtio devices: from COM1's on, all that are wired.
pub fn pins(devices: usize) -> usize {
    1 + devices
}

const _: () = assert!(layout::COM1_GSI + 1 == layout::VIRTIO_GSI);

/// Makes the interrupt controllers, before there are vCPUs; a split one with so many pins.
pub fn create(vm: &VmFd, wish: Wish, linux: bool, pins: usize) -> Result<Kind, Error> {
    let possible = vm.check_extension(Cap::SplitIrqchip);
    let kind = match wish {
        Wish::Auto if linux && possible => Kind::Split,
        Wish::Auto | Wish::Kernel => Kind::Kernel,
        Wish::Split if possible => Kind::Split,
        Wish::Split => {
            let what = "--irqchip split: this KVM lacks KVM_CAP_SPLIT_IRQCHIP: leave it out";
            return Err(Error::NoKvm(what.to_owned()));
        }
    };
    match kind {
        Kind::Kernel => {
            vm.create_irq_chip()
                .map_err(kvm_error("an in-kernel irqchip"))?;
            mask_8259s(vm).map_err(kvm_error("masking the 8259s"))?;
        }
        Kind::Split => {
            let mut cap = kvm_enable_cap {
                cap: KVM_CAP_SPLIT_IRQCHIP,
                ..Default::default()
            };
            // Routes below this may be an IOAPIC's pins.
            cap.args[0] = u64::from(kind.first_gsi()) + pins as u64;
            vm.enable_cap(&cap)
                .map_err(kvm_error("in-kernel local APICs (KVM_CAP_SPLIT_IRQCHIP)"))?;
        }
    }
    Ok(kind)
}

/// Another descriptor of a VM, for a device of its own.
pub fn another(kvm: &Kvm, vm: &VmFd) -> Result<VmFd, Error> {
    use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
    // SAFETY: `vm` owns its descriptor and outlives this borrow.
    let fd = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
    let fd = fd
        .try_clone_to_owned()
        .map_err(crate::error::host::<io::Error>("duplicate a descriptor"))?;
    // SAFETY: the descriptor is a VM's and nobody else's, since it was just duplicated.
    let vm = unsafe { kvm.create_vmfd_from_rawfd(fd.into_raw_fd()) };
    vm.map_err(kvm_error("a second descriptor of a VM"))
}

/// The IOAPIC of a split irqchip, wired to KVM.
pub struct Wired {
    ioapic: Mutex<IoApic>,
    vm: VmFd,
    first_gsi: u32,
}

impl Wired {
    /// An IOAPIC that nothing has been written to.
    pub fn new(kvm: &Kvm, vm: &VmFd, kind: Kind, pins: usize) -> Result<Self, Error> {
        let wired = Self {
            ioapic: Mutex::new(IoApic::new(pins)),
            vm: another(kvm, vm)?,
            first_gsi: kind.first_gsi(),
        };
        // Without this KVM has the routes of its own IOAPIC, which is not there.
        wired.route(&[])?;
        Ok(wired)
    }

    /// A read in its page.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().read(offset, data);
    }

    /// A write in its page.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let mut ioapic = self.lock();
        match ioapic.write(offset, data) {
            // Under the lock: the last to write is the last to be heard.
            true => self.route(&ioapic.routes()),
            false => Ok(()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, IoApic> {
        self.ioapic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn route(&self, routes: &[Option<Msi>]) -> Result<(), Error> {
        let entries: Vec<kvm_irq_routing_entry> = (self.first_gsi..)
            .zip(routes)
            .filter_map(|(gsi, msi)| msi.map(|msi| entry(gsi, msi)))
            .collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| Error::NoKvm("KVM's routing table has no room".into()))?;
        self.vm
            .set_gsi_routing(&table)
            .map_err(kvm_error("the routes of interrupts"))
    }
}

fn entry(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = msi.address;
    entry.u.msi.data = msi.data;
    entry
}

/// Masks every line of the two 8259s, as a PC's firmware does before it hands over.
///
/// KVM's irqchip has them beside the IOAPIC, feeds interrupts 0–15 to both, and after reset neither
/// the 8259s nor the boot CPU's LINT0 (ExtINT: KVM_X86_QUIRK_LINT0_REENABLED) is masked. A guest
/// that uses the IOAPIC alone, as a hardware-reduced ACPI machine makes Linux do, would get COM1's
/// interrupt a second time, as vector 4.
fn mask_8259s(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        vm.get_irqchip(&mut chip)?;
        chip.chip.pic.imr = 0xFF;
        vm.set_irqchip(&chip)?;
    }
    Ok(())
}

/// Frequency of the local APICs' timer before its divider, in Hz.
///
/// A cycle of the bus that clocks it takes as many nanoseconds as KVM_CAP_X86_APIC_BUS_CYCLES_NS
/// tells (Linux 6.11 on). Older kernels have no such capability and no choice either: one
/// (`APIC_BUS_CYCLE_NS` in arch/x86/kvm/lapic.h).
pub fn timer_hz(kvm: &Kvm) -> u32 {
    hz(kvm.check_extension_raw(KVM_CAP_X86_APIC_BUS_CYCLES_NS.into()))
}

fn hz(cycle_ns: i32) -> u32 {
    1_000_000_000 / u32::try_from(cycle_ns).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::hz;

    #[test]
    fn a_kernel_that_does_not_tell_has_one_nanosecond() {
        assert_eq!([1, 0, -1].map(hz), [1_000_000_000; 3]);
        // What TDX has.
        assert_eq!(hz(40), 25_000_000);
    }
}
