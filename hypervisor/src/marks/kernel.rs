//! What is known of a kernel before it runs, as far as its milestones need it.

use std::sync::Arc;

use crate::boot::Entry;
use crate::boot::kernel::Kernel;
use crate::symbols::Symbols;

use super::head::{self, Jumps};

/// The lowest address of a Linux kernel's image (linux/Documentation/arch/x86/x86_64/mm.rst).
pub const LINUX: u64 = 0xFFFF_FFFF_8000_0000;

/// A kernel, and how it comes to run.
#[derive(Debug)]
pub enum Facts {
    /// Linux that unpacks itself.
    Packed {
        /// Where it is loaded.
        load: u64,
        /// Its 64-bit entry.
        entry: u64,
        /// From its physical address on it needs so much.
        size: u64,
        /// Its physical address is a multiple of this.
        alignment: u64,
        /// Where it goes into the kernel, if that could be told.
        jumps: Option<Jumps>,
    },
    /// Linux that runs where it is loaded.
    Unpacked {
        /// Where it is entered: a physical address.
        entry: u64,
        /// The physical addresses of its image.
        image: (u64, u64),
        /// The linear address of the first.
        text: u64,
    },
    /// Some other kernel, which runs where it was linked for.
    Other,
}

impl Facts {
    /// Of a kernel that is entered there.
    pub fn of(kernel: &Kernel, entry: Entry) -> Self {
        match kernel {
            Kernel::BzImage(image) => {
                let (load, end) = image.place();
                Self::Packed {
                    load,
                    entry: image.entry(),
                    size: end - load,
                    alignment: u64::from(image.header.kernel_alignment).max(1),
                    jumps: head::find(end - load, |at, into| image.read_code(at, into)),
                }
            }
            Kernel::Elf(image) if image.is_linux => {
                let (first, last) = (image.segments.first(), image.segments.last());
                let image_at = (first.map_or(0, |s| s.0), last.map_or(0, |s| s.1));
                Self::Unpacked {
                    entry: match entry {
                        Entry::Pvh(entry) => entry.into(),
                        Entry::Linux(entry) => entry,
                    },
                    image: image_at,
                    text: image.linear(image_at.0).unwrap_or(LINUX + image_at.0),
                }
            }
            Kernel::Elf(_) => Self::Other,
        }
    }

    /// Whether it is Linux.
    pub fn is_linux(&self) -> bool {
        !matches!(self, Self::Other)
    }
}

/// Symbols that were given, and what is to be said of them.
#[derive(Debug, Default)]
pub struct Given {
    /// They, at link-time addresses.
    pub symbols: Option<Arc<Symbols>>,
    /// Where they are from, for messages.
    pub name: String,
    /// What a person is to be told of them.
    pub note: Option<String>,
}
