//! A run that is still going on: what it has printed, signals to it, its end.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::{PATIENCE, Run};

/// What comes out of one pipe.
struct Output {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Output {
    fn of(from: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let reader = from.map(|mut from| {
            let bytes = bytes.clone();
            thread::spawn(move || {
                let mut some = [0; 4096];
                while let Ok(n @ 1..) = from.read(&mut some) {
                    bytes.lock().expect("no panic").extend(&some[..n]);
                }
            })
        });
        Self { bytes, reader }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no panic")).into_owned()
    }

    fn all(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("a reader");
        }
        self.so_far()
    }
}

/// A started `exitvisor`, killed when dropped.
pub struct Live {
    child: Child,
    stdout: Output,
    stderr: Output,
    started: Instant,
}

impl Live {
    /// Takes over a started child, and reads those of its outputs that are pipes.
    pub fn of(mut child: Child) -> Self {
        Self {
            stdout: Output::of(child.stdout.take()),
            stderr: Output::of(child.stderr.take()),
            child,
            started: Instant::now(),
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Waits until standard output or standard error contains this.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let what = format!("{text:?}");
        self.wait_until(&what, |live| {
            live.stdout.so_far().contains(text) || live.stderr.so_far().contains(text)
        });
    }

    /// Waits until something is so.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        while !is_so(self) {
            let ended = self.child.try_wait().expect("a child to wait for");
            assert!(
                ended.is_none() && self.started.elapsed() < PATIENCE,
                "waited in vain for {what} ({ended:?}); stdout: {}; stderr: {}",
                self.stdout.so_far(),
                self.stderr.so_far(),
            );
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// What it has printed on standard output so far.
    pub fn printed(&self) -> String {
        self.stdout.so_far()
    }

    /// Its process identifier.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("a process to signal");
    }

    /// How long the main thread has kept a CPU busy; nothing where the kernel does not tell.
    pub fn busy(&self) -> Duration {
        let path = format!("/proc/{}/schedstat", self.child.id());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let nanos = text.split(' ').next().and_then(|n| n.parse().ok());
        Duration::from_nanos(nanos.unwrap_or(0))
    }

    /// Waits for the end, at most [`PATIENCE`], and sees that nothing is left running.
    #[track_caller]
    pub fn finish(mut self) -> Run {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child to wait for") {
                break status;
            }
            assert!(
                self.started.elapsed() < PATIENCE,
                "exitvisor hangs; stderr: {}",
                self.stderr.so_far()
            );
            thread::sleep(Duration::from_millis(2));
        };
        let took = self.started.elapsed();
        // It leads a process group of its own, which is now empty.
        assert_eq!(
            killpg(self.pid(), None),
            Err(Errno::ESRCH),
            "something is left running"
        );
        let (notice, stderr) = without_notice(&self.stderr.all());
        Run {
            status: status
                .code()
                .unwrap_or_else(|| -status.signal().unwrap_or(0)),
            stdout: self.stdout.all(),
            stderr,
            notice,
            took,
        }
    }
}

/// The notice, and the text without it.
fn without_notice(text: &str) -> (Option<String>, String) {
    let is_notice = |line: &&str| line.starts_with("exitvisor: no kernel ledger");
    let notice = text.lines().find(is_notice).map(str::to_owned);
    let rest = text.split_inclusive('\n').filter(|line| !is_notice(line));
    (notice, rest.collect())
}

impl Drop for Live {
    fn drop(&mut self) {
        // After `finish` there is nobody left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
