//! The kernel's memory, as `/proc/kcore` shows it: an ELF core file, read and never written.

use std::fs::File;
use std::os::unix::fs::FileExt;

use elf::ElfBytes;
use elf::abi::PT_LOAD;
use elf::endian::LittleEndian;

use super::Error;

const FILE: &str = "/proc/kcore";
/// Its program headers lie within.
const HEAD: usize = 64 << 10;

/// A range of the kernel's addresses, and where in the file it is.
#[derive(Clone, Copy, Debug)]
struct Range {
    start: u64,
    size: u64,
    offset: u64,
}

/// The memory.
#[derive(Debug)]
pub(super) struct Memory {
    file: File,
    ranges: Vec<Range>,
}

impl Memory {
    /// Opens it.
    pub(super) fn open() -> Result<Self, Error> {
        let failed = |why| Error::Read { file: FILE, why };
        let file = File::open(FILE).map_err(failed)?;
        let mut head = vec![0; HEAD];
        let mut got = 0;
        while got < head.len() {
            match file.read_at(&mut head[got..], got as u64).map_err(failed)? {
                0 => break,
                n => got += n,
            }
        }
        let ranges = ranges(&head[..got]).ok_or(Error::NoImage)?;
        Ok(Self { file, ranges })
    }

    /// Reads so many bytes at an address, or as many as there are.
    pub(super) fn read(&self, at: u64, size: u64) -> Result<Vec<u8>, Error> {
        let found = self.ranges.iter().find_map(|range| {
            let inside = at.checked_sub(range.start)?;
            let left = range.size.checked_sub(inside)?;
            (left > 0).then_some((range.offset.checked_add(inside)?, left))
        });
        let (offset, left) = found.ok_or(Error::Unmapped(at))?;
        let mut bytes = vec![0; size.min(left) as usize];
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(|why| Error::Read { file: FILE, why })?;
        Ok(bytes)
    }
}

fn ranges(head: &[u8]) -> Option<Vec<Range>> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(head).ok()?;
    let segments = file.segments()?;
    let loads = segments.iter().filter(|segment| segment.p_type == PT_LOAD);
    let ranges = loads.map(|segment| Range {
        start: segment.p_vaddr,
        size: segment.p_memsz,
        offset: segment.p_offset,
    });
    Some(ranges.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_image_is_told() {
        assert!(ranges(b"").is_none());
        assert!(ranges(&[0; 4096]).is_none());
    }
}
