//! Disks of a lab: raw files of the host, which a command inside finds at the same paths, as links to
//! disks of the lab's machine. They are NVMe, whose driver Debian's kernels have built in.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// A file that is a disk of the lab's machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Disk {
    /// The file, by its absolute path.
    pub(crate) file: PathBuf,
    /// Whether what is written to it stays; otherwise the file is as before when the lab has ended.
    pub(crate) writable: bool,
}

impl Disk {
    /// A file of the host, as the user names it.
    pub(crate) fn new(cwd: &Path, file: &Path, writable: bool) -> anyhow::Result<Self> {
        let file = super::files::plain(&cwd.join(file));
        if !file.is_file() {
            bail!(
                "{} cannot be a disk of a lab: it is no file",
                file.display()
            );
        }
        Ok(Self { file, writable })
    }
}

/// The disks that the options of an exitvisor command name: `--disk FILE[,ro][,serial=TEXT]`. What is
/// written to them stays, as it would here.
pub(crate) fn named(args: &[OsString], cwd: &Path) -> Vec<Disk> {
    values(args, "--disk")
        .filter_map(|value| {
            let mut parts = value.split(',');
            let file = parts.next()?;
            let writable = !parts.any(|part| part == "ro");
            // Exitvisor itself says what is wrong with one that is not there.
            Disk::new(cwd, Path::new(file), writable).ok()
        })
        .collect()
}

/// All values of an option, `--name VALUE` or `--name=VALUE`.
pub(crate) fn values(args: &[OsString], name: &str) -> impl Iterator<Item = String> {
    args.iter().enumerate().filter_map(move |(i, arg)| {
        let text = arg.to_string_lossy();
        let value = match text.strip_prefix(name)?.strip_prefix('=') {
            Some(value) => value.to_owned(),
            None if text == name => args.get(i + 1)?.to_string_lossy().into_owned(),
            None => return None,
        };
        Some(value)
    })
}

/// By which the lab finds the disk of this number.
fn serial(number: usize) -> String {
    format!("exitvisor-lab-{number}")
}

/// What QEMU is told.
pub(crate) fn options(disks: &[Disk]) -> Vec<String> {
    let disk = |(number, disk): (usize, &Disk)| {
        // A comma in a file's name is written twice.
        let file = disk.file.display().to_string().replace(',', ",,");
        let snapshot = if disk.writable { "off" } else { "on" };
        let serial = serial(number);
        [
            "-drive".to_owned(),
            format!("if=none,id=disk{number},format=raw,file={file},snapshot={snapshot}"),
            "-device".to_owned(),
            format!("nvme,drive=disk{number},serial={serial}"),
        ]
    };
    disks.iter().enumerate().flat_map(disk).collect()
}

/// How long a disk may take to be found, at emulation speed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Inside a lab: links each disk to the path that its file has outside.
pub(crate) fn link(disks: &[Disk]) -> anyhow::Result<()> {
    let start = Instant::now();
    for (number, disk) in disks.iter().enumerate() {
        let found = loop {
            if let Some(found) = block_device(&serial(number)) {
                break found;
            }
            if start.elapsed() > PATIENCE {
                bail!(
                    "the lab's kernel shows no disk for {} (it needs NVMe built in)",
                    disk.file.display()
                );
            }
            thread::sleep(Duration::from_millis(10));
        };
        let place = || {
            if let Some(folder) = disk.file.parent() {
                fs::create_dir_all(folder)?;
            }
            symlink(found, &disk.file)
        };
        place().with_context(|| format!("cannot link {}", disk.file.display()))?;
    }
    Ok(())
}

/// The whole disk of this serial number.
fn block_device(serial: &str) -> Option<PathBuf> {
    for entry in fs::read_dir("/sys/block").ok()?.flatten() {
        let said = fs::read_to_string(entry.path().join("device/serial"));
        let device = Path::new("/dev").join(entry.file_name());
        if said.is_ok_and(|said| said.trim() == serial) && device.exists() {
            return Some(device);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_name_disks() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "").unwrap();
        fs::write(folder.path().join("b"), "").unwrap();
        let args = [
            "--disk",
            "a,ro,serial=x",
            "--disk=b",
            "--disk",
            "c",
            "--disks",
            "a",
        ];
        let args = args.map(OsString::from);
        let disk = |name, writable| Disk {
            file: folder.path().join(name),
            writable,
        };
        assert_eq!(
            named(&args, folder.path()),
            [disk("a", false), disk("b", true)]
        );
    }

    #[test]
    fn qemu_is_told() {
        let disks = [Disk {
            file: "/x,y".into(),
            writable: false,
        }];
        assert_eq!(
            options(&disks).join(" "),
            "-drive if=none,id=disk0,format=raw,file=/x,,y,snapshot=on \
             -device nvme,drive=disk0,serial=exitvisor-lab-0"
        );
    }
}
