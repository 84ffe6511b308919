//! Software KVM, where no hardware exits: the events that KVM emulates are counted instead, exactly,
//! under the reasons that hardware would give; labelled, and in no sum of exits.
// A harness may stop a test by panicking: that is how tests fail.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use black_box::accounts::{KERNEL, at, grown};
use black_box::{Run, arg, guest, kvm, run, skip};
use exitvisor::profile::{AskKind, KvmKind, Profile, SourceInfo};

fn kernel(cmdline: &str, more: &[&str]) -> Run {
    let args = ["--timeout", "40s", "--cmdline", cmdline];
    black_box::profile("guest-kernel", &[&args[..], more].concat())
}

fn source(profile: &Profile) -> &SourceInfo {
    let mut sources = profile.sources.iter();
    // Without the rights for it, it has the ledger's name.
    let is_it = |s: &&SourceInfo| s.name == "emulated events" || s.name == KERNEL;
    sources.find(is_it).unwrap()
}

/// Whether events can be counted here.
fn can(name: &str) -> bool {
    let why = match kvm() {
        None => "no usable /dev/kvm".to_owned(),
        Some(KvmKind::Software) => {
            let profile = kernel("log=off", &[]).profile();
            if source(&profile).available {
                return true;
            }
            source(&profile).completeness.clone()
        }
        Some(_) => "this KVM has hardware's exits".to_owned(),
    };
    skip(name, &why);
    false
}

/// A workload, the reason of its events, how many there are of each; and what else there is.
type Workload = (&'static str, u8, u64, &'static [(u8, u64)]);

const WORKLOADS: [Workload; 7] = [
    ("cpuid", 10, 1, &[]),
    ("pio", 30, 1, &[]),
    ("pin", 30, 1, &[]),
    // The page's first touch.
    ("mmio", 49, 1, &[(49, 1)]),
    // The value is read first.
    ("rdmsr", 31, 1, &[(31, 1)]),
    ("wrmsr", 32, 1, &[(31, 1)]),
    // One per byte.
    ("outs", 30, 16, &[]),
];

#[test]
fn each_workload_is_that_many_events() {
    if !can("each_workload_is_that_many_events") {
        return;
    }
    const N: u64 = 1000;
    let firmware = guest("firmware");
    let through = ["--firmware", arg(&firmware)];
    for more in [&[][..], &through] {
        let mut all = BTreeMap::<u8, u64>::new();
        for (kind, reason, each, besides) in WORKLOADS {
            let mut expected = BTreeMap::from([(reason, N * each)]);
            for (reason, n) in besides {
                *expected.entry(*reason).or_default() += n;
            }
            for (reason, n) in &expected {
                *all.entry(*reason).or_default() += n;
            }
            if more.is_empty() {
                let run = kernel(&format!("workload={kind}:{N} log=off"), more).expect_status(0);
                assert_eq!(
                    grown(&run.profile(), "devices", "workload"),
                    expected,
                    "{kind}"
                );
            }
        }
        let words: Vec<String> = WORKLOADS.iter().map(|w| format!("{}:{N}", w.0)).collect();
        let run = kernel(&format!("workload={} log=off", words.join(",")), more).expect_status(0);
        assert_eq!(
            grown(&run.profile(), "devices", "workload"),
            all,
            "{more:?}"
        );
    }
}

#[test]
fn halts_cost_accesses_to_the_apic() {
    if !can("halts_cost_accesses_to_the_apic") {
        return;
    }
    let profile = kernel("workload=hlt:50 log=off", &[])
        .expect_status(0)
        .profile();
    // The timer is set once more; then for each HLT it is armed, and its interrupt ended.
    assert_eq!(
        grown(&profile, "devices", "workload"),
        BTreeMap::from([(49, 2 * 50 + 1)])
    );
    // The HLTs themselves are in KVM's statistics, as exits.
    let halts = |name| at(&profile, name).reason(12).map_or(0, |r| r.exits);
    assert_eq!(halts("workload") - halts("devices"), 50);
}

#[test]
fn what_is_asked_for_is_told() {
    if !can("what_is_asked_for_is_told") {
        return;
    }
    let cmdline = "workload=cpuid:300,rdmsr:200,wrmsr:100,pio:70,pin:50 log=off";
    let profile = kernel(cmdline, &[]).expect_status(0).profile();
    let asked = |kind, index| {
        let asks = profile.total.asks.iter();
        let it = asks.filter(|a| (a.kind, a.index) == (kind, index));
        it.map(|a| a.count).sum::<u64>()
    };
    let scratch = u64::from(exit_abi::port::SCRATCH);
    assert_eq!(asked(AskKind::Cpuid, 0), 300);
    assert_eq!(asked(AskKind::MsrRead, 0x1B), 200 + 2);
    assert_eq!(asked(AskKind::MsrWrite, 0x1B), 100);
    assert_eq!(asked(AskKind::PortOut, scratch), 70);
    assert_eq!(asked(AskKind::PortIn, scratch), 50);
}

#[test]
fn events_are_labelled_and_in_no_sum() {
    if !can("events_are_labelled_and_in_no_sum") {
        return;
    }
    let cmdline = "workload=cpuid:5000 log=off";
    let profile = kernel(cmdline, &[]).expect_status(0).profile();
    assert!(
        source(&profile).completeness.starts_with("no exits"),
        "{:?}",
        source(&profile)
    );
    let events = profile
        .total
        .emulated
        .iter()
        .find(|e| e.reason == 10)
        .unwrap();
    assert!(events.events >= 5000);
    assert!(profile.total.reason(10).is_none(), "{:?}", profile.total);
    assert!(profile.total.total < 5000, "{:?}", profile.total);
    let exits: u64 = profile.total.reasons.iter().map(|r| r.exits).sum();
    let residual = profile.total.residual + profile.total.own_residual;
    let sum = exits + profile.total.other + residual;
    assert_eq!(sum, profile.total.total + profile.total.excess);
    let cpuid = profile.reasons.iter().find(|r| r.reason == 10).unwrap();
    assert!(!cpuid.exact, "no exit can be counted here");

    let kernel = guest("guest-kernel");
    let shown = run(&["profile", "--kernel", arg(&kernel), "--cmdline", cmdline]);
    let shown = shown.expect_status(0).stdout;
    assert!(
        shown.contains("emulated events, not hardware exits"),
        "{shown}"
    );
}

#[test]
fn two_vms_count_their_own_events() {
    if !can("two_vms_count_their_own_events") {
        return;
    }
    let start = |cmdline: &str| {
        let kernel = guest("guest-kernel");
        let args = ["profile", "--format", "json", "--kernel", arg(&kernel)];
        let more = ["--cmdline", cmdline, "--cpus", "2"];
        black_box::start(&[&args[..], &more].concat())
    };
    let vms = [
        "workload=cpuid:900 log=off",
        "workload=pio:800,rdmsr:700 log=off",
    ]
    .map(start);
    let [one, other] = vms.map(|vm| black_box::finish(vm).expect_status(0).profile());
    assert_eq!(
        grown(&one, "devices", "workload"),
        BTreeMap::from([(10, 900)])
    );
    let expected = BTreeMap::from([(30, 800), (31, 701)]);
    assert_eq!(grown(&other, "devices", "workload"), expected);
}
