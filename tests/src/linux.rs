//! Linux guests, which the labs bring along.

use std::path::{Path, PathBuf};

use crate::{Run, arg, run, skip};

/// Long enough for a boot at the speed of a lab on a busy machine.
pub const LIMIT: &str = "120s";

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

/// Initramfs whose `/init` loads the drivers of a virtio console first.
pub struct Console {
    /// For [`Guest::old`].
    pub old: PathBuf,
    /// For [`Guest::new`].
    pub new: PathBuf,
}

/// Those, or a word on why there are none.
pub fn console(test: &str) -> Option<Console> {
    let file = |name| std::env::var_os(name).map(PathBuf::from);
    let found = || {
        Some(Console {
            old: file("EXITVISOR_HVC0_6_1")?,
            new: file("EXITVISOR_HVC0_6_12")?,
        })
    };
    let found = found();
    if found.is_none() {
        skip(
            test,
            "hvc0's drivers are there in the labs: cargo xtask test --on amd-lab",
        );
    }
    found
}

impl Guest {
    /// Boots a kernel and profiles it.
    #[track_caller]
    pub fn boot(&self, kernel: &Path, arguments: &str, options: &[&str]) -> Run {
        let cmdline = format!("console=ttyS0 panic=-1 rdinit=/init quiet {arguments}");
        run(&self.profile(kernel, &cmdline, options))
    }

    /// The arguments that profile a boot of a kernel with the initramfs.
    pub fn profile<'a>(
        &'a self,
        kernel: &'a Path,
        cmdline: &'a str,
        options: &[&'a str],
    ) -> Vec<&'a str> {
        let standard = [
            "profile",
            "--kernel",
            arg(kernel),
            "--initrd",
            arg(&self.initramfs),
            "--memory",
            "256M",
            "--cmdline",
            cmdline,
            "--timeout",
            LIMIT,
            "--format",
            "json",
        ];
        [&standard[..], options].concat()
    }
}
