//! What runs inside a lab as its first process: this very program, once more. It makes the system
//! ready, loads KVM, runs the one command, and sends out what that says and leaves behind
//! ([`super::protocol`]).

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::fcntl::OFlag;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, killpg};
use nix::sys::termios::{self, BaudRate, SetArg, tcdrain};
use nix::unistd::{Pid, getpid, setsid, sync};
use serde::{Deserialize, Serialize};

use super::disk::{self, Disk};
use super::protocol::{FileHead, Frame, INTERRUPT, LONGEST, STANDSTILL};
use crate::{FAILED, step, tap};

/// Where the agent lies in the image.
pub(crate) const INIT: &str = "/init";
/// Where it finds what to do.
pub(crate) const ORDERS: &str = "/lab/orders.json";

/// What the agent is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    /// Modules to load, in order.
    pub(crate) modules: Vec<Load>,
    /// Disks, to be linked to the paths of their files.
    pub(crate) disks: Vec<Disk>,
    /// TAPs to make.
    pub(crate) taps: Vec<String>,
    /// The program to run.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<OsString>,
    /// Its environment, besides [`ENVIRONMENT`].
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Where it runs.
    pub(crate) cwd: PathBuf,
    /// Files, and folders with all below them, that come back if they are new or changed.
    pub(crate) outputs: Vec<PathBuf>,
    /// A person is at the second serial port, at a window of so many rows and columns.
    pub(crate) terminal: Option<(u16, u16)>,
}

/// A module to load.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    /// Its name as in `/proc/modules`.
    pub(crate) name: String,
    /// Its file in the image.
    pub(crate) file: PathBuf,
    /// Its parameters: `npt=0`.
    pub(crate) parameters: String,
}

/// What every command finds in its environment.
const ENVIRONMENT: [(&str, &str); 2] =
    [("PATH", "/usr/bin:/bin:/usr/sbin:/sbin"), ("HOME", "/root")];

/// Whether this process is a lab's first one.
pub(crate) fn called() -> bool {
    let name = std::env::args_os().next();
    getpid() == Pid::from_raw(1) && name == Some(INIT.into()) && Path::new(ORDERS).exists()
}

/// Does what is ordered and powers the lab off.
pub(crate) fn main() {
    if let Err(error) = live() {
        // On the kernel's console, and from there in the log.
        eprintln!("lab: {error:#}");
    }
    sync();
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("lab: cannot power off: {error}");
}

fn live() -> anyhow::Result<()> {
    prepare()?;
    let orders = fs::read(ORDERS).with_context(|| format!("cannot read {ORDERS}"))?;
    let orders: Orders = serde_json::from_slice(&orders).with_context(|| ORDERS.to_owned())?;
    if let Some(window) = orders.terminal {
        return shell(&orders, window);
    }
    let line = Line::open()?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    line.send(&Frame::Hello(release.trim().to_owned()))?;
    let status = obey(&orders, &line).unwrap_or_else(|error| {
        // If that cannot be said either, the status tells.
        let _ = line.send(&Frame::Note(format!("{error:#}")));
        FAILED
    });
    line.send(&Frame::Status(status))?;
    line.send(&Frame::End)?;
    tcdrain(&line.port).context("cannot drain the second serial port")
}

/// Mounts what a system has.
fn prepare() -> anyhow::Result<()> {
    // Type, folder, options.
    let mounts = [
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("devtmpfs", "/dev", ""),
        ("devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", "mode=1777"),
        ("tmpfs", "/run", "mode=755"),
        ("debugfs", "/sys/kernel/debug", ""),
        ("tracefs", "/sys/kernel/tracing", ""),
        ("bpf", "/sys/fs/bpf", ""),
    ];
    for (kind, folder, options) in mounts {
        // Those in sysfs are there if the kernel has them.
        if folder.starts_with("/sys/") && !Path::new(folder).is_dir() {
            continue;
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot make {folder}"))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        match mount(Some(kind), folder, Some(kind), flags, Some(options)) {
            // devtmpfs may be there already, by the kernel's own doing.
            Ok(()) | Err(nix::Error::EBUSY) => {}
            Err(error) => bail!("cannot mount {kind} at {folder}: {error}"),
        }
    }
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("/proc/self/mounts", "/etc/mtab"),
    ];
    for (to, link) in links {
        if let Err(error) = symlink(to, link)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            bail!("cannot link {link}: {error}");
        }
    }
    fs::write("/proc/sys/kernel/hostname", "lab").context("cannot set the host's name")
}

/// The second serial port.
#[derive(Debug)]
struct Line {
    port: File,
    /// Held while a frame is written.
    writing: Mutex<()>,
}

const PORT: &str = "/dev/ttyS1";

impl Line {
    fn open() -> anyhow::Result<Arc<Self>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let port = options.custom_flags(OFlag::O_NOCTTY.bits()).open(PORT);
        let port = port.with_context(|| format!("cannot open {PORT}"))?;
        let raw = || {
            let mut settings = termios::tcgetattr(&port)?;
            termios::cfmakeraw(&mut settings);
            termios::cfsetspeed(&mut settings, BaudRate::B115200)?;
            termios::tcsetattr(&port, SetArg::TCSANOW, &settings)
        };
        raw().with_context(|| format!("cannot set up {PORT}"))?;
        Ok(Arc::new(Self {
            port,
            writing: Mutex::new(()),
        }))
    }

    fn send(&self, frame: &Frame) -> anyhow::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let written = frame.write(&mut &self.port);
        written.with_context(|| format!("cannot write to {PORT}"))
    }

    /// Whether a frame is on its way.
    fn is_busy(&self) -> bool {
        self.writing.try_lock().is_err()
    }

    /// Sends what comes, until it ends.
    fn pass_on(&self, mut from: impl Read, frame: impl Fn(Vec<u8>) -> Frame) -> anyhow::Result<()> {
        let mut bytes = vec![0; LONGEST];
        loop {
            match from.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(read) => self.send(&frame(bytes[..read].to_vec()))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Loads the modules, runs the command and sends what it left; its exit status.
fn obey(orders: &Orders, line: &Arc<Line>) -> anyhow::Result<u8> {
    for load in &orders.modules {
        load_module(load)?;
    }
    // For everybody, as most systems have it.
    let everybody = fs::Permissions::from_mode(0o666);
    if let Err(error) = fs::set_permissions("/dev/kvm", everybody) {
        line.send(&Frame::Note(format!("no /dev/kvm in this lab: {error}")))?;
    }
    furnish(orders)?;
    let before = Files::of(&orders.outputs);
    let status = run(orders, line)?;
    if !orders.disks.is_empty() {
        // The machine is gone once the status is known.
        sync();
    }
    for (path, stamp) in Files::of(&orders.outputs).0 {
        if before.0.get(&path) != Some(&stamp) {
            send_file(&path, line)?;
        }
    }
    Ok(status)
}

/// Disks and TAPs.
fn furnish(orders: &Orders) -> anyhow::Result<()> {
    disk::link(&orders.disks)?;
    orders.taps.iter().try_for_each(|name| tap::make(name))
}

/// Loads a module, if it is not there.
pub(super) fn load_module(load: &Load) -> anyhow::Result<()> {
    if Path::new("/sys/module")
        .join(&load.name)
        .join("refcnt")
        .exists()
    {
        return Ok(());
    }
    let file = File::open(&load.file);
    let file = file.with_context(|| format!("cannot open {}", load.file.display()))?;
    let parameters = CString::new(load.parameters.as_str()).context("module parameters")?;
    finit_module(&file, &parameters, ModuleInitFlags::empty())
        .with_context(|| format!("cannot load the module {} {}", load.name, load.parameters))
}

fn command(orders: &Orders) -> Command {
    let mut command = Command::new(&orders.program);
    command.args(&orders.args).current_dir(&orders.cwd);
    command.env_clear().envs(ENVIRONMENT);
    command.envs(orders.env.iter().map(|(name, value)| (name, value)));
    command
}

/// How long the command's output is waited for once it has ended and nothing of it is on its way:
/// who it left behind may hold on to it for ever.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long at most, whatever is on its way: an emulated serial port takes its time.
const LONGEST_WORDS: Duration = Duration::from_secs(60);

fn run(orders: &Orders, line: &Arc<Line>) -> anyhow::Result<u8> {
    let mut command = command(orders);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.process_group(0).spawn();
    let mut child: Child =
        child.with_context(|| format!("cannot start {}", orders.program.display()))?;
    let group = Pid::from_raw(i32::try_from(child.id()).context("process id")?);
    let listening = line.clone();
    // Ends with the lab.
    thread::spawn(move || {
        let mut byte = [0];
        while (&listening.port).read_exact(&mut byte).is_ok() {
            let signal = match byte {
                [INTERRUPT] => Signal::SIGINT,
                [STANDSTILL] => Signal::SIGUSR1,
                _ => continue,
            };
            // It may have ended just now.
            let _ = killpg(group, signal);
        }
    });
    let mut streams = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let line = line.clone();
        streams.push(thread::spawn(move || line.pass_on(stdout, Frame::Stdout)));
    }
    if let Some(stderr) = child.stderr.take() {
        let line = line.clone();
        streams.push(thread::spawn(move || line.pass_on(stderr, Frame::Stderr)));
    }
    let status = child.wait().context("cannot wait for the command")?;
    let end = Instant::now();
    let mut silent_since = end;
    while !streams.iter().all(thread::JoinHandle::is_finished)
        && silent_since.elapsed() < LAST_WORDS
        && end.elapsed() < LONGEST_WORDS
    {
        if line.is_busy() {
            silent_since = Instant::now();
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(step::number(status))
}

/// Regular files with what changes when they do: inode, size, time of the last change.
#[derive(Debug, Default)]
struct Files(BTreeMap<PathBuf, (u64, u64, i64, i64)>);

impl Files {
    fn of(paths: &[PathBuf]) -> Self {
        let mut files = Self::default();
        let device = fs::metadata("/").map_or(0, |root| root.dev());
        paths.iter().for_each(|path| files.add(path, device));
        files
    }

    /// Adds a file, or a folder's. What has gone meanwhile is not there, and other file systems
    /// (proc, sysfs, …) hold no files of interest.
    fn add(&mut self, path: &Path, device: u64) {
        let Ok(found) = path.symlink_metadata() else {
            return;
        };
        if found.dev() != device {
            return;
        }
        if found.is_file() {
            let stamp = (found.ino(), found.size(), found.ctime(), found.ctime_nsec());
            self.0.insert(path.to_owned(), stamp);
        } else if found.is_dir() {
            for entry in path.read_dir().into_iter().flatten().flatten() {
                self.add(&entry.path(), device);
            }
        }
    }
}

fn send_file(path: &Path, line: &Line) -> anyhow::Result<()> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    line.send(&Frame::File(FileHead {
        path: path.to_owned(),
        mode: path.metadata()?.mode(),
        size: bytes.len() as u64,
    }))?;
    line.pass_on(&bytes[..], Frame::Data)
}

/// How the line begins that tells, on the kernel's console, how a person's command ended.
const STATUS: &str = "lab: status ";

/// The status that the kernel's console tells.
pub(crate) fn status_in(console: &str) -> Option<u8> {
    let mut told = console
        .lines()
        .filter_map(|line| line.trim().strip_prefix(STATUS));
    told.next_back()?.parse().ok()
}

/// Gives the second serial port to a person.
fn shell(orders: &Orders, (rows, columns): (u16, u16)) -> anyhow::Result<()> {
    let open = || OpenOptions::new().read(true).write(true).open(PORT);
    let port = open().with_context(|| format!("cannot open {PORT}"))?;
    for load in &orders.modules {
        if let Err(error) = load_module(load) {
            writeln!(&port, "lab: {error:#}")?;
        }
    }
    if let Err(error) = furnish(orders) {
        writeln!(&port, "lab: {error:#}")?;
    }
    let size = nix::libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: `port` is open, and TIOCSWINSZ reads one winsize, which `size` is.
    unsafe { nix::libc::ioctl(port.as_raw_fd(), nix::libc::TIOCSWINSZ, &raw const size) };
    let mut command = command(orders);
    command
        .stdin(port.try_clone()?)
        .stdout(port.try_clone()?)
        .stderr(port.try_clone()?);
    // SAFETY: between fork and exec the closure makes two system calls and touches no memory that
    // another thread may have locked.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            // The port is stdin by now; it becomes the shell's terminal, for Ctrl-C and jobs.
            nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    let status = command.status();
    let status = status.with_context(|| format!("cannot start {}", orders.program.display()));
    if let Err(error) = &status {
        writeln!(&port, "lab: {error:#}")?;
    }
    // On the kernel's console.
    eprintln!("{STATUS}{}", status.map_or(FAILED, step::number));
    tcdrain(&port).context("cannot drain the second serial port")
}
