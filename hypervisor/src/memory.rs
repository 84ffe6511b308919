//! Guest memory: regions, and the slots by which KVM knows them.

mod mapping;
pub mod prefault;
mod usage;

use std::io;
use std::ops::Deref;
use std::str::FromStr;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::config::ConfigError;
use crate::layout;
use mapping::Mapping;
pub use usage::Usage;

/// Guest memory, as everything here uses it.
pub type Memory = GuestMemoryMmap<()>;

/// A huge page: what one entry of a page directory maps (SDM vol. 3A, 5.5.4).
pub const HUGE_PAGE: u64 = 2 << 20;

/// What can go wrong with memory.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host would not map it.
    #[error("cannot map {0} MiB of guest memory: {1}. Give less with --memory")]
    Map(u64, #[source] io::Error),
    /// The host has too few huge pages.
    #[error(
        "--pages huge: {needed} huge pages of 2 MiB are needed, {free} are free: \
         echo {total} | sudo tee /proc/sys/vm/nr_hugepages"
    )]
    HugePages {
        /// How many this guest needs.
        needed: u64,
        /// How many nobody has.
        free: u64,
        /// How many there must be, all in all.
        total: u64,
    },
    /// The host has no such pages at all.
    #[error(
        "--pages {0}: this host's kernel cannot do that ({1}): leave it out, or give --pages 4k"
    )]
    Pages(&'static str, #[source] io::Error),
    /// The host would not fill it in.
    #[error(
        "--prefault: the host cannot fill in all of guest memory: {0}. Give less with --memory"
    )]
    Populate(#[source] io::Error),
    /// KVM has no KVM_PRE_FAULT_MEMORY, or not for this VM.
    #[error(
        "--prefault kvm: this KVM cannot map memory beforehand ({0}): give --prefault touch, or \
         leave it out"
    )]
    NoPrefault(&'static str),
    /// KVM would not map it beforehand.
    #[error("--prefault kvm: KVM cannot map guest memory at {0:#x} beforehand: {1}")]
    Prefault(u64, #[source] io::Error),
    /// KVM would not take a slot.
    #[error("KVM refuses guest memory at {0:#x}: {1}")]
    Slot(u64, #[source] io::Error),
    /// A region is not backed by host memory, or two are in one place.
    #[error("guest memory at {0:#x} has no host address")]
    Host(u64),
}

/// Of what pages the host is to make guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pages {
    /// Huge ones for Linux where the kernel gives some on demand, else as the host is set up.
    #[default]
    Auto,
    /// As the host is set up (/sys/kernel/mm/transparent_hugepage/enabled).
    Host,
    /// Of 4 KiB (MADV_NOHUGEPAGE).
    Small,
    /// Huge ones where the kernel finds some (MADV_HUGEPAGE).
    Transparent,
    /// Of 2 MiB, from the host's pool (MAP_HUGETLB).
    Huge,
}

impl Pages {
    /// All of them, as far as they can be chosen to compare.
    pub const CHOICES: [Self; 3] = [Self::Small, Self::Transparent, Self::Huge];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Host => "host",
            Self::Small => "4k",
            Self::Transparent => "thp",
            Self::Huge => "huge",
        }
    }

    /// What is asked of this host: `Auto` is decided. Linux touches most of its memory's first
    /// megabytes before its first word, and the VMM does before that; the counts of small guests, which
    /// touch little, are to depend on nothing but the host.
    fn decided(self, linux: bool) -> Self {
        match self {
            Self::Auto if linux && gives_huge_pages() => Self::Transparent,
            Self::Auto => Self::Host,
            chosen => chosen,
        }
    }
}

/// Whether the host gives huge pages to who asks by madvise
/// (linux/Documentation/admin-guide/mm/transhuge.rst).
fn gives_huge_pages() -> bool {
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    setting.is_ok_and(|setting| on_demand(&setting))
}

/// The same, from the setting: `always [madvise] never`.
fn on_demand(setting: &str) -> bool {
    ["[always]", "[madvise]"]
        .iter()
        .any(|on| setting.contains(on))
}

impl FromStr for Pages {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, ConfigError> {
        let all = [
            Self::Auto,
            Self::Host,
            Self::Small,
            Self::Transparent,
            Self::Huge,
        ];
        let named = all.into_iter().find(|pages| pages.name() == s);
        named.ok_or_else(|| ConfigError::Pages(s.to_owned()))
    }
}

/// RAM: guest memory and the mappings behind it, which go when it goes.
#[derive(Debug)]
pub struct Ram {
    memory: Memory,
    /// What pages the host was asked for.
    pages: Pages,
    /// After `memory`, so that nothing refers to them when they are unmapped.
    mappings: Vec<Mapping>,
}

impl Deref for Ram {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        &self.memory
    }
}

impl Ram {
    /// What pages the host was asked for: never [`Pages::Auto`].
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// How much of it the host has given, and how much in huge pages; `None` if the host does not say.
    pub fn usage(&self) -> Option<Usage> {
        let ranges: Vec<_> = self.mappings.iter().map(Mapping::range).collect();
        usage::of(&ranges)
    }
}

/// Maps `size` bytes as [`layout::ram_regions`] places them, of whatever pages the host likes. Nothing
/// is touched: a page costs the host something only when the guest uses it.
pub fn map(size: u64) -> Result<Ram, MemoryError> {
    map_of(Pages::Host, false, size)
}

/// The same, of these pages, for Linux or another guest. A region's host address is that of the guest modulo 2 MiB, so that KVM can
/// map by huge pages what the host backs by huge pages.
pub fn map_of(pages: Pages, linux: bool, size: u64) -> Result<Ram, MemoryError> {
    let pages = pages.decided(linux);
    let mut mappings = Vec::new();
    let mut regions = Vec::new();
    for (start, length) in layout::ram_regions(size) {
        let mapping = Mapping::new(start, length, pages).map_err(|error| match pages {
            Pages::Huge => mapping::huge_error(size, error),
            _ => MemoryError::Map(size >> 20, error),
        })?;
        mapping.advise(pages)?;
        let builder = MmapRegionBuilder::new(length as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE);
        // SAFETY: the mapping is `length` bytes from there on, readable and writable, and outlives the
        // region: `Ram` drops it last.
        let builder = unsafe { builder.with_raw_mmap_pointer(mapping.pointer()) };
        let region = builder.build().ok();
        let region = region.and_then(|region| GuestRegionMmap::new(region, GuestAddress(start)));
        regions.push(region.ok_or(MemoryError::Host(start))?);
        mappings.push(mapping);
    }
    let memory = Memory::from_regions(regions).map_err(|_| MemoryError::Host(0))?;
    Ok(Ram {
        memory,
        pages,
        mappings,
    })
}

/// Has the host fill in what is about to be loaded, in one system call: a fault for each page costs as
/// much as the loading itself. A host that cannot (before Linux 5.14) fills it in as it is written.
pub fn expect(memory: &Memory, start: u64, bytes: u64) {
    let Ok(length) = usize::try_from(bytes) else {
        return;
    };
    let Ok(slice) = memory.get_slice(GuestAddress(start), length) else {
        return;
    };
    let host = slice.ptr_guard_mut().as_ptr();
    let page = host.map_addr(|address| address & !0xFFF);
    let length = length + (host as usize - page as usize);
    // SAFETY: the pages are those of a slice of guest memory, which is mapped as a whole; they become
    // present and keep their content.
    unsafe { libc::madvise(page.cast(), length, libc::MADV_POPULATE_WRITE) };
}

/// Gives the regions to KVM, one slot each.
pub fn give_to_kvm(vm: &VmFd, memory: &Memory) -> Result<(), MemoryError> {
    for (slot, region) in memory.iter().enumerate() {
        let start = region.start_addr();
        let host = memory
            .get_host_address(start)
            .map_err(|_| MemoryError::Host(start.raw_value()))?;
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            guest_phys_addr: start.raw_value(),
            memory_size: region.len(),
            userspace_addr: host as u64,
            flags: 0,
        };
        // SAFETY: the mapping is `region.len()` bytes long from `host` on, and lives in `memory`,
        // which the VM's owner keeps until the VM is gone; slots do not overlap, because regions
        // do not.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(|e| MemoryError::Slot(start.raw_value(), e.into()))?;
    }
    Ok(())
}

/// The host's memory in bytes, from `/proc/meminfo`; `None` if it does not say.
pub fn host_total() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
    line.split_whitespace()
        .nth(1)?
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn host_and_guest_addresses_agree_within_a_huge_page() {
        for pages in [Pages::Host, Pages::Small] {
            let ram = map_of(pages, false, 5 << 30).unwrap();
            assert_eq!(ram.num_regions(), 2);
            for region in ram.iter() {
                let start = region.start_addr();
                let host = ram.get_host_address(start).unwrap() as u64;
                assert_eq!(host % HUGE_PAGE, start.0 % HUGE_PAGE);
            }
            ram.write_obj(0x1234_5678_u32, GuestAddress(0x1_7FFF_FFFC))
                .unwrap();
            assert_eq!(
                ram.read_obj::<u32>(GuestAddress(0x1_7FFF_FFFC)).unwrap(),
                0x1234_5678
            );
            assert!(ram.write_obj(0_u32, GuestAddress(0x1_7FFF_FFFD)).is_err());
        }
    }

    #[test]
    fn odd_sizes() {
        for size in [2 << 20, (2 << 20) + 4096, (64 << 20) - 4096] {
            let ram = map(size).unwrap();
            assert_eq!(ram.last_addr().0 + 1, size);
            ram.write_obj(1_u8, GuestAddress(size - 1)).unwrap();
        }
    }

    #[test]
    fn more_huge_pages_than_there_are() {
        let error = map_of(Pages::Huge, false, 1 << 50).unwrap_err();
        let MemoryError::HugePages { needed, total, .. } = error else {
            panic!("{error}");
        };
        assert!(needed == 1 << 29 && total >= needed);
        assert_eq!(error.to_string().lines().count(), 1);
    }

    #[test]
    fn names() {
        for pages in [Pages::Auto, Pages::Host].into_iter().chain(Pages::CHOICES) {
            assert_eq!(pages.name().parse(), Ok(pages));
        }
        assert!("2M".parse::<Pages>().is_err());
    }

    #[test]
    fn auto_is_decided_by_guest_and_host() {
        assert!(on_demand("[always] madvise never\n"));
        assert!(on_demand("always [madvise] never\n"));
        assert!(!on_demand("always madvise [never]\n"));
        assert!(!on_demand(""));
        assert_eq!(Pages::Auto.decided(false), Pages::Host);
        let linux = Pages::Auto.decided(true);
        assert_eq!(linux == Pages::Transparent, gives_huge_pages());
        assert_eq!(map_of(Pages::Auto, true, 8 << 20).unwrap().pages(), linux);
        for pages in [Pages::Host].into_iter().chain(Pages::CHOICES) {
            assert_eq!(pages.decided(true), pages);
        }
    }

    #[test]
    fn what_is_touched_is_resident() {
        let ram = map_of(Pages::Small, false, 8 << 20).unwrap();
        assert_eq!(ram.usage(), Some(Usage::default()));
        for page in 0..100 {
            ram.write_obj(1_u8, GuestAddress(page * 4096)).unwrap();
        }
        let usage = ram.usage().unwrap();
        assert_eq!((usage.resident, usage.huge), (100 * 4096, 0));
    }
}
