//! What lies at a port, an MSR, a page or a leaf on the machines that are booted: QEMU's as its sources
//! have them (qemu/hw/i386), the PC's as the PC/AT had them, ours as docs/platform.md has it.

use super::cost::Kind;

/// First, last, and what is there.
type Range = (u64, u64, &'static str);

const PORTS: [Range; 21] = [
    (0x00, 0x0F, "DMA"),
    (0x20, 0x21, "PIC"),
    (0x40, 0x43, "PIT"),
    (0x60, 0x64, "i8042, speaker"),
    (0x70, 0x71, "CMOS, RTC"),
    (0x80, 0x80, "POST, delay"),
    (0x81, 0x8F, "DMA pages"),
    (0x92, 0x92, "A20, reset"),
    (0xA0, 0xA1, "PIC"),
    (0xB2, 0xB3, "SMI"),
    (0x2E8, 0x2EF, "COM4"),
    (0x2F8, 0x2FF, "COM2"),
    (0x3C0, 0x3DF, "VGA"),
    (0x3E8, 0x3EF, "COM3"),
    (0x3F8, 0x3FF, "COM1"),
    (0x402, 0x402, "debug console"),
    (0x4D0, 0x4D1, "ELCR"),
    (0x510, 0x51B, "fw_cfg"),
    (0x600, 0x67F, "ACPI power management"),
    (0xCF8, 0xCFF, "PCI configuration"),
    (0xB000, 0xB0FF, "ACPI, SMBus"),
];

/// SDM vol. 4, tables 2-2 and 2-66; linux/Documentation/virt/kvm/x86/msr.rst; AMD APM vol. 2, appendix A.
const MSRS: [Range; 20] = [
    (0x10, 0x10, "IA32_TIME_STAMP_COUNTER"),
    (0x17, 0x17, "IA32_PLATFORM_ID"),
    (0x1B, 0x1B, "IA32_APIC_BASE"),
    (0x3A, 0x3A, "IA32_FEATURE_CONTROL"),
    (0x3B, 0x3B, "IA32_TSC_ADJUST"),
    (0x8B, 0x8B, "IA32_BIOS_SIGN_ID"),
    (0xFE, 0xFE, "IA32_MTRRCAP"),
    (0x174, 0x176, "IA32_SYSENTER"),
    (0x179, 0x17F, "machine check"),
    (0x1A0, 0x1A0, "IA32_MISC_ENABLE"),
    (0x200, 0x26F, "MTRRs"),
    (0x277, 0x277, "IA32_PAT"),
    (0x2FF, 0x2FF, "IA32_MTRR_DEF_TYPE"),
    (0x400, 0x47F, "machine check banks"),
    (0x6E0, 0x6E0, "IA32_TSC_DEADLINE"),
    (0x80B, 0x80B, "x2APIC EOI"),
    (0x800, 0x8FF, "x2APIC"),
    (0x4B56_4D00, 0x4B56_4DFF, "KVM"),
    (0xC000_0080, 0xC000_0103, "long mode, system calls"),
    (0xC001_0000, 0xC001_FFFF, "AMD's own"),
];

const PAGES: [Range; 4] = [
    (0xB000_0000, 0xBFFF_FFFF, "PCI configuration"),
    (0xFEC0_0000, 0xFEC0_1FFF, "IOAPIC"),
    (0xFED0_0000, 0xFED0_0FFF, "HPET"),
    (0xFEE0_0000, 0xFEE0_0FFF, "local APIC"),
];

const LEAVES: [Range; 4] = [
    (0, 0x1F, "basic"),
    (0x4000_0000, 0x4000_0001, "KVM"),
    (0x4000_0000, 0x4FFF_FFFF, "search for hypervisors"),
    (0x8000_0000, 0x8000_FFFF, "extended"),
];

/// Where devices begin: below is RAM, for guests of less than 2 GiB.
const DEVICES: u64 = 0x8000_0000;

/// What faults at this address are counted together with: of RAM 2 MiB, of a device its page.
pub(super) fn place(address: u64) -> u64 {
    if address < DEVICES {
        address & !0x1F_FFFF
    } else {
        address & !0xFFF
    }
}

/// What is there; empty if nobody knows.
pub(super) fn name(kind: Kind, key: u64) -> &'static str {
    let ranges: &[Range] = match kind {
        Kind::Port => &PORTS,
        Kind::Msr => &MSRS,
        Kind::Page if key < DEVICES => return "RAM",
        Kind::Page => &PAGES,
        Kind::Leaf => &LEAVES,
    };
    let mut ranges = ranges.iter();
    let found = ranges.find(|(first, last, _)| (*first..=*last).contains(&key));
    found.map_or("", |(.., name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_places() {
        assert_eq!(name(Kind::Port, 0x3FD), "COM1");
        assert_eq!(name(Kind::Msr, 0x80B), "x2APIC EOI");
        assert_eq!(name(Kind::Msr, 0x80D), "x2APIC");
        assert_eq!(name(Kind::Page, 0x20_0000), "RAM");
        assert_eq!(name(Kind::Page, 0xFED4_0000), "");
        assert_eq!(
            (place(0x3F_FFFF), place(0xFEC0_0010)),
            (0x20_0000, 0xFEC0_0000)
        );
    }
}
