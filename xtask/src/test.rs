//! `cargo xtask test`: every test, and a word on each that was skipped.

mod inside;
mod labs;
mod suite;

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::Context;
use clap::{Args, ValueEnum};

pub(crate) use inside::Inside;
use labs::Plan;
pub(crate) use labs::{OneLab, at_once};
use suite::Suite;

use crate::build::{self, Built};
use crate::step::Step;
use crate::workspace;

/// The variable that tells tests into which file they write `skipped: NAME: WHY`.
const SKIPPED: &str = "EXITVISOR_SKIPPED";

/// Run every test: unit tests, and black-box tests on the built guests, on this machine and in labs
///
/// With options of cargo test, only this machine's tests run, unless --on says more.
#[derive(Debug, Default, Args)]
#[command(after_help = "Examples:
  cargo xtask test
  cargo xtask test --all                 also what takes long: every lab
  cargo xtask test --on host             this machine only
  cargo xtask test --on intel-lab gate   there only, tests with `gate` in their name
  cargo xtask test gate                  this machine, tests with `gate` in their name
  cargo xtask test --package exitvisor   one package
  cargo xtask test -- --nocapture        what follows `--` goes to the test programs")]
pub(crate) struct Test {
    /// Also run what takes long
    #[arg(long)]
    all: bool,
    /// Run the tests only here: host, amd-lab, amd-lab-6.1, …, several with commas; comes before
    /// the options of cargo test
    #[arg(long, value_name = "WHERE", value_delimiter = ',', value_parser = place)]
    on: Vec<Place>,
    /// Options of `cargo test`
    #[arg(value_name = "OPTIONS OF CARGO TEST", allow_hyphen_values = true)]
    options: Vec<OsString>,
    /// Options of the test programs, where a `--` comes before all else
    #[arg(last = true, hide = true)]
    of_programs: Vec<OsString>,
}

/// Where tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// On this machine.
    Host,
    /// In a lab.
    Lab(Suite),
}

fn place(name: &str) -> Result<Place, String> {
    if name == "host" {
        return Ok(Place::Host);
    }
    Suite::from_str(name, false).map(Place::Lab).map_err(|_| {
        let names: Vec<String> = Suite::ALL.into_iter().map(Suite::name).collect();
        format!("expected host, {}", names.join(", "))
    })
}

impl Test {
    /// Builds what the black-box tests start, then tests.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        let (on_host, suites) = self.places();
        let built = build::build()?;
        if suites.is_empty() {
            return self.on_host(&built);
        }
        let tests = Step::cargo().args(["test", "--no-run", "--workspace"]);
        let programs = build::executables(tests)?;
        let plan = Plan {
            suites,
            programs: labs::built_from(&programs, "tests/tests"),
            own: labs::built_from(&programs, "hypervisor/src/lib.rs"),
            options: self.of_lab_programs(),
            usual: self.on.is_empty() && !self.all,
            built: built.clone(),
        };
        let left_out = left_out(&plan.suites, plan.usual);
        let status = plan.run_beside(|| if on_host { self.on_host(&built) } else { Ok(0) })?;
        if self.on.is_empty() && !left_out.is_empty() {
            println!("left out, --all runs it: {left_out}");
        }
        Ok(status)
    }

    /// Whether this machine's tests run, and those of which labs.
    fn places(&self) -> (bool, Vec<Suite>) {
        if self.on.is_empty() {
            let labs: &[Suite] = match (self.all, self.options().is_empty()) {
                (true, _) => &Suite::ALL,
                (false, true) => &Suite::USUAL,
                (false, false) => &[],
            };
            return (true, labs.to_vec());
        }
        let labs = self.on.iter().filter_map(|place| match place {
            Place::Host => None,
            Place::Lab(suite) => Some(*suite),
        });
        (self.on.contains(&Place::Host), labs.collect())
    }

    /// Which of the options the test programs of a lab get: the filter, and theirs.
    fn of_lab_programs(&self) -> Vec<OsString> {
        let is_filter = |option: &&OsString| !option.to_string_lossy().starts_with('-');
        let filters = self.options.iter().filter(is_filter);
        filters.chain(&self.of_programs).cloned().collect()
    }

    fn on_host(&self, built: &Built) -> anyhow::Result<u8> {
        // Captured output of a passing test is not shown, so skipped tests report by a file.
        let list = workspace::output_folder()?.join("skipped.txt");
        fs::write(&list, "").with_context(|| format!("cannot write {}", list.display()))?;
        let mut step = Step::cargo().arg("test");
        let package = |option: &OsString| {
            let text = option.to_string_lossy();
            text.starts_with("--package") || text.starts_with("-p")
        };
        if !self.options.iter().any(package) {
            step = step.arg("--workspace");
        }
        if !self.options.iter().any(|option| option == "--no-fail-fast") {
            // One program that fails hides nothing of the others.
            step = step.arg("--no-fail-fast");
        }
        let guests = built.guest_kernel.parent().unwrap_or(Path::new("."));
        let status = step
            .args(self.options())
            .env(SKIPPED, &list)
            .env("EXITVISOR_BIN", &built.exitvisor)
            .env("EXITVISOR_GUESTS", guests)
            .status()?;
        let skipped =
            fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        print!("{}", summary(&skipped));
        Ok(status)
    }

    /// All options as they were typed.
    pub(crate) fn options(&self) -> Vec<OsString> {
        let mut options = self.options.clone();
        if !self.of_programs.is_empty() {
            options.push("--".into());
            options.extend_from_slice(&self.of_programs);
        }
        options
    }
}

/// The labs that are not among these, and those of which the usual run takes only a part.
fn left_out(suites: &[Suite], usual: bool) -> String {
    let all = Suite::ALL.into_iter();
    let others = all.filter_map(|suite| match suites.contains(&suite) {
        false => Some(suite.title()),
        true if usual && suite.is_shadowed() => Some(format!("most of {}", suite.title())),
        true => None,
    });
    others.collect::<Vec<_>>().join("; ")
}

/// One line per skipped test, in order, and their number; nothing if there was none.
fn summary(skipped: &str) -> String {
    let mut lines: Vec<&str> = skipped
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines.sort_unstable();
    lines.dedup();
    match lines.len() {
        0 => String::new(),
        n => format!(
            "{}\n{n} {} skipped\n",
            lines.join("\n"),
            if n == 1 { "test" } else { "tests" }
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_tests_run() {
        let test = |on: &[&str], all, options: &[&str]| Test {
            all,
            on: on.iter().map(|name| place(name).unwrap()).collect(),
            options: options.iter().map(OsString::from).collect(),
            of_programs: Vec::new(),
        };
        let usual = Suite::USUAL.to_vec();
        assert_eq!(test(&[], false, &[]).places(), (true, usual));
        assert_eq!(
            test(&[], true, &["x"]).places(),
            (true, Suite::ALL.to_vec())
        );
        assert_eq!(test(&[], false, &["gate"]).places(), (true, vec![]));
        assert_eq!(
            test(&["amd-lab"], false, &[]).places(),
            (false, vec![Suite::Amd])
        );
        let options = test(&[], false, &["gate", "--release"]).of_lab_programs();
        assert_eq!(options, ["gate"]);
        assert!(place("nowhere").unwrap_err().contains("intel-lab"));
        assert_eq!(left_out(&Suite::ALL, false), "");
        let usual = left_out(&Suite::USUAL, true);
        assert!(usual.starts_with("Intel lab 6.1; most of "), "{usual}");
    }

    #[test]
    fn skipped_tests_are_named_and_counted() {
        assert_eq!(summary("\n"), "");
        assert_eq!(
            summary("skipped: b: no KVM\nskipped: a: no KVM\n"),
            "skipped: a: no KVM\nskipped: b: no KVM\n2 tests skipped\n"
        );
        assert_eq!(
            summary("skipped: a: why\n"),
            "skipped: a: why\n1 test skipped\n"
        );
    }
}
