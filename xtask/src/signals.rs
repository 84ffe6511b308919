//! Signals: xtask outlives a Ctrl-C that is meant for the exitvisor it started.

use anyhow::Context;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

extern "C" fn nothing(_: i32) {}

/// From here on an interrupt from the terminal ends only what we started; its status tells us.
///
/// A handler, not "ignore": exec resets a handler to the default, but hands "ignore" down.
pub(crate) fn outlive_interrupts() -> anyhow::Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing, so it touches no state and calls nothing that is not
    // async-signal-safe; nothing else in this process installs handlers.
    unsafe { sigaction(Signal::SIGINT, &action) }.context("cannot handle SIGINT")?;
    Ok(())
}
