//! What measures inside the lab: this very program, once more, beside the exitvisor that it starts.
//!
//! The lab's clocks count instructions, so the time between two milestones is how many the host
//! has executed. A workload is run in two lengths, and the difference is divided by the difference
//! of the lengths: whatever a run costs by itself is gone.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::{Context, bail};
use clap::Args;
use exit_abi::milestone::{DEVICES, WORKLOAD};
use serde::{Deserialize, Serialize};

use super::profile::Profile;
use super::quietly;
use crate::step::Step;

/// Measure, started in a lab by `cargo xtask bench`
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct InLab {
    /// What to measure, JSON
    plan: PathBuf,
}

/// What to measure.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) exitvisor: PathBuf,
    /// The guest kernel; its image publishes a gate.
    pub(crate) kernel: PathBuf,
    /// The same without gates.
    pub(crate) gateless: PathBuf,
    /// The words that start perf; none if no case wants it.
    pub(crate) perf: Vec<OsString>,
    pub(crate) cases: Vec<Case>,
}

/// One thing to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) what: What,
    /// How often the lengths are run.
    pub(crate) rounds: u32,
    /// The workload's length, or how many queries are asked: the shorter run, and the longer.
    pub(crate) lengths: (u64, u64),
}

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum What {
    /// A repetition of a workload of the guest kernel's.
    Workload {
        kind: String,
        /// Whether a gate is armed meanwhile.
        gate: bool,
        tracing: Tracing,
    },
    /// A question asked at a gate, from its exit to the next entry.
    Query(Span),
    /// exitvisor's memory.
    Memory(Tracing),
}

impl fmt::Display for What {
    /// As one would type it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Workload {
                kind,
                gate,
                tracing,
            } => {
                let gate = if *gate { ", a gate armed" } else { "" };
                write!(f, "workload={kind}, {tracing}{gate}")
            }
            What::Query(span) => write!(f, "queries, {}", span.tracing()),
            What::Memory(tracing) => write!(f, "memory, {tracing}"),
        }
    }
}

impl fmt::Display for Tracing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tracing::Trigger => f.write_str("hist trigger"),
            Tracing::Perf => f.write_str("perf kvm stat record"),
            ledger => write!(f, "--ledger {}", ledger.level()),
        }
    }
}

impl Span {
    /// What tells it.
    fn tracing(self) -> Tracing {
        match self {
            Span::Whole => Tracing::Cycles,
            Span::Vmm => Tracing::Counts,
        }
    }
}

/// Of a question's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Span {
    /// All of it: from the exit that the kernel ledger saw to the next entry.
    Whole,
    /// In the VMM: from KVM_RUN's return to the next KVM_RUN.
    Vmm,
}

/// Who traces exits meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Tracing {
    Off,
    /// The kernel ledger, at this level.
    Counts,
    Cycles,
    Histogram,
    /// A tracefs hist trigger on `kvm_exit`.
    Trigger,
    /// `perf kvm stat record`.
    Perf,
}

/// What a case came to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Reading {
    /// Per round.
    pub(crate) rounds: Vec<Values>,
    /// Why there is nothing.
    pub(crate) error: Option<String>,
}

/// What one round came to, per repetition or question.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Values {
    /// Instructions; of memory, bytes that are resident.
    pub(crate) main: f64,
    /// Exits; of memory, bytes that are private.
    pub(crate) other: f64,
}

impl InLab {
    /// Measures everything; prints one JSON text, and a line on stderr for each case that is done.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        let plan = fs::read(&self.plan);
        let plan = plan.with_context(|| format!("cannot read {}", self.plan.display()))?;
        let plan: Plan = serde_json::from_slice(&plan).context("the plan")?;
        // What only the first run has to do is not measured.
        let off = Tracing::Off;
        let warm_up = plan.profile(&plan.kernel, off, "workload=cpuid:1000");
        let readings: Vec<Reading> = match warm_up {
            Err(error) => vec![Reading::error(&error)],
            Ok(_) => plan.cases.iter().map(|case| plan.reading(case)).collect(),
        };
        println!("{}", serde_json::to_string(&readings)?);
        Ok(0)
    }
}

impl Reading {
    fn error(error: &anyhow::Error) -> Self {
        Self {
            rounds: Vec::new(),
            error: Some(format!("{error:#}")),
        }
    }
}

/// Where the lab keeps what is not to be brought out.
const PROFILE: &str = "/run/profile.json";
const PERF_DATA: &str = "/run/perf.data";

impl Plan {
    fn reading(&self, case: &Case) -> Reading {
        let reading = match self.rounds(case) {
            Ok(rounds) => Reading {
                rounds,
                error: None,
            },
            Err(error) => Reading::error(&error),
        };
        eprintln!("{}", case.what);
        reading
    }

    fn rounds(&self, case: &Case) -> anyhow::Result<Vec<Values>> {
        let (short, long) = case.lengths;
        if let What::Memory(tracing) = case.what {
            return (0..case.rounds)
                .map(|_| self.memory(tracing, long))
                .collect();
        }
        let sample = |length| match &case.what {
            What::Workload {
                kind,
                gate,
                tracing,
            } => self.workload(kind, length, *gate, *tracing),
            What::Query(span) => self.queries(length, *span),
            What::Memory(_) => Ok(Sample::default()),
        };
        let (mut shorts, mut longs) = (Vec::new(), Vec::new());
        for _ in 0..case.rounds {
            shorts.push(sample(short)?);
            longs.push(sample(long)?);
        }
        per_repetition(shorts, longs)
    }

    fn workload(
        &self,
        kind: &str,
        length: u64,
        gate: bool,
        tracing: Tracing,
    ) -> anyhow::Result<Sample> {
        let kernel = if gate { &self.kernel } else { &self.gateless };
        let cmdline = format!("log=off workload={kind}:{length}");
        let profile = self.profile(kernel, tracing, &cmdline)?;
        if (profile.gates.armed > 0) != gate {
            bail!("{} gates were armed", profile.gates.armed);
        }
        let (from, to) = profile
            .milestone(DEVICES)
            .zip(profile.milestone(WORKLOAD))
            .context("the guest did not reach the milestone of its workload")?;
        Ok(Sample {
            instructions: to.tsc - from.tsc,
            exits: to.accounts.total - from.accounts.total,
            repetitions: length,
        })
    }

    /// The profiler's own exits by #DB are the questions.
    fn queries(&self, length: u64, span: Span) -> anyhow::Result<Sample> {
        let cmdline = format!("exits=leaves queries={length}");
        let profile = self.profile(&self.kernel, span.tracing(), &cmdline)?;
        let mut reasons = profile.total.reasons.iter();
        let exceptions = reasons
            .find(|reason| reason.reason == 0)
            .context("no question was asked at a gate")?;
        if exceptions.own_timed != exceptions.own {
            bail!("not all questions were timed");
        }
        Ok(Sample {
            instructions: exceptions.own_cycles,
            exits: exceptions.own,
            repetitions: profile.gates.queries,
        })
    }

    fn memory(&self, tracing: Tracing, length: u64) -> anyhow::Result<Values> {
        let cmdline = format!("log=off workload=cpuid:{length}");
        let most = quietly::watched(self.exitvisor(&self.kernel, tracing, &cmdline))?;
        check(&Profile::read(Path::new(PROFILE))?, tracing)?;
        let most = most.context("guest RAM could not be told apart from the rest")?;
        Ok(Values {
            main: most.resident as f64,
            other: most.private as f64,
        })
    }

    fn exitvisor(&self, kernel: &Path, tracing: Tracing, cmdline: &str) -> Step {
        let mut words = Vec::new();
        if tracing == Tracing::Perf {
            words.clone_from(&self.perf);
            let record = ["kvm", "stat", "record", "-o", PERF_DATA, "--"];
            words.extend(record.map(Into::into));
        }
        words.push(self.exitvisor.clone().into());
        Step::new(&words[0])
            .args(&words[1..])
            .args(["profile", "--memory", "64M", "--timeout", "none"])
            .args(["--ledger", tracing.level()])
            .args([
                "--format",
                "json",
                "--output",
                PROFILE,
                "--cmdline",
                cmdline,
            ])
            .arg("--kernel")
            .arg(kernel)
    }

    /// Runs the guest and reads its profile.
    fn profile(&self, kernel: &Path, tracing: Tracing, cmdline: &str) -> anyhow::Result<Profile> {
        let _ = fs::remove_file(PROFILE);
        let trigger = (tracing == Tracing::Trigger).then(Trigger::set);
        let trigger = trigger.transpose()?;
        let mut step = self.exitvisor(kernel, tracing, cmdline);
        let output = step.command().stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("cannot start `{step}`"))?;
        if !Path::new(PROFILE).exists() {
            bail!("{}", last_line(&output));
        }
        let profile = Profile::read(Path::new(PROFILE))?;
        if !output.status.success() {
            bail!("`{step}`: {}", last_line(&output));
        }
        check(&profile, tracing)?;
        if let Some(trigger) = trigger {
            trigger.check(profile.total.total)?;
        }
        Ok(profile)
    }
}

/// What a program complained of last.
fn last_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.map_or_else(|| output.status.to_string(), |line| line.trim().to_owned())
}

/// Whether the run was what it is taken for.
fn check(profile: &Profile, tracing: Tracing) -> anyhow::Result<()> {
    if profile.end.status != 0 {
        bail!("the guest ended otherwise: {}", profile.end.detail);
    }
    // 1 ns of an instruction each: 1 GHz, as far as Linux can measure it.
    if profile.host.tsc_khz.abs_diff(1_000_000) > 1_000 {
        let khz = profile.host.tsc_khz;
        bail!("the lab's clock does not count instructions ({khz} kHz)");
    }
    let mut sources = profile.sources.iter();
    let ledger = sources.find(|source| source.name == "kernel ledger");
    let level = ledger.and_then(|source| source.level.as_deref());
    let is_on = ledger.is_some_and(|source| source.available);
    match (tracing.level(), is_on) {
        ("off", false) => Ok(()),
        (wanted, true) if level == Some(wanted) => Ok(()),
        _ => {
            let why = ledger.map_or("", |source| &source.completeness);
            bail!("the kernel ledger is not as asked for: {why}")
        }
    }
}

impl Tracing {
    /// The value of `--ledger`.
    fn level(self) -> &'static str {
        match self {
            Tracing::Counts => "counts",
            Tracing::Cycles => "cycles",
            Tracing::Histogram => "histogram",
            Tracing::Off | Tracing::Trigger | Tracing::Perf => "off",
        }
    }
}

/// What a repetition comes to, in as many values as there are pairs. Now and then the lab's kernel
/// does something of its own, which makes a run longer: the least disturbed of both lengths are
/// compared with each other, and so on.
fn per_repetition(mut shorts: Vec<Sample>, mut longs: Vec<Sample>) -> anyhow::Result<Vec<Values>> {
    for samples in [&mut shorts, &mut longs] {
        samples.sort_unstable_by_key(|sample| sample.instructions);
    }
    let pairs = shorts.into_iter().zip(longs);
    let values = pairs.map(|(short, long)| {
        let difference = long.minus(short).context("a longer run took less")?;
        if difference.repetitions == 0 {
            bail!("two lengths made no difference");
        }
        let each = |total| total as f64 / difference.repetitions as f64;
        Ok(Values {
            main: each(difference.instructions),
            other: each(difference.exits),
        })
    });
    values.collect()
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    instructions: u64,
    exits: u64,
    repetitions: u64,
}

impl Sample {
    fn minus(self, other: Self) -> Option<Self> {
        Some(Self {
            instructions: self.instructions.checked_sub(other.instructions)?,
            // No exits more than other: a few of them are the host's own timer's.
            exits: self.exits.saturating_sub(other.exits),
            repetitions: self.repetitions.checked_sub(other.repetitions)?,
        })
    }
}

/// A hist trigger on `kvm_exit`, until this is dropped.
struct Trigger;

const EVENT: &str = "/sys/kernel/tracing/events/kvm/kvm_exit";
const HIST: &str = "hist:keys=exit_reason.hex";

impl Trigger {
    fn set() -> anyhow::Result<Self> {
        Self::write(HIST).context("cannot set a hist trigger on kvm_exit")?;
        Ok(Self)
    }

    fn write(text: &str) -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options
            .append(true)
            .open(Path::new(EVENT).join("trigger"))?;
        file.write_all(text.as_bytes())
    }

    /// Whether it has seen so many exits.
    fn check(&self, exits: u64) -> anyhow::Result<()> {
        let hist = fs::read_to_string(Path::new(EVENT).join("hist"));
        let hist = hist.context("cannot read the hist trigger")?;
        let line = hist
            .lines()
            .find_map(|line| line.trim().strip_prefix("Hits:"));
        match line.and_then(|number| number.trim().parse::<u64>().ok()) {
            Some(hits) if hits == exits => Ok(()),
            hits => bail!("the hist trigger has seen {hits:?} of {exits} exits"),
        }
    }
}

impl Drop for Trigger {
    fn drop(&mut self) {
        // The lab ends with all that is in it; a trigger that stays would only cost.
        let _ = Self::write(&format!("!{HIST}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(instructions: u64, exits: u64, repetitions: u64) -> Sample {
        Sample {
            instructions,
            exits,
            repetitions,
        }
    }

    #[test]
    fn a_disturbance_stays_in_its_round() {
        let shorts = [910, 100, 101].map(|instructions| sample(instructions, 5, 10));
        let longs = [1100, 1102, 1101].map(|instructions| sample(instructions, 25, 20));
        let values = per_repetition(shorts.into(), longs.into()).unwrap();
        let main: Vec<f64> = values.iter().map(|values| values.main).collect();
        assert_eq!(main, [100.0, 100.0, 19.2]);
        assert!(values.iter().all(|values| values.other == 2.0));
    }

    #[test]
    fn differences_that_are_none() {
        let of = |short, long| per_repetition(vec![short], vec![long]);
        assert!(of(sample(2, 0, 1), sample(1, 0, 2)).is_err());
        assert!(of(sample(1, 0, 2), sample(2, 0, 2)).is_err());
        // A host's own timer may have interrupted the shorter run more often.
        let values = of(sample(1, 4, 1), sample(2, 3, 2)).unwrap();
        assert_eq!(values[0].other, 0.0);
    }

    fn profile(status: u8, tsc_khz: u64, ledger: &str) -> Profile {
        let text = format!(
            r#"{{"host": {{"tsc_khz": {tsc_khz}}}, "end": {{"status": {status}, "detail": "x"}},
                "sources": [{{"name": "kernel ledger", "completeness": "y", {ledger}}}],
                "milestones": [], "total": {{"total": 0, "reasons": []}},
                "gates": {{"queries": 0, "hypercalls": 0, "armed": 0}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_run_is_what_it_is_taken_for() {
        let (off, counts) = (
            r#""available": false"#,
            r#""available": true, "level": "counts""#,
        );
        let holds = |status, khz, ledger, tracing| check(&profile(status, khz, ledger), tracing);
        assert!(holds(0, 1_000_000, off, Tracing::Perf).is_ok());
        assert!(holds(0, 999_999, counts, Tracing::Counts).is_ok());
        for (status, khz, ledger, tracing) in [
            (80, 1_000_000, off, Tracing::Off),
            (0, 2_400_000, off, Tracing::Off),
            (0, 1_000_000, counts, Tracing::Off),
            (0, 1_000_000, off, Tracing::Counts),
            (0, 1_000_000, counts, Tracing::Cycles),
        ] {
            assert!(holds(status, khz, ledger, tracing).is_err(), "{tracing:?}");
        }
    }
}
