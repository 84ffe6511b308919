//! What a lab's machine is to the rest: something to set up once, and to start on an image.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;

use super::disk::Disk;
use super::packages::Packages;
use super::{bochs, qemu};

/// The lab's CPU: its vendor decides on the machine that emulates it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Host {
    /// AMD-V with nested paging, emulated by QEMU
    #[default]
    Amd,
    /// VT-x with EPT, emulated by Bochs
    Intel,
}

/// A machine that is there and can be started.
pub(crate) trait Machine {
    /// What it is, with its version: `QEMU 10.0.2`.
    fn name(&self) -> String;

    /// Whether a line of what its program prints says why it ended.
    fn is_telling(&self, _line: &str) -> bool {
        true
    }

    /// How to start it on this image. Writes what it needs into `start.folder`; starts nothing.
    fn launch(&self, start: &Start<'_>) -> anyhow::Result<Launch>;
}

/// What to start.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    /// A folder of this run's own, gone after it.
    pub(crate) folder: &'a Path,
    /// The file that is to hold what the kernel says on its first serial port.
    pub(crate) console: &'a Path,
    /// The Linux kernel, a bzImage.
    pub(crate) kernel: &'a Path,
    /// The initramfs, an uncompressed cpio archive; its `/init` is the agent.
    pub(crate) initramfs: &'a Path,
    /// Kernel arguments that hold on every machine; a machine adds its own.
    pub(crate) cmdline: &'a str,
    /// CPUs of the machine.
    pub(crate) cpus: u32,
    /// Memory of the machine, MiB.
    pub(crate) memory_mib: u32,
    /// Files that are disks of the machine.
    pub(crate) disks: &'a [Disk],
    /// Further arguments of the machine's program.
    pub(crate) extra: &'a [OsString],
    /// Whether the second serial port is a person at a terminal (`lab shell`). The terminal is
    /// then in raw mode, and the program inherits it.
    pub(crate) terminal: bool,
}

/// How to start it.
#[derive(Debug)]
pub(crate) struct Launch {
    /// The program. Its standard streams are set by the caller, by `results`.
    pub(crate) command: Command,
    /// Where the second serial port leads.
    pub(crate) results: Results,
}

/// The second serial port.
#[derive(Debug)]
pub(crate) enum Results {
    /// The program's stdin and stdout.
    Stdio,
    /// A file that grows; nothing can be sent to the machine.
    File(PathBuf),
}

impl Host {
    /// As users name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Host::Amd => "amd",
            Host::Intel => "intel",
        }
    }

    /// As people read it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Host::Amd => "AMD lab",
            Host::Intel => "Intel lab",
        }
    }

    /// The other vendor.
    pub(crate) fn other(self) -> Self {
        match self {
            Host::Amd => Host::Intel,
            Host::Intel => Host::Amd,
        }
    }

    /// The vendor's part of KVM.
    pub(crate) fn module(self) -> &'static str {
        match self {
            Host::Amd => "kvm_amd",
            Host::Intel => "kvm_intel",
        }
    }

    /// The lab's memory unless another is asked for, MiB.
    pub(crate) fn memory_mib(self) -> u32 {
        match self {
            Host::Amd => 2048,
            Host::Intel => 1024,
        }
    }

    /// The machine of this host, fetched first if need be; for a KVM that shadows or one that does not.
    pub(crate) fn machine(
        self,
        packages: &Packages,
        shadowed: bool,
    ) -> anyhow::Result<Box<dyn Machine>> {
        Ok(match self {
            Host::Amd => Box::new(match shadowed {
                true => qemu::Qemu::setup(packages)?.repaired()?,
                false => qemu::Qemu::setup(packages)?,
            }),
            Host::Intel => Box::new(bochs::Bochs::setup(packages)?),
        })
    }
}
