//! The CPU time of a start: from the process to the guest's first instruction, on this machine, without
//! a lab. The guest is not entered (`--until reset`), so software KVM, which cannot run Linux, will do.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::vmm::{Console, Guest, Programs, Vmm, Way};
use crate::step::{Step, number};

/// CPU time, milliseconds, user and system.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Start {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
    pub(crate) rounds: usize,
}

/// Rounds, after one that warms the host's caches.
const ROUNDS: usize = 20;

/// What of a profile is of interest.
#[derive(Deserialize)]
struct Profile {
    startup_cpu_nanos: Option<u64>,
}

/// Measures it; an error is why it cannot be.
pub(crate) fn measure(exitvisor: &Path, guest: &Guest<'_>) -> anyhow::Result<Start> {
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let profile = folder.path().join("start.json");
    let once = || -> anyhow::Result<f64> {
        let way = Way {
            vmm: Vmm::Ours,
            console: Console::Quiet,
        };
        let programs = Programs {
            exitvisor,
            qemu: &[],
        };
        let words = way.boot(&programs, guest, false).words;
        let (program, args) = words.split_first().context("nothing to start")?;
        let mut step = Step::new(program).args(args);
        step = step.args(["--until", "reset", "--format", "json", "--output"]);
        let output = step.arg(&profile).output()?;
        if number(output.status) != 0 {
            let why = String::from_utf8_lossy(&output.stderr);
            let why = why.lines().last().unwrap_or("it said nothing").to_owned();
            anyhow::bail!("{why}");
        }
        let text = std::fs::read(&profile).context("its profile")?;
        let profile: Profile = serde_json::from_slice(&text).context("its profile")?;
        let nanos = profile.startup_cpu_nanos;
        Ok(nanos.context("the host does not tell CPU time")? as f64 / 1e6)
    };
    once()?;
    let mut times = (0..ROUNDS)
        .map(|_| once())
        .collect::<anyhow::Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    let (Some(min), Some(max)) = (times.first(), times.last()) else {
        anyhow::bail!("nothing was measured");
    };
    Ok(Start {
        min: *min,
        median: times[times.len() / 2],
        max: *max,
        rounds: times.len(),
    })
}
