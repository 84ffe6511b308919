//! Runs of exitvisor whose output nobody wants.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::smaps::{Besides, Watch};
use crate::step::{self, Ended, Step};

/// How often the memory of a running exitvisor is looked at.
const SAMPLING: Duration = Duration::from_millis(2);

/// Runs a step and watches its memory: the most that was seen of it.
pub(crate) fn watched(step: Step) -> anyhow::Result<Option<Besides>> {
    let (what, mut child) = spawn(step)?;
    let mut watch = Watch::new(child.id());
    let status = loop {
        watch.sample();
        match child.try_wait()? {
            Some(status) => break status,
            None => std::thread::sleep(SAMPLING),
        }
    };
    ended_well(what, status)?;
    Ok(watch.most())
}

/// Starts it; what it is, too.
pub(crate) fn spawn(mut step: Step) -> anyhow::Result<(String, Child)> {
    let what = step.to_string();
    let command = step
        .command()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = command
        .spawn()
        .with_context(|| format!("cannot start `{what}`"))?;
    Ok((what, child))
}

/// An error unless the status is 0.
pub(crate) fn ended_well(what: String, status: std::process::ExitStatus) -> anyhow::Result<()> {
    match step::number(status) {
        0 => Ok(()),
        status => Err(Ended { what, status }.into()),
    }
}
