//! How a run ends: the first cause wins, and everyone hears of it.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Why a run ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The guest wrote this exit status.
    Exit(u32),
    /// The guest powered the machine off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// The milestone of this name was reached.
    Milestone(String),
    /// The guest reset the machine more often than it may.
    ResetLimit,
    /// The guest's kernel said on its console that it cannot go on: its message.
    Panic(String),
    /// Triple fault on this vCPU.
    TripleFault(u32),
    /// The time limit.
    Timeout,
    /// A signal of this number.
    Signal(i32),
    /// The escape key.
    EscapeKey,
    /// KVM could not go on.
    Kvm(String),
    /// A fault of our own, or the host's.
    Internal(String),
    /// The machine could not be built again after a reset.
    Rebuild {
        /// The exit status that the reason calls for.
        status: u8,
        /// The reason.
        why: String,
    },
}

/// Shared by the vCPU threads and the event loop.
#[derive(Debug)]
pub struct Control {
    stopping: AtomicBool,
    cause: Mutex<Option<Cause>>,
    /// What the guest's kernel panicked for.
    panic: Mutex<Option<String>>,
    event: EventFd,
}

impl Control {
    /// Nothing has ended yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            stopping: AtomicBool::new(false),
            cause: Mutex::new(None),
            panic: Mutex::new(None),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Ends the run, unless it has been ended before.
    pub fn finish(&self, cause: Cause) {
        self.cause
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .get_or_insert(cause);
        self.stopping.store(true, Ordering::Release);
        // A full counter (EAGAIN) has woken the reader already.
        let _ = self.event.write(1);
    }

    /// Whether the run is ending: what each vCPU looks at before it enters the guest.
    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Remembers what the guest's kernel panics for; the run goes on until the guest ends it.
    pub fn panicked(&self, message: String) {
        let mut panic = self.panic.lock().unwrap_or_else(|e| e.into_inner());
        panic.get_or_insert(message);
    }

    /// Why. A reset or a triple fault after a panic is the panic's.
    pub fn cause(&self) -> Option<Cause> {
        let cause = self
            .cause
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .clone()?;
        let panic = self.panic.lock().unwrap_or_else(|e| e.into_inner()).clone();
        Some(match (cause, panic) {
            (Cause::Reset | Cause::TripleFault(_) | Cause::Panic(_), Some(message)) => {
                Cause::Panic(message)
            }
            (cause, _) => cause,
        })
    }

    /// Readable once the run is ending.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_wins() {
        let control = Control::new().unwrap();
        assert!(!control.stopping());
        control.finish(Cause::Timeout);
        control.finish(Cause::Exit(0));
        assert!(control.stopping());
        assert_eq!(control.cause(), Some(Cause::Timeout));
    }

    #[test]
    fn a_reset_after_a_panic_is_the_panics() {
        let control = Control::new().unwrap();
        control.panicked("first".into());
        control.panicked("second".into());
        assert_eq!(control.cause(), None);
        control.finish(Cause::Reset);
        assert_eq!(control.cause(), Some(Cause::Panic("first".into())));
        let control = Control::new().unwrap();
        control.panicked("first".into());
        control.finish(Cause::PowerOff);
        assert_eq!(control.cause(), Some(Cause::PowerOff));
    }
}
