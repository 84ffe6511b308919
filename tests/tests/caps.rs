//! `exitvisor caps`: what it says of this host holds for a guest, and where nothing can be seen it
//! says why.
// A harness may stop a test by panicking: that is how tests fail.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use black_box::confined;
use black_box::{arg, command, finish, guest, kvm, lab, names, needs_kvm, run, skip, unprivileged};
use exitvisor::profile::KvmKind;
use nix::libc;
use serde_json::Value;

fn survey_of(text: &str) -> Value {
    let survey: Value = serde_json::from_str(text).unwrap();
    assert_eq!(survey["survey"], 1);
    survey
}

fn survey() -> Value {
    let run = run(&["caps", "--format", "json"]).expect_status(0);
    assert_eq!(run.stderr, "");
    survey_of(&run.stdout)
}

/// The MSRs of a column, by number: `0x48b`.
fn msrs(survey: &Value, column: &str) -> BTreeMap<String, u64> {
    let all = survey["vmx"]["msrs"].as_array().unwrap().iter();
    let value = |msr: &Value| {
        let value = msr[column].as_str()?.strip_prefix("0x").unwrap();
        Some(u64::from_str_radix(value, 16).unwrap())
    };
    let named = |msr: &Value| msr["number"].as_str().unwrap().to_owned();
    all.filter_map(|msr| Some((named(msr), value(msr)?)))
        .collect()
}

/// What the guest kernel prints for `caps`, without the word in front.
fn seen_by_a_guest() -> Vec<String> {
    let kernel = guest("guest-kernel");
    let words = "caps log=off";
    let run = run(&["run", "--kernel", arg(&kernel), "--cmdline", words]).expect_status(0);
    let lines = run.stdout.lines();
    lines
        .filter_map(|line| line.strip_prefix("caps: "))
        .map(str::to_owned)
        .collect()
}

/// The MSRs that a guest could read, by number.
fn read_by(guest: &[String]) -> BTreeMap<String, u64> {
    let msr = |line: &String| {
        let (name, value) = line.split_once(" = 0x")?;
        let number = name.strip_prefix("IA32_VMX_")?.split(' ').nth(1)?;
        let value = u64::from_str_radix(value, 16).unwrap();
        Some((number.to_lowercase(), value))
    };
    guest.iter().filter_map(msr).collect()
}

/// The controls that KVM offers in general and withholds from a guest whose CPUID lacks the
/// instruction: secondary, RDTSCP, RDRAND, INVPCID, RDSEED, XSAVES (linux/arch/x86/kvm/vmx/vmx.c,
/// vmx_secondary_exec_control).
const BY_CPUID: u64 = (1 << 3 | 1 << 11 | 1 << 12 | 1 << 16 | 1 << 20) << 32;

#[test]
fn a_guest_reads_what_the_host_says() {
    needs_kvm!("a_guest_reads_what_the_host_says");
    let (host, seen) = (survey(), seen_by_a_guest());
    let offered = msrs(&host, "guest");
    assert_eq!(seen[0].contains(", VMX"), !offered.is_empty(), "{seen:#?}");
    if offered.is_empty() {
        assert!(host["vmx"]["no_guest"].is_string());
        let faults = "no VMX (RDMSR 0x480 faults with exception 13)";
        assert!(seen[0].contains(faults), "{seen:#?}");
    } else {
        let mut read = read_by(&seen);
        let withheld = offered["0x48b"] & !read["0x48b"];
        assert_eq!(withheld & !BY_CPUID, 0, "{withheld:#x}");
        *read.get_mut("0x48b").unwrap() |= withheld;
        assert_eq!(read, offered);
        // Every control that is offered by name is in the guest's list, with the same words.
        controls_agree(&host, &seen, withheld);
    }
    let svm = &host["svm"];
    let line = seen
        .iter()
        .find_map(|line| line.strip_prefix("SVM revision "));
    assert_eq!(line.is_some(), svm["guest"].is_object(), "{seen:#?}");
    if let Some(line) = line {
        let edx = line.split_once("features 0x").unwrap().1;
        let edx = u32::from_str_radix(edx, 16).unwrap();
        let features = svm["features"].as_array().unwrap().iter();
        let offered = features.filter(|feature| feature["guest"] == true);
        let bits = offered.map(|feature| 1 << feature["bit"].as_u64().unwrap());
        assert_eq!(bits.fold(0, |all: u32, bit: u32| all | bit), edx);
        let expected = format!(
            "{}, {} ASIDs",
            svm["guest"]["revision"], svm["guest"]["asids"]
        );
        assert!(line.starts_with(&expected), "{line}");
    }
}

fn controls_agree(host: &Value, seen: &[String], withheld: u64) {
    let yes = |is: &Value| {
        if is == &Value::Bool(true) {
            "Yes"
        } else {
            "No"
        }
    };
    let mut compared = 0;
    for group in host["vmx"]["controls"].as_array().unwrap() {
        let Some(msr) = group["msr"]["guest"].as_str() else {
            continue;
        };
        let head = format!("{}, {msr}", group["title"].as_str().unwrap());
        let at = seen.iter().position(|line| *line == head).unwrap();
        let below = seen[at + 1..]
            .iter()
            .take_while(|line| line.starts_with("  "));
        let below: Vec<&str> = below.map(|line| line.trim_start()).collect();
        for control in group["controls"].as_array().unwrap() {
            let bit = control["bit"].as_u64().unwrap();
            if msr == "IA32_VMX_PROCBASED_CTLS2" && withheld >> (bit + 32) & 1 != 0 {
                continue;
            }
            let name = match control["name"].as_str() {
                Some(name) => name.to_owned(),
                None => format!("bit {bit}"),
            };
            let choice = &control["guest"];
            let line = format!(
                "{name}: Can set: {}, Can clear: {}",
                yes(&choice["can_be_set"]),
                yes(&choice["can_be_cleared"])
            );
            assert!(below.contains(&&*line), "{head}: {line}: {below:#?}");
            compared += 1;
        }
    }
    assert!(compared > 60, "{compared}");
}

#[test]
fn the_vendors_own_virtualization_in_each_lab() {
    let Some(lab) = lab() else {
        return skip(
            "the_vendors_own_virtualization_in_each_lab",
            "what a CPU offers is known in labs alone",
        );
    };
    let survey = survey();
    let offered = msrs(&survey, "guest");
    if lab == "intel" {
        assert_eq!(survey["vendor"], "GenuineIntel");
        // All but those of tertiary controls and secondary exit controls, which KVM does not offer.
        assert_eq!(offered.len(), 18);
        assert!(survey["svm"]["guest"].is_null() && survey["svm"]["cpu"].is_null());
        let secondary = |name: &str| {
            let group = &survey["vmx"]["controls"][2];
            let controls = group["controls"].as_array().unwrap().iter();
            let found = controls.clone().find(|c| c["name"] == name).unwrap();
            found["guest"]["can_be_set"] == true
        };
        let nested = survey["host"]["paging"] == "nested";
        assert_eq!(secondary("Enable EPT"), nested);
        assert_eq!(secondary("Unrestricted guest"), nested);
    } else {
        assert_eq!(survey["vendor"], "AuthenticAMD");
        assert!(offered.is_empty());
        let np = &survey["svm"]["features"][0];
        assert_eq!((&np["name"], &np["cpu"]), (&"NP".into(), &true.into()));
        assert_eq!(np["guest"] == true, survey["host"]["paging"] == "nested");
    }
    let sources = survey["sources"].as_array().unwrap();
    assert!(
        sources.iter().all(|s| s["available"] == true),
        "{sources:#?}"
    );
    assert_eq!(sources.len(), 3);
}

#[test]
fn text_and_json_say_the_same() {
    let text = run(&["caps"]).expect_status(0).stdout;
    let survey = survey();
    assert!(text.contains(survey["vendor"].as_str().unwrap()));
    for capability in survey["capabilities"].as_array().unwrap() {
        assert!(text.contains(capability["name"].as_str().unwrap()));
    }
    for msr in msrs(&survey, "guest").values() {
        assert!(text.contains(&format!("{msr:#018x}")));
    }
    let usable = kvm();
    assert_eq!(survey["no_kvm"].is_null(), usable.is_some());
    assert_eq!(survey["sources"][0]["available"], usable.is_some());
    if usable == Some(KvmKind::Software) {
        assert_eq!(survey["host"]["kvm"], "software");
    }
}

#[test]
fn into_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("caps.json");
    let run_it = run(&["caps", "--format", "json", "--output", arg(&file)]).expect_status(0);
    assert_eq!((&*run_it.stdout, &*run_it.stderr), ("", ""));
    survey_of(&std::fs::read_to_string(&file).unwrap());
    assert_eq!(names(folder.path()), ["caps.json"]);
    let nowhere = folder.path().join("no/caps.json");
    run(&["caps", "--output", arg(&nowhere)])
        .expect_status(exitvisor::status::OUTPUT)
        .expect_one_line(&["no/caps.json"]);
    run(&["caps", "--format", "csv"])
        .expect_status(exitvisor::status::USAGE)
        .expect_one_line(&["text, json"]);
}

#[test]
fn whoever_may_see_nothing_is_told_why() {
    // As nobody.
    let Some(mut nobody) = unprivileged(&["caps", "--format", "json"]) else {
        return skip(
            "whoever_may_see_nothing_is_told_why",
            "nobody may not start it",
        );
    };
    let run = finish(nobody.spawn().unwrap()).expect_status(0);
    let survey = survey_of(&run.stdout);
    for source in survey["sources"].as_array().unwrap() {
        assert!(!source["completeness"].as_str().unwrap().is_empty());
    }
    let own = &survey["vmx"];
    assert!(own["no_cpu"].is_string(), "{own:#?}");
    // Where a sandbox refuses all of KVM's calls.
    let mut refused = command(&["caps", "--format", "json"]);
    confined::without_call(&mut refused, libc::SYS_ioctl);
    let run = finish(refused.spawn().unwrap()).expect_status(0);
    assert_eq!(run.stderr, "");
    let survey = survey_of(&run.stdout);
    assert!(survey["no_kvm"].is_string());
    assert_eq!(survey["sources"][0]["available"], false);
    assert!(survey["vmx"]["no_guest"].is_string() && survey["svm"]["guest"].is_null());
}
