//! The comparison of two profiles, for people and for programs.

use super::format::{
    NONE, WIDTH, clean, count, fit, grouped, labelled, signed, signed_percent, width,
};
use super::json;
use super::table::{Side, Table};
use crate::profile::compare::{Change, Comparison, StepChange, Trend, Violation};
use crate::profile::figures::END;
use serde::Serialize;

const INDENT: usize = 11;

/// The comparison as a page of text. Violations, if there are limits, stand at its end, one line
/// each.
pub fn text(comparison: &Comparison, violations: Option<&[Violation]>) -> String {
    let mut out = String::new();
    let (before, after) = (clean(&comparison.before), clean(&comparison.after));
    out += &labelled("before", INDENT, &before);
    out += &labelled("after", INDENT, &after);
    for (i, caveat) in comparison.caveats.iter().enumerate() {
        let label = if i == 0 { "not alike" } else { "" };
        out += &labelled(label, INDENT, &clean(caveat));
    }
    out.push('\n');
    out += &verdict(comparison);
    out.push('\n');
    out += &reasons(comparison);
    out.push('\n');
    out += &steps(comparison);
    match violations {
        None => {}
        Some([]) => out += "\nwithin the limits of growth\n",
        Some(violations) => {
            out.push('\n');
            for violation in violations {
                out += &fit(&line(violation), WIDTH);
                out.push('\n');
            }
        }
    }
    out
}

/// A violation in one line.
pub fn line(violation: &Violation) -> String {
    let name = match violation.reason {
        Some(number) => format!("{number} {}", fit(&clean(&violation.name), 40)),
        None => violation.name.clone(),
    };
    let Some(exits) = violation.exits else {
        return format!(
            "cannot be judged: {name} ({} allowed): record both profiles with the kernel ledger",
            violation.allowed
        );
    };
    let Change { before, after } = exits;
    format!(
        "grew too much: {name}: {} → {} exits ({}; {} allowed)",
        grouped(before),
        grouped(after),
        how_much(&exits),
        violation.allowed
    )
}

/// The comparison as JSON; `violations` is part of it, null if there are no limits.
pub fn json(comparison: &Comparison, violations: Option<&[Violation]>) -> String {
    #[derive(Serialize)]
    struct Whole<'a> {
        #[serde(flatten)]
        comparison: &'a Comparison,
        violations: Option<&'a [Violation]>,
    }
    json::pretty(&Whole {
        comparison,
        violations,
    })
}

fn how_much(change: &Change) -> String {
    match change.relative() {
        Some(relative) => format!(
            "{}, {}",
            signed(change.difference()),
            signed_percent(Some(relative))
        ),
        None => signed(change.difference()),
    }
}

fn verdict(comparison: &Comparison) -> String {
    let of = |trend| {
        comparison
            .reasons
            .iter()
            .filter(|r| r.trend == trend)
            .count()
    };
    let total = &comparison.total;
    let what = match total.trend() {
        Trend::Same => format!(
            "The boot takes as many exits as before: {}.",
            count(total.after)
        ),
        _ => format!(
            "The boot takes {} exits instead of {} ({}).",
            count(total.after),
            count(total.before),
            how_much(total)
        ),
    };
    let parts = [
        (of(Trend::Grew), "grew"),
        (of(Trend::Shrank), "shrank"),
        (of(Trend::Appeared), "appeared"),
        (of(Trend::Vanished), "vanished"),
        (of(Trend::Same), "unchanged"),
    ];
    let parts = parts
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| format!("{n} {what}"));
    let parts: Vec<String> = parts.collect();
    let fixed = match &comparison.fixed {
        None => String::new(),
        Some(fixed) if fixed.trend() == Trend::Same => {
            format!(" Fixed: {}, as before.", count(fixed.after))
        }
        Some(fixed) => format!(
            " Fixed: {} instead of {} ({}).",
            count(fixed.after),
            count(fixed.before),
            how_much(fixed)
        ),
    };
    let reasons = match parts.is_empty() {
        true => String::new(),
        false => format!(" Reasons: {}.", parts.join(", ")),
    };
    labelled("", 0, &format!("{what}{fixed}{reasons}"))
}

fn mark(trend: Trend) -> &'static str {
    match trend {
        Trend::Same => "=",
        Trend::Grew => "▲",
        Trend::Shrank => "▼",
        Trend::Appeared => "▲ appeared",
        Trend::Vanished => "▼ vanished",
    }
}

fn relative(change: &Change) -> String {
    match change.trend() {
        Trend::Same => NONE.to_owned(),
        _ => signed_percent(change.relative()),
    }
}

fn reasons(comparison: &Comparison) -> String {
    use Side::{Left, Right};
    let mut table = Table::new(&[
        ("", Right),
        ("reason", Left),
        ("before", Right),
        ("after", Right),
        ("change", Right),
        ("", Right),
        ("cycles before", Right),
        ("after", Right),
        ("change", Right),
        ("", Left),
    ]);
    let row = |number: String, name: &str, exits: &Change, cycles: Option<&Change>| {
        let cycle = |of: fn(&Change) -> u64| match cycles {
            Some(c) if of(c) > 0 => count(of(c)),
            Some(_) => NONE.to_owned(),
            None => String::new(),
        };
        vec![
            number,
            fit(&clean(name), 28),
            count(exits.before),
            count(exits.after),
            signed(exits.difference()),
            relative(exits),
            cycle(|c| c.before),
            cycle(|c| c.after),
            cycles.map(relative).unwrap_or_default(),
            mark(exits.trend()).to_owned(),
        ]
    };
    for r in &comparison.reasons {
        table.row(row(
            r.reason.to_string(),
            &r.name,
            &r.exits,
            Some(&r.cycles),
        ));
    }
    for (name, change) in [
        ("other", &comparison.other),
        ("residual", &comparison.residual),
    ] {
        if *change != Change::default() {
            table.row(row(String::new(), name, change, None));
        }
    }
    table.rule();
    table.row(row(
        String::new(),
        "total",
        &comparison.total,
        Some(&comparison.cycles),
    ));
    if let Some(fixed) = &comparison.fixed {
        let name = "fixed: not time-driven";
        table.row(row(String::new(), name, fixed, None));
    }
    if comparison.own != Change::default() {
        table.row(row(
            String::new(),
            "the profiler's own (apart)",
            &comparison.own,
            None,
        ));
    }
    table.render()
}

fn steps(comparison: &Comparison) -> String {
    use Side::{Left, Right};
    let mut table = Table::new(&[
        ("milestone", Left),
        ("new before", Right),
        ("after", Right),
        ("change", Right),
        ("", Right),
        ("", Left),
    ]);
    for step in &comparison.steps {
        let new = &step.new_exits;
        let is_end = step.name == END;
        let cell = |there: bool, n| {
            if there || is_end {
                count(n)
            } else {
                NONE.to_owned()
            }
        };
        let what = match (step.in_before, step.in_after) {
            _ if is_end => mark(new.trend()),
            (true, false) => "not reached any more",
            (false, true) => "not reached before",
            _ => mark(new.trend()),
        };
        table.row(vec![
            step_name(step),
            cell(step.in_before, new.before),
            cell(step.in_after, new.after),
            signed(new.difference()),
            relative(new),
            what.to_owned(),
        ]);
    }
    table.render()
}

fn step_name(step: &StepChange) -> String {
    let name = clean(&step.name);
    match step.nth {
        0 => fit(&name, 32),
        nth => {
            let time = format!(" ({})", nth + 1);
            fit(&name, 32 - width(&time).min(31)) + &time
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixtures;

    fn rendered(limits: &str) -> (Comparison, Vec<Violation>) {
        let (a, mut b) = (fixtures::software(), fixtures::software());
        let step = |p: &mut crate::profile::Profile, at: usize, reason: u8, by: u64| {
            for m in p.milestones[at..]
                .iter_mut()
                .map(|m| &mut m.accounts)
                .chain([&mut p.total])
            {
                m.total += by;
                match m.reasons.iter_mut().find(|r| r.reason == reason) {
                    Some(r) => {
                        r.exits += by;
                        r.cycles += by * 2_000;
                    }
                    None => m.residual += by,
                }
            }
        };
        step(&mut b, 3, 48, 58);
        step(&mut b, 5, 30, 3);
        step(&mut b, 6, 99, 7);
        b.total.reasons.retain(|r| r.reason != 55);
        b.total.total -= 1;
        b.milestones.remove(6);
        b.host.kernel = "6.12.51".to_owned();
        b.machine.images[0].sha256 = "0".repeat(64);
        let comparison = Comparison::of(("main.json", &a), ("branch.json", &b));
        let violations = comparison.violations(&limits.parse().unwrap());
        (comparison, violations)
    }

    #[test]
    fn page() {
        let (comparison, violations) = rendered("5%,30=0");
        insta::assert_snapshot!(text(&comparison, Some(&violations)));
    }

    #[test]
    fn two_kinds_of_host() {
        let (a, b) = (fixtures::cut_short(), fixtures::ledger());
        let comparison = Comparison::of(("a.json", &a), ("b.json", &b));
        insta::assert_snapshot!(text(&comparison, None));
    }

    #[test]
    fn with_the_kernel_ledger() {
        let (a, mut b) = (fixtures::histograms(), fixtures::histograms());
        for (reason, more) in [(12, 40), (1, 21), (10, 3)] {
            let r = b.total.reasons.iter_mut().find(|r| r.reason == reason);
            r.unwrap().exits += more;
            b.total.total += more;
        }
        let comparison = Comparison::of(("main.json", &a), ("branch.json", &b));
        let violations = comparison.violations(&"fixed=0".parse().unwrap());
        let known = text(&comparison, Some(&violations));
        let unknown = Comparison::of(("old.json", &fixtures::software()), ("branch.json", &b));
        let violations = unknown.violations(&"fixed=0".parse().unwrap());
        let lines: Vec<String> = violations.iter().map(line).collect();
        insta::assert_snapshot!(format!("{known}\n{}", lines.join("\n")));
    }

    #[test]
    fn for_programs() {
        let (comparison, violations) = rendered("30=0");
        let value: serde_json::Value =
            serde_json::from_str(&json(&comparison, Some(&violations))).unwrap();
        assert_eq!(value["schema"], "exitvisor-comparison");
        assert_eq!(value["violations"][0]["allowed"], "0");
        assert_eq!(value["reasons"][0]["trend"], "grew");
        assert_eq!(value["fixed"], serde_json::Value::Null);
    }

    #[test]
    fn extremes() {
        let comparison = Comparison::of(("a", &fixtures::zero()), ("b", &fixtures::huge()));
        let violations = comparison.violations(&"0".parse().unwrap());
        insta::assert_snapshot!(text(&comparison, Some(&violations)));
    }
}
