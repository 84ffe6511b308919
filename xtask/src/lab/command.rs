//! The command line of `cargo xtask lab`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Subcommand};

use super::disk::Disk;
use super::{Host, Job, Own, Version, drivers};
use crate::{build, workspace};

/// Run Exitvisor on real KVM inside an emulated machine: on any host, without root
///
/// A lab is an emulator that gives a CPU with AMD-V (QEMU) or VT-x (Bochs), with a Debian kernel and its KVM
/// on it. All of it is fetched by apt, on first use, into target/lab; nothing is installed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask lab setup
  cargo xtask lab run -- --version
  cargo xtask lab run --kernel 6.1 --module-args npt=0 -- run --kernel my-kernel --timeout 10s
  cargo xtask lab run --exec target/debug/deps/some-test -- --nocapture
  cargo xtask lab shell --host intel
  cargo xtask lab guest --kernel 6.1")]
pub(crate) struct Lab {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Setup(Setup),
    Run(Box<Run>),
    Shell(Shell),
    Guest(Guest),
}

/// Fetch a Linux to boot as a guest: prints its bzImage and an initramfs of busybox
#[derive(Debug, Args)]
struct Guest {
    /// Which Linux
    #[arg(long, value_enum, default_value_t = Version::default())]
    kernel: Version,
    /// An initramfs that has `exitlog`, its kernel module and Debian's `cpuid` too
    #[arg(long)]
    exitlog: bool,
    /// An initramfs with the drivers of a virtio console: for console=hvc0
    #[arg(long, conflicts_with = "exitlog")]
    hvc0: bool,
    #[command(flatten)]
    own: Own,
}

impl Guest {
    fn run(self) -> anyhow::Result<u8> {
        let packages = super::packages(&self.own.or_environment())?;
        let guest = if self.exitlog {
            super::asking::guest(&packages, self.kernel)?
        } else if self.hvc0 {
            super::guest::console(&packages, self.kernel)?
        } else {
            super::guest::guest(&packages, self.kernel)?
        };
        for path in [&guest.kernel, &guest.initrd] {
            println!("{}", Path::new(workspace::shown(path)).display());
        }
        Ok(0)
    }
}

/// Fetch what a lab needs, and say what is there
#[derive(Debug, Args)]
struct Setup {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    own: Own,
}

/// Run an Exitvisor command in a lab; its exit status is the one you get
///
/// Files that the arguments name are carried in, and files that the command writes come back. The
/// guests and the firmware are there, in the folder that the variable EXITVISOR_GUESTS names.
#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    machine: Machine,
    /// Run this program, not exitvisor
    #[arg(long, value_name = "PROGRAM")]
    exec: Option<PathBuf>,
    /// Set a variable in the command's environment
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// Bring this file, or the files of this folder, back if it is new or changed
    #[arg(long, value_name = "PATH")]
    output: Vec<PathBuf>,
    /// End the lab after this long: 30s, 10m, 2h
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    own: Own,
    /// The arguments of exitvisor, or of the program
    #[arg(value_name = "ARGUMENTS", last = true)]
    args: Vec<OsString>,
}

/// Open a shell in a lab, with exitvisor in its PATH
#[derive(Debug, Args)]
struct Shell {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    own: Own,
}

/// Which lab.
#[derive(Debug, Args)]
struct Place {
    /// Whose virtualization
    #[arg(long, value_enum, default_value_t = Host::default())]
    host: Host,
    /// Which Linux
    #[arg(long, value_enum, default_value_t = Version::default())]
    kernel: Version,
}

/// How it is started.
#[derive(Debug, Args)]
struct Machine {
    /// CPUs of the lab; the Intel one has 1
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=8))]
    smp: u32,
    /// Memory of the lab: 512M, 2G [default: 2G, for Intel 1G]
    #[arg(long, value_name = "SIZE", value_parser = mebibytes)]
    memory: Option<u32>,
    /// Parameters of KVM's modules: npt=0, ept=0, kvm.ignore_msrs=1
    #[arg(long, value_name = "PARAMETERS")]
    module_args: Vec<String>,
    /// Further arguments of the lab's kernel
    #[arg(long, value_name = "ARGUMENTS", allow_hyphen_values = true)]
    kernel_args: Vec<String>,
    /// A further argument of the emulator
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    machine_arg: Vec<OsString>,
    /// Carry this file in too (its libraries as well, if it is a program), or all of a folder
    #[arg(long = "with", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Attach this raw file as a disk, which is found inside at the same path (AMD lab only); what is
    /// written to it is lost at the end
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,
    /// The same, but what is written stays
    #[arg(long, value_name = "FILE")]
    disk_writable: Vec<PathBuf>,
    /// Make a TAP of this name inside, its address 10.42.0.1/24
    #[arg(long, value_name = "NAME")]
    tap: Vec<String>,
}

impl Lab {
    /// Does what is asked for.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        match self.task {
            Task::Setup(task) => task.run(),
            Task::Run(task) => task.run(),
            Task::Shell(task) => task.run(),
            Task::Guest(task) => task.run(),
        }
    }
}

impl Machine {
    fn apply(self, job: &mut Job) -> anyhow::Result<()> {
        job.cpus = self.smp;
        job.memory_mib = self.memory.unwrap_or(job.memory_mib);
        job.module_args = self.module_args;
        job.kernel_args = self.kernel_args;
        job.machine_args = self.machine_arg;
        job.files.extend(self.files);
        let disks = self.disk.into_iter().map(|file| (file, false));
        let writable = self.disk_writable.into_iter().map(|file| (file, true));
        for (file, writable) in disks.chain(writable) {
            let disk = Disk::new(&job.cwd, &file, writable)?;
            job.disks.push(disk);
        }
        if !self.tap.is_empty() {
            job.drivers.push(drivers::TAP);
        }
        job.taps = self.tap;
        Ok(())
    }
}

impl Setup {
    fn run(self) -> anyhow::Result<u8> {
        let start = Instant::now();
        let packages = super::packages(&self.own.or_environment())?;
        let machine = self.place.host.machine(&packages, false)?;
        let kernel = self.place.kernel.kernel(&packages)?;
        println!("machine: {}", machine.name());
        println!("kernel:  Linux {}", kernel.release);
        let names: Vec<&str> = kernel.modules.iter().map(|module| &*module.name).collect();
        println!("modules: {}", names.join(", "));
        let size = size_below(&packages.folder)
            .with_context(|| format!("cannot read {}", packages.folder.display()))?;
        let folder = Path::new(workspace::shown(&packages.folder)).display();
        println!("in {folder}: {} MiB, all labs together", size >> 20);
        println!("ready after {:.1} s", start.elapsed().as_secs_f64());
        Ok(0)
    }
}

/// The bytes of all files below a folder.
fn size_below(folder: &Path) -> std::io::Result<u64> {
    let mut size = 0;
    if !folder.exists() {
        return Ok(0);
    }
    for entry in folder.read_dir()? {
        let entry = entry?;
        let found = entry.metadata()?;
        size += if found.is_dir() {
            size_below(&entry.path())?
        } else {
            found.len()
        };
    }
    Ok(size)
}

impl Run {
    fn run(self) -> anyhow::Result<u8> {
        let built = build::build()?;
        let mut job = Job::exitvisor(self.place.host, &built)?;
        if let Some(program) = self.exec {
            job.program = program;
        }
        job.kernel = self.place.kernel;
        self.machine.apply(&mut job)?;
        job.args = self.args;
        job.outputs = self.output;
        job.limit = self.timeout;
        job.own = self.own.or_environment();
        for variable in self.env {
            job.env.push(name_and_value(&variable));
        }
        Ok(super::run(&job)?.status)
    }
}

impl Shell {
    fn run(self) -> anyhow::Result<u8> {
        super::at_a_terminal()?;
        let built = build::build()?;
        let mut job = Job::exitvisor(self.place.host, &built)?;
        job.kernel = self.place.kernel;
        self.machine.apply(&mut job)?;
        job.own = self.own.or_environment();
        super::shell(&job)
    }
}

/// `NAME=VALUE`; without a value, the one it has here.
fn name_and_value(variable: &OsString) -> (OsString, OsString) {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = variable.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) => (
            OsString::from_vec(bytes[..at].to_vec()),
            OsString::from_vec(bytes[at + 1..].to_vec()),
        ),
        None => (
            variable.clone(),
            std::env::var_os(variable).unwrap_or_default(),
        ),
    }
}

/// A length of time: a number and `ms`, `s`, `m` or `h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a time is a number and ms, s, m or h: 90s, 10m".to_owned()),
    };
    let number: Option<u64> = number.parse().ok();
    let total = number.and_then(|number| number.checked_mul(milliseconds));
    total
        .map(Duration::from_millis)
        .ok_or_else(|| "no number, or too large".to_owned())
}

/// A size of memory, MiB: a number and `M` or `G`.
fn mebibytes(text: &str) -> Result<u32, String> {
    let (number, factor) = match (text.strip_suffix('M'), text.strip_suffix('G')) {
        (Some(number), _) => (number, 1),
        (_, Some(number)) => (number, 1024),
        _ => return Err("a size is a number and M or G: 512M, 2G".to_owned()),
    };
    let number: Option<u32> = number.parse().ok();
    let total = number.and_then(|number| number.checked_mul(factor));
    let fits = |total: &u32| (128..=1 << 20).contains(total);
    total
        .filter(fits)
        .ok_or_else(|| "from 128M to 1024G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert!(duration("5").is_err() && duration("s").is_err() && duration("-1s").is_err());
        assert_eq!(mebibytes("2G"), Ok(2048));
        assert!(mebibytes("2048").is_err() && mebibytes("1M").is_err());
    }

    #[test]
    fn variables() {
        assert_eq!(name_and_value(&"A=b=c".into()), ("A".into(), "b=c".into()));
    }
}
