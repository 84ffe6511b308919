//! What the kernel is handed: a start info of its own, in which the module list lacks the kernel.
//!
//! Memory map, command line and ACPI's root pointer stay where the VMM put them. A device tree
//! never becomes the first module, because Linux takes that for its initrd: an empty one stands
//! before it then ([`exit_abi::devicetree`]).

use exit_abi::devicetree::MODULE;
use guest_kernel::once::Once;

use crate::error::Error;
use crate::modules::{MODULES_MAX, Modules, RawModule};
use crate::start_info::{Raw, field};

/// Start info and module list for the kernel.
#[repr(C, align(8))]
#[derive(Debug)]
pub struct HandOver {
    info: Raw,
    modules: [RawModule; MODULES_MAX as usize],
}

static ROOM: Once<HandOver> = Once::new(HandOver::new());

/// The name of the empty first module: [`exit_abi::devicetree::INITRD_MODULE`].
static INITRD_NAME: &[u8; 7] = b"initrd\0";

/// Where the kernel's start info goes: a static of the firmware's, so it stays.
pub fn room() -> Result<&'static mut HandOver, Error> {
    let room = ROOM.take();
    room.ok_or(Error::Unreadable("the kernel's start info", 0))
}

impl HandOver {
    /// All zeros.
    const fn new() -> Self {
        Self {
            info: [0; size_of::<Raw>()],
            modules: [[0; size_of::<RawModule>()]; MODULES_MAX as usize],
        }
    }

    /// Fills it in for a kernel that is module `kernel` of `list`. Returns its address.
    pub fn build(
        &'static mut self,
        info: &Raw,
        list: &[RawModule],
        modules: &Modules<'_>,
        kernel: usize,
    ) -> u32 {
        self.fill(info, list, modules, kernel);
        &raw const self.info as usize as u32
    }

    fn fill(&mut self, info: &Raw, list: &[RawModule], modules: &Modules<'_>, kernel: usize) {
        let mut others = (0..list.len()).filter(|&i| i != kernel).peekable();
        let first = others.peek().and_then(|&i| modules.all().get(i));
        let mut count = 0;
        let mut room = self.modules.iter_mut();
        if first.is_some_and(|m| m.name == MODULE.as_bytes())
            // With the kernel gone there is room for one more.
            && let Some(empty) = room.next()
        {
            *empty = [0; size_of::<RawModule>()];
            let name = INITRD_NAME.as_ptr() as u64;
            empty[16..24].copy_from_slice(&name.to_le_bytes());
            count += 1;
        }
        for (to, i) in room.zip(others) {
            *to = list.get(i).copied().unwrap_or_default();
            count += 1;
        }
        let at = if count == 0 {
            0
        } else {
            &raw const self.modules as u64
        };
        self.info = *info;
        self.info[field::MODULES..][..4].copy_from_slice(&u32::to_le_bytes(count));
        self.info[field::MODULE_LIST..][..8].copy_from_slice(&at.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Double;
    use crate::ram::Ram;
    use crate::start_info::{StartInfo, wide};

    /// The addresses of the modules that the kernel gets.
    fn handed(modules: &[(u64, u64, &str)]) -> (HandOver, Vec<u64>) {
        let memory = Double::booting(modules, b"");
        let info = StartInfo::read(&memory, Double::START_INFO).unwrap();
        let ram = Ram::new(info.memory_map(&memory).unwrap()).unwrap();
        let list = info.module_list(&memory).unwrap();
        let modules = Modules::read(&memory, list, &ram).unwrap();
        let mut hand_over = HandOver::new();
        hand_over.fill(info.raw, list, &modules, modules.kernel().unwrap());
        let count = wide(&hand_over.info, field::MODULES) as u32 as usize;
        let starts = hand_over.modules[..count].iter().map(|m| wide(m, 0));
        let starts = starts.collect();
        (hand_over, starts)
    }

    #[test]
    fn the_kernel_is_left_out() {
        let (alone, starts) = handed(&[(0x30_0000, 9, "")]);
        assert_eq!((starts, wide(&alone.info, field::MODULE_LIST)), (vec![], 0));
        assert_eq!(wide(&alone.info, field::CMDLINE), Double::CMDLINE);
        assert_eq!(wide(&alone.info, field::MEMORY_MAP), 0x7000);
        let (_, starts) = handed(&[
            (0x31_0000, 9, "initrd"),
            (0x30_0000, 9, "kernel"),
            (0x32_0000, 9, "dtb"),
        ]);
        assert_eq!(starts, [0x31_0000, 0x32_0000]);
    }

    #[test]
    fn a_device_tree_is_never_the_first_module() {
        let (hand_over, starts) = handed(&[(0x30_0000, 9, "kernel"), (0x32_0000, 9, "dtb")]);
        assert_eq!(starts, [0, 0x32_0000]);
        assert_eq!(wide(&hand_over.modules[0], 8), 0, "size");
        assert_eq!(wide(&hand_over.modules[0], 16), INITRD_NAME.as_ptr() as u64);
        assert_eq!(
            INITRD_NAME.strip_suffix(b"\0"),
            Some(exit_abi::devicetree::INITRD_MODULE.as_bytes())
        );
        let kept = handed(&[(0x30_0000, 9, ""), (0, 0, "initrd"), (0x32_0000, 9, "dtb")]);
        assert_eq!(kept.1, [0, 0x32_0000]);
        let mut many = vec![(0x30_0000, 9, ""), (0x32_0000, 9, "dtb")];
        many.resize(16, (0x31_0000, 9, ""));
        assert_eq!(handed(&many).1.len(), 16);
    }
}
