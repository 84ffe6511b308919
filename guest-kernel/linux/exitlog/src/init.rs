//! `exitlog` as the first process: readings at the steps of user space, then the real init.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::thread::sleep;

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::unistd::{ForkResult, execv, fork, pipe2, read};

use crate::cli::{From, Repeat, duration};
use crate::log::{Form, Label, Log};

/// The real init, if none is named: the first that the kernel itself would try.
const INIT: &str = "/sbin/init";

/// What the kernel's command line says to us.
#[derive(Debug, PartialEq, Eq)]
struct Words {
    init: OsString,
    every: Option<std::time::Duration>,
    count: Option<u32>,
    brief: bool,
    /// Those that mean nothing.
    unknown: Vec<String>,
}

impl Words {
    fn parse(cmdline: &[u8]) -> Self {
        let mut words = Self {
            init: INIT.into(),
            every: None,
            count: None,
            brief: false,
            unknown: Vec::new(),
        };
        let ours = cmdline
            .split(u8::is_ascii_whitespace)
            // What stands behind it is the real init's.
            .take_while(|word| *word != b"--")
            .filter_map(|word| word.strip_prefix(b"exitlog."));
        for word in ours {
            let mut parts = word.splitn(2, |byte| *byte == b'=');
            let (name, value) = (parts.next().unwrap_or_default(), parts.next());
            let text = value.and_then(|value| std::str::from_utf8(value).ok());
            let known = match (name, value) {
                (b"init", Some(path)) if path.starts_with(b"/") => {
                    words.init = OsString::from_vec(path.to_owned());
                    true
                }
                (b"every", _) => {
                    words.every = text.and_then(|text| duration(text).ok());
                    words.every.is_some()
                }
                (b"count", _) => {
                    words.count = text.and_then(|text| text.parse().ok());
                    words.count.is_some()
                }
                (b"brief", None) => {
                    words.brief = true;
                    true
                }
                _ => false,
            };
            if !known {
                let word = String::from_utf8_lossy(word);
                words.unknown.push(format!("exitlog.{word}"));
            }
        }
        words
    }

    /// How many readings are taken beside the real init, and how often.
    fn repeat(&self) -> Repeat {
        Repeat {
            every: self.every,
            count: self.count,
        }
    }
}

/// What is mounted, if it is not yet: the real init may find it there.
const MOUNTS: [(&str, &str); 3] = [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")];

/// Why a file system is not there. One that is there already is well.
fn mount_all() -> Vec<String> {
    let mut complaints = Vec::new();
    for (kind, at) in MOUNTS {
        // It may be there, and the root may be read-only.
        let _ = fs::create_dir(at);
        let flags = MsFlags::MS_NOSUID;
        match mount(Some(kind), at, Some(kind), flags, None::<&str>) {
            Ok(()) | Err(nix::Error::EBUSY) => {}
            Err(error) => complaints.push(format!("cannot mount {at}: {error}")),
        }
    }
    complaints
}

/// Takes the readings that it can and becomes the real init; returns why it could not.
///
/// Whatever goes wrong with the log is said in a line, and the machine boots on.
pub(crate) fn run() -> String {
    match boot() {
        Ok(never) => match never {},
        Err(why) => why,
    }
}

fn boot() -> Result<Infallible, String> {
    let mut log = said(Log::open(From::Auto, Form::Later));
    step(&mut log, 0, "start");
    for complaint in mount_all() {
        eprintln!("exitlog: {complaint}");
    }
    let words = Words::parse(&fs::read("/proc/cmdline").unwrap_or_default());
    for word in &words.unknown {
        eprintln!("exitlog: what is `{word}`? (exitlog.init=/PATH, .every=5s, .count=5, .brief)");
    }
    step(&mut log, 1, "mounts");
    let mut arguments = vec![c_string(words.init.as_bytes())?];
    for argument in std::env::args_os().skip(1) {
        arguments.push(c_string(argument.as_bytes())?);
    }
    step(&mut log, 2, "before exec");
    if let Some(log) = log.take() {
        beside(log, &words);
    }
    let shown = words.init.display();
    match execv(&arguments[0], &arguments) {
        Ok(never) => Ok(never),
        Err(error) => Err(format!(
            "cannot start the real init {shown}: {error} (exitlog.init=PATH names it)"
        )),
    }
}

/// Leaves a child behind that takes the readings beside the real init. It knows that the real init
/// has begun by a pipe whose other end exec(2) closes.
fn beside(log: Log, words: &Words) {
    let forked = pipe2(OFlag::O_CLOEXEC).and_then(|(reader, writer)| {
        // SAFETY: this process has one thread, so that its child may do anything.
        let child = unsafe { fork() }?;
        Ok((child, reader, writer))
    });
    match forked {
        Ok((ForkResult::Child, reader, writer)) => {
            drop(writer);
            follow(log, &reader, words);
            std::process::exit(0);
        }
        Ok((ForkResult::Parent { .. }, _, writer)) => {
            // It closes when this process becomes another, or ends.
            std::mem::forget(writer);
        }
        Err(error) => eprintln!("exitlog: cannot look at the real init: {error}"),
    }
}

/// The child's readings.
fn follow(log: Log, reader: &OwnedFd, words: &Words) {
    let mut log = Some(log);
    while read(reader, &mut [0]) == Err(nix::Error::EINTR) {}
    step(&mut log, 3, "after exec");
    let repeat = words.repeat();
    let form = if words.brief { Form::Line } else { Form::Table };
    if let Some(log) = &mut log {
        said(log.show(form));
    }
    let more = if repeat.every.is_some() || repeat.count.is_some() {
        repeat.count()
    } else {
        0
    };
    for number in 1..=more {
        sleep(repeat.every());
        let Some(open) = &mut log else { return };
        if let Err(error) = open.take(Label::Query(number), None) {
            eprintln!("exitlog: {error}");
            return;
        }
    }
    if let Some(log) = log {
        said(log.finish());
    }
}

/// A reading at a step, told to Exitvisor as a milestone. The log ends with its first error.
fn step(log: &mut Option<Log>, number: u32, name: &'static str) {
    let Some(open) = log else { return };
    let milestone = format!("exitlog: {name}");
    if said(open.take(Label::Step(number, name), Some(&milestone))).is_none() {
        // What it has until here.
        said(open.show(Form::Line));
        *log = None;
    }
}

/// The value, or nothing and a line that says why.
fn said<T>(result: Result<T, crate::error::Error>) -> Option<T> {
    result
        .inspect_err(|error| eprintln!("exitlog: {error}"))
        .ok()
}

fn c_string(bytes: &[u8]) -> Result<CString, String> {
    CString::new(bytes).map_err(|error| io::Error::from(error).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn words_of_the_kernels_command_line() {
        let words = Words::parse(
            b"console=ttyS0 exitlog.init=/real exitlog.every=250ms\texitlog.count=4 quiet \
              exitlog.brief -- exitlog.init=/no\n",
        );
        assert_eq!(words.init, "/real");
        assert_eq!(
            (words.every, words.count),
            (Some(Duration::from_millis(250)), Some(4))
        );
        assert!(words.brief && words.unknown.is_empty());
        let words = Words::parse(
            b"exitlog.init exitlog.init=sh exitlog.count=x exitlog.brief=1 exitlog.\xff",
        );
        assert_eq!(words.init, INIT);
        assert_eq!(words.unknown.len(), 5);
        assert_eq!(words.count, None);
    }
}
