//! Several runs of one boot as a page of text: what is always the same, and what varies.

use super::format::{NONE, WIDTH, bar, clean, count, fit, labelled, width};
use super::table::{Side, Table};
use crate::profile::Profile;
use crate::profile::runs::{Runs, Spread, StepSpread};
use Side::{Left, Right};

const INDENT: usize = 11;
const BAR: usize = 14;
const NAME: usize = 26;

/// The runs as text, at most 120 columns wide.
pub fn render(profiles: &[Profile]) -> String {
    let runs = Runs::of(profiles);
    let mut out = headline(&runs);
    if runs.cut_short > 0 {
        let n = runs.cut_short;
        out += &labelled(
            "",
            0,
            &format!("▲ cut short: {n} of {}", of_runs(runs.runs)),
        );
    }
    if runs.rebooted > 0 {
        let n = runs.rebooted;
        let what = format!(
            "{n} of {} rebooted: only first boots are looked at",
            of_runs(runs.runs)
        );
        out += &labelled("", 0, &what);
    }
    if runs.runs == 0 {
        return out;
    }
    out.push('\n');
    out += &steps(&runs);
    out.push('\n');
    out += &reasons(&runs, profiles);
    out.push('\n');
    if runs.fixed.is_none() {
        let why = "unknown: needs the kernel ledger in every run";
        out += &labelled("fixed", INDENT, why);
    }
    out += &labelled("cycles", INDENT, &range(&runs.cycles, ""));
    out += &varying(&runs, profiles);
    out
}

fn of_runs(runs: usize) -> String {
    if runs == 1 {
        "1 run".to_owned()
    } else {
        format!("{runs} runs")
    }
}

/// "lo … hi exits, median …", or the one figure that all runs have.
fn range(spread: &Spread, what: &str) -> String {
    let Spread { min, median, max } = *spread;
    match spread.varies() {
        true => format!(
            "{} … {}{what}, median {}",
            count(min),
            count(max),
            count(median)
        ),
        false => format!("{}{what}", count(median)),
    }
}

fn headline(runs: &Runs) -> String {
    let text = match runs.runs {
        0 => "no runs".to_owned(),
        n => format!("{}: {}", of_runs(n), range(&runs.total, " exits")),
    };
    fit(&text, WIDTH) + "\n"
}

/// Smallest, median, largest, and "=" instead of all three where they are the same.
fn cells(spread: &Spread) -> [String; 3] {
    if spread.varies() {
        [count(spread.min), count(spread.median), count(spread.max)]
    } else {
        ["=".to_owned(), count(spread.median), "=".to_owned()]
    }
}

fn steps(runs: &Runs) -> String {
    let mut table = Table::new(&[
        ("milestone", Left),
        ("runs", Right),
        ("exits min", Right),
        ("median", Right),
        ("max", Right),
        ("new min", Right),
        ("median", Right),
        ("max", Right),
        ("growth", Left),
    ]);
    let most = runs.steps.iter().map(|s| s.new.median).max().unwrap_or(0);
    for step in &runs.steps {
        let all = step.reached == runs.runs;
        let reached = if all {
            String::new()
        } else {
            step.reached.to_string()
        };
        let mut row = vec![name(step), reached];
        row.extend(cells(&step.exits));
        row.extend(cells(&step.new));
        row.push(bar(step.new.median, most, BAR));
        table.row(row);
    }
    table.render()
}

fn name(step: &StepSpread) -> String {
    let time = if step.nth == 0 {
        String::new()
    } else {
        format!(" ({})", step.nth + 1)
    };
    fit(&clean(&step.name), NAME - width(&time).min(NAME - 1)) + &time
}

/// The name by the first run that knows the reason.
fn reason_name(profiles: &[Profile], number: u8) -> String {
    let knows = profiles
        .iter()
        .find(|p| p.reasons.iter().any(|r| r.reason == number));
    let name = knows
        .or(profiles.first())
        .map_or(NONE, |p| p.reason_name(number));
    fit(&clean(name), NAME)
}

fn reasons(runs: &Runs, profiles: &[Profile]) -> String {
    let mut table = Table::new(&[
        ("", Right),
        ("reason", Left),
        ("exits min", Right),
        ("median", Right),
        ("max", Right),
        ("", Left),
    ]);
    let most = runs
        .reasons
        .iter()
        .map(|r| r.exits.median)
        .max()
        .unwrap_or(0);
    let most = most.max(runs.residual.median).max(runs.other.median);
    let row = |number: String, name: String, spread: &Spread, most: u64| {
        let mut row = vec![number, name];
        row.extend(cells(spread));
        row.push(bar(spread.median, most, BAR));
        row
    };
    for r in &runs.reasons {
        let name = reason_name(profiles, r.reason);
        table.row(row(r.reason.to_string(), name, &r.exits, most));
    }
    for (name, spread) in [("other", &runs.other), ("residual", &runs.residual)] {
        if spread.max > 0 {
            table.row(row(String::new(), name.to_owned(), spread, most));
        }
    }
    table.rule();
    table.row(row(String::new(), "total".to_owned(), &runs.total, 0));
    if let Some(fixed) = &runs.fixed {
        table.row(row(
            String::new(),
            "fixed: not time-driven".to_owned(),
            fixed,
            0,
        ));
    }
    if runs.own.max > 0 {
        table.row(row(
            String::new(),
            "the profiler's own (apart)".to_owned(),
            &runs.own,
            0,
        ));
    }
    table.render()
}

fn varying(runs: &Runs, profiles: &[Profile]) -> String {
    let varying: Vec<String> = runs
        .reasons
        .iter()
        .filter(|r| r.exits.varies())
        .map(|r| {
            let width = r.exits.max - r.exits.min;
            format!(
                "{} {} (by {})",
                r.reason,
                reason_name(profiles, r.reason),
                count(width)
            )
        })
        .collect();
    let text = match (varying.len(), runs.residual.varies()) {
        (0, false) => "nothing: every reason has the same count in every run".to_owned(),
        (0, true) => "only the residual".to_owned(),
        (_, true) => format!("{}, and the residual", varying.join(", ")),
        (_, false) => varying.join(", "),
    };
    labelled("varies", INDENT, &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixtures;
    use proptest::prelude::*;

    fn run(hlt: u64, io: u64) -> Profile {
        let mut profile = fixtures::ledger();
        let later = profile.milestones[6..].iter_mut().map(|m| &mut m.accounts);
        for accounts in later.chain([&mut profile.total]) {
            for (reason, more) in [(12, hlt), (30, io)] {
                let r = accounts
                    .reasons
                    .iter_mut()
                    .find(|r| r.reason == reason)
                    .unwrap();
                r.exits += more;
                accounts.total += more;
            }
        }
        profile
    }

    #[test]
    fn five_runs() {
        let runs = [run(0, 0), run(3, 0), run(1, 0), run(0, 4), run(2, 0)];
        insta::assert_snapshot!(render(&runs));
    }

    #[test]
    fn reboots_are_left_out_and_that_is_said() {
        let text = render(&[fixtures::software(), fixtures::reboots()]);
        let line = "1 of 2 runs rebooted: only first boots are looked at";
        assert_eq!(text.lines().nth(1), Some(line));
    }

    #[test]
    fn one_of_two_cut_short() {
        insta::assert_snapshot!(render(&[fixtures::software(), fixtures::cut_short()]));
    }

    #[test]
    fn none_and_one() {
        assert_eq!(render(&[]), "no runs\n");
        assert!(render(&[fixtures::software()]).starts_with("1 run: 895 exits\n"));
    }

    proptest! {
        #[test]
        fn any_runs_fit(runs in proptest::collection::vec(fixtures::any_profile(), 0..4)) {
            let text = render(&runs);
            for line in text.lines() {
                prop_assert!(width(line) <= WIDTH, "{line}");
                prop_assert_eq!(line, line.trim_end());
                prop_assert!(!line.contains(char::is_control), "{line:?}");
            }
        }
    }
}
