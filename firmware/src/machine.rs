//! The machine's ports, as the device tree names them; without one, as Exitvisor has always had
//! them.

use core::fmt;

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};
use exit_abi::gate::{Command, Outcome};
use exit_abi::{devicetree as names, port as ports};
use guest_kernel::arch::{gate, port};
use guest_kernel::line::Line;

use crate::error::Error;
use crate::kernel::{Gate, Gates};

/// Bytes of a device tree that are believed; ours has less than 4 KiB.
const TREE_MAX: u64 = 1 << 20;
/// How deep nodes are looked for: the root, its children, those of a bus.
const DEPTH: usize = 3;

/// The ports that the firmware uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    com1: u16,
    milestone: u16,
    exit: u16,
    /// Low half, high half, command.
    gates: [u16; 3],
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            com1: ports::COM1,
            milestone: ports::MILESTONE,
            exit: ports::EXIT,
            gates: [ports::GATE_LOW, ports::GATE_HIGH, ports::GATE_COMMAND],
        }
    }
}

/// A port number that fits into a port number.
fn narrow(number: u32, name: &'static str) -> Result<u16, Error> {
    u16::try_from(number).map_err(|_| Error::TreeProperty(name))
}

/// The `N` 32-bit numbers that are all of a property; `None` without the property.
fn numbers<const N: usize>(
    node: &FdtNode<'_>,
    name: &'static str,
) -> Result<Option<[u32; N]>, Error> {
    let Some(property) = node.property(name) else {
        return Ok(None);
    };
    let (words, rest) = property.value().as_chunks();
    if words.len() != N || !rest.is_empty() {
        return Err(Error::TreeProperty(name));
    }
    let mut numbers = [0; N];
    for (number, word) in numbers.iter_mut().zip(words) {
        *number = u32::from_be_bytes(*word);
    }
    Ok(Some(numbers))
}

impl Machine {
    /// Reads the ports out of a device tree. What it does not name stays as it is by default.
    pub fn from_tree(module: &[u8]) -> Result<Self, Error> {
        let size = module
            .get(4..8)
            .and_then(|size| Some(u32::from_be_bytes(*size.first_chunk()?)));
        let tree = size
            .filter(|&size| u64::from(size) <= TREE_MAX)
            .and_then(|size| module.get(..size as usize))
            .ok_or(Error::TreeSize(module.len() as u64))?;
        // Checks the tree as a whole: walking one that has passed does not fail.
        let tree = Fdt::new(tree).map_err(Error::Tree)?;
        let mut machine = Self::default();
        machine.read(&tree.root(), DEPTH)?;
        Ok(machine)
    }

    fn read(&mut self, node: &FdtNode<'_>, depth: usize) -> Result<(), Error> {
        if let Some(compatible) = node.property("compatible") {
            // A list of strings, each with its NUL.
            for name in compatible.value().split(|&byte| byte == 0) {
                self.read_compatible(node, name)?;
            }
        }
        if depth > 1 {
            for child in node.children() {
                self.read(&child, depth - 1)?;
            }
        }
        Ok(())
    }

    fn read_compatible(&mut self, node: &FdtNode<'_>, compatible: &[u8]) -> Result<(), Error> {
        if compatible == names::PORTS.as_bytes() {
            if let Some([number]) = numbers(node, names::MILESTONE_PORT)? {
                self.milestone = narrow(number, names::MILESTONE_PORT)?;
            }
            if let Some([number]) = numbers(node, names::EXIT_PORT)? {
                self.exit = narrow(number, names::EXIT_PORT)?;
            }
        } else if compatible == names::GATES.as_bytes() {
            if let Some(gates) = numbers::<3>(node, names::GATE_PORTS)? {
                for (own, number) in self.gates.iter_mut().zip(gates) {
                    *own = narrow(number, names::GATE_PORTS)?;
                }
            }
        } else if compatible == names::SERIAL.as_bytes()
            // On an ISA bus: I/O space (1), the first port, how many.
            && let Some([1, number, _]) = numbers(node, "reg")?
        {
            self.com1 = narrow(number, "reg")?;
        }
        Ok(())
    }

    /// Tells Exitvisor that a milestone is reached.
    pub fn milestone(&self, number: u32) {
        port::out32(self.milestone, number);
    }

    /// Ends the VM with this status; returns only where nobody serves the port.
    pub fn exit(&self, status: u32) {
        port::out32(self.exit, status);
    }

    /// Formats and sends a line.
    pub fn println(&self, text: fmt::Arguments<'_>) {
        let mut line = Line::new();
        // A `Line` takes what fits and never fails.
        let _ = fmt::write(&mut line, text);
        port::out_bytes(self.com1, line.end().as_bytes());
    }

    /// Withdraws the firmware's gate and registers the kernel's, so that all slots are the
    /// kernel's, as if its notes had been read by the VMM.
    pub fn move_gates(&self, kernel: &Gates) -> Result<(), Error> {
        // `None`: nobody serves the gate port, so that nobody would answer at a gate either.
        if self
            .gate_command(Command::Withdraw, gate::cpuid_site())
            .is_none()
        {
            return Ok(());
        }
        for &Gate { address, command } in kernel.iter() {
            match self.gate_command(command, address) {
                Some(Outcome::Done) | None => {}
                Some(outcome) => return Err(Error::Gate(address, outcome)),
            }
        }
        Ok(())
    }

    fn gate_command(&self, command: Command, address: u64) -> Option<Outcome> {
        let [low, high, command_port] = self.gates;
        port::out32(low, address as u32);
        port::out32(high, (address >> 32) as u32);
        port::out32(command_port, command as u32);
        Outcome::from_number(port::in32(command_port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_fdt::FdtWriter;

    /// A tree as Exitvisor writes it, with these ports for COM1, milestones and exits.
    fn tree(com1: u32, milestone: u32, exit: u32) -> Vec<u8> {
        let write = || -> Result<Vec<u8>, vm_fdt::Error> {
            let mut fdt = FdtWriter::new()?;
            let root = fdt.begin_node("")?;
            fdt.property_string("compatible", names::MACHINE)?;
            let isa = fdt.begin_node("isa")?;
            let serial = fdt.begin_node("serial@3f8")?;
            fdt.property_string_list("compatible", vec!["x".into(), names::SERIAL.into()])?;
            fdt.property_array_u32("reg", &[1, com1, 8])?;
            fdt.end_node(serial)?;
            let ports = fdt.begin_node("ports")?;
            fdt.property_string("compatible", names::PORTS)?;
            fdt.property_u32(names::MILESTONE_PORT, milestone)?;
            fdt.property_u32(names::EXIT_PORT, exit)?;
            fdt.end_node(ports)?;
            let gates = fdt.begin_node("gates")?;
            fdt.property_string("compatible", names::GATES)?;
            fdt.property_array_u32(names::GATE_PORTS, &[1, 2, 3])?;
            fdt.end_node(gates)?;
            fdt.end_node(isa)?;
            fdt.end_node(root)?;
            fdt.finish()
        };
        write().unwrap()
    }

    #[test]
    fn ports_come_from_the_tree() {
        let mut tree = tree(0x2F8, 0x500, 0x504);
        let expected = Machine {
            com1: 0x2F8,
            milestone: 0x500,
            exit: 0x504,
            gates: [1, 2, 3],
        };
        assert_eq!(Machine::from_tree(&tree).unwrap(), expected);
        // A module may be longer than its tree.
        tree.extend([0xFF; 100]);
        assert_eq!(Machine::from_tree(&tree).unwrap(), expected);
    }

    #[test]
    fn trees_that_make_no_sense() {
        let good = tree(1, 2, 3);
        let error = |tree: &[u8]| Machine::from_tree(tree).unwrap_err();
        for length in 0..good.len() {
            assert!(matches!(error(&good[..length]), Error::TreeSize(_)));
        }
        let mut huge = good.clone();
        huge[4] = 0x10;
        huge.resize(2 << 20, 0);
        assert!(matches!(error(&huge), Error::TreeSize(_)));
        let mut other = good.clone();
        other[0] = 0;
        assert!(matches!(error(&other), Error::Tree(_)));
        for (tree, property) in [
            (tree(1 << 16, 0, 0), "reg"),
            (tree(0, u32::MAX, 0), names::MILESTONE_PORT),
            (tree(0, 0, 1 << 16), names::EXIT_PORT),
        ] {
            assert!(matches!(error(&tree), Error::TreeProperty(p) if p == property));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(flips in prop::collection::vec((0_usize..1000, any::<u8>()), 1..8)) {
            let mut tree = tree(1, 2, 3);
            for (at, byte) in flips {
                let length = tree.len();
                tree[at % length] = byte;
            }
            let _ = Machine::from_tree(&tree);
        }
    }
}
