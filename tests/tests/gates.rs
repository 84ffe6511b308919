//! Gates: leaves in every layout and edition, abuse of the gate port, the hypercall, foreign debug
//! exceptions, two CPUs at once. The guests check themselves; here are the ledger's own words on it.

use black_box::{arg, guest, kvm, needs_kvm, needs_ledger, profile, run, skip};
use exitvisor::profile::{KvmKind, Profile};

/// (exits, own) of a reason.
fn exits(profile: &Profile, reason: u8) -> (u64, u64) {
    let account = profile.total.reasons.iter().find(|r| r.reason == reason);
    account.map_or((0, 0), |r| (r.exits, r.own))
}

#[test]
fn the_gate_port_answers_every_abuse() {
    needs_kvm!("the_gate_port_answers_every_abuse");
    let run = profile("gates", &["--timeout", "20s"]).expect_status(0);
    let profile = run.profile();
    // INFO at the note's gate; three answers at gates of the guest's own.
    assert_eq!(profile.gates.queries, 4, "{run:#?}");
    // Eight ordinary leaves, three times NOPs, one MOV.
    assert_eq!(profile.gates.stepped, 12);
    assert_eq!(profile.gates.foreign, 0);
    let (all, own) = exits(&profile, 0);
    assert_eq!(all, own, "every #DB was the profiler's own");
    // A query is one exit; to step over is one more where RF is ignored.
    let per_step = if profile.host.kvm == KvmKind::Software {
        2
    } else {
        1
    };
    assert_eq!(own, 4 + 12 * per_step);
}

#[test]
fn leaves_in_every_layout_and_edition() {
    needs_kvm!("leaves_in_every_layout_and_edition");
    let custom = "0x4fffff80,0x4fffff10,0x4ffffff0,0x4fffffaa";
    for (layout, shown) in [
        ("classic", "layout [4fffffff, 4ffffffe, 4ffffffd, 4ffffffc]"),
        (
            "reversed",
            "layout [4ffffffc, 4ffffffd, 4ffffffe, 4fffffff]",
        ),
        (custom, "layout [4fffff80, 4fffff10, 4ffffff0, 4fffffaa]"),
    ] {
        for (edition, cmdline) in [("current", ""), ("2020", "2020")] {
            let args = ["--leaves", layout, "--sdm", edition, "--cmdline", cmdline];
            let run = profile("leaves", &args)
                .expect_status(0)
                .expect_stderr(&[shown]);
            let profile = run.profile();
            assert_eq!(profile.machine.sdm, edition);
            let (all, own) = exits(&profile, 30);
            assert_eq!(all - own, 500, "port writes: {run:#?}");
            let (all, own) = exits(&profile, 0);
            assert_eq!(
                (all, profile.gates.queries),
                (own, own),
                "one exit per query"
            );
        }
    }
}

#[test]
fn queries_are_logged_as_the_coursework_does() {
    needs_kvm!("queries_are_logged_as_the_coursework_does");
    let run = profile("leaves", &["--log-queries"]).expect_status(0);
    let logged = |end: &str| run.stderr.lines().filter(|l| l.ends_with(end)).count();
    let lines: Vec<&str> = run
        .stderr
        .lines()
        .filter(|l| l.starts_with("sd> "))
        .collect();
    assert!(
        lines
            .iter()
            .any(|l| l.starts_with("sd> Exit_Reason : ALL , ExitCount : "))
    );
    assert!(
        lines
            .iter()
            .any(|l| l.starts_with("sd> Exit_Reason : ALL , Time_Taken : "))
    );
    assert!(
        lines
            .iter()
            .any(|l| l.starts_with("sd> Exit_Reason : 30 , ExitCount : "))
    );
    assert!(
        lines
            .iter()
            .any(|l| l.starts_with("sd> Exit_Reason : 30 , Time_Taken : "))
    );
    assert_eq!(
        logged("Exit_Reason : 4294967295 , ExitCount : 0"),
        1,
        "{run:#?}"
    );
    let silent = profile("leaves", &[]).expect_status(0);
    assert!(!silent.stderr.contains("sd> "));
}

#[test]
fn the_hypercall_at_a_gate() {
    needs_kvm!("the_hypercall_at_a_gate");
    let run = profile("hypercall", &[]).expect_status(0);
    assert_eq!(run.profile().gates.hypercalls, 6);
}

#[test]
fn a_stray_hypercall_does_not_hang() {
    needs_kvm!("a_stray_hypercall_does_not_hang");
    profile("hypercall", &["--cmdline", "1", "--timeout", "10s"]).expect_status(0);
}

#[test]
fn single_steps_of_the_guest_reach_it() {
    needs_kvm!("single_steps_of_the_guest_reach_it");
    profile("debug", &["--cmdline", "1", "--timeout", "10s"]).expect_status(0);
}

#[test]
fn single_steps_over_a_gate_reach_it_too() {
    needs_kvm!("single_steps_over_a_gate_reach_it_too");
    profile("debug", &["--cmdline", "4", "--timeout", "10s"]).expect_status(0);
}

#[test]
fn icebp_reaches_the_guest() {
    match kvm() {
        None => skip("icebp_reaches_the_guest", "no usable /dev/kvm"),
        Some(KvmKind::Software) => {
            skip(
                "icebp_reaches_the_guest",
                "software KVM cannot emulate ICEBP",
            );
        }
        Some(_) => {
            profile("debug", &["--cmdline", "2", "--timeout", "10s"]).expect_status(0);
        }
    }
}

#[test]
fn breakpoints_of_the_guest_are_masked() {
    let name = "breakpoints_of_the_guest_are_masked";
    match kvm() {
        None => skip(name, "no usable /dev/kvm"),
        Some(KvmKind::Software) => {
            // They still reach it there, which does no harm.
            profile("debug", &["--cmdline", "3", "--timeout", "10s"]).expect_status(40);
        }
        Some(_) => {
            profile("debug", &["--cmdline", "3", "--timeout", "10s"]).expect_status(0);
        }
    }
}

#[test]
fn two_cpus_register_at_once() {
    needs_kvm!("two_cpus_register_at_once");
    for _ in 0..5 {
        let run = profile("smp_gates", &["--cpus", "2", "--timeout", "20s"]).expect_status(0);
        let profile = run.profile();
        assert_eq!(profile.gates.queries, 2 * 30 * 2);
        assert_eq!(profile.vcpus.len(), 2);
        for vcpu in &profile.vcpus {
            let own: u64 = vcpu
                .reasons
                .iter()
                .filter(|r| r.reason == 0)
                .map(|r| r.own)
                .sum();
            assert_eq!(own, 60, "each CPU asked at its own gates: {run:#?}");
        }
    }
}

#[test]
fn mov_dr_is_booked_by_who_made_it_exit() {
    needs_ledger!("mov_dr_is_booked_by_who_made_it_exit");
    const WRITES: u64 = 100;
    for cpus in [1, 2_u32] {
        let number = cpus.to_string();
        let args = ["--cpus", &number, "--cmdline", &number, "--timeout", "30s"];
        let run = profile("debug_registers", &args).expect_status(0);
        let profile = run.profile();
        let mut before = (0, 0);
        let mut exits_before = 0;
        for milestone in &profile.milestones[1..] {
            let dr = milestone.accounts.reason(29);
            let now = dr.map_or((0, 0), |r| (r.exits, r.own));
            let (exits, own) = (now.0 - before.0, now.1 - before.1);
            // KVM lets MOV DR go after the first, until something else exits.
            let others = milestone.accounts.total - exits_before - exits;
            match milestone.name.as_str() {
                "armed" => assert_eq!((exits, own), (WRITES, WRITES), "{run:#?}"),
                _ => assert!(
                    own == 0 && (1..=others + 1).contains(&exits),
                    "{}: {exits} exits, {own} own, {others} others",
                    milestone.name
                ),
            }
            (before, exits_before) = (now, milestone.accounts.total);
        }
        let names: Vec<&str> = profile.milestones.iter().map(|m| m.name.as_str()).collect();
        let each = ["before", "armed", "after"];
        let expected: Vec<&str> = (0..cpus).flat_map(|_| each).collect();
        assert_eq!(names[1..], expected);
        for vcpu in &profile.vcpus {
            let dr = vcpu.reason(29).map(|r| r.own);
            assert_eq!(dr, Some(WRITES), "each CPU has its own");
        }
    }
}

#[test]
fn that_breakpoints_are_masked_is_reported() {
    needs_kvm!("that_breakpoints_are_masked_is_reported");
    let kernel = guest("gates");
    let shown = run(&["profile", "--kernel", arg(&kernel), "--timeout", "20s"]).expect_status(0);
    // It may be wrapped.
    let line = shown
        .stdout
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    assert!(line.contains("at most 4 of 4 armed"), "{line}");
    let masked = line.contains("masking the guest's own hardware breakpoints");
    assert_eq!(masked, kvm() != Some(KvmKind::Software), "{line}");
    // A guest without gates has nothing masked.
    let kernel = guest("ends");
    let none = run(&["profile", "--kernel", arg(&kernel)]).expect_status(0);
    assert!(!none.stdout.contains("masking"), "{}", none.stdout);
}

#[test]
fn foreign_debug_exceptions_are_counted_and_given_back() {
    needs_kvm!("foreign_debug_exceptions_are_counted_and_given_back");
    for (part, gates) in [("1", 1), ("4", 2)] {
        let run = profile("debug", &["--cmdline", part, "--timeout", "10s"]).expect_status(0);
        let profile = run.profile();
        // That they arrive the guest has checked itself.
        assert_eq!(profile.gates.armed, gates, "{:?}", profile.gates);
        let (all, own) = exits(&profile, 0);
        assert_eq!(all - own, profile.gates.foreign, "{run:#?}");
    }
}
