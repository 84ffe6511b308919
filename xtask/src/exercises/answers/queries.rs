//! Five successive queries, the milestones before them, and how steadily the counts grow.

use serde_json::json;

use super::super::console::{self, Record};
use super::super::evidence::Evidence;
use super::super::plan::{CPUIDS, QUERIES};
use super::super::profile::reason;
use super::super::results::{Answered, Table, grouped, signed};
use super::{columns, profiled, row, short};
use crate::kvm_module::Paging;

pub(super) fn answer(labs: &[Evidence]) -> Answered {
    let mut answered = Answered {
        title: "Five successive queries".to_owned(),
        question: "Ask several times in a row. By how much do the counts grow from one query to the next? \
                   Is the growth steady, or do certain operations make it jump, and through which reasons?"
            .to_owned(),
        source: "The guest kernel's exit log: each row is what the leaves answered then. `queries.csv` has \
                 every reason of every row."
            .to_owned(),
        why: "Between two queries in a row the guest does nothing but ask: each question is one exit of \
              reason 0 (the #DB of the gate at which the VMM answers), and two port writes (30) mark them as \
              the profiler's own; the host's timer adds one of reason 1 now and then. So the growth is steady, \
              and it is the price of asking: read from the exit page, the same figures cost nothing. On the way to a \
              milestone the guest does other things besides, and the growth is theirs: what the workload's \
              instructions cost was known beforehand."
            .to_owned(),
        ..Answered::default()
    };
    answered
        .csv
        .push(row(["lab", "asked at", "reason", "exits", "growth"]));
    let mut logs: Vec<(&str, Vec<Record>)> = Vec::new();
    for lab in labs {
        let found = profiled(&mut answered, lab, Paging::Nested, "queries");
        let Some((ran, _)) = found else {
            continue;
        };
        let mut boots = console::boots(&ran.said.stderr);
        if boots.len() != 1 {
            answered.expect(
                &lab.title,
                "one boot is logged",
                false,
                boots.len().to_string(),
            );
            continue;
        }
        let log = boots.remove(0);
        check(&mut answered, &lab.title, &log, &ran.said.stderr);
        export(&mut answered, &lab.title, &log);
        logs.push((short(&lab.title), log));
    }
    answered.table(growth(
        "The boot, milestone by milestone, and its workload",
        &logs,
        false,
    ));
    answered.table(growth("Then five queries in a row", &logs, true));
    for (lab, log) in &logs {
        answered.text(steadiness(lab, log));
    }
    by_page(&mut answered, labs);
    answered
}

/// The same five queries, where asking costs no exit.
fn by_page(answered: &mut Answered, labs: &[Evidence]) {
    let mut logs = Vec::new();
    for lab in labs {
        match lab.profiled(Paging::Nested, "queries-page") {
            Err(why) => answered.not_run(&lab.title, format!("queries-page: {why}")),
            Ok((_, profile)) if profile.end.status == NO_PAGE => {
                let why = "queries-page: there is no exit page";
                answered.not_run(&lab.title, why);
            }
            Ok((ran, profile)) => {
                let end = &profile.end;
                answered.expect(
                    &lab.title,
                    "the guest of the run `queries-page` ends well",
                    end.status == 0 && ran.said.status == 0,
                    format!("status {}: {}", ran.said.status, end.detail),
                );
                let mut boots = console::boots(&ran.said.stderr);
                let log = boots.pop().unwrap_or_default();
                let asked: Vec<&Record> = log.iter().filter(|record| is_query(record)).collect();
                let growth = asked.iter().flat_map(|record| &record.reasons);
                let asking = growth
                    .filter(|c| c.reason == 0)
                    .map(|c| c.growth)
                    .sum::<i64>();
                answered.expect(
                    &lab.title,
                    "five queries by the exit page add no exit of reason 0",
                    asked.len() == QUERIES && asking == 0,
                    format!("{} queries, {asking} exits", asked.len()),
                );
                logs.push((short(&lab.title), log));
            }
        }
    }
    answered.table(growth(
        "The same five queries, read from the exit page",
        &logs,
        true,
    ));
}

/// The guest's status if it was to read the exit page and there is none.
const NO_PAGE: u8 = 13;

fn is_query(record: &Record) -> bool {
    record.label.starts_with("query ")
}

/// The growth of all exits from each record to the next.
fn steps(log: &[Record]) -> impl Iterator<Item = (&Record, i128)> {
    log.windows(2).map(|pair| {
        let growth = i128::from(pair[1].exits) - i128::from(pair[0].exits);
        (&pair[1], growth)
    })
}

fn check(answered: &mut Answered, lab: &str, log: &[Record], console: &str) {
    let queries = log.iter().filter(|record| is_query(record)).count();
    answered.expect(
        lab,
        format!("{QUERIES} queries are answered after the boot"),
        queries == QUERIES,
        queries.to_string(),
    );
    let shrunk: Vec<String> = log
        .iter()
        .flat_map(|record| record.reasons.iter().map(move |c| (record, c)))
        .filter(|(_, counted)| counted.growth < 0)
        .map(|(record, counted)| format!("{} at {}", counted.reason, record.label))
        .collect();
    let total_shrinks = steps(log).any(|(_, growth)| growth < 0);
    answered.expect(
        lab,
        "no count ever shrinks",
        shrunk.is_empty() && !total_shrinks,
        shrunk.join(", "),
    );
    let sums = log.iter().all(|record| {
        // Each answer is a snapshot of its own: later ones have seen the earlier questions.
        let sum: u64 = record.reasons.iter().map(|c| c.exits).sum();
        sum >= record.exits
    });
    answered.expect(
        lab,
        "each query's reasons add up to no less than its total",
        sums,
        "less",
    );
    for workload in [
        "cpuid: exactly 1000 exits",
        "pio: exactly 500 exits",
        "hlt: exactly 20 exits",
    ] {
        let line = format!("workload {workload}");
        let said = console.lines().find(|l| l.starts_with(&line));
        let kind = workload.split(':').next().unwrap_or_default();
        let found = console
            .lines()
            .find(|l| l.contains(&format!("workload {kind}:")));
        answered.expect(
            lab,
            format!("the guest finds {workload} for what it did"),
            said.is_some(),
            found.unwrap_or("nothing said of it"),
        );
    }
    let at_workload = log.iter().find(|record| record.label == "workload");
    let cpuid = at_workload.and_then(|record| record.reasons.iter().find(|c| c.reason == 10));
    let grown = cpuid.map_or(0, |counted| counted.growth);
    answered.expect(
        lab,
        format!("{CPUIDS} CPUIDs make reason 10 jump by {CPUIDS}"),
        grown == CPUIDS as i64,
        grown.to_string(),
    );
}

/// What grew most in a record, as `10 CPUID +1000, 30 …`.
fn mostly(record: &Record) -> String {
    let mut grown: Vec<_> = record.reasons.iter().filter(|c| c.growth != 0).collect();
    grown.sort_by_key(|c| (std::cmp::Reverse(c.growth), c.reason));
    let more = grown.len().saturating_sub(3);
    let mut parts: Vec<String> = grown
        .iter()
        .take(3)
        .map(|c| format!("{} {:+}", reason(c.reason), c.growth))
        .collect();
    if more > 0 {
        parts.push(format!("{more} more"));
    }
    parts.join(", ")
}

/// The records side by side: those of queries, or the others.
fn growth(caption: &str, logs: &[(&str, Vec<Record>)], queries: bool) -> Table {
    let titles: Vec<&str> = logs.iter().map(|(lab, _)| *lab).collect();
    let of_lab = [">exits", ">growth", "through"];
    let mut table = Table::new(caption, columns(&["asked at"], &titles, &of_lab));
    let mut labels: Vec<&str> = Vec::new();
    for record in logs.iter().flat_map(|(_, log)| log) {
        if is_query(record) == queries && !labels.contains(&record.label.as_str()) {
            labels.push(&record.label);
        }
    }
    for label in labels {
        let mut cells = vec![label.to_owned()];
        for (_, log) in logs {
            let at = log.iter().position(|record| record.label == label);
            let Some(at) = at else {
                cells.extend([String::new(), String::new(), String::new()]);
                continue;
            };
            let before = at.checked_sub(1).map_or(0, |before| log[before].exits);
            cells.push(grouped(log[at].exits));
            cells.push(signed(log[at].exits, before));
            cells.push(mostly(&log[at]));
        }
        table.row(cells);
    }
    table
}

/// How steady it was, in words that follow from the figures.
fn steadiness(lab: &str, log: &[Record]) -> String {
    let of_queries = steps(log).filter(|(record, _)| is_query(record));
    let growth: Vec<i128> = of_queries.map(|(_, growth)| growth).collect();
    let (Some(least), Some(most)) = (growth.iter().min(), growth.iter().max()) else {
        return format!("**{lab}**: no queries were answered.");
    };
    let queries = match least == most {
        true => format!(
            "each of the {} queries adds exactly {least} exits",
            growth.len()
        ),
        false => format!(
            "the {} queries add {least} to {most} exits each",
            growth.len()
        ),
    };
    let others = steps(log).filter(|(record, _)| !is_query(record));
    let others: Vec<_> = others.collect();
    let all: i128 = others.iter().map(|(_, growth)| growth).sum();
    let jump = others.iter().max_by_key(|(_, growth)| *growth);
    let jump = jump.map_or_else(String::new, |(record, growth)| {
        format!(
            "; the boot before is unsteady: {growth} of its {all} exits after the first record come on the \
             way to \"{}\" ({})",
            record.label,
            mostly(record)
        )
    });
    format!("**{lab}**: {queries}{jump}.")
}

fn export(answered: &mut Answered, lab: &str, log: &[Record]) {
    for record in log {
        let label = record.label.as_str();
        let all = ["all", &record.exits.to_string(), ""];
        let mut cells = row([short(lab), label]);
        cells.extend(row(all));
        answered.csv.push(cells);
        for counted in &record.reasons {
            answered.csv.push(row([
                short(lab),
                label,
                &counted.reason.to_string(),
                &counted.exits.to_string(),
                &counted.growth.to_string(),
            ]));
        }
    }
    answered.figures.insert(lab.to_owned(), json!(log));
}

#[cfg(test)]
mod tests {
    use super::super::super::fixtures::{accounts, lab, profile};
    use super::*;

    /// A log of a boot and five queries, each of which adds so many exits of reason 0.
    fn console(growth: [i64; 5]) -> String {
        let mut text = "workload cpuid: exactly 1000 exits of reason 10 CPUID\n\
             workload pio: exactly 500 exits of reason 30 I/O instruction\n\
             workload hlt: exactly 20 exits of reason 12 HLT\n"
            .to_owned();
        let mut line = |label: &str, exits: i64, reasons: &str| {
            text += &format!("[exit-log] {label:<12} CPUID(0x4FFFFFFF), exits= {exits}");
            text += ", cycles spent in exit= 9\n";
            text += &format!("[exit-log] {label:<12}   {reasons}\n");
        };
        line("devices", 100, "0 exception or NMI 100 +100");
        line(
            "workload",
            1100,
            "10 CPUID 1000 +1000 · 0 exception or NMI 100 +0",
        );
        let mut zeros = 100;
        for (number, growth) in (1..).zip(growth) {
            zeros += growth;
            let reasons = format!("10 CPUID 1000 +0 · 0 exception or NMI {zeros} {growth:+}");
            line(&format!("query {number}"), 1000 + zeros, &reasons);
        }
        text
    }

    fn answered(growth: [i64; 5]) -> Answered {
        let profile = profile("nested", &accounts(&[]), &[]);
        let console = console(growth);
        answer(&[lab("AMD lab").with(Paging::Nested, "queries", &console, profile)])
    }

    #[test]
    fn growth_and_its_steadiness() {
        let steady = answered([25; 5]);
        assert_eq!(steady.failures().count(), 0, "{steady:#?}");
        insta::assert_snapshot!(format!("{:#?}", steady.body));
        let boots = console::boots(&console([25, 25, 26, 25, 25]));
        let words = steadiness("AMD", &boots[0]);
        assert!(
            words.contains("the 5 queries add 25 to 26 exits each; "),
            "{words}"
        );
    }

    #[test]
    fn a_count_that_shrinks_is_found() {
        let answered = answered([25, 25, -1, 25, 25]);
        let failures: Vec<_> = answered.failures().collect();
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert_eq!(failures[0].expected, "no count ever shrinks");
    }
}
