//! What tracing adds to an exit, what gates cost and how much memory the ledger takes: measured in
//! the AMD lab, whose emulator counts instructions.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::boots::MIB;
use super::figures::{Figure, INSTRUCTIONS, Section, Spread};
use super::gateless;
use super::inside::{Case, Plan, Reading, Span, Tracing, Values, What};
use crate::build::Built;
use crate::lab::perf::{self, Perf};
use crate::lab::{self, Host, Job, Own, Version};
use crate::step::{Ended, Step};

/// The emulator's clock advances by 1 ns with each instruction, and while all wait, to the next
/// timer at once.
const INSTRUCTION_CLOCK: [&str; 2] = ["-icount", "shift=0,sleep=off"];

/// Measures on these kernels. An error is a run that was ended; what cannot be measured is a line
/// of its section.
pub(crate) fn measure(
    built: &Built,
    own: &Own,
    versions: &[Version],
) -> anyhow::Result<Vec<Section>> {
    let perf = perf::setup(own);
    let mut sections = Vec::new();
    for version in versions {
        match in_lab(built, own, *version, perf.as_ref()) {
            Ok(measured) => sections.extend(measured),
            Err(error) if error.is::<Ended>() => return Err(error),
            Err(error) => sections.push(Section {
                title: format!("the kernel ledger, AMD lab, Linux {}", version.name()),
                unmeasured: vec![format!("all of it: {error:#}")],
                ..Section::default()
            }),
        }
    }
    Ok(sections)
}

/// Measures on one kernel.
fn in_lab(
    built: &Built,
    own: &Own,
    version: Version,
    perf: Result<&Perf, &anyhow::Error>,
) -> anyhow::Result<Vec<Section>> {
    let folder = tempfile::tempdir().context("cannot make a folder for the plan")?;
    let gateless = folder.path().join("guest-kernel-without-gates");
    let image = std::fs::read(&built.guest_kernel);
    let image = image.with_context(|| format!("cannot read {}", built.guest_kernel.display()))?;
    std::fs::write(&gateless, gateless::without_gates(image)?)?;
    let plan = Plan {
        exitvisor: built.exitvisor.clone(),
        kernel: built.guest_kernel.clone(),
        gateless: gateless.clone(),
        perf: perf.map_or_else(|_| Vec::new(), |perf| perf.command.clone()),
        cases: cases(perf.is_ok()),
    };
    let plan_file = folder.path().join("plan.json");
    std::fs::write(&plan_file, serde_json::to_vec(&plan)?)?;

    let mut job = job(built, own, version, folder.path())?;
    job.args = vec!["bench-in-lab".into(), plan_file.into()];
    job.files.push(gateless);
    if let Ok(perf) = perf {
        job.files.extend(perf.files.iter().cloned());
    }
    let step = Step::new(&built.exitvisor)
        .args(["profile", "--ledger", "LEVEL", "--cmdline"])
        .args(["log=off workload=KIND:N", "--kernel"])
        .arg(&built.guest_kernel);
    eprintln!(
        "+ {step}   (AMD lab, Linux {}, QEMU with {})",
        version.name(),
        INSTRUCTION_CLOCK.join(" ")
    );
    let progress = ProgressBar::new(plan.cases.len() as u64);
    progress.set_style(style());
    progress.set_message(format!("AMD lab, Linux {}", version.name()));
    job.steps = Some(progress.clone());
    let outcome = lab::run(&job);
    progress.finish_and_clear();
    let outcome = outcome?;
    match outcome.status {
        0 => {}
        // A signal's: whoever is at the terminal wants an end.
        status @ 128.. => {
            let what = "cargo xtask bench".to_owned();
            return Err(Ended { what, status }.into());
        }
        status => bail!(
            "what measures in the lab ended with status {status}: {}",
            String::from_utf8_lossy(&outcome.stderr).trim()
        ),
    }
    let readings: Vec<Reading> =
        serde_json::from_slice(&outcome.stdout).context("what the lab said")?;
    let mut readings = Readings {
        cases: plan.cases,
        readings,
        unmeasured: Vec::new(),
    };
    Ok(readings.sections(&outcome.kernel, perf))
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// This program in the AMD lab.
fn job(built: &Built, own: &Own, version: Version, cwd: &Path) -> anyhow::Result<Job> {
    let this: PathBuf = crate::workspace::this_program()?;
    let mut job = Job::new(Host::Amd, this)?;
    job.with_guests(built)?;
    job.kernel = version;
    job.own = own.clone();
    job.cwd = cwd.to_owned();
    job.machine_args = INSTRUCTION_CLOCK.map(Into::into).into();
    job.quiet = true;
    Ok(job)
}

/// Rounds of most cases.
const ROUNDS: u32 = 3;
/// Lengths of workloads. The host's timer interrupts once in 4 million instructions and takes some
/// 6,000: over 20,000 exits one interrupt more or less is 0.3 instructions each.
const LENGTHS: (u64, u64) = (1_000, 21_000);
/// perf empties its 4 MiB of buffer when half of it is full, some 10,000 exits: both lengths are of
/// many emptyings.
const PERF_LENGTHS: (u64, u64) = (20_000, 80_000);
/// Queries after the boot; its log has room for no more.
const QUERIES: (u64, u64) = (2, 32);

/// A workload's repetition.
fn workload(kind: &str, gate: bool, tracing: Tracing) -> What {
    What::Workload {
        kind: kind.to_owned(),
        gate,
        tracing,
    }
}

fn cases(perf: bool) -> Vec<Case> {
    use Tracing::{Counts, Cycles, Histogram, Off, Perf, Trigger};
    let mut whats = Vec::new();
    for tracing in [Off, Counts, Cycles, Histogram, Trigger, Perf] {
        whats.push(workload("cpuid", false, tracing));
    }
    whats.retain(|what| perf || *what != workload("cpuid", false, Perf));
    for kind in ["rdmsr", "pio"] {
        whats.extend([Off, Counts].map(|tracing| workload(kind, false, tracing)));
    }
    whats.push(workload("cpuid", true, Off));
    whats.extend([false, true].map(|gate| workload("dr", gate, Off)));
    whats.extend([Span::Whole, Span::Vmm].map(What::Query));
    whats.extend([Off, Counts, Cycles, Histogram].map(What::Memory));
    whats.into_iter().map(case).collect()
}

fn case(what: What) -> Case {
    let (rounds, lengths) = match &what {
        What::Workload {
            tracing: Tracing::Perf,
            ..
        } => (1, PERF_LENGTHS),
        What::Query(_) => (ROUNDS, QUERIES),
        _ => (ROUNDS, LENGTHS),
    };
    Case {
        what,
        rounds,
        lengths,
    }
}

/// What the lab came to, case by case.
struct Readings {
    cases: Vec<Case>,
    readings: Vec<Reading>,
    /// Complaints of the section in the making.
    unmeasured: Vec<String>,
}

impl Readings {
    /// The rounds of a case; if there are none, why not is noted once.
    fn rounds(&mut self, what: &What) -> Option<Vec<Values>> {
        let place = self.cases.iter().position(|case| case.what == *what)?;
        // One reading alone is what went wrong before the first case.
        let reading = self.readings.get(place).or(self.readings.first())?;
        if let Some(error) = &reading.error {
            let line = match self.readings.len() {
                1 => format!("all of it: {error}"),
                _ => format!("{what}: {error}"),
            };
            if !self.unmeasured.contains(&line) {
                self.unmeasured.push(line);
            }
            return None;
        }
        Some(reading.rounds.clone())
    }

    /// A figure of one case.
    fn plain(
        &mut self,
        name: &'static str,
        unit: &'static str,
        what: &What,
        value: fn(Values) -> f64,
    ) -> Figure {
        let rounds = self.rounds(what);
        let spread = rounds.and_then(|rounds| Spread::of(rounds.iter().map(|v| Some(value(*v)))));
        Figure::new(name, unit, None, spread)
    }

    /// Instructions that one case has more than another, round by round.
    fn added(&mut self, name: &'static str, aim: Option<f64>, less: &What, more: &What) -> Figure {
        let rounds = self.rounds(more).zip(self.rounds(less));
        let spread = rounds.and_then(|(more, less)| {
            let pairs = more.iter().zip(&less);
            Spread::of(pairs.map(|(more, less)| Some(more.main - less.main)))
        });
        Figure::new(name, INSTRUCTIONS, aim, spread)
    }

    fn section(&mut self, title: String, method: String, figures: Vec<Figure>) -> Section {
        Section {
            title,
            method,
            figures,
            unmeasured: std::mem::take(&mut self.unmeasured),
        }
    }

    /// Everything, for people.
    fn sections(&mut self, kernel: &str, perf: Result<&Perf, &anyhow::Error>) -> Vec<Section> {
        let lab = format!("AMD lab, Linux {kernel}");
        // What we aim at is said of this one.
        let aimed = kernel.starts_with("6.12.");
        vec![
            self.tracing(&lab, aimed, perf),
            self.gates(&lab),
            self.memory(&lab),
        ]
    }

    fn tracing(&mut self, lab: &str, aimed: bool, perf: Result<&Perf, &anyhow::Error>) -> Section {
        use Tracing::{Counts, Cycles, Histogram, Off, Perf, Trigger};
        let mut figures = Vec::new();
        let untraced = workload("cpuid", false, Off);
        figures.push(self.plain("CPUID, not traced", INSTRUCTIONS, &untraced, |v| v.main));
        for (name, tracing, aim) in [
            ("… --ledger counts adds", Counts, Some(380.0)),
            ("… --ledger cycles adds", Cycles, Some(620.0)),
            ("… --ledger histogram adds", Histogram, Some(660.0)),
            ("… tracefs hist trigger adds", Trigger, None),
            ("… perf kvm stat record adds", Perf, None),
        ] {
            let traced = workload("cpuid", false, tracing);
            let aim = aim.filter(|_| aimed);
            figures.push(self.added(name, aim, &untraced, &traced));
        }
        for (kind, name) in [
            ("rdmsr", "RDMSR, not traced"),
            ("pio", "OUT to the VMM and back, not traced"),
        ] {
            let [untraced, traced] = [Off, Counts].map(|tracing| workload(kind, false, tracing));
            figures.push(self.plain(name, INSTRUCTIONS, &untraced, |v| v.main));
            figures.push(self.added("… --ledger counts adds", None, &untraced, &traced));
        }
        let perf = match perf {
            Ok(perf) => format!(
                "perf {}: to a tmpfs, its own work on the same CPU included, {} exits against {}.\n",
                perf.version, PERF_LENGTHS.1, PERF_LENGTHS.0,
            ),
            Err(error) => {
                self.unmeasured.push(format!("perf: {error:#}"));
                String::new()
            }
        };
        self.section(
            format!("what tracing adds to an exit, host instructions, {lab}"),
            format!(
                "One vCPU, one CPU, no gate armed; QEMU's {}: clocks count\n\
                 instructions. TSC between the milestones \"devices\" and \"workload\", {} exits against {},\n\
                 per exit; some 2 of 1,000 are the kernel's timer interrupts. --ledger counts keeps the index\n\
                 of MSRs and ports too. Hist trigger: keys=exit_reason.hex on kvm_exit; its hits are checked.\n\
                 {perf}Aims: on 6.12.",
                INSTRUCTION_CLOCK.join(" "),
                LENGTHS.1,
                LENGTHS.0,
            ),
            figures,
        )
    }

    fn gates(&mut self, lab: &str) -> Section {
        let (without, with) = (
            workload("dr", false, Tracing::Off),
            workload("dr", true, Tracing::Off),
        );
        let exits: fn(Values) -> f64 = |v| v.other;
        let figures = vec![
            self.added(
                "CPUID exit, an armed gate adds",
                None,
                &workload("cpuid", false, Tracing::Off),
                &workload("cpuid", true, Tracing::Off),
            ),
            self.plain("MOV DR, a gate armed", INSTRUCTIONS, &with, |v| v.main),
            self.plain("… exits each", "", &with, exits),
            self.plain("MOV DR, no gate armed", INSTRUCTIONS, &without, |v| v.main),
            self.plain("… exits each", "", &without, exits),
            self.plain(
                "query at a gate, exit to entry",
                INSTRUCTIONS,
                &What::Query(Span::Whole),
                |v| v.main,
            ),
            self.plain(
                "… in the VMM (--ledger counts)",
                INSTRUCTIONS,
                &What::Query(Span::Vmm),
                |v| v.main,
            ),
            self.plain("… exits each", "", &What::Query(Span::Vmm), exits),
        ];
        self.section(
            format!("what gates cost, host instructions, {lab}"),
            format!(
                "As above, not traced; with the gate of the guest kernel's note, and without that note. A query:\n\
                 cycles of the profiler's own exits of reason 0, queries={} against queries={}, per query;\n\
                 by the kernel ledger (--ledger cycles), and from KVM_RUN's return to the next KVM_RUN.",
                QUERIES.1, QUERIES.0,
            ),
            figures,
        )
    }

    fn memory(&mut self, lab: &str) -> Section {
        use Tracing::{Counts, Cycles, Histogram, Off};
        let mut figures = Vec::new();
        for (name, tracing, aim) in [
            ("--ledger off", Off, None),
            ("--ledger counts", Counts, None),
            ("--ledger cycles", Cycles, Some(5.0)),
            ("--ledger histogram", Histogram, None),
        ] {
            let what = What::Memory(tracing);
            let resident = self.plain(name, "MiB", &what, |v| v.main / MIB);
            figures.push(Figure::new(name, "MiB", aim, resident.measured));
            if resident.measured.is_some() {
                figures.push(self.plain("… of it private", "MiB", &what, |v| v.other / MIB));
            }
        }
        self.section(
            format!("exitvisor's memory besides guest RAM, {lab}"),
            "The most that /proc/PID/smaps has shown as resident, looked at every 2 ms. What the kernel\n\
             keeps for BPF counts where exitvisor has mapped it."
                .to_owned(),
            figures,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::{Results, text};
    use super::*;

    fn perf() -> Perf {
        Perf {
            command: Vec::new(),
            files: std::collections::BTreeSet::new(),
            version: "6.1.192".to_owned(),
        }
    }

    fn shown(readings: Vec<Reading>, kernel: &str, perf: Result<&Perf, &anyhow::Error>) -> String {
        let mut readings = Readings {
            cases: cases(perf.is_ok()),
            readings,
            unmeasured: Vec::new(),
        };
        let sections = readings.sections(kernel, perf);
        text(&Results { sections })
    }

    #[test]
    fn everything_measured() {
        let reading = |place| Reading {
            rounds: [0.0, 1.0]
                .map(|more| Values {
                    main: 3000.0 + 100.0 * place as f64 + more,
                    other: 1.0,
                })
                .into(),
            error: None,
        };
        let readings = (0..cases(true).len()).map(reading).collect();
        insta::assert_snapshot!(shown(readings, "6.12.95", Ok(&perf())));
    }

    #[test]
    fn nothing_measured() {
        let readings = vec![Reading {
            error: Some("the guest did not start".to_owned()),
            ..Reading::default()
        }];
        let error = anyhow::anyhow!("cannot fetch perf: no mirror");
        let text = shown(readings, "6.1.0", Err(&error));
        insta::assert_snapshot!(text);
    }
}
