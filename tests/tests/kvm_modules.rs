//! KVM's module, loaded anew for another paging by xtask, is as it was afterwards: after success,
//! failure, Ctrl-C, SIGTERM, and where nobody reads what is said. In labs alone: no other machine's
//! module is anybody's to unload.
// A harness may stop a test by panicking: that is how tests fail.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use black_box::code::{GREETING, spinning};
use black_box::{Live, Run, arg, exitvisor, finish, guest, lab, skip, start};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// A lab's module, with settings of somebody's own, loaded as the lab loaded it when this is
/// dropped.
struct Module {
    name: &'static str,
    nested: &'static str,
    shadow: &'static str,
    xtask: PathBuf,
}

/// The lab's module, or a word on why there is none.
fn module(test: &str) -> Option<Module> {
    let xtask = std::env::var_os("EXITVISOR_XTASK");
    let (Some(lab), Some(xtask)) = (lab(), xtask) else {
        skip(test, "KVM's modules are loaded anew in labs alone");
        return None;
    };
    let (name, nested, shadow) = match lab.as_str() {
        "intel" => ("kvm_intel", "ept=1", "ept=0"),
        _ => ("kvm_amd", "npt=1", "npt=0"),
    };
    let module = Module {
        name,
        nested,
        shadow,
        xtask: xtask.into(),
    };
    if module.parameters().is_empty() {
        skip(test, "KVM is built into this lab's kernel");
        return None;
    }
    Some(module)
}

impl Module {
    fn folder(&self) -> PathBuf {
        Path::new("/sys/module").join(self.name)
    }

    fn parameters(&self) -> BTreeMap<String, String> {
        let files = fs::read_dir(self.folder().join("parameters"));
        let files = files.into_iter().flatten().flatten();
        files
            .filter_map(|file| {
                let value = fs::read_to_string(file.path()).ok()?;
                Some((file.file_name().into_string().unwrap(), value))
            })
            .collect()
    }

    fn is_nested(&self) -> bool {
        let name = self.nested.split('=').next().unwrap();
        self.parameters()[name].trim() == "Y"
    }

    fn load_anew(&self, parameters: &[&str]) {
        tool("rmmod", &[self.name]);
        tool("modprobe", &[&[self.name], parameters].concat());
        usable_by(0o666);
    }

    /// xtask with a command to run while KVM has the other paging.
    fn with_other_paging(&self, command: &[&str]) -> Command {
        let paging = if self.is_nested() { "shadow" } else { "nested" };
        let mut xtask = Command::new(&self.xtask);
        xtask
            .args(["with-paging", paging, "--"])
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        xtask
    }

    /// What is to be the same afterwards.
    fn state(&self) -> (BTreeMap<String, String>, u32) {
        let mode = fs::metadata("/dev/kvm").unwrap().permissions().mode();
        (self.parameters(), mode)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // A test that has failed may have left anything.
        for (tool, of) in [("rmmod", self.name), ("modprobe", self.name)] {
            let _ = Command::new(tool).arg(of).status();
        }
        let everybody = fs::Permissions::from_mode(0o666);
        let _ = fs::set_permissions("/dev/kvm", everybody);
    }
}

fn tool(name: &str, words: &[&str]) {
    let status = Command::new(name).args(words).status().unwrap();
    assert!(status.success(), "{name} {words:?}");
}

fn usable_by(mode: u32) {
    fs::set_permissions("/dev/kvm", fs::Permissions::from_mode(mode)).unwrap();
}

/// What the profile of a boot says of the paging.
fn profiled(run: &Run) -> &str {
    let at = run.stdout.find("\"paging\": \"").unwrap() + 11;
    run.stdout[at..].split('"').next().unwrap()
}

#[test]
fn restored_after_success_and_failure() {
    let Some(module) = module("restored_after_success_and_failure") else {
        return;
    };
    let kernel = guest("ends");
    // Somebody's own settings, from either paging to the other.
    for (parameters, other) in [
        (&["nested=0", module.nested][..], "shadow"),
        (&[module.shadow], "nested"),
    ] {
        module.load_anew(parameters);
        usable_by(0o660);
        let before = module.state();
        for status in [0, 7] {
            let number = status.to_string();
            let command = [
                arg(exitvisor()),
                "profile",
                "--format",
                "json",
                "--kernel",
                arg(&kernel),
                "--cmdline",
                &number,
            ];
            let run = finish(module.with_other_paging(&command).spawn().unwrap());
            let run = run.expect_status(status);
            assert_eq!(profiled(&run), other);
            assert_eq!(module.state(), before);
            let steps = [
                &format!("+ rmmod {}", module.name),
                "+ modprobe",
                "+ exitvisor",
            ];
            run.expect_stderr(&steps.map(|step| step as &str));
        }
        let mut run = module.with_other_paging(&["/no/such/program"]);
        let run = finish(run.spawn().unwrap()).expect_status(70);
        run.expect_stderr(&["cannot start"]);
        assert_eq!(module.state(), before);
    }
}

/// The whole of `cargo xtask boot-profile --paging both --reload-kvm`, but for the build.
#[test]
fn both_pagings_are_compared_on_this_machine() {
    let Some(module) = module("both_pagings_are_compared_on_this_machine") else {
        return;
    };
    // From either paging to the other and back.
    for parameters in [&["nested=0", module.nested][..], &[module.shadow]] {
        module.load_anew(parameters);
        usable_by(0o660);
        let before = module.state();
        let folder = tempfile::tempdir().unwrap();
        let boot = |options: &[&str]| {
            let mut xtask = Command::new(&module.xtask);
            xtask.args(["boot-profile", "--built", "--paging", "both"]);
            xtask.args(options).current_dir(folder.path());
            xtask.stdout(Stdio::piped()).stderr(Stdio::piped());
            finish(xtask.stdin(Stdio::null()).spawn().unwrap())
        };
        // Not unless it is asked for.
        boot(&[]).expect_status(64).expect_stderr(&["--reload-kvm"]);
        assert_eq!(module.state(), before);

        let work = ["--reload-kvm", "--cmdline", "workload=ptes:16"];
        let run = boot(&work).expect_status(0);
        assert_eq!(module.state(), before);
        assert!(run.stdout.contains("14 INVLPG"), "{run:#?}");
        let found = fs::read_dir(folder.path()).unwrap().flatten();
        let mut files: Vec<PathBuf> = found.map(|file| file.path()).collect();
        files.retain(|file| file.to_string_lossy().ends_with("-paging.json"));
        let text = fs::read_to_string(&files[0]).unwrap();
        let compared: serde_json::Value = serde_json::from_str(&text).unwrap();
        let reasons = compared["pairs"][0]["reasons"].as_array().unwrap();
        let exits = |number: u64| {
            let of = |r: &&serde_json::Value| r["reason"] == number;
            reasons.iter().find(of).unwrap()["exits"].clone()
        };
        assert_eq!(exits(14)["nested"], 0);
        assert_eq!(exits(14)["shadow"], 4 * 16);
        assert!(exits(48)["nested"].as_u64() > Some(0));
        assert_eq!(exits(48)["shadow"], 0);

        // A guest that fails ends it, with its status.
        let fails = ["--reload-kvm", "--cmdline", "workload=nothing"];
        let run = boot(&fails);
        assert!(![0, 70].contains(&run.status), "{run:#?}");
        assert_eq!(module.state(), before);
    }
}

#[test]
fn restored_after_signals() {
    let Some(module) = module("restored_after_signals") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let kernel = spinning().write(folder.path());
    let before = module.state();
    let command = [arg(exitvisor()), "run", "--kernel", arg(&kernel)];
    // To all, as a terminal's Ctrl-C is, or to xtask alone.
    for (signal, to_all, status) in [
        (Signal::SIGINT, true, 130),
        (Signal::SIGINT, false, 130),
        (Signal::SIGTERM, false, 143),
        (Signal::SIGHUP, true, 129),
        (Signal::SIGQUIT, false, 131),
    ] {
        let mut live = Live::of(module.with_other_paging(&command).spawn().unwrap());
        live.wait_for(GREETING);
        assert_ne!(module.state(), before);
        if to_all {
            killpg(Pid::from_raw(live.id() as i32), signal).unwrap();
        } else {
            live.signal(signal);
        }
        live.finish().expect_status(status);
        assert_eq!(module.state(), before, "{signal} {to_all}");
    }
}

#[test]
fn restored_where_nobody_reads_what_is_said() {
    let Some(module) = module("restored_where_nobody_reads_what_is_said") else {
        return;
    };
    let before = module.state();
    let command = [arg(exitvisor()), "layout"];
    let mut xtask = module.with_other_paging(&command);
    let (read, write) = nix::unistd::pipe().unwrap();
    drop(read);
    // Showing a step panics then.
    let status = xtask.stdout(Stdio::null()).stderr(write).status().unwrap();
    assert_ne!(status.code(), Some(0));
    assert_eq!(module.state(), before);
}

#[test]
fn a_module_in_use_is_left_alone() {
    let Some(module) = module("a_module_in_use_is_left_alone") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let kernel = spinning().write(folder.path());
    let mut other = Live::of(start(&["run", "--kernel", arg(&kernel)]));
    other.wait_for(GREETING);
    let before = module.state();
    let layout = [arg(exitvisor()), "layout"];
    let run = finish(module.with_other_paging(&layout).spawn().unwrap()).expect_status(70);
    let who = format!("exitvisor ({})", other.id());
    assert_eq!(run.stderr.lines().count(), 1, "{run:#?}");
    run.expect_stderr(&[
        &format!("{} is in use", module.name),
        &who,
        "end that first",
    ]);
    assert_eq!(module.state(), before);
    // What is as it is wanted is left alone too.
    let mut same = Command::new(&module.xtask);
    let paging = if module.is_nested() {
        "nested"
    } else {
        "shadow"
    };
    same.args(["with-paging", paging, "--"]).args(layout);
    same.stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let run = finish(same.spawn().unwrap()).expect_status(0);
    run.expect_stderr(&["already"]);
    other.signal(Signal::SIGTERM);
    other.finish().expect_status(143);
}

/// Somebody else's VM began while ours ran, and goes on: nothing can be put back.
#[test]
fn not_restored_while_another_vm_runs() {
    let Some(module) = module("not_restored_while_another_vm_runs") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let kernel = spinning().write(folder.path());
    let command = [arg(exitvisor()), "run", "--kernel", arg(&kernel)];
    let mut ours = Live::of(module.with_other_paging(&command).spawn().unwrap());
    ours.wait_for(GREETING);
    let mut other = Live::of(start(&["run", "--kernel", arg(&kernel)]));
    other.wait_for(GREETING);
    ours.signal(Signal::SIGINT);
    let run = ours.finish().expect_status(70);
    let by_hand = format!("as root, type: rmmod {0}; modprobe {0} ", module.name);
    run.expect_stderr(&[
        &format!("xtask: {} IS NOT AS IT WAS", module.name),
        &by_hand,
        "in use (",
        &format!("exitvisor ({})", other.id()),
    ]);
    other.signal(Signal::SIGTERM);
    other.finish().expect_status(143);
}
