//! Kernel modules besides KVM's: drivers of virtio devices for Linux guests, and what a lab itself
//! needs for them. Debian's cloud kernels have most of them as modules, and which ones differs from
//! kernel to kernel (`modules.builtin`).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::cpio::Archive;
use super::kernel::{self, Kernel, Module};
use super::packages::Packages;

/// All that is kept of a kernel's package. A name that is missing there is built into the kernel.
const DRIVERS: [&str; 7] = [
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "virtio_rng",
    "tun",
];

/// What a guest with every device of exitvisor's needs, the transport first.
pub(crate) const GUEST: [&str; 5] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "virtio_rng",
];
/// What it needs to speak on `hvc0`.
pub(crate) const CONSOLE: [&str; 2] = ["virtio_mmio", "virtio_console"];
/// What a host needs to open a TAP.
pub(crate) const TAP: &str = "tun";

/// In the folder of drivers: the modules.
const MODULES: &str = "modules";

/// These drivers and what they depend on, in the order of loading; those that are built into the
/// kernel are left out. Fetched first if they are not there yet.
pub(crate) fn drivers(
    packages: &Packages,
    kernel: &Kernel,
    names: &[&str],
) -> anyhow::Result<Vec<Module>> {
    let folder = match &packages.own.kernel_image {
        Some(_) => own(packages)?,
        None => of_kernel(packages, &kernel.release)?.join(MODULES),
    };
    kernel::in_order(names, &folder)
}

/// Debian's, from the package of this very kernel, so that they fit.
fn of_kernel(packages: &Packages, release: &str) -> anyhow::Result<PathBuf> {
    packages.once(&format!("drivers-{release}"), |apt, folder| {
        let unpacked = folder.join("unpacked");
        let list = apt.unpack_alone(&format!("linux-image-{release}"), &unpacked)?;
        kernel::unpack(&DRIVERS, &unpacked, &folder.join(MODULES))?;
        fs::remove_dir_all(&unpacked)?;
        Ok(list)
    })
}

/// Those of a kernel that the user named; none without `--modules`.
fn own(packages: &Packages) -> anyhow::Result<PathBuf> {
    let to = packages.folder.join("own").join("drivers");
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    if let Some(modules) = &packages.own.modules {
        kernel::unpack(&DRIVERS, modules, &to)?;
    }
    Ok(to)
}

/// Puts modules into an initramfs, with a list of their names in the order of loading:
/// `/modules/order`.
pub(crate) fn carry(modules: &[Module], archive: &mut Archive) -> anyhow::Result<()> {
    let folder = Path::new("/modules");
    let mut order = String::new();
    for module in modules {
        let bytes = fs::read(&module.file);
        let bytes = bytes.with_context(|| format!("cannot read {}", module.file.display()))?;
        let name = format!("{}.ko", module.name);
        archive.file(&folder.join(&name), 0o644, bytes);
        order = order + &name + "\n";
    }
    archive.file(&folder.join("order"), 0o644, order.into_bytes());
    Ok(())
}
