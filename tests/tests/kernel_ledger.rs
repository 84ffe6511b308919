//! The kernel ledger: exact counts of hardware's exits, by reason, by code and by what was asked for,
//! equal to KVM's own statistics (every profile here is checked for that) and to an independent
//! witness, to the last exit.
// A harness may stop a test by panicking: that is how tests fail.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::OnceLock;

use black_box::accounts::{self, FEW, TOUCH, grown, has_ledger, is_shadowed, level, touched};
use black_box::witness::witnessed;
use black_box::{Run, arg, command, guest, lab, needs_ledger, skip, witness};
use exitvisor::profile::{AskKind, EndKind, KvmKind, Profile};

/// How often each workload is repeated.
const N: u64 = 1000;
/// HLTs take long.
const HALTS: u64 = 100;

/// A workload: its name, how often, and what else it costs besides that many of its reason.
struct Workload {
    kind: &'static str,
    count: u64,
    reason: u8,
    /// Per repetition.
    each: u64,
    /// (reason, exits) besides: getting ready.
    besides: &'static [(u8, u64)],
}

/// Every workload whose exits do not depend on how the host maps memory. What is besides is the same
/// with both vendors.
const WORKLOADS: &[Workload] = &[
    workload("cpuid", N, 10, 1, &[]),
    workload("pio", N, 30, 1, &[]),
    workload("pin", N, 30, 1, &[]),
    // The page's first touch.
    workload("mmio", N, 49, 1, &[(48, 1)]),
    // The value is read first.
    workload("rdmsr", N, 31, 1, &[(31, 1)]),
    workload("wrmsr", N, 32, 1, &[(31, 1)]),
    workload("cr", N, 28, 1, &[]),
    workload("wbinvd", N, 54, 1, &[]),
    // CPUID tells whether it is VMCALL or VMMCALL.
    workload("vmcall", N, 18, 1, &[(10, 1)]),
    workload("rdtsc", N, 16, 0, &[]),
    // CPUID tells whether there is XSAVE, CR4 enables it.
    workload("xsetbv", N, 55, 1, &[(10, 1), (28, 1)]),
    // One per byte, and one in which nothing is left to do.
    workload("outs", 50, 30, 17, &[]),
];

const fn workload(
    kind: &'static str,
    count: u64,
    reason: u8,
    each: u64,
    besides: &'static [(u8, u64)],
) -> Workload {
    Workload {
        kind,
        count,
        reason,
        each,
        besides,
    }
}

/// Those that exit here as the table says: where page tables are shadowed, MMIO is a page fault.
fn workloads() -> impl Iterator<Item = &'static Workload> {
    static SHADOWED: OnceLock<bool> = OnceLock::new();
    let shadowed = *SHADOWED.get_or_init(|| is_shadowed(&kernel("log=off", &[]).profile()));
    WORKLOADS
        .iter()
        .filter(move |w| w.reason != 49 || !shadowed)
}

impl Workload {
    fn word(&self) -> String {
        format!("{}:{}", self.kind, self.count)
    }

    /// What it adds to the guest's exits by reason.
    fn add_to(&self, expected: &mut BTreeMap<u8, u64>) {
        let own = (self.reason, self.count * self.each);
        for (reason, n) in [own].iter().chain(self.besides).filter(|(_, n)| *n > 0) {
            *expected.entry(*reason).or_default() += n;
        }
    }
}

/// The arguments for a boot of the guest kernel: JSON on standard output.
fn arguments(cmdline: &str, more: &[&str]) -> Vec<String> {
    let kernel = guest("guest-kernel");
    let fixed = ["profile", "--format", "json"];
    let kernel = ["--kernel", arg(&kernel), "--cmdline", cmdline];
    let all = fixed.iter().chain(&kernel).chain(more);
    all.map(|&a| a.to_owned()).collect()
}

#[track_caller]
fn kernel(cmdline: &str, more: &[&str]) -> Run {
    black_box::run(&arguments(cmdline, more)).expect_status(0)
}

/// What the guest kernel itself found of a workload, by the leaves.
#[track_caller]
fn verdict<'r>(run: &'r Run, kind: &str) -> &'r str {
    let start = format!("workload {kind}: ");
    let mut lines = run.stderr.lines().filter_map(|l| l.strip_prefix(&start));
    match (lines.next(), lines.next()) {
        (Some(line), None) => line,
        _ => panic!("not one line begins with {start:?}: {run:#?}"),
    }
}

#[track_caller]
fn check(run: &Run, workloads: impl Iterator<Item = &'static Workload>, what: &str) {
    let mut expected = BTreeMap::new();
    for w in workloads {
        w.add_to(&mut expected);
        let said = verdict(run, w.kind);
        let exact = match w.each {
            0 => "none exits on this KVM: no exits".to_owned(),
            n => format!("exactly {} exits of reason {}", w.count * n, w.reason),
        };
        assert!(said.contains(&exact), "{what}: {said}");
    }
    let profile = run.profile();
    let first_touches = expected.remove(&TOUCH).unwrap_or(0);
    assert_eq!(
        grown(&profile, "devices", "workload"),
        expected,
        "{what}: exits by reason: {}",
        run.stderr
    );
    let touched = touched(&profile, "devices", "workload");
    assert!(
        (first_touches..=first_touches + FEW).contains(&touched),
        "{what}: {touched}"
    );
    assert!(profile.reasons.iter().all(|r| r.exact), "{what}");
}

#[test]
fn each_workload_costs_exactly_what_it_says() {
    needs_ledger!("each_workload_costs_exactly_what_it_says");
    for w in workloads() {
        let run = kernel(&format!("workload={} log=off", w.word()), &[]);
        check(&run, std::iter::once(w), w.kind);
    }
}

#[test]
fn all_workloads_at_once_through_the_firmware() {
    needs_ledger!("all_workloads_at_once_through_the_firmware");
    let firmware = guest("firmware");
    let words: Vec<String> = workloads().map(Workload::word).collect();
    // Asking and printing at each step changes nothing: those exits are the profiler's own.
    for log in ["off", "each", "each exits=leaves"] {
        let cmdline = format!("workload={} log={log}", words.join(","));
        let run = kernel(&cmdline, &["--firmware", arg(&firmware)]);
        check(&run, workloads(), log);
        let profile = run.profile();
        assert_eq!(profile.machine.boot, "PVH via firmware");
        let firmware = accounts::of_guest(accounts::at(&profile, "kernel entry"));
        assert!(firmware.values().sum::<u64>() > 0, "{firmware:?}");
    }
}

#[test]
fn halts_are_counted_and_their_interrupts() {
    needs_ledger!("halts_are_counted_and_their_interrupts");
    let run = kernel(&format!("workload=hlt:{HALTS} log=off"), &[]);
    let said = verdict(&run, "hlt");
    let counted = said
        .strip_prefix("exactly ")
        .and_then(|s| s.split(' ').next());
    let halts: u64 = counted.and_then(|n| n.parse().ok()).unwrap_or(0);
    // What else than the timer woke it made it halt again.
    assert!((HALTS..2 * HALTS).contains(&halts), "{said}");
    let profile = run.profile();
    let mut grown = grown(&profile, "devices", "workload");
    assert_eq!(grown.remove(&12), Some(halts), "{said}");
    // Writes to the APIC: its timer is set once more, and then for each HLT it is armed and its
    // interrupt ended. With AMD's nested paging they are MMIO, with EPT they hit no memory.
    let apic = 2 * HALTS + 1;
    let touched = touched(&profile, "devices", "workload");
    match (lab().as_deref(), profile.host.paging.as_str()) {
        (Some("amd"), "nested") => {
            assert_eq!(grown, BTreeMap::from([(49, apic)]), "{said}");
            assert!(touched <= FEW, "{touched}");
        }
        (Some("intel"), "nested") => {
            assert_eq!(grown, BTreeMap::new(), "{said}");
            assert!((apic..=apic + FEW).contains(&touched), "{touched}");
        }
        // Shadowed page tables have their own, and an APIC that hardware virtualizes has none.
        _ => {}
    }
}

#[test]
fn mov_dr_is_the_profilers_while_a_gate_is_armed() {
    needs_ledger!("mov_dr_is_the_profilers_while_a_gate_is_armed");
    let run = kernel(&format!("workload=dr:{N} log=off"), &[]);
    let exact = format!("exactly {N} exits of reason 29");
    assert!(verdict(&run, "dr").contains(&exact), "{run:#?}");
    let profile = run.profile();
    // Without the gate at most the first would have exited.
    assert_eq!(grown(&profile, "devices", "workload"), BTreeMap::new());
    let dr = profile.total.reason(29).unwrap();
    assert_eq!((dr.exits, dr.own), (N, N));
}

#[test]
fn first_touches_are_at_most_one_per_page() {
    let name = "first_touches_are_at_most_one_per_page";
    needs_ledger!("first_touches_are_at_most_one_per_page");
    let count = |run: &Run| {
        let profile = run.profile();
        assert_eq!(grown(&profile, "devices", "workload"), BTreeMap::new());
        let said = verdict(run, "touch");
        let touched = touched(&profile, "devices", "workload");
        let counted = said
            .split(", ")
            .nth(1)
            .and_then(|s| s.split(' ').next()?.parse().ok());
        let counted: u64 = counted.unwrap_or(u64::MAX);
        // Others are those of the page tables that map what is touched.
        let most = counted + FEW;
        assert!((counted..=most).contains(&touched), "{said}: {touched}");
        counted
    };
    let run = || kernel(&format!("workload=touch:{N} log=off"), &[]);
    assert!((0..=N).contains(&count(&run())));
    if lab().is_none() {
        return skip(
            name,
            "how the host maps memory may be changed in a lab only",
        );
    }
    let large_pages = "/sys/kernel/mm/transparent_hugepage/enabled";
    let before = std::fs::read_to_string(large_pages).unwrap();
    let now = before.split(['[', ']']).nth(1).unwrap();
    std::fs::write(large_pages, "never").unwrap();
    let small = run();
    std::fs::write(large_pages, now).unwrap();
    // Where page tables are shadowed they are page faults, one per page all the same.
    let expected = if is_shadowed(&small.profile()) { 0 } else { N };
    assert_eq!(count(&small), expected, "one per page of 4 KiB");
}

#[test]
fn invlpg_exits_only_where_page_tables_are_shadowed() {
    needs_ledger!("invlpg_exits_only_where_page_tables_are_shadowed");
    let run = kernel(&format!("workload=invlpg:{N} log=off"), &[]);
    let profile = run.profile();
    let invlpg = grown(&profile, "devices", "workload").get(&14).copied();
    let expected = (profile.host.paging == "shadow").then_some(N);
    assert_eq!(invlpg, expected, "{}", profile.host.paging);
}

#[test]
fn codes_are_the_processors_own() {
    needs_ledger!("codes_are_the_processors_own");
    let mmio = if workloads().any(|w| w.kind == "mmio") {
        "mmio:1000,"
    } else {
        ""
    };
    let cmdline = format!("workload={mmio}rdmsr:{N},wrmsr:{N},cpuid:{N} log=off");
    let profile = kernel(&cmdline, &[]).profile();
    let code = |code: u64, reason: u8| {
        let is_it =
            |c: &&exitvisor::profile::CodeAccount| c.code == Some(code) && c.reason == Some(reason);
        profile
            .total
            .codes
            .iter()
            .find(is_it)
            .map_or(0, |c| c.exits)
    };
    // The boot has a few besides.
    let about = N..N + 20;
    match profile.host.kvm {
        KvmKind::Amd => {
            for (raw, reason) in [(0x72, 10), (0x7C, 31), (0x7C, 32)] {
                let exits = code(raw, reason);
                assert!(about.contains(&exits), "{raw:#x} as {reason}: {exits}");
            }
            if profile.host.paging == "nested" {
                assert!(about.contains(&code(0x400, 49)), "{:?}", profile.total);
                assert!(code(0x400, 48) > 0);
            }
        }
        KvmKind::Intel => {
            for (number, name) in [(10, "CPUID"), (31, "RDMSR"), (32, "WRMSR")] {
                assert!(about.contains(&code(number, number as u8)), "{name}");
                let named = profile.total.codes.iter().find(|c| c.name == name);
                assert_eq!(named.and_then(|c| c.code), Some(number), "the SDM's number");
            }
            let same = |c: &exitvisor::profile::CodeAccount| c.code == c.reason.map(u64::from);
            assert!(profile.total.codes.iter().all(same), "{:?}", profile.total);
        }
        other => panic!("{other:?} has no codes"),
    }
}

#[test]
fn msrs_and_ports_are_told_apart() {
    needs_ledger!("msrs_and_ports_are_told_apart");
    const APIC_BASE: u64 = 0x1B;
    const SCRATCH: u64 = exit_abi::port::SCRATCH as u64;
    let cmdline = "workload=rdmsr:300,wrmsr:200,pio:70,pin:50 log=off";
    let profile = kernel(cmdline, &[]).profile();
    let before = &accounts::at(&profile, "devices").asks;
    let asked = |kind, index| {
        let of = |asks: &[exitvisor::profile::Ask]| {
            let it = asks.iter().find(|a| (a.kind, a.index) == (kind, index));
            it.map_or(0, |a| a.count)
        };
        of(&accounts::at(&profile, "workload").asks) - of(before)
    };
    // Each of the two reads the value first.
    assert_eq!(asked(AskKind::MsrRead, APIC_BASE), 300 + 2);
    assert_eq!(asked(AskKind::MsrWrite, APIC_BASE), 200);
    assert_eq!(asked(AskKind::PortOut, SCRATCH), 70);
    assert_eq!(asked(AskKind::PortIn, SCRATCH), 50);
    assert_eq!(profile.total.asks_dropped, 0);
}

#[test]
fn levels_keep_what_they_say() {
    needs_ledger!("levels_keep_what_they_say");
    for wanted in ["counts", "cycles", "histogram"] {
        let cmdline = "workload=cpuid:500,pio:100 log=off";
        let profile = kernel(cmdline, &["--ledger", wanted]).profile();
        assert_eq!(level(&profile), Some(wanted));
        let cpuid = profile.total.reason(10).unwrap();
        assert!(cpuid.exits >= 500);
        let timed = match wanted {
            "counts" => 0,
            _ => cpuid.exits,
        };
        assert_eq!(cpuid.timed, timed, "{wanted}: {cpuid:?}");
        assert_eq!(cpuid.cycles > 0, timed > 0, "{wanted}: {cpuid:?}");
        if timed > 0 {
            assert!(cpuid.min > 0 && cpuid.min <= cpuid.max, "{cpuid:?}");
        }
        // That each agrees with what was timed is checked for every profile.
        assert_eq!(profile.histograms.is_empty(), wanted != "histogram");
    }
}

#[test]
fn without_the_ledger_the_rest_is_a_residual() {
    needs_ledger!("without_the_ledger_the_rest_is_a_residual");
    let run = kernel("workload=cpuid:500 log=off", &["--ledger", "off"]);
    let profile = run.profile();
    assert!(!has_ledger(&profile));
    assert!(profile.total.residual >= 500, "{:?}", profile.total);
    assert!(verdict(&run, "cpuid").contains("not visible"));
    // It was not wanted: nobody has to be told.
    assert!(!run.stderr.contains("kernel ledger"), "{run:#?}");
}

#[test]
fn every_boot_of_a_guest_that_resets_itself_is_closed() {
    needs_ledger!("every_boot_of_a_guest_that_resets_itself_is_closed");
    let more = ["--on-reset", "continue", "--ledger", "histogram"];
    let profile = kernel("reboot=3 log=off workload=cpuid:200", &more).profile();
    assert_eq!(profile.reboots.len(), 3);
    let first = grown(&profile, "devices", "workload");
    assert_eq!(first, BTreeMap::from([(10, 200)]));
    let mut profile = profile;
    for boot in std::mem::take(&mut profile.reboots) {
        profile.milestones = boot.milestones;
        assert_eq!(grown(&profile, "devices", "workload"), first);
    }
}

#[test]
fn a_guest_that_is_cut_short_has_closed_accounts() {
    needs_ledger!("a_guest_that_is_cut_short_has_closed_accounts");
    // It runs with interrupts on, so that it can be stopped on every host.
    let run = black_box::run(&arguments(
        "workload=cpuid:10000000 log=off",
        &["--timeout", "700ms"],
    ));
    let profile = run.expect_status(exitvisor::status::TIMEOUT).profile();
    assert_eq!(profile.end.kind, EndKind::Timeout);
    let cpuid = profile.total.reason(10).map_or(0, |r| r.exits);
    assert!(cpuid > 0, "{:?}", profile.total);
}

#[test]
fn runs_differ_only_in_what_time_drives() {
    needs_ledger!("runs_differ_only_in_what_time_drives");
    let cmdline = "workload=cpuid:50,pio:50,outs:3,rdmsr:9,cr:7,wbinvd:3 log=off";
    let counts = || {
        let profile = kernel(cmdline, &[]).profile();
        let steps = profile.milestones.windows(2).map(|pair| {
            let (from, to) = (&pair[0].name, &pair[1].name);
            let mut grown = grown(&profile, from, to);
            // How often the APIC's timer interrupts.
            let by_chance = [12, 49];
            grown.retain(|reason, _| !by_chance.contains(reason) || to == "workload");
            (to.clone(), grown)
        });
        steps.collect::<Vec<_>>()
    };
    let first = counts();
    for _ in 0..2 {
        assert_eq!(counts(), first);
    }
}

/// Runs with a witness, whose word on every code, MSR and port is compared with the profile's.
#[track_caller]
fn witnessed_run(arguments: &[String]) -> Profile {
    let (run, _) = witnessed(&mut command(arguments));
    run.expect_status(0).profile()
}

#[test]
fn the_witness_agrees_to_the_last_exit() {
    let name = "the_witness_agrees_to_the_last_exit";
    needs_ledger!("the_witness_agrees_to_the_last_exit");
    if witness(name).is_none() {
        return;
    }
    let words: Vec<String> = workloads().map(Workload::word).collect();
    let all = format!(
        "workload={},hlt:20,touch:50,dr:50,invlpg:50",
        words.join(",")
    );
    for log in ["off", "final exits=leaves", "final exits=page"] {
        let cmdline = format!("{all} log={log}");
        let profile = witnessed_run(&arguments(&cmdline, &[]));
        assert!(profile.total.total > 10 * N, "{:?}", profile.total);
    }
    let firmware = guest("firmware");
    let through = ["--firmware", arg(&firmware), "--ledger", "histogram"];
    witnessed_run(&arguments(&all, &through));
    witnessed_run(&arguments(&all, &["--ledger", "counts"]));
}

#[test]
fn the_witness_agrees_on_every_guest() {
    let name = "the_witness_agrees_on_every_guest";
    needs_ledger!("the_witness_agrees_on_every_guest");
    if witness(name).is_none() {
        return;
    }
    for (guest_name, more) in [
        ("gates", &[][..]),
        ("leaves", &["--cmdline", "2020", "--sdm", "2020"]),
        ("hypercall", &[]),
        ("debug", &["--cmdline", "1"]),
        ("debug", &["--cmdline", "4"]),
        ("milestones", &[]),
        ("ports", &[]),
    ] {
        let kernel = guest(guest_name);
        let fixed = ["profile", "--format", "json", "--kernel", arg(&kernel)];
        let all: Vec<&str> = fixed.iter().chain(more).copied().collect();
        let (run, _) = witnessed(&mut command(&all));
        assert!(run.profile().total.total > 0, "{guest_name}: {run:#?}");
    }
}

#[test]
fn the_report_says_that_all_exits_are_attributed() {
    needs_ledger!("the_report_says_that_all_exits_are_attributed");
    let kernel = guest("guest-kernel");
    let run = black_box::run(&["profile", "--kernel", arg(&kernel)]).expect_status(0);
    let line = run.stdout.lines().find(|l| l.starts_with("accounts"));
    let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
    // accounts   16,250 of 16,250 exits attributed · no residual …
    assert_eq!(words.get(1), words.get(3), "{line:?}");
    assert!(
        words.contains(&"attributed") && words.contains(&"no"),
        "{line:?}"
    );
}
