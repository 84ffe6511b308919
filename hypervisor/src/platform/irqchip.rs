//! KVM's interrupt controllers, as far as the VMM has a say in them.

use kvm_bindings::{
    KVM_CAP_X86_APIC_BUS_CYCLES_NS, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip,
};
use kvm_ioctls::{Kvm, VmFd};

/// Masks every line of the two 8259s, as a PC's firmware does before it hands over.
///
/// KVM's irqchip has them beside the IOAPIC, feeds interrupts 0–15 to both, and after reset neither
/// the 8259s nor the boot CPU's LINT0 (ExtINT: KVM_X86_QUIRK_LINT0_REENABLED) is masked. A guest
/// that uses the IOAPIC alone, as a hardware-reduced ACPI machine makes Linux do, would get COM1's
/// interrupt a second time, as vector 4.
pub fn mask_8259s(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
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
