//! The page where no device is: an exit per access.

use core::arch::asm;

/// Reads four bytes of [`exit_abi::SCRATCH_PAGE`].
pub fn read() -> u32 {
    let value;
    // SAFETY: both the entry's page tables and the kernel's map this page at its physical address;
    // no device is there, so that a read changes nothing. One MOV, because an emulator decodes it.
    unsafe {
        asm!("mov {:e}, [{}]", out(reg) value, in(reg) exit_abi::SCRATCH_PAGE, options(readonly, nostack, preserves_flags));
    }
    value
}
