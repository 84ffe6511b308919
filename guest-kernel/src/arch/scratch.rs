//! The page where no device is: an exit per access.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// Where it is.
static PAGE: AtomicU64 = AtomicU64::new(exit_abi::SCRATCH_PAGE);

/// Uses the page that a device tree names.
pub fn found(page: u64) {
    PAGE.store(page, Ordering::Relaxed);
}

/// Reads four bytes of it.
pub fn read() -> u32 {
    let value;
    // SAFETY: both the entry's page tables and the kernel's map this page at its physical address;
    // no device is there, so that a read changes nothing. One MOV, because an emulator decodes it.
    unsafe {
        asm!("mov {:e}, [{}]", out(reg) value, in(reg) PAGE.load(Ordering::Relaxed), options(readonly, nostack, preserves_flags));
    }
    value
}
