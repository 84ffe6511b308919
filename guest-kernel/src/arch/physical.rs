//! Memory that the VMM or the firmware filled in, read byte by byte.

/// A place to read bytes from by physical address.
pub trait Physical {
    /// The byte at an address, or `None` where it must not be read.
    fn byte(&self, address: u64) -> Option<u8>;
}

/// Physical memory as the entry's page tables map it: one to one, up to 4 GiB. To be used before
/// the kernel installs its own tables; afterwards an unmapped address is a crash that names it.
pub struct BootMemory;

/// The host's memory is not ours to read.
#[cfg(not(target_os = "none"))]
impl Physical for BootMemory {
    fn byte(&self, _: u64) -> Option<u8> {
        None
    }
}

/// The image's place in memory.
#[cfg(target_os = "none")]
pub fn image() -> core::ops::Range<u64> {
    unsafe extern "sysv64" {
        static __text_start: u8;
        static __data_end: u8;
    }
    &raw const __text_start as u64..&raw const __data_end as u64
}

/// The host's image is nowhere in particular.
#[cfg(not(target_os = "none"))]
pub fn image() -> core::ops::Range<u64> {
    0..0
}

impl BootMemory {
    /// Bytes in one piece; `None` where they must not be read.
    #[cfg(target_os = "none")]
    pub fn slice(&self, start: u64, length: u64) -> Option<&[u8]> {
        let end = start.checked_add(length)?;
        let image = image();
        if start == 0 || end > 1 << 32 || start < image.end && image.start < end {
            return None;
        }
        // SAFETY: the bytes are mapped, outside the image and its stack, and nobody writes to them
        // while this is borrowed: the kernel reads boot information before it has a heap and
        // before other CPUs run. Any byte is a valid u8.
        Some(unsafe { core::slice::from_raw_parts(start as *const u8, length as usize) })
    }

    /// The host's memory is not ours to read.
    #[cfg(not(target_os = "none"))]
    pub fn slice(&self, _: u64, _: u64) -> Option<&[u8]> {
        None
    }
}

#[cfg(target_os = "none")]
impl Physical for BootMemory {
    fn byte(&self, address: u64) -> Option<u8> {
        if address == 0 || address >= 1 << 32 || image().contains(&address) {
            return None;
        }
        // SAFETY: the address is mapped and lies outside the image and its stack, so that no
        // Rust object is there; any byte is a valid u8.
        Some(unsafe { (address as *const u8).read_volatile() })
    }
}
