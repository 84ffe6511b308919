//! Linux guests, which the labs bring along.

use std::path::PathBuf;

use crate::skip;

/// What the labs bring along.
pub struct Guest {
    /// Debian's 6.1 kernel.
    pub old: PathBuf,
    /// Debian's 6.12 kernel.
    pub new: PathBuf,
    /// A small initramfs: it says that user space is there, and powers off.
    pub initramfs: PathBuf,
    /// The 6.1 kernel, unpacked.
    pub vmlinux: PathBuf,
}

/// The guests, or a word on why there are none.
pub fn guest(test: &str) -> Option<Guest> {
    let file = |name| std::env::var_os(name).map(PathBuf::from);
    let found = || {
        Some(Guest {
            old: file("EXITVISOR_LINUX_6_1")?,
            new: file("EXITVISOR_LINUX_6_12")?,
            initramfs: file("EXITVISOR_INITRAMFS")?,
            vmlinux: file("EXITVISOR_VMLINUX")?,
        })
    };
    let found = found();
    if found.is_none() {
        skip(
            test,
            "Linux is booted in the labs: cargo xtask test --on amd-lab",
        );
    }
    found
}
