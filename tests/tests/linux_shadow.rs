//! Real Linux kernels where KVM shadows a guest's page tables: its tables in step with a kernel's that maps,
//! patches and protects itself.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use black_box::accounts::{has_ledger, is_shadowed};
use black_box::linux::guest as linux;
use black_box::{Run, arg, skip};
use exitvisor::profile::{EndKind, Profile};

/// Exits of a reason.
fn exits(profile: &Profile, reason: u8) -> u64 {
    profile.total.reason(reason).map_or(0, |r| r.exits)
}

/// Expects that user space was reached, with so many CPUs, and that it powered the machine off; the profile, if
/// this host shadows.
#[track_caller]
fn expect_power_off(test: &str, run: Run, release: &str, cpus: u32) -> Option<Profile> {
    let cpus = format!(", {cpus} CPUs");
    let run = run.expect_status(0);
    let run = run.expect_stderr(&["exitvisor-guest: user space", release, &cpus]);
    let profile = run.profile();
    assert_eq!(profile.end.kind, EndKind::PowerOff);
    let shadowed = is_shadowed(&profile);
    if !shadowed {
        skip(test, "this host has nested paging");
    }
    shadowed.then_some(profile)
}

#[test]
fn a_kernel_boots_and_is_watched() {
    const TEST: &str = "a_kernel_boots_and_is_watched";
    let Some(guest) = linux(TEST) else {
        return;
    };
    // KASLR, and breakpoints at its symbols.
    let run = guest.boot(&guest.old, "", &[]);
    let Some(profile) = expect_power_off(TEST, run, "6.1.0-", 1) else {
        return;
    };
    if !has_ledger(&profile) {
        skip(TEST, "there is no kernel ledger");
        return;
    }
    let [faults, invlpg, cr] = [0, 14, 28].map(|reason| exits(&profile, reason));
    println!("{faults} page faults, {invlpg} INVLPG, {cr} CR accesses");
    // A kernel with one CPU takes the locks out of its own code: each through a mapping of its own.
    assert!(cr > 10_000 && faults > 5_000 && invlpg > 0);
    // What nested paging has.
    for reason in [48, 49] {
        assert_eq!(exits(&profile, reason), 0, "{reason}");
    }
    let names = profile.milestones.iter().map(|m| &*m.name);
    let wanted = [
        "kernel entry",
        "decompressed",
        "start_kernel",
        "rest_init",
        "initcalls early",
        "initcalls 7 late",
        "kernel_init done",
        "exec of init",
        "user space",
    ];
    let found: Vec<&str> = names.filter(|name| wanted.contains(name)).collect();
    assert_eq!(found, wanted);
}

#[test]
fn a_kernel_boots_through_the_firmware() {
    const TEST: &str = "a_kernel_boots_through_the_firmware";
    let Some(guest) = linux(TEST) else {
        return;
    };
    let firmware = black_box::guest("firmware");
    let run = guest.boot(&guest.new, "", &["--firmware", arg(&firmware)]);
    expect_power_off(TEST, run, "6.12.", 1);
}

#[test]
fn two_cpus() {
    let Some(guest) = linux("two_cpus") else {
        return;
    };
    // They take turns on a host with one.
    let run = guest.boot(&guest.old, "", &["--cpus", "2"]);
    expect_power_off("two_cpus", run, "6.1.0-", 2);
}
