//! A whole Debian as a guest: a root file system image with systemd, and an initramfs with the virtio
//! drivers for it, for the kernels that the labs have.
//!
//! The image is made once and kept ([`pristine`]). What is booted is a copy of it ([`disk`]), which
//! keeps its data until `--fresh`.

mod bootstrap;
mod ext4;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::disk::Disk;
use super::packages::{Packages, RELEASE};
use super::{Job, Own, Version, drivers, guest, packages};
use crate::build;

/// A Debian that can be booted.
#[derive(Clone, Debug)]
pub(crate) struct Debian {
    /// Its kernel, a bzImage.
    pub(crate) kernel: PathBuf,
    /// The initramfs.
    pub(crate) initrd: PathBuf,
    /// The disk: a raw image that keeps what is written to it.
    pub(crate) disk: PathBuf,
}

/// The initramfs's `/init`.
const INIT: &str = include_str!("init.sh");
/// In the folder of the image as it was made.
const IMAGE: &str = "root.img";
/// The disk, beside the other guests.
const DISK: &str = "debian.img";

/// A Debian on this kernel; what is not there yet is fetched and made first. `fresh`: as it was made,
/// all that was ever written to its disk is gone.
pub(crate) fn fetched(own: &Own, version: Version, fresh: bool) -> anyhow::Result<Debian> {
    let packages = packages(own)?;
    let kernel = version.kernel(&packages)?;
    let initrd = initramfs(&packages, version, &kernel)?;
    Ok(Debian {
        kernel: kernel.image,
        initrd,
        disk: disk(&packages, fresh)?,
    })
}

/// The variables by which tests find a Debian: its kernel and its initramfs, for 6.1 and 6.12, and the
/// disk; or why there is none.
const VARIABLES: [[&str; 2]; 2] = [
    ["EXITVISOR_LINUX_6_1", "EXITVISOR_DEBIAN_6_1"],
    ["EXITVISOR_LINUX_6_12", "EXITVISOR_DEBIAN_6_12"],
];
const DISK_VARIABLE: &str = "EXITVISOR_DEBIAN_DISK";
const WHY_NONE: &str = "EXITVISOR_DEBIAN_MISSING";

/// Carries a Debian into the AMD lab for tests, as it was made; what they write to its disk stays as long
/// as the lab does. Where none can be made, tests are told why.
pub(crate) fn carry(job: &mut Job) -> anyhow::Result<()> {
    let packages = packages(&job.own)?;
    let file = match pristine(&packages) {
        Ok(file) => file,
        Err(error) => {
            job.env.push((WHY_NONE.into(), format!("{error:#}").into()));
            return Ok(());
        }
    };
    for (version, names) in [Version::V6_1, Version::V6_12].into_iter().zip(VARIABLES) {
        let kernel = version.kernel(&packages)?;
        let initrd = initramfs(&packages, version, &kernel)?;
        for (name, file) in names.into_iter().zip([kernel.image, initrd]) {
            job.env.push((name.into(), file.clone().into()));
            job.files.push(file);
        }
    }
    job.env.push((DISK_VARIABLE.into(), file.clone().into()));
    let writable = false;
    job.disks.push(Disk { file, writable });
    Ok(())
}

/// The drivers, the init, and `exitlog`, always as it is built now.
fn initramfs(
    packages: &Packages,
    version: Version,
    kernel: &super::Kernel,
) -> anyhow::Result<PathBuf> {
    let modules = drivers::drivers(packages, kernel, &drivers::GUEST)?;
    let [exitlog, _] = build::exitlog()?;
    let exitlog =
        fs::read(&exitlog).with_context(|| format!("cannot read {}", exitlog.display()))?;
    let name = format!("debian-{}", version.name());
    guest::initramfs(packages, &name, INIT, |archive| {
        for folder in ["/root", "/run"] {
            archive.folder(Path::new(folder));
        }
        archive.file(Path::new("/exitlog"), 0o755, exitlog);
        drivers::carry(&modules, archive)
    })
}

/// The image as it was made, from packages of Debian's, by our recipe. A change of the recipe makes
/// another one.
fn pristine(packages: &Packages) -> anyhow::Result<PathBuf> {
    let name = format!("debian-{RELEASE}-{:08x}", recipe());
    if !packages.has(&name) {
        eprintln!("xtask: making a Debian, once: some 70 MB are fetched, and it takes a minute");
        // Before the other, as each takes the same lock.
        let mmdebstrap = bootstrap::fetched(packages)?;
        let tools = ext4::Tools::fetched(packages)?;
        packages.once(&name, |apt, folder| {
            let (tar, root) = (folder.join("root.tar"), folder.join("root"));
            bootstrap::bootstrap(apt, &mmdebstrap, &tar)?;
            tools.make(&tar, &root, &folder.join(IMAGE))?;
            let status = root.join("var/lib/dpkg/status");
            let status = fs::read_to_string(&status)
                .with_context(|| format!("cannot read {}", status.display()))?;
            fs::remove_dir_all(&root)?;
            fs::remove_file(&tar)?;
            Ok(installed(&status))
        })?;
    }
    Ok(packages.folder.join(&name).join(IMAGE))
}

/// What is installed, from dpkg's own list: `package_version`.
fn installed(status: &str) -> Vec<String> {
    let mut list = Vec::new();
    let mut package = "";
    for line in status.lines() {
        if let Some(name) = line.strip_prefix("Package: ") {
            package = name;
        } else if let Some(version) = line.strip_prefix("Version: ") {
            list.push(format!("{package}_{version}"));
        }
    }
    list
}

/// A number for all that decides what the image is, but for the packages' versions.
fn recipe() -> u32 {
    let parts = [
        bootstrap::PACKAGES.join(" "),
        bootstrap::CUSTOMIZE.to_owned(),
        ext4::FORMAT.join(" "),
        ext4::SIZE_MIB.to_string(),
    ];
    crc32fast::hash(parts.join("\n").as_bytes())
}

/// The disk that is booted from.
fn disk(packages: &Packages, fresh: bool) -> anyhow::Result<PathBuf> {
    let path = packages.folder.join("guest").join(DISK);
    if path.exists() && !fresh {
        return Ok(path);
    }
    let image = pristine(packages)?;
    let partial = path.with_extension(format!("{}", std::process::id()));
    let copied = sparse_copy(&image, &partial).and_then(|()| fs::rename(&partial, &path));
    copied.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Copies a file; blocks of zeros become holes.
fn sparse_copy(from: &Path, to: &Path) -> std::io::Result<()> {
    const BLOCK: usize = 64 << 10;
    let (mut from, mut to) = (File::open(from)?, File::create(to)?);
    let size = from.metadata()?.len();
    let mut block = vec![0; BLOCK];
    loop {
        let mut filled = 0;
        while filled < BLOCK {
            match from.read(&mut block[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        if filled == 0 {
            break;
        }
        if block[..filled].iter().all(|byte| *byte == 0) {
            to.seek(SeekFrom::Current(i64::try_from(filled).unwrap_or(0)))?;
        } else {
            to.write_all(&block[..filled])?;
        }
    }
    to.set_len(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_is_installed() {
        let status =
            "Package: a\nStatus: install ok installed\nVersion: 1:2-3\n\nPackage: b\nVersion: 4\n";
        assert_eq!(installed(status), ["a_1:2-3", "b_4"]);
    }

    #[test]
    fn a_copy_has_holes() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        let mut content = vec![0; 1 << 20];
        content[300_000] = 1;
        content.extend(b"the end");
        content.extend([0; 100_000]);
        fs::write(&from, &content).unwrap();
        sparse_copy(&from, &to).unwrap();
        assert!(fs::read(&to).unwrap() == content);
        assert!(to.metadata().unwrap().blocks() * 512 < 300_000);
    }
}
