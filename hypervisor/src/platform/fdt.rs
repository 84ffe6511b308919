//! The device tree (Devicetree Specification v0.4): what [`exit_abi::devicetree`] names, for
//! firmware and guests that do not read ACPI.

use exit_abi::devicetree as names;
use exit_abi::{gate, port};
use vm_fdt::FdtWriter;

use super::irqchip::Kind;
use super::{Machine, PlatformError};
use crate::layout;

/// What the IOAPIC's node is called elsewhere in the tree.
const IO_APIC: u32 = 1;
/// First cell of an ISA address: the I/O space (IEEE 1275's ISA binding, 2.1).
const IO_SPACE: u32 = 1;
/// Second cell of an interrupt: a rising edge (binding of `intel,ce4100-ioapic`).
const EDGE_RISING: u32 = 0;
/// What clocks a 16550A.
const SERIAL_CLOCK: u32 = 1_843_200;

/// Makes the tree.
pub fn tree(machine: &Machine<'_>) -> Result<Vec<u8>, PlatformError> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_string("compatible", names::MACHINE)?;
    fdt.property_string("model", "Exitvisor")?;
    fdt.property_u32("interrupt-parent", IO_APIC)?;
    chosen(&mut fdt, machine)?;
    memory(&mut fdt, machine.memory)?;
    cpus(&mut fdt, machine.cpus)?;
    interrupt_controllers(&mut fdt, machine.timer_hz)?;
    isa(&mut fdt, machine.irqchip)?;
    virtio(&mut fdt, machine)?;
    own(&mut fdt, machine)?;
    fdt.end_node(root)?;
    let tree = fdt.finish()?;

    let (bytes, room) = (
        tree.len() as u64,
        layout::DEVICE_TREE_END - layout::DEVICE_TREE,
    );
    if bytes > room {
        return Err(PlatformError::TreeTooLarge { bytes, room });
    }
    Ok(tree)
}

/// `/chosen` (3.6).
fn chosen(fdt: &mut FdtWriter, machine: &Machine<'_>) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", machine.cmdline)?;
    fdt.property_string("stdout-path", "/isa/serial@i3f8:115200")?;
    if let Some(initrd) = machine.initrd {
        fdt.property_u64("linux,initrd-start", initrd.start)?;
        fdt.property_u64("linux,initrd-end", initrd.start + initrd.bytes)?;
    }
    fdt.property_u32(names::RESETS, machine.resets)?;
    fdt.end_node(node)
}

/// `/memory` (3.4): all RAM, as the PVH memory map has it.
fn memory(fdt: &mut FdtWriter, size: u64) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("memory@0")?;
    fdt.property_string("device_type", "memory")?;
    let ram = layout::guest_ram(size);
    let cells: Vec<u64> = ram
        .iter()
        .flat_map(|&(start, length)| [start, length])
        .collect();
    fdt.property_array_u64("reg", &cells)?;
    fdt.end_node(node)
}

/// `/cpus` (3.7, 3.8): `reg` is the APIC identifier.
fn cpus(fdt: &mut FdtWriter, count: u32) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for id in 0..count {
        let cpu = fdt.begin_node(&format!("cpu@{id:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_u32("reg", id)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(node)
}

/// Local APICs, with the frequency of their timer, and the IOAPIC, to which every interrupt goes.
fn interrupt_controllers(fdt: &mut FdtWriter, timer_hz: u32) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node(&format!("interrupt-controller@{:x}", layout::LOCAL_APIC))?;
    fdt.property_string("compatible", names::LOCAL_APIC)?;
    fdt.property_array_u64("reg", &[layout::LOCAL_APIC, 0x1000])?;
    fdt.property_null("interrupt-controller")?;
    // For interrupt maps (2.4.3.1), of which there is none.
    fdt.property_u32("#address-cells", 0)?;
    fdt.property_u32("#interrupt-cells", 2)?;
    fdt.property_u32("clock-frequency", timer_hz)?;
    fdt.end_node(node)?;

    let node = fdt.begin_node(&format!("interrupt-controller@{:x}", layout::IO_APIC))?;
    fdt.property_string("compatible", names::IO_APIC)?;
    fdt.property_array_u64("reg", &[layout::IO_APIC, 0x1000])?;
    fdt.property_null("interrupt-controller")?;
    // For interrupt maps (2.4.3.1), of which there is none.
    fdt.property_u32("#address-cells", 0)?;
    fdt.property_u32("#interrupt-cells", 2)?;
    fdt.property_phandle(IO_APIC)?;
    fdt.end_node(node)
}

/// The ISA bus: COM1 and our ports. It has no `ranges`, because no memory address leads to a port
/// (2.3.8: then the children's addresses are not mapped to the parent's).
fn isa(fdt: &mut FdtWriter, irqchip: Kind) -> Result<(), vm_fdt::Error> {
    let bus = fdt.begin_node("isa")?;
    fdt.property_string("compatible", "isa")?;
    fdt.property_string("device_type", "isa")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 1)?;

    let node = fdt.begin_node(&format!("serial@i{:x}", port::COM1))?;
    fdt.property_string("compatible", names::SERIAL)?;
    fdt.property_array_u32("reg", &[IO_SPACE, port::COM1.into(), 8])?;
    let pin = layout::COM1_GSI - irqchip.first_gsi();
    fdt.property_array_u32("interrupts", &[pin, EDGE_RISING])?;
    fdt.property_u32("clock-frequency", SERIAL_CLOCK)?;
    fdt.end_node(node)?;

    let node = fdt.begin_node(&format!("ports@i{:x}", port::BASE))?;
    fdt.property_string("compatible", names::PORTS)?;
    let length = port::LAST - port::BASE + 1;
    fdt.property_array_u32("reg", &[IO_SPACE, port::BASE.into(), length.into()])?;
    fdt.property_u32(names::MILESTONE_PORT, port::MILESTONE.into())?;
    fdt.property_u32(names::EXIT_PORT, port::EXIT.into())?;
    fdt.property_u32(names::SCRATCH_PORT, port::SCRATCH.into())?;
    fdt.end_node(node)?;
    fdt.end_node(bus)
}

/// The virtio devices (binding of `virtio,mmio`).
fn virtio(fdt: &mut FdtWriter, machine: &Machine<'_>) -> Result<(), vm_fdt::Error> {
    for placed in machine.devices {
        let node = fdt.begin_node(&format!("virtio@{:x}", placed.address))?;
        fdt.property_string("compatible", names::VIRTIO)?;
        fdt.property_array_u64("reg", &[placed.address, 0x1000])?;
        let pin = placed.gsi - machine.irqchip.first_gsi();
        fdt.property_array_u32("interrupts", &[pin, EDGE_RISING])?;
        fdt.end_node(node)?;
    }
    Ok(())
}

/// What only Exitvisor has: gates, power, the scratch page, the exit page.
fn own(fdt: &mut FdtWriter, machine: &Machine<'_>) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("gates")?;
    fdt.property_string("compatible", names::GATES)?;
    fdt.property_u32(names::SLOTS, gate::SLOTS as u32)?;
    fdt.property_array_u32(names::LEAVES, &machine.leaves.leaves())?;
    let ports = [port::GATE_LOW, port::GATE_HIGH, port::GATE_COMMAND].map(u32::from);
    fdt.property_array_u32(names::GATE_PORTS, &ports)?;
    fdt.end_node(node)?;

    let node = fdt.begin_node("power")?;
    fdt.property_string("compatible", names::POWER)?;
    let power_off = [port::SLEEP_CONTROL.into(), port::POWER_OFF.into()];
    fdt.property_array_u32(names::POWER_OFF, &power_off)?;
    let reset = [port::RESET.into(), port::RESET_VALUE.into()];
    fdt.property_array_u32(names::RESET, &reset)?;
    fdt.end_node(node)?;

    let node = fdt.begin_node(&format!("scratch@{:x}", layout::SCRATCH_PAGE))?;
    fdt.property_string("compatible", names::SCRATCH)?;
    fdt.property_array_u64("reg", &[layout::SCRATCH_PAGE, 0x1000])?;
    fdt.end_node(node)?;

    let Some(size) = machine.exit_page else {
        return Ok(());
    };
    let node = fdt.begin_node(&format!("exit-page@{:x}", layout::EXIT_PAGE))?;
    fdt.property_string("compatible", names::EXIT_PAGE)?;
    fdt.property_array_u64("reg", &[layout::EXIT_PAGE, size])?;
    fdt.end_node(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::pvh::Module;
    use crate::platform::tests::machine;
    use dtoolkit::fdt::{Fdt, FdtNode};
    use dtoolkit::{Node, Property};
    use exit_abi::leaf::Layout;
    use proptest::prelude::*;

    fn cells(node: FdtNode<'_>, property: &str) -> Vec<u32> {
        let property = node.property(property).expect(property);
        let cells = property.value().chunks_exact(4);
        cells
            .map(|c| u32::from_be_bytes(c.try_into().unwrap()))
            .collect()
    }

    fn text<'a>(node: FdtNode<'a>, property: &str) -> &'a str {
        node.property(property).expect(property).value_as().unwrap()
    }

    /// Pairs of 64-bit cells.
    fn ranges(node: FdtNode<'_>) -> Vec<(u64, u64)> {
        let long = |c: &[u32]| u64::from(c[0]) << 32 | u64::from(c[1]);
        let reg = cells(node, "reg");
        assert_eq!(reg.len() % 4, 0);
        reg.chunks(4)
            .map(|c| (long(&c[..2]), long(&c[2..])))
            .collect()
    }

    /// The one child of a node that is compatible with this.
    fn compatible<'a>(parent: FdtNode<'a>, name: &str) -> FdtNode<'a> {
        let mut found = parent.children().filter(|c| {
            c.property("compatible")
                .is_some_and(|p| p.value_as() == Ok(name))
        });
        let node = found.next().expect(name);
        assert!(found.next().is_none(), "a second {name}");
        node
    }

    #[test]
    fn everything_is_found_by_its_name() {
        let blob = tree(&machine(2)).unwrap();
        let fdt = Fdt::new(&blob).unwrap();
        let root = fdt.root();
        assert_eq!(text(root, "compatible"), names::MACHINE);

        let isa = compatible(root, "isa");
        let serial = compatible(isa, names::SERIAL);
        assert_eq!(cells(serial, "reg"), [1, 0x3F8, 8]);
        assert_eq!(cells(serial, "interrupts"), [4, 0]);
        let ports = compatible(isa, names::PORTS);
        assert_eq!(cells(ports, "reg"), [1, 0xE00, 0x30]);
        for (name, port) in [
            (names::MILESTONE_PORT, port::MILESTONE),
            (names::EXIT_PORT, port::EXIT),
            (names::SCRATCH_PORT, port::SCRATCH),
        ] {
            assert_eq!(cells(ports, name), [u32::from(port)]);
        }

        let lapic = compatible(root, names::LOCAL_APIC);
        assert_eq!(ranges(lapic), [(0xFEE0_0000, 0x1000)]);
        assert_eq!(cells(lapic, "clock-frequency"), [1_000_000_000]);
        let ioapic = compatible(root, names::IO_APIC);
        assert_eq!(ranges(ioapic), [(0xFEC0_0000, 0x1000)]);
        assert_eq!(cells(ioapic, "phandle"), cells(root, "interrupt-parent"));

        let gates = compatible(root, names::GATES);
        assert_eq!(cells(gates, names::SLOTS), [4]);
        assert_eq!(cells(gates, names::LEAVES), Layout::CLASSIC.leaves());
        assert_eq!(cells(gates, names::GATE_PORTS), [0xE10, 0xE14, 0xE18]);
        let power = compatible(root, names::POWER);
        assert_eq!(cells(power, names::POWER_OFF), [0xE20, 0x34]);
        assert_eq!(cells(power, names::RESET), [0xE22, 0xA5]);
        let scratch = compatible(root, names::SCRATCH);
        assert_eq!(ranges(scratch), [(0xD000_0000, 0x1000)]);
        let page = compatible(root, names::EXIT_PAGE);
        assert_eq!(ranges(page), [(0xD100_0000, 0x9000)]);
    }

    #[test]
    fn without_an_exit_page_there_is_no_node() {
        let without = Machine {
            exit_page: None,
            ..machine(1)
        };
        let blob = tree(&without).unwrap();
        let fdt = Fdt::new(&blob).unwrap();
        assert!(fdt.find_node("/exit-page@d1000000").is_none());
        assert!(fdt.find_node("/scratch@d0000000").is_some());
    }

    #[test]
    fn the_console_is_where_chosen_says() {
        let blob = tree(&machine(1)).unwrap();
        let fdt = Fdt::new(&blob).unwrap();
        let chosen = fdt.find_node("/chosen").unwrap();
        let (path, speed) = text(chosen, "stdout-path").split_once(':').unwrap();
        let serial = fdt.find_node(path).unwrap();
        assert_eq!(
            (text(serial, "compatible"), speed),
            (names::SERIAL, "115200")
        );
    }

    #[test]
    fn chosen_has_the_initrd_and_the_resets() {
        let initrd = Module {
            name: names::INITRD_MODULE,
            start: 0x3FF_0000,
            bytes: 5,
        };
        let with = Machine {
            initrd: Some(initrd),
            resets: 3,
            ..machine(1)
        };
        let blob = tree(&with).unwrap();
        let fdt = Fdt::new(&blob).unwrap();
        let chosen = fdt.find_node("/chosen").unwrap();
        assert_eq!(cells(chosen, "linux,initrd-start"), [0, 0x3FF_0000]);
        assert_eq!(cells(chosen, "linux,initrd-end"), [0, 0x3FF_0005]);
        assert_eq!(cells(chosen, names::RESETS), [3]);

        let blob = tree(&machine(1)).unwrap();
        let fdt = Fdt::new(&blob).unwrap();
        let chosen = fdt.find_node("/chosen").unwrap();
        assert!(chosen.property("linux,initrd-start").is_none());
        assert_eq!(cells(chosen, names::RESETS), [0]);
    }

    proptest! {
        #[test]
        fn any_machine_reads_back(
            pages in 512_u64..1 << 28,
            cpus in 1..=crate::config::MAX_CPUS,
            cmdline in "[^\0]{0,500}",
        ) {
            let machine = Machine { memory: pages << 12, cmdline: &cmdline, ..machine(cpus) };
            let blob = tree(&machine).unwrap();
            prop_assert!(blob.len() as u64 <= layout::DEVICE_TREE_END - layout::DEVICE_TREE);
            let fdt = Fdt::new(&blob).unwrap();
            let chosen = fdt.find_node("/chosen").unwrap();
            prop_assert_eq!(text(chosen, "bootargs"), &cmdline);
            let memory = fdt.find_node("/memory@0").unwrap();
            prop_assert_eq!(ranges(memory), layout::guest_ram(machine.memory));
            let all = fdt.find_node("/cpus").unwrap();
            let ids: Vec<u32> = all.children().map(|c| cells(c, "reg")[0]).collect();
            prop_assert_eq!(ids, (0..cpus).collect::<Vec<_>>());
        }
    }
}
