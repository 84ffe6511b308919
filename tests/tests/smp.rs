//! Several CPUs: milestones and ledgers of each, and what a hostile guest does with start-up IPIs.

use std::collections::BTreeSet;

use black_box::accounts::{KERNEL, has_ledger};
use black_box::{kvm, lab, needs_kvm, profile, skip};
use exitvisor::profile::figures::KVM_RUN;
use exitvisor::profile::{Accounts, EndKind, KvmKind, Profile};
use exitvisor::status::{TIMEOUT, TRIPLE_FAULT};

/// The vCPUs' ledgers add up to the total: every reason, every figure that is a sum.
#[track_caller]
fn adds_up(total: &Accounts, vcpus: &[Accounts]) {
    let sum = |of: &dyn Fn(&Accounts) -> u64| vcpus.iter().map(of).sum::<u64>();
    assert_eq!(sum(&|v| v.total), total.total);
    assert_eq!(sum(&|v| v.other), total.other);
    let reasons: BTreeSet<u8> = vcpus
        .iter()
        .flat_map(|v| v.reasons.iter().map(|r| r.reason))
        .collect();
    let in_total: Vec<u8> = total.reasons.iter().map(|r| r.reason).collect();
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), in_total);
    for r in &total.reasons {
        let of = |of: fn(&exitvisor::profile::ReasonAccount) -> u64| {
            sum(&|v: &Accounts| v.reason(r.reason).map_or(0, of))
        };
        let sums = [
            of(|r| r.exits),
            of(|r| r.own),
            of(|r| r.timed),
            of(|r| r.own_timed),
            of(|r| r.cycles),
            of(|r| r.own_cycles),
        ];
        let expected = [r.exits, r.own, r.timed, r.own_timed, r.cycles, r.own_cycles];
        assert_eq!(sums, expected, "reason {}", r.reason);
    }
}

#[track_caller]
fn consistent(profile: &Profile) {
    adds_up(&profile.total, &profile.vcpus);
    let totals = profile.milestones.iter().map(|m| m.accounts.total);
    assert!(
        totals.is_sorted(),
        "milestones in the order of their counts"
    );
    assert!(profile.milestones.iter().map(|m| m.tsc).is_sorted());
}

#[test]
fn every_cpu_has_milestones_and_a_ledger_of_its_own() {
    needs_kvm!("every_cpu_has_milestones_and_a_ledger_of_its_own");
    for cpus in [1_u32, 2, 4] {
        let number = cpus.to_string();
        let args = ["--cpus", &number, "--cmdline", &number, "--timeout", "20s"];
        let run = profile("smp_milestones", &args).expect_status(0);
        let profile = run.profile();
        consistent(&profile);
        assert_eq!(profile.vcpus.len() as u32, cpus);
        assert_eq!(profile.gates.queries, u64::from(cpus) * 20);
        for cpu in 0..cpus {
            let of_it = profile.milestones.iter().filter(|m| m.vcpu == cpu);
            let names: Vec<&str> = of_it.map(|m| m.name.as_str()).collect();
            let reset = (cpu == 0).then_some("reset");
            let expected = [&format!("CPU {cpu}"), "SMP"];
            let expected: Vec<&str> = reset.into_iter().chain(expected).collect();
            assert_eq!(names, expected);
            let ledger = &profile.vcpus[cpu as usize];
            let debug = ledger.reason(0).map_or((0, 0), |r| (r.exits, r.own));
            assert_eq!(debug, (20, 20), "the queries of CPU {cpu}");
            // Two milestones and the five letters of a name; CPU 0 works on and ends the run.
            let io = ledger.reason(30).map_or((0, 0), |r| (r.exits, r.own));
            let expected = if cpu == 0 { (508, 8) } else { (7, 7) };
            assert_eq!(io, expected, "the port accesses of CPU {cpu}");
            let source = ledger.reason(30).map(|r| r.source.as_str());
            let expected = if has_ledger(&profile) {
                KERNEL
            } else {
                KVM_RUN
            };
            assert_eq!(source, Some(expected));
        }
    }
}

#[test]
fn the_report_says_which_cpu() {
    needs_kvm!("the_report_says_which_cpu");
    let args = ["--cpus", "2", "--cmdline", "2", "--timeout", "20s"];
    let kernel = black_box::guest("smp_milestones");
    let args = [&["profile", "--kernel", black_box::arg(&kernel)], &args[..]].concat();
    let run = black_box::run(&args).expect_status(0);
    for part in ["SMP (vCPU 0)", "SMP (vCPU 1)", "CPU 1 (vCPU 1)", "\nvCPU "] {
        assert!(run.stdout.contains(part), "{part}: {}", run.stdout);
    }
}

#[test]
fn cpus_that_never_start() {
    needs_kvm!("cpus_that_never_start");
    let args = ["--cpus", "4", "--cmdline", "7", "--timeout", "20s"];
    let profile = profile("ends", &args).expect_status(7).profile();
    consistent(&profile);
    for vcpu in &profile.vcpus[1..] {
        assert!(vcpu.reasons.is_empty(), "{vcpu:?}");
    }
}

#[test]
fn a_cpu_that_is_not_there() {
    needs_kvm!("a_cpu_that_is_not_there");
    let args = ["--cpus", "1", "--cmdline", "1", "--timeout", "500ms"];
    let profile = profile("init_storm", &args)
        .expect_status(TIMEOUT)
        .profile();
    assert!(profile.end.detail.contains("vCPU 0 was running"));
}

#[test]
fn a_secondary_that_faults_is_named() {
    needs_kvm!("a_secondary_that_faults_is_named");
    for (cpus, named) in [("2", "vCPU 1"), ("4", "vCPU 3")] {
        let args = ["--cpus", cpus, "--cmdline", cpus, "--timeout", "20s"];
        let run = profile("second_faults", &args).expect_status(TRIPLE_FAULT);
        let profile = run.profile();
        assert_eq!(profile.end.kind, EndKind::TripleFault);
        assert_eq!(profile.end.detail, format!("triple fault on {named}"));
        consistent(&profile);
    }
}

#[test]
fn a_storm_of_start_up_ipis() {
    needs_kvm!("a_storm_of_start_up_ipis");
    // The gate answers on the CPU that was struck by it.
    let many = if lab().is_some() { "3000" } else { "100000" };
    let args = ["--cpus", "2", "--cmdline", many, "--timeout", "50s"];
    let profile = profile("init_storm", &args).expect_status(0).profile();
    consistent(&profile);
    assert_eq!(profile.gates.queries, 1);
}

#[test]
fn storms_end_when_they_must() {
    needs_kvm!("storms_end_when_they_must");
    let args = [
        "--cpus",
        "4",
        "--cmdline",
        "4000000000",
        "--timeout",
        "500ms",
    ];
    let run = profile("init_storm", &args).expect_status(TIMEOUT);
    assert!(run.took.as_secs() < 4, "{:?}", run.took);
    consistent(&run.profile());
}

#[test]
fn cpuid_says_what_there_is() {
    needs_kvm!("cpuid_says_what_there_is");
    if kvm() == Some(KvmKind::Software) {
        let why = "software KVM answers leaf 1 with HTT and MTRR, whatever it is told";
        return skip("cpuid_says_what_there_is", why);
    }
    for cpus in ["1", "2", "3"] {
        let options = ["--cpus", cpus, "--cmdline", cpus, "--timeout", "30s"];
        black_box::profile("topology", &options).expect_status(0);
    }
}
