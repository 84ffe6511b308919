//! Several runs of one boot, for people and for programs: each paging's runs, both side by side, and
//! the questions answered.

use super::format::{NONE, WIDTH, clean, count, fit, grouped, labelled, percent};
use super::table::{Side, Table};
use super::{json, runs};
use crate::profile::Profile;
use crate::profile::figures::share;
use crate::profile::questions::{Group, Growth, Questions, ShadowCost, SideBySide};
use crate::profile::runs::{ReasonSpread, Spread};
use Side::{Left, Right};
use serde::Serialize;

const NAME: usize = 34;
/// So many reasons are named as the most and the least frequent, or as what differs.
const SHOWN: usize = 3;

/// All of it as JSON.
pub fn json(profiles: &[Profile]) -> String {
    #[derive(Serialize)]
    struct Document {
        schema: &'static str,
        version: u32,
        #[serde(flatten)]
        questions: Questions,
        answers: Vec<Answer>,
    }
    let questions = Questions::of(profiles);
    json::pretty(&Document {
        schema: "exitvisor-runs",
        version: 1,
        answers: answers(&questions),
        questions,
    })
}

/// All of it as a page of text.
pub fn text(profiles: &[Profile]) -> String {
    let questions = Questions::of(profiles);
    let mut out = String::new();
    for group in &questions.groups {
        if questions.groups.len() > 1 {
            out += &fit(&format!("{} paging", clean(&group.paging)), WIDTH);
            out.push('\n');
        }
        let of = profiles.iter().filter(|p| p.host.paging == group.paging);
        out += &runs::render(&of.cloned().collect::<Vec<_>>());
        out.push('\n');
    }
    if !questions.side_by_side.is_empty() {
        out += "exits up to each milestone\n";
        out += &side_by_side(&questions.side_by_side);
        out.push('\n');
    }
    if questions.groups.is_empty() {
        return runs::render(profiles);
    }
    for answer in answers(&questions) {
        out += &labelled(answer.question, 0, "");
        for line in &answer.answer {
            out += &labelled("", 2, line);
        }
    }
    out
}

/// A question, and its answer.
#[derive(Debug, Serialize)]
struct Answer {
    question: &'static str,
    /// A line for each paging, or one for both.
    answer: Vec<String>,
}

fn answers(questions: &Questions) -> Vec<Answer> {
    let several = questions.groups.len() > 1;
    let each = |question, of: &dyn Fn(&Group) -> String| {
        let line = |group: &Group| match several {
            true => format!("{}: {}", clean(&group.paging), of(group)),
            false => of(group),
        };
        Answer {
            question,
            answer: questions.groups.iter().map(line).collect(),
        }
    };
    let mut answers = vec![
        each("How many exits does this boot take?", &how_many),
        each("Do they grow steadily?", &steadily),
        each("Which reasons are the most frequent?", &|group| {
            ranked(group, group.most())
        }),
        each("Which are the least?", &|group| {
            let least = ranked(group, group.least());
            format!("{least}; never: {} that could occur", group.never)
        }),
    ];
    answers.push(Answer {
        question: "Nested or shadow paging?",
        answer: vec![
            questions
                .shadow
                .as_ref()
                .map_or_else(|| "one of them only was measured".to_owned(), shadow),
        ],
    });
    answers
}

/// "1,950 … 2,010, median 1,960", or the one figure.
fn range(spread: &Spread) -> String {
    match spread.varies() {
        true => format!(
            "{} … {}, median {}",
            grouped(spread.min),
            grouped(spread.max),
            grouped(spread.median)
        ),
        false => grouped(spread.median),
    }
}

fn how_many(group: &Group) -> String {
    let fixed = match &group.runs.fixed {
        Some(fixed) => format!("; {} without what time drives", range(fixed)),
        None => String::new(),
    };
    let runs = match group.runs.runs {
        1 => "1 run".to_owned(),
        runs => format!("{runs} runs"),
    };
    format!("{}{fixed} ({runs})", range(&group.runs.total))
}

fn steadily(group: &Group) -> String {
    let Some(growth) = &group.growth else {
        return "there are too few steps to tell".to_owned();
    };
    let Growth {
        unsteadiness,
        few,
        steps,
        jump,
        adds,
    } = growth;
    let word = match unsteadiness {
        u if *u < 0.25 => "yes",
        u if *u < 0.5 => "not quite",
        _ => "no",
    };
    let part = percent(share(*adds, group.runs.total.median.into()));
    format!(
        "{word}: half of it comes in {few} of {steps} steps (unsteadiness {unsteadiness:.2}: 0 even, 1 all at \
         once), most on the way to \"{}\": {} ({part})",
        fit(&clean(jump), NAME),
        grouped(*adds)
    )
}

fn ranked<'a>(group: &Group, reasons: impl Iterator<Item = &'a ReasonSpread>) -> String {
    let shown = |reason: &ReasonSpread| {
        let name = fit(&clean(group.name(reason.reason)), NAME);
        let part = percent(share(reason.exits.median, group.runs.total.median.into()));
        let exits = grouped(reason.exits.median);
        format!("{} {name} {exits} ({part})", reason.reason)
    };
    let shown: Vec<String> = reasons.take(SHOWN).map(shown).collect();
    match shown.is_empty() {
        true => "no exit has a reason".to_owned(),
        false => shown.join(", "),
    }
}

fn shadow(cost: &ShadowCost) -> String {
    let (nested, shadow) = cost.total;
    let times = match share(shadow, nested.into()) {
        Some(times) => format!("{times:.2} times as many exits with shadow paging"),
        None => "exits with shadow paging alone".to_owned(),
    };
    let fixed = match cost.fixed {
        Some((nested, shadow)) => format!(
            "; {} against {} without what time drives",
            grouped(shadow),
            grouped(nested)
        ),
        None => String::new(),
    };
    let reason = |(number, name, nested, shadow): &(u8, String, u64, u64)| {
        format!(
            "{number} {} {} against {}",
            fit(&clean(name), NAME),
            grouped(*shadow),
            grouped(*nested)
        )
    };
    let reasons: Vec<String> = cost.reasons.iter().take(SHOWN).map(reason).collect();
    format!(
        "{times} ({} against {}{fixed}); {}",
        grouped(shadow),
        grouped(nested),
        reasons.join(", ")
    )
}

fn side_by_side(rows: &[SideBySide]) -> String {
    let mut table = Table::new(&[
        ("milestone", Left),
        ("nested min", Right),
        ("median", Right),
        ("max", Right),
        ("shadow min", Right),
        ("median", Right),
        ("max", Right),
        ("ratio", Right),
    ]);
    for row in rows {
        let time = match row.nth {
            0 => String::new(),
            nth => format!(" ({})", nth + 1),
        };
        let mut cells = vec![fit(&clean(&row.name), NAME) + &time];
        for spread in [&row.nested, &row.shadow] {
            cells.extend(match spread {
                Some(spread) if spread.varies() => {
                    [spread.min, spread.median, spread.max].map(count)
                }
                Some(spread) => ["=".to_owned(), count(spread.median), "=".to_owned()],
                None => [NONE; 3].map(str::to_owned),
            });
        }
        let ratio = row.nested.zip(row.shadow);
        let ratio = ratio.and_then(|(n, s)| share(s.median, n.median.into()));
        cells.push(ratio.map_or(NONE.to_owned(), |ratio| format!("{ratio:.2}")));
        table.row(cells);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::super::format::width;
    use super::*;
    use crate::profile::fixtures;
    use proptest::prelude::*;

    #[test]
    fn both_pagings() {
        let [nested, shadow] = fixtures::paging();
        let all = [nested.clone(), shadow.clone(), nested, shadow];
        insta::assert_snapshot!(text(&all));
        let value: serde_json::Value = serde_json::from_str(&json(&all)).unwrap();
        assert_eq!(value["schema"], "exitvisor-runs");
        assert_eq!(value["groups"][1]["paging"], "shadow");
        assert_eq!(value["groups"][1]["runs"]["runs"], 2);
        assert_eq!(value["answers"].as_array().unwrap().len(), 5);
        assert_eq!(value["shadow"]["reasons"][0][0], 14);
    }

    #[test]
    fn one_paging() {
        let text = text(&[fixtures::ledger(), fixtures::ledger()]);
        assert!(!text.contains("exits up to each milestone"), "{text}");
        let last = "Nested or shadow paging?\n  one of them only was measured\n";
        assert!(text.ends_with(last), "{text}");
    }

    #[test]
    fn none() {
        assert_eq!(text(&[]), "no runs\n");
    }

    proptest! {
        #[test]
        fn any_runs_fit(runs in proptest::collection::vec(fixtures::any_profile(), 0..4)) {
            let text = text(&runs);
            for line in text.lines() {
                prop_assert!(width(line) <= WIDTH, "{line}");
                prop_assert_eq!(line, line.trim_end());
                prop_assert!(!line.contains(char::is_control), "{line:?}");
            }
        }
    }
}
