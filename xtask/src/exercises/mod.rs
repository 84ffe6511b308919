//! `cargo xtask exercises`: everything that the coursework asks, run in the labs and answered in
//! one document.
//!
//! `plan` says what is run; `labs` runs it and brings `evidence`; each module of `answers` makes of
//! it one answer of the `results`; `document` and JSON render these.

mod answers;
mod console;
mod document;
mod evidence;
#[cfg(test)]
mod fixtures;
mod inside;
mod labs;
mod plan;
mod profile;
mod results;
mod survey;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use crate::build;
use crate::lab::Host;
use crate::step::Step;
use crate::{FAILED, signals, workspace};
use evidence::Evidence;
pub(crate) use inside::InLab;
pub(crate) use labs::OneLab;
use plan::Exercise;
use results::{Answered, Lab, Results};

/// Run the coursework's exercises in the labs and write one document with all answers
///
/// The document is results.md; beside it lie results.json, a CSV for each exercise, and in raw/ the
/// profile of each run as JSON and CSV. The status is 1 if an answer is not as expected, 70 if a lab
/// could not be run; the document says so in either case.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask exercises
  cargo xtask exercises --on amd-lab --only hypercall,leaves
  cargo xtask exercises --output /tmp/results")]
pub(crate) struct Exercises {
    /// In which labs, several with commas
    #[arg(long, value_enum, value_name = "LAB", value_delimiter = ',',
          default_values_t = [Place::AmdLab, Place::IntelLab])]
    on: Vec<Place>,
    /// Only these exercises, several with commas
    #[arg(long, value_enum, value_name = "EXERCISE", value_delimiter = ',')]
    only: Vec<Exercise>,
    /// The folder to write to [default: exercises/ in the target folder]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// A lab, as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Place {
    /// Real kvm_amd on an emulated CPU
    AmdLab,
    /// Real kvm_intel on an emulated CPU
    IntelLab,
}

/// The status if an answer is not as expected.
const UNEXPECTED: u8 = 1;

impl Exercises {
    /// Builds, runs, answers, and says where the document is.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        let folder = self.folder()?;
        let raw = folder.join("raw");
        fs::create_dir_all(&raw).with_context(|| format!("cannot make {}", raw.display()))?;
        let built = build::build()?;
        signals::outlive_interrupts()?;
        let exercises = self.exercises();
        let hosts: Vec<Host> = self.hosts();
        let errand = labs::Errand {
            built: &built,
            hosts: &hosts,
            exercises: &exercises,
            raw: &raw,
        };
        let progress = ProgressBar::new(0).with_style(style());
        progress.set_message("labs: booting");
        let evidence = errand.run(&progress);
        progress.finish_and_clear();
        let evidence = evidence?;

        let results = self.results(&exercises, &evidence);
        save(&results, &folder)?;
        raw_csv(&errand)?;
        print!("{}", summary(&results, &folder));
        Ok(status(&results))
    }

    fn exercises(&self) -> Vec<Exercise> {
        let wanted = |exercise: &&Exercise| self.only.is_empty() || self.only.contains(exercise);
        let all = Exercise::value_variants().iter();
        all.filter(wanted).copied().collect()
    }

    fn hosts(&self) -> Vec<Host> {
        let hosts = [(Place::AmdLab, Host::Amd), (Place::IntelLab, Host::Intel)];
        let wanted = hosts
            .into_iter()
            .filter(|(place, _)| self.on.contains(place));
        wanted.map(|(_, host)| host).collect()
    }

    /// The folder to write to, absolute.
    fn folder(&self) -> anyhow::Result<PathBuf> {
        let folder = match &self.output {
            Some(folder) => folder.clone(),
            None => workspace::target_folder()?.join("exercises"),
        };
        let made = fs::create_dir_all(&folder).and_then(|()| folder.canonicalize());
        made.with_context(|| format!("cannot make {}", folder.display()))
    }

    fn results(&self, exercises: &[Exercise], evidence: &[Evidence]) -> Results {
        let version = evidence
            .iter()
            .find_map(|lab| Some(lab.any_profile()?.tool.version.clone()));
        Results {
            schema: "exitvisor-exercises",
            version: 1,
            created: jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string(),
            tool: format!("exitvisor {}", version.as_deref().unwrap_or("(unknown)")),
            command: self.command(),
            labs: evidence.iter().map(lab).collect(),
            exercises: exercises
                .iter()
                .map(|&exercise| answers::answer(exercise, evidence))
                .collect(),
        }
    }

    /// As it was typed, but for where it writes to.
    fn command(&self) -> String {
        let name = |place: &Place| place.to_possible_value().map(|v| v.get_name().to_owned());
        let on: Vec<String> = self.on.iter().filter_map(name).collect();
        let mut command = format!("cargo xtask exercises --on {}", on.join(","));
        if !self.only.is_empty() {
            let only: Vec<String> = self.only.iter().map(|only| only.name()).collect();
            command += &format!(" --only {}", only.join(","));
        }
        command
    }
}

/// What is known of a lab.
fn lab(evidence: &Evidence) -> Lab {
    let mut facts = Vec::new();
    let mut fact = |name: &str, value: String| facts.push((name.to_owned(), value));
    if let Some(profile) = evidence.any_profile() {
        let host = &profile.host;
        fact("CPU", host.cpu.clone());
        fact("kernel", format!("Linux {}", host.kernel));
        fact("KVM", format!("kvm_{}", host.kvm));
        fact("TSC", format!("{} kHz", results::grouped(host.tsc_khz)));
        let ledger = profile.incomplete();
        fact(
            "exits counted by",
            ledger.unwrap_or_else(|| "kernel ledger: every exit, none sampled".to_owned()),
        );
    }
    let (mut parameters, mut missing) = (BTreeMap::new(), Vec::new());
    for (paging, boot) in &evidence.boots {
        match boot {
            Ok(boot) => {
                let all = &boot.told.parameters;
                let telling = |name: &str| {
                    let value = all.get(name)?;
                    Some(format!("{}={value}", name.split('.').nth(1)?))
                };
                let words: Vec<String> = PARAMETERS.iter().filter_map(|n| telling(n)).collect();
                fact(&format!("{} paging", paging.name()), words.join(" "));
                parameters.insert(paging.name().to_owned(), all.clone());
            }
            Err(why) => missing.push(format!("{} paging: {why}", paging.name())),
        }
    }
    Lab {
        title: evidence.title.clone(),
        facts,
        parameters,
        missing,
    }
}

/// Parameters that the document names.
const PARAMETERS: [&str; 7] = [
    "kvm_amd.npt",
    "kvm_amd.nested",
    "kvm_amd.avic",
    "kvm_intel.ept",
    "kvm_intel.unrestricted_guest",
    "kvm_intel.vpid",
    "kvm_intel.nested",
];

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Writes the document, the JSON and a CSV for each exercise.
fn save(results: &Results, folder: &Path) -> anyhow::Result<()> {
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("results.md", document::markdown(results))?;
    let json = serde_json::to_string_pretty(results)?;
    write("results.json", json + "\n")?;
    for exercise in results.exercises.iter().filter(|e| !e.csv.is_empty()) {
        write(&format!("{}.csv", exercise.name), csv(&exercise.csv))?;
    }
    Ok(())
}

/// RFC 4180, but lines end in LF.
fn csv(rows: &[Vec<String>]) -> String {
    let field = |field: &String| match field.contains([',', '"', '\n']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.clone(),
    };
    let row = |row: &Vec<String>| row.iter().map(field).collect::<Vec<_>>().join(",") + "\n";
    rows.iter().map(row).collect()
}

/// Each profile as CSV, beside it.
fn raw_csv(errand: &labs::Errand<'_>) -> anyhow::Result<()> {
    for profile in errand.profiles() {
        let mut step = Step::new(&errand.built.exitvisor).arg("report");
        step = step.arg(&profile).args(["--format", "csv", "--output"]);
        step = step.arg(profile.with_extension("csv"));
        let output = step.output()?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            anyhow::bail!("`{step}`: {why}");
        }
    }
    Ok(())
}

/// A line for each exercise, what failed, and where the document is.
fn summary(results: &Results, folder: &Path) -> String {
    let mut text = String::new();
    for (i, exercise) in results.exercises.iter().enumerate() {
        let failed: Vec<_> = exercise.failures().collect();
        let met = exercise.checks.len() - failed.len();
        let outcome = outcome(exercise, met, failed.len());
        text += &format!("{}. {:<44} {outcome}\n", i + 1, exercise.title);
        for check in failed {
            let found = check.failed.as_deref().unwrap_or_default();
            text += &format!(
                "   FAILED, {}: expected {}; found {found}\n",
                check.lab, check.expected
            );
        }
        for not_run in &exercise.not_run {
            text += &format!("   not run, {}: {}\n", not_run.lab, not_run.why);
        }
    }
    let document = folder.join("results.md");
    let shown = Path::new(workspace::shown(&document)).display().to_string();
    text += &format!("saved: {shown} (and results.json, CSV, raw/)\n");
    text
}

fn outcome(exercise: &Answered, met: usize, failed: usize) -> String {
    match (met, failed) {
        (0, 0) if !exercise.not_run.is_empty() => "not run".to_owned(),
        (met, 0) => format!("{met} expectations met"),
        (met, failed) => format!("{met} expectations met, {failed} FAILED"),
    }
}

fn status(results: &Results) -> u8 {
    let (exercises, labs) = (&results.exercises, &results.labs);
    if exercises.iter().any(|e| e.failures().next().is_some()) {
        UNEXPECTED
    } else if labs.iter().any(|lab| !lab.missing.is_empty())
        || exercises.iter().any(|e| !e.not_run.is_empty())
    {
        FAILED
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use results::Table;

    /// One exercise answered, one with a failure, one that was not run.
    fn results() -> Results {
        let mut well = Answered {
            name: "boot".to_owned(),
            title: "The exits of a boot".to_owned(),
            question: "How many?".to_owned(),
            ran: vec!["exitvisor profile --cmdline 'a | b'".to_owned()],
            why: "It is so because ".repeat(12),
            source: "The profile.".to_owned(),
            ..Answered::default()
        };
        let mut table = Table::new("Two boots", ["lab", ">exits"]);
        table.row(["AMD | lab", "1,234"]);
        table.row(["Intel", "7"]);
        well.table(table);
        well.code("as it was\n  printed\n");
        well.expect("AMD lab", "it is so", true, "");
        well.expect("AMD lab", "it is so", true, "");
        well.expect("Intel lab", "it is so", true, "");
        let mut failed = Answered {
            title: "VMCALL 0x283".to_owned(),
            ..Answered::default()
        };
        failed.expect("AMD lab", "0x283 answers", false, "nothing");
        failed.expect("AMD lab", "0x283 answers", true, "");
        let mut not_run = Answered {
            title: "Paging".to_owned(),
            ..Answered::default()
        };
        not_run.not_run("Intel lab", "it ended with status 70: no memory");
        Results {
            schema: "exitvisor-exercises",
            version: 1,
            created: "2026-11-20T12:00:00Z".to_owned(),
            tool: "exitvisor 0.1.0".to_owned(),
            command: "cargo xtask exercises --on amd-lab,intel-lab".to_owned(),
            labs: vec![
                Lab {
                    title: "AMD lab".to_owned(),
                    facts: vec![("CPU".to_owned(), "a CPU".to_owned())],
                    parameters: BTreeMap::new(),
                    missing: Vec::new(),
                },
                Lab {
                    title: "Intel lab".to_owned(),
                    facts: Vec::new(),
                    parameters: BTreeMap::new(),
                    missing: vec!["shadow paging: no memory".to_owned()],
                },
            ],
            exercises: vec![well, failed, not_run],
        }
    }

    #[test]
    fn the_document() {
        insta::assert_snapshot!(document::markdown(&results()));
    }

    #[test]
    fn the_summary() {
        insta::assert_snapshot!(summary(&results(), Path::new("/results")));
    }

    #[test]
    fn statuses() {
        let mut results = results();
        assert_eq!(status(&results), UNEXPECTED);
        results.exercises.remove(1);
        assert_eq!(status(&results), FAILED, "a lab is missing");
        results.labs.pop();
        assert_eq!(status(&results), FAILED, "an exercise was not run");
        results.exercises.pop();
        assert_eq!(status(&results), 0);
    }

    #[test]
    fn fields_of_csv() {
        let row = ["a", "b, \"c\"", ""].map(str::to_owned);
        assert_eq!(csv(&[row.into()]), "a,\"b, \"\"c\"\"\",\n");
    }

    #[test]
    fn labs_that_brought_nothing_are_said_so() {
        let mut evidence = fixtures::lab("AMD lab");
        let boots = &mut evidence.boots;
        boots.insert(crate::kvm_module::Paging::Nested, Err("no QEMU".to_owned()));
        for exercise in Exercise::value_variants() {
            let answered = answers::answer(*exercise, std::slice::from_ref(&evidence));
            assert!(answered.checks.is_empty(), "{answered:?}");
            assert!(!answered.not_run.is_empty(), "{answered:?}");
            assert!(answered.not_run.iter().any(|n| n.why.contains("no QEMU")));
        }
        assert_eq!(lab(&evidence).missing, ["nested paging: no QEMU"]);
    }
}
