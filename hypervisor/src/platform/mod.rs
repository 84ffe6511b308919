//! The machine as the guest sees it described: CPUID, ACPI tables, device tree.

use exit_abi::leaf::Layout;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use crate::boot::pvh::Module;
use crate::devices::console::Way;
use crate::devices::virtio::slot::Placed;
use crate::layout;
use crate::memory::Memory;

pub mod acpi;
mod bios;
pub mod cpuid;
pub mod dump;
pub mod fdt;
pub mod irqchip;

/// What can go wrong while the machine is described. None of it is the user's doing.
#[derive(Debug, Error)]
pub enum PlatformError {
    /// The tables outgrew their place.
    #[error("the ACPI tables need {bytes} bytes: {room} are set aside for them")]
    AcpiTooLarge {
        /// Needed.
        bytes: u64,
        /// There are.
        room: u64,
    },
    /// The device tree could not be made.
    #[error("cannot make the device tree: {0}")]
    Tree(#[from] vm_fdt::Error),
    /// The device tree outgrew its place.
    #[error("the device tree needs {bytes} bytes: {room} are set aside for it")]
    TreeTooLarge {
        /// Needed.
        bytes: u64,
        /// There are.
        room: u64,
    },
    /// Guest memory did not take them.
    #[error("cannot place the {0}: {1}")]
    Place(&'static str, #[source] vm_memory::GuestMemoryError),
}

/// What the descriptions are made from.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    /// Bytes of guest memory.
    pub memory: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Which interrupt controllers it has.
    pub irqchip: irqchip::Kind,
    /// The initial RAM disk.
    pub initrd: Option<Module>,
    /// Which leaves ask what.
    pub leaves: Layout,
    /// Frequency of the local APICs' timer, before their divider.
    pub timer_hz: u32,
    /// How often the machine has been reset.
    pub resets: u32,
    /// Bytes of the exit page, if there is one.
    pub exit_page: Option<u64>,
    /// How the console is reached.
    pub console: Way,
    /// The virtio devices.
    pub devices: &'a [Placed],
}

/// The descriptions, as they lie in guest memory.
#[derive(Clone, Debug)]
pub struct Described {
    /// The ACPI tables.
    pub acpi: acpi::Tables,
    /// The device tree.
    pub tree: Vec<u8>,
}

impl Described {
    /// The device tree as a module of the hand-over.
    pub fn module(&self) -> Module {
        Module {
            name: exit_abi::devicetree::MODULE,
            start: layout::DEVICE_TREE,
            bytes: self.tree.len() as u64,
        }
    }
}

/// Describes the machine and writes the descriptions into guest memory.
pub fn describe(memory: &Memory, machine: &Machine<'_>) -> Result<Described, PlatformError> {
    let acpi = acpi::tables(
        machine.cpus,
        machine.irqchip,
        machine.console,
        machine.devices,
    )?;
    for table in acpi.all() {
        memory
            .write_slice(&table.bytes, GuestAddress(table.address))
            .map_err(|e| PlatformError::Place("ACPI tables", e))?;
    }
    memory
        .write_slice(&bios::RESET, GuestAddress(layout::BIOS_RESET))
        .map_err(|e| PlatformError::Place("code that resets", e))?;
    let tree = fdt::tree(machine)?;
    memory
        .write_slice(&tree, GuestAddress(layout::DEVICE_TREE))
        .map_err(|e| PlatformError::Place("device tree", e))?;
    Ok(Described { acpi, tree })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A machine with this many vCPUs.
    pub(crate) fn machine(cpus: u32) -> Machine<'static> {
        Machine {
            memory: 64 << 20,
            cpus,
            cmdline: "log=each",
            irqchip: irqchip::Kind::Kernel,
            initrd: None,
            leaves: Layout::CLASSIC,
            timer_hz: 1_000_000_000,
            resets: 0,
            exit_page: Some(0x9000),
            console: Way::Ports,
            devices: &[],
        }
    }

    #[test]
    fn the_smallest_guest_has_room_for_the_largest_machine() {
        let memory = crate::memory::map(crate::config::MIN_MEMORY).unwrap();
        let cmdline = "x".repeat(layout::CMDLINE_SIZE - 1);
        let machine = Machine {
            cmdline: &cmdline,
            ..machine(crate::config::MAX_CPUS)
        };
        let described = describe(&memory, &machine).unwrap();
        let mut tree = vec![0; described.tree.len()];
        memory
            .read_slice(&mut tree, GuestAddress(layout::DEVICE_TREE))
            .unwrap();
        assert_eq!(tree, described.tree);
        let module = described.module();
        assert_eq!((module.name, module.start), ("dtb", layout::DEVICE_TREE));
    }
}
