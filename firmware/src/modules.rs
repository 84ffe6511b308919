//! The modules: which is the kernel, which the device tree (Xen's `hvm_modlist_entry`).

use exit_abi::devicetree::{INITRD_MODULE, KERNEL_MODULE, MODULE, SETUP_DATA_MODULE};

use crate::arch::memory::Physical;
use crate::error::Error;
use crate::ram::Ram;
use crate::start_info::{text, wide};

/// `hvm_modlist_entry`: address, size, command line, reserved.
pub type RawModule = [u8; 32];
/// Most modules that are read.
pub const MODULES_MAX: u32 = 16;

/// A module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module<'m> {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Its command line, without its NUL.
    pub name: &'m [u8],
    /// Where its command line is.
    pub name_address: u64,
}

impl Module<'_> {
    const NONE: Self = Module {
        start: 0,
        end: 0,
        name: &[],
        name_address: 0,
    };

    fn is(&self, name: &str) -> bool {
        self.start < self.end && self.name == name.as_bytes()
    }
}

/// All modules.
#[derive(Clone, Debug)]
pub struct Modules<'m> {
    modules: [Module<'m>; MODULES_MAX as usize],
    count: usize,
}

impl<'m> Modules<'m> {
    /// Reads a module list and checks that every module lies in RAM.
    pub fn read(
        memory: &'m impl Physical,
        list: &'m [RawModule],
        ram: &Ram<'_>,
    ) -> Result<Self, Error> {
        let mut all = Self {
            modules: [Module::NONE; MODULES_MAX as usize],
            count: list.len().min(MODULES_MAX as usize),
        };
        for (module, raw) in all.modules.iter_mut().zip(list) {
            let (start, name_address) = (wide(raw, 0), wide(raw, 16));
            let size = wide(raw, 8);
            let end = start.saturating_add(size);
            if size > 0 && (end - start < size || !ram.contains(start, end)) {
                return Err(Error::ModuleOutside(start, end));
            }
            *module = Module {
                start,
                end,
                name: text(memory, name_address)?,
                name_address,
            };
        }
        Ok(all)
    }

    /// One after the other, as in the list.
    pub fn all(&self) -> &[Module<'m>] {
        self.modules.get(..self.count).unwrap_or_default()
    }

    /// Which one is the kernel: that of this name, else the first.
    pub fn kernel(&self) -> Result<usize, Error> {
        if let Some(index) = self.all().iter().position(|m| m.is(KERNEL_MODULE)) {
            return Ok(index);
        }
        match self.all().first() {
            Some(first) if first.start < first.end && !first.is(MODULE) => Ok(0),
            _ => Err(Error::NoKernel),
        }
    }

    /// The initial RAM disk, if there is one.
    pub fn initrd(&self) -> Option<&Module<'m>> {
        self.all().iter().find(|m| m.is(INITRD_MODULE))
    }

    /// Linux's `setup_data`, if there is some: a header of 16 bytes at least.
    pub fn setup_data(&self) -> Option<&Module<'m>> {
        let found = self.all().iter().find(|m| m.is(SETUP_DATA_MODULE));
        found.filter(|module| module.end - module.start >= 16)
    }

    /// The device tree, if there is one.
    pub fn device_tree(&self) -> Option<&Module<'m>> {
        self.all().iter().find(|m| m.is(MODULE))
    }
}

/// The bytes of a module.
pub fn bytes<'m>(memory: &'m impl Physical, module: &Module<'_>) -> Result<&'m [u8], Error> {
    memory
        .slice(module.start, module.end.saturating_sub(module.start))
        .ok_or(Error::Unreadable("a module", module.start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Double;
    use crate::start_info::StartInfo;

    fn kernel(modules: &[(u64, u64, &str)]) -> Result<usize, Error> {
        let memory = Double::booting(modules, b"");
        let info = StartInfo::read(&memory, Double::START_INFO)?;
        let ram = Ram::new(info.memory_map(&memory)?)?;
        Modules::read(&memory, info.module_list(&memory)?, &ram)?.kernel()
    }

    #[test]
    fn the_kernel_by_name_or_place() {
        let (a, b, c) = (0x30_0000, 0x31_0000, 0x32_0000);
        assert_eq!(kernel(&[(a, 9, "")]).unwrap(), 0);
        assert_eq!(kernel(&[(a, 9, ""), (b, 9, "dtb")]).unwrap(), 0);
        let named = [(a, 9, "initrd"), (b, 9, "dtb"), (c, 9, "kernel")];
        assert_eq!(kernel(&named).unwrap(), 2);
        for none in [
            &[][..],
            &[(a, 0, "kernel")],
            &[(a, 9, "dtb")],
            &[(a, 0, ""), (b, 9, "dtb")],
        ] {
            assert!(matches!(kernel(none), Err(Error::NoKernel)), "{none:?}");
        }
    }

    #[test]
    fn modules_outside_ram() {
        for (start, size) in [
            (0x3F_FFFF, 2),
            (0xF_F000, 9),
            (u64::MAX, 9),
            (0x20_0000, u64::MAX),
        ] {
            let outside = kernel(&[(start, size, "")]);
            assert!(
                matches!(outside, Err(Error::ModuleOutside(..))),
                "{start:#x}"
            );
        }
    }
}
