//! What black-box tests are made of: the built programs, a run of them, and a word on a skip.
//!
//! `cargo xtask test` builds the programs and tells where they are; started by `cargo test`
//! alone, the first test of a file builds them.
// A harness may stop a test by panicking: that is how tests fail.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use exitvisor::profile::{KvmKind, Profile};

pub mod accounts;
pub mod bzimage;
pub mod code;
pub mod confined;
pub mod elf;
pub mod linux;
pub mod live;
pub mod witness;

pub use live::Live;

/// Longer than any run here takes: a test that waits so long has found a hang.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where the built programs are.
struct Built {
    exitvisor: PathBuf,
    guests: PathBuf,
}

fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        let from = |name| std::env::var_os(name).map(PathBuf::from);
        if let (Some(exitvisor), Some(guests)) = (from("EXITVISOR_BIN"), from("EXITVISOR_GUESTS")) {
            return Built { exitvisor, guests };
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("the workspace");
        let output = Command::new(env!("CARGO"))
            .args(["xtask", "build"])
            .current_dir(root)
            .stderr(Stdio::inherit())
            .output()
            .expect("cargo xtask build");
        assert!(output.status.success(), "cargo xtask build failed");
        let text = String::from_utf8(output.stdout).expect("paths in UTF-8");
        let mut paths = text.lines().map(|line| root.join(line));
        let exitvisor = paths.next().expect("the path of exitvisor");
        let kernel = paths.next().expect("the path of the guest kernel");
        Built {
            exitvisor,
            guests: kernel.parent().expect("a folder").to_owned(),
        }
    })
}

/// The built `exitvisor`.
pub fn exitvisor() -> &'static Path {
    &built().exitvisor
}

/// A built guest: `guest-kernel`, `firmware`, or one of `tests/guests/`.
pub fn guest(name: &str) -> PathBuf {
    let path = built().guests.join(name);
    assert!(path.is_file(), "no such guest: {}", path.display());
    path
}

/// A finished run of `exitvisor`.
#[derive(Debug)]
pub struct Run {
    /// Exit status; -N if signal N ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error, but for the notice.
    pub stderr: String,
    /// What was said of a kernel ledger that could not be had: that depends on the host and on
    /// whoever runs the tests.
    pub notice: Option<String>,
    /// How long it took.
    pub took: Duration,
}

impl Run {
    /// Checks the exit status, and shows everything if it is another.
    #[track_caller]
    pub fn expect_status(self, status: u8) -> Self {
        assert_eq!(self.status, i32::from(status), "{self:#?}");
        self
    }

    /// Checks that standard error is exactly one line of ours which contains all of `parts`.
    #[track_caller]
    pub fn expect_one_line(self, parts: &[&str]) -> Self {
        assert_eq!(self.stderr.lines().count(), 1, "{self:#?}");
        assert!(self.stderr.starts_with("exitvisor: "), "{self:#?}");
        self.expect_stderr(parts)
    }

    /// Checks that standard error contains all of `parts`.
    #[track_caller]
    pub fn expect_stderr(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(
                self.stderr.contains(part),
                "stderr lacks {part:?}: {self:#?}"
            );
        }
        self
    }

    /// The profile on standard output (of `profile --format json`); its accounts are closed.
    #[track_caller]
    pub fn profile(&self) -> Profile {
        match exitvisor::profile::load::parse(self.stdout.as_bytes(), "standard output") {
            Ok(profile) => {
                accounts::check_closed(&profile);
                profile
            }
            Err(error) => panic!("no profile: {error}: {self:#?}"),
        }
    }
}

/// An `exitvisor` to be started with these arguments: standard input is empty, its outputs are
/// pipes, and it leads a process group of its own.
pub fn command<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(exitvisor());
    command
        .args(args)
        .env_remove("EXITVISOR_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    command
}

/// Starts `exitvisor` with these arguments.
pub fn start<S: AsRef<OsStr>>(args: &[S]) -> Child {
    command(args).spawn().expect("exitvisor starts")
}

/// Waits for it, at most [`PATIENCE`].
#[track_caller]
pub fn finish(child: Child) -> Run {
    Live::of(child).finish()
}

/// Runs `exitvisor` with these arguments to its end.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(args: &[S]) -> Run {
    finish(start(args))
}

/// Profiles a guest: JSON on standard output, its console on standard error.
#[track_caller]
pub fn profile(guest_name: &str, args: &[&str]) -> Run {
    let kernel = guest(guest_name);
    let kernel = kernel.to_str().expect("a path in UTF-8");
    run(&[&["profile", "--format", "json", "--kernel", kernel], args].concat())
}

/// Writes a file into a folder.
pub fn file(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).expect("a file to write");
    path
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// An `exitvisor` for which permissions hold: run by root it is started as nobody. `None` if nobody
/// may not even start it.
pub fn unprivileged<S: AsRef<OsStr>>(args: &[S]) -> Option<Command> {
    const NOBODY: u32 = 65534;
    let demoted = |mut command: Command| {
        // We own /proc/self.
        if std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0) {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    };
    let version = demoted(command(&["--version"])).output();
    version
        .ok()?
        .status
        .success()
        .then(|| demoted(command(args)))
}

/// Which KVM this host has; `None` if it has none that we may use.
pub fn kvm() -> Option<KvmKind> {
    let usable = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    usable.then(exitvisor::host::kvm_kind)
}

/// Whether the host has so much memory; if not, part of the test `name` is skipped.
pub fn host_has(name: &str, mib: u64) -> bool {
    let has = exitvisor::memory::host_total().is_none_or(|total| mib << 20 <= total);
    if !has {
        skip(name, &format!("{mib} MiB is more than this host has"));
    }
    has
}

/// Says that a test cannot run here, in the words that `cargo xtask test` collects.
pub fn skip(name: &str, why: &str) {
    let line = format!("skipped: {name}: {why}\n");
    eprint!("{line}");
    if let Some(file) = std::env::var_os("EXITVISOR_SKIPPED") {
        let _ = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(file)
            .and_then(|mut f| f.write_all(line.as_bytes()));
    }
}

/// Ends the test, as skipped, where there is no KVM.
#[macro_export]
macro_rules! needs_kvm {
    ($name:literal) => {
        if $crate::kvm().is_none() {
            return $crate::skip($name, "no usable /dev/kvm");
        }
    };
}

/// Whether this is root.
pub fn is_root() -> bool {
    // We own /proc/self.
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// The lab that the tests run in (`cargo xtask test` says so): `amd` or `intel`. What is the whole
/// system's may be changed there, and put back.
pub fn lab() -> Option<String> {
    std::env::var("EXITVISOR_LAB")
        .ok()
        .filter(|lab| !lab.is_empty())
}

/// How many CPUs this host has.
pub fn host_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Why hardware's exits cannot be traced here by whoever runs the tests; `None` where they can.
pub fn no_ledger() -> Option<&'static str> {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    let why = WHY.get_or_init(|| {
        if kvm().is_none() {
            return Some("no usable /dev/kvm".to_owned());
        }
        let profile = profile("guest-kernel", &["--cmdline", "log=off"]).profile();
        if accounts::has_ledger(&profile) {
            return None;
        }
        if profile.host.kvm == KvmKind::Software {
            return Some("software KVM traces no hardware exits".to_owned());
        }
        let source = profile.sources.iter().find(|s| s.name == accounts::KERNEL);
        Some(
            source
                .map_or("no kernel ledger", |s| &s.completeness)
                .to_owned(),
        )
    });
    why.as_deref()
}

/// Ends the test, as skipped, where hardware's exits are not all traced.
#[macro_export]
macro_rules! needs_ledger {
    ($name:literal) => {
        if let Some(why) = $crate::no_ledger() {
            return $crate::skip($name, why);
        }
    };
}

/// A witness from now on, or a word on why the test has none.
pub fn witness(name: &str) -> Option<witness::Witness> {
    witness::Witness::set().map_err(|why| skip(name, &why)).ok()
}
