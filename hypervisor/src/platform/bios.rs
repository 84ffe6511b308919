//! All that this machine has of a BIOS: what a guest gets that jumps there for a reset.
//!
//! Linux, where it finds hardware-reduced ACPI, wants EFI to reset the machine; without EFI it goes
//! back to real mode and to F000:FFF0 (linux/arch/x86/kernel/reboot.c).

use exit_abi::port;

/// 16-bit code for [`crate::layout::BIOS_RESET`]: writes ACPI's reset register.
pub(super) const RESET: [u8; 10] = {
    let [low, high] = port::RESET.to_le_bytes();
    [
        0xBA,
        low,
        high, // mov dx, RESET
        0xB0,
        port::RESET_VALUE, // mov al, RESET_VALUE
        0xEE,              // out dx, al
        0xFA,              // cli
        0xF4,              // hlt
        0xEB,
        0xFC, // jmp to the cli
    ]
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout;

    #[test]
    fn it_fits_and_is_where_a_bios_is_entered() {
        assert_eq!(layout::BIOS_RESET, (0xF000 << 4) + 0xFFF0);
        assert!(layout::BIOS_RESET + RESET.len() as u64 <= layout::HIGH_START);
        // The jump goes back over cli, hlt and itself.
        assert_eq!(RESET[9], (-4_i8) as u8);
    }
}
