//! The ACPI tables: RSDP → XSDT → MADT and a hardware-reduced FADT → DSDT (ACPI 6.5).
//!
//! Prose, and every flag with its reason: `docs/platform.md`, which a test holds against
//! [`FADT_FLAGS`] and [`BOOT_FLAGS`].

use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package};
use acpi_tables::aml::{ResourceTemplate, Scope};
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use exit_abi::port;

use super::PlatformError;
use super::irqchip::Kind;
use crate::devices::console::Way;
use crate::devices::virtio::slot::Placed;
use crate::layout;

const OEM: [u8; 6] = *b"EXITVI";
const OEM_TABLE: [u8; 8] = *b"EXITVISR";
const OEM_REVISION: u32 = 1;
/// Whom a guest may recognize by the FADT (5.2.9, Hypervisor Vendor Identity).
const VENDOR: [u8; 8] = OEM_TABLE;

/// Flags of the FADT that are set (5.2.9): bit, name, why.
pub const FADT_FLAGS: &[(u8, &str, &str)] = &[
    (0, "WBINVD", "the instruction works; ACPI demands it"),
    (
        4,
        "PWR_BUTTON",
        "no power button of the fixed kind, nor any other",
    ),
    (
        5,
        "SLP_BUTTON",
        "no sleep button of the fixed kind, nor any other",
    ),
    (
        6,
        "FIX_RTC",
        "no wake-up by a real-time clock: there is none",
    ),
    (10, "RESET_REG_SUP", "the reset register is there"),
    (
        12,
        "HEADLESS",
        "no monitor, no keyboard, no mouse, and no way to find any",
    ),
    (
        20,
        "HW_REDUCED_ACPI",
        "no PM1 and GPE blocks, no PM timer, no SCI, no SMI: none of the fixed hardware",
    ),
];

/// Flags of IAPC_BOOT_ARCH that are set (5.2.9.3): bit, name, why. The others deny:
/// LEGACY_DEVICES (bit 0: COM1 stands in the namespace, so nothing must be probed) and 8042 (bit 1),
/// or would deny too much: MSI Not Supported (bit 3) and PCIe ASPM Controls (bit 4) forbid what a
/// device could use; there is none today.
pub const BOOT_FLAGS: &[(u8, &str, &str)] = &[
    (
        2,
        "VGA Not Present",
        "nothing at 0xA0000 or on the VGA ports",
    ),
    (
        5,
        "CMOS RTC Not Present",
        "nothing on ports 0x70 and 0x71, where Linux would wait for a clock's update",
    ),
];

/// The one flag of the MADT (5.2.12, 5.2.12.4). It is set where it is so: KVM's irqchip has a PC's
/// two 8259s beside the IOAPIC and feeds interrupts 0–15 to both, which a guest without ACPI may
/// use and one that uses the IOAPIC must mask. (They come masked:
/// [`super::irqchip::mask_8259s`].)
const PCAT_COMPAT: u32 = 1 << 0;
/// Length of the MADT before its interrupt controllers.
const MADT_HEADER: u32 = 44;
/// What ACPI 6.5 gives the MADT.
const MADT_REVISION: u8 = 6;
/// From revision 2 on, AML's integers have 64 bits (5.2.11.1).
const DSDT_REVISION: u8 = 2;
/// Tables begin at multiples of this: the RSDP must (5.2.5.1), the others may.
const ALIGNMENT: u64 = 16;

/// A table in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The file that it is dumped to: its signature, as `acpixtract` spells it.
    pub file: &'static str,
    /// Where it lies.
    pub address: u64,
    /// What lies there.
    pub bytes: Vec<u8>,
}

/// All tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Root pointer: the start info points here.
    pub rsdp: Table,
    /// Points to the MADT and the FADT.
    pub xsdt: Table,
    /// FADT: points to the DSDT.
    pub facp: Table,
    /// MADT.
    pub apic: Table,
    /// DSDT.
    pub dsdt: Table,
}

impl Tables {
    /// Every table, by address.
    pub fn all(&self) -> [&Table; 5] {
        [&self.rsdp, &self.xsdt, &self.facp, &self.apic, &self.dsdt]
    }
}

/// Where the next table goes.
struct Place(u64);

impl Place {
    fn put(&mut self, file: &'static str, table: &dyn Aml) -> Table {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let address = self.take(bytes.len() as u64);
        Table {
            file,
            address,
            bytes,
        }
    }

    fn take(&mut self, bytes: u64) -> u64 {
        let address = self.0;
        self.0 = (address + bytes).next_multiple_of(ALIGNMENT);
        address
    }
}

/// Makes the tables of a machine with this many vCPUs.
pub fn tables(
    cpus: u32,
    irqchip: Kind,
    console: Way,
    devices: &[Placed],
) -> Result<Tables, PlatformError> {
    let mut place = Place(layout::ACPI);
    // Those that point come before those that they point to, whose places are therefore reckoned
    // from the sizes of the former, which are fixed.
    let rsdp_at = place.take(Rsdp::len() as u64);
    let xsdt_at = place.take(xsdt(&[0, 0]).1);
    let facp_at = place.take(FADT::len() as u64);
    let apic = place.put("apic.dat", &madt(cpus, irqchip));
    let dsdt = place.put("dsdt.dat", &dsdt(cpus, console, devices));

    let place_at = |address, file, table: &dyn Aml| Place(address).put(file, table);
    let facp = place_at(facp_at, "facp.dat", &fadt(dsdt.address));
    let xsdt = place_at(xsdt_at, "xsdt.dat", &xsdt(&[facp_at, apic.address]).0);
    let rsdp = place_at(rsdp_at, "rsdp.dat", &Rsdp::new(OEM, xsdt_at));
    let end = dsdt.address + dsdt.bytes.len() as u64;
    if end > layout::BIOS_RESET {
        return Err(PlatformError::AcpiTooLarge {
            bytes: end - layout::ACPI,
            room: layout::BIOS_RESET - layout::ACPI,
        });
    }
    Ok(Tables {
        rsdp,
        xsdt,
        facp,
        apic,
        dsdt,
    })
}

/// The XSDT (5.2.8), and its size.
fn xsdt(entries: &[u64]) -> (XSDT, u64) {
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    entries.iter().for_each(|&entry| xsdt.add_entry(entry));
    let mut bytes = Vec::new();
    xsdt.to_aml_bytes(&mut bytes);
    (xsdt, bytes.len() as u64)
}

/// An 8-bit register at a port (5.2.3.2).
fn register(port: u16) -> GAS {
    let byte = AccessSize::ByteAccess;
    GAS::new(AddressSpace::SystemIo, 8, 0, byte, port.into())
}

/// The FADT (5.2.9). No FACS: a hardware-reduced machine needs none (5.2.10), because it has no
/// waking vector, no global lock and no S4BIOS.
fn fadt(dsdt: u64) -> FADT {
    let flags = FADT_FLAGS.iter().fold(0, |f, (bit, ..)| f | 1_u32 << bit);
    let boot = BOOT_FLAGS.iter().fold(0, |f, (bit, ..)| f | 1_u16 << bit);
    debug_assert_ne!(flags & Flags::HwReducedAcpi as u32, 0);
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION).dsdt_64(dsdt);
    fadt.flags = flags.into();
    fadt.iapc_boot_arch = boot.into();
    // 4.8.3.6: any write of the value resets; 4.8.3.7: SLP_TYP and SLP_EN in one byte.
    fadt.reset_reg = register(port::RESET);
    fadt.reset_value = port::RESET_VALUE;
    fadt.sleep_control_reg = register(port::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(port::SLEEP_STATUS);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(VENDOR).into();
    fadt.finalize()
}

/// The MADT (5.2.12): a processor per vCPU, whose APIC identifier is its index, and the IOAPIC.
///
/// No interrupt source override (5.2.12.5): interrupts 0–15 lead to the IOAPIC's pins of the same
/// number with ISA's polarity and trigger, there is no timer on interrupt 0 and no SCI. No NMI
/// source: nothing here raises one.
fn madt(cpus: u32, irqchip: Kind) -> Sdt {
    let mut madt = Sdt::new(
        *b"APIC",
        MADT_HEADER,
        MADT_REVISION,
        OEM,
        OEM_TABLE,
        OEM_REVISION,
    );
    madt.write_u32(36, layout::LOCAL_APIC as u32);
    if irqchip == Kind::Kernel {
        madt.write_u32(40, PCAT_COMPAT);
    }
    let mut controllers = Vec::new();
    for index in 0..cpus {
        let id = index as u8;
        ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut controllers);
    }
    // Identifier 0 is what it has in its register. The 24 pins of KVM's are GSIs 0–23; our own has
    // but the wired ones, and its register tells how many.
    IoApic::new(0, layout::IO_APIC as u32, irqchip.first_gsi()).to_aml_bytes(&mut controllers);
    madt.append_slice(&controllers);
    madt
}

/// The DSDT (5.2.11.1): COM1 if it is the console, what is reserved, the processors (8.4), and power-off.
fn dsdt(cpus: u32, console: Way, devices: &[Placed]) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    let mut aml = Vec::new();
    let id = |name| Name::new("_HID".into(), &EISAName::new(name));
    let unique = |n: &'static u8| Name::new("_UID".into(), n);

    // A 16550A (PNP0501). KVM's irqfd sets its line and clears it again: edge, active high (6.4.3.6).
    let ports = IO::new(port::COM1, port::COM1, 1, 8);
    let line = Interrupt::new(true, true, false, false, layout::COM1_GSI);
    let page = Memory32Fixed::new(true, layout::STATUS_PAGE as u32, 0x1000);
    let registers: &dyn Aml = match console {
        Way::Page => &page,
        Way::Ports | Way::Virtio => &ports,
    };
    let com1_resources = ResourceTemplate::new(vec![registers, &line]);
    let com1 = [id("PNP0501"), unique(&0), Name::new("_DDN".into(), &"COM1")];
    let com1_resources = Name::new("_CRS".into(), &com1_resources);
    let com1 = Device::new(
        "COM1".into(),
        vec![&com1[0], &com1[1], &com1[2], &com1_resources],
    );

    // Motherboard resources (PNP0C02): taken, so that no driver moves in.
    let length = (port::LAST - port::BASE + 1) as u8;
    let ports = IO::new(port::BASE, port::BASE, 1, length);
    let scratch = Memory32Fixed::new(true, layout::SCRATCH_PAGE as u32, 0x1000);
    let taken = ResourceTemplate::new(vec![&ports, &scratch]);
    let (taken, own, uid) = (Name::new("_CRS".into(), &taken), id("PNP0C02"), unique(&0));
    let own = Device::new("EXIT".into(), vec![&own, &uid, &taken]);
    let mut own: Vec<&dyn Aml> = vec![&own];
    // A COM1 beside another console only prints: whoever looks for a UART to drive is to find none.
    if console != Way::Virtio {
        own.insert(0, &com1);
    }
    Scope::new("_SB_".into(), own).to_aml_bytes(&mut aml);

    let devices: Vec<u8> = (0..).zip(devices).flat_map(virtio).collect();
    if !devices.is_empty() {
        aml.extend(Scope::raw("_SB_".into(), devices));
    }
    let processors: Vec<u8> = (0..cpus).flat_map(processor).collect();
    aml.extend(Scope::raw("_SB_".into(), processors));

    // 7.4.2.6: what to write to SLP_TYP; a hardware-reduced machine reads the first element alone.
    let (s5, none) = (port::S5, 0_u8);
    let s5 = Package::new(vec![&s5, &none, &none, &none]);
    Name::new("_S5_".into(), &s5).to_aml_bytes(&mut aml);
    dsdt.append_slice(&aml);
    dsdt
}

/// A virtio device on virtio-mmio: the identifier by which Linux knows it
/// (linux/drivers/virtio/virtio_mmio.c, `virtio_mmio_acpi_match`). Its line is pulsed, as COM1's is.
fn virtio((index, placed): (u8, &Placed)) -> Vec<u8> {
    let mut aml = Vec::new();
    let registers = Memory32Fixed::new(true, placed.address as u32, 0x1000);
    let line = Interrupt::new(true, true, false, false, placed.gsi);
    let (hid, uid) = (
        Name::new("_HID".into(), &"LNRO0005"),
        Name::new("_UID".into(), &index),
    );
    let resources = ResourceTemplate::new(vec![&registers, &line]);
    let resources = Name::new("_CRS".into(), &resources);
    let name = format!("V{index:03X}");
    Device::new(name.as_str().into(), vec![&hid, &uid, &resources]).to_aml_bytes(&mut aml);
    aml
}

/// A processor (8.4): `_UID` is the MADT's processor UID.
fn processor(index: u32) -> Vec<u8> {
    let mut aml = Vec::new();
    let (hid, uid) = (Name::new("_HID".into(), &"ACPI0007"), index as u8);
    let uid = Name::new("_UID".into(), &uid);
    let name = format!("C{index:03X}");
    Device::new(name.as_str().into(), vec![&hid, &uid]).to_aml_bytes(&mut aml);
    aml
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::platform::{describe, tests::machine};
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    fn read(memory: &Memory, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, &b| sum.wrapping_add(b))
    }

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn long(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// A table with header, as a guest finds it: its length and checksum hold.
    fn table(memory: &Memory, address: u64, signature: &[u8; 4]) -> Vec<u8> {
        let length = word(&read(memory, address, 36), 4) as usize;
        let bytes = read(memory, address, length);
        assert_eq!(&bytes[..4], signature);
        assert_eq!(sum(&bytes), 0, "checksum of {signature:?}");
        assert!(address >= layout::ACPI && address + length as u64 <= layout::HIGH_START);
        bytes
    }

    /// Walks from the RSDP: MADT, FADT, DSDT.
    fn walk(cpus: u32) -> [Vec<u8>; 3] {
        let memory = crate::memory::map(2 << 20).unwrap();
        describe(&memory, &machine(cpus)).unwrap();
        // As a guest searches for it (5.2.5.1).
        let found = (0xE_0000..0x10_0000)
            .step_by(16)
            .find(|&at| read(&memory, at, 8) == b"RSD PTR ");
        assert_eq!(found, Some(layout::ACPI));
        let rsdp = read(&memory, layout::ACPI, 36);
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        assert_eq!((rsdp[15], word(&rsdp, 16), word(&rsdp, 20)), (2, 0, 36));
        let xsdt = table(&memory, long(&rsdp, 24), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 2 * 8);
        let fadt = table(&memory, long(&xsdt, 36), b"FACP");
        let madt = table(&memory, long(&xsdt, 44), b"APIC");
        let dsdt = table(&memory, long(&fadt, 140), b"DSDT");
        [madt, fadt, dsdt]
    }

    #[test]
    fn a_processor_for_each_vcpu() {
        for cpus in [1, 2, 254] {
            let [madt, _, dsdt] = walk(cpus);
            assert_eq!((word(&madt, 36), word(&madt, 40)), (0xFEE0_0000, 1));
            let (processors, ioapic) = madt[44..].split_at(cpus as usize * 8);
            for (i, entry) in processors.chunks(8).enumerate() {
                let id = i as u8;
                assert_eq!(entry, [0, 8, id, id, 1, 0, 0, 0]);
            }
            assert_eq!(ioapic, [1, 12, 0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0]);
            let named = dsdt.windows(8).filter(|w| w == b"ACPI0007").count();
            assert_eq!(named, cpus as usize);
        }
    }

    #[test]
    fn the_fadt_has_registers_and_denies_the_rest() {
        let [_, fadt, _] = walk(1);
        assert_eq!(fadt.len(), 276);
        let boot = u16::from_le_bytes([fadt[109], fadt[110]]);
        assert_eq!(boot, 1 << 2 | 1 << 5);
        let set = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10 | 1 << 12 | 1 << 20;
        assert_eq!(word(&fadt, 112), set);
        let register = |at: usize| (&fadt[at..at + 4], long(&fadt, at + 4));
        let byte = &[1, 8, 0, 1][..];
        assert_eq!(register(116), (byte, port::RESET.into()));
        assert_eq!(fadt[128], port::RESET_VALUE);
        assert_eq!(register(244), (byte, port::SLEEP_CONTROL.into()));
        assert_eq!(register(256), (byte, port::SLEEP_STATUS.into()));
        assert_eq!(&fadt[268..], b"EXITVISR");
        // No FACS, SCI, SMI command, PM or GPE block, and no 32-bit DSDT.
        assert!(fadt[36..44].iter().all(|&b| b == 0));
        assert!(fadt[46..109].iter().all(|&b| b == 0));
        assert!(fadt[148..244].iter().all(|&b| b == 0));
    }

    #[test]
    fn power_off_is_what_the_port_takes() {
        let [_, _, dsdt] = walk(1);
        let at = dsdt.windows(4).position(|w| w == b"_S5_").unwrap();
        // PackageOp, its length, four elements, BytePrefix 5 (20.2.5.4).
        assert_eq!(&dsdt[at + 4..at + 9], [0x12, 7, 4, 0x0A, port::S5]);
        assert_eq!(port::POWER_OFF, 1 << 5 | port::S5 << 2);
    }

    proptest! {
        #[test]
        fn tables_do_not_overlap(cpus in 1..=crate::config::MAX_CPUS) {
            let tables = tables(cpus, Kind::Kernel, Way::Ports, &[]).unwrap();
            let mut end = layout::ACPI;
            for table in tables.all() {
                prop_assert!(table.address >= end && table.address % ALIGNMENT == 0);
                end = table.address + table.bytes.len() as u64;
            }
            prop_assert!(end <= layout::HIGH_START);
        }
    }
}
