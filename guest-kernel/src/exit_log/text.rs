//! The exit log as text: the coursework's line, then the reasons and what each grew by.

use exit_abi::leaf::Layout;

use super::reading::ReasonLine;
use super::table::{Label, Record, Table};
use crate::line::Line;

/// A line is broken when it gets longer than this.
const WIDTH: usize = 160;
/// The widest name of a milestone (`kernel loaded` sticks out by one).
const LABEL: usize = 12;
const PREFIX: &str = "[exit-log] ";

/// Begins a line on a record.
pub fn begin(line: &mut Line, label: Label) {
    *line = Line::new();
    line.text(PREFIX);
    match label {
        Label::Milestone(number) => match exit_abi::milestone::name(number) {
            Some(name) => line.text(name),
            None => line.text("milestone ").number(number.into()),
        },
        Label::Query(number) => line.text("query ").number(number.into()),
    };
    line.pad_to(PREFIX.len() + LABEL).text(" ");
}

fn growth(line: &mut Line, now: u64, before: u64) {
    if now >= before {
        line.text(" +").number(now - before);
    } else {
        // Counts do not shrink; if one does, it shall be seen.
        line.text(" -").number(before - now);
    }
}

/// Hands the lines of record `index` to `emit`, without their newlines.
pub fn record(table: &Table, index: usize, layout: Layout, mut emit: impl FnMut(&mut Line)) {
    let Some(record) = table.records().get(index) else {
        return;
    };
    let before = index.checked_sub(1).and_then(|i| table.records().get(i));
    let mut line = Line::new();
    begin(&mut line, record.label);
    line.text("CPUID(0x")
        .hex32(layout.total_exits)
        .text("), exits= ")
        .number(record.exits);
    line.text(", cycles spent in exit= ").number(record.cycles);
    emit(&mut line);
    reasons(table, record, before, "", |l| l.exits, &mut emit);
}

/// The same for the cycles of each reason.
pub fn cycles(table: &Table, index: usize, mut emit: impl FnMut(&mut Line)) {
    let Some(record) = table.records().get(index) else {
        return;
    };
    let before = index.checked_sub(1).and_then(|i| table.records().get(i));
    reasons(table, record, before, "cycles: ", |l| l.cycles, &mut emit);
}

/// The reasons whose figure is not zero, the largest first.
fn reasons(
    table: &Table,
    record: &Record,
    before: Option<&Record>,
    title: &str,
    figure: fn(&ReasonLine) -> u64,
    emit: &mut impl FnMut(&mut Line),
) {
    let now = table.reasons(record);
    let then = before.map(|b| table.reasons(b)).unwrap_or_default();
    let mut line = Line::new();
    let mut separator = title;
    begin(&mut line, record.label);
    line.text("  ");
    // Few reasons are seen: looking for the next largest is cheaper than to sort.
    let rank = |l: &ReasonLine| (figure(l), u8::MAX - l.reason.number());
    let mut last = (u64::MAX, u8::MAX);
    while let Some(next) = now
        .iter()
        .filter(|l| figure(l) > 0 && rank(l) < last)
        .max_by_key(|l| rank(l))
    {
        last = rank(next);
        if line.len() > WIDTH {
            emit(&mut line);
            begin(&mut line, record.label);
            line.text("  ");
            separator = "";
        }
        line.text(separator)
            .number(next.reason.number().into())
            .text(" ");
        line.text(next.reason.name().unwrap_or("undefined"))
            .text(" ")
            .number(figure(next));
        let earlier = then
            .iter()
            .find(|l| l.reason == next.reason)
            .map_or(0, figure);
        growth(&mut line, figure(next), earlier);
        separator = " · ";
    }
    if record.lost > 0 {
        line.text(separator)
            .number(record.lost as u64)
            .text(" more, no room to keep them");
    } else if separator == title {
        line.text("nothing counted");
    }
    emit(&mut line);
}

#[cfg(test)]
mod tests {
    use super::super::reading::tests::asked;
    use super::*;

    fn lines(table: &Table, index: usize, layout: Layout) -> Vec<String> {
        let mut lines = Vec::new();
        let keep = |lines: &mut Vec<String>, l: &mut Line| {
            lines.push(String::from_utf8(l.as_bytes().to_vec()).unwrap());
        };
        record(table, index, layout, |l| keep(&mut lines, l));
        cycles(table, index, |l| keep(&mut lines, l));
        lines
    }

    #[test]
    fn the_line_of_the_coursework_and_the_reasons() {
        let layout = Layout::REVERSED;
        let mut table = Table::new();
        let first = [(30, 41, 1000), (10, 2, 50)];
        let second = [(30, 41, 1000), (10, 4, 99), (1, 58, 7), (12, 58, 1_734_729)];
        table
            .keep(Label::Milestone(8), &asked(layout, &first))
            .unwrap();
        table
            .keep(Label::Milestone(9), &asked(layout, &second))
            .unwrap();
        assert_eq!(
            lines(&table, 1, layout),
            [
                "[exit-log] interrupts   CPUID(0x4FFFFFFC), exits= 161, cycles spent in exit= 1735835",
                "[exit-log] interrupts     1 external interrupt 58 +58 · 12 HLT 58 +58 · 30 I/O instruction 41 +0 · 10 CPUID 4 +2",
                "[exit-log] interrupts     cycles: 12 HLT 1734729 +1734729 · 30 I/O instruction 1000 +0 · 10 CPUID 99 +49 · 1 external interrupt 7 +7",
            ]
        );
        assert!(lines(&table, 2, layout).is_empty());
    }

    #[test]
    fn nothing_counted_and_names_unknown() {
        let mut table = Table::new();
        table
            .keep(Label::Milestone(0x100), &asked(Layout::CLASSIC, &[]))
            .unwrap();
        assert_eq!(
            lines(&table, 0, Layout::CLASSIC)[..2],
            [
                "[exit-log] milestone 256 CPUID(0x4FFFFFFF), exits= 0, cycles spent in exit= 0",
                "[exit-log] milestone 256   nothing counted",
            ]
        );
    }

    #[test]
    fn many_reasons_are_broken_into_lines_that_fit() {
        let mut table = Table::new();
        let all: Vec<_> = (0..128).map(|n| (n, u64::from(n) << 40, 1)).collect();
        table
            .keep(Label::Query(2), &asked(Layout::CLASSIC, &all))
            .unwrap();
        let lines = lines(&table, 0, Layout::CLASSIC);
        assert!(
            lines
                .iter()
                .all(|l| l.len() < crate::line::ROOM && l.starts_with("[exit-log] query 2 "))
        );
        let shown: usize = lines.iter().map(|l| l.matches(" +").count()).sum();
        assert_eq!(shown, 127 + 128);
    }
}
