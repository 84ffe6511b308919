//! What PVH tells the firmware: start info, module list, command line (Xen's docs/misc/pvh and
//! `xen/include/public/arch-x86/hvm/start_info.h`), read with every field checked.

use exit_abi::devicetree::{KERNEL_MODULE, MODULE};

use crate::arch::memory::Physical;
use crate::error::Error;
use crate::kernel::Taken;
use crate::ram::{self, Ram};

/// What a start info begins with.
pub const MAGIC: u32 = 0x336E_C578;
/// The first version with a memory map, and its size.
const VERSION: u32 = 1;
/// `hvm_start_info`, of which the firmware passes a copy on.
pub type Raw = [u8; 56];
/// Offsets of its fields.
pub mod field {
    /// `nr_modules`, 32 bits.
    pub const MODULES: usize = 12;
    /// `modlist_paddr`, 64 bits.
    pub const MODULE_LIST: usize = 16;
    pub(super) const CMDLINE: usize = 24;
    pub(super) const RSDP: usize = 32;
    pub(super) const MEMORY_MAP: usize = 40;
    pub(super) const MEMORY_MAP_ENTRIES: usize = 48;
}
/// `hvm_modlist_entry`: address, size, command line, reserved.
pub type RawModule = [u8; 32];
/// Most modules that are read.
pub const MODULES_MAX: u32 = 16;
/// Longest command line, its NUL included: what x86 Linux accepts.
const TEXT_MAX: u64 = 2048;
/// Bytes of an ACPI root pointer (ACPI 6.5, 5.2.5.3).
const RSDP_SIZE: u64 = 36;

/// Eight bytes at a fixed offset of a fixed array; zeros beyond its end.
pub(crate) fn wide(bytes: &[u8], at: usize) -> u64 {
    let chunk = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    u64::from_le_bytes(chunk.copied().unwrap_or_default())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let chunk = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    u32::from_le_bytes(chunk.copied().unwrap_or_default())
}

/// A module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its place in the list.
    pub index: usize,
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// Start info, found and read.
#[derive(Debug)]
pub struct StartInfo<'m> {
    address: u64,
    /// As it stands in memory.
    pub raw: &'m Raw,
    /// The memory map's entries.
    pub memory_map: &'m [ram::Entry],
    /// The module list's entries.
    pub modules: &'m [RawModule],
    /// Each module's command line, without its NUL.
    names: [&'m [u8]; MODULES_MAX as usize],
    /// The command line, without its NUL.
    cmdline: &'m [u8],
}

/// A table of entries of `N` bytes.
fn table<'m, const N: usize>(
    memory: &'m impl Physical,
    start: u64,
    entries: u32,
    what: &'static str,
) -> Result<&'m [[u8; N]], Error> {
    if entries == 0 {
        return Ok(&[]);
    }
    let bytes = memory.slice(start, u64::from(entries) * N as u64);
    Ok(bytes.ok_or(Error::Unreadable(what, start))?.as_chunks().0)
}

/// A text that ends with a NUL; address 0 is no text.
fn text<'m>(memory: &'m impl Physical, start: u64) -> Result<&'m [u8], Error> {
    if start == 0 {
        return Ok(&[]);
    }
    let bytes = memory
        .slice(start, TEXT_MAX)
        .ok_or(Error::Unreadable("a command line", start))?;
    let length = bytes.iter().position(|&byte| byte == 0);
    Ok(&bytes[..length.ok_or(Error::EndlessText(start))?])
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
        let (entries, modules) = (
            word(raw, field::MEMORY_MAP_ENTRIES),
            word(raw, field::MODULES),
        );
        if entries > ram::ENTRIES_MAX {
            return Err(Error::MapEntries(entries));
        }
        if modules > MODULES_MAX {
            return Err(Error::ModuleEntries(modules));
        }
        let map = wide(raw, field::MEMORY_MAP);
        let list = wide(raw, field::MODULE_LIST);
        let modules: &[RawModule] = table(memory, list, modules, "the module list")?;
        let mut names = [&[][..]; MODULES_MAX as usize];
        for (name, module) in names.iter_mut().zip(modules) {
            *name = text(memory, wide(module, 16))?;
        }
        Ok(Self {
            address,
            raw,
            memory_map: table(memory, map, entries, "the memory map")?,
            modules,
            names,
            cmdline: text(memory, wide(raw, field::CMDLINE))?,
        })
    }

    /// The modules that are not empty.
    fn full_modules(&self) -> impl Iterator<Item = Module> {
        let modules = self.modules.iter().enumerate();
        modules.filter_map(|(index, raw)| {
            let (start, size) = (wide(raw, 0), wide(raw, 8));
            let end = start.saturating_add(size);
            (size > 0).then_some(Module { index, start, end })
        })
    }

    /// Checks that all modules lie in RAM.
    pub fn check_modules(&self, ram: &Ram<'_>) -> Result<(), Error> {
        let outside = |m: &Module| !ram.contains(m.start, m.end);
        match self.full_modules().find(outside) {
            Some(module) => Err(Error::ModuleOutside(module.start, module.end)),
            None => Ok(()),
        }
    }

    /// Whether a module's command line is this name.
    pub fn is_named(&self, index: usize, name: &str) -> bool {
        self.names.get(index) == Some(&name.as_bytes())
    }

    /// The kernel: the module named so, else the first.
    pub fn kernel(&self) -> Result<Module, Error> {
        let named = self
            .full_modules()
            .find(|m| self.is_named(m.index, KERNEL_MODULE));
        named
            .or_else(|| self.full_modules().find(|m| m.index == 0))
            .filter(|m| !self.is_named(m.index, MODULE))
            .ok_or(Error::NoKernel)
    }

    /// The bytes of the device tree, if there is one.
    pub fn device_tree(&self, memory: &'m impl Physical) -> Option<Result<&'m [u8], Error>> {
        let tree = self.full_modules().find(|m| self.is_named(m.index, MODULE));
        Some(self.bytes(memory, &tree?))
    }

    /// The bytes of a module.
    pub fn bytes(&self, memory: &'m impl Physical, module: &Module) -> Result<&'m [u8], Error> {
        let length = module.end.saturating_sub(module.start);
        memory
            .slice(module.start, length)
            .ok_or(Error::Unreadable("a module", module.start))
    }

    /// Whether the command line has this word.
    pub fn has_word(&self, word: &str) -> bool {
        let mut words = self.cmdline.split(|&byte| byte == b' ');
        words.any(|w| w == word.as_bytes())
    }

    /// What no segment may lie over: the firmware at `image`, the boot information, the modules.
    pub fn taken(&self, image: (u64, u64)) -> impl Iterator<Item = Taken> + Clone {
        let range = |what, start: u64, length: usize| Taken {
            what: Some(what),
            start,
            end: start.saturating_add(length as u64),
        };
        let raw = self.raw;
        let rsdp = wide(raw, field::RSDP);
        let fixed = [
            range("the firmware", image.0, (image.1 - image.0) as usize),
            range("the start info", self.address, raw.len()),
            range(
                "the memory map",
                wide(raw, field::MEMORY_MAP),
                size_of_val(self.memory_map),
            ),
            range(
                "the module list",
                wide(raw, field::MODULE_LIST),
                size_of_val(self.modules),
            ),
            range(
                "the command line",
                wide(raw, field::CMDLINE),
                self.cmdline.len() + 1,
            ),
            range(
                "ACPI's root pointer",
                rsdp,
                if rsdp == 0 { 0 } else { RSDP_SIZE as usize },
            ),
        ];
        let names = self.modules.iter().zip(self.names);
        let names = names.map(move |(module, name)| {
            range("a module's command line", wide(module, 16), name.len() + 1)
        });
        let modules = self.modules.iter().map(|module| Taken {
            what: None,
            start: wide(module, 0),
            end: wide(module, 0).saturating_add(wide(module, 8)),
        });
        fixed.into_iter().chain(names).chain(modules)
    }
}
