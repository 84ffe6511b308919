//! The local APIC in xAPIC mode, and its timer.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::traps;

/// Where every local APIC is after reset (SDM vol. 3A, 11.4.1).
pub const BASE: u64 = 0xFEE0_0000;
/// Where a PC's first IOAPIC is.
pub const IO_APIC: u64 = 0xFEC0_0000;

/// Where the local APICs are, and their timer's frequency in Hz.
static PLACE: AtomicU64 = AtomicU64::new(BASE);
static HERTZ: AtomicU32 = AtomicU32::new(1_000_000_000);

/// Registers by their offset (SDM vol. 3A, table 11-1).
#[derive(Clone, Copy)]
#[repr(u64)]
enum Register {
    EndOfInterrupt = 0xB0,
    Spurious = 0xF0,
    CommandLow = 0x300,
    CommandHigh = 0x310,
    Timer = 0x320,
    LocalInterrupt0 = 0x350,
    InitialCount = 0x380,
    DivideConfiguration = 0x3E0,
}

const ENABLED: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DIVIDE_BY_1: u32 = 0b1011;
/// INIT, asserted, level; and start-up (SDM vol. 3A, figure 11-12).
const INIT: u32 = 0xC500;
const START_UP: u32 = 0x0600;

/// Timer interrupts so far.
static TICKS: AtomicU64 = AtomicU64::new(0);

fn write(register: Register, value: u32) {
    // SAFETY: both the entry's page tables and the kernel's map the LAPIC's page at its physical
    // address, and none of these registers lets the LAPIC change memory. One MOV, because an
    // emulator decodes it.
    unsafe {
        asm!("mov [{}], {:e}", in(reg) PLACE.load(Ordering::Relaxed) + register as u64, in(reg) value, options(nostack, preserves_flags));
    }
}

/// Switches the LAPIC on, the timer stopped and the old PIC's line masked.
pub fn enable() {
    write(Register::Spurious, ENABLED | u32::from(traps::SPURIOUS));
    write(Register::LocalInterrupt0, MASKED);
    write(Register::DivideConfiguration, DIVIDE_BY_1);
}

/// Asks for one timer interrupt per [`arm`], until [`periodic`] or [`stop`].
pub fn one_shot() {
    write(Register::Timer, traps::TIMER.into());
}

/// Starts the countdown of [`one_shot`].
pub fn arm(nanoseconds: u32) {
    let hertz = HERTZ.load(Ordering::Relaxed);
    write(Register::InitialCount, counts(nanoseconds, hertz));
}

/// Starts timer interrupts with this period.
pub fn periodic(nanoseconds: u32) {
    write(Register::Timer, PERIODIC | u32::from(traps::TIMER));
    arm(nanoseconds);
}

/// Uses the page and the timer's frequency that a device tree names.
pub fn found(page: u64, hertz: u32) {
    PLACE.store(page, Ordering::Relaxed);
    HERTZ.store(hertz, Ordering::Relaxed);
}

/// What the timer counts in this time; at least one, since zero would stop it.
const fn counts(nanoseconds: u32, hertz: u32) -> u32 {
    let counts = nanoseconds as u64 * hertz as u64 / 1_000_000_000;
    match counts {
        0 => 1,
        1..=0xFFFF_FFFF => counts as u32,
        _ => u32::MAX,
    }
}

/// Sends INIT and a start-up IPI to the CPU of this APIC ID, which then begins in real mode at
/// `page` (below 1 MiB). KVM needs no pause between the two.
pub fn start_cpu(id: u8, page: u8) {
    let command = |low| {
        write(Register::CommandHigh, u32::from(id) << 24);
        write(Register::CommandLow, low);
    };
    command(INIT);
    command(START_UP | u32::from(page));
}

/// Stops the timer.
pub fn stop() {
    write(Register::Timer, MASKED);
    write(Register::InitialCount, 0);
}

/// Timer interrupts so far.
pub fn ticks() -> u64 {
    TICKS.load(Ordering::Relaxed)
}

/// The timer's handler.
pub(super) fn ticked() {
    // Only this handler writes, with interrupts off: no locked instruction is needed.
    TICKS.store(TICKS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    write(Register::EndOfInterrupt, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn countdowns() {
        assert_eq!(counts(200_000, 1_000_000_000), 200_000);
        assert_eq!(counts(200_000, 100_000_000), 20_000);
        assert_eq!(counts(1, 1), 1);
        assert_eq!(counts(u32::MAX, u32::MAX), u32::MAX);
    }
}
