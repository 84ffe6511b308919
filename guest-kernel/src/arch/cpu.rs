//! Single instructions that a kernel needs: halting, interrupts, control registers.

use core::arch::asm;

/// Lets interrupts in and halts until one has been handled; returns with interrupts off.
///
/// STI opens only after the instruction that follows it (SDM vol. 2B, STI), so that an interrupt
/// that is already pending ends the HLT instead of being lost before it.
pub fn wait_for_interrupt() {
    // SAFETY: the handlers keep every register and touch only atomics. Without an IDT the CPU
    // would end in a triple fault, which stops it and corrupts nothing.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}

/// Stops this CPU for good.
pub fn stop() -> ! {
    loop {
        // SAFETY: CLI and HLT change no memory; nothing waits for this CPU any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// The linear address that faulted last.
pub fn cr2() -> u64 {
    let value;
    // SAFETY: reading CR2 changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// CR0's bit 18, AM: of no effect at ring 0, so that it can be toggled at will.
pub const ALIGNMENT_MASK: u64 = 1 << 18;

/// CR0.
pub fn cr0() -> u64 {
    let value;
    // SAFETY: reading CR0 changes nothing.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Writes CR0, of which only [`ALIGNMENT_MASK`] is changed: what is written besides is `base`'s.
pub fn write_cr0(base: u64, alignment_mask: bool) {
    // PE, ET, WP and PG as the entry has set them, whatever the caller says.
    let fixed = 0x8001_0011;
    let mask = if alignment_mask { ALIGNMENT_MASK } else { 0 };
    let value = base & !ALIGNMENT_MASK | fixed | mask;
    // SAFETY: protection and paging stay on; AM acts at ring 3 alone (SDM vol. 3A, 2.5).
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nomem, nostack, preserves_flags)) }
}

/// Writes zero to DR3, which DR7 does not enable.
pub fn clear_dr3() {
    // SAFETY: a breakpoint that is not enabled has no effect.
    unsafe { asm!("mov dr3, {}", in(reg) 0_u64, options(nomem, nostack, preserves_flags)) }
}

/// Writes the caches back and empties them.
pub fn wbinvd() {
    // SAFETY: memory keeps what caches held.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) }
}

/// Forgets the translation of a page.
pub fn forget_page(address: u64) {
    // SAFETY: the next access walks the tables anew.
    #[cfg(target_os = "none")]
    unsafe {
        asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags));
    }
    let _ = address;
}

/// The time-stamp counter.
pub fn time_stamp() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading the counter changes nothing; CR4.TSD is clear.
    unsafe {
        asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes one byte of RAM that nobody else uses.
pub fn touch(address: u64) {
    // SAFETY: the byte belongs to nobody but the caller: a page of `memory::Division::take`, or its own.
    #[cfg(target_os = "none")]
    unsafe {
        asm!("mov byte ptr [{}], 1", in(reg) address, options(nostack, preserves_flags));
    }
    let _ = address;
}

/// Writes a byte of each page that a value lies in, with what is there already.
pub fn touch_all<T>(value: &mut T) {
    let start = &raw mut *value as u64;
    let end = start + size_of::<T>() as u64;
    let mut at = start;
    while at < end {
        // SAFETY: the byte is the value's, which is borrowed for writing, and keeps what it holds.
        unsafe {
            asm!("or byte ptr [{}], 0", in(reg) at, options(nostack));
        }
        at = (at | 4095) + 1;
    }
}

/// Lets interrupts in while `done` says no, without halting.
pub fn spin_until(done: impl Fn() -> bool) {
    // SAFETY: as for `wait_for_interrupt`.
    #[cfg(target_os = "none")]
    unsafe {
        asm!("sti", options(nostack));
    }
    while !done() {
        core::hint::spin_loop();
    }
    // SAFETY: CLI changes nothing but the interrupt flag.
    #[cfg(target_os = "none")]
    unsafe {
        asm!("cli", options(nostack));
    }
}

/// Whether this CPU's maker is AMD, or Hygon after it: their hypercall is VMMCALL.
pub fn is_amd() -> bool {
    let maker = super::gate::cpuid(0, 0).ebx.to_le_bytes();
    matches!(&maker, b"Auth" | b"Hygo")
}

/// Whether the CPU says that it has XSAVE, and with it XSETBV.
pub fn has_xsave() -> bool {
    super::gate::cpuid(1, 0).ecx & 1 << 26 != 0
}

/// Sets CR4.OSXSAVE, without which XGETBV and XSETBV are undefined.
pub fn enable_xsave() {
    // SAFETY: on a CPU with XSAVE the bit is defined, and lets ring 0 do what it wants to.
    unsafe {
        asm!(
            "mov {0}, cr4",
            "or {0}, 1 << 18",
            "mov cr4, {0}",
            out(reg) _,
            options(nomem, nostack)
        );
    }
}
