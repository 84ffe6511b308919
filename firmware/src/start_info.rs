//! The start info: what PVH's EBX points at (Xen's docs/misc/pvh and
//! `xen/include/public/arch-x86/hvm/start_info.h`), read with every field checked.

use crate::arch::memory::Physical;
use crate::error::Error;
use crate::modules::{MODULES_MAX, RawModule};
use crate::ram;

/// What a start info begins with.
pub const MAGIC: u32 = 0x336E_C578;
/// The first version with a memory map.
const VERSION: u32 = 1;
/// `hvm_start_info`, of which the firmware passes a copy on.
pub type Raw = [u8; 56];
/// Offsets of its fields.
pub mod field {
    /// `nr_modules`, 32 bits.
    pub const MODULES: usize = 12;
    /// `modlist_paddr`, 64 bits.
    pub const MODULE_LIST: usize = 16;
    pub(crate) const CMDLINE: usize = 24;
    pub(crate) const RSDP: usize = 32;
    pub(crate) const MEMORY_MAP: usize = 40;
    pub(crate) const MEMORY_MAP_ENTRIES: usize = 48;
}
/// Longest command line, its NUL included: what x86 Linux accepts.
const TEXT_MAX: u64 = 2048;

/// Eight bytes at a fixed offset of a fixed array; zeros beyond its end.
pub(crate) fn wide(bytes: &[u8], at: usize) -> u64 {
    let chunk = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    u64::from_le_bytes(chunk.copied().unwrap_or_default())
}

/// Four of them.
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    wide(bytes, at) as u32
}

/// A text that ends with a NUL, without it; address 0 is no text.
pub(crate) fn text(memory: &impl Physical, start: u64) -> Result<&[u8], Error> {
    if start == 0 {
        return Ok(&[]);
    }
    let bytes = memory
        .slice(start, TEXT_MAX)
        .ok_or(Error::Unreadable("a command line", start))?;
    let length = bytes.iter().position(|&byte| byte == 0);
    Ok(&bytes[..length.ok_or(Error::EndlessText(start))?])
}

/// Start info, found and read.
#[derive(Clone, Copy, Debug)]
pub struct StartInfo<'m> {
    /// Where it stands.
    pub address: u64,
    /// As it stands there.
    pub raw: &'m Raw,
}

impl<'m> StartInfo<'m> {
    /// Reads the start info at an address.
    pub fn read(memory: &'m impl Physical, address: u64) -> Result<Self, Error> {
        let raw: &Raw = memory
            .slice(address, size_of::<Raw>() as u64)
            .and_then(|bytes| bytes.first_chunk())
            .ok_or(Error::Unreadable("start info", address))?;
        if word(raw, 0) != MAGIC {
            return Err(Error::Magic(word(raw, 0)));
        }
        if word(raw, 4) < VERSION {
            return Err(Error::Version(word(raw, 4)));
        }
        Ok(Self { address, raw })
    }

    /// A table of entries of `N` bytes, as (where, how many) fields of ours name it.
    fn table<const N: usize>(
        &self,
        memory: &'m impl Physical,
        (start, entries): (usize, usize),
        what: &'static str,
    ) -> Result<&'m [[u8; N]], Error> {
        let (start, entries) = (wide(self.raw, start), word(self.raw, entries));
        if entries == 0 {
            return Ok(&[]);
        }
        let bytes = memory.slice(start, u64::from(entries) * N as u64);
        Ok(bytes.ok_or(Error::Unreadable(what, start))?.as_chunks().0)
    }

    /// The memory map's entries.
    pub fn memory_map(&self, memory: &'m impl Physical) -> Result<&'m [ram::Entry], Error> {
        match word(self.raw, field::MEMORY_MAP_ENTRIES) {
            0..=ram::ENTRIES_MAX => {}
            more => return Err(Error::MapEntries(more)),
        }
        let fields = (field::MEMORY_MAP, field::MEMORY_MAP_ENTRIES);
        self.table(memory, fields, "the memory map")
    }

    /// The module list's entries.
    pub fn module_list(&self, memory: &'m impl Physical) -> Result<&'m [RawModule], Error> {
        match word(self.raw, field::MODULES) {
            0..=MODULES_MAX => {}
            more => return Err(Error::ModuleEntries(more)),
        }
        let fields = (field::MODULE_LIST, field::MODULES);
        self.table(memory, fields, "the module list")
    }

    /// The command line.
    pub fn cmdline(&self, memory: &'m impl Physical) -> Result<&'m [u8], Error> {
        text(memory, wide(self.raw, field::CMDLINE))
    }
}

/// Whether a command line has this word.
pub fn has_word(cmdline: &[u8], word: &str) -> bool {
    let mut words = cmdline.split(|&byte| byte == b' ');
    words.any(|w| w == word.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Double;

    fn error(memory: &Double, at: u64) -> Error {
        StartInfo::read(memory, at).unwrap_err()
    }

    #[test]
    fn tables_and_the_command_line() {
        let memory = Double::booting(&[], b"quiet firmware-log");
        let info = StartInfo::read(&memory, Double::START_INFO).unwrap();
        assert_eq!(info.memory_map(&memory).unwrap().len(), 3);
        assert!(info.module_list(&memory).unwrap().is_empty());
        let cmdline = info.cmdline(&memory).unwrap();
        assert!(has_word(cmdline, "firmware-log") && has_word(cmdline, "quiet"));
        assert!(!has_word(cmdline, "firmware"));
    }

    #[test]
    fn start_info_that_makes_no_sense() {
        let mut memory = Double::booting(&[], b"");
        assert!(matches!(
            error(&memory, 0),
            Error::Unreadable("start info", 0)
        ));
        assert!(matches!(error(&memory, u64::MAX), Error::Unreadable(..)));
        assert!(matches!(
            error(&memory, Double::START_INFO + 4),
            Error::Magic(1)
        ));
        memory.put(Double::START_INFO + 4, &[0]);
        assert!(matches!(
            error(&memory, Double::START_INFO),
            Error::Version(0)
        ));
    }

    #[test]
    fn tables_that_make_no_sense() {
        let mut memory = Double::booting(&[], b"");
        let put = |memory: &mut Double, at: usize, value: u64, bytes: usize| {
            memory.put(
                Double::START_INFO + at as u64,
                &value.to_le_bytes()[..bytes],
            );
        };
        put(&mut memory, field::MEMORY_MAP_ENTRIES, 129, 4);
        put(&mut memory, field::MODULES, 17, 4);
        put(&mut memory, field::CMDLINE, u64::MAX, 8);
        let info = StartInfo::read(&memory, Double::START_INFO).unwrap();
        assert!(matches!(
            info.memory_map(&memory),
            Err(Error::MapEntries(129))
        ));
        assert!(matches!(
            info.module_list(&memory),
            Err(Error::ModuleEntries(17))
        ));
        assert!(matches!(info.cmdline(&memory), Err(Error::Unreadable(..))));

        put(&mut memory, field::MEMORY_MAP_ENTRIES, 128, 4);
        put(&mut memory, field::MEMORY_MAP, u64::MAX - 23, 8);
        put(&mut memory, field::CMDLINE, Double::ENDLESS, 8);
        let info = StartInfo::read(&memory, Double::START_INFO).unwrap();
        assert!(matches!(
            info.memory_map(&memory),
            Err(Error::Unreadable(..))
        ));
        assert!(matches!(info.cmdline(&memory), Err(Error::EndlessText(_))));
    }
}
