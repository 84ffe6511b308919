//! Programs of the host that are carried into a lab: what they need there, and how they are kept
//! small.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use elf::ElfBytes;
use elf::abi::{PT_INTERP, PT_LOAD};
use elf::endian::LittleEndian;

use super::packages::Tree;

/// The shared libraries and the dynamic loader that a program of the host needs, by the paths at
/// which it finds them; nothing for a static one and for what is no program.
pub(crate) fn needs(program: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let bytes =
        std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let Some(loader) = loader(&bytes) else {
        return Ok(BTreeSet::new());
    };
    let mut needed = list(Command::new(&loader).arg("--list").arg(program), program)?;
    needed.insert(loader);
    Ok(needed)
}

/// All that a program of an unpacked tree needs, itself and its loader included: files of the tree.
pub(crate) fn needs_of(tree: &Tree, program: &str) -> anyhow::Result<BTreeSet<PathBuf>> {
    let command = tree.command(program);
    let loader = Path::new(command.get_program()).to_owned();
    let program = tree.path(program);
    let mut list_it = Command::new(&loader);
    // Before what `command` tells the loader, all of which stands.
    list_it.arg("--list").args(command.get_args());
    let mut needed = list(&mut list_it, &program)?;
    needed.extend([loader, program]);
    Ok(needed)
}

/// What a dynamic loader that is told to list says that a program needs. The loader itself knows
/// best; this is what `ldd` does.
fn list(command: &mut Command, program: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let output = command.output();
    let loader = Path::new(command.get_program());
    let output = output.with_context(|| format!("cannot start {}", loader.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        bail!("{} misses a library: {}", program.display(), line.trim());
    }
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!(
            "cannot list the libraries of {}: {}",
            program.display(),
            why.trim()
        );
    }
    Ok(listed(&text))
}

/// The dynamic loader that an ELF file asks for.
fn loader(bytes: &[u8]) -> Option<PathBuf> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(bytes).ok()?;
    let segment = file.segments()?.iter().find(|s| s.p_type == PT_INTERP)?;
    let path = file.segment_data(&segment).ok()?;
    let path = path.strip_suffix(b"\0").unwrap_or(path);
    Some(std::str::from_utf8(path).ok()?.into())
}

/// The paths in what the loader lists: `libc.so.6 => /lib/…/libc.so.6 (0x…)`, or the path alone.
fn listed(text: &str) -> BTreeSet<PathBuf> {
    let path = |line: &str| {
        let path = line.split(" => ").last()?.split(" (").next()?.trim();
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    text.lines().filter_map(path).collect()
}

/// An ELF program without what is not loaded (symbols, debug information): as `strip` does, which
/// not every machine has. Other files stay as they are.
pub(crate) fn trimmed(mut bytes: Vec<u8>) -> Vec<u8> {
    let Some(end) = end_of_segments(&bytes).filter(|end| *end < bytes.len()) else {
        return bytes;
    };
    bytes.truncate(end);
    // There are no sections any more: e_shoff, and e_shnum and e_shstrndx (System V ABI, ELF-64).
    bytes[0x28..0x30].fill(0);
    bytes[0x3c..0x40].fill(0);
    bytes
}

/// Where a linked 64-bit ELF file could end as far as its loader is concerned.
fn end_of_segments(bytes: &[u8]) -> Option<usize> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(bytes).ok()?;
    if file.ehdr.class != elf::file::Class::ELF64 {
        return None;
    }
    let segments = file.segments()?;
    if !segments.iter().any(|s| s.p_type == PT_LOAD) {
        return None;
    }
    let table = file.ehdr.e_phoff + u64::from(file.ehdr.e_phnum) * u64::from(file.ehdr.e_phentsize);
    let ends = segments
        .iter()
        .map(|s| s.p_offset.saturating_add(s.p_filesz));
    usize::try_from(ends.fold(table, u64::max)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_loaders_list() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths = ["/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(listed(text), paths.map(PathBuf::from).into());
    }

    #[test]
    fn this_very_program_needs_libraries_and_runs_without_its_symbols() {
        let this = std::env::current_exe().unwrap();
        let needed = needs(&this).unwrap();
        let has = |name: &str| {
            needed
                .iter()
                .any(|path| path.to_string_lossy().contains(name))
        };
        assert!(has("libc.so.6") && has("ld-linux"), "{needed:?}");

        let whole = std::fs::read(&this).unwrap();
        let size = whole.len();
        let trimmed = trimmed(whole);
        assert!(trimmed.len() < size / 2, "{} of {size}", trimmed.len());
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy");
        std::fs::write(&copy, trimmed).unwrap();
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
        let status = Command::new(&copy).arg("--list").output().unwrap().status;
        assert!(status.success());
    }

    #[test]
    fn what_is_no_program_stays() {
        assert_eq!(trimmed(b"text".to_vec()), b"text");
        assert_eq!(loader(b"\x7fELF"), None);
    }
}
