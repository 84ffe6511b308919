//! Filling guest memory in before the guest runs, so that its first touch of a page costs no exit.
//!
//! Touched, a page is there but not in KVM's page tables: the guest's first touch still exits (reason
//! 48), and finds it ready. Mapped by KVM itself (KVM_PRE_FAULT_MEMORY, KVM API 4.143, Linux 6.10) it
//! is in the tables too, and nothing exits.

use std::io;
use std::str::FromStr;

use kvm_bindings::{KVM_CAP_PRE_FAULT_MEMORY, KVMIO, kvm_pre_fault_memory};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use super::{MemoryError, Ram};
use crate::config::ConfigError;

/// The one ioctl that kvm-ioctls lacks (KVM API, 4.143).
mod request {
    use super::{KVMIO, kvm_pre_fault_memory};
    vmm_sys_util::ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);
}

/// So much is filled in at a time, bytes: a guest can have more memory than a person who wants it to
/// end has patience.
pub(super) const PART: u64 = 64 << 20;

/// How often in a row KVM may say that it has not got on.
const PATIENCE: u32 = 1000;

/// How guest memory is filled in before the guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefault {
    /// Not at all.
    #[default]
    None,
    /// By the host: every page is there.
    Touch,
    /// By the host, and mapped by KVM.
    Kvm,
}

impl Prefault {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Touch, Self::Kvm];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Touch => "touch",
            Self::Kvm => "kvm",
        }
    }
}

impl FromStr for Prefault {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, ConfigError> {
        let named = Self::ALL.into_iter().find(|how| how.name() == s);
        named.ok_or_else(|| ConfigError::Prefault(s.to_owned()))
    }
}

/// Fills all RAM in. `vcpu` is any of the VM's, before its first run: the page tables are the VM's. Once
/// `stop` says so it goes on no further: the guest will not run for long.
///
/// # Errors
///
/// The host has too little memory, or KVM cannot do what was asked for.
pub fn fill(
    ram: &Ram,
    how: Prefault,
    vm: &VmFd,
    vcpu: &VcpuFd,
    stop: &dyn Fn() -> bool,
) -> Result<(), MemoryError> {
    if how == Prefault::None {
        return Ok(());
    }
    if how == Prefault::Kvm && vm.check_extension_raw(KVM_CAP_PRE_FAULT_MEMORY.into()) <= 0 {
        let why = "KVM_PRE_FAULT_MEMORY: Linux 6.10 or newer has it, with nested paging";
        return Err(MemoryError::NoPrefault(why));
    }
    for mapping in &ram.mappings {
        mapping.populate(stop).map_err(MemoryError::Populate)?;
    }
    if how == Prefault::Kvm {
        for region in ram.iter() {
            let (start, length) = (region.start_addr().raw_value(), region.len());
            for offset in (0..length).step_by(PART as usize) {
                if stop() {
                    return Ok(());
                }
                map_by_kvm(vcpu, start + offset, PART.min(length - offset))?;
            }
        }
    }
    Ok(())
}

/// Has KVM map a range of guest-physical addresses that slots cover.
pub fn map_by_kvm(vcpu: &VcpuFd, start: u64, length: u64) -> Result<(), MemoryError> {
    let mut range = kvm_pre_fault_memory {
        gpa: start,
        size: length,
        ..Default::default()
    };
    let mut idle = 0;
    // KVM moves `gpa` and `size` on by what it has done, and may stop in between.
    while range.size > 0 {
        let before = range.size;
        // SAFETY: KVM_PRE_FAULT_MEMORY reads and writes one `kvm_pre_fault_memory`, which `range` is;
        // the memory it maps belongs to the VM's slots, and nothing of it changes.
        let result =
            unsafe { ioctl_with_mut_ref(vcpu, request::KVM_PRE_FAULT_MEMORY(), &mut range) };
        if result < 0 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) if idle < PATIENCE => {}
                Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL) if range.gpa == start => {
                    let why = "KVM_PRE_FAULT_MEMORY is refused: it needs nested paging";
                    return Err(MemoryError::NoPrefault(why));
                }
                _ => return Err(MemoryError::Prefault(range.gpa, error)),
            }
        }
        idle = match range.size < before {
            true => 0,
            false => idle + 1,
        };
        if idle > PATIENCE {
            let error = io::Error::from_raw_os_error(libc::EAGAIN);
            return Err(MemoryError::Prefault(range.gpa, error));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for how in Prefault::ALL {
            assert_eq!(how.name().parse(), Ok(how));
        }
        assert!("all".parse::<Prefault>().is_err());
    }
}
