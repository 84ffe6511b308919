//! The guest kernel: milestones, exit log, workloads with their exact deltas.

use black_box::accounts::{FEW, has_ledger};
use black_box::{Run, host_has, kvm, needs_kvm, no_ledger, profile, run, skip};
use exitvisor::profile::{KvmKind, Milestone, Profile};

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

/// The milestones of a default boot.
const MILESTONES: [&str; 9] = [
    "reset",
    "kernel entry",
    "paging",
    "memory",
    "exceptions",
    "interrupts",
    "SMP",
    "devices",
    "done",
];

fn names(profile: &Profile) -> Vec<&str> {
    profile.milestones.iter().map(|m| m.name.as_str()).collect()
}

/// Profiles the kernel with this command line, for a while at most.
#[track_caller]
fn kernel(cmdline: &str, args: &[&str]) -> Run {
    let ours = ["--timeout", "40s", "--cmdline", cmdline];
    profile("guest-kernel", &[&ours, args].concat())
}

/// The one line of the console that begins so.
#[track_caller]
fn line<'r>(run: &'r Run, start: &str) -> &'r str {
    let mut lines = run.stderr.lines().filter(|l| l.starts_with(start));
    match (lines.next(), lines.next()) {
        (Some(line), None) => line,
        _ => panic!("not one line begins with {start:?}: {run:#?}"),
    }
}

#[test]
fn milestones_are_complete_and_in_order() {
    needs_kvm!("milestones_are_complete_and_in_order");
    let profile = profile("guest-kernel", &[]).expect_status(0).profile();
    assert_eq!(names(&profile), MILESTONES);
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
    let run = profile("guest-kernel", &[]).expect_status(0);
    let total = run.profile().total;
    let seen = total.reasons.iter().filter(|r| r.source == "KVM_RUN");
    let guests: u64 = seen.map(|r| r.exits - r.own).sum();
    // All of a default boot's returns are the profiler's own.
    assert_eq!(guests, 0, "{total:#?} {}", run.stderr);
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
    let grown = |reason| between(&profile, "devices", "workload", reason);
    assert_eq!(grown(30), 500, "port writes, and nothing else: {run:#?}");
    // One more: the first touch, which in hardware is an EPT violation. The ledger tells these
    // apart, and sees what the HLTs cost in accesses to the APIC: other tests look into that.
    let ledger = has_ledger(&profile);
    assert!(ledger || grown(49) == 100 + 1);
    let halts = grown(12);
    assert!(
        halts == 20 || ledger && halts > 20,
        "halts, as KVM counts them"
    );
    let cpuid = profile
        .reasons
        .iter()
        .find(|r| r.reason == 10)
        .is_some_and(|r| r.exact);
    assert_eq!(cpuid, ledger);
    let visible = if ledger { 1000 } else { 0 };
    assert_eq!(grown(10), visible, "CPUID is answered in the kernel");
    for line in ["pio", "mmio", "hlt", "cpuid"] {
        assert!(run.stderr.contains(line), "{run:#?}");
    }
}

/// Workloads whose exits no KVM leaves to the VMM: what the kernel says of them, and what the
/// profile must show where its source is exact.
#[test]
fn workloads_that_the_kernel_side_sees() {
    needs_kvm!("workloads_that_the_kernel_side_sees");
    const N: u64 = 30;
    for (kind, reason, exits) in [
        ("rdmsr", 31, [N + 1, N + 1]), // the value is read once before
        ("wrmsr", 32, [N, N]),
        ("cr", 28, [N, N]),
        ("dr", 29, [0, 0]), // the profiler's own: a gate is armed
        ("wbinvd", 54, [N, N]),
        ("invlpg", 14, [0, N]), // all of them where KVM shadows page tables
        ("rdtsc", 16, [0, 0]),
        // Fewer where the host maps large pages; more, for page tables, where it maps small ones.
        ("touch", 48, [0, N + FEW]),
    ] {
        let run = kernel(&format!("workload={kind}:{N} log=off"), &[]).expect_status(0);
        let profile = run.profile();
        let grown = between(&profile, "devices", "workload", reason);
        let said = line(&run, &format!("workload {kind}: "));
        let exact = profile
            .reasons
            .iter()
            .any(|r| r.reason == reason && r.exact);
        if exact {
            assert!(exits[0] <= grown && grown <= exits[1], "{kind}: {grown}");
            continue;
        }
        assert!(grown <= exits[1], "{kind}: {grown}");
        if kvm() == Some(KvmKind::Software) {
            // Two have a reason that KVM counts elsewhere; the rest cannot exit here.
            let visible = ["rdmsr", "wrmsr", "touch"].contains(&kind);
            let expected = if visible { "not visible" } else { "none exits" };
            assert!(said.contains(expected), "{said}");
            assert_eq!(grown, 0, "{kind}");
        }
    }
}

#[test]
fn a_string_is_one_exit_or_about_one_for_each_byte() {
    needs_kvm!("a_string_is_one_exit_or_about_one_for_each_byte");
    let run = kernel("workload=outs:25 log=off", &[]).expect_status(0);
    let grown = between(&run.profile(), "devices", "workload", 30);
    assert!([25, 25 * 16, 25 * 17].contains(&grown), "{grown}");
    if kvm() == Some(KvmKind::Software) {
        assert_eq!(grown, 25 * 16, "interpreted byte by byte");
    }
    let said = line(&run, "workload outs: ");
    let parts = ["25 done of 16 bytes", &format!("exactly {grown} exits")];
    assert!(parts.iter().all(|p| said.contains(p)), "{said}");
}

#[test]
fn what_software_kvm_cannot_do_is_refused_by_name() {
    needs_kvm!("what_software_kvm_cannot_do_is_refused_by_name");
    let run = kernel("workload=vmcall:3,pio:7,xsetbv:3 log=off", &[]);
    let grown = between(&run.profile(), "devices", "workload", 30);
    assert_eq!(grown, 7, "the others run");
    if kvm() == Some(KvmKind::Software) {
        let run = run.expect_status(9);
        for kind in ["vmcall", "xsetbv"] {
            line(
                &run,
                &format!("REFUSED workload {kind}: this KVM interprets"),
            );
        }
    } else if run.status != 9 {
        // Only a CPU without XSAVE may refuse here.
        let run = run.expect_status(0);
        line(&run, "workload vmcall: ");
        line(&run, "workload xsetbv: ");
    }
}

#[test]
fn fresh_pages_run_out() {
    needs_kvm!("fresh_pages_run_out");
    let args = ["--memory", "32M"];
    // 8 MiB belong to the kernel and its heap; a module may take a large page more.
    kernel("workload=touch:5000 log=off", &args).expect_status(0);
    let run = kernel("workload=touch:5000,touch:5000 log=off", &args).expect_status(9);
    line(&run, "workload touch: 5000 done");
    line(&run, "REFUSED workload touch: not so many");
}

#[test]
fn memory_above_4_gib_is_mapped_when_it_is_wanted() {
    let name = "memory_above_4_gib_is_mapped_when_it_is_wanted";
    needs_kvm!("memory_above_4_gib_is_mapped_when_it_is_wanted");
    if !host_has(name, 5120) {
        return;
    }
    for memory in ["3G", "5G"] {
        // Two large pages and a bit, from the top.
        let run = kernel("workload=touch:1100 log=off", &["--memory", memory]);
        line(&run.expect_status(0), "workload touch: 1100 done");
    }
}

/// Which vCPU reached SMP, in order.
fn smp(profile: &Profile) -> Vec<u32> {
    let smp = profile.milestones.iter().filter(|m| m.name == "SMP");
    smp.map(|m| m.vcpu).collect()
}

#[test]
fn every_cpu_comes_up_and_asks() {
    needs_kvm!("every_cpu_comes_up_and_asks");
    for layout in ["classic", "reversed"] {
        for cpus in [1, 2, 4_u32] {
            let number = cpus.to_string();
            let args = ["--cpus", &number, "--leaves", layout];
            let run = kernel(&format!("cpus={cpus} log=each exits=leaves"), &args).expect_status(0);
            let order: Vec<u32> = (1..cpus).chain([0]).collect();
            assert_eq!(
                smp(&run.profile()),
                order,
                "the first CPU waits for the others"
            );
            let asked = |cpu| {
                let said = line(
                    &run,
                    &format!("[exit-log] SMP          CPU {cpu} asked 4 times"),
                );
                let (_, counts) = said.split_once("exits= ")?;
                let (first, last) = counts.split_once(" to ")?;
                Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?))
            };
            let mut before = 0;
            for cpu in 1..cpus {
                let Some((first, last)) = asked(cpu) else {
                    panic!("no counts of CPU {cpu}: {run:#?}");
                };
                assert!(before < first && first + 3 <= last, "{first} to {last}");
                before = last;
            }
            assert_eq!(run.stderr.matches(" asked ").count(), cpus as usize - 1);
        }
    }
}

#[test]
fn a_silent_log_starts_cpus_that_ask_nothing() {
    needs_kvm!("a_silent_log_starts_cpus_that_ask_nothing");
    let run = kernel("cpus=3 log=off", &["--cpus", "3"]).expect_status(0);
    assert_eq!(smp(&run.profile()), [1, 2, 0]);
    assert!(!run.stderr.contains("asked"), "{run:#?}");
}

#[test]
fn a_cpu_that_never_comes_is_one_line_and_a_status() {
    needs_kvm!("a_cpu_that_never_comes_is_one_line_and_a_status");
    let run = kernel("cpus=3 log=off workload=pio:5", &["--cpus", "2"]).expect_status(8);
    line(&run, "guest-kernel: FAILED SMP: CPU 2 did not come up");
    let profile = run.profile();
    assert_eq!(smp(&profile), [1, 0]);
    assert_eq!(names(&profile).last(), Some(&"done"), "the boot goes on");
    assert_eq!(between(&profile, "devices", "workload", 30), 5);
}

#[test]
fn the_devices_are_listed_if_asked() {
    needs_kvm!("the_devices_are_listed_if_asked");
    let quiet = kernel("log=off", &[]).expect_status(0);
    assert!(!quiet.stderr.contains("devices: "), "{quiet:#?}");
    let run = kernel("devices log=off", &["--cpus", "2"]).expect_status(0);
    let listed = run.stderr.matches("devices: ").count();
    if run.stderr.contains("no device tree") {
        assert_eq!(listed, 1, "{run:#?}");
    } else {
        run.expect_stderr(&[
            "63 MiB in 2 ranges, 2 CPUs",
            "serial port 0x03F8",
            "reset 0x0E22",
        ]);
        assert_eq!(listed, 4);
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
    assert_eq!(between(&profile, "devices", "workload", 30), 20_000);
}

#[test]
fn the_exit_log_prints_the_classic_line() {
    needs_kvm!("the_exit_log_prints_the_classic_line");
    let layouts = [("classic", "0x4FFFFFFF"), ("reversed", "0x4FFFFFFC")];
    let words = ["exits=auto", "exits=leaves"];
    for ((layout, leaf), word) in layouts.iter().flat_map(|&l| words.map(|w| (l, w))) {
        let args = ["--leaves", layout, "--cmdline", word];
        let run = profile("guest-kernel", &args).expect_status(0);
        let classic: Vec<&str> = run
            .stderr
            .lines()
            .filter(|l| l.contains(&format!("CPUID({leaf}), exits= ")))
            .collect();
        assert_eq!(classic.len(), 8, "one per milestone: {run:#?}");
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
    for word in ["exits=auto", "exits=leaves"] {
        let run = profile("guest-kernel", &["--cmdline", word]).expect_status(0);
        log_agrees(&run);
    }
}

#[track_caller]
fn log_agrees(run: &Run) {
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
    let kernel = |cmdline| kernel(cmdline, &[]).expect_status(0);
    let run = kernel("exits=leaves queries=5");
    let queries = run.profile().gates.queries;
    let plain = kernel("exits=leaves").profile().gates.queries;
    assert!(queries >= plain + 5, "{run:#?}");
    assert!(run.stderr.contains("query 5"), "{run:#?}");
}

#[test]
fn printing_at_each_milestone_costs_only_own_exits() {
    needs_kvm!("printing_at_each_milestone_costs_only_own_exits");
    let guests = |cmdline| {
        let profile = kernel(cmdline, &[]).expect_status(0).profile();
        exits_at(&profile.milestones[profile.milestones.len() - 1], 30)
    };
    let at_end = guests("");
    for cmdline in ["log=each", "exits=leaves", "exits=leaves log=each"] {
        assert_eq!(guests(cmdline), at_end, "{cmdline}");
    }
}

#[test]
fn the_gate_registered_by_port() {
    needs_kvm!("the_gate_registered_by_port");
    let cmdline = "gate=port exits=leaves";
    let run = profile("guest-kernel", &["--cmdline", cmdline]).expect_status(0);
    assert!(run.profile().gates.queries > 0, "{run:#?}");
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
    for line in ["workload=nonsense:3", "cpus=0", "reboot=x"] {
        kernel(line, &[]).expect_status(3);
    }
}

#[test]
fn power_off_happens_or_it_is_said_that_it_did_not() {
    needs_kvm!("power_off_happens_or_it_is_said_that_it_did_not");
    let run = kernel("poweroff log=off", &[]);
    let failed = run.stderr.contains("FAILED poweroff: the machine stays on");
    assert_eq!(run.status, if failed { 10 } else { 0 }, "{run:#?}");
    // A status is told by the exit port alone.
    kernel("poweroff exit=3 log=off workload=touch:10000000", &[]).expect_status(9);
}

#[test]
fn it_resets_itself_as_often_as_asked() {
    let name = "it_resets_itself_as_often_as_asked";
    needs_kvm!("it_resets_itself_as_often_as_asked");
    if !run(&["run", "--help"]).stdout.contains("--max-resets") {
        return skip(name, "this exitvisor does not go on after a reset");
    }
    let cmdline = "reboot=2 log=off workload=pio:4";
    let run = kernel(cmdline, &["--cpus", "2", "--on-reset", "continue"]);
    if run.stderr.contains("nobody tells how often") {
        run.expect_status(10);
        return skip(name, "no device tree counts the resets");
    }
    let run = run.expect_status(0);
    let passes = run.stderr.matches("workload pio: exactly 4").count();
    assert_eq!(passes, 3, "{run:#?}");
}

#[test]
fn many_memory_sizes() {
    needs_kvm!("many_memory_sizes");
    for mib in [2, 32, 64, 3072, 5120] {
        if host_has("many_memory_sizes", mib) {
            profile("guest-kernel", &["--memory", &format!("{mib}M")]).expect_status(0);
        }
    }
}

#[test]
fn runs_repeat_in_what_does_not_depend_on_time() {
    needs_kvm!("runs_repeat_in_what_does_not_depend_on_time");
    for word in ["exits=auto", "exits=leaves"] {
        runs_repeat(&format!(
            "workload=pio:50,mmio:20,outs:3,rdmsr:9,touch:9,hlt:5 queries=3 cpus=2 {word}"
        ));
    }
}

#[track_caller]
fn runs_repeat(cmdline: &str) {
    // Everything but what time drives: interrupts (1, 7, 8, 52), halts (12) and spinning (40); where
    // hardware's exits are traced, also accesses to the APIC (48, 49), whose timer interrupts more
    // or less often, and which are polled while another CPU comes up.
    let driven: &[u8] = match no_ledger() {
        None => &[1, 7, 8, 12, 40, 48, 49, 52],
        Some(_) => &[1, 7, 8, 12, 40],
    };
    let timeless = |m: &Milestone| {
        let reasons = m.accounts.reasons.iter();
        let timeless = reasons.filter(|r| !driven.contains(&r.reason));
        timeless
            .map(|r| (r.reason, r.exits - r.own))
            .filter(|r| r.1 > 0)
            .collect::<Vec<_>>()
    };
    let counts = || {
        let profile = kernel(cmdline, &["--cpus", "2"]).expect_status(0).profile();
        let row = |m: &Milestone| (m.name.clone(), m.vcpu, timeless(m));
        profile.milestones.iter().map(row).collect::<Vec<_>>()
    };
    let first = counts();
    for _ in 0..4 {
        assert_eq!(counts(), first);
    }
}

#[test]
fn leaves_are_asked_by_name_and_by_number() {
    needs_kvm!("leaves_are_asked_by_name_and_by_number");
    let words = "log=off leaves=exits-of:35-36,0x4FFFFFFE:35,total-exits,0x4FFFFF00";
    let run = kernel(words, &["--leaves", "reversed"]).expect_status(0);
    let undefined = "EAX 00000000 EBX 00000000 ECX 00000000 EDX FFFFFFFF";
    // 0x4FFFFFFE asks for exits of a reason in this layout, 0x4FFFFFFC for all.
    let same = format!("[leaves] CPUID(0x4FFFFFFE, 35): {undefined}");
    let asked: Vec<&str> = run.stderr.lines().filter(|l| *l == same).collect();
    assert_eq!(asked.len(), 2, "{run:#?}");
    line(
        &run,
        "[leaves] CPUID(0x4FFFFFFE, 36): EAX 00000000 EBX 00000000 ",
    );
    line(&run, "[leaves] CPUID(0x4FFFFFFC, 0): EAX ");
    // The signature, at a gate too.
    let signature = "EAX 4FFFFFFF EBX 74697845 ECX 6F736976 EDX 49424172";
    line(&run, &format!("[leaves] CPUID(0x4FFFFF00, 0): {signature}"));

    let run = kernel("leaves=exits-of:9-3", &[]).expect_status(3);
    assert!(
        run.stderr.contains("`exits-of:9-3`: expected ECX"),
        "{run:#?}"
    );
}
