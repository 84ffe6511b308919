//! Milestones: the steps of a boot, by number.

/// Longest name of a milestone, in bytes.
pub const NAME_MAX: usize = 32;
/// First number that is free for a guest's own milestones.
pub const FIRST_OWN: u32 = 0x100;

/// The VM starts.
pub const RESET: u32 = 1;
/// The firmware's first instruction.
pub const FIRMWARE_ENTRY: u32 = 2;
/// Long mode is on.
pub const LONG_MODE: u32 = 3;
/// The firmware has loaded the kernel.
pub const KERNEL_LOADED: u32 = 4;
/// The kernel's first 64-bit code.
pub const KERNEL_ENTRY: u32 = 5;
/// The kernel runs on page tables of its own.
pub const PAGING: u32 = 6;
/// The memory map is read and a heap exists.
pub const MEMORY: u32 = 7;
/// Exceptions are caught.
pub const EXCEPTIONS: u32 = 8;
/// Interrupts arrive.
pub const INTERRUPTS: u32 = 9;
/// All CPUs run.
pub const SMP: u32 = 10;
/// Devices are found.
pub const DEVICES: u32 = 11;
/// A workload has run.
pub const WORKLOAD: u32 = 12;
/// The boot is complete.
pub const DONE: u32 = 13;

/// The name of a milestone that this interface defines.
pub const fn name(number: u32) -> Option<&'static str> {
    Some(match number {
        RESET => "reset",
        FIRMWARE_ENTRY => "firmware entry",
        LONG_MODE => "long mode",
        KERNEL_LOADED => "kernel loaded",
        KERNEL_ENTRY => "kernel entry",
        PAGING => "paging",
        MEMORY => "memory",
        EXCEPTIONS => "exceptions",
        INTERRUPTS => "interrupts",
        SMP => "SMP",
        DEVICES => "devices",
        WORKLOAD => "workload",
        DONE => "done",
        _ => return None,
    })
}
