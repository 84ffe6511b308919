//! Makes a Debian: mmdebstrap (fetched; a Perl program, so the host has what it needs) has apt fetch
//! packages and installs them into a folder of its own, which becomes a tar archive.
//!
//! Installing runs the packages' own scripts in that folder as root. mmdebstrap is root if the user
//! is, and else in a user namespace, which takes `newuidmap` and a range of user ids (subuid(5)).

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use nix::unistd::geteuid;

use super::super::packages::{Apt, Packages, RELEASE};

/// Besides what is essential to Debian.
pub(super) const PACKAGES: [&str; 7] = [
    "dbus",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "systemd",
    "systemd-sysv",
    "udev",
];

/// What is done to it in the end.
pub(super) const CUSTOMIZE: &str = include_str!("root.sh");

/// mmdebstrap, without what it depends on: Perl, which Debian always has, and apt. Fetched first if it
/// is not there yet.
pub(super) fn fetched(packages: &Packages) -> anyhow::Result<PathBuf> {
    // Told before anything is fetched.
    mode(geteuid().is_root(), &in_path)?;
    let tree = packages.tree_alone("mmdebstrap", &["mmdebstrap"])?;
    Ok(tree.path("usr/bin/mmdebstrap"))
}

/// Installs a Debian and writes it to `tar`.
pub(super) fn bootstrap(apt: &Apt<'_>, program: &Path, tar: &Path) -> anyhow::Result<()> {
    let mode = mode(geteuid().is_root(), &in_path)?;
    // Not the newer kernel's release: what is made is the stable one's.
    let sources = apt.sources()?;
    let sources: Vec<&str> = sources
        .lines()
        .filter(|line| !line.contains("-backports "))
        .collect();
    let mut command = Command::new("perl");
    command.env("PATH", path()).env("LC_ALL", "C");
    command.arg(program).args([mode, "--variant=minbase"]);
    command.args(["--format=tar", "--architectures=amd64"]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    command.arg("--aptopt=Acquire::Languages \"none\"");
    command.arg(format!("--customize-hook={CUSTOMIZE}"));
    command.arg(RELEASE).arg(tar).arg("-");
    followed(&mut command, &(sources.join("\n") + "\n"))
}

/// How mmdebstrap is to be root.
fn mode(root: bool, has: &dyn Fn(&str) -> bool) -> anyhow::Result<&'static str> {
    if root {
        Ok("--mode=root")
    } else if has("newuidmap") && has("newgidmap") {
        Ok("--mode=unshare")
    } else {
        bail!(
            "to install Debian's packages into a folder takes root, or newuidmap (Debian's package \
             uidmap) and a range of ids in /etc/subuid: install that, or make the image as root"
        )
    }
}

fn in_path(name: &str) -> bool {
    env::split_paths(&path()).any(|folder| folder.join(name).exists())
}

/// PATH with the folders of a system's administration, which users often do not have.
fn path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}

/// Runs a program with a spinner that tells its latest line; its complaint is the error.
fn followed(command: &mut Command, input: &str) -> anyhow::Result<()> {
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    spinner.set_message("installing Debian");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let child = command.stderr(Stdio::piped()).spawn();
    let mut child = child.context("cannot start perl")?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read will say why.
        let _ = std::io::Write::write_all(&mut stdin, input.as_bytes());
    }
    let mut complaints = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines() {
            let line = line?;
            match line.strip_prefix("I: ") {
                Some(step) => spinner.set_message(format!("installing Debian: {step}")),
                None => complaints.push(line),
            }
        }
    }
    let status = child.wait().context("cannot wait for mmdebstrap")?;
    spinner.finish_and_clear();
    if status.success() {
        return Ok(());
    }
    let errors = complaints
        .iter()
        .filter_map(|line| line.strip_prefix("E: "));
    let first = errors
        .clone()
        .find(|line| !line.contains("mmdebstrap failed"));
    let why = first.or(complaints.last().map(|line| &**line));
    bail!("mmdebstrap: {}", why.unwrap_or("no reason given"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_root_is_told() {
        assert_eq!(mode(true, &|_| false).unwrap(), "--mode=root");
        assert_eq!(mode(false, &|_| true).unwrap(), "--mode=unshare");
        let error = mode(false, &|name| name == "newgidmap").unwrap_err();
        assert!(error.to_string().contains("uidmap"), "{error}");
    }
}
