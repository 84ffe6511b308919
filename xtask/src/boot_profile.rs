//! `cargo xtask boot-profile`: boot, measure, keep the profile, show the report.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;

use crate::build::{self, Built};
use crate::run::value_of;
use crate::step::{self, Step};
use crate::{signals, workspace};

/// Boot a guest and show what each step of its boot cost in VM exits
///
/// Writes the profile as JSON, text and CSV under target/exitvisor/ and prints the text. All other
/// options go to `exitvisor profile`. A run that is cut short is shown all the same; the exit
/// status is that of the first run that did not end with 0.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask boot-profile
  cargo xtask boot-profile --runs 5
  cargo xtask boot-profile --cmdline workload=pio:500 --timeout 10s")]
pub(crate) struct BootProfile {
    /// Boot so many times and show the spread
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) runs: u32,
    /// Options of `exitvisor profile`
    #[arg(
        value_name = "OPTIONS OF EXITVISOR",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) options: Vec<OsString>,
}

impl BootProfile {
    /// Builds, measures, saves and shows.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        for taken in ["--format", "--output"] {
            if value_of(&self.options, taken).is_some() {
                bail!("boot-profile itself chooses {taken}: for your own, use `exitvisor profile`");
            }
        }
        if value_of(&self.options, "--runs").is_some() {
            bail!("--runs is boot-profile's own: it comes before the options of exitvisor");
        }
        let built = build::build()?;
        let folder = workspace::output_folder()?;
        signals::outlive_interrupts()?;
        let kernel = value_of(&self.options, "--kernel").map(PathBuf::from);
        let guest = kernel.as_deref().unwrap_or(&built.guest_kernel).file_stem();
        let guest = guest.unwrap_or_default().to_string_lossy().into_owned();
        let base = folder.join(format!("{}-{guest}", now()));

        let (status, profiles) = if self.runs == 1 {
            self.one(&built, &base)?
        } else {
            self.several(&built, &base)?
        };
        if profiles.is_empty() {
            // Exitvisor has said why.
            return Ok(status);
        }
        let saved = report(&built.exitvisor, &profiles, &base)?;
        let saved: Vec<String> = saved.iter().map(|path| workspace::shown(path)).collect();
        println!("saved: {}", saved.join(", "));
        Ok(status)
    }

    /// One run, with the guest's console on the screen.
    fn one(&self, built: &Built, base: &Path) -> anyhow::Result<(u8, Vec<PathBuf>)> {
        let profile = with_suffix(base, ".json");
        let status = self.step(built, &profile).status()?;
        Ok((
            status,
            profile.exists().then_some(profile).into_iter().collect(),
        ))
    }

    /// Several runs, with a spinner instead of the console; who fails is heard.
    fn several(&self, built: &Built, base: &Path) -> anyhow::Result<(u8, Vec<PathBuf>)> {
        let (mut first_failure, mut profiles) = (0, Vec::new());
        let spinner = ProgressBar::new_spinner();
        spinner.enable_steady_tick(Duration::from_millis(100));
        for run in 1..=self.runs {
            let profile = with_suffix(base, &format!("-run{run}.json"));
            let mut step = self.step(built, &profile);
            spinner.suspend(|| step.echo());
            spinner.set_message(format!("run {run} of {}", self.runs));
            let output = step.output()?;
            let status = step::number(output.status);
            if profile.exists() {
                profiles.push(profile);
            }
            if status != 0 {
                let said = String::from_utf8_lossy(&output.stderr);
                spinner.suspend(|| eprint!("{said}"));
                first_failure = if first_failure == 0 {
                    status
                } else {
                    first_failure
                };
                // A person interrupted it, or there is nothing to measure on: no more of it.
                if status >= 128 || profiles.is_empty() {
                    break;
                }
            }
        }
        spinner.finish_and_clear();
        Ok((first_failure, profiles))
    }

    fn step(&self, built: &Built, profile: &Path) -> Step {
        let mut step = Step::new(&built.exitvisor).arg("profile");
        if value_of(&self.options, "--kernel").is_none() {
            step = step.arg("--kernel").arg(&built.guest_kernel);
        }
        step.args(["--format", "json", "--output"])
            .arg(profile)
            .args(&self.options)
    }
}

/// Renders the profiles: text to the screen and beside them, CSV beside each.
fn report(exitvisor: &Path, profiles: &[PathBuf], base: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut saved = Vec::new();
    for profile in profiles {
        let csv = profile.with_extension("csv");
        let step = Step::new(exitvisor).arg("report").arg(profile);
        step.args(["--format", "csv", "--output"])
            .arg(&csv)
            .check()?;
        saved.extend([profile.clone(), csv]);
    }
    let text = with_suffix(base, ".txt");
    let rendered = Step::new(exitvisor).arg("report").args(profiles).stdout()?;
    std::fs::write(&text, &rendered).with_context(|| format!("cannot write {}", text.display()))?;
    std::io::stdout()
        .write_all(&rendered)
        .context("cannot write to stdout")?;
    saved.push(text);
    Ok(saved)
}

/// The time in UTC as a file name can carry it: 2026-11-20T10-12-33.
fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H-%M-%S")
        .to_string()
}

fn with_suffix(base: &Path, suffix: &str) -> PathBuf {
    let mut path = base.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        let base = Path::new("target/2026-11-20T10-12-33-my.kernel");
        let name = with_suffix(base, "-run2.json");
        assert_eq!(
            name,
            Path::new("target/2026-11-20T10-12-33-my.kernel-run2.json")
        );
        let now = now();
        assert_eq!((now.len(), now.contains(':')), (19, false), "{now}");
    }
}
