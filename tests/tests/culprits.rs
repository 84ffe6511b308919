//! Culprits: every exit is somebody's: what it was for and where it came from, adding up to each reason
//! at every milestone (every profile here is checked for that), whatever a guest does.
// A harness may stop a test by panicking: that is how tests fail.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use black_box::accounts::{at, is_shadowed};
use black_box::{Run, arg, code, guest, kvm, needs_kvm, needs_ledger, run, skip};
use exitvisor::profile::culprits::{By, Culprits, Object, Place, Row};
use exitvisor::profile::{AskKind, KvmKind, Profile};
use exitvisor::status::USAGE;
use tempfile::tempdir;

/// Where the workloads access what is no RAM.
const SCRATCH_PAGE: u64 = exit_abi::SCRATCH_PAGE;
const SCRATCH: u64 = exit_abi::port::SCRATCH as u64;
/// IA32_APIC_BASE.
const APIC_BASE: u64 = 0x1B;

#[track_caller]
fn kernel(cmdline: &str, more: &[&str]) -> Run {
    let kernel = guest("guest-kernel");
    let fixed = [
        "profile",
        "--format",
        "json",
        "--kernel",
        arg(&kernel),
        "--cmdline",
        cmdline,
    ];
    run(&[&fixed[..], more].concat()).expect_status(0)
}

/// What was added on the way to a milestone.
#[track_caller]
fn step<'p>(profile: &'p Profile, name: &str) -> Culprits<'p> {
    let mut steps = profile.culprits_by_step().into_iter();
    let found = steps.find(|(n, _)| n == name);
    found.unwrap().1.unwrap()
}

/// Rows of one thing.
fn rows_of(culprits: &Culprits<'_>, kind: AskKind, index: u64) -> Vec<Row<Object, Place>> {
    let groups = culprits.groups(By::Reason);
    let rows = groups.into_iter().flat_map(|group| group.rows);
    let is_it =
        |row: &Row<Object, Place>| (row.key.kind, row.key.index) == (Some(kind), Some(index));
    rows.filter(is_it).collect()
}

/// Callers, known and unknown, add up to what they called for.
#[track_caller]
fn check_callers(culprits: &Culprits<'_>) {
    for row in culprits
        .groups(By::Reason)
        .iter()
        .flat_map(|group| &group.rows)
    {
        let sum: u64 = row.callers.iter().map(|c| c.count).sum();
        assert!(row.callers.is_empty() || sum == row.tally.exits, "{row:#?}");
    }
}

/// Exits for one thing, by where they came from.
fn sites(culprits: &Culprits<'_>, kind: AskKind, index: u64) -> Vec<(Place, u64)> {
    let groups = culprits.groups(By::Reason);
    let rows = groups.iter().flat_map(|group| &group.rows);
    let of = rows.filter(|row| (row.key.kind, row.key.index) == (Some(kind), Some(index)));
    of.flat_map(|row| row.of.clone()).collect()
}

#[test]
fn each_workload_has_its_key_and_its_place() {
    needs_ledger!("each_workload_has_its_key_and_its_place");
    let shadowed = is_shadowed(&kernel("log=off", &[]).profile());
    for (workload, kind, index, count) in [
        ("pio:70", AskKind::PortOut, SCRATCH, 70),
        ("pin:50", AskKind::PortIn, SCRATCH, 50),
        ("outs:4", AskKind::PortOut, SCRATCH, 4 * 17),
        // The value is read first.
        ("rdmsr:300", AskKind::MsrRead, APIC_BASE, 301),
        ("wrmsr:200", AskKind::MsrWrite, APIC_BASE, 200),
        ("cpuid:90", AskKind::Cpuid, 0, 90),
        // The first touch is a 48.
        ("mmio:60", AskKind::Page, SCRATCH_PAGE, 61),
    ] {
        if kind == AskKind::Page && shadowed {
            continue;
        }
        let profile = kernel(&format!("workload={workload} log=off"), &[]).profile();
        let sites = sites(&step(&profile, "workload"), kind, index);
        let sum: u64 = sites.iter().map(|(_, n)| n).sum();
        assert_eq!(sum, count, "{workload}: {sites:?}");
        // A loop is one place; getting ready may be others.
        let most = sites.iter().map(|(_, n)| n).max();
        assert!(most >= Some(&(count * 9 / 10)), "{workload}: {sites:?}");
        for (place, _) in &sites {
            // The guest kernel has a table of symbols.
            assert!(matches!(place, Place::Function(_)), "{workload}: {place:?}");
        }
    }
}

#[test]
fn every_level_keeps_them() {
    needs_ledger!("every_level_keeps_them");
    for level in ["counts", "cycles", "histogram"] {
        let cmdline = "workload=pio:70,wrmsr:30 log=off";
        let profile = kernel(cmdline, &["--ledger", level]).profile();
        let workload = step(&profile, "workload");
        for (kind, index, count) in [
            (AskKind::PortOut, SCRATCH, 70),
            (AskKind::MsrWrite, APIC_BASE, 30),
        ] {
            let sites = sites(&workload, kind, index);
            assert_eq!(sites.iter().map(|(_, n)| n).sum::<u64>(), count, "{level}");
        }
        let timed = profile.total.culprit_cycles.iter().sum::<u64>();
        let all: u64 = profile.total.reasons.iter().map(|r| r.cycles).sum();
        assert_eq!(timed > 0, level != "counts");
        // Each is converted from nanoseconds apart.
        assert!(
            timed <= all + profile.culprits.len() as u64,
            "{timed} of {all}"
        );
    }
}

#[test]
fn reboots_have_their_own() {
    needs_ledger!("reboots_have_their_own");
    let more = ["--on-reset", "continue"];
    let profile = kernel("reboot=2 log=off workload=pio:40", &more).profile();
    assert_eq!(profile.reboots.len(), 2);
    let firsts = profile.culprits();
    let boots = std::iter::once(firsts).chain(profile.reboots.iter().map(|b| b.culprits()));
    for culprits in boots {
        let sites = sites(&culprits.unwrap(), AskKind::PortOut, SCRATCH);
        assert_eq!(sites.iter().map(|(_, n)| n).sum::<u64>(), 40);
    }
}

#[test]
fn a_guest_that_walks_all_ports_loses_none() {
    needs_ledger!("a_guest_that_walks_all_ports_loses_none");
    const PORTS: u64 = 6000;
    let folder = tempdir().unwrap();
    let image = code::walking_ports(PORTS as u16).write(folder.path());
    let saved = folder.path().join("profile.json");
    let arguments = ["profile", "--kernel", arg(&image), "--format", "json"];
    let run_it = run(&[&arguments[..], &["--output", arg(&saved)]].concat());
    let run_it = run_it.expect_status(0);
    drop(run_it);
    let text = std::fs::read_to_string(&saved).unwrap();
    let profile: Profile = serde_json::from_str(&text).unwrap();
    black_box::accounts::check_closed(&profile);
    let culprits = profile.culprits().unwrap();
    let groups = culprits.groups(By::Port);
    let [io] = groups.as_slice() else {
        panic!("{groups:?}");
    };
    assert!(io.exits >= PORTS);
    assert!(io.no_room > PORTS / 4, "{}", io.no_room);
    assert!(io.rows.len() > 1000, "{} ports are kept", io.rows.len());
    assert_eq!(profile.total.asks_dropped, io.no_room);
    // It is shown.
    let shown = run(&["report", arg(&saved), "--by", "port"]).expect_status(0);
    let line = shown
        .stdout
        .lines()
        .find(|l| l.contains("found no room in the table"));
    assert!(line.is_some(), "{}", shown.stdout);
}

#[test]
fn a_guest_that_writes_from_everywhere_keeps_its_port() {
    needs_ledger!("a_guest_that_writes_from_everywhere_keeps_its_port");
    const PLACES: u64 = 5000;
    let folder = tempdir().unwrap();
    let image = code::writing_from_everywhere(PLACES as usize).write(folder.path());
    let run = run(&["profile", "--kernel", arg(&image), "--format", "json"]).expect_status(0);
    let profile = run.profile();
    let culprits = profile.culprits().unwrap();
    // The guest's end is one more access, to the exit port, which may have found room or not.
    let end = sites(&culprits, AskKind::PortOut, u64::from(exit_abi::port::EXIT));
    let end: u64 = end.iter().map(|(_, n)| n).sum();
    let sites = sites(&culprits, AskKind::PortOut, 0x80);
    let known: u64 = sites.iter().map(|(_, n)| n).sum();
    let group = &culprits.groups(By::Port)[0];
    assert_eq!(known + end + group.no_room, PLACES + 1);
    let nowhere = sites.iter().find(|(place, _)| *place == Place::Unknown);
    // Those for whose place there was no room are one line with the port; if that had none, they are
    // counted.
    assert!(nowhere.is_some() || group.no_room > 0, "{sites:?}");
    assert!(sites.len() > 1000, "{} places are kept", sites.len());
}

#[test]
fn a_stack_that_leads_anywhere_is_followed_nowhere() {
    needs_ledger!("a_stack_that_leads_anywhere_is_followed_nowhere");
    let kernel = guest("wild_stack");
    for (memory, level) in [("64M", "cycles"), ("65M", "histogram"), ("64M", "counts")] {
        let mib = memory.trim_end_matches('M');
        let fixed = ["profile", "--format", "json", "--kernel", arg(&kernel)];
        let more = ["--memory", memory, "--cmdline", mib, "--ledger", level];
        let run = run(&[&fixed[..], &more].concat()).expect_status(0);
        let profile = run.profile();
        let culprits = profile.culprits().unwrap();
        let exits: u64 = sites(&culprits, AskKind::PortOut, SCRATCH)
            .iter()
            .map(|(_, n)| n)
            .sum();
        assert_eq!(exits, 9 * 12, "{memory} {level}");
        // What lies on the stack of a guest without known functions is no caller.
        assert!(profile.culprits.iter().all(|c| c.caller.is_none()));
    }
}

#[test]
fn emulated_events_have_keys() {
    let name = "emulated_events_have_keys";
    needs_kvm!("emulated_events_have_keys");
    if kvm() != Some(KvmKind::Software) {
        return skip(name, "this KVM has exits");
    }
    let profile = kernel("workload=pio:70,rdmsr:20,cpuid:30 log=off", &[]).profile();
    if profile.total.emulated.is_empty() {
        return skip(name, "no kernel ledger here");
    }
    let culprits = profile.culprits().unwrap();
    for group in culprits.groups(By::Reason) {
        if group.reason == Some(12) {
            // Known by its number alone.
            continue;
        }
        let named: u64 = group.rows.iter().map(|row| row.tally.exits).sum();
        assert_eq!(named + group.no_room, group.exits, "{group:?}");
    }
    assert!(at(&profile, "workload").asks.iter().any(|a| a.count == 70));
}

#[test]
fn reports_by_everything() {
    needs_ledger!("reports_by_everything");
    let folder = tempdir().unwrap();
    let saved = folder.path().join("profile.json");
    let cmdline = "workload=pio:70,wrmsr:30,cpuid:20 log=off";
    kernel(cmdline, &["--output", arg(&saved)]);
    for by in By::ALL {
        for format in ["text", "json", "csv"] {
            for at in [&["--at", "each"][..], &["--at", "workload"], &[]] {
                let fixed = ["report", arg(&saved), "--format", format, "--by", by.name()];
                let run = run(&[&fixed[..], at, &["--top", "3"]].concat()).expect_status(0);
                assert!(!run.stdout.is_empty() && run.stderr.is_empty(), "{run:#?}");
            }
        }
    }
    let of = |more: &[&str]| run(&[&["report", arg(&saved), "--by", "port"], more].concat());
    let csv = of(&["--format", "csv", "--at", "workload"])
        .expect_status(0)
        .stdout;
    let row = csv
        .lines()
        .find(|line| line.contains("port-out,0xE1C"))
        .unwrap();
    assert!(row.starts_with("workload,30,"), "{row}");
    assert!(row.contains(",70,"), "{row}");
    let refused = of(&["--at", "nowhere"]).expect_status(USAGE);
    assert_eq!(refused.stderr.lines().count(), 1, "{refused:#?}");
    assert!(
        refused
            .stderr
            .contains("no step of this boot ends at \"nowhere\"")
    );
    run(&["report", arg(&saved), "--top", "3"]).expect_status(USAGE);
    // Without a ledger nobody is known, and that is said.
    let kernel = guest("guest-kernel");
    let arguments = ["profile", "--kernel", arg(&kernel), "--cmdline", "log=off"];
    let run = run(&[&arguments[..], &["--ledger", "off", "--by", "msr"]].concat());
    let run = run.expect_status(0);
    assert!(
        run.stdout.contains("not known: it takes the kernel ledger"),
        "{run:#?}"
    );
}

#[test]
fn linux_tells_its_functions() {
    let name = "linux_tells_its_functions";
    needs_ledger!("linux_tells_its_functions");
    let file = |name| std::env::var_os(name).map(PathBuf::from);
    let images = ["EXITVISOR_LINUX_6_1", "EXITVISOR_LINUX_6_12"].map(file);
    let Some(initramfs) = file("EXITVISOR_INITRAMFS") else {
        return skip(
            name,
            "Linux is booted in the labs: cargo xtask test --on amd-lab",
        );
    };
    if black_box::lab().as_deref() != Some("amd") {
        return skip(
            name,
            "emulated CPUs but AMD's are too slow for Linux inside Linux",
        );
    }
    // With breakpoints, and KASLR; and from what is in its memory at its end.
    for (image, milestones) in images.into_iter().flatten().zip([None, Some("none")]) {
        let mut arguments = vec![
            "profile",
            "--kernel",
            arg(&image),
            "--initrd",
            arg(&initramfs),
            "--memory",
            "256M",
            "--cmdline",
            "console=ttyS0 panic=-1 rdinit=/init quiet",
            "--timeout",
            "120s",
            "--format",
            "json",
        ];
        if let Some(milestones) = milestones {
            arguments.extend(["--milestones", milestones]);
        }
        let profile = run(&arguments).expect_status(0).profile();
        assert_eq!(profile.total.asks_dropped, 0);
        let culprits = profile.culprits().unwrap();
        let from = |kind, index, functions: &[&str]| {
            let sites = sites(&culprits, kind, index);
            let (place, exits) = sites.first().unwrap();
            let known = functions
                .iter()
                .any(|f| *place == Place::Function((*f).to_owned()));
            assert!(known && *exits > 0, "{kind:?} {index:#x}: {sites:?}");
        };
        // Through paravirt calls, or not.
        from(
            AskKind::MsrWrite,
            0x6E0,
            &["native_write_msr", "lapic_next_deadline"],
        );
        check_callers(&culprits);
        let known = |by, function: &str| {
            let groups = culprits.groups(by);
            let rows = groups.iter().flat_map(|group| &group.rows);
            let callers = rows.flat_map(|row| &row.callers);
            let via = callers.filter(|c| c.via.as_deref() == Some(function));
            via.map(|c| c.count).sum::<u64>()
        };
        // They need the stack pointer, which AMD's VMCB has, and the guest's own tables.
        if !is_shadowed(&profile) {
            let rows = rows_of(&culprits, AskKind::MsrWrite, 0x6E0);
            let [deadline] = rows.as_slice() else {
                panic!("one row for one MSR");
            };
            if deadline.of[0].0 == Place::Function("native_write_msr".to_owned()) {
                let all: u64 = deadline.callers.iter().map(|c| c.count).sum();
                assert_eq!(all, deadline.tally.exits);
                let first = &deadline.callers[0];
                assert_eq!(
                    first.function(),
                    Some("lapic_next_deadline"),
                    "{deadline:#?}"
                );
                assert!(first.count * 10 > all * 9, "{deadline:#?}");
                assert!(first.address.is_some());
            }
            assert!(known(By::Port, "io_serial_out") > 0);
            // Where the kernel's code is known from its start on, so are those who called.
            if milestones.is_none() {
                assert!(known(By::Leaf, "native_cpuid") > 20);
            }
        }
        from(AskKind::PortOut, 0x3F8, &["io_serial_out"]);
        from(
            AskKind::Cpuid,
            0x8000_0008,
            &["native_cpuid", "user space", "cpuid"],
        );
        let places = culprits.places();
        let named = places
            .iter()
            .filter(|row| matches!(row.key, Place::Function(_)));
        let named: u64 = named.map(|row| row.tally.exits).sum();
        let all: u64 = places.iter().map(|row| row.tally.exits).sum();
        // The rest is the decompressor's, user space's where nobody knows when it began, and early code's.
        assert!(named * 10 > all * 7, "{named} of {all} have a name");
        if milestones.is_none() {
            let user_space = Place::Function("user space".to_owned());
            assert!(places.iter().any(|row| row.key == user_space), "{places:?}");
        }
    }
}
