//! The kernels of the labs: Debian's own images and their KVM modules, unpacked as a machine wants
//! them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use clap::ValueEnum;
use elf::ElfBytes;
use elf::endian::LittleEndian;
use lzma_rust2::XzReader;

use super::packages::{BACKPORTS, Packages};

/// Which kernel runs in the lab.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Version {
    /// Linux 6.12, Debian's for its cloud images
    #[default]
    #[value(name = "6.12")]
    V6_12,
    /// Linux 6.1, an older KVM
    #[value(name = "6.1")]
    V6_1,
}

/// A kernel that is there.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Its release: `6.12.95+deb12-cloud-amd64`.
    pub(crate) release: String,
    /// The bzImage.
    pub(crate) image: PathBuf,
    /// The modules of KVM, in the order in which they are loaded; those of both vendors.
    pub(crate) modules: Vec<Module>,
}

/// A kernel module, ready to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its name as in `/proc/modules`: `kvm_amd`.
    pub(crate) name: String,
    /// The file, not compressed.
    pub(crate) file: PathBuf,
}

/// What is loaded in the end; the rest follows from what these say they depend on.
const WANTED: [&str; 2] = ["kvm_amd", "kvm_intel"];

impl Version {
    /// As users name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Version::V6_12 => "6.12",
            Version::V6_1 => "6.1",
        }
    }

    /// The kernel; fetched first if it is not there yet.
    pub(crate) fn kernel(self, packages: &Packages) -> anyhow::Result<Kernel> {
        if let Some(image) = &packages.own.kernel_image {
            return own(image, packages);
        }
        let name = format!("linux-{}", self.name());
        let prefix = format!("linux-image-{}.", self.name());
        let folder = packages.once(&name, |apt, folder| {
            let meta = match self {
                Version::V6_12 => format!("linux-image-cloud-amd64/{BACKPORTS}"),
                Version::V6_1 => "linux-image-cloud-amd64".to_owned(),
            };
            let package = apt.depends(&meta, &prefix)?;
            let unpacked = folder.join("unpacked");
            let list = apt.unpack_alone(&package, &unpacked)?;
            let release = package.trim_start_matches("linux-image-");
            fs::rename(
                unpacked.join("boot").join(format!("vmlinuz-{release}")),
                folder.join(IMAGE),
            )
            .with_context(|| format!("{package} holds no kernel"))?;
            let modules = unpacked.join("lib/modules").join(release);
            unpack_modules(&modules, &folder.join(MODULES))?;
            fs::write(folder.join(RELEASE), release)?;
            // Drivers of devices that no lab has.
            fs::remove_dir_all(&unpacked)?;
            Ok(list)
        })?;
        unpacked(&folder)
    }
}

const IMAGE: &str = "vmlinuz";
const MODULES: &str = "modules";
const RELEASE: &str = "release";
/// In the folder of modules: their names in the order of loading.
const ORDER: &str = "order";

/// A kernel as [`Version::kernel`] leaves it in a folder.
fn unpacked(folder: &Path) -> anyhow::Result<Kernel> {
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let modules = folder.join(MODULES);
    let order = read(&format!("{MODULES}/{ORDER}"))?;
    Ok(Kernel {
        release: read(RELEASE)?,
        image: folder.join(IMAGE),
        modules: order
            .lines()
            .map(|name| Module {
                name: name.to_owned(),
                file: modules.join(format!("{name}.ko")),
            })
            .collect(),
    })
}

/// A kernel that the user named.
fn own(image: &Path, packages: &Packages) -> anyhow::Result<Kernel> {
    let bytes = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let Some(release) = release(&bytes) else {
        bail!(
            "{} is no Linux kernel (a bzImage is needed)",
            image.display()
        );
    };
    let mut kernel = Kernel {
        release,
        image: image.to_owned(),
        modules: Vec::new(),
    };
    // Without modules KVM must be built in; the agent will see.
    if let Some(modules) = &packages.own.modules {
        let folder = packages.folder.join("own");
        let _ = fs::remove_dir_all(&folder);
        unpack_modules(modules, &folder.join(MODULES))?;
        fs::write(folder.join(RELEASE), &kernel.release)?;
        kernel.modules = unpacked(&folder)?.modules;
    }
    Ok(kernel)
}

/// The release that a bzImage says it is (linux/Documentation/arch/x86/boot.rst, `kernel_version`).
fn release(image: &[u8]) -> Option<String> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let at = usize::from(u16::from_le_bytes([*image.get(0x20e)?, *image.get(0x20f)?])) + 0x200;
    let text = image.get(at..at + 200)?.split(|byte| *byte == 0).next()?;
    let text = std::str::from_utf8(text).ok()?;
    Some(text.split(' ').next()?.to_owned())
}

/// Finds KVM's modules anywhere below a folder, and unpacks them and what they depend on.
fn unpack_modules(from: &Path, to: &Path) -> anyhow::Result<()> {
    let order = unpack(&WANTED, from, to)?;
    if order.is_empty() {
        bail!("{} holds no kvm-amd.ko and no kvm-intel.ko", from.display());
    }
    fs::write(to.join(ORDER), order.join("\n") + "\n")?;
    Ok(())
}

/// Finds modules anywhere below a folder, as far as they are there, and unpacks them and what they
/// depend on; their names in the order of loading.
pub(super) fn unpack(names: &[&str], from: &Path, to: &Path) -> anyhow::Result<Vec<String>> {
    let mut index = BTreeMap::new();
    collect(from, &mut index).with_context(|| format!("cannot read {}", from.display()))?;
    fs::create_dir_all(to)?;
    let mut order = Vec::new();
    for name in names.iter().filter(|name| index.contains_key(**name)) {
        unpack_module(name, &index, to, &mut order)?;
    }
    Ok(order)
}

fn unpack_module(
    name: &str,
    index: &BTreeMap<String, PathBuf>,
    to: &Path,
    order: &mut Vec<String>,
) -> anyhow::Result<()> {
    if order.iter().any(|done| done == name) {
        return Ok(());
    }
    // What is missing is built into the kernel, or else loading says so.
    let Some(file) = index.get(name) else {
        return Ok(());
    };
    let module = module(file).with_context(|| format!("cannot unpack {}", file.display()))?;
    for dependence in depends(&module) {
        unpack_module(&dependence, index, to, order)?;
    }
    fs::write(to.join(format!("{name}.ko")), module)?;
    order.push(name.to_owned());
    Ok(())
}

/// Modules below a folder, as far as they are there, and those they depend on, in the order of
/// loading.
pub(super) fn in_order(names: &[&str], from: &Path) -> anyhow::Result<Vec<Module>> {
    let mut index = BTreeMap::new();
    collect(from, &mut index).with_context(|| format!("cannot read {}", from.display()))?;
    let mut order = Vec::new();
    for name in names {
        put_in_order(name, &index, &mut order)?;
    }
    Ok(order)
}

fn put_in_order(
    name: &str,
    index: &BTreeMap<String, PathBuf>,
    order: &mut Vec<Module>,
) -> anyhow::Result<()> {
    if order.iter().any(|done| done.name == name) {
        return Ok(());
    }
    // As in `unpack_module`.
    let Some(file) = index.get(name) else {
        return Ok(());
    };
    let bytes = module(file).with_context(|| format!("cannot unpack {}", file.display()))?;
    for dependence in depends(&bytes) {
        put_in_order(&dependence, index, order)?;
    }
    order.push(Module {
        name: name.to_owned(),
        file: file.clone(),
    });
    Ok(())
}

/// All modules below a folder by name.
fn collect(folder: &Path, index: &mut BTreeMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in folder.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), index)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            index.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

/// A module's file, without compression.
fn module(file: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = fs::read(file)?;
    if bytes.starts_with(b"\x7fELF") {
        return Ok(bytes);
    }
    if !bytes.starts_with(b"\xfd7zXZ\0") {
        bail!("its compression is not known; unpack it first");
    }
    let mut module = Vec::new();
    XzReader::new(&bytes[..], true).read_to_end(&mut module)?;
    Ok(module)
}

/// What a module says it depends on.
fn depends(module: &[u8]) -> Vec<String> {
    let lists = info(module, "depends=");
    let names = lists.iter().flat_map(|list| list.split(','));
    names
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// What a module says of itself under this key (with its `=`).
fn info(module: &[u8], key: &str) -> Vec<String> {
    let section = || {
        let file = ElfBytes::<LittleEndian>::minimal_parse(module).ok()?;
        let section = file.section_header_by_name(".modinfo").ok()??;
        Some(file.section_data(&section).ok()?.0)
    };
    let fields = section().unwrap_or_default().split(|byte| *byte == 0);
    fields
        .filter_map(|field| field.strip_prefix(key.as_bytes()))
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .collect()
}

impl Module {
    /// Whether it has a parameter of this name, as `modinfo -p` would list it.
    pub(crate) fn has_parameter(&self, name: &str) -> anyhow::Result<bool> {
        let file = fs::read(&self.file);
        let file = file.with_context(|| format!("cannot read {}", self.file.display()))?;
        let plain = |name: &str| name.replace('-', "_");
        let wanted = plain(name);
        Ok(info(&file, "parmtype=")
            .iter()
            .filter_map(|text| text.split(':').next())
            .any(|known| plain(known) == wanted))
    }

    /// A copy in `folder` for a machine that is slow, the module itself where there is no objcopy:
    /// without debug and type information, and with few symbols, as the kernel goes through all of
    /// them for each function that could be traced.
    pub(crate) fn slim(&self, folder: &Path) -> Self {
        const STEPS: [&[&str]; 2] = [
            &[
                "--remove-section=.BTF",
                "--keep-global-symbol=init_module",
                "--keep-global-symbol=cleanup_module",
            ],
            // What the first step made local is unneeded now.
            &["--strip-unneeded"],
        ];
        let file = folder.join(format!("{}.ko", self.name));
        let mut from = &self.file;
        for options in STEPS {
            let mut objcopy = Command::new("objcopy");
            objcopy.args(options).args([from, &file]);
            let done = objcopy.stderr(Stdio::null()).status();
            if !done.is_ok_and(|status| status.success()) {
                return self.clone();
            }
            from = &file;
        }
        let name = self.name.clone();
        Self { name, file }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bzimage_tells_its_release() {
        let mut image = vec![0; 0x1000];
        assert_eq!(release(&image), None);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x300u16.to_le_bytes());
        let text = b"6.12.95-cloud (someone@somewhere) #1\0";
        image[0x500..0x500 + text.len()].copy_from_slice(text);
        assert_eq!(release(&image).as_deref(), Some("6.12.95-cloud"));
        assert_eq!(release(b""), None);
    }

    #[test]
    fn a_folder_without_kvm_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = unpack_modules(folder.path(), &folder.path().join("to")).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("holds no kvm-amd.ko and no kvm-intel.ko")
        );
    }
}
