//! A record as text: the coursework's line, and a table by reason.

use std::fmt::Write;

use crate::record::{Figure, Record};

const PREFIX: &str = "[exit-log]";
/// The widest label (`before exec`).
const LABEL: usize = 12;

/// The line that old scripts parse.
pub(crate) fn line(record: &Record) -> String {
    format!(
        "{PREFIX} {:LABEL$} CPUID(0x{:08X}), exits= {}, cycles spent in exit= {}\n",
        record.label, record.leaf, record.exits.now, record.cycles.now
    )
}

/// The line, and a row per reason.
pub(crate) fn table(record: &Record) -> String {
    line(record) + &rows(record)
}

/// A row per reason.
pub(crate) fn rows(record: &Record) -> String {
    let mut text = String::new();
    let mut row = |cells: [&str; 6]| {
        let [number, name, exits, more, cycles, more_cycles] = cells;
        // Cannot fail: a string takes everything.
        let _ = writeln!(
            text,
            "{PREFIX} {number:>5} {name:<28} {exits:>10} {more:>9} {cycles:>14} {more_cycles:>13}"
        );
    };
    row(["", "reason", "exits", "more", "cycles", "more"]);
    for of in &record.reasons {
        let more = |figure: Figure| format!("{:+}", figure.more);
        row([
            &of.reason.to_string(),
            of.name.unwrap_or("undefined"),
            &of.exits.now.to_string(),
            &more(of.exits),
            &of.cycles.now.to_string(),
            &more(of.cycles),
        ]);
    }
    text
}
