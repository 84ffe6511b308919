//! Signals while a module is not as it was: they end what was started, never this process.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

use crate::signals::Caught;
use crate::step::Ended;

/// A terminal or a service manager sends a signal to everyone at once; who lives so much later has
/// not heard of it.
const GRACE: Duration = Duration::from_millis(300);
/// How often is looked.
const TICK: Duration = Duration::from_millis(20);

/// While this lives, signals that ask for an end do not end this process.
#[derive(Debug)]
pub(super) struct Signals(Caught);

impl Signals {
    /// From here on.
    pub(super) fn new() -> anyhow::Result<Self> {
        let ends = [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
        ];
        Caught::of(&ends).map(Self)
    }

    /// The last one since the last time.
    pub(super) fn take(&self) -> Option<Signal> {
        self.0.take()
    }

    /// Does `f`, and passes signals on to this process's children meanwhile. A Ctrl-C is theirs to
    /// answer; any other is the answer.
    pub(super) fn passed_on<T>(&self, f: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let (over, last) = (AtomicBool::new(false), Mutex::new(None));
        let result = thread::scope(|scope| {
            scope.spawn(|| {
                let mut due: Option<(Instant, Signal)> = None;
                while !over.load(Ordering::Acquire) {
                    if let Some(signal) = self.take() {
                        *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(signal);
                        due = Some((Instant::now() + GRACE, signal));
                    }
                    if let Some((_, signal)) = due.take_if(|(time, _)| *time <= Instant::now()) {
                        children().into_iter().for_each(|child| {
                            // It may have ended just now.
                            let _ = kill(child, signal);
                        });
                    }
                    thread::sleep(TICK);
                }
            });
            // `f` may panic, and then too the scope waits for the thread.
            let _over = Over(&over);
            f()
        });
        let last = last.into_inner().unwrap_or_else(PoisonError::into_inner);
        match last.or(self.take()) {
            None | Some(Signal::SIGINT) => result,
            Some(signal) => Err(interrupted(signal)),
        }
    }
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// That a signal ended it, with a shell's status for that.
pub(super) fn interrupted(signal: Signal) -> anyhow::Error {
    let status = 128 | u8::try_from(signal as i32).unwrap_or(0);
    let ended = Ended {
        what: "cargo xtask".to_owned(),
        status,
    };
    anyhow::Error::new(ended).context(format!("interrupted by {signal}"))
}

/// This process's children.
fn children() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    ids.filter(|id| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        parent(&stat) == Some(getpid())
    })
    .map(Pid::from_raw)
    .collect()
}

/// `PID (NAME) STATE PARENT …`: a name may hold anything, spaces and brackets too (proc(5)).
fn parent(stat: &str) -> Option<Pid> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok().map(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents() {
        assert_eq!(parent("12 (a) b) S 7 12 12 0"), Some(Pid::from_raw(7)));
        assert_eq!(parent(""), None);
    }

    #[test]
    fn statuses_of_interruptions() {
        let error = interrupted(Signal::SIGTERM);
        assert_eq!(error.downcast_ref::<Ended>().map(|e| e.status), Some(143));
    }
}
