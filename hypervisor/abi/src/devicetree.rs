//! Names in the device tree that describes the machine to our firmware and guests.
//!
//! The tree comes as a PVH module whose command line is [`MODULE`]; it is never the first module,
//! because Linux takes that for its initrd. Ports are children of an ISA bus (`#address-cells` = 2,
//! of which the first is 1 for I/O space).

/// Command line of the module that is the device tree.
pub const MODULE: &str = "dtb";
/// Command line of the module that is the kernel, where a firmware is booted.
pub const KERNEL_MODULE: &str = "kernel";
/// Command line of the module that is the initial RAM disk; empty (size 0) where there is none but
/// a first module is needed.
pub const INITRD_MODULE: &str = "initrd";
/// Command line of the module that is Linux's list of `setup_data`, a random seed, where a firmware boots a
/// bzImage: it stays where it is, and the zero page points there.
pub const SETUP_DATA_MODULE: &str = "setup-data";
/// `compatible` of the root.
pub const MACHINE: &str = "exitvisor,machine";
/// `compatible` of COM1, whose `reg` is its ports and whose `interrupts` is its line.
pub const SERIAL: &str = "ns16550a";
/// `compatible` of the local APICs; `reg` is their page. `clock-frequency` is that of their timer
/// in Hz, where the VMM knows it.
pub const LOCAL_APIC: &str = "intel,ce4100-lapic";
/// `compatible` of the IOAPIC; `reg` is its page.
pub const IO_APIC: &str = "intel,ce4100-ioapic";
/// `compatible` of Exitvisor's own ports; `reg` is all of them. Its `u32` properties are the
/// `*_PORT` constants here.
pub const PORTS: &str = "exitvisor,ports";
/// Port of [`crate::port::MILESTONE`].
pub const MILESTONE_PORT: &str = "exitvisor,milestone-port";
/// Port of [`crate::port::EXIT`].
pub const EXIT_PORT: &str = "exitvisor,exit-port";
/// Port of [`crate::port::SCRATCH`].
pub const SCRATCH_PORT: &str = "exitvisor,scratch-port";
/// `compatible` of the node of the gates: `u32` property [`SLOTS`] and the four leaves [`LEAVES`]
/// (total exits, total cycles, exits of ECX, cycles of ECX); [`GATE_PORTS`] are the three ports.
pub const GATES: &str = "exitvisor,gates";
/// How many gates there are.
pub const SLOTS: &str = "exitvisor,slots";
/// The four leaves.
pub const LEAVES: &str = "exitvisor,leaves";
/// Ports of the low half, the high half and the command, `u32` each.
pub const GATE_PORTS: &str = "exitvisor,gate-ports";
/// `compatible` of the page that no device will ever have; `reg` is that page.
pub const SCRATCH: &str = "exitvisor,scratch-page";
/// A virtio device: its registers (VIRTIO 1.3, 4.2.2) and its interrupt, an edge.
pub const VIRTIO: &str = "virtio,mmio";
/// `compatible` of power-off and reset: `u32` properties [`POWER_OFF`] and [`RESET`], each a port
/// and the value to write there (8 bits).
pub const POWER: &str = "exitvisor,power";
/// Port and value of power-off.
pub const POWER_OFF: &str = "exitvisor,power-off";
/// Port and value of reset.
pub const RESET: &str = "exitvisor,reset";
/// `u32` property of `/chosen`: how often the machine has been reset since the VM started.
pub const RESETS: &str = "exitvisor,resets";
/// `compatible` of the exit page ([`crate::page`]); `reg` is its address and its size, records
/// included. There is no such node where there is no exit page.
pub const EXIT_PAGE: &str = "exitvisor,exit-page";
