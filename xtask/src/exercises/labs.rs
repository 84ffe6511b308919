//! Running the plan in labs: a process for each boot of a lab, two at a time where there are the
//! CPUs for it.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fs, thread};

use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;

use super::evidence::{Boot, Evidence};
use super::inside::{Order, Orders, Said, Told};
use super::plan::{self, Exercise, Run, What};
use super::profile::Profile;
use crate::build::Built;
use crate::kvm_module::Paging;
use crate::lab::{self, Host, Job, Version, process};
use crate::step::{self, Ended, Step};
use crate::test::at_once;

/// Where the plan is run, and for what.
#[derive(Debug)]
pub(crate) struct Errand<'a> {
    pub(crate) built: &'a Built,
    pub(crate) hosts: &'a [Host],
    pub(crate) exercises: &'a [Exercise],
    /// Where profiles go: absolute.
    pub(crate) raw: &'a Path,
}

/// One boot of a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unit {
    host: Host,
    paging: Paging,
}

impl Unit {
    /// The file to which a run's profile goes.
    fn file(self, raw: &Path, run: &str) -> PathBuf {
        let (host, paging) = (self.host.name(), self.paging.name());
        raw.join(format!("{host}-{paging}-{run}.json"))
    }

    /// For people.
    fn title(self) -> String {
        format!("{}, {} paging", self.host.title(), self.paging.name())
    }
}

/// What exitvisor is told for a run: as it is typed, but for the files' paths.
pub(crate) fn arguments(run: &Run, built: Option<&Built>, output: &str) -> Vec<String> {
    let What::Profile { options, cmdline } = run.what else {
        return ["caps", "--format", "json", "--output", output]
            .map(str::to_owned)
            .into();
    };
    let path = |of: fn(&Built) -> &PathBuf, short: &str| {
        built.map_or_else(|| short.to_owned(), |b| of(b).display().to_string())
    };
    let mut args: Vec<String> = vec!["profile".to_owned(), "--firmware".to_owned()];
    args.push(path(|built| &built.firmware, "firmware"));
    args.push("--kernel".to_owned());
    args.push(path(|built| &built.guest_kernel, "guest-kernel"));
    args.extend(options.iter().map(|&option| option.to_owned()));
    if built.is_some() {
        args.extend(["--timeout", TIMEOUT].map(str::to_owned));
    }
    args.extend(["--cmdline", cmdline, "--format", "json", "--output", output].map(str::to_owned));
    args
}

/// For one run of exitvisor; none takes a tenth of it.
const TIMEOUT: &str = "60s";

impl Errand<'_> {
    /// Runs everything, and removes what an earlier one has left.
    pub(crate) fn run(&self, progress: &ProgressBar) -> anyhow::Result<Vec<Evidence>> {
        let mut missing = BTreeMap::new();
        for &host in self.hosts {
            if let Err(error) = lab::prepare(host, Version::default()) {
                missing.insert(
                    host.name(),
                    format!("there is no {}: {error:#}", host.title()),
                );
            }
        }
        let units = self.units();
        for unit in &units {
            for run in plan::RUNS {
                for suffix in ["json", "csv", "txt"] {
                    let file = unit.file(self.raw, run.name).with_extension(suffix);
                    // What is not there need not go.
                    let _ = fs::remove_file(file);
                }
            }
        }
        let there = units
            .iter()
            .filter(|u| !missing.contains_key(u.host.name()));
        let there: Vec<Unit> = there.copied().collect();
        let runs = there.iter().map(|unit| self.runs(*unit).len() as u64);
        progress.set_length(runs.sum());
        let mut boots = self.boots(&there, progress)?;
        let evidence = self.hosts.iter().map(|&host| {
            let mut of_host = BTreeMap::new();
            for unit in units.iter().filter(|unit| unit.host == host) {
                let place = boots.iter().position(|(ran, _)| ran == unit);
                let boot = match (place, missing.get(host.name())) {
                    (Some(place), _) => boots.swap_remove(place).1,
                    (None, Some(why)) => Err(why.clone()),
                    (None, None) => Err("it was ended before".to_owned()),
                };
                of_host.insert(unit.paging, boot);
            }
            Evidence {
                title: host.title().to_owned(),
                comparisons: self.comparisons(host),
                boots: of_host,
            }
        });
        Ok(evidence.collect())
    }

    /// The profiles that the runs have left.
    pub(crate) fn profiles(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for unit in self.units() {
            let runs = self.runs(unit).into_iter();
            let runs = runs.filter(|run| !is_survey(run.name));
            files.extend(runs.map(|run| unit.file(self.raw, run.name)));
        }
        files.retain(|file| file.exists());
        files
    }

    /// What `exitvisor paging` says of nested and shadow profiles; nothing where one is missing.
    fn comparisons(&self, host: Host) -> Vec<(&'static str, Result<String, String>)> {
        let files = |runs: &[&str]| -> Vec<PathBuf> {
            let pagings = Paging::BOTH;
            let units = pagings.map(|paging| Unit { host, paging });
            let of_unit = |unit: Unit| runs.iter().map(move |run| unit.file(self.raw, run));
            units.into_iter().flat_map(of_unit).collect()
        };
        let sweep = plan::SWEEP_RUNS.map(|(name, _)| name);
        let mut comparisons = Vec::new();
        for (what, files) in [
            ("The two boots", files(&["paging"])),
            ("Page-table work of three lengths", files(&sweep)),
        ] {
            if !files.iter().all(|file| file.exists()) {
                continue;
            }
            let mut step = Step::new(&self.built.exitvisor).arg("paging");
            // Names that say what they are, wherever this lies.
            for file in files {
                step = step.arg(file.file_name().unwrap_or_default());
            }
            step.command().current_dir(self.raw);
            let Ok(output) = step.output() else { continue };
            let said = Said {
                status: step::number(output.status),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            };
            comparisons.push(match said.status {
                0 => (what, Ok(said.stdout)),
                _ => (what, Err(said.complaint())),
            });
        }
        comparisons
    }

    /// The boots of labs that are needed, the longest first.
    fn units(&self) -> Vec<Unit> {
        let mut units = Vec::new();
        for paging in Paging::BOTH {
            for host in [Host::Intel, Host::Amd] {
                let unit = Unit { host, paging };
                if self.hosts.contains(&host) && !self.runs(unit).is_empty() {
                    units.push(unit);
                }
            }
        }
        units
    }

    fn runs(&self, unit: Unit) -> Vec<&'static Run> {
        plan::runs(unit.paging, self.exercises)
    }

    fn boots(
        &self,
        units: &[Unit],
        progress: &ProgressBar,
    ) -> anyhow::Result<Vec<(Unit, Result<Boot, String>)>> {
        let waiting = Mutex::new(VecDeque::from(units.to_vec()));
        let done = Mutex::new(Vec::new());
        let work = || -> anyhow::Result<()> {
            loop {
                let unit = locked(&waiting).pop_front();
                let Some(unit) = unit else { return Ok(()) };
                let boot = self.boot(unit, progress).inspect_err(|_| {
                    // No more of it.
                    locked(&waiting).clear();
                })?;
                locked(&done).push((unit, boot));
            }
        };
        thread::scope(|scope| {
            let others: Vec<_> = (1..at_once()).map(|_| scope.spawn(work)).collect();
            let mut result = work();
            for other in others {
                let ended = other.join();
                let ended = ended.map_err(|_| anyhow::anyhow!("a lab's thread panicked"));
                result = result.and(ended.and_then(|ended| ended));
            }
            result
        })?;
        Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// One boot of a lab, in a process of its own. An error is the end of everything.
    fn boot(&self, unit: Unit, progress: &ProgressBar) -> anyhow::Result<Result<Boot, String>> {
        let orders = Orders {
            exitvisor: self.built.exitvisor.clone(),
            runs: self
                .runs(unit)
                .into_iter()
                .map(|run| {
                    let output = unit.file(self.raw, run.name).display().to_string();
                    Order {
                        name: run.name.to_owned(),
                        args: arguments(run, Some(self.built), &output),
                    }
                })
                .collect(),
        };
        let folder = tempfile::tempdir().context("cannot make a folder for the orders")?;
        let file = folder.path().join("orders.json");
        fs::write(&file, serde_json::to_vec(&orders)?).context("cannot write the orders")?;

        let mut command = process::command("exercises-lab", self.built)?;
        command.args([unit.host.name(), unit.paging.name()]);
        command
            .arg("--orders")
            .arg(&file)
            .arg("--raw")
            .arg(self.raw);
        let mut child = process::spawn(command)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut said = String::new();
        let told = thread::scope(|scope| {
            let told = scope.spawn(|| {
                let mut text = Vec::new();
                stdout.map(|mut from| from.read_to_end(&mut text));
                text
            });
            let lines = stderr.map(|from| BufReader::new(from).split(b'\n'));
            for line in lines.into_iter().flatten().map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if orders.runs.iter().any(|order| order.name == line) {
                    progress.set_message(format!("{}: {line}", unit.title()));
                    progress.inc(1);
                } else if !line.starts_with("+ ") {
                    said += &line;
                    said.push('\n');
                }
            }
            told.join().unwrap_or_default()
        });
        let status = step::number(child.wait().context("cannot wait for a lab")?);
        if status >= 128 {
            let what = "cargo xtask exercises".to_owned();
            return Err(Ended { what, status }.into());
        }
        if status != 0 {
            let why = said.trim();
            let why = why
                .strip_prefix("xtask: ")
                .unwrap_or(why)
                .replace('\n', " ");
            return Ok(Err(format!("it ended with status {status}: {why}")));
        }
        let told: Told = match serde_json::from_slice(&told) {
            Ok(told) => told,
            Err(error) => return Ok(Err(format!("what it said cannot be read: {error}"))),
        };
        let (mut profiles, mut survey) = (BTreeMap::new(), None);
        for (run, said) in &told.runs {
            let file = unit.file(self.raw, run);
            let console = file.with_extension("txt");
            fs::write(&console, &said.stderr)
                .with_context(|| format!("cannot write {}", console.display()))?;
            let Ok(bytes) = fs::read(&file) else {
                continue;
            };
            if is_survey(run) {
                survey = serde_json::from_slice(&bytes).ok();
                continue;
            }
            let profile: Result<Profile, _> = serde_json::from_slice(&bytes);
            match profile {
                Ok(profile) => _ = profiles.insert(run.clone(), profile),
                Err(error) => return Ok(Err(format!("the profile {run} cannot be read: {error}"))),
            }
        }
        Ok(Ok(Boot {
            told,
            profiles,
            survey,
        }))
    }
}

/// Whether a run leaves what `exitvisor caps` says, not a profile.
pub(crate) fn is_survey(name: &str) -> bool {
    let run = plan::RUNS.iter().find(|run| run.name == name);
    run.is_some_and(|run| matches!(run.what, What::Caps))
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Run the exercises in one boot of a lab
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct OneLab {
    host: Host,
    paging: Paging,
    #[command(flatten)]
    built: Built,
    #[arg(long)]
    orders: PathBuf,
    #[arg(long)]
    raw: PathBuf,
}

impl OneLab {
    /// Boots the lab; what is told inside goes to stdout, a line for each run to stderr.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        let this = crate::workspace::this_program()?;
        let mut job = Job::new(self.host, this)?;
        job.with_guests(&self.built)?;
        job.module_args = vec![self.paging.parameter(self.host)];
        job.args = vec!["exercises-in-lab".into(), self.orders.into()];
        job.cwd = self.raw;
        Ok(lab::run(&job)?.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_as_one_would_type_it() {
        let run = plan::RUNS.iter().find(|run| run.name == "boot").unwrap();
        assert_eq!(
            arguments(run, None, "boot.json").join(" "),
            "profile --firmware firmware --kernel guest-kernel --on-reset continue \
             --cmdline exits=leaves reboot=1 --format json --output boot.json"
        );
    }

    #[test]
    fn boots_of_labs() {
        let built = Built {
            exitvisor: "e".into(),
            firmware: "f".into(),
            guest_kernel: "g".into(),
        };
        let units = |hosts, exercises| {
            let errand = Errand {
                built: &built,
                hosts,
                exercises,
                raw: Path::new("/raw"),
            };
            let units = errand.units();
            units.into_iter().map(Unit::title).collect::<Vec<_>>()
        };
        assert_eq!(
            units(&[Host::Amd], &[Exercise::Paging]),
            ["AMD lab, nested paging", "AMD lab, shadow paging"]
        );
        assert_eq!(
            units(&[Host::Amd, Host::Intel], &[Exercise::Boot]),
            ["Intel lab, nested paging", "AMD lab, nested paging"]
        );
    }
}
