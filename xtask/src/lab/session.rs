//! A machine's life from its start to its end: what its agent says reaches whoever asked, and
//! whatever happens here, nothing is left running.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;
use nix::time::ClockId;
use nix::unistd::Pid;

use super::machine::{Launch, Results};
use super::protocol::{Frame, INTERRUPT, Reader, STANDSTILL};
use crate::signals::Caught;

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The command ended with this status, and all it left has come.
    Status(u8),
    /// The time limit was reached.
    TimeLimit,
    /// A signal asked for the end.
    Interrupted(Signal),
    /// The machine ended before the command did.
    Died,
}

/// How often what cannot wake us is looked at: signals, the machine's end, a file that grows.
const LOOK: Duration = Duration::from_millis(10);
/// How long an interrupted command may take to end by itself.
const GRACE: Duration = Duration::from_secs(20);

/// Starts a machine and follows it until the agent has said all, giving frames to `hear`. A command
/// that says nothing for so much CPU time of the emulator's (`patience`) is told that it stands still.
pub(crate) fn run(
    launch: Launch,
    machine_log: &Path,
    limit: Duration,
    patience: Option<Duration>,
    hear: &mut dyn FnMut(Frame) -> anyhow::Result<()>,
) -> anyhow::Result<End> {
    let caught = Caught::new()?;
    let start = Instant::now();
    let Launch {
        mut command,
        results,
    } = launch;
    let log = || File::create(machine_log).and_then(|log| Ok((log.try_clone()?, log)));
    let (log, same_log) =
        log().with_context(|| format!("cannot write {}", machine_log.display()))?;
    command.stderr(log);
    match results {
        Results::Stdio => command.stdin(Stdio::piped()).stdout(Stdio::piped()),
        Results::File(_) => command.stdin(Stdio::null()).stdout(same_log),
    };
    // A Ctrl-C at the terminal is for us alone: we decide what it means.
    command.process_group(0);
    let mut emulator = Emulator::start(&mut command)?;

    let (to_us, frames) = mpsc::channel();
    let over = Arc::new(AtomicBool::new(false));
    if let Some(stdout) = emulator.0.stdout.take() {
        thread::spawn(move || read_all(stdout, &to_us));
    } else if let Results::File(path) = results {
        let over = over.clone();
        thread::spawn(move || follow(&path, &over, &to_us));
    }
    let mut inwards = emulator.0.stdin.take();

    let (mut said_hello, mut status, mut asked_at) = (false, None, None);
    // What the emulator had computed when the command last said something.
    let mut heard_at = Duration::ZERO;
    loop {
        match frames.recv_timeout(LOOK) {
            Ok(Frame::Status(of_command)) => status = Some(of_command),
            Ok(Frame::End) => return Ok(status.map_or(End::Died, End::Status)),
            Ok(frame) => {
                said_hello = true;
                heard_at = emulator.cpu_time();
                hear(frame)?;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(End::Died),
        }
        // What is still in a file is read to its end; a pipe ends by itself.
        if emulator.has_ended()? {
            over.store(true, Ordering::Relaxed);
        }
        if said_hello && patience.is_some_and(|most| emulator.cpu_time() > heard_at + most) {
            // Once more after the next such time, if that does not help.
            send(inwards.as_mut(), STANDSTILL);
            heard_at = emulator.cpu_time();
        }
        if start.elapsed() > limit {
            return Ok(End::TimeLimit);
        }
        if let Some(signal) = caught.take() {
            let gently = signal == Signal::SIGINT && said_hello && asked_at.is_none();
            if gently && send(inwards.as_mut(), INTERRUPT) {
                asked_at = Some(Instant::now());
            } else {
                return Ok(End::Interrupted(signal));
            }
        }
        if asked_at.is_some_and(|at: Instant| at.elapsed() > GRACE) {
            return Ok(End::Interrupted(Signal::SIGINT));
        }
    }
}

fn send(to: Option<&mut ChildStdin>, byte: u8) -> bool {
    to.is_some_and(|to| to.write_all(&[byte]).and_then(|()| to.flush()).is_ok())
}

fn read_all(mut from: impl Read, to: &Sender<Frame>) {
    let (mut reader, mut bytes) = (Reader::default(), vec![0; 64 << 10]);
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        for frame in reader.take(&bytes[..read]) {
            // Nobody listens any more.
            if to.send(frame).is_err() {
                return;
            }
        }
    }
}

/// Reads a file that grows until the end after `over` was set.
fn follow(path: &Path, over: &AtomicBool, to: &Sender<Frame>) {
    let (mut reader, mut bytes) = (Reader::default(), Vec::new());
    let mut file = None;
    loop {
        let last = over.load(Ordering::Relaxed);
        if file.is_none() {
            file = File::open(path).ok();
        }
        if let Some(file) = &mut file {
            bytes.clear();
            // What was read before an error counts.
            let _ = file.read_to_end(&mut bytes);
            for frame in reader.take(&bytes) {
                if to.send(frame).is_err() {
                    return;
                }
            }
        }
        if last {
            return;
        }
        thread::sleep(LOOK);
    }
}

/// Starts a machine whose second serial port is the terminal, and waits for its end.
pub(crate) fn at_terminal(mut command: Command, machine_log: &Path) -> anyhow::Result<End> {
    let caught = Caught::new()?;
    let log = File::create(machine_log);
    command.stderr(log.with_context(|| format!("cannot write {}", machine_log.display()))?);
    let mut emulator = Emulator::start(&mut command)?;
    loop {
        if emulator.has_ended()? {
            return Ok(End::Status(0));
        }
        if let Some(signal) = caught.take() {
            return Ok(End::Interrupted(signal));
        }
        thread::sleep(LOOK);
    }
}

/// A machine that runs: killed and reaped when this is dropped, and killed by the kernel should
/// this process be killed itself.
#[derive(Debug)]
struct Emulator(Child);

impl Emulator {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let us = nix::unistd::getpid();
        // SAFETY: between fork and exec the closure makes two system calls and touches no memory
        // that another thread may have locked.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                // Killed between the fork and here: nobody is left to be waited for.
                if nix::unistd::getppid() != us {
                    return Err(std::io::Error::from(nix::Error::ESRCH));
                }
                Ok(())
            });
        }
        let child = command.spawn();
        let program = command.get_program().display();
        Ok(Self(
            child.with_context(|| format!("cannot start {program}"))?,
        ))
    }

    /// The CPU time it has taken, which a busy host does not stretch; nothing once it has ended.
    fn cpu_time(&self) -> Duration {
        let pid = i32::try_from(self.0.id()).map_or(-1, |pid| pid);
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid));
        let time = clock.and_then(ClockId::now);
        time.map_or(Duration::ZERO, Duration::from)
    }

    fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self
            .0
            .try_wait()
            .context("cannot wait for the lab")?
            .is_some())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to kill, and this reaps it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that is a shell script with these frames at hand in files `0`, `1`, ….
    fn machine(script: &str, frames: &[Frame], to_file: bool) -> (End, Vec<Frame>) {
        let folder = tempfile::tempdir().unwrap();
        for (i, frame) in frames.iter().enumerate() {
            let mut file = File::create(folder.path().join(i.to_string())).unwrap();
            frame.write(&mut file).unwrap();
        }
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(folder.path());
        let results = if to_file {
            Results::File(folder.path().join("results"))
        } else {
            Results::Stdio
        };
        let mut heard = Vec::new();
        let log = folder.path().join("log");
        let launch = Launch { command, results };
        let (limit, patience) = (Duration::from_secs(5), Duration::from_millis(100));
        let end = run(launch, &log, limit, Some(patience), &mut |frame| {
            heard.push(frame);
            Ok(())
        });
        (end.unwrap(), heard)
    }

    fn frames() -> [Frame; 4] {
        [
            Frame::Hello("6".to_owned()),
            Frame::Stdout(b"x".to_vec()),
            Frame::Status(3),
            Frame::End,
        ]
    }

    #[test]
    fn the_end_is_when_the_agent_says_so() {
        let frames = frames();
        for (script, to_file) in [
            ("cat 0 1 2 3; sleep 100", false),
            (
                "cat 0 1 >> results; sleep 0.1; cat 2 3 >> results; sleep 100",
                true,
            ),
            ("cat 0 1 2 3 > results", true),
        ] {
            let (end, heard) = machine(script, &frames, to_file);
            assert_eq!(
                (end, &heard[..]),
                (End::Status(3), &frames[..2]),
                "{script}"
            );
        }
    }

    #[test]
    fn a_machine_that_dies_or_hangs() {
        let frames = frames();
        let (end, heard) = machine("cat 0 1 2", &frames, false);
        assert_eq!((end, heard.len()), (End::Died, 2));
        let (end, heard) = machine("cat 0 > results; head -c 9 1 >> results", &frames, true);
        assert_eq!((end, heard.len()), (End::Died, 1));
        let (end, _) = machine("cat 0; exec sleep 100", &frames, false);
        assert_eq!(end, End::TimeLimit);
    }

    #[test]
    fn who_computes_and_says_nothing_is_told() {
        // It goes on when it has read a byte.
        let busy = "cat 0; exec 3<&0; head -c 1 <&3 >said & while ! [ -s said ]; do :; done; \
                    [ $(od -An -tu1 said) = 4 ] && cat 1 2 3";
        let (end, heard) = machine(busy, &frames(), false);
        assert_eq!((end, heard.len()), (End::Status(3), 2));
    }
}
