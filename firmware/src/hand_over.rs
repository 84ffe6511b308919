//! What the kernel is handed: a start info of its own, in which the module list lacks the kernel.
//!
//! Memory map, command line and ACPI's root pointer stay where the VMM put them. A device tree
//! never becomes the first module, because Linux takes that for its initrd: an empty one stands
//! before it then ([`exit_abi::devicetree`]).

use exit_abi::devicetree::MODULE;
use guest_kernel::once::Once;

use crate::error::Error;
use crate::start_info::{MODULES_MAX, Module, Raw, RawModule, StartInfo, field};

/// Start info and module list for the kernel: a static of the firmware's, so it stays.
#[repr(C, align(8))]
#[derive(Debug)]
pub struct HandOver {
    info: Raw,
    modules: [RawModule; MODULES_MAX as usize],
}

static ROOM: Once<HandOver> = Once::new(HandOver {
    info: [0; size_of::<Raw>()],
    modules: [[0; size_of::<RawModule>()]; MODULES_MAX as usize],
});

/// The name of the empty first module, as `exit_abi::devicetree::INITRD_MODULE`.
static INITRD_NAME: &[u8; 7] = b"initrd\0";

/// Where the kernel's start info goes.
pub fn room() -> Result<&'static mut HandOver, Error> {
    ROOM.take()
        .ok_or(Error::Unreadable("the kernel's start info", 0))
}

impl HandOver {
    /// Fills it in, for a boot without the module that is the kernel. Returns its address.
    pub fn build(&'static mut self, info: &StartInfo<'_>, kernel: &Module) -> u32 {
        let count = self.fill(info, kernel);
        let list = &raw const self.modules as u64;
        let list = if count == 0 { 0 } else { list };
        self.info[field::MODULE_LIST..][..8].copy_from_slice(&list.to_le_bytes());
        &raw const self.info as usize as u32
    }

    fn fill(&mut self, info: &StartInfo<'_>, kernel: &Module) -> usize {
        self.info = *info.raw;
        let others = || (0..info.modules.len()).filter(|&i| i != kernel.index);
        // With the kernel gone there is room for one more.
        let insert = others().next().is_some_and(|i| info.is_named(i, MODULE));
        let mut room = self.modules.iter_mut();
        if insert && let Some(first) = room.next() {
            *first = [0; size_of::<RawModule>()];
            let name = INITRD_NAME.as_ptr() as u64;
            first[16..24].copy_from_slice(&name.to_le_bytes());
        }
        for (to, i) in room.zip(others()) {
            *to = info.modules[i];
        }
        let count = others().count() + usize::from(insert);
        self.info[field::MODULES..][..4].copy_from_slice(&(count as u32).to_le_bytes());
        count
    }
}
