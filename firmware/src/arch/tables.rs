//! Segments and page tables, as constants of the image: building them would cost an interpreted
//! CPU thousands of instructions.

/// Selector of the 64-bit code segment.
pub const CODE64: u16 = 0x08;
/// Selector of the flat data segment.
pub const DATA: u16 = 0x10;
/// Selector of the flat 32-bit code segment, in which the kernel is entered.
pub const CODE32: u16 = 0x18;

/// Present, writable, accessed, dirty.
pub const TABLE: u64 = 0x63;
/// The same for an entry that is a large page.
const LARGE: u64 = 0x80 | TABLE;
/// How much the tables map, one to one, in 2 MiB pages.
pub const MAPPED: u64 = 4 << 30;

/// A code or data descriptor with base 0 and limit 4 GiB (SDM vol. 3A, 3.4.5). The accessed bit is
/// set: then the CPU need not write here.
const fn flat(kind: u64, flags: u64) -> u64 {
    0xFFFF | kind << 40 | 0xF << 48 | flags << 52
}

/// The descriptors; the entry code and the jump refer to the table by name.
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

/// A page table, as the CPU wants it aligned.
#[repr(C, align(4096))]
pub struct Table(pub [u64; 512]);

/// 2 MiB pages for one gigabyte.
const fn directory(gigabyte: u64) -> Table {
    let mut table = [0; 512];
    let mut i = 0;
    while i < 512 {
        table[i] = gigabyte << 30 | (i as u64) << 21 | LARGE;
        i += 1;
    }
    Table(table)
}

/// The lowest level of tables. Writable data: the CPU sets accessed bits, the linker's script puts
/// it beside the upper levels.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.firmware_tables.directories")]
pub static FIRMWARE_DIRECTORIES: [Table; 4] =
    [directory(0), directory(1), directory(2), directory(3)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_usual_ones() {
        assert_eq!(
            FIRMWARE_GDT,
            [
                0,
                0x00AF_9B00_0000_FFFF,
                0x00CF_9300_0000_FFFF,
                0x00CF_9B00_0000_FFFF
            ]
        );
        for (selector, long) in [(CODE64, 1), (CODE32, 0)] {
            assert_eq!(
                FIRMWARE_GDT[usize::from(selector) / 8] >> 53 & 1,
                long,
                "L bit"
            );
        }
    }

    #[test]
    fn four_gigabytes_one_to_one() {
        let entries = FIRMWARE_DIRECTORIES.iter().flat_map(|table| table.0);
        for (i, entry) in entries.clone().enumerate() {
            assert_eq!(entry & !0x1F_FFFF, (i as u64) << 21);
            assert_eq!(entry & 0x1F_FFFF, LARGE);
        }
        assert_eq!((entries.count() as u64) << 21, MAPPED);
    }
}
