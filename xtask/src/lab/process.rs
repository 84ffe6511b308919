//! A lab in a process of its own, so that one that dies takes nothing with it: this very program,
//! once more.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::build::Built;
use crate::workspace;

/// One of our hidden commands with what has been built, and further arguments to come.
pub(crate) fn command(task: &str, built: &Built) -> anyhow::Result<Command> {
    let mut command = Command::new(workspace::this_program()?);
    command.arg(task).args(built.options());
    Ok(command)
}

/// Starts it: nothing to read, both outputs piped, and it ends when we do.
pub(crate) fn spawn(mut command: Command) -> anyhow::Result<Child> {
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let die_with_us = || prctl::set_pdeathsig(Signal::SIGTERM).map_err(Into::into);
    // SAFETY: between fork and exec the closure makes one system call.
    unsafe { command.pre_exec(die_with_us) };
    command.spawn().context("cannot start xtask")
}
