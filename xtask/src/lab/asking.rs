//! Linux guests that ask: Debian's kernels with an initramfs that has `exitlog`, its kernel module
//! built against Debian's headers, and Debian's own `cpuid` with the kernel's driver for it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::cpio::Archive;
use super::guest::{self, Guest};
use super::kernel::{self, Kernel};
use super::packages::{Apt, Packages};
use super::{Job, Version, packages, programs};
use crate::{build, workspace};

/// What runs in user space, as init or behind `exitlog`.
const INIT: &str = include_str!("asking.sh");
/// The variables by which tests find the guests: kernels and initramfs, in turn.
const VARIABLES: [[&str; 2]; 2] = [
    ["EXITVISOR_LINUX_6_1", "EXITVISOR_EXITLOG_6_1"],
    ["EXITVISOR_LINUX_6_12", "EXITVISOR_EXITLOG_6_12"],
];
/// Set if there is the kernel module.
const WITH_MODULE: &str = "EXITVISOR_EXITLOG_MODULE";
/// The module, and where its source is.
const MODULE: &str = "exitlog";
const SOURCE: &str = "guest-kernel/linux/module";
/// Drivers that Debian has as modules: of `/dev/cpu/*/cpuid`, and of `/dev/cpu/*/msr`.
const DRIVERS: [&str; 2] = ["cpuid", "msr"];
/// In the folder of a kernel: its drivers, its headers, and where the module is built.
const MODULES: &str = "modules";
const HEADERS: &str = "headers";
const BUILT: &str = "module";

/// Carries the guests into a lab, fetched and made first if they are not there yet.
pub(crate) fn carry(job: &mut Job) -> anyhow::Result<()> {
    let packages = packages(&job.own)?;
    let mut modules = true;
    for (version, names) in [Version::V6_1, Version::V6_12].into_iter().zip(VARIABLES) {
        let (guest, module) = made(&packages, version)?;
        modules &= module;
        for (name, file) in names.into_iter().zip([guest.kernel, guest.initrd]) {
            job.env.push((name.into(), file.clone().into()));
            job.files.push(file);
        }
    }
    if modules {
        job.env.push((WITH_MODULE.into(), "1".into()));
    }
    Ok(())
}

/// The guest of this version; fetched and made first if it is not there yet.
pub(super) fn guest(packages: &Packages, version: Version) -> anyhow::Result<Guest> {
    Ok(made(packages, version)?.0)
}

/// The guest, and whether it has the kernel module.
fn made(packages: &Packages, version: Version) -> anyhow::Result<(Guest, bool)> {
    let kernel = version.kernel(packages)?;
    let [exitlog, abuse] = build::exitlog()?;
    let folder = of_kernel(packages, &kernel)?;
    let module = module(&folder, &kernel.release)?;
    let cpuid = cpuid(packages)?;
    let name = format!("exitlog-{}", version.name());
    let initrd = guest::initramfs(packages, &name, INIT, |archive| {
        program(archive, &exitlog, "/exitlog")?;
        program(archive, &abuse, "/abuse")?;
        // Where a kernel, and `exitlog`, look for the real init.
        archive.link(Path::new("/sbin/init"), "/init".as_ref());
        for (file, at) in &cpuid {
            program(archive, file, at)?;
        }
        let drivers = DRIVERS.map(|name| folder.join(MODULES).join(format!("{name}.ko")));
        for file in drivers.iter().filter(|file| file.exists()).chain(&module) {
            let name = file.file_name().unwrap_or_default();
            program(archive, file, Path::new("/modules").join(name))?;
        }
        Ok(())
    })?;
    let kernel = kernel.image;
    Ok((Guest { kernel, initrd }, module.is_some()))
}

fn program(archive: &mut Archive, file: &Path, at: impl AsRef<Path>) -> anyhow::Result<()> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    archive.file(at.as_ref(), 0o755, bytes);
    Ok(())
}

/// A folder with this very kernel's drivers and headers.
fn of_kernel(packages: &Packages, kernel: &Kernel) -> anyhow::Result<PathBuf> {
    let release = &kernel.release;
    packages.once(&format!("exitlog-{release}"), |apt, folder| {
        let unpacked = folder.join("unpacked");
        let mut list = apt.unpack_alone(&format!("linux-image-{release}"), &unpacked)?;
        kernel::unpack(&DRIVERS, &unpacked, &folder.join(MODULES))?;
        fs::remove_dir_all(&unpacked)?;
        list.extend(headers(apt, release, &folder.join(HEADERS))?);
        Ok(list)
    })
}

/// Unpacks what modules for this kernel are built with, but for the compiler.
fn headers(apt: &Apt<'_>, release: &str, to: &Path) -> anyhow::Result<Vec<String>> {
    let own = format!("linux-headers-{release}");
    let mut list = apt.unpack_alone(&own, to)?;
    for prefix in ["linux-headers-", "linux-kbuild-"] {
        list.extend(apt.unpack_alone(&apt.depends(&own, prefix)?, to)?);
    }
    // It includes another by its place in an installed system.
    let makefile = tree(to, release).join("Makefile");
    let text = fs::read_to_string(&makefile)
        .with_context(|| format!("{own} holds no {}", makefile.display()))?;
    fs::write(&makefile, text.replace("include /usr/src/", "include ../"))?;
    Ok(list)
}

/// The folder in which `make` builds modules for this kernel.
fn tree(headers: &Path, release: &str) -> PathBuf {
    headers.join(format!("usr/src/linux-headers-{release}"))
}

/// Builds the kernel module. None where there is no compiler: a line says so.
fn module(folder: &Path, release: &str) -> anyhow::Result<Option<PathBuf>> {
    for tool in ["make", "gcc"] {
        let probe = Command::new(tool).arg("--version").output();
        if probe.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            eprintln!("xtask: there is no {tool}: guests do without the kernel module {MODULE}");
            return Ok(None);
        }
    }
    let built = folder.join(BUILT);
    fs::create_dir_all(&built)?;
    // Two at once would mix their files.
    let lock = fs::File::create(folder.join("module.lock"))?;
    lock.lock()?;
    let source = workspace::root().join(SOURCE);
    for file in ["exitlog.c", "Kbuild"] {
        let (from, to) = (source.join(file), built.join(file));
        let text = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        // One that has not changed is not compiled again.
        if fs::read(&to).ok().as_ref() != Some(&text) {
            fs::write(&to, text)?;
        }
    }
    let mut make = Command::new("make");
    make.arg("-s")
        .arg("-C")
        .arg(tree(&folder.join(HEADERS), release));
    make.arg(format!("M={}", built.display()));
    // Whichever gcc is there; and type information would need another tool.
    make.args(["CC=gcc", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
    let output = make.output().context("cannot start make")?;
    if !output.status.success() {
        let why = [output.stdout, output.stderr].concat();
        let why = String::from_utf8_lossy(&why);
        bail!("cannot build the kernel module {MODULE}: {}", why.trim());
    }
    let module = built.join(format!("{MODULE}.ko"));
    let stripped = built.join(format!("stripped/{MODULE}.ko"));
    fs::create_dir_all(built.join("stripped"))?;
    let mut objcopy = Command::new("objcopy");
    objcopy.arg("--strip-debug").args([&module, &stripped]);
    let well = objcopy.status().is_ok_and(|status| status.success());
    Ok(Some(if well { stripped } else { module }))
}

/// Debian's `cpuid` with all that it needs: files, and where they lie in the guest.
fn cpuid(packages: &Packages) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    const PROGRAM: &str = "usr/bin/cpuid";
    // What else it depends on is for scripts beside it.
    let tree = packages.tree_alone("cpuid", &["cpuid", "libc6"])?;
    let needs = programs::needs_of(&tree, PROGRAM)?;
    let place = |file: PathBuf| {
        let name = file.file_name().unwrap_or_default().to_owned();
        let at = match name.to_str() {
            Some("cpuid") => Path::new("/").join(PROGRAM),
            Some("ld-linux-x86-64.so.2") => Path::new("/lib64").join(name),
            _ => Path::new("/lib/x86_64-linux-gnu").join(name),
        };
        (file, at)
    };
    Ok(needs.into_iter().map(place).collect())
}
