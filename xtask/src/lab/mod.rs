//! `cargo xtask lab`: real, unmodified KVM on a machine that has none. An emulator gives a CPU with
//! AMD-V or VT-x, Debian's kernel runs on it, and Exitvisor runs on that kernel's KVM.

pub(crate) mod agent;
pub(crate) mod asking;
mod bochs;
mod command;
mod cpio;
pub(crate) mod debian;
pub(crate) mod disk;
pub(crate) mod drivers;
mod files;
pub(crate) mod guest;
mod image;
mod kernel;
mod machine;
mod memory;
pub(crate) mod modprobe;
mod packages;
pub(crate) mod perf;
pub(crate) mod process;
mod programs;
mod protocol;
pub(crate) mod qemu;
mod repair;
mod rom;
mod session;
mod vmlinux;

use std::ffi::OsString;
use std::fs;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::build::Built;
use crate::step::Step;
use crate::workspace;
use agent::{Load, Orders};
pub(crate) use command::Lab;
use disk::Disk;
use image::Image;
pub(crate) use kernel::Version;
use kernel::{Kernel, Module};
pub(crate) use machine::Host;
use machine::{Machine, Start};
use packages::{Packages, Wanted};
use protocol::{FileHead, Frame};
use session::End;

/// The status when the time limit ended a run, as exitvisor has it for a guest's.
pub(crate) const TIME_LIMIT: u8 = 80;

/// What of the user's own takes the place of packages.
#[derive(Clone, Debug, Default, Args)]
#[group(id = "own")]
pub(crate) struct Own {
    /// Use this QEMU, 10 or newer, not a fetched one [env: EXITVISOR_QEMU]
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) qemu: Option<PathBuf>,
    /// Use this kernel, a bzImage [env: EXITVISOR_LAB_KERNEL]
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel_image: Option<PathBuf>,
    /// Find that kernel's KVM modules below this folder [env: EXITVISOR_LAB_MODULES]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) modules: Option<PathBuf>,
    /// Fetch nothing: what is not there is an error
    #[arg(long)]
    pub(crate) offline: bool,
}

impl Own {
    /// What the environment names, where the command line does not.
    pub(crate) fn or_environment(mut self) -> Self {
        let variables = [
            (&mut self.qemu, "EXITVISOR_QEMU"),
            (&mut self.kernel_image, "EXITVISOR_LAB_KERNEL"),
            (&mut self.modules, "EXITVISOR_LAB_MODULES"),
        ];
        for (option, name) in variables {
            let value = std::env::var_os(name).filter(|value| !value.is_empty());
            *option = option.take().or(value.map(PathBuf::from));
        }
        self
    }
}

/// One command to run in a lab.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Whose CPU.
    pub(crate) host: Host,
    /// On which kernel.
    pub(crate) kernel: Version,
    /// CPUs of the lab. The Intel one has only 1.
    pub(crate) cpus: u32,
    /// Memory of the lab, MiB.
    pub(crate) memory_mib: u32,
    /// Parameters of KVM's modules: `npt=0` for the vendor's, `kvm.ignore_msrs=1` for any by name.
    pub(crate) module_args: Vec<String>,
    /// Further arguments of the lab's kernel.
    pub(crate) kernel_args: Vec<String>,
    /// Further arguments of the emulator's program.
    pub(crate) machine_args: Vec<OsString>,
    /// The program, a file of the host. It lies in the lab at the same path.
    pub(crate) program: PathBuf,
    /// Its arguments. What they name is carried in, and back out, at the same absolute path.
    pub(crate) args: Vec<OsString>,
    /// Its environment, besides PATH and HOME.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Where it runs: the path of a folder. What it writes below comes back.
    pub(crate) cwd: PathBuf,
    /// Further files to carry in; with its libraries what is a program, and a folder with all
    /// below it.
    pub(crate) files: Vec<PathBuf>,
    /// Raw files of the host that are disks of the lab's machine, found inside at the same paths. Only
    /// in the AMD lab.
    pub(crate) disks: Vec<Disk>,
    /// Drivers of the lab's kernel to load besides KVM ([`drivers`]).
    pub(crate) drivers: Vec<&'static str>,
    /// TAPs to make there; they take [`drivers::TAP`].
    pub(crate) taps: Vec<String>,
    /// Further programs by the name they have in the lab's PATH.
    pub(crate) programs: Vec<(String, PathBuf)>,
    /// Further files and folders that come back if they are new or changed.
    pub(crate) outputs: Vec<PathBuf>,
    /// After this long the lab is ended.
    pub(crate) limit: Duration,
    /// A command that says nothing for so much CPU time of the emulator's gets SIGUSR1, with all that it
    /// has started. (The AMD lab alone: nothing can be sent to the other.)
    pub(crate) patience: Option<Duration>,
    /// Whether stdout and stderr are kept ([`Outcome::stdout`]) instead of shown.
    pub(crate) quiet: bool,
    /// Shows how far a quiet command is: each line that it writes on stderr is one step.
    pub(crate) steps: Option<ProgressBar>,
    /// What of the user's own takes the place of packages.
    pub(crate) own: Own,
}

/// How a job ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The command's exit status; [`TIME_LIMIT`] if the limit ended it, 128 and the signal's
    /// number if a signal did.
    pub(crate) status: u8,
    /// What it wrote, if the job is quiet.
    pub(crate) stdout: Vec<u8>,
    /// What it complained of, if the job is quiet.
    pub(crate) stderr: Vec<u8>,
    /// The files that came back.
    pub(crate) files: Vec<PathBuf>,
    /// From the machine's start to the agent's first word.
    pub(crate) boot: Duration,
    /// The lab's kernel.
    pub(crate) kernel: String,
}

impl Job {
    /// A program in a lab, with what is usual for the rest, run where the user stands.
    pub(crate) fn new(host: Host, program: impl Into<PathBuf>) -> anyhow::Result<Self> {
        Ok(Self {
            host,
            kernel: Version::default(),
            cpus: 1,
            memory_mib: host.memory_mib(),
            module_args: Vec::new(),
            kernel_args: Vec::new(),
            machine_args: Vec::new(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: std::env::current_dir().context("cannot tell the current folder")?,
            files: Vec::new(),
            disks: Vec::new(),
            drivers: Vec::new(),
            taps: Vec::new(),
            programs: Vec::new(),
            outputs: Vec::new(),
            limit: Duration::from_secs(600),
            patience: None,
            quiet: false,
            steps: None,
            own: Own::default().or_environment(),
        })
    }

    /// Exitvisor in a lab, with the firmware and all guests at hand: their folder is in the
    /// environment as `EXITVISOR_GUESTS`, exitvisor as `EXITVISOR_BIN`.
    pub(crate) fn exitvisor(host: Host, built: &Built) -> anyhow::Result<Self> {
        let mut job = Self::new(host, &built.exitvisor)?;
        job.with_guests(built)?;
        Ok(job)
    }

    /// Whether its KVM is loaded without nested paging, as far as its parameters tell.
    fn is_shadowed(&self) -> bool {
        let words = self.module_args.iter().flat_map(|a| a.split_whitespace());
        let own = words.map(|word| {
            let module = word.strip_prefix(self.host.module());
            module
                .and_then(|rest| rest.strip_prefix('.'))
                .unwrap_or(word)
        });
        let mut told = own.filter_map(|word| {
            let (name, value) = word.split_once('=')?;
            let off = matches!(value, "0" | "n" | "N" | "off" | "OFF");
            ["npt", "ept"].contains(&name).then_some(off)
        });
        told.next_back().unwrap_or(false)
    }

    /// Carries exitvisor (in the lab's PATH too), the firmware and all guests.
    pub(crate) fn with_guests(&mut self, built: &Built) -> anyhow::Result<()> {
        let guests = built.guest_kernel.parent().unwrap_or(Path::new("/"));
        let found = guests.read_dir();
        for file in found.with_context(|| format!("cannot read {}", guests.display()))? {
            let path = file?.path();
            // Beside the guests cargo keeps notes on them (.d) and locks.
            if path.is_file() && path.metadata()?.permissions().mode() & 0o100 != 0 {
                self.files.push(path);
            }
        }
        self.programs
            .push(("exitvisor".to_owned(), built.exitvisor.clone()));
        self.env.push(("EXITVISOR_GUESTS".into(), guests.into()));
        self.env
            .push(("EXITVISOR_BIN".into(), built.exitvisor.clone().into()));
        Ok(())
    }
}

/// Runs a job. The machine and the kernel are fetched first if they are not there yet.
///
/// An error is that of the lab; whatever the command did is an outcome.
pub(crate) fn run(job: &Job) -> anyhow::Result<Outcome> {
    let place = Place::new(job)?;
    let orders = place.orders(job, None)?;
    let initramfs = place.image(job, &orders, &[])?;
    let launch = place
        .machine
        .launch(&place.start(job, &initramfs, &place.cmdline(job)))?;

    let progress = if job.quiet {
        Progress(ProgressBar::hidden())
    } else {
        let shown = Step::new(&orders.program).args(&job.args);
        eprintln!("+ {shown}   in the {}", place.title(job));
        Progress::new(&place.title(job))
    };
    let start = Instant::now();
    let mut hearing = Hearing {
        quiet: job.quiet,
        steps: job.steps.as_ref(),
        outputs: &orders.outputs,
        progress: &progress,
        file: None,
        start,
        outcome: Outcome {
            status: 0,
            stdout: Vec::new(),
            stderr: Vec::new(),
            files: Vec::new(),
            boot: Duration::ZERO,
            kernel: place.kernel.release.clone(),
        },
    };
    let hear = &mut |frame| hearing.hear(frame);
    let end = session::run(launch, &place.machine_log(), job.limit, job.patience, hear);
    progress.done();
    let mut outcome = hearing.outcome;
    outcome.status = match end? {
        End::Status(status) => status,
        End::Interrupted(signal) => 128 | signal_number(signal),
        End::TimeLimit => {
            eprintln!(
                "xtask: the time limit of {:?} ended the {}{}",
                job.limit,
                job.host.title(),
                place.last_words(job.host)
            );
            TIME_LIMIT
        }
        End::Died => bail!(
            "the {} ended before its command did{}{}",
            job.host.title(),
            place.last_words(job.host),
            // It never came to life.
            if outcome.boot.is_zero() { DAMAGED } else { "" }
        ),
    };
    Ok(outcome)
}

/// Fetches what a lab needs, if it is not there yet.
pub(crate) fn prepare(host: Host, version: Version) -> anyhow::Result<()> {
    let packages = packages(&Own::default().or_environment())?;
    host.machine(&packages, false)?;
    version.kernel(&packages)?;
    Ok(())
}

fn signal_number(signal: Signal) -> u8 {
    u8::try_from(signal as i32).unwrap_or(0)
}

/// Whether a person is at stdin and stdout.
pub(crate) fn is_at_a_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// Refuses what is no terminal.
pub(crate) fn at_a_terminal() -> anyhow::Result<()> {
    if !is_at_a_terminal() {
        bail!("`lab shell` is for a terminal; for a script, use `lab run`");
    }
    Ok(())
}

/// Runs a shell in a lab, at the user's terminal.
pub(crate) fn shell(job: &Job) -> anyhow::Result<u8> {
    let place = Place::new(job)?;
    let busybox = place.packages.tree(&BUSYBOX)?.path("bin/busybox");
    let mut job = job.clone();
    job.program = "/bin/sh".into();
    job.args = vec!["-l".into()];
    let list = std::process::Command::new(&busybox).arg("--list").output();
    let list = list.with_context(|| format!("cannot start {}", busybox.display()))?;
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    eprintln!("{}: starting; `exit` or Ctrl-D ends it", place.title(&job));
    place.at_terminal(&mut job, &[(&busybox, &list)])
}

/// Runs a job at the user's terminal, for as long as they like. Files do not come back.
pub(crate) fn at_terminal(job: &Job) -> anyhow::Result<u8> {
    let place = Place::new(job)?;
    let shown = Step::new(&job.program).args(&job.args);
    eprintln!("+ {shown}   in the {}", place.title(job));
    place.at_terminal(&mut job.clone(), &[])
}

/// The shell's programs.
const BUSYBOX: Wanted = Wanted {
    name: "busybox",
    packages: &["busybox-static"],
    release: None,
};

/// The user's terminal in raw mode, until this is dropped.
#[derive(Debug)]
struct Raw(nix::sys::termios::Termios);

impl Raw {
    fn new() -> anyhow::Result<Self> {
        use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
        let before = tcgetattr(std::io::stdin()).context("cannot ask the terminal")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw).context("cannot set the terminal")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = nix::sys::termios::tcsetattr(
            std::io::stdin(),
            nix::sys::termios::SetArg::TCSADRAIN,
            &self.0,
        );
    }
}

/// Rows and columns.
fn terminal_size() -> (u16, u16) {
    let mut size = nix::libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes one winsize, which `size` is.
    unsafe { nix::libc::ioctl(1, nix::libc::TIOCGWINSZ, &raw mut size) };
    match (size.ws_row, size.ws_col) {
        // It failed, or the terminal does not know.
        (0, _) | (_, 0) => (24, 80),
        known => known,
    }
}

/// Where labs are kept: `lab/` in the target folder.
fn packages(own: &Own) -> anyhow::Result<Packages> {
    Ok(Packages {
        folder: workspace::target_folder()?.join("lab"),
        own: own.clone(),
    })
}

/// A machine, a kernel, and a folder for one run on them.
struct Place {
    packages: Packages,
    machine: Box<dyn Machine>,
    kernel: Kernel,
    folder: TempDir,
    /// What the kernel says.
    console: PathBuf,
}

impl Place {
    fn new(job: &Job) -> anyhow::Result<Self> {
        let packages = packages(&job.own)?;
        let machine = job.host.machine(&packages, job.is_shadowed())?;
        let kernel = job.kernel.kernel(&packages)?;
        let runs = packages.folder.join("runs");
        let folder = || {
            fs::create_dir_all(&runs)?;
            forget_the_dead(&runs)?;
            let prefix = format!("{}-", std::process::id());
            tempfile::Builder::new().prefix(&prefix).tempdir_in(&runs)
        };
        let folder = folder().with_context(|| format!("cannot write to {}", runs.display()))?;
        Ok(Self {
            packages,
            machine,
            kernel,
            console: folder.path().join("console.log"),
            folder,
        })
    }

    fn title(&self, job: &Job) -> String {
        format!(
            "{} ({}, Linux {})",
            job.host.title(),
            self.machine.name(),
            self.kernel.release
        )
    }

    /// Runs the job's command at the user's terminal; its exit status.
    fn at_terminal(&self, job: &mut Job, busybox: &[(&Path, &str)]) -> anyhow::Result<u8> {
        let names = ["TERM", "LANG"].map(|name| (name, std::env::var_os(name)));
        let names = names
            .into_iter()
            .filter_map(|(name, value)| Some((name.into(), value?)));
        job.env.extend(names);
        let orders = self.orders(job, Some(terminal_size()))?;
        let initramfs = self.image(job, &orders, busybox)?;
        let cmdline = self.cmdline(job);
        let mut start = self.start(job, &initramfs, &cmdline);
        start.terminal = true;
        let launch = self.machine.launch(&start)?;
        let end = {
            let _raw = Raw::new()?;
            session::at_terminal(launch.command, &self.machine_log())?
        };
        if let End::Interrupted(signal) = end {
            return Ok(128 | signal_number(signal));
        }
        // The terminal's line carries nothing but the terminal.
        let said = fs::read_to_string(&self.console).unwrap_or_default();
        agent::status_in(&said).with_context(|| {
            format!(
                "the {} ended before its command did{}",
                job.host.title(),
                self.last_words(job.host)
            )
        })
    }

    fn machine_log(&self) -> PathBuf {
        self.folder.path().join("machine.log")
    }

    /// What the agent is to do.
    fn orders(&self, job: &Job, terminal: Option<(u16, u16)>) -> anyhow::Result<Orders> {
        let cwd = files::plain(&job.cwd);
        let mut outputs = vec![cwd.clone()];
        outputs.extend(job.outputs.iter().map(|path| files::plain(&cwd.join(path))));
        outputs.extend(files::named(&job.args, &cwd).outputs);
        Ok(Orders {
            modules: loads(&self.modules(job)?, job)?,
            disks: job.disks.clone(),
            taps: job.taps.clone(),
            program: cwd.join(&job.program),
            args: job.args.clone(),
            env: job.env.clone(),
            cwd,
            outputs,
            terminal,
        })
    }

    /// The modules for this host, as its machine wants them.
    fn modules(&self, job: &Job) -> anyhow::Result<Vec<Module>> {
        let mut modules = self.kernel.modules.clone();
        modules.retain(|module| module.name != job.host.other().module());
        if !job.drivers.is_empty() {
            let drivers = drivers::drivers(&self.packages, &self.kernel, &job.drivers)?;
            modules.extend(drivers);
        }
        if job.host == Host::Intel {
            let slim = modules.iter().map(|module| module.slim(self.folder.path()));
            modules = slim.collect();
        }
        Ok(modules)
    }

    /// Writes the initramfs. `busybox`: the program, and its names one per line.
    fn image(
        &self,
        job: &Job,
        orders: &Orders,
        busybox: &[(&Path, &str)],
    ) -> anyhow::Result<PathBuf> {
        let mut image = Image::new()?;
        for module in self.modules(job)? {
            image.file(&module.file, &in_lab(&module))?;
        }
        for name in modprobe::NAMES {
            image.link(&Path::new("/usr/bin").join(name), Path::new(agent::INIT));
        }
        image.folder(&orders.cwd);
        if busybox.is_empty() {
            image.program(&orders.program, &orders.program)?;
        }
        for (program, names) in busybox {
            image.program(program, Path::new("/bin/busybox"))?;
            for name in names.lines().filter(|name| *name != "busybox") {
                image.link(&Path::new("/bin").join(name), Path::new("busybox"));
            }
        }
        for (name, program) in &job.programs {
            if !image.has(program) {
                image.program(program, program)?;
            }
            let link = Path::new("/usr/bin").join(name);
            if link != *program {
                image.link(&link, program);
            }
        }
        for output in &orders.outputs {
            // A folder is there as it is here.
            let folder = if output.is_dir() {
                Some(&**output)
            } else {
                output.parent()
            };
            image.folder(folder.unwrap_or(output));
        }
        let mut carried = files::named(&job.args, &orders.cwd).files;
        for path in &job.files {
            let path = files::plain(&orders.cwd.join(path));
            if !path.is_dir() {
                carried.push(path);
                continue;
            }
            files::below(&path, &mut carried)
                .with_context(|| format!("cannot read {}", path.display()))?;
        }
        for file in carried {
            let is_disk = job.disks.iter().any(|disk| disk.file == file);
            if !is_disk && !image.has(&file) {
                image.file(&file, &file)?;
            }
        }
        let initramfs = self.folder.path().join("initramfs.cpio");
        image.write(orders, &initramfs)?;
        Ok(initramfs)
    }

    fn cmdline(&self, job: &Job) -> String {
        // Self-tests, timers checked against each other and waiting for randomness cost seconds.
        let own = format!(
            "rdinit={} quiet panic=-1 cryptomgr.notests no_timer_check random.trust_cpu=on",
            agent::INIT
        );
        let all = std::iter::once(own).chain(job.kernel_args.iter().cloned());
        all.collect::<Vec<_>>().join(" ")
    }

    fn start<'a>(&'a self, job: &'a Job, initramfs: &'a Path, cmdline: &'a str) -> Start<'a> {
        Start {
            folder: self.folder.path(),
            console: &self.console,
            kernel: &self.kernel.image,
            initramfs,
            cmdline,
            cpus: job.cpus,
            memory_mib: job.memory_mib,
            extra: &job.machine_args,
            disks: &job.disks,
            terminal: false,
        }
    }

    /// What the kernel and the machine said last, kept in a file that is named.
    fn last_words(&self, host: Host) -> String {
        let text = |path: &Path| {
            let bytes = fs::read(path).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\r', "")
        };
        let log = format!("{}{}", text(&self.console), text(&self.machine_log()));
        let kept = self.packages.folder.join(format!("{}.log", host.name()));
        let telling = |line: &&str| !line.trim().is_empty() && self.machine.is_telling(line);
        let lines: Vec<&str> = log.lines().filter(telling).collect();
        if lines.is_empty() {
            return ", and its console is empty".to_owned();
        }
        let place = match fs::write(&kept, &log) {
            Ok(()) => format!(
                " (all of it: {})",
                Path::new(workspace::shown(&kept)).display()
            ),
            Err(_) => String::new(),
        };
        // A panic is followed by more than the last lines.
        let panic = lines.iter().position(|line| line.contains(PANIC));
        let first = panic.unwrap_or(lines.len().saturating_sub(LAST_LINES));
        let last: Vec<&str> = lines[first..].iter().take(LAST_LINES).copied().collect();
        format!("; its console says{place}:\n  {}", last.join("\n  "))
    }
}

/// So many lines of a console are shown when a lab dies.
const LAST_LINES: usize = 12;
/// What to do if nothing has ever run.
const DAMAGED: &str = "\n  (if what was fetched is damaged: remove the folders of target/lab, and it is fetched again)";
/// How Linux begins its last words.
const PANIC: &str = "Kernel panic - not syncing";

/// Where a module lies in the image.
fn in_lab(module: &Module) -> PathBuf {
    Path::new("/lab/modules").join(format!("{}.ko", module.name))
}

/// The modules with their parameters.
fn loads(modules: &[Module], job: &Job) -> anyhow::Result<Vec<Load>> {
    let vendor = job.host.module();
    let mut loads: Vec<Load> = modules
        .iter()
        .map(|module| Load {
            name: module.name.clone(),
            file: in_lab(module),
            parameters: String::new(),
        })
        .collect();
    for parameter in job
        .module_args
        .iter()
        .flat_map(|args| args.split_whitespace())
    {
        let name = parameter.split('=').next().unwrap_or_default();
        let (module, parameter) = match name.split_once('.') {
            Some((module, _)) => (module.replace('-', "_"), &parameter[module.len() + 1..]),
            None => (vendor.to_owned(), parameter),
        };
        let known = modules.iter().find(|known| known.name == module);
        let load = loads.iter_mut().find(|load| load.name == module);
        let (Some(load), Some(known)) = (load, known) else {
            bail!("`{parameter}` is for the module {module}, which is not loaded");
        };
        // The kernel would take it for a slip, and load the module without it.
        let name = parameter.split('=').next().unwrap_or_default();
        if !known.has_parameter(name)? {
            bail!("the module {module} has no parameter `{name}`");
        }
        if !load.parameters.is_empty() {
            load.parameters.push(' ');
        }
        load.parameters += parameter;
    }
    Ok(loads)
}

/// Removes what runs left whose xtask was killed.
fn forget_the_dead(runs: &Path) -> std::io::Result<()> {
    for entry in runs.read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let process = name.split('-').next().unwrap_or_default();
        if !process.is_empty() && !Path::new("/proc").join(process).exists() {
            // Another xtask may be at it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

/// A spinner on a terminal while a lab boots.
struct Progress(ProgressBar);

impl Progress {
    fn new(title: &str) -> Self {
        let spinner = ProgressBar::new_spinner();
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner.set_message(format!("{title}: booting"));
        Self(spinner)
    }

    fn done(&self) {
        self.0.finish_and_clear();
    }
}

/// What is done with what the agent says.
struct Hearing<'a> {
    quiet: bool,
    steps: Option<&'a ProgressBar>,
    outputs: &'a [PathBuf],
    progress: &'a Progress,
    /// The file that is coming.
    file: Option<(FileHead, Vec<u8>)>,
    start: Instant,
    outcome: Outcome,
}

impl Hearing<'_> {
    fn hear(&mut self, frame: Frame) -> anyhow::Result<()> {
        match frame {
            Frame::Hello(release) => {
                self.outcome.boot = self.start.elapsed();
                self.outcome.kernel = release;
                self.progress.done();
            }
            Frame::Stdout(bytes) if self.quiet => self.outcome.stdout.extend(bytes),
            Frame::Stderr(bytes) if self.quiet => {
                if let Some(steps) = self.steps {
                    let lines = bytes.iter().filter(|byte| **byte == b'\n');
                    steps.inc(lines.count() as u64);
                }
                self.outcome.stderr.extend(bytes);
            }
            Frame::Stdout(bytes) => {
                let mut stdout = std::io::stdout().lock();
                let written = stdout.write_all(&bytes).and_then(|()| stdout.flush());
                written.context("cannot write to stdout")?;
            }
            // Where stderr is closed, nobody can be told.
            Frame::Stderr(bytes) => _ = std::io::stderr().write_all(&bytes),
            Frame::Note(text) => eprintln!("lab: {text}"),
            Frame::File(head) => {
                self.file = Some((head, Vec::new()));
                self.keep()?;
            }
            Frame::Data(bytes) => {
                if let Some((_, content)) = &mut self.file {
                    content.extend(bytes);
                }
                self.keep()?;
            }
            Frame::Status(_) | Frame::End => {}
        }
        Ok(())
    }

    /// Writes the file that is coming, once it is whole.
    fn keep(&mut self) -> anyhow::Result<()> {
        let whole = |(head, content): &mut (FileHead, Vec<u8>)| content.len() as u64 >= head.size;
        let Some((head, content)) = self.file.take_if(|file| whole(file)) else {
            return Ok(());
        };
        let path = head.path;
        let asked = self.outputs.iter().any(|output| path.starts_with(output));
        if !asked || path != files::plain(&path) {
            bail!(
                "the lab sent a file that nobody asked for: {}",
                path.display()
            );
        }
        let write = || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let new = !path.exists();
            fs::write(&path, &content)?;
            if new {
                fs::set_permissions(&path, fs::Permissions::from_mode(head.mode & 0o777))?;
            }
            Ok::<_, std::io::Error>(())
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        self.outcome.files.push(path);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file whose `.modinfo` says this: what `objcopy` makes of a text.
    fn module(folder: &Path, info: &str) -> Option<Module> {
        let (text, file) = (folder.join("info"), folder.join("kvm_amd.ko"));
        fs::write(&text, info).unwrap();
        let mut objcopy = std::process::Command::new("objcopy");
        objcopy.args(["-I", "binary", "-O", "elf64-x86-64"]);
        objcopy.args(["--rename-section", ".data=.modinfo"]);
        let done = objcopy.args([&text, &file]).status();
        let name = "kvm_amd".to_owned();
        done.is_ok_and(|status| status.success())
            .then_some(Module { name, file })
    }

    #[test]
    fn who_shadows() {
        let is_shadowed = |host, arguments: &[&str]| {
            let mut job = Job::new(host, "x").unwrap();
            job.module_args = arguments.iter().map(|&a| a.to_owned()).collect();
            job.is_shadowed()
        };
        for arguments in [
            &["npt=0"][..],
            &["avic=1 kvm_amd.npt=N"],
            &["npt=1", "npt=0"],
        ] {
            assert!(is_shadowed(Host::Amd, arguments), "{arguments:?}");
        }
        for arguments in [
            &[][..],
            &["npt=1"],
            &["kvm.ignore_msrs=0"],
            &["npt=0 npt=Y"],
        ] {
            assert!(!is_shadowed(Host::Amd, arguments), "{arguments:?}");
        }
        assert!(is_shadowed(Host::Intel, &["ept=0"]));
    }

    #[test]
    fn parameters_go_to_modules_that_have_them() {
        let folder = tempfile::tempdir().unwrap();
        let info = "depends=kvm\0parm=npt:Nested paging (bool)\0parmtype=npt:bool\0\
                    parmtype=pause_filter_count:ushort\0";
        let Some(module) = module(folder.path(), info) else {
            eprintln!("skipped: parameters_go_to_modules_that_have_them: there is no objcopy");
            return;
        };
        let mut job = Job::new(Host::Amd, "x").unwrap();
        job.module_args = vec!["npt=0 kvm_amd.pause-filter-count=1".to_owned()];
        let loads_of = |job: &Job| loads(std::slice::from_ref(&module), job);
        let found = loads_of(&job).unwrap();
        assert_eq!(found[0].parameters, "npt=0 pause-filter-count=1");
        for (wrong, why) in [
            ("nptt=0", "the module kvm_amd has no parameter `nptt`"),
            ("bool", "the module kvm_amd has no parameter `bool`"),
            (
                "kvm.x=1",
                "`x=1` is for the module kvm, which is not loaded",
            ),
        ] {
            job.module_args = vec![wrong.to_owned()];
            assert_eq!(loads_of(&job).unwrap_err().to_string(), why);
        }
    }
}
