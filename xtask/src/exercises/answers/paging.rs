//! Nested against shadow paging, side by side.

use serde_json::json;

use super::super::evidence::Evidence;
use super::super::plan::{PAGING_COUNT, SWEEP_RUNS};
use super::super::profile::{Accounts, Profile, milestone, reason};
use super::super::results::{Answered, Table, grouped, signed};
use super::{columns, profiled, row, short};
use crate::kvm_module::Paging;

/// #PF and other exceptions; INVLPG; a nested page fault.
const EXCEPTION: u32 = 0;
const INVLPG: u32 = 14;
const NESTED_FAULT: u32 = 48;

pub(super) fn answer(labs: &[Evidence]) -> Answered {
    let mut answered = Answered {
        title: "Nested against shadow paging".to_owned(),
        question: "Load KVM's module once with nested paging and once without (`npt=0`, `ept=0`), and run the \
                   same guest. Which reasons grow, which vanish, and what becomes of the total?"
            .to_owned(),
        source: "Two boots of each lab, the module loaded with and without the parameter; the guest's exits \
                 of each from reset to the end, without the profiler's own, from their profiles. Each run \
                 has its own VM, so its counters begin at zero."
            .to_owned(),
        why: "With nested paging the processor walks the guest's own page tables, and a second set that maps \
              guest memory to the host's: only what is missing in the second exits (48; 49 where KVM has \
              marked a device's page there), and the guest may load CR3 and flush as it likes. With shadow \
              paging there is no second set. KVM keeps page tables of its own that join both, so it must see \
              every page fault (0), every flush (14) and every load of CR3 (28); 48 and 49 vanish, for no \
              second walk is there to fail. 1, 7, 12 and 52 follow the time that a run takes. A published \
              \"shadow\" result that shows 48 was measured with nested paging."
            .to_owned(),
        ..Answered::default()
    };
    answered
        .csv
        .push(row(["lab", "reason", "nested", "shadow"]));
    let mut pairs: Vec<(&str, &Accounts, &Accounts)> = Vec::new();
    for lab in labs {
        let nested = profiled(&mut answered, lab, Paging::Nested, "paging");
        let shadow = profiled(&mut answered, lab, Paging::Shadow, "paging");
        let (Some((_, nested)), Some((_, shadow))) = (nested, shadow) else {
            continue;
        };
        check(&mut answered, &lab.title, nested, shadow);
        let (nested, shadow) = (&nested.total, &shadow.total);
        let mut figures = Vec::new();
        for number in numbers([nested, shadow]) {
            let counts = (nested.of(number), shadow.of(number));
            answered.csv.push(row([
                short(&lab.title),
                &number.to_string(),
                &counts.0.to_string(),
                &counts.1.to_string(),
            ]));
            figures.push(json!({"reason": number, "nested": counts.0, "shadow": counts.1}));
        }
        let cycles = (nested.guests_cycles(), shadow.guests_cycles());
        answered.figures.insert(
            lab.title.clone(),
            json!({
                "reasons": figures,
                "exits": {"nested": nested.guests(), "shadow": shadow.guests()},
                "cycles": {"nested": cycles.0, "shadow": cycles.1},
            }),
        );
        pairs.push((short(&lab.title), nested, shadow));
    }
    answered.table(side_by_side(&pairs));
    for (lab, nested, shadow) in &pairs {
        answered.text(in_words(lab, nested, shadow));
    }
    sweep(&mut answered, labs);
    for lab in labs {
        comparisons(&mut answered, lab);
    }
    answered
}

/// Page-table work of several lengths: what each page costs.
fn sweep(answered: &mut Answered, labs: &[Evidence]) {
    let there = |lab: &&Evidence| {
        SWEEP_RUNS.iter().all(|(name, _)| {
            let has = |paging| lab.profiled(paging, name).is_ok();
            has(Paging::Nested) && has(Paging::Shadow)
        })
    };
    for lab in labs {
        for (name, _) in SWEEP_RUNS {
            for paging in Paging::BOTH {
                profiled(answered, lab, paging, name);
            }
        }
    }
    let labs: Vec<&Evidence> = labs.iter().filter(there).collect();
    let titles: Vec<&str> = labs.iter().map(|lab| short(&lab.title)).collect();
    let of_lab = [">nested", ">shadow", ">shadow, per page"];
    let mut table = Table::new(
        "N pages mapped, touched, remapped, flushed and unmapped by the guest: its exits on the way to \
         \"workload\", without those that time drives (1, 7, 12, 52)",
        columns(&[">N"], &titles, &of_lab),
    );
    for (name, length) in SWEEP_RUNS {
        let mut cells = vec![length.to_string()];
        for lab in &labs {
            let exits = |paging| {
                let (_, profile) = lab.profiled(paging, name).ok()?;
                let from = milestone(&profile.milestones, "devices")?;
                let to = milestone(&profile.milestones, "workload")?;
                Some(to.untimed().saturating_sub(from.untimed()))
            };
            let counts = (exits(Paging::Nested), exits(Paging::Shadow));
            let shown = |count: Option<u64>| count.map_or_else(|| "?".to_owned(), grouped);
            cells.push(shown(counts.0));
            cells.push(shown(counts.1));
            let each = counts.1.map(|shadow| shadow as f64 / length as f64);
            cells.push(each.map_or_else(String::new, |each| format!("{each:.1}")));
        }
        if !labs.is_empty() {
            table.row(cells);
        }
    }
    answered.table(table);
}

/// What exitvisor's own comparison says, and whether it takes the profiles for what they claim.
fn comparisons(answered: &mut Answered, lab: &Evidence) {
    for (what, comparison) in &lab.comparisons {
        let refused = comparison.as_ref().err();
        answered.expect(
            &lab.title,
            "`exitvisor paging` finds each profile to be of the paging that it claims",
            refused.is_none(),
            refused.cloned().unwrap_or_default(),
        );
        if let Ok(text) = comparison {
            answered.text(format!(
                "{what} in the {}, as `exitvisor paging` shows them:",
                lab.title
            ));
            // A sweep's report ends with one of its pairs, whole: much the same again.
            let text = text.split("\nThe largest of them").next().unwrap_or(text);
            answered.code(text);
        }
    }
}

/// The reasons that any of these has.
fn numbers<'a>(accounts: impl IntoIterator<Item = &'a Accounts>) -> Vec<u32> {
    let ranked = accounts.into_iter().flat_map(Accounts::ranked);
    let mut numbers: Vec<u32> = ranked.map(|(reason, _)| reason).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

fn side_by_side(pairs: &[(&str, &Accounts, &Accounts)]) -> Table {
    let titles: Vec<&str> = pairs.iter().map(|(lab, ..)| *lab).collect();
    let of_lab = [">nested", ">shadow", ">change"];
    let mut table = Table::new("The guest's exits", columns(&["reason"], &titles, &of_lab));
    let mut add = |title: String, figure: &dyn Fn(&Accounts) -> u64| {
        let mut cells = vec![title];
        for (_, nested, shadow) in pairs {
            let (nested, shadow) = (figure(nested), figure(shadow));
            cells.push(grouped(nested));
            cells.push(grouped(shadow));
            cells.push(signed(shadow, nested));
        }
        if cells.len() > 1 {
            table.row(cells);
        }
    };
    for number in numbers(
        pairs
            .iter()
            .flat_map(|(_, nested, shadow)| [*nested, *shadow]),
    ) {
        add(reason(number), &|accounts| accounts.of(number));
    }
    add("**all exits**".to_owned(), &Accounts::guests);
    add("cycles in exits".to_owned(), &Accounts::guests_cycles);
    table
}

/// What grew, what vanished, and the ratio.
fn in_words(lab: &str, nested: &Accounts, shadow: &Accounts) -> String {
    let (mut grown, mut vanished, mut appeared) = (Vec::new(), Vec::new(), Vec::new());
    for number in numbers([nested, shadow]) {
        let name = reason(number);
        match (nested.of(number), shadow.of(number)) {
            (before, 0) => vanished.push(format!("{name} ({before})")),
            (0, now) => appeared.push(format!("{name} ({now})")),
            (before, now) if now > before => grown.push(format!("{name} ({before} → {now})")),
            _ => {}
        }
    }
    let listed = |what: &[String]| match what {
        [] => "nothing".to_owned(),
        what => what.join(", "),
    };
    let ratio = shadow.guests() as f64 / nested.guests().max(1) as f64;
    format!(
        "**{lab}**: shadow paging takes {ratio:.2} times the exits. Grown: {}. New: {}. Vanished: {}.",
        listed(&grown),
        listed(&appeared),
        listed(&vanished)
    )
}

fn check(answered: &mut Answered, lab: &str, nested: &Profile, shadow: &Profile) {
    for (profile, expected) in [(nested, "nested"), (shadow, "shadow")] {
        answered.expect(
            lab,
            format!("KVM says that the {expected} run has {expected} paging"),
            profile.host.paging == expected,
            &profile.host.paging,
        );
    }
    let (n, s) = (&nested.total, &shadow.total);
    answered.expect(
        lab,
        "the nested run has nested page faults (48)",
        n.of(NESTED_FAULT) > 0,
        "none",
    );
    answered.expect(
        lab,
        "the shadow run has no nested page fault (48)",
        s.of(NESTED_FAULT) == 0,
        s.of(NESTED_FAULT).to_string(),
    );
    answered.expect(
        lab,
        "page faults (0) grow with shadow paging",
        s.of(EXCEPTION) > n.of(EXCEPTION),
        format!("{} → {}", n.of(EXCEPTION), s.of(EXCEPTION)),
    );
    // Between these milestones lies the workload alone.
    let within = |profile: &Profile, number| {
        let from = milestone(&profile.milestones, "devices").map(|a| a.of(number));
        let to = milestone(&profile.milestones, "workload").map(|a| a.of(number));
        to.zip(from).map(|(to, from)| to.saturating_sub(from))
    };
    let flushes = (within(nested, INVLPG), within(shadow, INVLPG));
    answered.expect(
        lab,
        "no INVLPG (14) exits with nested paging, and with shadow paging each of them does (the guest \
         counts them, too)",
        flushes.0 == Some(0) && flushes.1 > Some(PAGING_COUNT),
        format!("{flushes:?}"),
    );
}

#[cfg(test)]
mod tests {
    use super::super::super::fixtures::{accounts, lab, profile};
    use super::*;

    fn failures(shadow: &[(u32, u64)], claim: &str) -> Vec<String> {
        let run = |paging: &str, reasons: &[(u32, u64)]| {
            let milestones = [("devices", accounts(&[])), ("workload", accounts(reasons))];
            profile(paging, &accounts(reasons), &milestones)
        };
        let mut evidence = lab("AMD lab");
        for name in ["paging", "ptes-16", "ptes-64", "ptes-256"] {
            evidence = evidence
                .with(Paging::Nested, name, "", run("nested", &[(0, 1), (48, 3)]))
                .with(Paging::Shadow, name, "", run(claim, shadow));
        }
        let answered = answer(&[evidence]);
        assert!(answered.not_run.is_empty());
        let failures = answered.failures();
        failures.map(|check| check.expected.clone()).collect()
    }

    #[test]
    fn a_shadow_that_is_none_is_void() {
        let good = [(0, 40), (14, 456)];
        assert!(failures(&good, "shadow").is_empty());
        let of_nested = failures(&[(0, 40), (14, 456), (48, 1)], "shadow");
        assert_eq!(of_nested, ["the shadow run has no nested page fault (48)"]);
        assert_eq!(failures(&good, "nested").len(), 1);
        assert_eq!(failures(&[(0, 1), (14, 3)], "shadow").len(), 2);
    }

    #[test]
    fn side_by_side_in_words() {
        let of = |reasons| serde_json::from_value::<Accounts>(accounts(reasons)).unwrap();
        let (nested, shadow) = (of(&[(0, 1), (48, 3)]), of(&[(0, 9), (14, 3)]));
        assert_eq!(
            in_words("AMD", &nested, &shadow),
            "**AMD**: shadow paging takes 3.00 times the exits. Grown: 0 exception or NMI (1 → 9). New: \
             14 INVLPG (3). Vanished: 48 EPT violation (3)."
        );
    }
}
