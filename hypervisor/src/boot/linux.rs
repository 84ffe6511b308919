//! Linux's 64-bit boot protocol: zero page, random seed, page tables, and the registers at entry
//! (linux/Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL"; zero-page.rst).

use exit_abi::devicetree::SETUP_DATA_MODULE;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{SETUP_RNG_SEED, boot_e820_entry, boot_params, setup_header};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use super::bzimage::{BOOT_FLAG, MAGIC};
use super::pvh::{self, Module};
use crate::layout;
use crate::memory::Memory;

/// `type_of_loader`: one without a number of its own.
const LOADER_UNDEFINED: u8 = 0xFF;
/// Bytes of the random seed: as many as the kernel's generator has of state.
const SEED: usize = 32;
/// `struct setup_data` before its data: next, type, length.
const SETUP_DATA_HEADER: usize = 16;
/// What a page table's entry says: present, writable, and in a directory: a page of 2 MiB (SDM vol.
/// 3A, 5.5.4).
const TABLE: u64 = 1 << 0 | 1 << 1;
const LARGE: u64 = TABLE | 1 << 7;
/// Entries of a table, and bytes.
const ENTRIES: u64 = 512;
const PAGE: u64 = 0x1000;
/// GiB that they map to themselves: all below 4, for there is everything that a loader places.
const MAPPED_GIB: u64 = 4;
const _: () = assert!(layout::PAGE_TABLES + (2 + MAPPED_GIB) * PAGE <= layout::GDT);
/// Selectors at entry: `__BOOT_CS` and `__BOOT_DS`.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
/// Their descriptors: 64-bit code, flat data (SDM vol. 3A, 3.4.5).
const GDT: [u64; 4] = [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF];
/// Control registers at entry: protection, the fixed bit ET, paging; PAE; LME and LMA.
const CR0: u64 = 1 << 0 | 1 << 4 | 1 << 31;
const CR4: u64 = 1 << 5;
const EFER: u64 = 1 << 8 | 1 << 10;

/// What can go wrong while the hand-over is written. None of it is the user's doing.
#[derive(Debug, Error)]
pub enum LinuxError {
    /// linux-loader could not place the zero page.
    #[error("cannot place the zero page: {0}")]
    Place(#[source] linux_loader::configurator::Error),
    /// Something else could not be placed.
    #[error("cannot place the {0}: {1}")]
    Write(&'static str, #[source] vm_memory::GuestMemoryError),
    /// The host has no random numbers.
    #[error("the host gives no random numbers: {0}")]
    Random(#[source] std::io::Error),
}

/// What is handed over besides the header.
#[derive(Clone, Copy, Debug)]
pub struct HandOver<'a> {
    /// The command line.
    pub cmdline: &'a str,
    /// The initial RAM disk.
    pub initrd: Option<Module>,
    /// Where ACPI begins.
    pub rsdp: u64,
    /// Bytes of the exit page, if there is one.
    pub exit_page: Option<u64>,
}

/// The header for a kernel that comes without one, an ELF: only what a kernel looks at that was
/// entered by the 64-bit protocol.
pub fn bare_header() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: MAGIC,
        version: 0x020F,
        ..setup_header::default()
    }
}

/// Writes what a kernel with this header finds at its entry, but for the command line, which
/// [`pvh::write`] writes.
pub fn write(
    memory: &Memory,
    header: &setup_header,
    hand_over: &HandOver<'_>,
) -> Result<(), LinuxError> {
    write_seed(memory)?;
    write_tables(memory)?;
    let params = zero_page(memory, header, hand_over);
    let params = BootParams::new(&params, GuestAddress(layout::ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, memory).map_err(LinuxError::Place)
}

/// The zero page: nothing of a BIOS, a screen or a disk in it.
fn zero_page(memory: &Memory, header: &setup_header, hand_over: &HandOver<'_>) -> boot_params {
    let mut params = boot_params {
        hdr: *header,
        acpi_rsdp_addr: hand_over.rsdp,
        ..boot_params::default()
    };
    let hdr = &mut params.hdr;
    hdr.type_of_loader = LOADER_UNDEFINED;
    hdr.cmd_line_ptr = layout::CMDLINE as u32;
    hdr.cmdline_size = hand_over.cmdline.len() as u32;
    hdr.setup_data = layout::SETUP_DATA;
    if let Some(initrd) = hand_over.initrd {
        // Below 4 GiB, where all modules are.
        hdr.ramdisk_image = initrd.start as u32;
        hdr.ramdisk_size = initrd.bytes as u32;
    }
    let map = pvh::memory_map(memory, hand_over.exit_page);
    params.e820_entries = map.len() as u8;
    for (to, from) in params.e820_table.iter_mut().zip(&map) {
        // The types are those of ACPI in both (6.5, 15.2).
        *to = boot_e820_entry {
            addr: from.addr,
            size: from.size,
            r#type: from.type_,
        };
    }
    params
}

/// A `setup_data` of type SETUP_RNG_SEED: the kernel's random numbers are good from the start, and it
/// waits for nobody. It wipes the seed when it has taken it. A firmware finds it as a module, whose address
/// it passes on.
pub fn write_seed(memory: &Memory) -> Result<Module, LinuxError> {
    let mut seed = [0; SEED];
    // SAFETY: getrandom writes at most SEED bytes to `seed`, which has as many.
    let got = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), SEED, 0) };
    if got != SEED as isize {
        return Err(LinuxError::Random(std::io::Error::last_os_error()));
    }
    let mut data = [0; SETUP_DATA_HEADER + SEED];
    data[8..12].copy_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    data[12..16].copy_from_slice(&(SEED as u32).to_le_bytes());
    data[SETUP_DATA_HEADER..].copy_from_slice(&seed);
    memory
        .write_slice(&data, GuestAddress(layout::SETUP_DATA))
        .map_err(|e| LinuxError::Write("random seed", e))?;
    Ok(Module {
        name: SETUP_DATA_MODULE,
        start: layout::SETUP_DATA,
        bytes: data.len() as u64,
    })
}

/// Page tables that map the first 4 GiB to themselves, and the GDT.
fn write_tables(memory: &Memory) -> Result<(), LinuxError> {
    let put = |at: u64, entries: &[u64]| {
        let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_le_bytes()).collect();
        memory
            .write_slice(&bytes, GuestAddress(at))
            .map_err(|e| LinuxError::Write("page tables", e))
    };
    let pointers = layout::PAGE_TABLES + PAGE;
    let directories = pointers + PAGE;
    put(layout::PAGE_TABLES, &[pointers | TABLE])?;
    for gib in 0..MAPPED_GIB {
        let directory = directories + gib * PAGE;
        put(pointers + gib * 8, &[directory | TABLE])?;
        let large = (0..ENTRIES).map(|i| gib << 30 | i << 21 | LARGE);
        put(directory, &large.collect::<Vec<u64>>())?;
    }
    put(layout::GDT, &GDT)
}

/// General registers at entry.
pub fn registers(entry: u64) -> kvm_regs {
    kvm_regs {
        rip: entry,
        rsi: layout::ZERO_PAGE,
        // Bit 1 is always 1 (SDM vol. 1, 3.4.3).
        rflags: 2,
        ..Default::default()
    }
}

/// Segment and control registers at entry: 64-bit mode.
pub fn set_system_registers(sregs: &mut kvm_sregs) {
    let segment = |selector, type_, db, l| kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db,
        s: 1,
        l,
        g: 1,
        ..Default::default()
    };
    sregs.cs = segment(CODE, 0xB, 0, 1);
    let data = segment(DATA, 0x3, 1, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // A busy 64-bit TSS: VMX wants one (SDM vol. 3C, 28.3.1.2).
    sregs.tr = kvm_segment {
        base: 0,
        limit: 0x67,
        selector: 0,
        type_: 0xB,
        present: 1,
        ..Default::default()
    };
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = size_of_val(&GDT) as u16 - 1;
    sregs.cr0 = CR0;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 = CR4;
    sregs.efer = EFER;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(initrd: Option<Module>) -> (crate::memory::Ram, boot_params) {
        let memory = crate::memory::map(8 << 20).unwrap();
        let header = crate::boot::bzimage::tests::header();
        let hand_over = HandOver {
            cmdline: "quiet",
            initrd,
            rsdp: layout::ACPI,
            exit_page: None,
        };
        write(&memory, &header, &hand_over).unwrap();
        let params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
        (memory, params)
    }

    #[test]
    fn the_zero_page_points_at_everything() {
        let (_, params) = written(Some(Module {
            name: "initrd",
            start: 0x40_0000,
            bytes: 7,
        }));
        let hdr = params.hdr;
        assert_eq!({ hdr.header }, MAGIC);
        assert_eq!((hdr.type_of_loader, { hdr.xloadflags }), (0xFF, 0x7F));
        assert_eq!({ hdr.cmd_line_ptr }, 0x1_0000);
        assert_eq!(
            ({ hdr.ramdisk_image }, { hdr.ramdisk_size }),
            (0x40_0000, 7)
        );
        assert_eq!({ params.acpi_rsdp_addr }, layout::ACPI);
        let map: Vec<_> = params.e820_table[..params.e820_entries.into()]
            .iter()
            .map(|e| (e.addr, e.size, e.r#type))
            .collect();
        let expected = [
            (0, 0xA_0000, 1),
            (0xA_0000, 0x4_0000, 2),
            (0xE_0000, 0x2_0000, 3),
            (0x10_0000, 7 << 20, 1),
        ];
        assert_eq!(map, expected);
        // What the sentinel guards is empty.
        assert_eq!(params.sentinel, 0);
    }

    #[test]
    fn a_seed_is_there_and_never_the_same() {
        let seed = || {
            let (memory, params) = written(None);
            assert_eq!({ params.hdr.setup_data }, layout::SETUP_DATA);
            let mut data = [0; SETUP_DATA_HEADER + SEED];
            let at = GuestAddress(layout::SETUP_DATA);
            memory.read_slice(&mut data, at).unwrap();
            let head = [0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 32, 0, 0, 0];
            assert_eq!(data[..SETUP_DATA_HEADER], head);
            data
        };
        assert_ne!(seed(), seed());
    }

    #[test]
    fn the_first_4_gib_are_mapped_to_themselves() {
        let (memory, _) = written(None);
        let entry = |table: u64, index: u64| -> u64 {
            memory.read_obj(GuestAddress(table + index * 8)).unwrap()
        };
        for address in [0, 0x8000, 0x1234_5678, 0xBFFF_FFFF, 0xFFFF_FFFF_u64] {
            let pointers = entry(layout::PAGE_TABLES, address >> 39);
            let directory = entry(pointers & !0xFFF, address >> 30);
            let page = entry(directory & !0xFFF, address >> 21 & 511);
            assert_eq!((pointers & 0xFFF, directory & 0xFFF), (3, 3));
            assert_eq!(page, address & !0x1F_FFFF | 0x83);
        }
        assert_eq!(entry(layout::PAGE_TABLES, 1), 0);
        assert_eq!(entry(layout::PAGE_TABLES + PAGE, 4), 0);
    }
}
