//! Rights: none is kept while a guest runs, and the profile is written all the same.
// A harness may stop a test by panicking: that is how tests fail.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use black_box::code::{GREETING, spinning};
use black_box::{Live, PATIENCE, arg, guest, needs_kvm, run, skip, start};
use nix::sys::signal::Signal;

const NOBODY: u32 = 65534;

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// The words behind this field in the status of every thread.
fn of_all_threads(id: u32, field: &str) -> Vec<String> {
    fs::read_dir(format!("/proc/{id}/task"))
        .unwrap()
        .map(|thread| {
            let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            let line = status.lines().find(|l| l.starts_with(field)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        })
        .collect()
}

#[test]
fn no_thread_keeps_a_capability() {
    needs_kvm!("no_thread_keeps_a_capability");
    let folder = tempfile::tempdir().unwrap();
    let kernel = spinning().write(folder.path());
    let mut live = Live::of(start(&["run", "--kernel", arg(&kernel), "--cpus", "2"]));
    live.wait_for(GREETING);
    for field in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
        let held = of_all_threads(live.id(), field);
        assert!(held.len() >= 3);
        assert!(
            held.iter().all(|set| set.trim_matches('0').is_empty()),
            "{field} {held:?}"
        );
    }
    assert!(
        of_all_threads(live.id(), "NoNewPrivs:")
            .iter()
            .all(|set| set == "1")
    );
    live.signal(Signal::SIGTERM);
    live.finish().expect_status(143);
}

/// A folder into which root may write by a capability alone.
fn somebody_elses(folder: &Path) {
    std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_profile_goes_where_root_alone_may_not_write() {
    needs_kvm!("a_profile_goes_where_root_alone_may_not_write");
    if !is_root() {
        return skip(
            "a_profile_goes_where_root_alone_may_not_write",
            "it needs root",
        );
    }
    let folder = tempfile::tempdir().unwrap();
    somebody_elses(folder.path());
    let (kernel, file) = (guest("guest-kernel"), folder.path().join("p.json"));
    let args = [
        "profile",
        "--kernel",
        arg(&kernel),
        "--format",
        "json",
        "--output",
        arg(&file),
    ];
    run(&args).expect_status(0);
    let profile = exitvisor::profile::load::load(&file).unwrap();
    assert!(profile.total.total > 0);
    assert_eq!(black_box::names(folder.path()), ["p.json"]);
}

#[test]
fn an_image_that_root_alone_may_not_read_boots_again() {
    let name = "an_image_that_root_alone_may_not_read_boots_again";
    needs_kvm!("an_image_that_root_alone_may_not_read_boots_again");
    if !is_root() {
        return skip(name, "it needs root");
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    fs::copy(guest("guest-kernel"), &kernel).unwrap();
    for path in [&kernel, folder.path()] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let args = [
        "profile",
        "--format",
        "json",
        "--kernel",
        arg(&kernel),
        "--on-reset",
        "continue",
        "--cmdline",
        "reboot=2 log=off",
    ];
    let profile = run(&args).expect_status(0).profile();
    assert_eq!(profile.reboots.len(), 2);
}

#[test]
fn a_run_that_is_killed_leaves_no_deputy() {
    needs_kvm!("a_run_that_is_killed_leaves_no_deputy");
    if !is_root() {
        return skip("a_run_that_is_killed_leaves_no_deputy", "it needs root");
    }
    let folder = tempfile::tempdir().unwrap();
    somebody_elses(folder.path());
    let images = tempfile::tempdir().unwrap();
    let kernel = spinning().write(images.path());
    let file = folder.path().join("p.json");
    let mut live = Live::of(start(&[
        "run",
        "--kernel",
        arg(&kernel),
        "--output",
        arg(&file),
    ]));
    live.wait_for(GREETING);
    let children = format!("/proc/{0}/task/{0}/children", live.id());
    let deputy = fs::read_to_string(children).unwrap();
    assert_eq!(deputy.split_whitespace().count(), 1, "{deputy:?}");
    live.signal(Signal::SIGKILL);
    let status = format!("/proc/{}/status", deputy.trim());
    // Gone, or not yet reaped by whoever inherits it.
    let over = || fs::read_to_string(&status).is_ok_and(|s| !s.contains("State:\tZ"));
    let start = Instant::now();
    while over() {
        assert!(start.elapsed() < PATIENCE, "the deputy lives on");
        thread::sleep(Duration::from_millis(2));
    }
    assert!(black_box::names(folder.path()).is_empty());
}
