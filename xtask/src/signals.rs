//! Signals: xtask outlives a Ctrl-C that is meant for the exitvisor it started, and tells a lab's
//! session and the reloading of KVM's module of those that are for itself.

use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::Context;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

extern "C" fn nothing(_: i32) {}

/// From here on an interrupt from the terminal ends only what we started; its status tells us.
///
/// A handler, not "ignore": exec resets a handler to the default, but hands "ignore" down.
pub(crate) fn outlive_interrupts() -> anyhow::Result<()> {
    handle(Signal::SIGINT, nothing)?;
    Ok(())
}

fn handle(signal: Signal, handler: extern "C" fn(i32)) -> anyhow::Result<SigAction> {
    let action = SigAction::new(
        SigHandler::Handler(handler),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handlers of this module do nothing but store to an atomic, so they touch no other
    // state and call nothing that is not async-signal-safe; nothing else in this process installs
    // handlers.
    unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot handle {signal}"))
}

/// The last signal that was caught; 0 if there was none.
static LAST: AtomicI32 = AtomicI32::new(0);

extern "C" fn keep(signal: i32) {
    LAST.store(signal, Ordering::Relaxed);
}

/// While this lives, signals that ask for the end are kept for who [takes](Self::take) them.
#[derive(Debug)]
pub(crate) struct Caught {
    before: Vec<(Signal, SigAction)>,
}

impl Caught {
    /// From here on.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Self::of(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])
    }

    /// These, from here on.
    pub(crate) fn of(signals: &[Signal]) -> anyhow::Result<Self> {
        let mut caught = Self { before: Vec::new() };
        for &signal in signals {
            caught.before.push((signal, handle(signal, keep)?));
        }
        Ok(caught)
    }

    /// The last one since the last time.
    pub(crate) fn take(&self) -> Option<Signal> {
        Signal::try_from(LAST.swap(0, Ordering::Relaxed)).ok()
    }
}

impl Drop for Caught {
    fn drop(&mut self) {
        for (signal, action) in &self.before {
            // SAFETY: the action was the process's before, so it is valid for it.
            let _ = unsafe { sigaction(*signal, action) };
        }
    }
}
