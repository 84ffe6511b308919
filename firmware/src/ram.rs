//! The memory map: where RAM is (Xen's `hvm/start_info.h`, `hvm_memmap_table_entry`).

use crate::error::Error;
use crate::start_info::wide;

/// An entry: address, size, type, reserved.
pub type Entry = [u8; 24];
/// Most entries that are read.
pub const ENTRIES_MAX: u32 = 128;
/// The type that is RAM; all others are not.
const RAM: u32 = 1;

/// A memory map that was checked.
#[derive(Clone, Copy, Debug)]
pub struct Ram<'m>(&'m [Entry]);

/// An entry of RAM as (first byte, one past the last); `None` for one of another type.
fn ram(entry: &Entry) -> Option<(u64, u64)> {
    let start = wide(entry, 0);
    (wide(entry, 16) as u32 == RAM).then(|| (start, start.saturating_add(wide(entry, 8))))
}

impl<'m> Ram<'m> {
    /// Checks a memory map: no entry wraps, and there is some RAM.
    pub fn new(map: &'m [Entry]) -> Result<Self, Error> {
        let mut some = false;
        for entry in map {
            let start = wide(entry, 0);
            if start.checked_add(wide(entry, 8)).is_none() {
                return Err(Error::MapWraps(start));
            }
            some |= ram(entry).is_some_and(|(start, end)| start < end);
        }
        if some {
            Ok(Self(map))
        } else {
            Err(Error::NoRam)
        }
    }

    /// One past the last byte of RAM below `limit`.
    pub fn top_below(&self, limit: u64) -> u64 {
        let tops = self.0.iter().filter_map(ram).filter(|r| r.0 < limit);
        tops.map(|r| r.1.min(limit)).max().unwrap_or(0)
    }

    /// Whether all bytes of a range are RAM, be it of several entries.
    pub fn contains(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        // Each entry can carry `at` further once at most.
        for _ in 0..=self.0.len() {
            if at >= end {
                return true;
            }
            let holding = self
                .0
                .iter()
                .filter_map(ram)
                .find(|r| r.0 <= at && at < r.1);
            match holding {
                Some((_, past)) => at = past,
                None => return false,
            }
        }
        at >= end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(start: u64, length: u64, kind: u32) -> Entry {
        let mut entry = [0; 24];
        entry[..8].copy_from_slice(&start.to_le_bytes());
        entry[8..16].copy_from_slice(&length.to_le_bytes());
        entry[16..20].copy_from_slice(&kind.to_le_bytes());
        entry
    }

    #[test]
    fn ranges_within_ram() {
        let map = [
            entry(0x30_0000, 0x10_0000, 1),
            entry(0, 0xA_0000, 1),
            entry(0xA_0000, 0x6_0000, 2),
            entry(0x10_0000, 0x20_0000, 1),
        ];
        let ram = Ram::new(&map).unwrap();
        for (start, end) in [
            (0, 0xA_0000),
            (0x10_0000, 0x40_0000),
            (0x2F_FFFF, 0x30_0001),
            (0x3F_FFFF, 0x40_0000),
        ] {
            assert!(ram.contains(start, end), "{start:#x}..{end:#x}");
        }
        for (start, end) in [
            (0, 0xA_0001),
            (0xA_0000, 0xA_0001),
            (0xF_FFFF, 0x10_0001),
            (0x10_0000, 0x40_0001),
            (0x40_0000, 0x40_0001),
            (u64::MAX - 1, u64::MAX),
        ] {
            assert!(!ram.contains(start, end), "{start:#x}..{end:#x}");
        }
    }

    #[test]
    fn the_top() {
        let gib = 1 << 30;
        let map = [
            entry(4 * gib, gib, 1),
            entry(0, gib, 1),
            entry(3 * gib, gib, 2),
        ];
        let ram = Ram::new(&map).unwrap();
        assert_eq!(ram.top_below(4 * gib), gib);
        assert_eq!(ram.top_below(gib / 2), gib / 2);
        assert_eq!(ram.top_below(8 * gib), 5 * gib);
    }

    #[test]
    fn maps_that_make_no_sense() {
        let error = |map: &[Entry]| Ram::new(map).map(|_| ()).unwrap_err();
        assert!(matches!(error(&[]), Error::NoRam));
        let none = [entry(0, 4096, 2), entry(0, 0, 1)];
        assert!(matches!(error(&none), Error::NoRam));
        let wraps = [entry(0, 4096, 1), entry(4096, u64::MAX, 2)];
        assert!(matches!(error(&wraps), Error::MapWraps(4096)));
    }
}
