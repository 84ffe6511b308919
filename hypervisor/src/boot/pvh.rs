//! PVH hand-over: start info, memory map, modules, and the registers at entry
//! (Xen's docs/misc/pvh: 32-bit protected mode, paging off, EBX = start info).

use std::fs::File;
use std::io;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::layout;
use crate::memory::Memory;

const START_MAGIC: u32 = 0x336E_C578;
const MAP_RAM: u32 = 1;
const MAP_RESERVED: u32 = 2;
const MAP_ACPI: u32 = 3;

/// What can go wrong while the hand-over is written.
#[derive(Debug, Error)]
pub enum PvhError {
    /// linux-loader could not place it.
    #[error("cannot place the boot information: {0}")]
    Place(#[source] linux_loader::configurator::Error),
    /// A text could not be placed.
    #[error("cannot place {0}: {1}")]
    Text(&'static str, #[source] vm_memory::GuestMemoryError),
    /// More modules, or longer names, than the list has room for.
    #[error("the module list has no room for module {0} ({1})")]
    List(usize, &'static str),
    /// No room for a module.
    #[error("{role} of {bytes} bytes does not fit into guest memory: give more with --memory")]
    NoRoom {
        /// What it is.
        role: &'static str,
        /// Its size.
        bytes: u64,
    },
    /// A module could not be read.
    #[error("{role} cannot be read: {source}")]
    Module {
        /// What it is.
        role: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A module in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its command line: by it the guest knows what it is ([`exit_abi::devicetree`]).
    pub name: &'static str,
    /// First byte.
    pub start: u64,
    /// Size.
    pub bytes: u64,
}

/// Loads a file as a module: as high as it fits below `top`, page by page downwards.
pub fn load_module(
    memory: &Memory,
    file: &mut File,
    bytes: u64,
    role: &'static str,
    (floor, top): (u64, u64),
) -> Result<Module, PvhError> {
    let start = top
        .checked_sub(bytes)
        .map(|s| s & !0xFFF)
        .filter(|&s| s >= floor)
        .ok_or(PvhError::NoRoom { role, bytes })?;
    let length = usize::try_from(bytes).map_err(|_| PvhError::NoRoom { role, bytes })?;
    crate::memory::expect(memory, start, bytes);
    memory
        .read_exact_volatile_from(GuestAddress(start), file, length)
        .map_err(|e| PvhError::Module {
            role,
            source: io::Error::other(e.to_string()),
        })?;
    Ok(Module {
        name: role,
        start,
        bytes,
    })
}

/// The top of RAM below the device hole.
pub fn top_of_low_ram(memory: &Memory) -> u64 {
    memory.iter().next().map_or(0, |r| r.len())
}

/// RAM and what is no RAM, as the guest is told of it.
pub fn memory_map(memory: &Memory, exit_page: Option<u64>) -> Vec<hvm_memmap_table_entry> {
    let entry = |addr, size, type_| hvm_memmap_table_entry {
        addr,
        size,
        type_,
        reserved: 0,
    };
    let top = top_of_low_ram(memory);
    let mut map = vec![
        entry(0, layout::LOW_END, MAP_RAM),
        entry(
            layout::LOW_END,
            layout::ACPI - layout::LOW_END,
            MAP_RESERVED,
        ),
        entry(layout::ACPI, layout::HIGH_START - layout::ACPI, MAP_ACPI),
        entry(layout::HIGH_START, top - layout::HIGH_START, MAP_RAM),
    ];
    if let Some(size) = exit_page {
        map.push(entry(layout::EXIT_PAGE, size, MAP_RESERVED));
    }
    if let Some(high) = memory.iter().nth(1) {
        map.push(entry(layout::HOLE_END, high.len(), MAP_RAM));
    }
    map
}

/// Writes a text and the NUL that ends it.
fn write_text(memory: &Memory, text: &str, at: u64, what: &'static str) -> Result<(), PvhError> {
    memory
        .write_slice(text.as_bytes(), GuestAddress(at))
        .and_then(|()| memory.write_slice(&[0], GuestAddress(at + text.len() as u64)))
        .map_err(|e| PvhError::Text(what, e))
}

/// Writes the modules' names, and makes the list that points to them.
fn module_list(memory: &Memory, modules: &[Module]) -> Result<Vec<hvm_modlist_entry>, PvhError> {
    let mut list = Vec::new();
    for (i, module) in modules.iter().enumerate() {
        if i >= layout::MODULES_MAX || module.name.len() >= layout::MODULE_NAME_SIZE {
            return Err(PvhError::List(i, module.name));
        }
        let name = layout::MODULE_NAMES + (i * layout::MODULE_NAME_SIZE) as u64;
        write_text(memory, module.name, name, "a module's name")?;
        list.push(hvm_modlist_entry {
            paddr: module.start,
            size: module.bytes,
            cmdline_paddr: name,
            reserved: 0,
        });
    }
    Ok(list)
}

/// Writes start info, memory map, module list and command line; `rsdp` is where ACPI begins,
/// `exit_page` how long the exit page is, if there is one.
pub fn write(
    memory: &Memory,
    cmdline: &str,
    modules: &[Module],
    rsdp: u64,
    exit_page: Option<u64>,
) -> Result<(), PvhError> {
    write_text(memory, cmdline, layout::CMDLINE, "the command line")?;
    let map = memory_map(memory, exit_page);
    let list = module_list(memory, modules)?;
    let info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        nr_modules: list.len() as u32,
        modlist_paddr: if list.is_empty() {
            0
        } else {
            layout::MODULE_LIST
        },
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(layout::START_INFO));
    params.set_sections(&map, GuestAddress(layout::MEMORY_MAP));
    if !list.is_empty() {
        params.set_modules(&list, GuestAddress(layout::MODULE_LIST));
    }
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(PvhError::Place)
}

/// General registers at entry.
pub fn registers(entry: u32) -> kvm_regs {
    kvm_regs {
        rip: entry.into(),
        rbx: layout::START_INFO,
        // Bit 1 is always 1 (SDM vol. 1, 3.4.3).
        rflags: 2,
        ..Default::default()
    }
}

/// Segment and control registers at entry: flat 4 GiB segments, protection on, paging off.
pub fn set_system_registers(sregs: &mut kvm_sregs) {
    let segment = |selector, type_, db| kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    };
    sregs.cs = segment(0x08, 0xB, 1);
    let data = segment(0x10, 0x3, 1);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // A busy 32-bit TSS with the limit that PVH names.
    sregs.tr = kvm_segment {
        base: 0,
        limit: 0x67,
        selector: 0x18,
        type_: 0xB,
        present: 1,
        ..Default::default()
    };
    // PE and ET; everything else off.
    sregs.cr0 = 0x11;
    sregs.cr3 = 0;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Seek, Write};

    #[test]
    fn start_info_points_at_everything() {
        let memory = crate::memory::map(8 << 20).unwrap();
        write(
            &memory,
            "queries=5",
            &[Module {
                name: "initrd",
                start: 0x40_0000,
                bytes: 7,
            }],
            layout::ACPI,
            Some(0x9000),
        )
        .unwrap();
        let info: hvm_start_info = memory.read_obj(GuestAddress(layout::START_INFO)).unwrap();
        assert_eq!(
            (info.magic, info.version, info.nr_modules),
            (START_MAGIC, 1, 1)
        );
        let mut cmdline = [0; 10];
        memory
            .read_slice(&mut cmdline, GuestAddress(info.cmdline_paddr))
            .unwrap();
        assert_eq!(&cmdline, b"queries=5\0");
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x40_0000, 7));
        let mut name = [0; 7];
        memory
            .read_slice(&mut name, GuestAddress(module.cmdline_paddr))
            .unwrap();
        assert_eq!(&name, b"initrd\0");
        assert_eq!(info.rsdp_paddr, layout::ACPI);
        let last: hvm_memmap_table_entry = memory
            .read_obj(GuestAddress(info.memmap_paddr + 3 * 24))
            .unwrap();
        assert_eq!(
            (last.addr, last.size, last.type_),
            (0x10_0000, 7 << 20, MAP_RAM)
        );
        let page: hvm_memmap_table_entry = memory
            .read_obj(GuestAddress(info.memmap_paddr + 4 * 24))
            .unwrap();
        assert_eq!(
            (page.addr, page.size, page.type_),
            (layout::EXIT_PAGE, 0x9000, MAP_RESERVED)
        );
        assert_eq!(info.memmap_entries, 5);
    }

    #[test]
    fn modules_go_to_the_top_or_nowhere() {
        let memory = crate::memory::map(4 << 20).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        file.rewind().unwrap();
        let module = load_module(&memory, &mut file, 5000, "initrd", (0x10_0000, 4 << 20)).unwrap();
        assert_eq!(
            module,
            Module {
                name: "initrd",
                start: (4 << 20) - 8192,
                bytes: 5000
            }
        );
        assert_eq!(
            memory
                .read_obj::<u8>(GuestAddress(module.start + 4999))
                .unwrap(),
            7
        );
        file.rewind().unwrap();
        let none = load_module(&memory, &mut file, 5000, "initrd", (0x3F_F000, 4 << 20));
        assert!(matches!(none, Err(PvhError::NoRoom { .. })));
        let huge = load_module(&memory, &mut file, u64::MAX, "initrd", (0, 4 << 20));
        assert!(matches!(huge, Err(PvhError::NoRoom { .. })));
        let short = load_module(&memory, &mut file, 9000, "initrd", (0, 4 << 20));
        assert!(matches!(short, Err(PvhError::Module { .. })));
    }

    #[test]
    fn the_list_has_its_limits() {
        let memory = crate::memory::map(2 << 20).unwrap();
        let module = |name| Module {
            name,
            start: 0,
            bytes: 0,
        };
        let full = [module("m"); layout::MODULES_MAX];
        write(&memory, "", &full, layout::ACPI, None).unwrap();
        let last: hvm_modlist_entry = memory
            .read_obj(GuestAddress(layout::MODULE_LIST + 31 * 32))
            .unwrap();
        assert_eq!(last.cmdline_paddr, layout::MODULE_NAMES + 31 * 32);
        let over = [module("m"); layout::MODULES_MAX + 1];
        let long = [module("a name of more than thirty-one bytes")];
        for modules in [&over[..], &long] {
            let refused = write(&memory, "", modules, layout::ACPI, None);
            assert!(matches!(refused, Err(PvhError::List(..))));
        }
    }

    proptest! {
        #[test]
        fn the_map_covers_ram_once(mib in 2_u64..64) {
            let memory = crate::memory::map(mib << 20).unwrap();
            let map = memory_map(&memory, Some(0x9000));
            let ram: u64 = map.iter().filter(|e| e.type_ == MAP_RAM).map(|e| e.size).sum();
            prop_assert_eq!(ram + layout::HIGH_START - layout::LOW_END, mib << 20);
            for pair in map.windows(2) {
                prop_assert!(pair[0].addr + pair[0].size <= pair[1].addr);
            }
        }
    }
}
