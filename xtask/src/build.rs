//! `cargo xtask build`: exitvisor for the host, firmware and guests for bare metal, all optimised.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context;
use clap::Args;
use serde::Deserialize;

use crate::step::{self, Ended, Step};
use crate::toolchain::{self, GUEST_TARGET};
use crate::workspace;

/// Build exitvisor, its firmware and its guests; add the Rust target if it is missing
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask build
  CARGO_TARGET_DIR=/tmp/exitvisor cargo xtask build")]
pub(crate) struct Build {}

/// What a build leaves behind; as options, what another process of ours has built.
#[derive(Args, Clone, Debug)]
pub(crate) struct Built {
    /// The hypervisor
    #[arg(long)]
    pub(crate) exitvisor: PathBuf,
    /// The firmware that the default guest is booted through
    #[arg(long)]
    pub(crate) firmware: PathBuf,
    /// The default guest
    #[arg(long)]
    pub(crate) guest_kernel: PathBuf,
}

impl Built {
    /// What was built elsewhere, and is named by `EXITVISOR_BIN` and `EXITVISOR_GUESTS`: in a lab
    /// there is no cargo.
    pub(crate) fn named() -> anyhow::Result<Self> {
        let path = |name| {
            let value = std::env::var_os(name).map(PathBuf::from);
            value.with_context(|| format!("{name} is not set"))
        };
        let guests = path("EXITVISOR_GUESTS")?;
        Ok(Self {
            exitvisor: path("EXITVISOR_BIN")?,
            firmware: guests.join("firmware"),
            guest_kernel: guests.join("guest-kernel"),
        })
    }

    /// As the options that name it.
    pub(crate) fn options(&self) -> [&OsStr; 6] {
        [
            OsStr::new("--exitvisor"),
            self.exitvisor.as_os_str(),
            OsStr::new("--firmware"),
            self.firmware.as_os_str(),
            OsStr::new("--guest-kernel"),
            self.guest_kernel.as_os_str(),
        ]
    }
}

impl Build {
    /// Builds, and says where things are.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        let built = build()?;
        for path in [built.exitvisor, built.guest_kernel, built.firmware] {
            println!("{}", Path::new(workspace::shown(&path)).display());
        }
        Ok(0)
    }
}

/// Builds exitvisor, the firmware and all guests.
pub(crate) fn build() -> anyhow::Result<Built> {
    toolchain::ensure_guest_target()?;
    let host = executables(Step::cargo().args(["build", "--release", "--package", "exitvisor"]))?;
    let guests = executables(
        for_guests(Step::cargo().args(["build", "--release"])).args([
            "--package",
            "firmware",
            "--package",
            "guest-kernel",
            "--package",
            "test-guests",
        ]),
    )?;
    Ok(Built {
        exitvisor: named(&host, "exitvisor")?,
        firmware: named(&guests, "firmware")?,
        guest_kernel: named(&guests, "guest-kernel")?,
    })
}

/// Builds `exitlog`, the guest side for Linux: static, so that it runs in any Linux, as init too.
/// And, for tests, a program that abuses what `exitlog` uses.
pub(crate) fn exitlog() -> anyhow::Result<[PathBuf; 2]> {
    const STATIC: &str = "-C target-feature=+crt-static -C strip=symbols";
    // Named, so that what runs in the build itself is not linked like that.
    let step = Step::cargo()
        .args(["build", "--release", "--package", "exitlog"])
        .args(["--bins", "--examples"])
        .args(["--target", LINUX_TARGET])
        .without_env(&["CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS"])
        .env("RUSTFLAGS", STATIC);
    let found = executables(step)?;
    Ok([named(&found, "exitlog")?, named(&found, "abuse")?])
}

/// The target of everything that runs in a Linux guest.
const LINUX_TARGET: &str = "x86_64-unknown-linux-gnu";

/// A cargo step turned to the guests' target. Flags meant for the host (a linker, a CPU with AVX)
/// would break guests, and would hide those that `.cargo/config.toml` gives for their target.
pub(crate) fn for_guests(cargo: Step) -> Step {
    cargo.args(["--target", GUEST_TARGET]).without_env(&[
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
    ])
}

/// A line of `cargo build --message-format json`, as far as it is of interest.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    src_path: PathBuf,
}

/// An executable that cargo has built.
#[derive(Debug)]
pub(crate) struct Executable {
    name: String,
    /// The file its source begins with.
    pub(crate) source: PathBuf,
    /// Where it is.
    pub(crate) path: PathBuf,
}

/// Runs `cargo build` (or `cargo test --no-run`) and collects the executables it names, whatever
/// the target folder is.
pub(crate) fn executables(step: Step) -> anyhow::Result<Vec<Executable>> {
    // The messages are for us, not worth showing: people see cargo's usual output on stderr.
    step.echo();
    let what = step.to_string();
    let mut step = step.args(["--message-format", "json-render-diagnostics"]);
    let mut child = step
        .command()
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{what}`"))?;
    let mut found = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let message = serde_json::from_str(&line?);
            if let Ok(Message {
                target: Some(target),
                executable: Some(path),
            }) = message
            {
                found.push(Executable {
                    name: target.name,
                    source: target.src_path,
                    path,
                });
            }
        }
    }
    match step::number(child.wait()?) {
        0 => Ok(found),
        status => Err(Ended { what, status }.into()),
    }
}

fn named(found: &[Executable], name: &str) -> anyhow::Result<PathBuf> {
    let wanted = found.iter().find(|found| found.name == name);
    let wanted = wanted.with_context(|| format!("cargo built no executable named {name}"))?;
    Ok(wanted.path.clone())
}
