//! The kernel ledger: exact counts of hardware's exits, by reason, by code, by what was asked for;
//! equal to KVM's own statistics (every profile here is checked for that) and to an independent
//! witness.
// A harness may stop a test by panicking: that is how tests fail.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use black_box::accounts::{grown, level};
use black_box::{Run, needs_ledger, profile, skip};

#[test]
fn gather() {
    needs_ledger!("gather");
    for kind in ["cpuid","pio","pin","mmio","hlt","rdmsr","wrmsr","cr","dr","wbinvd","invlpg","vmcall","rdtsc","xsetbv","touch","outs"] {
        let run = profile("guest-kernel", &["--timeout","40s","--cmdline", &format!("workload={kind}:1000 log=off")]);
        let p = run.profile();
        eprintln!("{kind} {:?} {:?} status {} {:?}", grown(&p, "devices", "workload"), p.total.reason(29).map(|r| (r.exits, r.own)), run.status, run.took);
        eprintln!("{}", run.stderr.trim());
    }
}
