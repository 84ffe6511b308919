//! The local APIC in xAPIC mode, and its timer.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::traps;

/// Where every local APIC is after reset (SDM vol. 3A, 11.4.1).
pub const BASE: u64 = 0xFEE0_0000;

/// Registers by their offset (SDM vol. 3A, table 11-1).
#[derive(Clone, Copy)]
#[repr(u64)]
enum Register {
    EndOfInterrupt = 0xB0,
    Spurious = 0xF0,
    Timer = 0x320,
    LocalInterrupt0 = 0x350,
    InitialCount = 0x380,
    DivideConfiguration = 0x3E0,
}

const ENABLED: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DIVIDE_BY_1: u32 = 0b1011;

/// Timer interrupts so far.
static TICKS: AtomicU64 = AtomicU64::new(0);

fn write(register: Register, value: u32) {
    // SAFETY: both the entry's page tables and the kernel's map the LAPIC's page at its physical
    // address, and none of these registers lets the LAPIC change memory. One MOV, because an
    // emulator decodes it.
    unsafe {
        asm!("mov [{}], {:e}", in(reg) BASE + register as u64, in(reg) value, options(nostack, preserves_flags));
    }
}

/// Switches the LAPIC on, the timer stopped and the old PIC's line masked.
pub fn enable() {
    write(Register::Spurious, ENABLED | u32::from(traps::SPURIOUS));
    write(Register::LocalInterrupt0, MASKED);
    // KVM's LAPIC counts nanoseconds when it divides by one.
    write(Register::DivideConfiguration, DIVIDE_BY_1);
}

/// Asks for one timer interrupt per [`arm`], until [`periodic`] or [`stop`].
pub fn one_shot() {
    write(Register::Timer, traps::TIMER.into());
}

/// Starts the countdown of [`one_shot`].
pub fn arm(count: u32) {
    write(Register::InitialCount, count);
}

/// Starts timer interrupts every `count` nanoseconds.
pub fn periodic(count: u32) {
    write(Register::Timer, PERIODIC | u32::from(traps::TIMER));
    write(Register::InitialCount, count);
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
