//! `cargo xtask exercises` as people start it: in the AMD lab, for what costs one boot of it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn exercises(args: &[&str], output: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("exercises")
        .args(args)
        .arg("--output")
        .arg(output)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Says that a test did not run; where `cargo xtask test` listens, it hears it.
fn skip(name: &str, why: &str) {
    let line = format!("skipped: {name}: {why}");
    eprintln!("{line}");
    if let Some(list) = std::env::var_os("EXITVISOR_SKIPPED") {
        let mut file = fs::OpenOptions::new().append(true).open(list).unwrap();
        writeln!(file, "{line}").unwrap();
    }
}

#[test]
fn the_document_of_two_exercises_in_one_lab() {
    const NAME: &str = "the_document_of_two_exercises_in_one_lab";
    let folder = tempfile::tempdir().unwrap();
    let args = ["--on", "amd-lab", "--only", "hypercall,reasons"];
    let output = exercises(&args, folder.path());
    let stdout = String::from_utf8_lossy(&output.stdout);
    let no_lab = stdout
        .lines()
        .find(|line| line.contains("there is no AMD lab"));
    if let Some(line) = no_lab {
        assert_eq!(output.status.code(), Some(70), "{output:?}");
        return skip(NAME, line.trim());
    }
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!stdout.contains("FAILED"), "{stdout}");
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let document = read("results.md");
    for part in [
        "cargo xtask exercises --on amd-lab --only hypercall,reasons",
        "## 1. VMCALL 0x283",
        "`0x0033383245504d43 \"CMPE283\"`",
        "## 2. The most and the least frequent reasons",
        "kvm_amd",
    ] {
        assert!(document.contains(part), "no {part:?} in {document}");
    }
    let results: serde_json::Value = serde_json::from_str(&read("results.json")).unwrap();
    assert_eq!(results["schema"], "exitvisor-exercises");
    let checks = results["exercises"].as_array().unwrap().iter();
    let checks: Vec<_> = checks
        .flat_map(|e| e["checks"].as_array().unwrap())
        .collect();
    assert!(checks.len() > 5 && checks.iter().all(|check| check["failed"].is_null()));
    assert!(read("reasons.csv").starts_with("lab,rank,reason,name,exits\nAMD,1,"));
    for file in ["boot.json", "boot.csv", "boot.txt", "hypercall.json"] {
        assert!(
            !read(&format!("raw/amd-nested-{file}")).is_empty(),
            "{file}"
        );
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_one_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = exercises(&[], &file.path().join("below"));
    assert_eq!(output.status.code(), Some(70), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("xtask: cannot make "), "{stderr}");
}

#[test]
fn options_that_make_no_sense() {
    let folder = tempfile::tempdir().unwrap();
    for (args, part) in [
        (["--on", "arm-lab"], "[possible values: amd-lab, intel-lab]"),
        (["--only", "dishes"], "hypercall, leaves"),
        (["--only", ""], "possible values"),
    ] {
        let output = exercises(&args, folder.path());
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(part), "{stderr}");
    }
}
