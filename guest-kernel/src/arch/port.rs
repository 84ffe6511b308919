//! I/O ports.

use core::arch::asm;

/// Writes a byte.
pub fn out8(port: u16, value: u8) {
    // SAFETY: OUT changes no memory of ours; every port of this machine is Exitvisor's or unused.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
    }
}

/// Writes two bytes.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as for `out8`.
    unsafe {
        asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags))
    }
}

/// Writes four bytes.
pub fn out32(port: u16, value: u32) {
    // SAFETY: as for `out8`.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags))
    }
}

/// Reads a byte.
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as for `out8`.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    }
    value
}

/// Reads two bytes.
pub fn in16(port: u16) -> u16 {
    let value;
    // SAFETY: as for `out8`.
    unsafe {
        asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags))
    }
    value
}

/// Reads four bytes.
pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as for `out8`.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags))
    }
    value
}

/// Writes all bytes to one port with one instruction (`rep outsb`): one exit where KVM
/// hands out strings, one per byte where it emulates them (see [`crate::workload`]).
pub fn out_bytes(port: u16, bytes: &[u8]) {
    // SAFETY: the instruction reads `bytes.len()` bytes from the slice, upwards (the direction
    // flag is clear in Rust code), and writes no memory.
    unsafe {
        asm!(
            "rep outsb",
            in("dx") port,
            inout("rsi") bytes.as_ptr() => _,
            inout("rcx") bytes.len() => _,
            options(readonly, nostack, preserves_flags)
        )
    }
}
