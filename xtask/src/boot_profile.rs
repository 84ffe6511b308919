//! `cargo xtask boot-profile`: boot, measure, keep the profile, show the report.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use clap::error::ErrorKind;
use indicatif::ProgressBar;

use crate::ablate::{self, What};
use crate::build::{self, Built};
use crate::linux_guest::{Guest, Linux};
use crate::on::{self, On, Where};
use crate::paging::{self, Measurement, Sweep, Wish};
use crate::run::{defaults, value_of};
use crate::step::{self, Step};
use crate::{lab, signals, workspace};

/// Options of boot-profile's own that have a value, and the one without.
const OWN: [&str; 6] = [
    "--guest", "--runs", "--on", "--paging", "--sweep", "--ablate",
];
const FLAG: &str = "--reload-kvm";
/// Options of `exitvisor report` that say what it shows of culprits, each with a value.
const OF_REPORT: [&str; 3] = ["--by", "--top", "--at"];

/// Takes the report's options out of those of `exitvisor profile`; what follows `--` stays.
fn take_of_report(options: &mut Vec<OsString>) -> Vec<OsString> {
    let (mut theirs, mut rest) = (Vec::new(), Vec::new());
    let mut words = options.drain(..);
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        let name = text.split_once('=').map_or(&*text, |(name, _)| name);
        if text == "--" {
            rest.push(word);
            rest.extend(words.by_ref());
        } else if OF_REPORT.contains(&name) {
            let has_value = OF_REPORT.contains(&&*text);
            theirs.push(word);
            theirs.extend(has_value.then(|| words.next()).flatten());
        } else {
            rest.push(word);
        }
    }
    drop(words);
    *options = rest;
    theirs
}

/// A command line with boot-profile's own options before those of exitvisor, in whatever order they
/// were typed; what follows `--` stays.
pub(crate) fn in_order(line: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut line = line.into_iter();
    let mut ours: Vec<OsString> = line.by_ref().take(2).collect();
    if ours.get(1).is_none_or(|task| task != "boot-profile") {
        ours.extend(line);
        return ours;
    }
    let mut theirs = Vec::new();
    while let Some(word) = line.next() {
        let text = word.to_string_lossy();
        let name = text.split_once('=').map_or(&*text, |(name, _)| name);
        if text == "--" {
            theirs.push(word);
            theirs.extend(line.by_ref());
        } else if text == FLAG || OWN.contains(&name) {
            let has_value = OWN.contains(&&*text);
            ours.push(word);
            ours.extend(has_value.then(|| line.next()).flatten());
        } else {
            theirs.push(word);
        }
    }
    ours.extend(theirs);
    ours
}

/// Boot a guest and show what each step of its boot cost in VM exits
///
/// Without --kernel the guest is this project's guest kernel, without --firmware it is booted through
/// this project's firmware. `--guest initramfs` is Linux: where this machine's KVM is software, which
/// cannot run it, it is booted in the AMD lab. Several runs are shown by their least, median and most,
/// and the usual questions answered. Writes the profile as JSON, text and CSV under target/exitvisor/ and prints the text, for which
/// `--by`, `--top` and `--at` go to `exitvisor report`. All other options go to `exitvisor profile`. A run that is cut short is shown all the same; the exit
/// status is that of the first run that did not end with 0.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask boot-profile
  cargo xtask boot-profile --runs 5
  cargo xtask boot-profile --on amd-lab
  cargo xtask boot-profile --on amd-lab --paging both --cmdline workload=ptes:64
  cargo xtask boot-profile --guest initramfs
  cargo xtask boot-profile --guest initramfs --runs 5 --paging both --kernel 6.1
  cargo xtask boot-profile --on intel-lab --paging both --sweep usual
  cargo xtask boot-profile --on amd-lab --ablate memory
  cargo xtask boot-profile --firmware none
  cargo xtask boot-profile --cmdline workload=pio:500 --timeout 10s")]
pub(crate) struct BootProfile {
    /// What to boot
    #[arg(long, value_enum, default_value_t = Guest::default())]
    pub(crate) guest: Guest,
    /// Boot so many times (with each paging) and show the spread
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) runs: u32,
    /// Which KVM to boot on
    #[arg(long, value_enum, default_value_t = On::default())]
    pub(crate) on: On,
    /// Boot with nested or with shadow paging, or compare both: each in its own lab (--on amd-lab,
    /// --on intel-lab), or here with --reload-kvm
    #[arg(long, value_enum)]
    pub(crate) paging: Option<Wish>,
    /// Compare both over page-table work (workload=ptes:N) of so many pages, and draw it; `usual` is
    /// 16,64,256,1024
    #[arg(long, value_name = "N,N,…", requires = "paging", value_parser = paging::sweep)]
    pub(crate) sweep: Option<Sweep>,
    /// Boot every combination of what is named, and show what it does: memory (--prefault and --pages)
    #[arg(long, value_enum, conflicts_with_all = ["runs", "paging"])]
    pub(crate) ablate: Option<What>,
    /// Load this machine's KVM anew for that, as root, with no VM alive, and put it back
    #[arg(long, requires = "paging")]
    pub(crate) reload_kvm: bool,
    /// Build nothing, use what EXITVISOR_BIN and EXITVISOR_GUESTS name, and leave the results here:
    /// for tests inside labs
    #[arg(long, requires = "paging", hide = true)]
    pub(crate) built: bool,
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
    pub(crate) fn run(mut self) -> anyhow::Result<u8> {
        self.check()?;
        let of_report = take_of_report(&mut self.options);
        if !of_report.is_empty() && (self.paging.is_some() || self.ablate.is_some()) {
            let why =
                "--by shows one profile, not a comparison: give it to `exitvisor report FILE`\n";
            return Err(clap::Error::raw(ErrorKind::ArgumentConflict, why).into());
        }
        let mut name = None;
        if let Some(linux) = Linux::of(self.guest, &self.options)? {
            self.options = linux.options;
            name = Some(linux.name);
        }
        if let Some(wish) = self.paging {
            let on = match (self.on, self.guest) {
                // Software KVM has no paging to choose, and there Linux is booted in the AMD lab.
                (On::Auto, Guest::Initramfs | Guest::Debian) if !self.reload_kvm => {
                    match self.on.choose_linux() {
                        Where::Host => On::Host,
                        Where::Lab(_) => On::AmdLab,
                    }
                }
                (on, _) => on,
            };
            let measurement = Measurement {
                wish,
                runs: self.runs,
                name,
                sweep: self.sweep.as_ref().map_or(&[], |sweep| &sweep.0),
                on,
                reload: self.reload_kvm,
                built: self.built,
                options: &self.options,
            };
            return measurement.run();
        }
        if let Some(What::Memory) = self.ablate {
            return ablate::memory(self.on, &self.options);
        }
        let built = build::build()?;
        let kernel = value_of(&self.options, "--kernel").map(PathBuf::from);
        let guest = kernel.as_deref().unwrap_or(&built.guest_kernel).file_stem();
        let name = name.unwrap_or_else(|| guest.unwrap_or_default().to_owned());
        let base = unused_name(&workspace::output_folder()?, &name);
        signals::outlive_interrupts()?;

        let place = self.on.choose(&built, &self.options);
        let (status, profiles) = if self.runs == 1 {
            self.one(place, &built, &base)?
        } else {
            self.several(place, &built, &base)?
        };
        // Where there is no profile, exitvisor has said why.
        if !profiles.is_empty() {
            report(&built.exitvisor, &profiles, &base, &of_report)?;
        }
        Ok(status)
    }

    /// Options that are not exitvisor's to have here.
    fn check(&self) -> anyhow::Result<()> {
        let given = |name: &&str| value_of(&self.options, name).is_some();
        let why = if let Some(name) = ["--format", "--output"].iter().find(|name| given(name)) {
            format!("boot-profile itself chooses {name}; for your own, use `exitvisor profile`\n")
        } else if let Some(name) = OWN.iter().chain(&[FLAG]).find(|name| given(name)) {
            format!("{name} comes before the options of exitvisor\n")
        } else {
            return Ok(());
        };
        Err(clap::Error::raw(ErrorKind::ArgumentConflict, why).into())
    }

    /// One run, with the guest's console on the screen.
    fn one(&self, place: Where, built: &Built, base: &Path) -> anyhow::Result<(u8, Vec<PathBuf>)> {
        let profile = with_suffix(base, ".json");
        let status = place.status(built, &self.args(built, &profile))?;
        Ok((
            status,
            Some(profile)
                .into_iter()
                .filter(|file| file.exists())
                .collect(),
        ))
    }

    /// Several runs, with a spinner instead of the console; who fails is heard.
    fn several(
        &self,
        place: Where,
        built: &Built,
        base: &Path,
    ) -> anyhow::Result<(u8, Vec<PathBuf>)> {
        let (mut first_failure, mut profiles) = (0, Vec::new());
        let spinner = ProgressBar::new_spinner();
        spinner.enable_steady_tick(Duration::from_millis(100));
        for run in 1..=self.runs {
            let profile = with_suffix(base, &format!("-run{run}.json"));
            let args = self.args(built, &profile);
            let mut step = Step::new(&built.exitvisor).args(&args);
            spinner.suspend(|| step.echo());
            spinner.set_message(format!("run {run} of {}", self.runs));
            let (status, said) = match place {
                Where::Host => {
                    let output = step.output()?;
                    (step::number(output.status), output.stderr)
                }
                Where::Lab(host) => {
                    let mut job = on::job(host, built, &args)?;
                    job.quiet = true;
                    let outcome = lab::run(&job)?;
                    (outcome.status, outcome.stderr)
                }
            };
            if profile.exists() {
                profiles.push(profile);
            }
            if status == 0 {
                continue;
            }
            let said = String::from_utf8_lossy(&said);
            spinner.suspend(|| eprint!("{said}"));
            if first_failure == 0 {
                first_failure = status;
            }
            // A person interrupted it, or there is nothing to measure here: no more of it.
            if status >= 128 || profiles.is_empty() {
                break;
            }
        }
        spinner.finish_and_clear();
        Ok((first_failure, profiles))
    }

    fn args(&self, built: &Built, profile: &Path) -> Vec<OsString> {
        let mut args = vec!["profile".into()];
        args.extend(defaults(built, &self.options));
        args.extend(["--format", "json", "--output"].map(OsString::from));
        args.push(profile.into());
        args.extend_from_slice(&self.options);
        args
    }
}

/// Renders the profiles: CSV beside each and of all, text beside them and on the screen; with the report's
/// own options (`--by`) the text is what they ask for: of one profile instead, of several behind it, each.
fn report(
    exitvisor: &Path,
    profiles: &[PathBuf],
    base: &Path,
    of_report: &[OsString],
) -> anyhow::Result<()> {
    for profile in profiles {
        let step = Step::new(exitvisor).arg("report").arg(profile);
        let step = step.args(["--format", "csv", "--output"]);
        step.arg(profile.with_extension("csv")).check()?;
    }
    let text = with_suffix(base, ".txt");
    let text_of = |profiles: &[PathBuf], options: &[OsString]| {
        let step = Step::new(exitvisor).arg("report").args(profiles);
        step.args(options).stdout()
    };
    let rendered = match profiles {
        [_] => text_of(profiles, of_report)?,
        _ => {
            let mut all = text_of(profiles, &[])?;
            let each = if of_report.is_empty() { &[] } else { profiles };
            for profile in each {
                all.extend(format!("\n{}\n", workspace::shown(profile).display()).bytes());
                all.extend(text_of(std::slice::from_ref(profile), of_report)?);
            }
            all
        }
    };
    std::fs::write(&text, &rendered).with_context(|| format!("cannot write {}", text.display()))?;
    if profiles.len() > 1 {
        for format in ["json", "csv"] {
            let step = Step::new(exitvisor).arg("report").args(profiles);
            let step = step.args(["--format", format, "--output"]);
            step.arg(with_suffix(base, &format!(".{format}"))).check()?;
        }
    }
    let mut out = std::io::stdout().lock();
    out.write_all(&rendered)
        .and_then(|()| out.write_all(saved(profiles, &text).as_bytes()))
        .context("cannot write to stdout")
}

/// One line that says where everything is.
fn saved(profiles: &[PathBuf], text: &Path) -> String {
    let shown = |path: &Path| Path::new(workspace::shown(path)).display().to_string();
    match profiles {
        [profile] if profile.file_stem() == text.file_stem() => {
            format!("saved: {} (and .txt, .csv)\n", shown(profile))
        }
        profiles => {
            let profiles: Vec<String> = profiles.iter().map(|profile| shown(profile)).collect();
            format!(
                "saved: {} (and .json, .csv), {} (and .csv)\n",
                shown(text),
                profiles.join(", ")
            )
        }
    }
}

/// A path for a boot of this guest, to which suffixes are added: 2026-11-20T10-12-33-guest-kernel,
/// or with a number behind, so that what an earlier boot left is neither written over nor taken
/// for ours.
pub(crate) fn unused_name(folder: &Path, guest: &OsStr) -> PathBuf {
    let base = with_suffix(
        &folder.join(now()),
        &format!("-{}", guest.to_string_lossy()),
    );
    let used = |base: &Path| {
        [
            ".json",
            "-run1.json",
            "-nested.json",
            "-shadow.json",
            "-nested-run1.json",
            "-shadow-run1.json",
        ]
        .iter()
        .any(|suffix| with_suffix(base, suffix).exists())
    };
    let numbered = (2..).map(|n: u32| with_suffix(&base, &format!("-{n}")));
    let mut names = std::iter::once(base.clone()).chain(numbered);
    names.find(|name| !used(name)).unwrap_or(base)
}

/// The time in UTC as a file name can carry it: 2026-11-20T10-12-33.
fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H-%M-%S")
        .to_string()
}

pub(crate) fn with_suffix(base: &Path, suffix: &str) -> PathBuf {
    let mut path = base.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_options_may_stand_anywhere() {
        let line = |text: &str| in_order(text.split(' ').map(OsString::from));
        let words = |words: Vec<OsString>| {
            let words = words.iter().map(|w| w.to_string_lossy());
            words.collect::<Vec<_>>().join(" ")
        };
        for (typed, ordered) in [
            (
                "x boot-profile --guest initramfs --kernel 6.1 --runs 5 --paging=both",
                "x boot-profile --guest initramfs --runs 5 --paging=both --kernel 6.1",
            ),
            (
                "x boot-profile --memory 1G --reload-kvm -- --runs 5",
                "x boot-profile --reload-kvm --memory 1G -- --runs 5",
            ),
            ("x boot-profile --runs", "x boot-profile --runs"),
            ("x run --kernel k --on host", "x run --kernel k --on host"),
            ("x", "x"),
        ] {
            assert_eq!(words(line(typed)), ordered);
        }
    }

    #[test]
    fn what_the_report_shows_is_its_own_to_know() {
        let line = "--memory 1G --by msr --top=5 --at each -- --by port";
        let mut options: Vec<OsString> = line.split(' ').map(Into::into).collect();
        let of_report = take_of_report(&mut options);
        assert_eq!(of_report, ["--by", "msr", "--top=5", "--at", "each"]);
        assert_eq!(options, ["--memory", "1G", "--", "--by", "port"]);
    }

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

    #[test]
    fn what_was_saved() {
        let files = |names: &[&str]| -> Vec<PathBuf> { names.iter().map(Into::into).collect() };
        let line = saved(&files(&["t/x.json"]), Path::new("t/x.txt"));
        assert_eq!(line, "saved: t/x.json (and .txt, .csv)\n");
        let line = saved(&files(&["x-run1.json", "x-run2.json"]), Path::new("x.txt"));
        assert_eq!(
            line,
            "saved: x.txt (and .json, .csv), x-run1.json, x-run2.json (and .csv)\n"
        );
    }
}
