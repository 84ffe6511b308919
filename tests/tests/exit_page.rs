//! The exit page: the figures of leaves and ledger by plain loads, at no exit, for this VM alone, and
//! nothing that a guest does to it changes it.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;

use black_box::accounts::{self, TIME_DRIVEN, grown, has_ledger, is_shadowed, touched};
use black_box::{Live, Run, arg, guest, needs_kvm, profile, start};
use exitvisor::profile::{EndKind, Milestone, Profile};
use exitvisor::status::{KVM_ERROR, RESET_LIMIT, TIMEOUT, TRIPLE_FAULT};

/// What the guest does; the numbers are its command line.
const COMPARE: &str = "0";
const RESET: &str = "1";
const NO_PAGE: &str = "2";
const FOUR_CPUS: &str = "1003";

/// With the kernel's page where there is one, and with the VMM's.
const LEDGERS: [&[&str]; 2] = [&[], &["--ledger", "off"]];

/// Where the guest keeps what has no reason.
const NO_REASON: u8 = 128;

#[track_caller]
fn page(what: &str, options: &[&str]) -> Run {
    let fixed = ["--cmdline", what, "--timeout", "40s"];
    profile("exit_page", &[&fixed, options].concat())
}

/// Who wrote the page.
fn writer(profile: &Profile) -> &str {
    profile.machine.exit_page.as_deref().unwrap_or("nobody")
}

/// Who must have written it.
fn expected_writer(profile: &Profile) -> &'static str {
    match has_ledger(profile) {
        true => accounts::KERNEL,
        false => "VMM",
    }
}

/// What the guest read at a milestone: `page MILESTONE REASON EXITS`.
fn printed(run: &Run, number: u32) -> BTreeMap<u8, u64> {
    let start = format!("page {number} ");
    let lines = run.stderr.lines().filter_map(|l| l.strip_prefix(&start));
    lines
        .map(|line| {
            let (reason, exits) = line.split_once(' ').unwrap();
            (reason.parse().unwrap(), exits.parse().unwrap())
        })
        .collect()
}

/// What the profile has of a milestone, as the guest keeps it.
fn taken(milestone: &Milestone) -> BTreeMap<u8, u64> {
    let accounts = &milestone.accounts;
    let unnamed = accounts.other + accounts.residual + accounts.own_residual;
    let reasons = accounts.reasons.iter().map(|r| (r.reason, r.exits));
    let all = reasons.chain([(NO_REASON, unnamed)]);
    all.filter(|(_, exits)| *exits > 0).collect()
}

/// A run that compared: the page is what the profile has, at each milestone, and reading it cost
/// nothing.
#[track_caller]
fn check_compared(run: Run) {
    let run = run.expect_status(0);
    let profile = run.profile();
    assert_eq!(writer(&profile), expected_writer(&profile));
    for number in 0x200..0x203 {
        let milestone = profile.milestones.iter().find(|m| m.number == number);
        let (mut taken, mut printed) = (taken(milestone.unwrap()), printed(&run, number));
        for reason in TIME_DRIVEN {
            // One may come between the snapshot and the guest's reading.
            let (before, after) = (taken.remove(&reason), printed.remove(&reason));
            assert!(before <= after, "reason {reason}: {run:#?}");
        }
        assert_eq!(printed, taken, "milestone {number:#x}: {run:#?}");
        assert!(printed[&30] >= 50);
    }
    // 100,000 reads. (The milestone that ends them is the profiler's own.)
    let (from, to) = ("unnamed 0x210", "unnamed 0x211");
    assert_eq!(grown(&profile, from, to), BTreeMap::new());
    if !is_shadowed(&profile) {
        assert_eq!(touched(&profile, from, to), 0);
    }
}

#[test]
fn the_page_the_leaves_and_the_profile_say_the_same() {
    needs_kvm!("the_page_the_leaves_and_the_profile_say_the_same");
    for ledger in [&[][..], &["--ledger", "counts"], &["--ledger", "off"]] {
        check_compared(page(COMPARE, ledger));
    }
}

#[test]
fn two_vms_at_once_see_themselves_alone() {
    needs_kvm!("two_vms_at_once_see_themselves_alone");
    for ledger in LEDGERS {
        let kernel = guest("exit_page");
        let fixed = ["profile", "--format", "json", "--timeout", "50s"];
        let kernel = ["--kernel", arg(&kernel), "--cmdline", COMPARE];
        let both = [(), ()].map(|()| Live::of(start(&[&fixed[..], &kernel, ledger].concat())));
        for run in both.map(Live::finish) {
            check_compared(run);
        }
    }
}

#[test]
fn every_cpu_has_its_own_record() {
    needs_kvm!("every_cpu_has_its_own_record");
    for ledger in LEDGERS {
        let run = page(FOUR_CPUS, &[&["--cpus", "4"], ledger].concat()).expect_status(0);
        let profile = run.profile();
        assert_eq!(writer(&profile), expected_writer(&profile));
    }
}

#[test]
fn every_boot_counts_from_zero() {
    needs_kvm!("every_boot_counts_from_zero");
    let options = ["--on-reset", "continue", "--max-resets", "2"];
    for ledger in LEDGERS {
        // The guest compares page and leaves at each boot before it resets the machine.
        let run = page(RESET, &[&options, ledger].concat()).expect_status(RESET_LIMIT);
        let profile = run.profile();
        assert_eq!(profile.reboots.len(), 2);
        let said = format!("cut short: {}", profile.end.detail);
        assert_eq!(run.stderr, format!("exitvisor: {said}\n"));
        for pass in &profile.reboots {
            assert_eq!(pass.end.kind, EndKind::Reset);
            let timed = pass.total.reasons.iter();
            for r in timed.filter(|r| r.timed > r.own_timed) {
                // The shortest and longest are this boot's.
                assert!(0 < r.min && r.min <= r.max, "{r:?}");
                let guests = r.cycles - r.own_cycles;
                assert!(r.max <= guests + r.timed, "{r:?}");
            }
        }
    }
}

#[test]
fn there_is_none_where_it_is_not_wanted() {
    needs_kvm!("there_is_none_where_it_is_not_wanted");
    let folder = tempfile::tempdir().unwrap();
    let node = b"exitvisor,exit-page".as_slice();
    for (what, switch, has) in [(COMPARE, "on", true), (NO_PAGE, "off", false)] {
        let tree = folder.path().join(switch);
        let options = ["--exit-page", switch, "--dump-dtb", arg(&tree)];
        let profile = page(what, &options).expect_status(0).profile();
        assert_eq!(profile.machine.exit_page.is_some(), has);
        let tree = fs::read(tree).unwrap();
        assert_eq!(tree.windows(node.len()).any(|w| w == node), has);
    }
}

/// A run of the guest that abuses the page.
#[track_caller]
fn abused(how: &str, options: &[&str]) -> Run {
    profile("exit_page_abused", &[&["--cmdline", how], options].concat())
}

#[test]
fn what_a_guest_does_to_it_changes_nothing() {
    needs_kvm!("what_a_guest_does_to_it_changes_nothing");
    // Stores of every kind, another mapping, beyond its end, as a table of segments.
    for (how, ledger) in [
        ("0", LEDGERS[0]),
        ("0", LEDGERS[1]),
        ("3", LEDGERS[0]),
        ("4", LEDGERS[0]),
        ("8", LEDGERS[0]),
    ] {
        let run = abused(how, ledger).expect_status(0);
        let profile = run.profile();
        assert_eq!(writer(&profile), expected_writer(&profile));
        assert_eq!(profile.end.kind, EndKind::Exit, "{how}");
    }
}

#[test]
fn what_cannot_go_on_ends_cleanly() {
    needs_kvm!("what_cannot_go_on_ends_cleanly");
    // A store that KVM cannot emulate.
    let run = abused("1", &[]).expect_status(KVM_ERROR);
    let detail = run.profile().end.detail;
    assert!(detail.starts_with("KVM cannot emulate"), "{detail}");
    // What is there is no code.
    let run = abused("2", &[]).expect_status(TRIPLE_FAULT);
    assert_eq!(run.profile().end.kind, EndKind::TripleFault);
    // Nor is it a root of page tables, nor a stack. What the CPU would write there
    // cannot be written: where it tries that again and again, the guest never comes further.
    for how in ["5", "6", "7"] {
        let run = abused(how, &["--timeout", "3s"]);
        let ends = [TRIPLE_FAULT, TIMEOUT, KVM_ERROR].map(i32::from);
        // As a page table further down it may do: some kernels go on without the mark.
        let goes_on = how == "6" && run.status == 0;
        assert!(goes_on || ends.contains(&run.status), "{how}: {run:#?}");
        assert_eq!(run.profile().end.cut_short, !goes_on, "{how}");
    }
}
