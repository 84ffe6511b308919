//! What the kernel knows of the machine: from its device tree, or else the interface's constants.

pub mod blob;
pub mod tree;

use exit_abi::leaf::Layout;
use exit_abi::port as abi;

use crate::arch::{lapic, scratch};
use crate::ports;

/// Most ranges of RAM that are kept.
pub const RANGES_MAX: usize = 16;
/// Most CPUs: those that xAPIC mode can address one by one.
pub const CPUS_MAX: usize = 255;
/// What KVM's timers count with when they divide by one: nanoseconds.
const KVM_TIMER: u32 = 1_000_000_000;

/// A port and the byte to write there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The port.
    pub port: u16,
    /// What does it.
    pub value: u8,
}

/// Where the interface's ports are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of `exit_abi::port`
pub struct Ports {
    pub serial: u16,
    pub milestone: u16,
    pub exit: u16,
    pub scratch: u16,
    pub gate: [u16; 3],
}

/// A list of fixed room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List<T, const N: usize> {
    items: [T; N],
    length: usize,
}

impl<T: Copy, const N: usize> List<T, N> {
    /// An empty one; `filler` is never seen.
    pub const fn new(filler: T) -> Self {
        Self {
            items: [filler; N],
            length: 0,
        }
    }

    /// Appends; `None` if there is no room.
    pub fn push(&mut self, item: T) -> Option<()> {
        *self.items.get_mut(self.length)? = item;
        self.length += 1;
        Some(())
    }

    /// Takes the last one away.
    pub fn pop(&mut self) -> Option<T> {
        self.length = self.length.checked_sub(1)?;
        self.items.get(self.length).copied()
    }

    /// What is in it.
    pub fn as_slice(&self) -> &[T] {
        &self.items[..self.length]
    }
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Whether a device tree told all this.
    pub described: bool,
    /// RAM as (start, length), in the order of the tree or of the memory map.
    pub ram: List<(u64, u64), RANGES_MAX>,
    /// APIC IDs; empty if nothing is known.
    pub cpus: List<u8, CPUS_MAX>,
    /// APIC ID of the CPU that boots.
    pub boot_cpu: u32,
    /// Ports.
    pub ports: Ports,
    /// Frequency of the local APICs' timer, in Hz.
    pub timer: u32,
    /// Pages of devices.
    pub local_apic: u64,
    /// The IOAPIC's.
    pub io_apic: u64,
    /// The page without a device.
    pub scratch_page: u64,
    /// The exit page as (start, length), where the tree names one.
    pub exit_page: Option<(u64, u64)>,
    /// How many gates there are.
    pub slots: u32,
    /// The four leaves, where the tree names them.
    pub layout: Option<Layout>,
    /// What switches the machine off.
    pub power_off: Switch,
    /// What resets it.
    pub reset: Switch,
    /// How often it has been reset; `None`: nobody tells.
    pub resets: Option<u32>,
}

impl Machine {
    /// The machine of the interface's constants, without RAM and CPUs.
    pub const fn undescribed() -> Self {
        Self {
            described: false,
            ram: List::new((0, 0)),
            cpus: List::new(0),
            boot_cpu: 0,
            ports: Ports {
                serial: abi::COM1,
                milestone: abi::MILESTONE,
                exit: abi::EXIT,
                scratch: abi::SCRATCH,
                gate: [abi::GATE_LOW, abi::GATE_HIGH, abi::GATE_COMMAND],
            },
            timer: KVM_TIMER,
            local_apic: lapic::BASE,
            io_apic: lapic::IO_APIC,
            scratch_page: exit_abi::SCRATCH_PAGE,
            exit_page: None,
            slots: exit_abi::gate::SLOTS as u32,
            layout: None,
            power_off: Switch {
                port: abi::SLEEP_CONTROL,
                value: abi::POWER_OFF,
            },
            reset: Switch {
                port: abi::RESET,
                value: abi::RESET_VALUE,
            },
            resets: None,
        }
    }

    /// Lets the kernel's drivers use these ports, pages and frequencies.
    pub fn take_into_use(&self) {
        ports::COM1.set(self.ports.serial);
        ports::MILESTONE.set(self.ports.milestone);
        ports::EXIT.set(self.ports.exit);
        ports::SCRATCH.set(self.ports.scratch);
        ports::GATE_LOW.set(self.ports.gate[0]);
        ports::GATE_HIGH.set(self.ports.gate[1]);
        ports::GATE_COMMAND.set(self.ports.gate[2]);
        lapic::found(self.local_apic, self.timer);
        scratch::found(self.scratch_page);
    }
}
