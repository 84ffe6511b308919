//! Segments: flat ones for long mode, and the code segment in which the kernel is entered.

/// Selector of the 64-bit code segment.
pub const CODE64: u16 = 0x08;
/// Selector of the flat data segment.
pub const DATA: u16 = 0x10;
/// Selector of the flat 32-bit code segment.
pub const CODE32: u16 = 0x18;

/// Selectors with which Linux wants to be entered: `__BOOT_CS` and `__BOOT_DS`.
pub const BOOT_CS: u16 = 0x10;
/// See [`BOOT_CS`].
pub const BOOT_DS: u16 = 0x18;

/// A code or data descriptor with base 0 and limit 4 GiB (SDM vol. 3A, 3.4.5). The accessed bit is
/// set: then the CPU need not write here.
const fn flat(kind: u64, flags: u64) -> u64 {
    0xFFFF | kind << 40 | 0xF << 48 | flags << 52
}

/// The table; the entry code refers to it by name.
#[unsafe(no_mangle)]
pub static FIRMWARE_GDT: [u64; 4] = [
    0,
    // Code, execute and read, DPL 0; granular, long.
    flat(0x9B, 0xA),
    // Data, read and write, DPL 0; granular, 32-bit.
    flat(0x93, 0xC),
    // Code, execute and read, DPL 0; granular, 32-bit.
    flat(0x9B, 0xC),
];

/// The table with which Linux is entered.
pub static LINUX_GDT: [u64; 4] = [0, 0, flat(0x9B, 0xA), flat(0x93, 0xC)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_usual_ones() {
        let at = |selector: u16| FIRMWARE_GDT[usize::from(selector) / 8];
        assert_eq!(at(0), 0);
        assert_eq!(at(CODE64), 0x00AF_9B00_0000_FFFF);
        assert_eq!(at(DATA), 0x00CF_9300_0000_FFFF);
        assert_eq!(at(CODE32), 0x00CF_9B00_0000_FFFF);
        assert_eq!(LINUX_GDT[usize::from(BOOT_CS) / 8], at(CODE64));
        assert_eq!(LINUX_GDT[usize::from(BOOT_DS) / 8], at(DATA));
    }
}
