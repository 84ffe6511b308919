//! Every guest-physical address, with a picture and a reason.
//!
//! ```text
//! 0x0000_0000 ┌───────────────────────────┐
//!             │ low RAM                   │
//! 0x0000_6000 │   PVH start info          │
//! 0x0000_7000 │   memory map, module list │
//! 0x0001_0000 │   command line            │
//! 0x0002_0000 │   window for a firmware   │
//! 0x000A_0000 ├───────────────────────────┤ hole: where PCs have VGA and ROMs
//! 0x0010_0000 ├───────────────────────────┤
//!             │ RAM: kernel, modules      │
//!             │ (from the top)            │
//! 0xC000_0000 ├───────────────────────────┤ hole: devices
//! 0xD000_0000 │   scratch page            │ unassigned for good: for MMIO workloads
//! 0xFEC0_0000 │   IOAPIC                  │
//! 0xFEE0_0000 │   local APICs             │
//! 0xFFFB_C000 │   KVM's identity map, TSS │
//! 4 GiB       ├───────────────────────────┤
//!             │ RAM beyond 3 GiB          │
//!             └───────────────────────────┘
//! ```

/// `hvm_start_info` (PVH boot protocol). Low, because the guest reads it before it has paging.
pub const START_INFO: u64 = 0x6000;
/// PVH memory map.
pub const MEMORY_MAP: u64 = 0x7000;
/// PVH module list, in the same page as the memory map.
pub const MODULE_LIST: u64 = 0x7800;
/// Kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x1_0000;
/// Room for the command line, NUL included: what x86 Linux accepts (COMMAND_LINE_SIZE).
pub const CMDLINE_SIZE: usize = 2048;
/// Where a firmware lies, whole: below every kernel, clear of the boot information and of the pages
/// that kernels use for secondary CPUs.
pub const FIRMWARE: u64 = 0x2_0000;
/// End of the room for a firmware.
pub const FIRMWARE_END: u64 = 0x8_0000;
/// End of low RAM: above are VGA and ROMs on a PC, and nothing here.
pub const LOW_END: u64 = 0xA_0000;
/// Where RAM goes on, and the lowest address an image may be loaded at.
pub const HIGH_START: u64 = 0x10_0000;
/// Start of the hole for devices: RAM beyond it continues at [`HOLE_END`].
pub const HOLE_START: u64 = 0xC000_0000;
/// End of the hole.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// A page that no device will ever have: reads as zeros, writes vanish, each access exits.
pub const SCRATCH_PAGE: u64 = exit_abi::SCRATCH_PAGE;
/// One page that kvm_intel without unrestricted guest needs (KVM_SET_IDENTITY_MAP_ADDR).
pub const IDENTITY_MAP: u64 = 0xFFFB_C000;
/// Three pages that kvm_intel without unrestricted guest needs (KVM_SET_TSS_ADDR).
pub const TSS: u64 = 0xFFFB_D000;
/// COM1's interrupt line.
pub const COM1_GSI: u32 = 4;

/// RAM as (start, length) for a guest with `size` bytes of it.
pub fn ram_regions(size: u64) -> Vec<(u64, u64)> {
    if size <= HOLE_START {
        vec![(0, size)]
    } else {
        vec![(0, HOLE_START), (HOLE_END, size - HOLE_START)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_firmware_is_clear_of_the_boot_information_and_of_kernels() {
        const { assert!(CMDLINE + CMDLINE_SIZE as u64 <= FIRMWARE) };
        const { assert!(FIRMWARE < FIRMWARE_END && FIRMWARE_END <= LOW_END) };
    }

    proptest! {
        #[test]
        fn regions_add_up_and_leave_the_hole(pages in 1_u64..1 << 28) {
            let size = pages << 12;
            let regions = ram_regions(size);
            prop_assert_eq!(regions.iter().map(|r| r.1).sum::<u64>(), size);
            for (start, len) in regions {
                prop_assert!(start + len <= HOLE_START || start >= HOLE_END);
            }
        }
    }
}
