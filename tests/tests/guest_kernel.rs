//! The guest kernel: milestones, exit log, workloads with their exact deltas.

use black_box::{needs_kvm, profile, skip};
use exitvisor::profile::{Milestone, Profile};

/// The guest's exits of a reason at a milestone.
fn exits_at(milestone: &Milestone, reason: u8) -> u64 {
    let account = milestone
        .accounts
        .reasons
        .iter()
        .find(|r| r.reason == reason);
    account.map_or(0, |r| r.exits - r.own)
}

/// How many exits of a reason the guest caused between two milestones.
fn between(profile: &Profile, from: &str, to: &str, reason: u8) -> u64 {
    let find = |name| profile.milestones.iter().find(|m| m.name == name);
    match (find(from), find(to)) {
        (Some(from), Some(to)) => exits_at(to, reason) - exits_at(from, reason),
        _ => panic!("no milestone {from} or {to}: {:?}", profile.milestones),
    }
}

#[test]
fn milestones_are_complete_and_in_order() {
    needs_kvm!("milestones_are_complete_and_in_order");
    let profile = profile("guest-kernel", &[]).expect_status(0).profile();
    let names: Vec<&str> = profile.milestones.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "reset",
            "kernel entry",
            "paging",
            "exceptions",
            "interrupts",
            "done"
        ]
    );
    for pair in profile.milestones.windows(2) {
        assert!(pair[0].tsc <= pair[1].tsc && pair[0].nanos <= pair[1].nanos);
        assert!(pair[0].accounts.total <= pair[1].accounts.total);
    }
    assert_eq!(profile.total.excess, 0);
    assert_eq!(profile.total.other, 0);
}

#[test]
fn few_exits_reach_userspace_besides_the_logs_own() {
    needs_kvm!("few_exits_reach_userspace_besides_the_logs_own");
    let profile = profile("guest-kernel", &[]).expect_status(0).profile();
    let run = |r: &&exitvisor::profile::ReasonAccount| r.source == "KVM_RUN";
    let guests: u64 = profile
        .total
        .reasons
        .iter()
        .filter(run)
        .map(|r| r.exits - r.own)
        .sum();
    assert_eq!(
        guests, 0,
        "all of a default boot's returns are the profiler's own"
    );
}

#[test]
fn workloads_cost_exactly_what_they_say() {
    needs_kvm!("workloads_cost_exactly_what_they_say");
    let args = [
        "--cmdline",
        "workload=cpuid:1000,pio:500,mmio:100,hlt:20",
        "--timeout",
        "30s",
    ];
    let run = profile("guest-kernel", &args).expect_status(0);
    let profile = run.profile();
    let grown = |reason| between(&profile, "interrupts", "workload", reason);
    assert_eq!(grown(30), 500, "port writes, and nothing else: {run:#?}");
    // One more: the first touch, which in hardware is an EPT violation.
    assert_eq!(grown(49), 100 + 1);
    assert_eq!(grown(12), 20, "halts, as KVM's statistics count them");
    let cpuid = profile
        .reasons
        .iter()
        .find(|r| r.reason == 10)
        .is_some_and(|r| r.exact);
    assert!(
        !cpuid && grown(10) == 0,
        "CPUID is answered in the kernel: not visible yet"
    );
    for line in ["pio", "mmio", "hlt", "cpuid"] {
        assert!(run.stderr.contains(line), "{run:#?}");
    }
}

#[test]
fn a_workload_can_be_large() {
    needs_kvm!("a_workload_can_be_large");
    let args = [
        "--cmdline",
        "workload=pio:20000 log=off",
        "--timeout",
        "30s",
    ];
    let profile = profile("guest-kernel", &args).expect_status(0).profile();
    assert_eq!(between(&profile, "interrupts", "workload", 30), 20_000);
}

#[test]
fn the_exit_log_prints_the_classic_line() {
    needs_kvm!("the_exit_log_prints_the_classic_line");
    for (layout, leaf) in [("classic", "0x4FFFFFFF"), ("reversed", "0x4FFFFFFC")] {
        let run = profile("guest-kernel", &["--leaves", layout]).expect_status(0);
        let classic: Vec<&str> = run
            .stderr
            .lines()
            .filter(|l| l.contains(&format!("CPUID({leaf}), exits= ")))
            .collect();
        assert_eq!(classic.len(), 5, "one per milestone: {run:#?}");
        assert!(
            classic
                .iter()
                .all(|l| l.contains(", cycles spent in exit= "))
        );
    }
}

#[test]
fn the_log_agrees_with_the_profile() {
    needs_kvm!("the_log_agrees_with_the_profile");
    let run = profile("guest-kernel", &[]).expect_status(0);
    let profile = run.profile();
    // The log asks right after each milestone: what it reads lies between this snapshot and the
    // next.
    let logged: Vec<u64> = run
        .stderr
        .lines()
        .filter_map(|l| l.split("exits= ").nth(1)?.split(',').next()?.parse().ok())
        .collect();
    let totals: Vec<u64> = profile.milestones[1..]
        .iter()
        .map(|m| m.accounts.total)
        .chain([profile.total.total])
        .collect();
    assert_eq!(logged.len() + 1, totals.len());
    for (pair, logged) in totals.windows(2).zip(&logged) {
        assert!(
            pair[0] <= *logged && *logged <= pair[1],
            "{logged} is not within {pair:?}"
        );
    }
}

#[test]
fn queries_repeat_with_differences() {
    needs_kvm!("queries_repeat_with_differences");
    let run = profile("guest-kernel", &["--cmdline", "queries=5"]).expect_status(0);
    let queries = run.profile().gates.queries;
    let plain = profile("guest-kernel", &[])
        .expect_status(0)
        .profile()
        .gates
        .queries;
    assert!(queries >= plain + 5, "{run:#?}");
    assert!(run.stderr.contains("query 5"), "{run:#?}");
}

#[test]
fn printing_at_each_milestone_costs_only_own_exits() {
    needs_kvm!("printing_at_each_milestone_costs_only_own_exits");
    let at_end = profile("guest-kernel", &[]).expect_status(0).profile();
    let each = profile("guest-kernel", &["--cmdline", "log=each"])
        .expect_status(0)
        .profile();
    let guests = |p: &Profile| exits_at(&p.milestones[p.milestones.len() - 1], 30);
    assert_eq!(guests(&at_end), guests(&each));
}

#[test]
fn the_gate_registered_by_port() {
    needs_kvm!("the_gate_registered_by_port");
    profile("guest-kernel", &["--cmdline", "gate=port"]).expect_status(0);
}

#[test]
fn the_hypercall() {
    needs_kvm!("the_hypercall");
    let run = profile("guest-kernel", &["--cmdline", "hypercall"]).expect_status(0);
    let run = run.expect_stderr(&["CMPE283", "-1000"]);
    assert!(run.profile().gates.hypercalls >= 2);
}

#[test]
fn its_own_exit_status_and_its_crash() {
    needs_kvm!("its_own_exit_status_and_its_crash");
    profile("guest-kernel", &["--cmdline", "exit=42"]).expect_status(42);
    let crash = profile("guest-kernel", &["--cmdline", "crash=panic"]).expect_status(82);
    assert!(crash.profile().end.cut_short);
    profile("guest-kernel", &["--cmdline", "crash=stack"]).expect_status(82);
    profile("guest-kernel", &["--cmdline", "workload=nonsense:3"]).expect_status(3);
}

#[test]
fn many_memory_sizes() {
    needs_kvm!("many_memory_sizes");
    let host = exitvisor::memory::host_total().unwrap_or(u64::MAX);
    for (memory, mib) in [
        ("2M", 2),
        ("32M", 32),
        ("64M", 64),
        ("3G", 3072),
        ("5G", 5120),
    ] {
        if mib << 20 > host {
            skip(
                "many_memory_sizes",
                &format!("{memory} is more than this host has"),
            );
            continue;
        }
        profile("guest-kernel", &["--memory", memory]).expect_status(0);
    }
}

#[test]
fn runs_repeat_in_what_does_not_depend_on_time() {
    needs_kvm!("runs_repeat_in_what_does_not_depend_on_time");
    let args = ["--cmdline", "workload=pio:50,mmio:20,hlt:5 queries=3"];
    let counts = || -> Vec<(String, u64, u64)> {
        let profile = profile("guest-kernel", &args).expect_status(0).profile();
        let count = |m: &Milestone| (m.name.clone(), exits_at(m, 30), exits_at(m, 49));
        profile.milestones.iter().map(count).collect()
    };
    let first = counts();
    for _ in 0..4 {
        assert_eq!(counts(), first);
    }
}
