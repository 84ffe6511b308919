//! The toolchain: what the build needs beyond a bare one, and how it gets there.
//!
//! No toolchain is pinned, so that the one a machine has will do; what that one lacks is added to
//! it through rustup.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::step::Step;

/// The target of everything that runs inside a VM.
pub(crate) const GUEST_TARGET: &str = "x86_64-unknown-none";

/// Makes sure that the active toolchain can build guests.
pub(crate) fn ensure_guest_target() -> anyhow::Result<()> {
    let libraries = rustc(&["--print", "target-libdir", "--target", GUEST_TARGET])?;
    if holds_core(&libraries) {
        return Ok(());
    }
    eprintln!("xtask: this toolchain lacks the target {GUEST_TARGET}: adding it");
    if !rustup(&["target", "add", GUEST_TARGET]) || !holds_core(&libraries) {
        bail!(
            "the target {GUEST_TARGET} is missing. With rustup: rustup target add {GUEST_TARGET}. \
             With a distribution's Rust: install its package of that target's standard library"
        );
    }
    Ok(())
}

/// Makes sure that `cargo fmt` and `cargo clippy` are there.
pub(crate) fn ensure_checkers() -> anyhow::Result<()> {
    let programs = rustc(&["--print", "sysroot"])?.join("bin");
    for (program, component) in [("rustfmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        if programs.join(program).exists() {
            continue;
        }
        eprintln!("xtask: this toolchain lacks {component}: adding it");
        if !rustup(&["component", "add", component]) {
            bail!("{component} is missing. With rustup: rustup component add {component}");
        }
    }
    Ok(())
}

fn rustc(args: &[&str]) -> anyhow::Result<PathBuf> {
    let mut step = Step::new("rustc").args(args);
    let output = step.output()?;
    if !output.status.success() {
        bail!(
            "`{step}` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let path = String::from_utf8(output.stdout).with_context(|| format!("`{step}`"))?;
    Ok(PathBuf::from(path.trim_end()))
}

fn holds_core(libraries: &Path) -> bool {
    let Ok(mut entries) = libraries.read_dir() else {
        return false;
    };
    entries.any(|entry| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

/// Runs rustup for the active toolchain; whether it is there and did it.
fn rustup(args: &[&str]) -> bool {
    let Some(toolchain) = active_toolchain() else {
        return false;
    };
    Step::new("rustup")
        .args(args)
        .args(["--toolchain", &toolchain])
        .check()
        .is_ok()
}

fn active_toolchain() -> Option<String> {
    // rustup's own cargo hands the name down.
    if let Ok(name) = std::env::var("RUSTUP_TOOLCHAIN") {
        return Some(name);
    }
    let output = Command::new("rustup")
        .args(["show", "active-toolchain"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_whitespace().next().map(str::to_owned)
}
