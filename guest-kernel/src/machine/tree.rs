//! Reading the device tree ([`exit_abi::devicetree`]) into a [`Machine`], once and from front to
//! back: on an interpreted CPU a second look at a tree costs as much as the rest of a boot.
//!
//! Nodes below the third level and properties that we do not know are left alone; a known one that
//! makes no sense is an error.

use core::fmt;

use exit_abi::devicetree as names;
use exit_abi::leaf::Layout;

use super::blob::{Damaged, Name, Step, Walk};
use super::{Machine, Switch};

/// Largest device tree that is read: 254 CPUs take a fifth of it.
pub const SIZE_MAX: u64 = 256 << 10;

/// Why a device tree cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It is not one, or it is damaged.
    Damaged,
    /// This property has a value that makes no sense.
    Value(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged => f.write_str("it is damaged"),
            Self::Value(name) => write!(f, "`{name}` has a value that makes no sense"),
        }
    }
}

impl From<Damaged> for Error {
    fn from(_: Damaged) -> Self {
        Self::Damaged
    }
}

/// How many 32-bit cells an address and a size take in a `reg`.
#[derive(Clone, Copy)]
struct Cells {
    address: usize,
    size: usize,
}

impl Cells {
    /// What holds where a bus says nothing (Devicetree Specification, 2.3.5).
    const DEFAULT: Self = Self {
        address: 2,
        size: 1,
    };
}

/// What of a node is of interest once all its properties have been seen.
#[derive(Clone, Copy)]
struct Seen<'t> {
    compatible: &'t [u8],
    kind: &'t [u8],
    reg: &'t [u8],
    frequency: Option<u32>,
    cells: Cells,
}

impl<'t> Seen<'t> {
    const NOTHING: Self = Self {
        compatible: &[],
        kind: &[],
        reg: &[],
        frequency: None,
        cells: Cells::DEFAULT,
    };

    /// Takes note of a property. Those of ours have names that no other node uses.
    fn property(
        &mut self,
        name: Name<'t>,
        value: &'t [u8],
        machine: &mut Machine,
    ) -> Result<(), Error> {
        if name.is("reg") {
            self.reg = value;
        } else if name.is("compatible") {
            self.compatible = value;
        } else if name.is("device_type") {
            self.kind = value;
        } else if name.is("clock-frequency") {
            self.frequency = word(value);
        } else if name.is("#address-cells") {
            self.cells.address = cells(value, "#address-cells")?;
        } else if name.is("#size-cells") {
            self.cells.size = cells(value, "#size-cells")?;
        } else {
            ours(name, value, machine)?;
        }
        Ok(())
    }
}

/// How deep nodes of interest lie: the root, its children, and theirs.
const LEVELS: usize = 3;

/// Reads a device tree. What it does not say is left as it is in `machine`.
pub fn read(tree: &[u8], machine: &mut Machine) -> Result<(), Error> {
    let mut walk = Walk::new(tree)?;
    machine.boot_cpu = walk.boot_cpu;
    let mut levels = [Seen::NOTHING; LEVELS];
    // How many nodes are open, and whether the innermost may still have properties: those come
    // before its children (5.4.2).
    let (mut depth, mut fresh) = (0_usize, false);
    loop {
        match walk.step()? {
            Step::Property(..) if !fresh => return Err(Error::Damaged),
            Step::Property(name, value) => {
                if let Some(seen) = levels.get_mut(depth - 1) {
                    seen.property(name, value, machine)?;
                }
            }
            Step::Begin => {
                if fresh {
                    complete(&levels, depth, machine)?;
                }
                if let Some(seen) = levels.get_mut(depth) {
                    *seen = Seen::NOTHING;
                }
                depth += 1;
                fresh = true;
            }
            Step::End => {
                if fresh {
                    complete(&levels, depth, machine)?;
                }
                depth = depth.checked_sub(1).ok_or(Error::Damaged)?;
                fresh = false;
                if depth == 0 {
                    machine.described = true;
                    return Ok(());
                }
            }
        }
    }
}

/// All properties of the innermost of `depth` nodes have been seen.
fn complete(levels: &[Seen<'_>], depth: usize, machine: &mut Machine) -> Result<(), Error> {
    match levels.get(..depth) {
        Some([.., parent, node]) => take(node, parent.cells, machine),
        _ => Ok(()),
    }
}

/// What a node is, and what its `reg` means.
fn take(node: &Seen<'_>, bus: Cells, machine: &mut Machine) -> Result<(), Error> {
    let no_reg = Error::Value("reg");
    match node.kind {
        b"memory\0" => {
            let one = 4 * (bus.address + bus.size);
            if one == 0 || !node.reg.len().is_multiple_of(one) {
                return Err(no_reg);
            }
            for entry in node.reg.chunks_exact(one) {
                let (start, length) = entry.split_at(4 * bus.address);
                let (start, length) = (number(start), number(length));
                start.checked_add(length).ok_or(no_reg)?;
                machine.ram.push((start, length)).ok_or(no_reg)?;
            }
            return Ok(());
        }
        b"cpu\0" => {
            let id = word(node.reg).and_then(|id| u8::try_from(id).ok());
            return machine.cpus.push(id.ok_or(no_reg)?).ok_or(no_reg);
        }
        _ => {}
    }
    let page = || {
        let address = node.reg.get(..4 * bus.address).map(number);
        address.filter(|a| a.is_multiple_of(4096)).ok_or(no_reg)
    };
    for compatible in node.compatible.split(|&b| b == 0) {
        if compatible == names::SERIAL.as_bytes() {
            // ISA: the first cell says that it is I/O space (Open Firmware's ISA binding).
            let [space, port, _] = words(node.reg).ok_or(no_reg)?;
            let port = u16::try_from(port).ok().filter(|_| space == 1);
            machine.ports.serial = port.ok_or(no_reg)?;
        } else if compatible == names::LOCAL_APIC.as_bytes() {
            machine.local_apic = page()?;
            if let Some(hertz) = node.frequency {
                let wrong = Error::Value("clock-frequency");
                machine.timer = Some(hertz).filter(|&h| h > 0).ok_or(wrong)?;
            }
        } else if compatible == names::IO_APIC.as_bytes() {
            machine.io_apic = page()?;
        } else if compatible == names::SCRATCH.as_bytes() {
            machine.scratch_page = page()?;
        } else if compatible == names::EXIT_PAGE.as_bytes() {
            let size = node.reg.get(4 * bus.address..4 * (bus.address + bus.size));
            let size = size.map(number).filter(|&size| size > 0);
            machine.exit_page = Some((page()?, size.ok_or(no_reg)?));
        }
    }
    Ok(())
}

/// A property of ours, perhaps.
fn ours(name: Name<'_>, value: &[u8], machine: &mut Machine) -> Result<(), Error> {
    let is = |ours: &'static str| name.is(ours).then_some(Error::Value(ours));
    let port = |wrong| {
        let port = word(value).and_then(|p| u16::try_from(p).ok());
        port.ok_or(wrong)
    };
    if let Some(wrong) = is(names::MILESTONE_PORT) {
        machine.ports.milestone = port(wrong)?;
    } else if let Some(wrong) = is(names::EXIT_PORT) {
        machine.ports.exit = port(wrong)?;
    } else if let Some(wrong) = is(names::SCRATCH_PORT) {
        machine.ports.scratch = port(wrong)?;
    } else if let Some(wrong) = is(names::GATE_PORTS) {
        for (i, word) in words::<3>(value).ok_or(wrong)?.into_iter().enumerate() {
            machine.ports.gate[i] = u16::try_from(word).map_err(|_| wrong)?;
        }
    } else if let Some(wrong) = is(names::SLOTS) {
        machine.slots = word(value).ok_or(wrong)?;
    } else if let Some(wrong) = is(names::LEAVES) {
        let [a, b, c, d] = words(value).ok_or(wrong)?;
        let layout = Layout::new(a, b, c, d);
        machine.layout = Some(layout).filter(|l| l.is_valid());
        machine.layout.ok_or(wrong)?;
    } else if let Some(wrong) = is(names::POWER_OFF) {
        machine.power_off = switch(value).ok_or(wrong)?;
    } else if let Some(wrong) = is(names::RESET) {
        machine.reset = switch(value).ok_or(wrong)?;
    } else if let Some(wrong) = is(names::RESETS) {
        machine.resets = Some(word(value).ok_or(wrong)?);
    }
    Ok(())
}

fn switch(value: &[u8]) -> Option<Switch> {
    let [port, value] = words(value)?;
    Some(Switch {
        port: u16::try_from(port).ok()?,
        value: u8::try_from(value).ok()?,
    })
}

/// Exactly one cell.
fn word(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// Exactly N cells.
fn words<const N: usize>(value: &[u8]) -> Option<[u32; N]> {
    let (chunks, rest) = value.as_chunks::<4>();
    let chunks: &[[u8; 4]; N] = chunks.try_into().ok()?;
    rest.is_empty().then(|| chunks.map(u32::from_be_bytes))
}

/// A number of cells: addresses and sizes take up to two.
fn cells(value: &[u8], name: &'static str) -> Result<usize, Error> {
    let count = word(value).filter(|&n| n <= 2).ok_or(Error::Value(name))?;
    Ok(count as usize)
}

/// Cells as one number, the most significant first.
fn number(value: &[u8]) -> u64 {
    value.iter().fold(0, |n, &b| n << 8 | u64::from(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_fdt::FdtWriter;

    /// A tree with one property changed: (name, what it shall be).
    fn tree(cpus: u32, changed: Option<(&str, &[u32])>) -> Vec<u8> {
        let mut w = FdtWriter::new().unwrap();
        w.set_boot_cpuid_phys(0);
        let put = |w: &mut FdtWriter, name: &str, cells: &[u32]| {
            let cells = changed.filter(|c| c.0 == name).map_or(cells, |c| c.1);
            w.property_array_u32(name, cells).unwrap();
        };
        let root = w.begin_node("").unwrap();
        w.property_string("compatible", names::MACHINE).unwrap();
        put(&mut w, "#address-cells", &[2]);
        put(&mut w, "#size-cells", &[2]);
        let node = w.begin_node("chosen").unwrap();
        put(&mut w, names::RESETS, &[2]);
        w.end_node(node).unwrap();
        let node = w.begin_node("memory@0").unwrap();
        w.property_string("device_type", "memory").unwrap();
        w.property_array_u64("reg", &[0, 0xC000_0000, 1 << 32, 2 << 30])
            .unwrap();
        w.end_node(node).unwrap();
        let all = w.begin_node("cpus").unwrap();
        w.property_u32("#address-cells", 1).unwrap();
        w.property_u32("#size-cells", 0).unwrap();
        for cpu in 0..cpus {
            let node = w.begin_node(&format!("cpu@{cpu:x}")).unwrap();
            w.property_string("device_type", "cpu").unwrap();
            w.property_u32("reg", cpu).unwrap();
            w.end_node(node).unwrap();
        }
        w.end_node(all).unwrap();
        let isa = w.begin_node("isa").unwrap();
        w.property_string("compatible", "isa").unwrap();
        w.property_u32("#address-cells", 2).unwrap();
        w.property_u32("#size-cells", 1).unwrap();
        let node = w.begin_node("serial@1,2f8").unwrap();
        w.property_string_list("compatible", vec!["x".into(), names::SERIAL.into()])
            .unwrap();
        w.property_array_u32("reg", &[1, 0x2F8, 8]).unwrap();
        w.end_node(node).unwrap();
        let node = w.begin_node("exitvisor@1,f00").unwrap();
        w.property_string("compatible", names::PORTS).unwrap();
        put(&mut w, names::MILESTONE_PORT, &[0xF00]);
        put(&mut w, names::EXIT_PORT, &[0xF08]);
        put(&mut w, names::SCRATCH_PORT, &[0xF1C]);
        w.end_node(node).unwrap();
        let node = w.begin_node("power").unwrap();
        w.property_string("compatible", names::POWER).unwrap();
        put(&mut w, names::POWER_OFF, &[0xF20, 0x34]);
        put(&mut w, names::RESET, &[0xF22, 0xA5]);
        w.end_node(node).unwrap();
        w.end_node(isa).unwrap();
        let node = w.begin_node("gates").unwrap();
        w.property_string("compatible", names::GATES).unwrap();
        put(&mut w, names::SLOTS, &[4]);
        put(&mut w, names::LEAVES, &Layout::REVERSED.leaves());
        put(&mut w, names::GATE_PORTS, &[0xF10, 0xF14, 0xF18]);
        w.end_node(node).unwrap();
        let node = w.begin_node("lapic@fee00000").unwrap();
        w.property_string("compatible", names::LOCAL_APIC).unwrap();
        w.property_array_u64("reg", &[0xFEE0_0000, 0x1000]).unwrap();
        put(&mut w, "clock-frequency", &[500_000_000]);
        w.end_node(node).unwrap();
        let node = w.begin_node("ioapic@fec00000").unwrap();
        w.property_string("compatible", names::IO_APIC).unwrap();
        w.property_array_u64("reg", &[0xFEC0_0000, 0x1000]).unwrap();
        w.end_node(node).unwrap();
        let node = w.begin_node("scratch@d0000000").unwrap();
        w.property_string("compatible", names::SCRATCH).unwrap();
        w.property_array_u64("reg", &[0xD000_0000, 0x1000]).unwrap();
        w.end_node(node).unwrap();
        let node = w.begin_node("exit-page@d1000000").unwrap();
        w.property_string("compatible", names::EXIT_PAGE).unwrap();
        put(&mut w, "reg", &[0, 0xD100_0000, 0, 0x9000]);
        w.end_node(node).unwrap();
        w.end_node(root).unwrap();
        w.finish().unwrap()
    }

    #[test]
    fn everything_is_found() {
        let mut machine = Machine::undescribed();
        let mut bytes = tree(3, None);
        bytes.extend([0; 100]); // a module may be padded
        assert_eq!(read(&bytes, &mut machine), Ok(()));
        assert!(machine.described);
        assert_eq!(
            machine.ram.as_slice(),
            [(0, 0xC000_0000), (1 << 32, 2 << 30)]
        );
        assert_eq!(machine.cpus.as_slice(), [0, 1, 2]);
        assert_eq!(
            machine.ports,
            super::super::Ports {
                serial: 0x2F8,
                milestone: 0xF00,
                exit: 0xF08,
                scratch: 0xF1C,
                gate: [0xF10, 0xF14, 0xF18],
            }
        );
        assert_eq!((machine.timer, machine.slots), (500_000_000, 4));
        assert_eq!(machine.layout, Some(Layout::REVERSED));
        let switch = |port, value| Switch { port, value };
        assert_eq!(machine.power_off, switch(0xF20, 0x34));
        assert_eq!(machine.reset, switch(0xF22, 0xA5));
        assert_eq!(machine.resets, Some(2));
        assert_eq!(
            (machine.local_apic, machine.io_apic, machine.scratch_page),
            (0xFEE0_0000, 0xFEC0_0000, 0xD000_0000)
        );
        assert_eq!(machine.exit_page, Some((0xD100_0000, 0x9000)));
    }

    #[test]
    fn values_that_make_no_sense() {
        let error = |name, cells: &[u32]| {
            read(&tree(1, Some((name, cells))), &mut Machine::undescribed()).unwrap_err()
        };
        for (name, cells) in [
            ("#address-cells", &[3][..]),
            ("#size-cells", &[1, 1]),
            ("clock-frequency", &[0]),
            (names::EXIT_PORT, &[0x1_0000]),
            (names::MILESTONE_PORT, &[]),
            (names::GATE_PORTS, &[1, 2]),
            (names::LEAVES, &[1, 2, 3, 4]),
            (names::RESET, &[0x100, 0x100]),
            (names::POWER_OFF, &[0x100]),
            (names::RESETS, &[1, 2]),
            // The exit page's: too short, no page, empty.
            ("reg", &[0, 0xD100_0000, 0]),
            ("reg", &[0, 0xD100_0800, 0, 0x9000]),
            ("reg", &[0, 0xD100_0000, 0, 0]),
        ] {
            assert_eq!(error(name, cells), Error::Value(name));
        }
        // Memory whose cells do not fit its `reg`.
        assert_eq!(error("#size-cells", &[1]), Error::Value("reg"));
        let many = read(&tree(257, None), &mut Machine::undescribed());
        assert_eq!(many, Err(Error::Value("reg")), "APIC IDs have eight bits");
    }

    #[test]
    fn structures_that_make_no_sense() {
        let damaged = |tokens: &[u32]| {
            let mut blob = tree(1, None);
            let start = u32::from_be_bytes(blob[8..12].try_into().unwrap()) as usize;
            for (i, token) in tokens.iter().enumerate() {
                blob[start + 4 * i..][..4].copy_from_slice(&token.to_be_bytes());
            }
            read(&blob, &mut Machine::undescribed())
        };
        assert_eq!(damaged(&[2]), Err(Error::Damaged), "an end before a node");
        assert_eq!(
            damaged(&[3, 0, 0]),
            Err(Error::Damaged),
            "a property of no node"
        );
        assert_eq!(
            damaged(&[1, 0, 1, 0, 2, 3, 0, 0]),
            Err(Error::Damaged),
            "after a child"
        );
        assert_eq!(
            damaged(&[9]),
            Err(Error::Damaged),
            "an end before the root's"
        );
        assert_eq!(
            damaged(&[1, 0, 3, u32::MAX, 0]),
            Err(Error::Damaged),
            "a long value"
        );
        assert_eq!(
            damaged(&[1, 0, 3, 0, u32::MAX]),
            Err(Error::Damaged),
            "a far name"
        );
        assert_eq!(damaged(&[4, 4, 1, 0, 2]), Ok(()), "an empty tree");
        let deep = [1, 0].repeat(30);
        assert!(damaged(&deep).is_err(), "nodes that do not end");
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(read(&bytes, &mut Machine::undescribed()), Err(Error::Damaged));
        }

        #[test]
        fn damage_never_panics(
            hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = tree(2, None);
            for (at, byte) in hits {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let _ = read(&bytes, &mut Machine::undescribed());
            bytes.truncate(cut.index(bytes.len()));
            let _ = read(&bytes, &mut Machine::undescribed());
        }
    }
}
