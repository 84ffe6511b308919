//! The table, for people (text, markdown) and for programs (JSON).

use std::fmt::Write;

use serde::Serialize;

use super::cost::{Aim, Cost, Figures, Key, Kind, best_peer};
use super::start::Start;

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// `exitvisor-bench-linux`.
    pub(crate) schema: &'static str,
    /// Of this schema.
    pub(crate) version: u32,
    /// The guest and the lab, for people.
    pub(crate) method: Vec<String>,
    /// One boot each.
    pub(crate) boots: Vec<Cost>,
    /// What is aimed at.
    pub(crate) aims: Vec<Aim>,
    /// CPU time of exitvisor's start on this machine.
    pub(crate) start: Option<Start>,
    /// What could not be measured, and why.
    pub(crate) unmeasured: Vec<String>,
}

const COLUMNS: [&str; 14] = [
    "VMM", "total", "fixed", "returns", "port I/O", "faults", "CPUID", "MSR", "CR", "other", "ms",
    "ratio", "anon.", "file",
];

impl Report {
    /// A row for each boot.
    fn rows(&self) -> Vec<Vec<String>> {
        let best = best_peer(&self.boots);
        let row = |cost: &Cost| {
            let mut row = vec![cost.name.clone()];
            match &cost.figures {
                Some(figures) => row.extend(cells(figures, best)),
                None => row.resize(COLUMNS.len(), "–".to_owned()),
            }
            row
        };
        self.boots.iter().map(row).collect()
    }

    /// What went wrong, a line each.
    fn complaints(&self) -> Vec<String> {
        let failed = self.boots.iter().filter_map(|cost| {
            let error = cost.error.as_ref()?;
            Some(format!("{}: {error}", cost.name))
        });
        failed.chain(self.unmeasured.iter().cloned()).collect()
    }

    /// Boots that had to be made again, a line each.
    fn repeated(&self) -> Vec<String> {
        let of = self.boots.iter().filter(|cost| cost.stood_still > 0);
        of.map(|cost| {
            format!(
                "{}: took too long in the lab and was booted again, {}×: see docs/bench.md, boots that stand still",
                cost.name, cost.stood_still
            )
        })
        .collect()
    }

    /// For a terminal; so many keys of each kind for each VMM.
    pub(crate) fn text(&self, top: usize) -> String {
        let mut out = self.method.join("\n") + "\n\n";
        let header = COLUMNS.map(str::to_owned).to_vec();
        let rows: Vec<_> = std::iter::once(header).chain(self.rows()).collect();
        out += &aligned(&rows);
        out += LEGEND;
        for cost in &self.boots {
            let Some(figures) = &cost.figures else {
                continue;
            };
            let keys = tops(figures, top);
            if keys.is_empty() {
                continue;
            }
            let _ = write!(out, "\n{}\n", cost.name);
            let rows: Vec<_> = keys.iter().map(|key| key_cells(key)).collect();
            out += &aligned(&rows);
        }
        if !self.aims.is_empty() {
            out += "\naims\n";
            let rows: Vec<_> = self.aims.iter().map(aim_cells).collect();
            out += &aligned(&rows);
        }
        for line in self.repeated() {
            let _ = writeln!(out, "{line}");
        }
        for line in self.complaints() {
            let _ = writeln!(out, "not measured: {line}");
        }
        out
    }

    /// For a document.
    pub(crate) fn markdown(&self, top: usize) -> String {
        let mut out = self.method.join("\n") + "\n\n";
        out += &table(&COLUMNS.map(str::to_owned), &self.rows());
        let _ = write!(out, "\n{}", LEGEND.trim_start());
        for cost in &self.boots {
            let Some(figures) = &cost.figures else {
                continue;
            };
            let keys = tops(figures, top);
            if keys.is_empty() {
                continue;
            }
            let _ = write!(out, "\n### {}\n\n", cost.name);
            let rows: Vec<_> = keys.iter().map(|key| key_cells(key)).collect();
            out += &table(&["kind", "what", "", "exits"].map(str::to_owned), &rows);
        }
        if !self.aims.is_empty() {
            let rows: Vec<_> = self.aims.iter().map(aim_cells).collect();
            out += "\n";
            out += &table(
                &["aim", "measured", "at most", ""].map(str::to_owned),
                &rows,
            );
        }
        for line in self.repeated() {
            let _ = write!(out, "\n{line}\n");
        }
        for line in self.complaints() {
            let _ = write!(out, "\nNot measured: {line}\n");
        }
        out
    }
}

const LEGEND: &str = "
fixed: the total without what time drives (external and virtual interrupts, HLT, writes to the TSC deadline
and to the x2APIC's EOI; of a guest that ticks by PIT and PIC their writes too). returns: of KVM_RUN.
faults: nested page faults. ms: the lab's clock, from the VMM's start to the first line of user space; ratio:
to the fastest of the others. anon., file: the VMM's resident memory besides guest RAM at that line, MiB.
";

fn cells(figures: &Figures, best: Option<f64>) -> Vec<String> {
    let counts = [
        figures.total,
        figures.fixed,
        figures.userspace,
        figures.ports,
        figures.faults,
        figures.cpuid,
        figures.msr,
        figures.cr,
        figures.other,
    ];
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / (1024.0 * 1024.0));
    let mut cells: Vec<String> = counts.map(grouped).to_vec();
    cells.push(format!("{:.0}", figures.milliseconds));
    cells.push(match best {
        Some(best) => format!("{:.2}", figures.milliseconds / best),
        None => "–".to_owned(),
    });
    cells.extend([mib(figures.memory.anonymous), mib(figures.memory.file)]);
    cells
}

/// The keys with most exits of each kind.
fn tops(figures: &Figures, top: usize) -> Vec<&Key> {
    let mut keys = Vec::new();
    for kind in [Kind::Port, Kind::Msr, Kind::Page, Kind::Leaf] {
        let of = figures.keys.iter().filter(|key| key.kind == kind);
        keys.extend(of.take(top));
    }
    keys
}

/// `port  OUT 0x3f8  COM1  120`.
fn key_cells(key: &Key) -> Vec<String> {
    let number = format!("{:#x}", key.key);
    let (kind, what) = match (key.kind, key.write) {
        (Kind::Port, true) => ("port", format!("OUT {number}")),
        (Kind::Port, false) => ("port", format!("IN {number}")),
        (Kind::Msr, true) => ("MSR", format!("WRMSR {number}")),
        (Kind::Msr, false) => ("MSR", format!("RDMSR {number}")),
        (Kind::Page, _) => ("page", number),
        (Kind::Leaf, _) => ("CPUID", number),
    };
    vec![
        kind.to_owned(),
        what,
        key.name.to_owned(),
        grouped(key.exits),
    ]
}

fn aim_cells(aim: &Aim) -> Vec<String> {
    let shown = |value: f64| match aim.unit {
        "" => grouped(value as u64),
        unit => format!("{value:.2} {unit}"),
    };
    let verdict = if aim.reached {
        "reached"
    } else {
        "NOT REACHED"
    };
    vec![
        aim.what.to_owned(),
        shown(aim.measured),
        format!("≤ {}", shown(aim.most)),
        verdict.to_owned(),
    ]
}

/// `43847` as `43,847`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Columns, words to the left and numbers to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &Vec<String>, at: usize| row.get(at).cloned().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|at| rows.iter().map(|row| cell(row, at).chars().count()).max())
        .map(Option::unwrap_or_default)
        .collect();
    let numeric: Vec<bool> = (0..columns).map(|at| is_numeric(rows, at)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for at in 0..columns {
            let text = cell(row, at);
            let gap = " ".repeat(widths[at] - text.chars().count());
            if at > 0 {
                line += "  ";
            }
            line += &if numeric[at] {
                gap + &text
            } else {
                text + &gap
            };
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// Whether what stands in this column last is a number.
fn is_numeric(rows: &[Vec<String>], at: usize) -> bool {
    let last = rows.iter().rev().filter_map(|row| row.get(at));
    let mut last = last.filter(|cell| *cell != "–" && !cell.is_empty());
    last.next().is_some_and(|cell| {
        cell.trim_start_matches("≤ ")
            .starts_with(|c: char| c.is_ascii_digit())
            && !cell.starts_with("0x")
    })
}

fn table(header: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = vec!["---".to_owned(); header.len()];
    let rows = rows.iter().map(|row| line(row));
    line(header) + &line(&rule).replace(' ', "") + &rows.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::super::cost::{aims, tests::costs};
    use super::*;

    fn report() -> Report {
        let boots = costs();
        Report {
            schema: "exitvisor-bench-linux",
            version: 1,
            method: vec!["Linux, 256 MiB, in a lab".to_owned()],
            aims: aims(&boots, None),
            start: None,
            boots,
            unmeasured: vec!["start: no KVM here".to_owned()],
        }
    }

    #[test]
    fn text() {
        insta::assert_snapshot!(report().text(2));
    }

    #[test]
    fn markdown() {
        insta::assert_snapshot!(report().markdown(1));
    }

    #[test]
    fn numbers_in_groups() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_043_847), "1,043,847");
    }
}
