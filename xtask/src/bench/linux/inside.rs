//! What counts inside the lab: this very program, once more, beside the VMMs that it starts.
//!
//! Every VMM is cut alike. The lab has one CPU, and this process has it whenever it wants
//! (`SCHED_FIFO`): as soon as a VMM has written the end of the line by which `/init` says that it is
//! there, it has given up the CPU, and before it gets it back it is stopped by SIGSTOP. Then everything is
//! read: no further guest entry happens. Under `-icount` that is always the same instruction.
//!
//! **A guest may deadlock, by the emulator's fault.** QEMU's TCG delivers what KVM injects (EVENTINJ) and
//! keeps the vector as a pending exception until the next exit or exception of the guest. If its
//! instruction budget runs out before (`-icount`: at each of the lab's own timers), it delivers the vector
//! again, with interrupts off too: a timer interrupt within the timer interrupt, which waits for ever for
//! the lock that the outer one holds. The lab's clock hardly advances meanwhile (PAUSE is slow), so no
//! limit by that clock ends it: outside, the emulator's CPU time is looked at, and a SIGUSR1 sent. Then
//! the boot is made again, from zero.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::hist::{self, Counted, Counting};
use super::names;
use crate::signals::Caught;
use crate::smaps::{self, Resident};

/// Boot Linux on several VMMs, started in a lab by `cargo xtask bench linux`
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct InLab {
    /// What to boot, JSON
    plan: PathBuf,
}

/// What to boot.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// One after the other.
    pub(crate) boots: Vec<Boot>,
    /// The line at which a boot is over.
    pub(crate) until: String,
    /// After so many seconds of the lab's clock it has failed.
    pub(crate) limit: u64,
    /// Guest memory, bytes: the mapping of this size is no memory of the VMM's.
    pub(crate) memory: u64,
}

/// One boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Boot {
    /// What is booted by what, for progress and complaints.
    pub(crate) name: String,
    /// The words that start the VMM, whose standard output is the guest's console.
    pub(crate) words: Vec<OsString>,
    /// Whether exits are counted; otherwise only time is, and memory.
    pub(crate) counted: bool,
}

/// What a boot came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reading {
    /// Nanoseconds of the lab's clock, from the start of the VMM to the line.
    pub(crate) time: u64,
    /// Memory besides the guest's, at the line.
    pub(crate) memory: Resident,
    /// Lines on the console.
    pub(crate) lines: u64,
    /// What was counted; `None` if nothing was to be.
    pub(crate) counts: Option<Counts>,
    /// How often it was booted before, and stood still.
    pub(crate) stood_still: u32,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Exits, by the processor's code.
    pub(crate) exits: Vec<Row>,
    /// Nested page faults, by what lies at the guest-physical address ([`names::place`]).
    pub(crate) faults: Vec<Row>,
    /// Returns of KVM_RUN, by KVM_EXIT_….
    pub(crate) returns: Vec<Row>,
    /// Port accesses; `write`: OUT.
    pub(crate) ports: Vec<Row>,
    /// MSR accesses; `write`: WRMSR.
    pub(crate) msrs: Vec<Row>,
    /// CPUID, by leaf.
    pub(crate) leaves: Vec<Row>,
}

/// One key and its count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) key: u64,
    pub(crate) write: bool,
    pub(crate) count: u64,
}

/// A boot's reading, or why there is none.
pub(crate) type Said = Result<Reading, String>;

impl InLab {
    /// Boots everything; prints one JSON text, and a line on stderr for each boot that is done.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        let plan = fs::read(&self.plan);
        let plan = plan.with_context(|| format!("cannot read {}", self.plan.display()))?;
        let plan: Plan = serde_json::from_slice(&plan).context("the plan")?;
        come_first()?;
        let told = Caught::of(&[Signal::SIGUSR1])?;
        let mut said: Vec<Said> = Vec::new();
        for boot in &plan.boots {
            let reading = boot.read_moving(&plan, &told);
            said.push(reading.map_err(|error| format!("{error:#}")));
            eprintln!("{}", boot.name);
        }
        println!("{}", serde_json::to_string(&said)?);
        Ok(0)
    }
}

/// Takes the CPU whenever there is something to do; what is started does not.
fn come_first() -> anyhow::Result<()> {
    let parameters = libc::sched_param { sched_priority: 10 };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: sched_setscheduler reads one sched_param, which `parameters` is.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    nix::errno::Errno::result(result).context("cannot come before the VMMs (SCHED_FIFO)")?;
    Ok(())
}

/// A VMM that is ended when this is dropped.
struct Vmm(Child);

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A boot that stands still is made again so often.
const AGAIN: u32 = 4;

impl Boot {
    /// Reads it; again if it stood still.
    fn read_moving(&self, plan: &Plan, told: &Caught) -> anyhow::Result<Reading> {
        for stood_still in 0..=AGAIN {
            // What came too late for the one before is not for this one.
            told.take();
            let reading = self.read(plan);
            if reading.is_ok() || told.take().is_none() {
                return Ok(Reading {
                    stood_still,
                    ..reading?
                });
            }
            eprint!("{} stood still; ", self.name);
        }
        bail!("it stood still in the lab {} times", AGAIN + 1)
    }

    fn read(&self, plan: &Plan) -> anyhow::Result<Reading> {
        let counting = self.counted.then(Counting::start).transpose()?;
        let (program, args) = self.words.split_first().context("nothing to start")?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = Instant::now();
        let child = command.spawn();
        let child = child.with_context(|| format!("cannot start {}", program.display()))?;
        let mut vmm = Vmm(child);
        let pid = Pid::from_raw(i32::try_from(vmm.0.id()).context("process id")?);
        let limit = Duration::from_secs(plan.limit);
        let console = until(&mut vmm.0, &plan.until, limit)?;
        // From here to the last counter nothing may make us wait.
        kill(pid, Signal::SIGSTOP).context("cannot stop the VMM")?;
        let time = start.elapsed();
        let counts = counting.as_ref().map(|_| Counts::read()).transpose()?;
        Ok(Reading {
            time: u64::try_from(time.as_nanos()).context("time")?,
            memory: smaps::resident(pid.as_raw(), plan.memory)
                .context("guest memory could not be told apart from the rest")?,
            lines: console.iter().filter(|byte| **byte == b'\n').count() as u64,
            counts,
            stood_still: 0,
        })
    }
}

/// Reads the console up to the end of the line that begins with this text; what it said.
fn until(vmm: &mut Child, line: &str, limit: Duration) -> anyhow::Result<Vec<u8>> {
    let start = Instant::now();
    let mut console = Vec::new();
    let mut stdout = vmm.stdout.take().context("no standard output")?;
    let mut bytes = vec![0; 1 << 16];
    // Where the last line begins: most reads are of a byte, and looking costs time.
    let mut last = 0;
    loop {
        wait_for(&stdout, limit.saturating_sub(start.elapsed()))?;
        let read = stdout.read(&mut bytes).context("cannot read the console")?;
        let before = console.len();
        console.extend_from_slice(&bytes[..read]);
        if let Some(end) = bytes[..read].iter().rposition(|byte| *byte == b'\n') {
            if contains(&console[last..], line.as_bytes()) {
                return Ok(console);
            }
            last = before + end + 1;
        }
        if read == 0 {
            // It may hold its output open no longer, and still be there.
            let _ = vmm.kill();
            let mut why = String::new();
            if let Some(mut stderr) = vmm.stderr.take() {
                let _ = stderr.read_to_string(&mut why);
            }
            let why = if why.trim().is_empty() {
                String::from_utf8_lossy(&console).into_owned()
            } else {
                why
            };
            bail!("it ended before user space: {}", last_line(&why));
        }
        if start.elapsed() >= limit {
            let said = String::from_utf8_lossy(&console).into_owned();
            bail!("no user space after {limit:?}; last: {}", last_line(&said));
        }
    }
}

/// Waits until there is something to read, or time is up.
fn wait_for(file: &impl std::os::fd::AsFd, limit: Duration) -> anyhow::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(0) => bail!("no user space in time"),
        Ok(_) => Ok(()),
        // No signal has a handler here but the one that says so.
        Err(nix::Error::EINTR) => bail!("it stands still"),
        Err(error) => Err(error).context("poll"),
    }
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|part| part == what)
}

fn last_line(text: &str) -> String {
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or("it said nothing").trim().to_owned()
}

impl Counts {
    fn read() -> anyhow::Result<Self> {
        let rows = |hist: hist::Hist| Ok::<_, anyhow::Error>(rows_of(&hist.read()?));
        Ok(Self {
            exits: rows(hist::EXITS)?,
            faults: rows_of(&folded(hist::FAULTS.read()?)),
            returns: rows(hist::RETURNS)?,
            ports: rows(hist::PORTS)?,
            msrs: rows(hist::MSRS)?,
            leaves: rows(hist::LEAVES)?,
        })
    }
}

/// Addresses by what lies there: a serial port takes long for all of them.
fn folded(counted: Counted) -> Counted {
    let mut folded = Counted::new();
    for ((address, other), count) in counted {
        *folded.entry((names::place(address), other)).or_default() += count;
    }
    folded
}

fn rows_of(counted: &Counted) -> Vec<Row> {
    let row = |(&(key, write), &count)| Row {
        key,
        write: write != 0,
        count,
    };
    counted.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ends_too_soon_is_heard() {
        let until_end = |script: &str, limit| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut vmm = Vmm(command.spawn().unwrap());
            let said = until(&mut vmm.0, "here", limit);
            said.map_err(|error| format!("{error:#}"))
        };
        let long = Duration::from_secs(60);
        let bytewise = "echo one; printf he; sleep 0.1; printf re; sleep 0.1; echo";
        assert_eq!(until_end(bytewise, long).unwrap(), b"one\nhere\n");
        let error = until_end("echo one; echo no KVM >&2", long).unwrap_err();
        assert_eq!(error, "it ended before user space: no KVM");
        let error = until_end("exec sleep 60", Duration::from_millis(10)).unwrap_err();
        assert!(error.starts_with("no user space"), "{error}");
    }
}
