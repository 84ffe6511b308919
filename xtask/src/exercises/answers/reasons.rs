//! The most and the least frequent reasons of a boot.

use serde_json::json;

use super::super::evidence::Evidence;
use super::super::profile::reason;
use super::super::results::{Answered, Table, grouped};
use super::leaves::ranges;
use super::{columns, profiled, row, short};
use crate::kvm_module::Paging;

pub(super) fn answer(labs: &[Evidence]) -> Answered {
    let mut answered = Answered {
        title: "The most and the least frequent reasons".to_owned(),
        question: "Of the reasons that the SDM defines, which are the most frequent in a boot, and which the \
                   least? Which never occur?"
            .to_owned(),
        source: "The profile of the first boot of the run `boot`: exits from reset to its end, without the \
                 profiler's own."
            .to_owned(),
        why: "A small guest that is told what machine it runs on neither probes for devices nor sets up \
              much: what is left are its timer interrupts (1, 7, 12, and accesses to the APIC, 49 or 48), \
              its own tables (28, 31, 32) and the first touch of memory (48). A desktop's or server's boot \
              is led by other reasons (port I/O, MSRs), and so would this one be with their devices. Reasons \
              that cannot occur belong to instructions and controls that this KVM never turns on."
            .to_owned(),
        ..Answered::default()
    };
    answered
        .csv
        .push(row(["lab", "rank", "reason", "name", "exits"]));
    let mut rankings = Vec::new();
    let mut rest = Vec::new();
    for lab in labs {
        let found = profiled(&mut answered, lab, Paging::Nested, "boot");
        let Some((_, profile)) = found else {
            continue;
        };
        let ranked = profile.total.ranked();
        let all = profile.total.guests();
        let sum: u64 = ranked.iter().map(|(_, exits)| exits).sum();
        answered.expect(
            &lab.title,
            "the guest's exits by reason add up to all of them",
            sum == all && !ranked.is_empty(),
            format!("{sum} of {all}"),
        );
        let of = |can_occur: bool| -> Vec<u32> {
            let seen = |number: u32| profile.total.reasons.iter().any(|r| r.reason == number);
            let reasons = profile.reasons.iter();
            let wanted = reasons.filter(|r| r.can_occur == can_occur && !seen(r.reason));
            wanted.map(|r| r.reason).collect()
        };
        for (rank, (number, exits)) in ranked.iter().enumerate() {
            let name = reason(*number);
            let name = name.split_once(' ').map_or("", |(_, name)| name);
            answered.csv.push(row([
                short(&lab.title),
                &(rank + 1).to_string(),
                &number.to_string(),
                name,
                &exits.to_string(),
            ]));
        }
        let ranking: Vec<_> = ranked
            .iter()
            .map(|(r, n)| json!({"reason": r, "exits": n}))
            .collect();
        let (never, cannot) = (of(true), of(false));
        answered.figures.insert(
            lab.title.clone(),
            json!({"ranking": ranking, "never_seen": never, "cannot_occur": cannot}),
        );
        rest.push((short(&lab.title), never, cannot));
        rankings.push((short(&lab.title), ranked, all));
    }

    let titles: Vec<&str> = rankings.iter().map(|(lab, ..)| *lab).collect();
    let of_lab = ["", ">exits", ">share"];
    let mut table = Table::new("", columns(&[">rank"], &titles, &of_lab));
    let longest = rankings.iter().map(|(_, ranked, _)| ranked.len()).max();
    for rank in 0..longest.unwrap_or(0) {
        let mut cells = vec![(rank + 1).to_string()];
        for (_, ranked, all) in &rankings {
            match ranked.get(rank) {
                None => cells.extend(["", "", ""].map(str::to_owned)),
                Some((number, exits)) => cells.extend([
                    reason(*number),
                    grouped(*exits),
                    format!("{:.1} %", *exits as f64 * 100.0 / *all as f64),
                ]),
            }
        }
        table.row(cells);
    }
    answered.table(table);
    let mut table = Table::new(
        "Reasons without an exit",
        ["lab", "can occur, did not", "cannot occur"],
    );
    for (lab, never, cannot) in rest {
        let listed = |numbers: &[u32]| format!("{}: {}", numbers.len(), ranges(numbers));
        table.row([lab.to_owned(), listed(&never), listed(&cannot)]);
    }
    answered.table(table);
    answered
}
