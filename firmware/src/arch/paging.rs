//! Page tables: memory one to one, in 2 MiB pages.
//!
//! Those of the first gigabyte are constants of the image, because building them would cost an
//! interpreted CPU thousands of instructions. The next three are filled in where there is RAM.

use core::sync::atomic::{AtomicU64, Ordering};

/// Present, writable, accessed, dirty.
pub const TABLE: u64 = 0x63;
/// The same for an entry that is a large page.
const LARGE: u64 = 0x80 | TABLE;
const GIB: u64 = 1 << 30;
/// The most that can be mapped.
pub const MOST: u64 = 4 * GIB;

/// A page table, as the CPU wants it aligned.
#[repr(C, align(4096))]
pub struct Table([AtomicU64; 512]);

/// The entry that maps the `i`th 2 MiB page of memory to itself.
const fn large(i: u64) -> u64 {
    i << 21 | LARGE
}

/// 2 MiB pages for the first gigabyte.
const fn directory() -> Table {
    let mut table = [const { AtomicU64::new(0) }; 512];
    let mut i = 0;
    while i < 512 {
        table[i] = AtomicU64::new(large(i as u64));
        i += 1;
    }
    Table(table)
}

/// The directory of the first gigabyte; the entry code refers to it by name.
#[unsafe(no_mangle)]
pub static FIRMWARE_DIRECTORY: Table = directory();
/// The directories of the second to fourth, to be filled in.
#[unsafe(no_mangle)]
pub static FIRMWARE_MORE_DIRECTORIES: [Table; 3] =
    [const { Table([const { AtomicU64::new(0) }; 512]) }; 3];

/// How much is mapped.
static MAPPED: AtomicU64 = AtomicU64::new(GIB);

/// One past the last byte that is mapped.
pub fn mapped() -> u64 {
    MAPPED.load(Ordering::Relaxed)
}

/// Maps all memory below `top`, at most [`MOST`]. Entries that were absent are cached nowhere, so
/// that nothing needs to be flushed (SDM vol. 3A, 4.10.4.3).
pub fn extend(top: u64) {
    let top = top.min(MOST).next_multiple_of(1 << 21);
    if top <= mapped() {
        return;
    }
    let entries = FIRMWARE_MORE_DIRECTORIES.iter().flat_map(|table| &table.0);
    for (i, entry) in (GIB >> 21..top >> 21).zip(entries) {
        entry.store(large(i), Ordering::Relaxed);
    }
    MAPPED.store(top, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_to_one() {
        let entry = |i: usize| match i {
            0..512 => FIRMWARE_DIRECTORY.0[i].load(Ordering::Relaxed),
            _ => FIRMWARE_MORE_DIRECTORIES[i / 512 - 1].0[i % 512].load(Ordering::Relaxed),
        };
        assert!((0..512).all(|i| entry(i) == (i as u64) << 21 | 0xE3));
        extend(GIB);
        assert_eq!((mapped(), entry(512)), (GIB, 0));
        extend(3 * GIB + 1);
        assert_eq!(mapped(), 3 * GIB + (1 << 21));
        assert!((0..1537).all(|i| entry(i) == (i as u64) << 21 | 0xE3));
        assert!((1537..2048).all(|i| entry(i) == 0));
        extend(u64::MAX);
        assert_eq!(mapped(), MOST);
        assert_eq!(entry(2047), 2047 << 21 | 0xE3);
    }
}
