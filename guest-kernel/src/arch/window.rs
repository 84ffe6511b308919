//! A window: memory that somebody else writes, read as numbers of 64 bits.

use core::ops::Range;

/// Physical memory between 3 and 4 GiB that is neither RAM nor a device with side effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    start: u64,
    size: u64,
}

/// Where the kernel's own tables can map one; the entry's map all of it.
const REACH: Range<u64> = 3 << 30..4 << 30;

impl Window {
    /// The window at a page, mapped read-only in the kernel's own tables too; `None` if it is not
    /// between 3 and 4 GiB, not at a page, or where a device is mapped.
    pub fn open(start: u64, size: u64) -> Option<Self> {
        let end = start.checked_add(size)?;
        let within = start >= REACH.start && end <= REACH.end;
        let placed = within && size > 0 && start.is_multiple_of(4096);
        (placed && super::paging::map_memory(start, size)).then_some(Self { start, size })
    }

    /// Its size in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The number at an offset that is a multiple of 8; 0 beyond the window.
    #[inline]
    pub fn load(&self, at: u64) -> u64 {
        if !at.is_multiple_of(8) || at >= self.size & !7 {
            return 0;
        }
        // SAFETY: the offset lies within the window, which both the entry's tables and the kernel's
        // map at its physical address; it is aligned, and any bytes are a number. Nothing of Rust's
        // is there, for no RAM is: whoever writes it meanwhile breaks no reference.
        #[cfg(target_os = "none")]
        return unsafe { ((self.start + at) as *const u64).read_volatile() };
        // The host's memory is not ours to read.
        #[cfg(not(target_os = "none"))]
        0
    }

    /// How many numbers from `at` on, `stride` bytes apart, are zero before the first that is not:
    /// a few instructions for each, because most of an exit page's rows are. `count` if all are;
    /// the numbers lie within the window and are aligned, or none is looked at.
    pub fn zeros(&self, at: u64, stride: u64, count: u64) -> u64 {
        let last = count
            .checked_sub(1)
            .and_then(|n| n.checked_mul(stride)?.checked_add(at));
        let aligned = (at | stride).is_multiple_of(8);
        if !last.is_some_and(|last| aligned && last < self.size & !7) {
            return 0;
        }
        let (mut zeros, mut address) = (0, self.start + at);
        // SAFETY: as for `load`: from the first number to the last, all lie within the window.
        #[cfg(target_os = "none")]
        while zeros < count && unsafe { (address as *const u64).read_volatile() } == 0 {
            zeros += 1;
            address += stride;
        }
        let _ = (&mut zeros, &mut address);
        zeros
    }

    /// Loads a number of each of its pages below `end`: what a first touch costs is had then.
    pub fn touch(&self, end: u64) {
        let mut at = 0;
        while at < end.min(self.size) {
            let _ = self.load(at);
            at += 4096;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_pages_between_3_and_4_gib() {
        for (start, size) in [
            (0xD100_0800, 4096),
            (0xD100_0000, 0),
            (0xBFFF_F000, 8192),
            (0xFFFF_F000, 8192),
            (!0xFFF, 4096),
            (0xD000_0000, 4096),
            (0xFE00_0000, 0xD0_0000),
        ] {
            assert_eq!(Window::open(start, size), None, "{start:#x}");
        }
        let window = Window::open(0xD300_0000, 5 << 20).unwrap();
        assert_eq!(
            (window.size(), window.load(9), window.load(8 << 20)),
            (5 << 20, 0, 0)
        );
        assert_eq!(
            Window::open(0xD300_0000, 4096).map(|w| w.size()),
            Some(4096),
            "once more"
        );
    }
}
