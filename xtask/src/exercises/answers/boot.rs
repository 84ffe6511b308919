//! The totals of a boot and of a reboot, in the coursework's line.

use serde_json::json;

use super::super::console;
use super::super::evidence::Evidence;
use super::super::profile::{Accounts, Milestone, milestone};
use super::super::results::{Answered, Table, grouped};
use super::{profiled, row, short};
use crate::kvm_module::Paging;

pub(super) fn answer(labs: &[Evidence]) -> Answered {
    let mut answered = Answered {
        title: "The exits of a boot and of a reboot".to_owned(),
        question: "How many exits does a boot take, and how many does a reboot?".to_owned(),
        source: "The lines are the guest's own, printed from what leaf 0x4FFFFFFF and 0x4FFFFFFE answered \
                 at the milestone \"done\". What is the guest's and what the profiler's is the profile's \
                 (`own`: questions, milestones, printing the log), at that milestone and at the end."
            .to_owned(),
        why: "At a reset the machine is built anew and its counters begin at zero, so the second line is the \
              reboot's alone: a kernel that is patched to count goes on counting, and there the difference \
              of two lines would have to be taken. A reboot takes about as many exits as a boot, as it \
              executes the same instructions; what differs is what time drives (1, 7, 12, 52), and memory \
              that the host has already mapped (48)."
            .to_owned(),
        ..Answered::default()
    };
    answered.csv.push(row([
        "lab",
        "boot",
        "exits asked at done",
        "cycles asked at done",
        "guest's exits",
        "guest's cycles",
        "profiler's exits",
    ]));
    let mut lines = Table::new("The guest's lines", ["lab", "", "line"]);
    let mut table = Table::new(
        "The same boots, from reset to their end",
        [
            "lab",
            "",
            ">the guest's exits",
            ">their cycles",
            ">the profiler's own exits",
            ">the guest's at \"done\"",
        ],
    );
    for lab in labs {
        let found = profiled(&mut answered, lab, Paging::Nested, "boot");
        let Some((ran, profile)) = found else {
            continue;
        };
        let boots = console::boots(&ran.said.stderr);
        answered.expect(
            &lab.title,
            "the guest boots twice and logs both boots",
            boots.len() == 2 && profile.reboots.len() == 1,
            format!(
                "{} boots in the log, {} reboots",
                boots.len(),
                profile.reboots.len()
            ),
        );
        let first: (&[Milestone], &Accounts) = (&profile.milestones, &profile.total);
        let again = profile.reboots.iter();
        let again = again.map(|pass| (pass.milestones.as_slice(), &pass.total));
        let mut figures = Vec::new();
        for ((name, records), (milestones, total)) in ["boot", "reboot"]
            .into_iter()
            .zip(&boots)
            .zip(std::iter::once(first).chain(again))
        {
            let done = records.iter().find(|record| record.label == "done");
            let at_done = milestone(milestones, "done");
            let (Some(done), Some(at_done)) = (done, at_done) else {
                answered.expect(
                    &lab.title,
                    format!("the {name} reaches \"done\""),
                    false,
                    "it does not",
                );
                continue;
            };
            let lab_name = short(&lab.title).to_owned();
            lines.row([
                lab_name.clone(),
                name.to_owned(),
                format!("`{}`", done.line),
            ]);
            table.row([
                lab_name.clone(),
                name.to_owned(),
                grouped(total.guests()),
                grouped(total.guests_cycles()),
                grouped(total.own()),
                grouped(at_done.guests()),
            ]);
            answered.expect(
                &lab.title,
                format!("the {name}'s line asks leaf 0x4FFFFFFF"),
                done.leaf == 0x4FFF_FFFF,
                format!("{:#010x}", done.leaf),
            );
            answered.expect(
                &lab.title,
                format!("the {name}'s answer lies between the profile at \"done\" and at the end"),
                (at_done.total..=total.total).contains(&done.exits),
                format!("{}, not {} to {}", done.exits, at_done.total, total.total),
            );
            let closes = total.reasons.iter().map(|r| r.exits).sum::<u64>();
            let rest = total.other + total.residual + total.own_residual;
            answered.expect(
                &lab.title,
                format!("the {name}'s exits are all attributed to reasons"),
                closes == total.total && rest == 0,
                format!("{closes} of {}", total.total),
            );
            answered.csv.push(row([
                lab_name,
                name.to_owned(),
                done.exits.to_string(),
                done.cycles.to_string(),
                total.guests().to_string(),
                total.guests_cycles().to_string(),
                total.own().to_string(),
            ]));
            figures.push(json!({
                "boot": name, "line": done.line, "exits": done.exits, "cycles": done.cycles,
                "guests_exits": total.guests(), "guests_cycles": total.guests_cycles(),
                "own_exits": total.own(), "guests_exits_at_done": at_done.guests(),
            }));
        }
        answered.figures.insert(lab.title.clone(), figures.into());
    }
    answered.table(lines);
    answered.table(table);
    answered
}
