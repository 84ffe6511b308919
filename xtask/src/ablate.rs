//! `cargo xtask boot-profile --ablate memory`: one guest, booted with guest memory of every kind of
//! pages, filled in in every way; one table.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use indicatif::ProgressBar;

use crate::boot_profile::{unused_name, with_suffix};
use crate::build::{self, Built};
use crate::on::{self, On, Where};
use crate::run::{defaults, value_of};
use crate::step::{self, Step};
use crate::{lab, signals, workspace};

/// What is varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// The pages of guest memory, and how it is filled in
    Memory,
}

const PREFAULT: [&str; 3] = ["none", "touch", "kvm"];
const PAGES: [&str; 3] = ["4k", "thp", "huge"];
/// What the guest does if nobody says: there must be something to touch.
const CMDLINE: &str = "workload=touch:2000";
const HUGE_PAGE: u64 = 2 << 20;

/// Boots every combination, saves and shows the table; the status of the first boot that failed.
pub(crate) fn memory(on: On, options: &[OsString]) -> anyhow::Result<u8> {
    for name in ["--prefault", "--pages"] {
        if value_of(options, name).is_some() {
            bail!("--ablate memory itself varies {name}: leave it out");
        }
    }
    let built = build::build()?;
    let kernel = value_of(options, "--kernel").map(PathBuf::from);
    let guest = kernel.as_deref().unwrap_or(&built.guest_kernel).file_stem();
    let base = unused_name(&workspace::output_folder()?, guest.unwrap_or_default());
    signals::outlive_interrupts()?;
    let place = on.choose(&built, options);

    let (mut profiles, mut skipped, mut status) = (Vec::new(), Vec::new(), 0);
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(100));
    for prefault in PREFAULT {
        for pages in PAGES {
            let name = format!("{prefault}, {pages}");
            spinner.set_message(name.clone());
            let profile = with_suffix(&base, &format!("-{prefault}-{pages}.json"));
            let args = arguments(&built, options, prefault, pages, &profile);
            let (ended, said) = boot(place, &built, options, &args)?;
            if ended >= 128 {
                // A person interrupted it.
                spinner.finish_and_clear();
                return Ok(ended);
            }
            if profile.exists() {
                profiles.push(profile);
                if ended != 0 {
                    let why = reason(&said, ended);
                    spinner.suspend(|| eprintln!("xtask: {name}: {why}"));
                    status = if status == 0 { ended } else { status };
                }
            } else {
                skipped.push(format!("{name}: {}", reason(&said, ended)));
            }
        }
    }
    spinner.finish_and_clear();
    if profiles.is_empty() {
        for why in &skipped {
            eprintln!("xtask: {why}");
        }
        bail!("none of the combinations could be booted");
    }
    show(&built, &profiles, &skipped, &base)?;
    Ok(status)
}

fn arguments(
    built: &Built,
    options: &[OsString],
    prefault: &str,
    pages: &str,
    profile: &Path,
) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["profile".into()];
    args.extend(defaults(built, options));
    args.extend(["--prefault", prefault, "--pages", pages].map(OsString::from));
    if value_of(options, "--cmdline").is_none() {
        args.extend(["--cmdline", CMDLINE].map(OsString::from));
    }
    args.extend(["--format", "json", "--output"].map(OsString::from));
    args.push(profile.into());
    args.extend_from_slice(options);
    args
}

/// One boot: its status, and what it said on stderr.
fn boot(
    place: Where,
    built: &Built,
    options: &[OsString],
    args: &[OsString],
) -> anyhow::Result<(u8, Vec<u8>)> {
    match place {
        Where::Host => {
            let output = Step::new(&built.exitvisor).args(args).output()?;
            Ok((step::number(output.status), output.stderr))
        }
        Where::Lab(host) => {
            let mut job = on::job(host, built, args)?;
            job.quiet = true;
            // The lab is ours: it has as many huge pages as the guest needs.
            let memory = value_of(options, "--memory");
            let memory = memory.and_then(|size| bytes(size.to_str()?));
            let pool = memory.unwrap_or(64 << 20).div_ceil(HUGE_PAGE) + 1;
            job.kernel_args.push(format!("hugepages={pool}"));
            let outcome = lab::run(&job)?;
            Ok((outcome.status, outcome.stderr))
        }
    }
}

/// A size as `--memory` takes it; what is wrong with another, exitvisor says.
fn bytes(size: &str) -> Option<u64> {
    let digits = size.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match size
        .as_bytes()
        .get(digits.len())
        .map(u8::to_ascii_lowercase)
    {
        Some(b'k') => 10,
        Some(b'm') => 20,
        Some(b'g') => 30,
        _ => 0,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// The line in which exitvisor says why it did not run, or not to its end.
fn reason(said: &[u8], status: u8) -> String {
    let said = String::from_utf8_lossy(said);
    let mut lines = said.lines().filter_map(|l| l.strip_prefix("exitvisor: "));
    let last = lines.next_back().map(str::to_owned);
    last.unwrap_or_else(|| format!("ended with status {status}"))
}

/// The table: as text on the screen and beside the profiles, as JSON beside them.
fn show(
    built: &Built,
    profiles: &[PathBuf],
    skipped: &[String],
    base: &Path,
) -> anyhow::Result<()> {
    let step = || {
        let skipped = skipped.iter().flat_map(|why| ["--skipped", why]);
        let step = Step::new(&built.exitvisor).arg("ablation").args(profiles);
        step.args(skipped)
    };
    let json = with_suffix(base, "-ablation.json");
    let to_json = step().args(["--format", "json", "--output"]);
    to_json.arg(&json).check()?;
    let text = with_suffix(base, "-ablation.txt");
    let rendered = step().stdout()?;
    std::fs::write(&text, &rendered).with_context(|| format!("cannot write {}", text.display()))?;
    let shown = Path::new(workspace::shown(&text)).display().to_string();
    let saved = format!("saved: {shown} (and .json, and a profile of each boot)\n");
    let mut out = std::io::stdout().lock();
    out.write_all(&rendered)
        .and_then(|()| out.write_all(saved.as_bytes()))
        .context("cannot write to stdout")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes("64M"), Some(64 << 20));
        assert_eq!(bytes("2g"), Some(2 << 30));
        assert_eq!(bytes("4096"), Some(4096));
        assert_eq!(bytes("M"), None);
        assert_eq!(bytes(""), None);
    }

    #[test]
    fn why_a_combination_is_missing() {
        let said = b"exitvisor: no kernel ledger\nexitvisor: --pages huge: 32 are needed\n";
        assert_eq!(reason(said, 71), "--pages huge: 32 are needed");
        assert!(reason(b"", 70).contains("70"));
    }
}
