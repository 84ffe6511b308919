//! Guest memory: regions, and the slots by which KVM knows them.

use std::io;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::layout;

/// Guest memory, as everything here uses it.
pub type Memory = GuestMemoryMmap<()>;

/// What can go wrong with memory.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host would not map it.
    #[error("cannot map {0} MiB of guest memory: {1}. Give less with --memory")]
    Map(u64, #[source] vm_memory::mmap::FromRangesError),
    /// KVM would not take a slot.
    #[error("KVM refuses guest memory at {0:#x}: {1}")]
    Slot(u64, #[source] io::Error),
    /// A region is not backed by host memory.
    #[error("guest memory at {0:#x} has no host address")]
    Host(u64),
}

/// Maps `size` bytes as [`layout::ram_regions`] places them. Nothing is touched: a page costs
/// the host something only when the guest uses it.
pub fn map(size: u64) -> Result<Memory, MemoryError> {
    let regions: Vec<(GuestAddress, usize)> = layout::ram_regions(size)
        .into_iter()
        .map(|(start, len)| (GuestAddress(start), len as usize))
        .collect();
    Memory::from_ranges(&regions).map_err(|e| MemoryError::Map(size >> 20, e))
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
