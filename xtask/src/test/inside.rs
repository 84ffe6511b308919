//! `xtask test-inside`: what runs inside a lab. Test programs, one after the other, one test at a
//! time; a line for each, all it said of one that failed, and the tests that were skipped.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context;
use clap::Args;

use super::SKIPPED;
use crate::step;

/// Run test programs inside a lab
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct Inside {
    /// The test programs; the words of one that come after a comma are its own filter
    #[arg(required = true)]
    programs: Vec<String>,
    /// Options of all of them
    #[arg(last = true)]
    options: Vec<OsString>,
}

/// The file in which tests say that they were skipped.
const LIST: &str = "/tmp/skipped.txt";

/// What a test program says of itself in its last line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Result {
    passed: u64,
    failed: u64,
}

impl Inside {
    /// Runs them all; 1 if one failed.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        fs::write(LIST, "").with_context(|| format!("cannot write {LIST}"))?;
        let mut status = 0;
        let mut told = 0;
        for program in &self.programs {
            if !self.run_one(program)? {
                status = 1;
            }
            // At once: a lab that is ended keeps nothing.
            let skipped =
                fs::read_to_string(LIST).with_context(|| format!("cannot read {LIST}"))?;
            print!("{}", skipped.get(told..).unwrap_or_default());
            told = skipped.len();
        }
        Ok(status)
    }

    fn run_one(&self, program: &str) -> anyhow::Result<bool> {
        let mut words = program.split(',').filter(|word| !word.is_empty());
        let path = PathBuf::from(words.next().unwrap_or_default());
        let start = Instant::now();
        let output = Command::new(&path)
            .args(words)
            .args(["--test-threads", "1"])
            .args(&self.options)
            .env(SKIPPED, LIST)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}", path.display()))?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        let result = stdout.lines().rev().find_map(result).unwrap_or_default();
        let well = output.status.success();
        if !well {
            print!("{stdout}{}", String::from_utf8_lossy(&output.stderr));
        }
        let title = title(&path);
        let ended = match step::number(output.status) {
            0 if result.passed == 0 => return Ok(true),
            0 => String::new(),
            status if result.failed == 0 => format!(", ENDED with status {status}"),
            _ => format!(", {} FAILED", result.failed),
        };
        println!(
            "{title}: {} passed{ended} ({:.1} s)",
            result.passed,
            start.elapsed().as_secs_f64()
        );
        Ok(well)
    }
}

/// A test program's name, without the hash that cargo puts behind it.
pub(super) fn title(program: &Path) -> String {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    match name.rsplit_once('-') {
        Some((title, hash)) if hash.chars().all(|c| c.is_ascii_hexdigit()) => title.to_owned(),
        _ => name.into_owned(),
    }
}

/// `test result: ok. 3 passed; 0 failed; …`
fn result(line: &str) -> Option<Result> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut numbers = counts
        .split("; ")
        .map(|part| part.split(' ').next()?.parse().ok());
    Some(Result {
        passed: numbers.next()??,
        failed: numbers.next()??,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_test_programs() {
        let line = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 1 filtered out";
        assert_eq!(
            result(line),
            Some(Result {
                passed: 3,
                failed: 2
            })
        );
        assert_eq!(result("test a ... ok"), None);
        assert_eq!(title(Path::new("/x/deps/smp-0f3a")), "smp");
        assert_eq!(title(Path::new("/x/guest-kernel")), "guest-kernel");
    }
}
