//! Physical memory: read as slices, filled by string instructions.

#[cfg(target_os = "none")]
use super::paging;

/// A place to read bytes from by physical address.
pub trait Physical {
    /// So many bytes at an address; `None` where they must not be read.
    fn slice(&self, start: u64, length: u64) -> Option<&[u8]>;
}

/// Physical memory as the firmware's page tables map it: one to one, up to [`super::paging::mapped`].
pub struct Identity;

/// Where the firmware itself lies, its tables, its stack and its statics included.
pub fn image() -> (u64, u64) {
    #[cfg(target_os = "none")]
    {
        unsafe extern "sysv64" {
            static __image_start: u8;
            static __image_end: u8;
        }
        (
            &raw const __image_start as u64,
            &raw const __image_end as u64,
        )
    }
    #[cfg(not(target_os = "none"))]
    (0x2_0000, 0x3_0000)
}

/// Whether bytes are ours to read: mapped, not at address 0, and not of the firmware itself.
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
fn readable(start: u64, length: u64, mapped: u64) -> bool {
    let (image_start, image_end) = image();
    start
        .checked_add(length)
        .is_some_and(|end| start > 0 && end <= mapped && (end <= image_start || start >= image_end))
}

impl Physical for Identity {
    #[cfg(target_os = "none")]
    fn slice(&self, start: u64, length: u64) -> Option<&[u8]> {
        if !readable(start, length, paging::mapped()) {
            return None;
        }
        // SAFETY: the bytes are mapped, and none of them belongs to anything that Rust knows of;
        // the firmware writes nowhere but to its own statics and, by `fill`, to places checked to
        // be clear of every module and of the boot information. It is alone: one CPU, no devices.
        Some(unsafe { core::slice::from_raw_parts(start as *const u8, length as usize) })
    }

    /// The host's memory is not ours to read.
    #[cfg(not(target_os = "none"))]
    fn slice(&self, _: u64, _: u64) -> Option<&[u8]> {
        None
    }
}

/// Copies `bytes` to a physical address and clears what is left of `length`, eight bytes at a time:
/// an interpreted CPU pays per iteration.
///
/// # Safety
///
/// The `length` bytes at `to`, at least as many as `bytes`, must be RAM below
/// [`super::paging::mapped`] that nothing else uses, `bytes` included.
#[cfg(target_os = "none")]
pub unsafe fn fill(to: u64, bytes: &[u8], length: u64) {
    let copied = bytes.len() as u64;
    // SAFETY: both instructions write upwards from `to` (the direction flag is clear in Rust code),
    // `length` bytes together, which are the caller's to give; the first reads `bytes`.
    unsafe {
        core::arch::asm!(
            "mov rcx, {copied}",
            "shr rcx, 3",
            "rep movsq",
            "mov ecx, {copied:e}",
            "and ecx, 7",
            "rep movsb",
            "mov rcx, {cleared}",
            "xor eax, eax",
            "shr rcx, 3",
            "rep stosq",
            "mov ecx, {cleared:e}",
            "and ecx, 7",
            "rep stosb",
            copied = in(reg) copied,
            cleared = in(reg) length.saturating_sub(copied),
            inout("rsi") bytes.as_ptr() => _,
            inout("rdi") to => _,
            out("rcx") _,
            out("rax") _,
            options(nostack)
        )
    }
}

/// The host's memory is not ours to write.
///
/// # Safety
///
/// None needed: it does nothing.
#[cfg(not(target_os = "none"))]
pub unsafe fn fill(_: u64, _: &[u8], _: u64) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_read() {
        const MAPPED: u64 = 1 << 30;
        let (start, end) = image();
        for (at, length) in [(0x6000, 56), (1, start - 1), (end, MAPPED - end)] {
            assert!(readable(at, length, MAPPED), "{at:#x}, {length:#x}");
        }
        for (at, length) in [
            (0, 1),
            (start, 1),
            (start - 1, 2),
            (end - 1, 1),
            (0x6000, 1 << 20),
            (MAPPED - 1, 2),
            (u64::MAX, 1),
            (1, u64::MAX),
        ] {
            assert!(!readable(at, length, MAPPED), "{at:#x}, {length:#x}");
        }
    }
}
