//! Hosts without a KVM for us: one line that says what to do, status 69.
//!
//! A namespace of our own hides `/dev/kvm` or puts something else in its place; where such
//! namespaces are not allowed, these tests are skipped.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use black_box::code::spinning;
use black_box::{Run, arg, exitvisor, file, finish, kvm, skip, unprivileged};
use exitvisor::status::NO_KVM;
use tempfile::tempdir;

/// A command in a namespace where these shell commands have changed the mounts.
fn changed(mounts: &str, then: &Path) -> Command {
    let script = format!("{mounts} && exec \"$0\" \"$@\"");
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .arg(then)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    command
}

/// Boots a guest there; `None` if there are no such namespaces.
fn boot(mounts: &str) -> Option<Run> {
    let probe = changed(mounts, Path::new("/bin/true")).status();
    if !probe.is_ok_and(|status| status.success()) {
        return None;
    }
    let folder = tempdir().unwrap();
    let image = spinning().write(folder.path());
    let mut command = changed(mounts, exitvisor());
    command.args(["run", "--timeout", "10s", "--kernel", arg(&image)]);
    Some(finish(command.spawn().unwrap()))
}

/// Expects a host with these mounts to be refused for this.
#[track_caller]
fn refused(name: &str, mounts: &str, why: &[&str]) {
    match boot(mounts) {
        None => skip(name, "no user namespaces, or no /dev/kvm to cover"),
        Some(run) => {
            let run = run.expect_status(NO_KVM).expect_one_line(why);
            assert_eq!(run.stdout, "");
        }
    }
}

#[test]
fn absent() {
    refused(
        "absent",
        "mount -t tmpfs none /dev",
        &["there is no /dev/kvm", "load kvm_intel or kvm_amd"],
    );
}

#[test]
fn the_survey_of_a_host_without_kvm() {
    let mounts = "mount -t tmpfs none /dev";
    let probe = changed(mounts, Path::new("/bin/true")).status();
    if !probe.is_ok_and(|status| status.success()) {
        return skip("the_survey_of_a_host_without_kvm", "no user namespaces");
    }
    let mut caps = changed(mounts, exitvisor());
    let run = finish(caps.arg("caps").spawn().unwrap()).expect_status(0);
    assert_eq!(run.stderr, "");
    for said in ["▲ there is no /dev/kvm", "○ KVM_RUN", "\nSVM\n"] {
        assert!(run.stdout.contains(said), "{said:?}: {}", run.stdout);
    }
}

#[test]
fn some_other_device() {
    refused(
        "some_other_device",
        "mount --bind /dev/null /dev/kvm",
        &["/dev/kvm is not KVM's device"],
    );
}

#[test]
fn a_regular_file() {
    let folder = tempdir().unwrap();
    let regular = file(folder.path(), "kvm", b"no device");
    let mounts = format!("mount --bind {} /dev/kvm", arg(&regular));
    refused("a_regular_file", &mounts, &["/dev/kvm is not KVM's device"]);
}

#[test]
fn forbidden_by_the_mount() {
    let mounts = "mount --bind /dev/null /dev/kvm && \
                  mount -o remount,bind,nodev,nosuid,noexec /dev/kvm";
    let why = ["permission denied on /dev/kvm", "group kvm", "setfacl"];
    refused("forbidden_by_the_mount", mounts, &why);
}

#[test]
fn forbidden_by_permissions() {
    let name = "forbidden_by_permissions";
    let folder = tempdir().unwrap();
    let image = spinning().write(folder.path());
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let args = ["run", "--timeout", "10s", "--kernel", arg(&image)];
    let Some(mut command) = unprivileged(&args) else {
        return skip(name, "only root can start exitvisor here");
    };
    let run = finish(command.spawn().unwrap());
    if run.stdout.contains('!') || !Path::new("/dev/kvm").exists() {
        return skip(name, "/dev/kvm is absent, or open to all");
    }
    let run = run.expect_status(NO_KVM);
    run.expect_one_line(&["permission denied on /dev/kvm", "group kvm", "setfacl"]);
}

#[test]
fn what_needs_no_kvm_works_without() {
    let name = "what_needs_no_kvm_works_without";
    if kvm().is_none() {
        return skip(name, "no profile to show");
    }
    let folder = tempdir().unwrap();
    let image = black_box::code::silent().write(folder.path());
    let profile = folder.path().join("profile.json");
    let args = ["profile", "--format", "json", "--kernel", arg(&image)];
    black_box::run(&[&args[..], &["--output", arg(&profile)]].concat()).expect_status(0);
    let mut command = changed("mount -t tmpfs none /dev", exitvisor());
    command.args(["report", "-"]);
    command.stdin(File::open(&profile).unwrap());
    let run = finish(command.spawn().unwrap());
    if run.stderr.contains("unshare") || run.stderr.contains("mount") {
        return skip(name, "no user namespaces");
    }
    let run = run.expect_status(0);
    assert!(!run.stdout.is_empty() && run.stderr.is_empty(), "{run:#?}");
}
