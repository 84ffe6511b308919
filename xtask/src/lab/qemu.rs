//! The AMD lab's machine: QEMU, whose TCG emulates AMD-V with nested paging.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::machine::{Launch, Machine, Results, Start};
use super::packages::{BACKPORTS, Packages, Tree, Wanted};
use super::{Own, disk, packages, programs, repair};

/// QEMU and the libraries and ROMs it needs.
const WANTED: Wanted = Wanted {
    name: "qemu",
    packages: &["qemu-system-x86"],
    release: Some(BACKPORTS),
};

/// Where it lies in its package.
const PROGRAM: &str = "usr/bin/qemu-system-x86_64";

/// Older ones ignore a guest's debug registers under SVM: breakpoints would never fire.
const OLDEST: u32 = 10;

/// QEMU, fetched or the user's own.
#[derive(Debug)]
pub(crate) struct Qemu {
    program: Program,
    version: String,
    /// A fetched program that was put right.
    repaired: Option<Vec<u8>>,
}

#[derive(Debug)]
enum Program {
    Fetched(Tree),
    Own(PathBuf),
}

impl Qemu {
    /// Fetches it if it is not there yet.
    pub(crate) fn setup(packages: &Packages) -> anyhow::Result<Self> {
        if let Some(program) = &packages.own.qemu {
            return Self::own(program);
        }
        let tree = packages.tree(&WANTED)?;
        Ok(Self {
            version: tree.version("qemu-system-x86").unwrap_or_default(),
            program: Program::Fetched(tree),
            repaired: None,
        })
    }

    /// The same, put right for a KVM that shadows; the user's own, and one that is not known, as it is.
    pub(crate) fn repaired(mut self) -> anyhow::Result<Self> {
        if let Program::Fetched(tree) = &self.program {
            let path = tree.path(PROGRAM);
            let program = fs::read(&path);
            let mut program = program.with_context(|| format!("cannot read {}", path.display()))?;
            self.repaired = repair::repair(&mut program).then_some(program);
        }
        Ok(self)
    }

    fn own(program: &Path) -> anyhow::Result<Self> {
        let output = Command::new(program).arg("--version").output();
        let output = output.with_context(|| format!("cannot start {}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(version) = version(&text) else {
            bail!("{} does not say that it is QEMU", program.display());
        };
        let major = version
            .split('.')
            .next()
            .and_then(|major| major.parse().ok());
        if major.is_none_or(|major: u32| major < OLDEST) {
            bail!(
                "{} is QEMU {version}; the lab needs {OLDEST} or newer",
                program.display()
            );
        }
        Ok(Self {
            program: Program::Own(program.to_owned()),
            version: version.to_owned(),
            repaired: None,
        })
    }

    /// The program, with its firmware.
    fn command(&self) -> Command {
        self.command_of(PROGRAM.as_ref())
    }

    /// The same by another file, if it is not the user's own program.
    fn command_of(&self, program: &Path) -> Command {
        match &self.program {
            Program::Own(path) => Command::new(path),
            Program::Fetched(tree) => {
                let mut command = tree.command(program);
                for roms in ["usr/share/qemu", "usr/share/seabios"] {
                    command.arg("-L").arg(tree.path(roms));
                }
                command
            }
        }
    }
}

/// QEMU as a VMM inside a lab: what is booted there beside exitvisor.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The words that start it, with its firmware.
    pub(crate) command: Vec<OsString>,
    /// What it needs in a lab.
    pub(crate) files: BTreeSet<PathBuf>,
    /// `10.0.2`.
    pub(crate) version: String,
}

/// The ROMs with which the machines that are booted begin.
const ROMS: [&str; 8] = [
    "usr/share/qemu/kvmvapic.bin",
    "usr/share/qemu/linuxboot.bin",
    "usr/share/qemu/linuxboot_dma.bin",
    "usr/share/qemu/pvh.bin",
    "usr/share/qemu/qboot.rom",
    "usr/share/seabios/bios.bin",
    "usr/share/seabios/bios-256k.bin",
    "usr/share/seabios/bios-microvm.bin",
];

/// QEMU for the inside of a lab; fetched if it is not there yet.
pub(crate) fn guest(own: &Own) -> anyhow::Result<Guest> {
    let qemu = Qemu::setup(&packages(own)?)?;
    let command = qemu.command();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let files = match &qemu.program {
        Program::Own(path) => programs::needs(path)?,
        Program::Fetched(tree) => {
            let mut files = programs::needs_of(tree, PROGRAM)?;
            files.extend(ROMS.map(|rom| tree.path(rom)));
            files
        }
    };
    Ok(Guest {
        command: words.map(Into::into).collect(),
        files,
        version: qemu.version,
    })
}

/// From `QEMU emulator version 10.0.2 (Debian …)`.
fn version(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("QEMU emulator version ")?;
    rest.split_whitespace().next()
}

impl Machine for Qemu {
    fn name(&self) -> String {
        match self.repaired {
            Some(_) => format!("QEMU {}, its reads of CR3 put right", self.version),
            None => format!("QEMU {}", self.version),
        }
    }

    fn launch(&self, start: &Start<'_>) -> anyhow::Result<Launch> {
        let mut command = match &self.repaired {
            None => self.command(),
            Some(bytes) => {
                // Its dynamic loader maps it, so that it need not be executable.
                let copy = start.folder.join("qemu");
                let written = fs::write(&copy, bytes);
                written.with_context(|| format!("cannot write {}", copy.display()))?;
                self.command_of(&copy)
            }
        };
        command.args(["-accel", "tcg", "-cpu", "max,+svm", "-no-reboot"]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-m", &format!("{}M", start.memory_mib)]);
        command.args(["-smp", &start.cpus.to_string()]);
        command.arg("-kernel").arg(start.kernel);
        command.arg("-initrd").arg(start.initramfs);
        command.args(["-append", &format!("console=ttyS0 {}", start.cmdline)]);
        // A comma in a file's name is written twice.
        let console = start.console.display().to_string().replace(',', ",,");
        command.args(["-chardev", &format!("file,id=console,path={console}")]);
        command.args(["-serial", "chardev:console"]);
        command.args([
            "-chardev",
            "stdio,id=results,signal=off",
            "-serial",
            "chardev:results",
        ]);
        command.args(disk::options(start.disks));
        command.args(start.extra);
        Ok(Launch {
            command,
            results: Results::Stdio,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright\n";
        assert_eq!(version(text), Some("10.0.2"));
        assert_eq!(version("busybox"), None);
    }

    #[test]
    fn a_command_line() {
        let qemu = Qemu {
            program: Program::Own("/bin/qemu".into()),
            version: "10.0.2".to_owned(),
            repaired: None,
        };
        let launch = qemu.launch(&Start {
            folder: Path::new("/run"),
            console: Path::new("/run/a,b.log"),
            kernel: Path::new("/k"),
            initramfs: Path::new("/i"),
            cmdline: "quiet",
            cpus: 2,
            memory_mib: 512,
            extra: &["-icount".into(), "shift=0".into()],
            disks: &[],
            terminal: false,
        });
        let command = launch.unwrap().command;
        let args: Vec<_> = command
            .get_args()
            .map(|arg| arg.to_string_lossy())
            .collect();
        assert_eq!(
            args.join(" "),
            "-accel tcg -cpu max,+svm -no-reboot -nodefaults -no-user-config -display none -m 512M \
             -smp 2 -kernel /k -initrd /i -append console=ttyS0 quiet -chardev \
             file,id=console,path=/run/a,,b.log -serial chardev:console -chardev \
             stdio,id=results,signal=off -serial chardev:results -icount shift=0"
        );
    }
}
