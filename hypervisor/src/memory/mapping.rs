//! A mapping of the host's behind guest memory: aligned, of the pages that were asked for, unmapped at
//! its end.

use std::io;
use std::ops::Range;
use std::ptr;

use super::prefault::PART;
use super::{HUGE_PAGE, MemoryError, Pages};

/// Pages of 2 MiB, whatever the host's own size of huge pages is (mmap(2)).
const MAP_HUGE_2MB: i32 = 21 << 26;

/// A mapping that this owns.
#[derive(Debug)]
pub(super) struct Mapping {
    /// First byte.
    start: usize,
    length: usize,
}

impl Mapping {
    /// `length` bytes, readable and writable, zero, at an address that equals `like` modulo 2 MiB.
    pub(super) fn new(like: u64, length: u64, pages: Pages) -> io::Result<Self> {
        let too_much = || io::Error::from_raw_os_error(libc::ENOMEM);
        let (huge, within) = (HUGE_PAGE as usize, (like % HUGE_PAGE) as usize);
        let length = usize::try_from(length).map_err(|_| too_much())?;
        let room = length.checked_add(2 * huge).ok_or_else(too_much)?;
        // Room first, without access: within it lies an address that suits.
        let all = Self::map(ptr::null_mut(), room, libc::PROT_NONE, libc::MAP_NORESERVE)?;
        let start = all.start.next_multiple_of(huge) + within;
        // Huge pages are set aside here and now: with none left a guest's access would end us by SIGBUS.
        let flags = match pages {
            Pages::Huge => libc::MAP_HUGETLB | MAP_HUGE_2MB,
            _ => libc::MAP_NORESERVE,
        };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let at = start as *mut libc::c_void;
        let kept = Self::map(at, length, access, flags | libc::MAP_FIXED)?;
        // What lies around goes; what is left of `all` is `kept`'s.
        let (front, behind) = (start - all.start, all.start + room - (start + length));
        std::mem::forget(all);
        drop(Self {
            start: start - front,
            length: front,
        });
        drop(Self {
            start: start + length,
            length: behind,
        });
        Ok(kept)
    }

    fn map(at: *mut libc::c_void, length: usize, access: i32, flags: i32) -> io::Result<Self> {
        let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping, wherever the kernel likes; or, with MAP_FIXED, in place of
        // room that the caller owns and nobody uses.
        let start = unsafe { libc::mmap(at, length, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start as usize,
            length,
        })
    }

    /// Where it begins.
    pub(super) fn pointer(&self) -> *mut u8 {
        self.start as *mut u8
    }

    /// Its first byte, and the one after its last.
    pub(super) fn range(&self) -> (u64, u64) {
        (self.start as u64, (self.start + self.length) as u64)
    }

    /// Says which pages are wanted.
    pub(super) fn advise(&self, pages: Pages) -> Result<(), MemoryError> {
        let advice = match pages {
            Pages::Auto | Pages::Host | Pages::Huge => return Ok(()),
            Pages::Small => libc::MADV_NOHUGEPAGE,
            Pages::Transparent => libc::MADV_HUGEPAGE,
        };
        match self.madvise(0..self.length, advice) {
            // A kernel without transparent huge pages has none to avoid.
            Err(error) if pages == Pages::Small && is_unknown(&error) => Ok(()),
            result => result.map_err(|error| MemoryError::Pages(pages.name(), error)),
        }
    }

    /// Has the host back all of it with pages that can be written, without changing what they hold;
    /// goes on with the next part unless `stop` says so.
    pub(super) fn populate(&self, stop: &dyn Fn() -> bool) -> io::Result<()> {
        for offset in (0..self.length).step_by(PART as usize) {
            if stop() {
                break;
            }
            let part = offset..self.length.min(offset + PART as usize);
            loop {
                match self.madvise(part.clone(), libc::MADV_POPULATE_WRITE) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // Before Linux 5.14.
                    Err(error) if is_unknown(&error) => {
                        self.touch(part);
                        break;
                    }
                    result => break result?,
                }
            }
        }
        Ok(())
    }

    /// Writes a byte of every page of a part with what it is.
    fn touch(&self, part: Range<usize>) {
        let part = self.start + part.start..self.start + part.end.min(self.length);
        for at in part.step_by(4096) {
            let at = at as *mut u8;
            // SAFETY: it lies within the mapping, which can be read and written; nobody else has it
            // before the guest runs.
            unsafe { at.write_volatile(at.read_volatile()) };
        }
    }

    /// Advice about a part of it, offsets.
    fn madvise(&self, part: Range<usize>, advice: i32) -> io::Result<()> {
        let end = part.end.min(self.length);
        let start = part.start.min(end);
        let at = (self.start + start) as *mut libc::c_void;
        // SAFETY: the advice is about a part of this mapping alone, and none of those in use changes
        // what it holds.
        match unsafe { libc::madvise(at, end - start, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: the range is this mapping's own, and its owner has given up what refers to it.
            // It cannot fail: the range is whole pages of one mapping.
            unsafe { libc::munmap(self.start as *mut libc::c_void, self.length) };
        }
    }
}

fn is_unknown(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

/// Why there are no huge pages for so many bytes.
pub(super) fn huge_error(size: u64, error: io::Error) -> MemoryError {
    if error.raw_os_error() != Some(libc::ENOMEM) {
        return MemoryError::Pages(Pages::Huge.name(), error);
    }
    let pool = |file: &str| -> u64 {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{file}_hugepages");
        let number = std::fs::read_to_string(path).ok();
        number.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    };
    let needed = size.div_ceil(HUGE_PAGE);
    // What others have been promised is not free.
    let free = pool("free").saturating_sub(pool("resv"));
    MemoryError::HugePages {
        needed,
        free,
        total: pool("nr") - free.min(pool("nr")) + needed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_where_it_should() {
        for like in [0, 0x1000, 0x1F_F000, 0x1_0000_0000] {
            let mapping = Mapping::new(like, 3 << 20, Pages::Host).unwrap();
            assert_eq!(mapping.range().0 % HUGE_PAGE, like % HUGE_PAGE);
            let last = (mapping.range().1 - 1) as *mut u8;
            // SAFETY: it is the mapping's last byte.
            unsafe { last.write_volatile(1) };
        }
        assert!(Mapping::new(0, u64::MAX, Pages::Host).is_err());
        assert!(Mapping::new(0, 1 << 60, Pages::Host).is_err());
    }

    #[test]
    fn filling_in_stops_when_it_is_told_to() {
        use std::cell::Cell;
        let mapping = Mapping::new(0, PART + 4096, Pages::Small).unwrap();
        let resident = || {
            super::super::usage::of(&[mapping.range()])
                .unwrap()
                .resident
        };
        mapping.populate(&|| true).unwrap();
        assert_eq!(resident(), 0);
        let asked = Cell::new(0);
        let once = || asked.replace(asked.get() + 1) > 0;
        mapping.populate(&once).unwrap();
        assert_eq!((resident(), asked.get()), (PART, 2));
        mapping.populate(&|| false).unwrap();
        assert_eq!(resident(), PART + 4096);
    }

    #[test]
    fn filling_in_changes_nothing() {
        for fill in [
            |m: &Mapping| m.populate(&|| false).unwrap(),
            |m: &Mapping| m.touch(0..1 << 20),
        ] {
            let mapping = Mapping::new(0, 1 << 20, Pages::Small).unwrap();
            let byte = (mapping.range().0 + 4096) as *mut u8;
            // SAFETY: it lies in the mapping.
            unsafe { byte.write_volatile(0xA5) };
            fill(&mapping);
            // SAFETY: as above.
            assert_eq!(unsafe { byte.read_volatile() }, 0xA5);
            assert_eq!(
                super::super::usage::of(&[mapping.range()])
                    .unwrap()
                    .resident,
                1 << 20
            );
        }
    }
}
