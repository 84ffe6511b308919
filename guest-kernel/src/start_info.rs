//! What PVH tells a kernel: the memory map, the modules and the command line (Xen's docs/misc/pvh and
//! `xen/include/public/arch-x86/hvm/start_info.h`), read with every field checked.

use core::fmt;

use exit_abi::devicetree;

use crate::arch::physical::Physical;

const MAGIC: u32 = 0x336E_C578;
/// The first version with a memory map.
const VERSION: u32 = 1;
/// Fields of `hvm_start_info`, by offset.
mod field {
    pub(super) const VERSION: u64 = 4;
    pub(super) const MODULES: u64 = 12;
    pub(super) const MODULE_LIST: u64 = 16;
    pub(super) const CMDLINE: u64 = 24;
    pub(super) const MEMORY_MAP: u64 = 40;
    pub(super) const MEMORY_MAP_ENTRIES: u64 = 48;
}
/// Bytes of `hvm_memmap_table_entry`, and the type that is RAM.
const ENTRY: u64 = 24;
const RAM: u32 = 1;

/// Bytes of `hvm_modlist_entry`.
const MODULE: u64 = 32;

/// Most modules that are read.
pub const MODULES_MAX: u32 = 16;
/// Most entries of a memory map that are read.
pub const ENTRIES_MAX: u32 = 128;
/// Longest command line, in bytes.
pub const CMDLINE_MAX: usize = 2047;

/// Why the boot information cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The start info does not begin with its magic number.
    Magic(u32),
    /// The start info is of a version without a memory map.
    Version(u32),
    /// Something lies where nothing can be read.
    OutOfBounds(&'static str, u64),
    /// The memory map has more entries than we read.
    TooManyEntries(u32),
    /// There are more modules than we read.
    TooManyModules(u32),
    /// An entry of the memory map ends beyond the address space.
    EntryWraps(u64),
    /// A module ends beyond the address space.
    ModuleWraps(u64),
    /// The memory map has no RAM.
    NoRam,
    /// The command line does not end.
    CmdlineTooLong,
    /// The command line is not UTF-8.
    CmdlineNotText,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(m) => write!(f, "start info begins with {m:#x}, not {MAGIC:#x}"),
            Self::Version(v) => write!(f, "start info is of version {v}, which has no memory map"),
            Self::OutOfBounds(what, address) => write!(f, "{what} at {address:#x} cannot be read"),
            Self::TooManyEntries(n) => {
                write!(f, "the memory map has {n} entries, more than {ENTRIES_MAX}")
            }
            Self::EntryWraps(start) => {
                write!(
                    f,
                    "the memory map's entry at {start:#x} ends beyond the address space"
                )
            }
            Self::TooManyModules(n) => {
                write!(f, "there are {n} modules, more than {MODULES_MAX}")
            }
            Self::ModuleWraps(start) => {
                write!(f, "the module at {start:#x} ends beyond the address space")
            }
            Self::NoRam => write!(f, "the memory map has no RAM"),
            Self::CmdlineTooLong => {
                write!(f, "the command line is longer than {CMDLINE_MAX} bytes")
            }
            Self::CmdlineNotText => write!(f, "the command line is not UTF-8"),
        }
    }
}

/// The start info, found and checked.
pub struct StartInfo<'m, M> {
    memory: &'m M,
    cmdline: u64,
    map: u64,
    entries: u32,
    module_list: u64,
    modules: u32,
}

/// A module that the VMM or the firmware has placed in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// First byte.
    pub start: u64,
    /// Size.
    pub length: u64,
    /// Whether it is the device tree ([`exit_abi::devicetree::MODULE`]).
    pub is_tree: bool,
}

fn bytes<const N: usize>(
    memory: &impl Physical,
    address: u64,
    what: &'static str,
) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = address
            .checked_add(i as u64)
            .and_then(|a| memory.byte(a))
            .ok_or(Error::OutOfBounds(what, address))?;
    }
    Ok(bytes)
}

/// Eight bytes of a table's entry.
fn wide_at(entry: &[u8], at: usize) -> u64 {
    let mut wide = [0; 8];
    wide.copy_from_slice(&entry[at..at + 8]);
    u64::from_le_bytes(wide)
}

impl<'m, M: Physical> StartInfo<'m, M> {
    /// Reads the start info at an address.
    pub fn read(memory: &'m M, address: u64) -> Result<Self, Error> {
        let word = |offset| bytes(memory, address.saturating_add(offset), "start info");
        let wide = |offset| bytes(memory, address.saturating_add(offset), "start info");
        let magic = u32::from_le_bytes(word(0)?);
        if magic != MAGIC {
            return Err(Error::Magic(magic));
        }
        let version = u32::from_le_bytes(word(field::VERSION)?);
        if version < VERSION {
            return Err(Error::Version(version));
        }
        let entries = u32::from_le_bytes(word(field::MEMORY_MAP_ENTRIES)?);
        if entries > ENTRIES_MAX {
            return Err(Error::TooManyEntries(entries));
        }
        let modules = u32::from_le_bytes(word(field::MODULES)?);
        if modules > MODULES_MAX {
            return Err(Error::TooManyModules(modules));
        }
        let module_list = u64::from_le_bytes(wide(field::MODULE_LIST)?);
        let cmdline = u64::from_le_bytes(wide(field::CMDLINE)?);
        let map = u64::from_le_bytes(wide(field::MEMORY_MAP)?);
        Ok(Self {
            memory,
            cmdline,
            map,
            entries,
            module_list,
            modules,
        })
    }

    /// Hands every module to `take`.
    pub fn modules(&self, mut take: impl FnMut(Module)) -> Result<(), Error> {
        for i in 0..u64::from(self.modules) {
            let entry = self.module_list.saturating_add(i * MODULE);
            let entry: [u8; MODULE as usize] = bytes(self.memory, entry, "the module list")?;
            let (start, length) = (wide_at(&entry, 0), wide_at(&entry, 8));
            if start.checked_add(length).is_none() {
                return Err(Error::ModuleWraps(start));
            }
            let is_tree = self.names_the_tree(wide_at(&entry, 16));
            take(Module {
                start,
                length,
                is_tree,
            });
        }
        Ok(())
    }

    /// Whether a module's command line is the device tree's.
    fn names_the_tree(&self, cmdline: u64) -> bool {
        let mut name = devicetree::MODULE.bytes().chain([0]).zip(0..);
        let at = |offset| cmdline.checked_add(offset);
        cmdline != 0 && name.all(|(byte, i)| at(i).and_then(|a| self.memory.byte(a)) == Some(byte))
    }

    /// Hands every range of RAM (start, length) to `take`; answers how many bytes there are.
    pub fn ram(&self, mut take: impl FnMut(u64, u64)) -> Result<u64, Error> {
        let mut total = 0_u64;
        for i in 0..u64::from(self.entries) {
            let entry = self
                .map
                .checked_add(i * ENTRY)
                .ok_or(Error::OutOfBounds("the memory map", self.map))?;
            let entry: [u8; ENTRY as usize] = bytes(self.memory, entry, "the memory map")?;
            let (start, length) = (wide_at(&entry, 0), wide_at(&entry, 8));
            let kind = wide_at(&entry, 16) as u32;
            if start.checked_add(length).is_none() {
                return Err(Error::EntryWraps(start));
            }
            if kind == RAM {
                total = total.saturating_add(length);
                take(start, length);
            }
        }
        if total == 0 {
            Err(Error::NoRam)
        } else {
            Ok(total)
        }
    }

    /// Copies the command line; one that is absent is empty.
    pub fn cmdline<'b>(&self, into: &'b mut [u8; CMDLINE_MAX]) -> Result<&'b str, Error> {
        if self.cmdline == 0 {
            return Ok("");
        }
        let mut length = 0;
        loop {
            let [byte] = bytes(
                self.memory,
                self.cmdline.saturating_add(length as u64),
                "the command line",
            )?;
            if byte == 0 {
                break;
            }
            *into.get_mut(length).ok_or(Error::CmdlineTooLong)? = byte;
            length += 1;
        }
        core::str::from_utf8(&into[..length]).map_err(|_| Error::CmdlineNotText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory whose first byte is at 0x1000.
    struct Double(Vec<u8>);

    impl Physical for Double {
        fn byte(&self, address: u64) -> Option<u8> {
            self.0
                .get(usize::try_from(address.checked_sub(0x1000)?).ok()?)
                .copied()
        }
    }

    /// Start info at 0x1000, the map at 0x1100, the command line at 0x1800.
    fn memory(map: &[(u64, u64, u32)], cmdline: &[u8]) -> Double {
        let mut bytes = vec![0; 0x800];
        let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
        put(0, &MAGIC.to_le_bytes());
        put(4, &1_u32.to_le_bytes());
        put(24, &0x1800_u64.to_le_bytes());
        put(40, &0x1100_u64.to_le_bytes());
        put(48, &(map.len() as u32).to_le_bytes());
        for (i, (start, length, kind)) in map.iter().enumerate() {
            let at = 0x100 + i * 24;
            put(at, &start.to_le_bytes());
            put(at + 8, &length.to_le_bytes());
            put(at + 16, &kind.to_le_bytes());
        }
        bytes.extend_from_slice(cmdline);
        Double(bytes)
    }

    fn ram(memory: &Double) -> Result<(Vec<(u64, u64)>, u64), Error> {
        let mut ranges = Vec::new();
        let total = StartInfo::read(memory, 0x1000)?.ram(|s, l| ranges.push((s, l)))?;
        Ok((ranges, total))
    }

    #[test]
    fn the_map_and_the_command_line() {
        let memory = memory(
            &[
                (0, 0xA0000, 1),
                (0xA0000, 0x60000, 2),
                (1 << 20, 63 << 20, 1),
            ],
            b"a b\0",
        );
        assert_eq!(
            ram(&memory),
            Ok((
                vec![(0, 0xA0000), (1 << 20, 63 << 20)],
                0xA0000 + (63 << 20)
            ))
        );
        let mut room = [0; CMDLINE_MAX];
        let info = StartInfo::read(&memory, 0x1000).unwrap();
        assert_eq!(info.cmdline(&mut room), Ok("a b"));
    }

    #[test]
    fn bad_start_info() {
        let read = |m: &Double, at| StartInfo::read(m, at).map(|_| ()).unwrap_err();
        let mut bad = memory(&[], b"\0");
        assert_eq!(read(&bad, 0), Error::OutOfBounds("start info", 0));
        assert_eq!(
            read(&bad, u64::MAX - 1),
            Error::OutOfBounds("start info", u64::MAX - 1)
        );
        assert_eq!(read(&bad, 0x1004), Error::Magic(1));
        bad.0[4] = 0;
        assert_eq!(read(&bad, 0x1000), Error::Version(0));
        bad.0[4] = 1;
        bad.0[51] = 0xFF;
        assert_eq!(read(&bad, 0x1000), Error::TooManyEntries(0xFF00_0000));
        assert_eq!(
            read(&Double(bad.0[..40].to_vec()), 0x1000),
            Error::OutOfBounds("start info", 0x1030)
        );
    }

    /// Memory with modules listed at 0x1400, whose names are at 0x1600 and after.
    fn with_modules(list: &[(u64, u64, &str)]) -> Double {
        let mut memory = memory(&[(0, 4096, 1)], b"\0");
        let bytes = &mut memory.0;
        bytes[12..16].copy_from_slice(&(list.len() as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&0x1400_u64.to_le_bytes());
        for (i, (start, length, name)) in list.iter().take(16).enumerate() {
            let (at, text) = (0x400 + i * 32, 0x600 + i * 16);
            bytes[at..at + 8].copy_from_slice(&start.to_le_bytes());
            bytes[at + 8..at + 16].copy_from_slice(&length.to_le_bytes());
            let address = 0x1000 + text as u64;
            bytes[at + 16..at + 24].copy_from_slice(&address.to_le_bytes());
            bytes[text..text + name.len()].copy_from_slice(name.as_bytes());
        }
        memory
    }

    fn modules(memory: &Double) -> Result<Vec<Module>, Error> {
        let mut all = Vec::new();
        StartInfo::read(memory, 0x1000)?.modules(|m| all.push(m))?;
        Ok(all)
    }

    #[test]
    fn the_modules() {
        let memory = with_modules(&[(7, 8, "initrd"), (9, 10, "dtb"), (1, 2, "dtb2")]);
        let module = |start, length, is_tree| Module {
            start,
            length,
            is_tree,
        };
        assert_eq!(
            modules(&memory),
            Ok(vec![
                module(7, 8, false),
                module(9, 10, true),
                module(1, 2, false)
            ])
        );
    }

    #[test]
    fn bad_modules() {
        let many = with_modules(&[(0, 0, ""); 17]);
        assert_eq!(modules(&many), Err(Error::TooManyModules(17)));
        let wraps = with_modules(&[(u64::MAX, 1, "dtb")]);
        assert_eq!(modules(&wraps), Err(Error::ModuleWraps(u64::MAX)));
        let mut far = with_modules(&[(1, 1, "dtb")]);
        far.0[16..24].copy_from_slice(&[0xFF; 8]);
        assert_eq!(
            modules(&far),
            Err(Error::OutOfBounds("the module list", u64::MAX))
        );
        let mut nameless = with_modules(&[(1, 1, "dtb")]);
        nameless.0[0x410..0x418].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(modules(&nameless).is_ok_and(|m| !m[0].is_tree));
    }

    #[test]
    fn bad_maps() {
        assert_eq!(ram(&memory(&[], b"\0")), Err(Error::NoRam));
        assert_eq!(ram(&memory(&[(0, 4096, 2)], b"\0")), Err(Error::NoRam));
        assert_eq!(
            ram(&memory(&[(4096, u64::MAX, 1)], b"\0")),
            Err(Error::EntryWraps(4096))
        );
        let mut far = memory(&[(0, 4096, 1)], b"\0");
        far.0[40..48].copy_from_slice(&[0xFF; 8]);
        assert_eq!(
            ram(&far),
            Err(Error::OutOfBounds("the memory map", u64::MAX))
        );
    }

    #[test]
    fn bad_command_lines() {
        let read = |text: &[u8]| {
            let memory = memory(&[(0, 4096, 1)], text);
            StartInfo::read(&memory, 0x1000)
                .unwrap()
                .cmdline(&mut [0; CMDLINE_MAX])
                .map(str::len)
        };
        let mut long = vec![b'x'; CMDLINE_MAX];
        long.push(0);
        assert_eq!(read(&long), Ok(CMDLINE_MAX));
        long.insert(0, b'x');
        assert_eq!(read(&long), Err(Error::CmdlineTooLong));
        assert_eq!(read(b"\xFF\0"), Err(Error::CmdlineNotText));
        assert_eq!(
            read(b"endless"),
            Err(Error::OutOfBounds("the command line", 0x1807))
        );
    }
}
