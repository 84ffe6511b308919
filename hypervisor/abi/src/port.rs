//! The I/O ports that Exitvisor serves besides COM1. All are above what ISA devices probe.

/// First port of ours.
pub const BASE: u16 = 0x0E00;
/// OUT, 32 bits: the guest reached the milestone of this number ([`crate::milestone`]).
pub const MILESTONE: u16 = 0x0E00;
/// OUT, any width, strings too: bytes of a name for this vCPU's next milestone.
pub const MILESTONE_NAME: u16 = 0x0E04;
/// OUT: ends the VM with the exit status written ([`crate::status`]).
pub const EXIT: u16 = 0x0E08;
/// OUT, 8 bits: 1 opens, 0 closes a section whose exits are the profiler's own (the exit log).
pub const OWN_SECTION: u16 = 0x0E0C;
/// OUT, 32 bits: low half of the linear address of a gate ([`crate::gate`]).
pub const GATE_LOW: u16 = 0x0E10;
/// OUT, 32 bits: high half of the linear address of a gate.
pub const GATE_HIGH: u16 = 0x0E14;
/// OUT: a gate command; IN, 32 bits: its result. Per vCPU, like the two halves of the address.
pub const GATE_COMMAND: u16 = 0x0E18;
/// OUT and IN of any width: does nothing, reads as zeros. For workloads that want port exits.
pub const SCRATCH: u16 = 0x0E1C;
/// ACPI's sleep control register, 8 bits (ACPI 6.5, 4.8.3.7): [`POWER_OFF`] ends the VM.
pub const SLEEP_CONTROL: u16 = 0x0E20;
/// ACPI's sleep status register, 8 bits: reads as zero, no wake-up is pending.
pub const SLEEP_STATUS: u16 = 0x0E21;
/// ACPI's reset register, 8 bits: [`RESET_VALUE`] resets the machine.
pub const RESET: u16 = 0x0E22;
/// Last port of ours.
pub const LAST: u16 = 0x0E2F;
/// SLP_TYP of S5, as the DSDT's `\_S5` names it.
pub const S5: u8 = 5;
/// What powers the machine off: SLP_EN (bit 5) with SLP_TYP (bits 4:2) = [`S5`].
pub const POWER_OFF: u8 = 1 << 5 | S5 << 2;
/// What resets the machine.
pub const RESET_VALUE: u8 = 0xA5;
/// COM1: a 16550A, interrupt 4.
pub const COM1: u16 = 0x03F8;
