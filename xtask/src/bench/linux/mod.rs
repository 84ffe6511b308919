//! `cargo xtask bench linux`: what one boot of Linux costs, here and on other VMMs beside us.

mod hist;
mod inside;
mod vmm;

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;

use crate::build::{self, Built};
use crate::lab::{self, Host, Job, Own, Version, guest, qemu};
use crate::step::Step;
pub(crate) use inside::InLab;
use inside::{Plan, Said};
use vmm::{FAST_OPTION, Guest, Programs, Vmm, Way, ways};

/// Boot Debian's Linux on exitvisor and on QEMU's machines in the AMD lab, and show what it cost each
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask bench linux
  cargo xtask bench linux --only ours")]
pub(crate) struct Linux {
    /// Boot only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Vmm>,
    /// The guest
    #[arg(long, value_enum, value_name = "VERSION", default_value = "6.1")]
    kernel: Version,
    #[command(flatten)]
    own: Own,
}

/// Guest memory, MiB.
const MEMORY: u64 = 256;
/// Seconds of the lab's clock for a boot; the slowest takes some 3.
const LIMIT: u64 = 15;
/// The lab's clock advances by 1 ns with each instruction, and while all wait, to the next timer at
/// once: so boots repeat.
const MACHINE: [&str; 2] = ["-icount", "shift=0,sleep=off"];

impl Linux {
    /// Builds, boots and shows.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        let built = build::build()?;
        let own = self.own.clone().or_environment();
        let ways = ways(&self.only, has_fast_console(&built)?);
        let said = self.measure(&built, &own, &ways)?;
        println!("{}", serde_json::to_string_pretty(&said)?);
        Ok(0)
    }

    fn measure(&self, built: &Built, own: &Own, ways: &[Way]) -> anyhow::Result<Vec<Said>> {
        let linux = guest::fetched(own, self.kernel)?;
        let vmlinux = guest::unpacked(own, &linux.kernel)?;
        let qemu = qemu::guest(own)?;
        let programs = Programs {
            exitvisor: &built.exitvisor,
            qemu: &qemu.command,
        };
        let guest = Guest {
            bzimage: &linux.kernel,
            vmlinux: &vmlinux,
            initrd: &linux.initrd,
            memory: MEMORY,
        };
        let boots = ways.iter().map(|way| way.boot(&programs, &guest, true));
        let plan = Plan {
            boots: boots.collect(),
            until: guest::USER_SPACE.to_owned(),
            limit: LIMIT,
            memory: MEMORY << 20,
        };
        let folder = tempfile::tempdir().context("cannot make a folder for the plan")?;
        let plan_file = folder.path().join("plan.json");
        std::fs::write(&plan_file, serde_json::to_vec(&plan)?)?;

        let this: PathBuf = crate::workspace::this_program()?;
        let mut job = Job::new(Host::Amd, this)?;
        job.with_guests(built)?;
        job.kernel = Version::V6_1;
        job.own = own.clone();
        job.cwd = folder.path().to_owned();
        job.machine_args = MACHINE.map(Into::into).into();
        job.limit = std::time::Duration::from_secs(3600);
        job.quiet = true;
        job.args = vec!["bench-linux-in-lab".into(), plan_file.into()];
        job.files
            .extend([linux.kernel.clone(), vmlinux.clone(), linux.initrd.clone()]);
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
        serde_json::from_slice(&outcome.stdout).context("what the lab said")
    }
}

/// Whether this exitvisor has a console that costs less.
fn has_fast_console(built: &Built) -> anyhow::Result<bool> {
    let help = Step::new(&built.exitvisor)
        .args(["run", "--help"])
        .stdout()?;
    Ok(String::from_utf8_lossy(&help).contains(FAST_OPTION))
}
