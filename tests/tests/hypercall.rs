//! The hypercall, by both mechanisms: passed on by KVM, and at breakpoint gates. The guest checks every
//! answer itself; here is what the calls cost, and who is said to have made them.
// A harness may stop a test by panicking: that is how tests fail.
#![allow(clippy::unwrap_used)]

use black_box::{Run, arg, guest, kvm, needs_kvm, needs_ledger, profile, run, skip};
use exitvisor::profile::{KvmKind, Profile};

/// (exits, own) of a reason.
fn exits(profile: &Profile, reason: u8) -> (u64, u64) {
    profile
        .total
        .reason(reason)
        .map_or((0, 0), |r| (r.exits, r.own))
}

fn part(number: u32, way: &str) -> Run {
    let number = number.to_string();
    let args = ["--cmdline", &number, "--hypercall", way, "--timeout", "20s"];
    profile("hypercall", &args)
}

/// Whether KVM passes hypercalls on here; if not, the test is skipped, and what is said is checked.
fn intercepts(name: &str) -> bool {
    if kvm().is_none() {
        skip(name, "no usable /dev/kvm");
        return false;
    }
    let run = part(0, "xen");
    if run.status == 0 {
        return true;
    }
    run.expect_status(69)
        .expect_one_line(&["--hypercall xen: ", "--hypercall gate"]);
    skip(name, "this KVM cannot pass hypercalls on");
    false
}

#[test]
fn at_a_gate_by_either_mechanism() {
    needs_kvm!("at_a_gate_by_either_mechanism");
    let by_gate = part(0, "gate").expect_status(0).profile();
    assert_eq!(by_gate.machine.hypercall.as_deref(), Some("gate"));
    assert_eq!((by_gate.gates.hypercalls, by_gate.gates.armed), (6, 1));
    let (all, own) = exits(&by_gate, 0);
    // To register an instruction costs none.
    assert_eq!((all, own), (6, 6), "each is a breakpoint");
    assert_eq!(exits(&by_gate, 18), (0, 0));

    if !intercepts("at_a_gate_by_either_mechanism (passed on)") {
        let auto = part(0, "auto").expect_status(0).profile();
        assert_eq!(auto.machine.hypercall.as_deref(), Some("gate"));
        return;
    }
    for way in ["xen", "auto"] {
        let run = part(0, way).expect_status(0);
        let profile = run.profile();
        assert_eq!(profile.machine.hypercall.as_deref(), Some("xen"));
        assert_eq!(
            (profile.gates.hypercalls, profile.gates.armed),
            (6, 0),
            "no slot"
        );
        // Only the question who it is is the profiler's own: the others any KVM would have had.
        assert_eq!(exits(&profile, 18), (6, 1), "{run:#?}");
        assert_eq!(exits(&profile, 0), (0, 0));
    }
}

#[test]
fn a_stray_one_never_hangs() {
    needs_kvm!("a_stray_one_never_hangs");
    for way in ["auto", "gate"] {
        part(1, way).expect_status(0);
    }
}

#[test]
fn so_many_calls_are_so_many_exits() {
    if !intercepts("so_many_calls_are_so_many_exits") {
        return;
    }
    for ledger in ["off", "counts", "cycles"] {
        let args = ["--cmdline", "2", "--hypercall", "xen", "--ledger", ledger];
        let run = profile("hypercall", &args).expect_status(0);
        let profile = run.profile();
        assert_eq!(exits(&profile, 18), (501, 1), "{ledger}: {run:#?}");
        assert_eq!(profile.gates.hypercalls, 501);
    }
}

#[test]
fn the_statistic_counts_those_that_kvm_answers() {
    needs_ledger!("the_statistic_counts_those_that_kvm_answers");
    // No ledger: KVM's statistic says it, exactly.
    let workload = [
        "--cmdline",
        "workload=vmcall:200 log=off",
        "--ledger",
        "off",
    ];
    for way in ["gate", "auto"] {
        let run = profile(
            "guest-kernel",
            &[&workload[..], &["--hypercall", way]].concat(),
        );
        let profile = run.expect_status(0).profile();
        let account = profile.total.reason(18).unwrap();
        assert_eq!((account.exits, account.own), (200, 0), "{way}");
        let passed_on = profile.machine.hypercall.as_deref() == Some("xen");
        let expected = if passed_on { "KVM_RUN" } else { "KVM stats" };
        assert_eq!(account.source, expected, "{way}");
        let reason = profile.reasons.iter().find(|r| r.reason == 18).unwrap();
        // Of what KVM passes on it may still answer some itself: Xen's own.
        assert_eq!(reason.exact, !passed_on, "{way}");
    }
}

#[test]
fn from_ring_3_it_is_refused() {
    if !intercepts("from_ring_3_it_is_refused") {
        return;
    }
    let run = part(3, "xen").expect_status(0);
    assert_eq!(exits(&run.profile(), 18), (5, 1), "{run:#?}");
}

#[test]
fn in_32_bit_code_the_upper_half_does_not_count() {
    if !intercepts("in_32_bit_code_the_upper_half_does_not_count") {
        return;
    }
    let run = part(4, "xen").expect_status(0);
    assert_eq!(exits(&run.profile(), 18), (4, 2), "{run:#?}");
}

#[test]
fn nothing_says_xen() {
    if !intercepts("nothing_says_xen") {
        return;
    }
    part(5, "xen").expect_status(0);
}

#[test]
fn the_msr_that_kvm_wants_named_is_not_there() {
    if !intercepts("the_msr_that_kvm_wants_named_is_not_there") {
        return;
    }
    part(6, "xen").expect_status(0);
}

#[test]
fn a_step_over_it_traps_behind_it() {
    if !intercepts("a_step_over_it_traps_behind_it") {
        return;
    }
    let run = part(7, "xen").expect_status(0);
    assert_eq!(exits(&run.profile(), 18), (1, 1), "{run:#?}");
}

#[test]
fn the_other_makers_instruction_keeps_its_breakpoint() {
    needs_kvm!("the_other_makers_instruction_keeps_its_breakpoint");
    for way in ["auto", "gate"] {
        let profile = part(8, way).expect_status(0).profile();
        assert_eq!(
            (profile.gates.hypercalls, profile.gates.armed),
            (1, 1),
            "{way}"
        );
        assert_eq!(exits(&profile, 18), (0, 0), "{way}");
    }
}

#[test]
fn gates_without_a_slot_are_bounded_and_take_none() {
    if !intercepts("gates_without_a_slot_are_bounded_and_take_none") {
        return;
    }
    let profile = part(9, "xen").expect_status(0).profile();
    assert_eq!(profile.gates.armed, 4);
}

#[test]
fn hostile_numbers() {
    if !intercepts("hostile_numbers") {
        return;
    }
    let run = part(10, "xen").expect_status(0);
    let profile = run.profile();
    const CALLS: u64 = 1 + 11 * 4 + 8 * 6 * 4 + 1;
    if profile.has_kernel_ledger() {
        assert_eq!(exits(&profile, 18), (CALLS, 1), "{run:#?}");
    }
    // Two of Xen's calls KVM answers itself: sched_op (29) that yields or polls, and event_channel_op
    // (32) that sends.
    assert!(profile.gates.hypercalls < CALLS, "{:?}", profile.gates);
    assert!(
        profile.gates.hypercalls >= CALLS - 12,
        "{:?}",
        profile.gates
    );
}

#[test]
fn where_it_cannot_be_one_line_says_so() {
    match kvm() {
        Some(KvmKind::Software) => {
            part(0, "xen")
                .expect_status(69)
                .expect_one_line(&["software KVM", "--hypercall gate"]);
        }
        _ => skip("where_it_cannot_be_one_line_says_so", "not software KVM"),
    }
}

#[test]
fn the_report_says_which() {
    needs_kvm!("the_report_says_which");
    let kernel = guest("hypercall");
    let shown = run(&["profile", "--kernel", arg(&kernel), "--hypercall", "gate"]);
    let text = shown.expect_status(0).stdout;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("VMCALL: at gates"), "{text}");
    if intercepts("the_report_says_which (passed on)") {
        let shown = run(&["profile", "--kernel", arg(&kernel)]).expect_status(0);
        let text = shown
            .stdout
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        assert!(text.contains("VMCALL: KVM passes every one on"), "{text}");
    }
}
