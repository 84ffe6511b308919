//! Milestones of Linux, by breakpoints, wherever KASLR puts it; and those that a person asks for besides.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::sync::OnceLock;

use black_box::accounts::has_ledger;
use black_box::linux::{Guest, guest as linux};
use black_box::{Run, arg, file};
use exitvisor::profile::{EndKind, MilestoneKind, Profile};
use exitvisor::status::MISSED;
use tempfile::tempdir;

/// The milestones of a Linux kernel that unpacks itself.
const LINUX: [&str; 17] = [
    "kernel entry",
    "decompressed",
    "start_kernel",
    "rest_init",
    "initcalls early",
    "initcalls 0 pure",
    "initcalls 1 core",
    "initcalls 2 postcore",
    "initcalls 3 arch",
    "initcalls 4 subsys",
    "initcalls 5 fs",
    "initcalls rootfs",
    "initcalls 6 device",
    "initcalls 7 late",
    "kernel_init done",
    "exec of init",
    "user space",
];

/// The older kernel with KASLR and more milestones than there are breakpoints: booted once, for all tests.
fn asked(guest: &Guest) -> &'static Run {
    static RUN: OnceLock<Run> = OnceLock::new();
    RUN.get_or_init(|| {
        let specs = [
            "symbol:start_kernel",
            "symbol:native_machine_power_off",
            "symbol:no_such_symbol",
            "console:exitvisor-guest: user space",
            "console:never printed",
            "cpuid:0x40000000",
            "cpuid:0x12345678",
        ];
        let options: Vec<&str> = specs.iter().flat_map(|s| ["--milestone", *s]).collect();
        guest.boot(&guest.old, "", &options)
    })
}

fn names(profile: &Profile) -> Vec<&str> {
    profile.milestones.iter().map(|m| &*m.name).collect()
}

/// Expects all of Linux's milestones, in order, and that counts grow from each to the next.
#[track_caller]
fn expect_linux(profile: &Profile, before: &[&str]) {
    let expected = [before, &LINUX].concat();
    assert_eq!(names(profile), expected);
    let totals = profile.milestones.iter().map(|m| m.accounts.total);
    assert!(totals.is_sorted());
    for milestone in &profile.milestones[before.len()..] {
        assert_eq!(milestone.kind, Some(MilestoneKind::Breakpoint));
        // Each is an exit of the profiler's own: #DB.
        let debug = milestone.accounts.reason(0).unwrap();
        assert_eq!(debug.exits, debug.own, "{}", milestone.name);
    }
    assert_eq!(profile.milestones_missed, []);
    // Two breakpoints more than milestones: where it moves itself, and where user space is told of.
    let debug = profile.total.reason(0).unwrap();
    assert_eq!(
        (debug.exits, debug.own),
        (LINUX.len() as u64 + 2, debug.exits)
    );
    assert_eq!(profile.gates.stepped, 0);
}

#[test]
fn the_newer_kernel_passes_them_in_order() {
    let Some(guest) = linux("the_newer_kernel_passes_them_in_order") else {
        return;
    };
    let profile = guest.boot(&guest.new, "", &[]).expect_status(0).profile();
    expect_linux(&profile, &["reset"]);
}

#[test]
fn through_the_firmware_too_until_user_space() {
    let Some(guest) = linux("through_the_firmware_too_until_user_space") else {
        return;
    };
    let firmware = black_box::guest("firmware");
    for kernel in [&guest.old, &guest.new] {
        let options = ["--firmware", arg(&firmware), "--until", "user space"];
        let run = guest.boot(kernel, "nokaslr", &options).expect_status(0);
        let profile = run.profile();
        let before = ["reset", "firmware entry", "long mode", "kernel loaded"];
        let expected = [&before[..], &LINUX].concat();
        assert_eq!(names(&profile), expected, "{run:#?}");
        assert_eq!(profile.end.kind, EndKind::Milestone);
        assert!(!profile.end.cut_short);
        let last = profile.milestones.last().unwrap();
        // Nothing happened behind it.
        assert_eq!(last.accounts.total, profile.total.total);
    }
}

#[test]
fn with_two_cpus_each_counts_once() {
    let Some(guest) = linux("with_two_cpus_each_counts_once") else {
        return;
    };
    let options = ["--cpus", "2", "--until", "user space"];
    let run = guest.boot(&guest.new, "", &options).expect_status(0);
    let profile = run.profile();
    assert_eq!(
        names(&profile),
        [&["reset"], &LINUX[..]].concat(),
        "{run:#?}"
    );
    let debug = profile.total.reason(0).unwrap();
    assert_eq!(debug.exits, debug.own);
}

#[test]
fn an_unpacked_kernel_has_no_decompressor() {
    let Some(guest) = linux("an_unpacked_kernel_has_no_decompressor") else {
        return;
    };
    let options = ["--until", "symbol:rest_init"];
    let profile = guest
        .boot(&guest.vmlinux, "", &options)
        .expect_status(0)
        .profile();
    let expected = ["reset", "kernel entry", "start_kernel", "rest_init"];
    assert_eq!(names(&profile), expected);
}

#[test]
fn all_that_is_asked_for() {
    let Some(guest) = linux("all_that_is_asked_for") else {
        return;
    };
    let run = asked(&guest);
    assert_eq!(run.status, i32::from(MISSED), "{run:#?}");
    let profile = run.profile();
    let ours: Vec<_> = profile.milestones[1..]
        .iter()
        .filter(|m| LINUX.contains(&&*m.name) && m.kind == Some(MilestoneKind::Breakpoint))
        .map(|m| &*m.name)
        .collect();
    assert_eq!(ours, LINUX, "start_kernel once");
    let kind = |name: &str| {
        let mut named = profile.milestones.iter().filter(|m| m.name == name);
        let kind = named.next().and_then(|m| m.kind);
        assert!(named.next().is_none(), "{name} once");
        kind
    };
    assert_eq!(
        kind("native_machine_power_off"),
        Some(MilestoneKind::Breakpoint)
    );
    assert_eq!(
        kind("exitvisor-guest: user space"),
        Some(MilestoneKind::Console)
    );
    if has_ledger(&profile) {
        assert_eq!(kind("CPUID 0x40000000"), Some(MilestoneKind::Cpuid));
        // Exactly there: the leaf had been asked for once.
        let at = profile
            .milestones
            .iter()
            .find(|m| m.kind == Some(MilestoneKind::Cpuid));
        let at = at.unwrap();
        let asked = |m: &exitvisor::profile::Milestone| {
            let mut asks = m.accounts.asks.iter();
            asks.find(|a| a.index == 0x4000_0000).map_or(0, |a| a.count)
        };
        assert_eq!(asked(at), 1);
    }
}

#[test]
fn what_is_not_reached_is_said_in_a_line_each() {
    let Some(guest) = linux("what_is_not_reached_is_said_in_a_line_each") else {
        return;
    };
    let run = asked(&guest);
    let said: Vec<&str> = run
        .stderr
        .lines()
        .filter(|l| l.starts_with("exitvisor: "))
        .collect();
    let expected = [
        r#"exitvisor: milestone "no_such_symbol": no symbol no_such_symbol"#,
        r#"exitvisor: milestone "never printed": not reached"#,
        r#"exitvisor: milestone "CPUID 0x12345678": not reached"#,
    ];
    assert_eq!(said, expected);
    let profile = run.profile();
    assert_eq!(profile.end.status, MISSED);
    assert_eq!(profile.end.kind, EndKind::PowerOff);
    assert_eq!(profile.milestones_missed.len(), expected.len());
}

/// Reasons that neither time nor the place of the kernel drives: CPUID, CR access, RDMSR, MMIO, XSETBV.
const STEADY: [u8; 5] = [10, 28, 31, 49, 55];

#[test]
fn they_cost_what_is_booked_as_their_own() {
    let Some(guest) = linux("they_cost_what_is_booked_as_their_own") else {
        return;
    };
    let with = guest
        .boot(&guest.old, "nokaslr", &[])
        .expect_status(0)
        .profile();
    let without = ["--milestones", "none"];
    let without = guest
        .boot(&guest.old, "nokaslr", &without)
        .expect_status(0)
        .profile();
    assert_eq!(names(&without), ["reset"]);
    let of = |profile: &Profile, reason| {
        profile
            .total
            .reason(reason)
            .map_or((0, 0), |r| (r.exits, r.own))
    };
    for reason in STEADY {
        let ((with, own), (without, none)) = (of(&with, reason), of(&without, reason));
        assert_eq!(none, 0);
        assert_eq!(with - own, without, "reason {reason}");
    }
    let (debug, own) = of(&with, 0);
    assert_eq!((debug, of(&without, 0).0), (own, 0));
    if has_ledger(&with) {
        // While a breakpoint is armed each MOV DR exits. Without one, only the first in a row does.
        let ((with, own), (without, _)) = (of(&with, 29), of(&without, 29));
        assert_eq!(with, own);
        assert!((1..=own).contains(&without), "{without} of {own}");
    }
}

#[test]
fn symbols_of_another_kernel_are_noticed() {
    let Some(guest) = linux("symbols_of_another_kernel_are_noticed") else {
        return;
    };
    let folder = tempdir().unwrap();
    let text = "ffffffff81000000 T _text\nffffffff81000100 T start_kernel\n\
                ffffffff81000200 T rest_init\n";
    let map = file(folder.path(), "System.map", text.as_bytes());
    let stub = "ffffffffffffffff B The real System.map is in the linux-image-6.1.0-dbg package\n";
    let stub = file(folder.path(), "stub", stub.as_bytes());
    for (symbols, says) in [(&map, "it is another kernel's"), (&stub, "is a stub")] {
        let options = ["--symbols", arg(symbols), "--until", "start_kernel"];
        let run = guest.boot(&guest.old, "", &options).expect_status(0);
        let expected = ["reset", "kernel entry", "decompressed", "start_kernel"];
        assert_eq!(names(&run.profile()), expected);
        let lines = run.stderr.lines().filter(|l| l.starts_with("exitvisor: "));
        let lines: Vec<&str> = lines.collect();
        assert!(lines.len() == 1 && lines[0].contains(says), "{lines:?}");
    }
}
