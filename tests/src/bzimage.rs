//! A bzImage made by hand, to be broken: linux/Documentation/arch/x86/boot.rst.

use std::path::{Path, PathBuf};

/// Offsets in the file.
pub const SETUP_SECTS: usize = 0x1F1;
/// Size of the protected-mode code, in 16 bytes.
pub const SYSSIZE: usize = 0x1F4;
/// 55 aa.
pub const BOOT_FLAG: usize = 0x1FE;
/// "HdrS".
pub const MAGIC: usize = 0x202;
/// Version of the protocol.
pub const VERSION: usize = 0x206;
/// LOADED_HIGH and others.
pub const LOADFLAGS: usize = 0x211;
/// XLF_KERNEL_64 and others.
pub const XLOADFLAGS: usize = 0x236;
/// Where the packed kernel is.
pub const PAYLOAD_OFFSET: usize = 0x248;
/// Where it prefers to be.
pub const PREF_ADDRESS: usize = 0x258;

/// Its bytes.
#[derive(Clone, Debug)]
pub struct BzImage(pub Vec<u8>);

impl Default for BzImage {
    /// One that passes every check: a page of code at 2 MiB.
    fn default() -> Self {
        let mut image = Self(vec![0; 1024 + 4096]);
        image.put(SETUP_SECTS, &[1]);
        image.put(SYSSIZE, &256_u32.to_le_bytes());
        image.put(BOOT_FLAG, &[0x55, 0xAA]);
        image.put(MAGIC, b"HdrS");
        image.put(VERSION, &[0x0F, 2]);
        image.put(LOADFLAGS, &[1]);
        // initrd_addr_max, kernel_alignment, relocatable_kernel and min_alignment.
        image.put(0x22C, &0x7FFF_FFFF_u32.to_le_bytes());
        image.put(0x230, &0x20_0000_u32.to_le_bytes());
        image.put(0x234, &[1, 21]);
        image.put(XLOADFLAGS, &[0x7F, 0]);
        // cmdline_size.
        image.put(0x238, &2047_u32.to_le_bytes());
        image.put(PREF_ADDRESS, &0x20_0000_u64.to_le_bytes());
        // init_size.
        image.put(0x260, &0x10_0000_u32.to_le_bytes());
        image
    }
}

impl BzImage {
    /// Changes bytes.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The same with bytes changed.
    #[must_use]
    pub fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.put(at, bytes);
        self
    }

    /// Writes it into a folder.
    pub fn write(&self, folder: &Path) -> PathBuf {
        super::file(folder, "vmlinuz", &self.0)
    }
}
