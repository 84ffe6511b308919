//! The kernel's own page tables: its image by 4 KiB pages with the rights of each section, the
//! rest of RAM by 2 MiB pages, and the few pages of devices, uncached. RAM above 1 GiB is mapped
//! when it is first wanted; the exit page where there is one, to be read.
//!
//! Nearly all of it is constants of the image, because every instruction counts on an interpreted
//! CPU: left for run time are the links, the image's rights and how much RAM there is.

use core::sync::atomic::{AtomicU64, Ordering};

extern crate alloc;
use alloc::alloc::{Layout, alloc_zeroed};

use super::lapic;

/// Present, accessed, dirty: a CPU that emulates paging need not set the two.
const PRESENT: u64 = 0x61;
const WRITABLE: u64 = 1 << 1;
/// PWT and PCD: uncached with the page-attribute table of reset.
const UNCACHED: u64 = 3 << 3;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const TABLE: u64 = PRESENT | WRITABLE;
pub(super) const READ_ONLY: u64 = PRESENT | NO_EXECUTE;
pub(super) const DATA: u64 = PRESENT | WRITABLE | NO_EXECUTE;
const CODE: u64 = PRESENT;

/// RAM beyond this is mapped when it is wanted.
pub const MAPPED_MAX: u64 = 1 << 30;
/// What one page-directory-pointer table reaches; RAM beyond is left alone.
pub const REACH: u64 = 512 << 30;
/// Bytes of a large page; the first is mapped by small ones.
pub const LARGE_PAGE: u64 = 2 << 20;
/// Bytes of a small page.
pub const PAGE: u64 = 4096;
/// Where a PC's low RAM ends, and where RAM goes on.
const LOW_END: u64 = 0xA_0000;
const HIGH_START: u64 = 0x10_0000;

/// A table of any level.
#[repr(C, align(4096))]
pub(super) struct Table([AtomicU64; 512]);

impl Table {
    const fn empty() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }

    /// Writes an entry; nothing if there is no such.
    pub(super) fn set(&self, index: usize, entry: u64) {
        if let Some(slot) = self.0.get(index) {
            slot.store(entry, Ordering::Relaxed);
        }
    }

    /// Makes an entry lead to the next table.
    pub(super) fn link(&self, index: usize, next: &Table) {
        // Memory is mapped one to one, so that an address is a physical one.
        self.set(index, &raw const *next as u64 | TABLE);
    }

    /// Takes all entries away.
    #[cfg(target_os = "none")]
    pub(super) fn clear(&self) {
        // SAFETY: the store fills this table and no more, and its entries are atomics: it may be
        // written through a shared reference. By quadwords, which an interpreted CPU does fastest.
        unsafe {
            core::arch::asm!("rep stosq", inout("rcx") 512_u64 => _, in("rax") 0_u64,
                inout("rdi") self.0.as_ptr() => _, options(nostack, preserves_flags));
        }
    }

    /// Takes all entries away.
    #[cfg(not(target_os = "none"))]
    pub(super) fn clear(&self) {
        (0..512).for_each(|index| self.set(index, 0));
    }
}

/// The root; the entry of the other CPUs refers to it by name.
#[unsafe(export_name = "KERNEL_PML4")]
static PML4: Table = Table::empty();
static PDPT: Table = Table::empty();
/// 0–1 GiB.
static RAM: Table = Table::empty();
/// 0–2 MiB: low RAM and the image. Page 0 stays unmapped, for null pointers.
static FIRST: Table = first();
/// 3–4 GiB.
static DEVICES: Table = devices();

const fn first() -> Table {
    let mut table = [const { AtomicU64::new(0) }; 512];
    let mut page = 1;
    while page < 512 {
        let address = page as u64 * PAGE;
        if address < LOW_END || address >= HIGH_START {
            table[page] = AtomicU64::new(address | DATA);
        }
        page += 1;
    }
    Table(table)
}

const fn devices() -> Table {
    let mut table = [const { AtomicU64::new(0) }; 512];
    let addresses = [exit_abi::SCRATCH_PAGE, lapic::IO_APIC, lapic::BASE];
    let mut i = 0;
    while i < addresses.len() {
        let address = addresses[i] & !(LARGE_PAGE - 1);
        table[(address >> 21) as usize & 511] = AtomicU64::new(address | DATA | UNCACHED | LARGE);
        i += 1;
    }
    Table(table)
}

/// The large pages that lie wholly in a range of RAM, from the second up to [`MAPPED_MAX`].
fn large_pages(start: u64, length: u64) -> core::ops::Range<u64> {
    let end = start.saturating_add(length).min(MAPPED_MAX) / LARGE_PAGE;
    let first = start.div_ceil(LARGE_PAGE).max(1);
    first..end.max(first)
}

/// Maps a range of RAM, as far as it fills large pages below [`MAPPED_MAX`].
pub fn map_ram(start: u64, length: u64) {
    for page in large_pages(start, length) {
        RAM.set(page as usize, (page * LARGE_PAGE) | DATA | LARGE);
    }
}

/// Maps the page of a device that a tree names, unless it is among those that are always mapped;
/// `false` if our tables do not reach it (they do from 3 to 4 GiB).
pub fn map_device(address: u64) -> bool {
    if address >> 30 != 3 {
        return false;
    }
    let page = address & !(LARGE_PAGE - 1);
    DEVICES.set((page >> 21) as usize & 511, page | DATA | UNCACHED | LARGE);
    true
}

/// Maps memory between 3 and 4 GiB that is neither RAM nor a device, by large pages, to be read
/// alone; `false`, and nothing mapped, if something else is mapped in one of them, or it lies
/// elsewhere.
pub fn map_memory(start: u64, size: u64) -> bool {
    let Some(last) = start.checked_add(size.max(1) - 1) else {
        return false;
    };
    if start >> 30 != 3 || last >> 30 != 3 {
        return false;
    }
    let pages = || (start / LARGE_PAGE..=last / LARGE_PAGE).map(|n| n * LARGE_PAGE);
    let slot = |page: u64| (page >> 21) as usize & 511;
    let free = |page: u64| {
        let entry = DEVICES.0[slot(page)].load(Ordering::Relaxed);
        entry == 0 || entry == page | READ_ONLY | LARGE
    };
    if !pages().all(free) {
        return false;
    }
    pages().for_each(|page| DEVICES.set(slot(page), page | READ_ONLY | LARGE));
    true
}

/// Maps the large page of RAM at an address, if it is not mapped yet; `false` if it is out of
/// reach, or there is no memory for a table.
pub fn map_large_page(address: u64) -> bool {
    if address >= REACH {
        return false;
    }
    let gigabyte = (address >> 30) as usize & 511;
    let Some(slot) = PDPT.0.get(gigabyte) else {
        return false;
    };
    if slot.load(Ordering::Relaxed) == 0 {
        // SAFETY: a table's size is not zero.
        let table = unsafe { alloc_zeroed(Layout::new::<Table>()) };
        if table.is_null() {
            return false;
        }
        slot.store(table as u64 | TABLE, Ordering::Relaxed);
    }
    let table = slot.load(Ordering::Relaxed) & !0xFFF;
    // SAFETY: every entry of PDPT was made by `link` or just above: it points to a table of ours,
    // aligned, initialised, mapped one to one and never freed, and tables are all atomics.
    let table = unsafe { &*(table as *const Table) };
    let page = (address >> 21) as usize & 511;
    if table.0[page].load(Ordering::Relaxed) == 0 {
        table.set(page, address & !(LARGE_PAGE - 1) | DATA | LARGE);
    }
    true
}

/// Makes one page below 1 MiB executable and read-only: what has been written there is code now.
pub fn make_code(page: u64) {
    FIRST.set((page / PAGE) as usize, page | CODE);
    super::cpu::forget_page(page);
}

/// Gives the image's pages their rights, takes the guard page away, links the tables and
/// switches to them. RAM comes first, by [`map_ram`].
#[cfg(target_os = "none")]
pub fn install() {
    unsafe extern "sysv64" {
        static __text_start: u8;
        static __text_end: u8;
        static __rodata_start: u8;
        static __rodata_end: u8;
        static boot_stack_guard: u8;
    }
    let rights = |from: *const u8, to: *const u8, rights: u64| {
        let mut address = from as u64;
        while address < to as u64 {
            FIRST.set((address / PAGE) as usize, address | rights);
            address += PAGE;
        }
    };
    rights(&raw const __text_start, &raw const __text_end, CODE);
    rights(
        &raw const __rodata_start,
        &raw const __rodata_end,
        READ_ONLY,
    );
    FIRST.set((&raw const boot_stack_guard as u64 / PAGE) as usize, 0);
    PML4.link(0, &PDPT);
    PDPT.link(0, &RAM);
    PDPT.link(3, &DEVICES);
    RAM.link(0, &FIRST);
    // SAFETY: the tables live as long as the kernel and map its code, data and stack where they
    // are, with the rights they need; the linker script asserts that all lie in the first 2 MiB.
    // What they do not map (start info, beyond RAM) is not used after this.
    unsafe { load_root(&raw const PML4 as u64) }
}

/// The entry of our root that maps all of the kernel and RAM, for roots of other address spaces.
pub(super) fn kernel_entry() -> u64 {
    PML4.0[0].load(Ordering::Relaxed)
}

/// Back to our own tables, from those of another address space.
pub(super) fn load_own() {
    // SAFETY: `install` has switched to them before, and they only ever map more.
    unsafe { load_root(&raw const PML4 as u64) }
}

/// Switches to the tables of a root.
///
/// # Safety
///
/// Its first entry is [`kernel_entry`], or it is our own root, filled; it and the tables that it
/// leads to stay what they are while they are in use.
pub(super) unsafe fn load_root(root: u64) {
    // SAFETY: the kernel is mapped as before, as the caller promises.
    #[cfg(target_os = "none")]
    unsafe {
        core::arch::asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags));
    }
    let _ = root;
}

/// The host has its own page tables.
#[cfg(not(target_os = "none"))]
pub fn install() {
    let _ = (READ_ONLY, &PML4, &FIRST, &DEVICES, Table::link);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(table: &Table, index: usize) -> u64 {
        table.0[index].load(Ordering::Relaxed)
    }

    #[test]
    fn the_first_pages() {
        assert_eq!(entry(&FIRST, 0), 0);
        assert_eq!(entry(&FIRST, 1), 0x8000_0000_0000_1063);
        assert_eq!(entry(&FIRST, 0xA0), 0);
        assert_eq!(entry(&FIRST, 0x100), 0x8000_0000_0010_0063);
    }

    #[test]
    fn devices_are_uncached_and_not_executable() {
        let writable = |i: &usize| entry(&DEVICES, *i) & WRITABLE != 0;
        let mapped: Vec<_> = (0..512).filter(writable).collect();
        assert_eq!(mapped, [0x080, 0x1F6, 0x1F7]);
        assert!(!map_device(0xBFFF_F000) && !map_device(1 << 32));
        assert!(map_device(lapic::BASE));
        assert_eq!(entry(&DEVICES, 0x1F7), 0x8000_0000_FEE0_00FB);
    }

    #[test]
    fn memory_is_mapped_where_no_device_is() {
        assert!(map_memory(0xD71F_F000, 0x2000));
        for (index, page) in [(0xB8, 0xD700_0000), (0xB9, 0xD720_0000)] {
            assert_eq!(entry(&DEVICES, index), page | 0x8000_0000_0000_00E1);
        }
        assert!(map_memory(0xD700_0000, 4096), "as before");
        assert!(
            !map_memory(0xD01F_F000, 4096),
            "the scratch page's large page"
        );
        assert!(!map_memory(0xFEB0_0000, 0x20_0000), "the IOAPIC's");
        assert!(!map_memory(0xBFFF_F000, 0x2000) && !map_memory(0xFFFF_F000, 0x2000));
        assert!(!map_memory(0xD700_0000, u64::MAX));
    }

    #[test]
    fn only_whole_large_pages_of_ram() {
        assert_eq!(large_pages(0x10_0000, 63 << 20), 1..32);
        assert_eq!(large_pages(0x10_0000, 0x1F_FFFF), 1..1);
        assert_eq!(large_pages(0x30_0000, 0x30_0000), 2..3);
        assert_eq!(large_pages(0, u64::MAX), 1..512);
        assert_eq!(large_pages(u64::MAX, u64::MAX).count(), 0);
        assert_eq!(large_pages(4 << 30, 1 << 30).count(), 0);
    }
}
