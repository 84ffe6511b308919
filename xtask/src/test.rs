//! `cargo xtask test`: every test, and a word on each that was skipped.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::Context;
use clap::Args;

use crate::build;
use crate::step::Step;
use crate::workspace;

/// The variable that tells tests into which file they write `skipped: NAME: WHY`.
const SKIPPED: &str = "EXITVISOR_SKIPPED";

/// Run every test: unit tests, and black-box tests on the built guests
#[derive(Debug, Default, Args)]
#[command(after_help = "Examples:
  cargo xtask test
  cargo xtask test gate                  tests with `gate` in their name
  cargo xtask test --package exitvisor   one package
  cargo xtask test -- --nocapture        what follows `--` goes to the test programs")]
pub(crate) struct Test {
    /// Options of `cargo test`
    #[arg(value_name = "OPTIONS OF CARGO TEST", allow_hyphen_values = true)]
    options: Vec<OsString>,
    /// Options of the test programs, where a `--` comes before all else
    #[arg(last = true, hide = true)]
    of_programs: Vec<OsString>,
}

impl Test {
    /// Builds what the black-box tests start, then tests.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        let built = build::build()?;
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
    use super::summary;

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
