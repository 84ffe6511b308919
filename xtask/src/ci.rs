//! `cargo xtask ci`: what must hold before a change is merged.

use std::process::{Command, Stdio};

use clap::Args;

use crate::build::for_guests;
use crate::step::Step;
use crate::test::Test;
use crate::toolchain;

/// Check formatting, lints, docs and licences, then run every test; warnings are errors
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask ci
  cargo xtask ci --no-tests    the checks alone, a minute or less")]
pub(crate) struct Ci {
    /// Leave the tests out
    #[arg(long)]
    no_tests: bool,
}

impl Ci {
    /// Checks in the order of their cost; the first that fails ends it.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        toolchain::ensure_checkers()?;
        toolchain::ensure_guest_target()?;

        Step::cargo().args(["fmt", "--all", "--check"]).check()?;
        Step::cargo()
            .args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ])
            .check()?;
        for_guests(Step::cargo().arg("clippy"))
            .args(["--package", "guest-kernel", "--package", "test-guests"])
            .args(["--package", "firmware", "--package", "exit-abi"])
            .args(["--", "-D", "warnings"])
            .check()?;
        Step::cargo()
            .args(["doc", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings")
            .check()?;
        licences()?;

        if self.no_tests {
            Ok(0)
        } else {
            Test::default().run()
        }
    }
}

/// `cargo deny`, where it is installed: no build may depend on it.
fn licences() -> anyhow::Result<()> {
    let mut probe = Command::new("cargo-deny");
    probe
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if probe.status().is_ok_and(|status| status.success()) {
        Step::cargo()
            .args(["deny", "check", "bans", "licenses", "sources"])
            .check()
    } else {
        eprintln!("skipped: cargo deny: not installed");
        Ok(())
    }
}
