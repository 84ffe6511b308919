//! `cargo xtask bench linux`: what one boot of Linux costs, here and on other VMMs beside us.

mod cost;
mod hist;
mod inside;
mod names;
mod report;
mod start;
mod vmm;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;

use crate::FAILED;
use crate::boot_profile::{unused_name, with_suffix};
use crate::build::{self, Built};
use crate::lab::{self, Host, Job, Own, Version, guest, qemu};
use crate::workspace;
use cost::Cost;
pub(crate) use inside::InLab;
use inside::{Plan, Said};
use report::Report;
use vmm::{Guest, Programs, Vmm, Way, ways};

/// Boot Debian's Linux on exitvisor and on QEMU's machines in the AMD lab, and show what it cost each
///
/// One lab, one kernel, one boot after the other, each cut at the first line of user space; counted by
/// tracefs' hist triggers. Also kept as text, JSON and markdown under target/exitvisor/.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask bench linux
  cargo xtask bench linux --only ours --details 20
  cargo xtask bench linux --only ours,pc --format markdown")]
pub(crate) struct Linux {
    /// Boot only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Vmm>,
    /// The guest
    #[arg(long, value_enum, value_name = "VERSION", default_value = "6.1")]
    kernel: Version,
    /// Show so many ports, MSRs, pages and CPUID leaves of each
    #[arg(long, value_name = "N", default_value_t = 3, num_args = 0..=1, default_missing_value = "20")]
    details: usize,
    /// How to print the figures
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    own: Own,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
    Markdown,
}

/// Guest memory, MiB.
const MEMORY: u64 = 256;
/// Seconds of the lab's clock for a boot; the slowest takes some 3.
const LIMIT: u64 = 8;
/// A boot that takes more of the emulator's CPU time stands still, and is made again: it takes some 12 s,
/// the lab's own start before the first some 20. The lab's clock does not tell: it stands still too.
const PATIENCE: Duration = Duration::from_secs(60);
/// The lab's clock advances by 1 ns with each instruction, and while all wait, to the next timer at
/// once: so boots repeat.
const MACHINE: [&str; 2] = ["-icount", "shift=0,sleep=off"];

impl Linux {
    /// Builds, boots and shows.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        let built = build::build()?;
        let own = self.own.clone().or_environment();
        let ways = ways(&self.only);
        let linux = guest::fetched(&own, self.kernel)?;
        let guest = Guest {
            kernel: &linux.kernel,
            initrd: &linux.initrd,
            memory: MEMORY,
        };
        // Before the lab, which would be in the way.
        let mut unmeasured = Vec::new();
        let mut start = None;
        if ways.iter().any(|way| way.vmm == Vmm::Ours) {
            match start::measure(&built.exitvisor, &guest) {
                Ok(measured) => start = Some(measured),
                Err(error) => {
                    unmeasured.push(format!("CPU time of a start, on this machine: {error:#}"))
                }
            }
        }
        let (said, method) = self.measure(&built, &own, &ways, &guest)?;
        let boots = ways.iter().zip(&said);
        let boots: Vec<_> = boots.map(|(way, said)| Cost::of(*way, said)).collect();
        let report = Report {
            schema: "exitvisor-bench-linux",
            version: 1,
            method,
            aims: cost::aims(&boots, start.as_ref()),
            boots,
            start,
            unmeasured,
        };
        self.show(&report)
    }

    /// Keeps it in all formats and prints it in one.
    fn show(&self, report: &Report) -> anyhow::Result<u8> {
        let text = report.text(self.details);
        let markdown = report.markdown(self.details);
        let json = serde_json::to_string_pretty(report)? + "\n";
        let base = unused_name(&workspace::output_folder()?, "bench-linux".as_ref());
        for (suffix, content) in [(".txt", &text), (".md", &markdown), (".json", &json)] {
            let path = with_suffix(&base, suffix);
            fs::write(&path, content)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let shown = match self.format {
            Format::Text => text,
            Format::Json => json,
            Format::Markdown => markdown,
        };
        let out = std::io::stdout().lock().write_all(shown.as_bytes());
        out.context("cannot write to stdout")?;
        let base = Path::new(workspace::shown(&base)).display().to_string();
        eprintln!("saved: {base}.txt, .md, .json");
        // A figure less is no failure; none at all is.
        let any = report.boots.iter().any(|boot| boot.figures.is_some());
        Ok(if any { 0 } else { FAILED })
    }

    /// Boots all in one lab; what it said, and how it was done.
    fn measure(
        &self,
        built: &Built,
        own: &Own,
        ways: &[Way],
        guest: &Guest<'_>,
    ) -> anyhow::Result<(Vec<Said>, Vec<String>)> {
        let qemu = qemu::guest(own)?;
        let programs = Programs {
            exitvisor: &built.exitvisor,
            qemu: &qemu.command,
        };
        let boots = ways.iter().map(|way| way.boot(&programs, guest, true));
        let plan = Plan {
            boots: boots.collect(),
            until: guest::USER_SPACE.to_owned(),
            limit: LIMIT,
            memory: MEMORY << 20,
        };
        let folder = tempfile::tempdir().context("cannot make a folder for the plan")?;
        let plan_file = folder.path().join("plan.json");
        fs::write(&plan_file, serde_json::to_vec(&plan)?)?;

        let this: PathBuf = crate::workspace::this_program()?;
        let mut job = Job::new(Host::Amd, this)?;
        job.with_guests(built)?;
        job.kernel = Version::V6_1;
        job.own = own.clone();
        job.cwd = folder.path().to_owned();
        job.machine_args = MACHINE.map(Into::into).into();
        job.limit = Duration::from_secs(3600);
        job.patience = Some(PATIENCE);
        job.quiet = true;
        job.args = vec!["bench-linux-in-lab".into(), plan_file.into()];
        job.files
            .extend([guest.kernel, guest.initrd].map(Path::to_owned));
        job.files.extend(qemu.files.iter().cloned());
        let progress = ProgressBar::new(plan.boots.len() as u64);
        job.steps = Some(progress.clone());
        let outcome = lab::run(&job);
        progress.finish_and_clear();
        let outcome = outcome?;
        if outcome.status != 0 {
            bail!(
                "what counts in the lab ended with status {}: {}",
                outcome.status,
                String::from_utf8_lossy(&outcome.stderr).trim()
            );
        }
        let said = serde_json::from_slice(&outcome.stdout).context("what the lab said")?;
        let method = vec![
            format!(
                "Guest: Debian's Linux {}, {MEMORY} MiB, 1 vCPU, busybox in an initramfs; up to its first line.",
                self.kernel.name()
            ),
            format!(
                "Host: AMD lab, Linux {}, QEMU with {}: the clock counts instructions.",
                outcome.kernel,
                MACHINE.join(" ")
            ),
            format!(
                "Counted by tracefs' hist triggers; the VMMs: exitvisor, QEMU {}.",
                qemu.version
            ),
        ];
        Ok((said, method))
    }
}
