//! VMCALL 0x283.

use exit_abi::hypercall::{ANSWER, UNKNOWN, WHO_ARE_YOU};
use serde_json::json;

use super::super::console;
use super::super::evidence::Evidence;
use super::super::results::{Answered, Table};
use super::{profiled, row, short};
use crate::kvm_module::Paging;

pub(super) fn answer(labs: &[Evidence]) -> Answered {
    let mut answered = Answered {
        title: "VMCALL 0x283".to_owned(),
        question: "Let a guest call the hypervisor with the number 0x283, and answer it with the eight bytes \
                   `CMPE283` and NUL; any other number stays unknown."
            .to_owned(),
        source: "The guest kernel prints what RAX held after the instruction; the profile says how many \
                 hypercalls were answered."
            .to_owned(),
        why: "The bytes come from a VMM in userspace, on a KVM that nobody has patched: KVM hands the \
              call over, by its interface for Xen guests or by a breakpoint on the instruction, and lets the \
              VMM set RAX. 0x284 gets what KVM itself gives for a number \
              that it does not know, -1000 (KVM_ENOSYS)."
            .to_owned(),
        ..Answered::default()
    };
    answered.csv.push(row(["lab", "number", "answer"]));
    let mut table = Table::new("", ["lab", "arrived by", "RAX before", "RAX after"]);
    let name = format!("{ANSWER:#018x} \"CMPE283\"");
    for lab in labs {
        let found = profiled(&mut answered, lab, Paging::Nested, "hypercall");
        let Some((ran, profile)) = found else {
            continue;
        };
        let by_xen = profile.machine.hypercall.as_deref() == Some("xen");
        let arrived = match by_xen {
            true => "VMCALL exit (18), passed on",
            false => "breakpoint gate (0)",
        };
        let mut figures = Vec::new();
        for (number, expected) in [
            (WHO_ARE_YOU, name.clone()),
            (WHO_ARE_YOU + 1, (UNKNOWN as i64).to_string()),
        ] {
            let said = console::hypercall(&ran.said.stderr, number).unwrap_or("nothing");
            answered.expect(
                &lab.title,
                format!("{number:#x} answers {expected}"),
                said == expected,
                said,
            );
            table.row([
                short(&lab.title).to_owned(),
                arrived.to_owned(),
                format!("`{number:#x}`"),
                format!("`{said}`"),
            ]);
            answered
                .csv
                .push(row([short(&lab.title), &format!("{number:#x}"), said]));
            figures.push(json!({"number": number, "answer": said}));
        }
        answered.expect(
            &lab.title,
            "the profile counts 2 hypercalls answered",
            profile.gates.hypercalls == 2,
            profile.gates.hypercalls.to_string(),
        );
        if by_xen {
            let exits = profile.total.reasons.iter().find(|r| r.reason == 18);
            let exits = exits.map_or(0, |r| r.exits);
            answered.expect(
                &lab.title,
                "the two calls are two exits of reason 18",
                exits == 2,
                exits.to_string(),
            );
        }
        answered.figures.insert(lab.title.clone(), figures.into());
    }
    answered.table(table);
    answered
}
