//! Every guest-physical address, with a picture and a reason.
//!
//! ```text
//! 0x0000_0000 ┌───────────────────────────┐
//!             │ low RAM                   │
//! 0x0000_6000 │   PVH start info          │
//! 0x0000_7000 │   memory map, module list │
//! 0x0000_8000 │   Linux's zero page       │
//! 0x0000_9000 │   page tables, GDT, seed  │
//! 0x0001_0000 │   command line            │
//! 0x0002_0000 │   window for a firmware   │
//! 0x0008_0000 │   device tree             │
//! 0x000A_0000 ├───────────────────────────┤ hole: where PCs have VGA and ROMs
//! 0x000E_0000 │   ACPI tables             │ backed by memory, but no RAM to the guest
//! 0x0010_0000 ├───────────────────────────┤
//!             │ RAM: kernel, modules      │
//!             │ (from the top)            │
//! 0xC000_0000 ├───────────────────────────┤ hole: devices
//! 0xD000_0000 │   scratch page            │ unassigned for good: for MMIO workloads
//! 0xD100_0000 │   exit page               │ read-only: the guest's live counters
//! 0xD140_0000 │   console's page          │ read-only: COM1's registers, with `--console page`
//! 0xD200_0000 │   virtio devices          │ read-only: their registers, a page each
//! 0xFEC0_0000 │   IOAPIC                  │
//! 0xFEE0_0000 │   local APICs             │
//! 0xFFFB_C000 │   KVM's identity map, TSS │
//! 4 GiB       ├───────────────────────────┤
//!             │ RAM beyond 3 GiB          │
//!             └───────────────────────────┘
//! ```
//!
//! `exitvisor layout` prints [`ranges`], and a test holds `docs/architecture.md` against them.

/// `hvm_start_info` (PVH boot protocol). Low, because the guest reads it before it has paging.
pub const START_INFO: u64 = 0x6000;
/// PVH memory map.
pub const MEMORY_MAP: u64 = 0x7000;
/// PVH module list, in the same page as the memory map.
pub const MODULE_LIST: u64 = 0x7800;
/// The modules' command lines, which are their names: NUL-terminated, [`MODULE_NAME_SIZE`] apart.
pub const MODULE_NAMES: u64 = 0x7C00;
/// Room for the name of one module, NUL included.
pub const MODULE_NAME_SIZE: usize = 32;
/// Most modules: as many as the list has room for (an entry has 32 bytes), and as many names.
pub const MODULES_MAX: usize = 32;
/// `boot_params` (Linux's boot protocol), for a kernel that is entered by it.
pub const ZERO_PAGE: u64 = 0x8000;
/// The page tables at the entry by that protocol: one of the top level, one of pointers, and a
/// directory for each GiB. The kernel leaves them for its own within its first instructions.
pub const PAGE_TABLES: u64 = 0x9000;
/// The segment descriptors at that entry.
pub const GDT: u64 = 0xF000;
/// Linux's list of `setup_data`: the random seed.
pub const SETUP_DATA: u64 = 0xF100;
/// Kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x1_0000;
/// Room for the command line, NUL included: what x86 Linux accepts (COMMAND_LINE_SIZE).
pub const CMDLINE_SIZE: usize = 2048;
/// Where a firmware lies, whole: below every kernel, clear of the boot information and of the pages
/// that kernels use for secondary CPUs.
pub const FIRMWARE: u64 = 0x2_0000;
/// End of the room for a firmware.
pub const FIRMWARE_END: u64 = 0x8_0000;
/// The device tree. A module, but not at the top of RAM as the others are: there it would touch a
/// (perhaps huge) page of the host's for itself alone, here it lies with the rest of the hand-over.
/// Near the end of low RAM, because what is below is where a firmware lies and where kernels put the
/// pages from which secondary CPUs start.
pub const DEVICE_TREE: u64 = 0x8_0000;
/// End of the room for the device tree: 254 CPUs and the longest command line take less than a
/// third of it.
pub const DEVICE_TREE_END: u64 = 0x9_0000;
/// End of low RAM: above are VGA and ROMs on a PC, and nothing here.
pub const LOW_END: u64 = 0xA_0000;
/// The ACPI tables, RSDP first. Here, because a guest that was not told looks for the RSDP in
/// 0xE0000–0xFFFFF, at multiples of 16 (ACPI 6.5, 5.2.5.1); because no guest takes this for RAM;
/// and because the memory that backs it exists anyway.
pub const ACPI: u64 = 0xE_0000;
/// Where a PC's BIOS is jumped to for a reset, F000:FFF0: a few instructions that reset the machine.
/// Linux goes there when it finds hardware-reduced ACPI and no EFI (`reboot_init`).
pub const BIOS_RESET: u64 = 0xF_FFF0;
/// Where RAM goes on, and the lowest address an image may be loaded at.
pub const HIGH_START: u64 = 0x10_0000;
/// Start of the hole for devices: RAM beyond it continues at [`HOLE_END`].
pub const HOLE_START: u64 = 0xC000_0000;
/// End of the hole.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// A page that no device will ever have: reads as zeros, writes vanish, each access exits.
pub const SCRATCH_PAGE: u64 = exit_abi::SCRATCH_PAGE;
/// The exit page, head and records: in the hole, where no RAM is, whatever the guest has of it; at a
/// multiple of 2 MiB, so that a guest can map it by large pages.
pub const EXIT_PAGE: u64 = exit_abi::page::ADDRESS;
/// End of the room for it: 254 vCPUs' records and the head take 4 MiB less 28 KiB.
pub const EXIT_PAGE_END: u64 = 0xD140_0000;
/// COM1's registers, where they are memory (`--console page`).
pub const STATUS_PAGE: u64 = 0xD140_0000;
/// The registers of the virtio devices, a page each, in the order of their interrupts.
pub const VIRTIO: u64 = 0xD200_0000;
/// End of the room for them.
pub const VIRTIO_END: u64 = 0xD201_0000;
/// KVM's IOAPIC, where every PC has it (`IOAPIC_DEFAULT_BASE_ADDRESS`).
pub const IO_APIC: u64 = 0xFEC0_0000;
/// The local APICs after reset (SDM vol. 3A, 12.4.1).
pub const LOCAL_APIC: u64 = 0xFEE0_0000;
/// One page that kvm_intel without unrestricted guest needs (KVM_SET_IDENTITY_MAP_ADDR).
pub const IDENTITY_MAP: u64 = 0xFFFB_C000;
/// Three pages that kvm_intel without unrestricted guest needs (KVM_SET_TSS_ADDR).
pub const TSS: u64 = 0xFFFB_D000;
/// COM1's interrupt line.
pub const COM1_GSI: u32 = 4;
/// The interrupt line of the first virtio device; each has its own.
pub const VIRTIO_GSI: u32 = 5;
/// Most virtio devices: KVM's IOAPIC has 24 pins.
pub const VIRTIO_MAX: usize = 16;

/// A page: the size of whatever is one page.
const PAGE: u64 = 0x1000;

const _: () = assert!(MODULE_LIST + 32 * MODULES_MAX as u64 <= MODULE_NAMES);
const _: () = assert!(VIRTIO + VIRTIO_MAX as u64 * PAGE == VIRTIO_END);
const _: () = assert!(VIRTIO_GSI as usize + VIRTIO_MAX <= 24);
const _: () = assert!(MODULE_NAMES + (MODULES_MAX * MODULE_NAME_SIZE) as u64 <= 0x8000);

/// RAM as (start, length) for a guest with `size` bytes of it.
pub fn ram_regions(size: u64) -> Vec<(u64, u64)> {
    if size <= HOLE_START {
        vec![(0, size)]
    } else {
        vec![(0, HOLE_START), (HOLE_END, size - HOLE_START)]
    }
}

/// RAM as the guest is told of it, as (start, length): without the hole below 1 MiB.
pub fn guest_ram(size: u64) -> Vec<(u64, u64)> {
    let mut ram = vec![(0, LOW_END)];
    for (start, length) in ram_regions(size) {
        let end = start + length;
        let start = start.max(HIGH_START);
        if start < end {
            ram.push((start, end - start));
        }
    }
    ram
}

/// A range of guest-physical addresses that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Range {
    /// What it is called.
    pub name: &'static str,
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// What it is for.
    pub purpose: &'static str,
}

impl Range {
    /// Whether another range lies in this one.
    pub fn holds(&self, other: &Self) -> bool {
        self != other && self.start <= other.start && other.end <= self.end
    }
}

/// Every range of a guest with `memory` bytes of RAM, by address; a range comes before those that
/// lie in it.
pub fn ranges(memory: u64) -> Vec<Range> {
    let range = |name, start, end, purpose| Range {
        name,
        start,
        end,
        purpose,
    };
    let page = |name, start, purpose| range(name, start, start + PAGE, purpose);
    let cmdline_end = CMDLINE + CMDLINE_SIZE as u64;
    let names_end = MODULE_NAMES + (MODULES_MAX * MODULE_NAME_SIZE) as u64;
    let mut ranges = vec![
        range("low RAM", 0, LOW_END, "RAM"),
        page(
            "start info",
            START_INFO,
            "what PVH hands over; EBX points here at entry",
        ),
        range("memory map", MEMORY_MAP, MODULE_LIST, "of the start info"),
        range(
            "module list",
            MODULE_LIST,
            MODULE_NAMES,
            "of the start info",
        ),
        range(
            "module names",
            MODULE_NAMES,
            names_end,
            "the modules' command lines",
        ),
        page(
            "zero page",
            ZERO_PAGE,
            "Linux's boot_params; RSI points here at its 64-bit entry",
        ),
        range(
            "page tables",
            PAGE_TABLES,
            GDT,
            "at that entry: 4 GiB, mapped to themselves",
        ),
        range("segments", GDT, SETUP_DATA, "at that entry: the GDT"),
        range("setup data", SETUP_DATA, CMDLINE, "Linux's: a random seed"),
        range(
            "command line",
            CMDLINE,
            cmdline_end,
            "the kernel's, NUL-terminated",
        ),
        range(
            "firmware",
            FIRMWARE,
            FIRMWARE_END,
            "whole: image, stack, its own tables",
        ),
        range(
            "device tree",
            DEVICE_TREE,
            DEVICE_TREE_END,
            "the module `dtb`",
        ),
        range(
            "PC hole",
            LOW_END,
            HIGH_START,
            "no RAM: VGA and ROMs on a PC",
        ),
        range(
            "ACPI tables",
            ACPI,
            BIOS_RESET,
            "RSDP first; type ACPI in the memory map",
        ),
        range(
            "BIOS reset",
            BIOS_RESET,
            HIGH_START,
            "F000:FFF0, where who wants a BIOS to reset the PC jumps",
        ),
    ];
    let main = "RAM: kernel; modules from the top";
    let high = "RAM: what the device hole displaced";
    for (start, length) in ram_regions(memory) {
        ranges.push(if start == HOLE_END {
            range("high RAM", start, start + length, high)
        } else {
            range("main RAM", HIGH_START, start + length, main)
        });
    }
    ranges.extend([
        range(
            "device hole",
            HOLE_START,
            HOLE_END,
            "no RAM: devices, and room for more",
        ),
        page(
            "scratch page",
            SCRATCH_PAGE,
            "no device ever: for MMIO workloads",
        ),
        range(
            "exit page",
            EXIT_PAGE,
            EXIT_PAGE_END,
            "live counters, read-only; as long as its node says",
        ),
        page(
            "console's page",
            STATUS_PAGE,
            "COM1's registers, with `--console page`",
        ),
        range(
            "virtio devices",
            VIRTIO,
            VIRTIO_END,
            "their registers, a page each, read-only",
        ),
        page("IOAPIC", IO_APIC, "KVM's"),
        page("local APICs", LOCAL_APIC, "KVM's, each vCPU its own"),
        page(
            "identity map",
            IDENTITY_MAP,
            "KVM's own, on Intel without unrestricted guest",
        ),
        range(
            "TSS",
            TSS,
            TSS + 3 * PAGE,
            "KVM's own, on Intel without unrestricted guest",
        ),
    ]);
    ranges.sort_by_key(|r| (r.start, std::cmp::Reverse(r.end)));
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Nothing is placed that the table does not show.
    #[test]
    fn every_address_here_bounds_a_range() {
        let ranges = ranges(8 << 30);
        let source = include_str!("layout.rs");
        let mut addresses = 0;
        for line in source.lines() {
            let Some(constant) = line.strip_prefix("pub const ") else {
                continue;
            };
            let Some((name, value)) = constant.split_once(": u64 = ") else {
                continue;
            };
            let value = match value.trim_end_matches(';') {
                "exit_abi::SCRATCH_PAGE" => SCRATCH_PAGE,
                "exit_abi::page::ADDRESS" => EXIT_PAGE,
                number => {
                    let digits = number.trim_start_matches("0x").replace('_', "");
                    u64::from_str_radix(&digits, 16).unwrap()
                }
            };
            let bounds = |r: &Range| r.start == value || r.end == value;
            assert!(ranges.iter().any(bounds), "{name} is not in the table");
            addresses += 1;
        }
        assert!(
            addresses >= 16,
            "{addresses} addresses: are they elsewhere?"
        );
    }

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

        #[test]
        fn the_guest_is_told_of_all_ram_but_the_hole(pages in 512_u64..1 << 28) {
            let size = pages << 12;
            let told: u64 = guest_ram(size).iter().map(|r| r.1).sum();
            prop_assert_eq!(told + HIGH_START - LOW_END, size);
        }

        #[test]
        fn ranges_nest_or_are_apart(pages in 512_u64..1 << 28) {
            let ranges = ranges(pages << 12);
            for (i, a) in ranges.iter().enumerate() {
                prop_assert!(a.start < a.end, "{:?}", a);
                for b in &ranges[i + 1..] {
                    let apart = a.end <= b.start;
                    prop_assert!(apart || a.holds(b), "{:?} and {:?}", a, b);
                }
            }
        }
    }
}
