//! `cargo xtask bench`: what a boot of the default guest costs the host, beside what we aim at.
//! It judges nothing: a slow machine is not a broken build.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};

use crate::smaps::{Besides, Watch};
use crate::step::{self, Ended, Step};
use crate::{build, workspace};

/// How often the memory of a running exitvisor is looked at.
const SAMPLING: Duration = Duration::from_millis(2);

/// Measure boots of the default guest: medians, and ratios to what we aim at
///
/// Each round boots through the firmware and boots the kernel alone, each twice: once undisturbed
/// for the times (`exitvisor run`), once for exits and memory (`exitvisor profile`, watched through
/// /proc/PID/smaps every 2 ms).
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask bench
  cargo xtask bench --runs 100 --format json > figures.json")]
pub(crate) struct Bench {
    /// Rounds to measure, after one to warm up
    #[arg(long, value_name = "N", default_value_t = 20,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// How to print the figures
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Bench {
    /// Builds, measures and prints.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        let built = build::build()?;
        let profile = workspace::output_folder()?.join("bench.json");
        let step = |command: &str, firmware: &Path| {
            Step::new(&built.exitvisor)
                .args([command, "--firmware"])
                .arg(firmware)
                .arg("--kernel")
                .arg(&built.guest_kernel)
        };
        let boot = |firmware: &Path| step("run", firmware);
        let measured_boot = |firmware: &Path| {
            let options = ["--memory", "64M", "--format", "json", "--output"];
            step("profile", firmware).args(options).arg(&profile)
        };
        let ways = [built.firmware.as_path(), Path::new("none")];

        // The warm-up may speak on stderr: if nothing boots here, this is where it is said why.
        for firmware in ways {
            let mut warm_up = boot(firmware);
            warm_up.command().stdin(Stdio::null()).stdout(Stdio::null());
            match warm_up.status()? {
                0 => {}
                status => return Ok(status),
            }
        }
        for firmware in ways {
            eprintln!("+ {}   (times {})", boot(firmware), self.runs);
            eprintln!("+ {}   (times {})", measured_boot(firmware), self.runs);
        }
        let progress = ProgressBar::new(self.runs.into());
        let measure = |firmware: &Path| -> anyhow::Result<Boot> {
            let times = timed(boot(firmware))?;
            let memory = watched(measured_boot(firmware))?;
            Ok(Boot {
                times,
                memory,
                exits: Exits::of(&read(&profile)?),
            })
        };
        let mut rounds = Vec::new();
        for _ in 0..self.runs {
            let [through_firmware, alone] = ways.map(measure);
            rounds.push(Round {
                through_firmware: through_firmware?,
                alone: alone?,
            });
            progress.inc(1);
        }
        progress.finish_and_clear();

        let result = Result {
            runs: self.runs,
            figures: figures(&rounds),
        };
        match self.format {
            Format::Text => print!("{}", table(&result)),
            Format::Json => println!("{}", serde_json::to_string_pretty(&result)?),
        }
        Ok(0)
    }
}

/// What one round measured.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// The default: firmware, then kernel.
    through_firmware: Boot,
    /// The kernel, entered directly.
    alone: Boot,
}

/// One way to boot, measured.
#[derive(Clone, Copy, Debug)]
struct Boot {
    times: Times,
    memory: Option<Besides>,
    exits: Exits,
}

/// From process start to exit status, seconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    cpu: f64,
    wall: f64,
}

/// Exits of one boot, from its profile.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Exits {
    /// All that KVM counted (or, where it does not, all that were seen).
    total: f64,
    /// Until the firmware had loaded the kernel, without the profiler's own; `None` without one.
    firmware: Option<f64>,
    /// To userspace, without the profiler's own.
    to_userspace: f64,
    /// The profiler's own at its gates, per answer; `None` if no question was asked.
    per_query: Option<f64>,
}

/// The fields of a profile that are of interest here (`docs/profile-schema.md`).
#[derive(Debug, Deserialize)]
struct Profile {
    milestones: Vec<Milestone>,
    total: Accounts,
    gates: Gates,
}

#[derive(Debug, Deserialize)]
struct Milestone {
    number: u32,
    accounts: Accounts,
}

#[derive(Debug, Deserialize)]
struct Accounts {
    total: u64,
    #[serde(default)]
    userspace: u64,
    #[serde(default)]
    own_userspace: u64,
    reasons: Vec<Reason>,
}

#[derive(Debug, Deserialize)]
struct Reason {
    reason: u8,
    own: u64,
}

#[derive(Debug, Deserialize)]
struct Gates {
    queries: u64,
    hypercalls: u64,
}

/// The reasons by which a gate's question arrives: #DB, CPUID, VMCALL.
const AT_GATES: [u8; 3] = [0, 10, 18];

impl Exits {
    fn of(profile: &Profile) -> Self {
        let total = &profile.total;
        let at_gates = total
            .reasons
            .iter()
            .filter(|reason| AT_GATES.contains(&reason.reason));
        let at_gates: u64 = at_gates.map(|reason| reason.own).sum();
        let answers = profile.gates.queries + profile.gates.hypercalls;
        let loaded = profile.milestones.iter();
        let mut loaded = loaded.filter(|m| m.number == exit_abi::milestone::KERNEL_LOADED);
        Self {
            total: total.total as f64,
            firmware: loaded.next().map(|m| m.accounts.of_the_guest() as f64),
            to_userspace: (total.userspace - total.own_userspace) as f64,
            per_query: (answers > 0).then(|| at_gates as f64 / answers as f64),
        }
    }
}

impl Accounts {
    /// All exits but the profiler's own.
    fn of_the_guest(&self) -> u64 {
        let own: u64 = self.reasons.iter().map(|reason| reason.own).sum();
        self.total.saturating_sub(own)
    }
}

fn read(profile: &Path) -> anyhow::Result<Profile> {
    let bytes = std::fs::read(profile);
    let bytes = bytes.with_context(|| format!("cannot read {}", profile.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{}", profile.display()))
}

/// Runs a step undisturbed and takes its times.
fn timed(step: Step) -> anyhow::Result<Times> {
    let cpu_before = cpu_of_children()?;
    let start = Instant::now();
    let (what, mut child) = spawn(step)?;
    let status = child.wait()?;
    let wall = start.elapsed().as_secs_f64();
    ended_well(what, status)?;
    let cpu = (cpu_of_children()? - cpu_before).num_microseconds() as f64 / 1e6;
    Ok(Times { cpu, wall })
}

/// Runs a step and watches its memory.
fn watched(step: Step) -> anyhow::Result<Option<Besides>> {
    let (what, mut child) = spawn(step)?;
    let mut watch = Watch::new(child.id()).context("cannot watch exitvisor's memory")?;
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

fn spawn(mut step: Step) -> anyhow::Result<(String, Child)> {
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

fn ended_well(what: String, status: std::process::ExitStatus) -> anyhow::Result<()> {
    match step::number(status) {
        0 => Ok(()),
        status => Err(Ended { what, status }.into()),
    }
}

/// CPU time of all children that have ended, user and system.
fn cpu_of_children() -> anyhow::Result<TimeVal> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
    Ok(usage.user_time() + usage.system_time())
}

/// What `--format json` prints.
#[derive(Debug, Serialize)]
struct Result {
    runs: u32,
    figures: Vec<Figure>,
}

/// One figure: what was measured, and what we aim at.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    unit: &'static str,
    /// `None` if this machine cannot show it.
    measured: Option<Spread>,
    /// At most this much is what we aim at, on software KVM; `None` if nothing is said.
    aim: Option<f64>,
    /// Median over aim.
    ratio: Option<f64>,
}

/// Of all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// `None` if a round lacks the figure, or there was no round.
    fn of(values: impl Iterator<Item = Option<f64>>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect::<Option<_>>()?;
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (upper, lower) = (values.len() / 2, (values.len() - 1) / 2);
        Some(Self {
            median: f64::midpoint(values[lower], values[upper]),
            min,
            max,
        })
    }
}

const MIB: f64 = 1024.0 * 1024.0;

/// The figures, with the aims of the project for its default guest on software KVM.
fn figures(rounds: &[Round]) -> Vec<Figure> {
    let figure = |name, unit, aim: Option<f64>, value: &dyn Fn(&Round) -> Option<f64>| {
        let measured = Spread::of(rounds.iter().map(value));
        let ratio = measured
            .zip(aim)
            .map(|(measured, aim)| measured.median / aim);
        Figure {
            name,
            unit,
            measured,
            aim,
            ratio,
        }
    };
    let boot: fn(&Round) -> Boot = |round| round.through_firmware;
    let alone: fn(&Round) -> Boot = |round| round.alone;
    vec![
        figure("CPU time of a boot", "s", Some(0.6), &|round| {
            Some(boot(round).times.cpu)
        }),
        figure("… kernel alone", "s", Some(0.4), &|round| {
            Some(alone(round).times.cpu)
        }),
        figure("wall time of a boot", "s", None, &|round| {
            Some(boot(round).times.wall)
        }),
        figure("… kernel alone", "s", None, &|round| {
            Some(alone(round).times.wall)
        }),
        figure("exits to userspace but own", "", Some(39.0), &|round| {
            Some(boot(round).exits.to_userspace)
        }),
        figure("… kernel alone", "", Some(39.0), &|round| {
            Some(alone(round).exits.to_userspace)
        }),
        figure("exits until kernel loaded", "", None, &|round| {
            boot(round).exits.firmware
        }),
        figure("exits, all", "", None, &|round| {
            Some(boot(round).exits.total)
        }),
        figure("… kernel alone", "", None, &|round| {
            Some(alone(round).exits.total)
        }),
        figure("own exits per gate query", "", Some(2.0), &|round| {
            boot(round).exits.per_query
        }),
        figure("memory besides guest RAM", "MiB", Some(5.0), &|round| {
            Some(boot(round).memory?.resident as f64 / MIB)
        }),
        figure("… of it private", "MiB", None, &|round| {
            Some(boot(round).memory?.private as f64 / MIB)
        }),
    ]
}

/// The figures as an aligned table.
fn table(result: &Result) -> String {
    let mut text = format!(
        "{:<28} {:>10} {:>10} {:>10} {:>10} {:>7}\n",
        format!("runs: {}", result.runs),
        "median",
        "min",
        "max",
        "aim ≤",
        "ratio"
    );
    for figure in &result.figures {
        let number = |value: Option<f64>| match value {
            None => "–".to_owned(),
            Some(value) if figure.unit.is_empty() && value.fract() == 0.0 => format!("{value}"),
            Some(value) if figure.unit == "s" => format!("{value:.3} s"),
            Some(value) if figure.unit.is_empty() => format!("{value:.2}"),
            Some(value) => format!("{value:.2} {}", figure.unit),
        };
        let ratio = figure
            .ratio
            .map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let measured = figure.measured;
        text += format!(
            "{:<28} {:>10} {:>10} {:>10} {:>10} {:>7}",
            figure.name,
            number(measured.map(|spread| spread.median)),
            number(measured.map(|spread| spread.min)),
            number(measured.map(|spread| spread.max)),
            figure.aim.map_or(String::new(), |aim| number(Some(aim))),
            ratio,
        )
        .trim_end();
        text.push('\n');
    }
    text + "aims: for the default guest on software KVM; ratio: median to aim\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(cpu: f64, to_userspace: f64) -> Round {
        let alone = boot(cpu / 2.0, to_userspace, None);
        Round {
            through_firmware: boot(cpu, to_userspace, Some(24.0)),
            alone,
        }
    }

    fn boot(cpu: f64, to_userspace: f64, firmware: Option<f64>) -> Boot {
        Boot {
            times: Times {
                cpu,
                wall: cpu + 0.01,
            },
            memory: Some(Besides {
                resident: 4 << 20,
                private: 1 << 20,
            }),
            exits: Exits {
                total: 120.0,
                firmware,
                to_userspace,
                per_query: Some(1.0),
            },
        }
    }

    #[test]
    fn medians() {
        let of = |values: &[f64]| Spread::of(values.iter().copied().map(Some)).map(|s| s.median);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3.0]), Some(3.0));
        assert_eq!(of(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(of(&[9.0, 1.0, 2.0, 4.0]), Some(3.0));
        assert_eq!(Spread::of([Some(1.0), None].into_iter()), None);
    }

    #[test]
    fn exits_come_from_the_profile() {
        let reason = |reason, own| Reason { reason, own };
        let accounts = |total, reasons| Accounts {
            total,
            userspace: 60,
            own_userspace: 36,
            reasons,
        };
        let at = |number, total| Milestone {
            number,
            accounts: accounts(total, vec![reason(30, 5)]),
        };
        let all = vec![reason(0, 12), reason(12, 0), reason(30, 30)];
        let mut profile = Profile {
            milestones: vec![at(3, 30), at(4, 70), at(5, 80)],
            total: accounts(120, all),
            gates: Gates {
                queries: 10,
                hypercalls: 2,
            },
        };
        let exits = Exits {
            total: 120.0,
            firmware: Some(65.0),
            to_userspace: 24.0,
            per_query: Some(1.0),
        };
        assert_eq!(Exits::of(&profile), exits);

        profile.gates = Gates {
            queries: 0,
            hypercalls: 0,
        };
        assert_eq!(Exits::of(&profile).per_query, None);
    }

    #[test]
    fn the_table_is_aligned() {
        let rounds = [round(0.25, 30.0), round(0.125, 28.0)];
        insta::assert_snapshot!(table(&Result {
            runs: 2,
            figures: figures(&rounds)
        }));
    }

    #[test]
    fn what_cannot_be_shown_is_a_dash() {
        let bare = Boot {
            memory: None,
            ..boot(0.25, 24.0, None)
        };
        let rounds = [Round {
            through_firmware: bare,
            alone: bare,
        }];
        insta::assert_snapshot!(table(&Result {
            runs: 1,
            figures: figures(&rounds)
        }));
    }
}
