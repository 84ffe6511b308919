//! `cargo xtask bench`: what boots, exits, gates and memory cost, beside what we aim at.
//! It judges nothing: a slow machine is not a broken build.

mod boots;
mod figures;
mod gateless;
mod inside;
mod linux;
mod overhead;
mod profile;
mod quietly;

use clap::{Args, Subcommand, ValueEnum};

use crate::lab::{Own, Version};
use crate::{FAILED, build};
use figures::{Results, Section};
pub(crate) use inside::InLab;
pub(crate) use linux::InLab as LinuxInLab;

/// Measure boots of the default guest and the overhead of the kernel ledger: medians, and ratios
/// to what we aim at
///
/// Boots: each round boots through the firmware and boots the kernel alone, each twice: once
/// undisturbed for the times (`exitvisor run`), once for exits and memory (`exitvisor profile`,
/// watched through /proc/PID/smaps every 2 ms).
///
/// Ledger: in the AMD lab, fetched on first use, with an emulator whose clocks count instructions:
/// what the kernel ledger, a tracefs hist trigger and `perf kvm stat record` add to an exit, what
/// gates cost, and exitvisor's memory.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  cargo xtask bench
  cargo xtask bench linux
  cargo xtask bench --what boots --runs 100 --format json > figures.json
  cargo xtask bench --what ledger --kernel 6.12")]
pub(crate) struct Bench {
    #[command(subcommand)]
    task: Option<Task>,
    /// What to measure
    #[arg(long, value_enum, default_value_t = What::All)]
    what: What,
    /// Rounds of boots to measure, after one to warm up
    #[arg(long, value_name = "N", default_value_t = 20,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// Linux in the lab
    #[arg(long, value_enum, value_name = "VERSION", value_delimiter = ',',
          default_values_t = [Version::V6_12, Version::V6_1])]
    kernel: Vec<Version>,
    /// How to print the figures
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    own: Own,
}

#[derive(Debug, Subcommand)]
enum Task {
    Linux(linux::Linux),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Boots on this machine's KVM
    Boots,
    /// The kernel ledger and gates, in the AMD lab
    Ledger,
    /// Both
    All,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Bench {
    /// Builds, measures and prints.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        if let Some(Task::Linux(task)) = self.task {
            return task.run();
        }
        let built = build::build()?;
        let mut sections = Vec::new();
        if self.what != What::Ledger {
            match boots::measure(&built, self.runs)? {
                Ok(section) => sections.push(section),
                Err(status) if self.what == What::Boots => return Ok(status),
                Err(status) => sections.push(Section {
                    title: "boots of the default guest on this machine's KVM".to_owned(),
                    unmeasured: vec![format!("all of it: exitvisor ended with status {status}")],
                    ..Section::default()
                }),
            }
        }
        if self.what != What::Boots {
            let own = self.own.clone().or_environment();
            sections.extend(overhead::measure(&built, &own, self.kernels(&own))?);
        }
        let results = Results { sections };
        match self.format {
            Format::Text => print!("{}", figures::text(&results)),
            Format::Json => println!("{}", serde_json::to_string_pretty(&results)?),
        }
        // A figure less is no failure; none at all is.
        let mut figures = results.sections.iter().flat_map(|section| &section.figures);
        let any = figures.any(|figure| figure.measured.is_some());
        Ok(if any { 0 } else { FAILED })
    }

    /// A kernel of the user's own is the only one.
    fn kernels(&self, own: &Own) -> &[Version] {
        let most = if own.kernel_image.is_some() {
            1
        } else {
            self.kernel.len()
        };
        &self.kernel[..most]
    }
}
