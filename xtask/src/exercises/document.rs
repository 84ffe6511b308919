//! The document: the results as Markdown, to be read on its own.

use std::fmt::Write;

use super::results::{Answered, Block, Results, Table};

/// The whole document.
pub(crate) fn markdown(results: &Results) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, results);
    text
}

fn write(text: &mut String, results: &Results) -> std::fmt::Result {
    writeln!(text, "# VM exits: the exercises, answered\n")?;
    writeln!(text, "Made by {} on {}.\n", results.tool, results.created)?;
    writeln!(text, "    {}\n", results.command)?;
    paragraph(
        text,
        "makes it again. Each figure was measured in that run: real, unmodified `kvm_amd` and `kvm_intel` of \
         Debian's Linux, on CPUs that are emulated. Counts are those of real KVM; cycles are the emulator's, and \
         say nothing of real processors. Exits are named by the basic exit reasons of the Intel SDM, volume 3D, \
         appendix C; on AMD they are translated.",
    )?;
    paragraph(
        text,
        "The figures behind each answer lie beside this document: `results.json`, a CSV for each exercise, and in \
         `raw/` the profile of each run (JSON, CSV) and what its guest printed (txt), as \
         `amd-nested-boot.json`. `firmware` and `guest-kernel` in the command lines are this project's own. One run \
         alone: `cargo xtask boot-profile --on amd-lab --cmdline 'WORDS'`, or `cargo xtask lab run --host amd -- \
         profile …`.",
    )?;
    summary(text, results)?;
    hosts(text, results)?;
    for (i, exercise) in results.exercises.iter().enumerate() {
        answer(text, i + 1, exercise)?;
    }
    Ok(())
}

fn summary(text: &mut String, results: &Results) -> std::fmt::Result {
    let mut table = Table::new(
        "",
        ["", "exercise", ">expectations met", ">failed", "not run"],
    );
    for (i, exercise) in results.exercises.iter().enumerate() {
        let failed = exercise.failures().count();
        let labs: Vec<&str> = exercise.not_run.iter().map(|n| n.lab.as_str()).collect();
        table.row([
            (i + 1).to_string(),
            exercise.title.clone(),
            (exercise.checks.len() - failed).to_string(),
            match failed {
                0 => "0".to_owned(),
                n => format!("**{n}**"),
            },
            labs.join(", "),
        ]);
    }
    write_table(text, &table)
}

fn hosts(text: &mut String, results: &Results) -> std::fmt::Result {
    writeln!(text, "## The hosts\n")?;
    let mut columns = vec![String::new()];
    columns.extend(results.labs.iter().map(|lab| lab.title.clone()));
    let mut table = Table::new("", columns);
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in results.labs.iter().flat_map(|lab| &lab.facts) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    for name in names {
        let mut row = vec![name.to_owned()];
        for lab in &results.labs {
            let fact = lab.facts.iter().find(|(known, _)| known == name);
            row.push(fact.map_or_else(String::new, |(_, value)| value.clone()));
        }
        table.row(row);
    }
    write_table(text, &table)?;
    for lab in &results.labs {
        for why in &lab.missing {
            writeln!(text, "**Not run**, {}: {why}\n", lab.title)?;
        }
    }
    Ok(())
}

fn answer(text: &mut String, number: usize, exercise: &Answered) -> std::fmt::Result {
    writeln!(text, "## {number}. {}\n", exercise.title)?;
    paragraph(text, &format!("*{}*", exercise.question))?;
    for check in exercise.failures() {
        let found = check.failed.as_deref().unwrap_or_default();
        let (lab, expected) = (&check.lab, &check.expected);
        writeln!(
            text,
            "**FAILED**, {lab}: expected {expected}; found {found}\n"
        )?;
    }
    for not_run in &exercise.not_run {
        writeln!(text, "**Not run**, {}: {}\n", not_run.lab, not_run.why)?;
    }
    if !exercise.ran.is_empty() {
        writeln!(text, "Run:\n")?;
        for line in &exercise.ran {
            writeln!(text, "    {line}")?;
        }
        writeln!(text)?;
    }
    for block in &exercise.body {
        match block {
            Block::Text(words) => paragraph(text, words)?,
            Block::Table(table) => write_table(text, table)?,
            Block::Code(lines) => writeln!(text, "```text\n{lines}\n```\n")?,
        }
    }
    for (title, words) in [("Why", &exercise.why), ("Source", &exercise.source)] {
        if !words.is_empty() {
            paragraph(text, &format!("**{title}.** {words}"))?;
        }
    }
    write_table(text, &checked(exercise))
}

/// Every expectation, and how often it was met in each lab.
fn checked(exercise: &Answered) -> Table {
    let mut labs: Vec<&str> = Vec::new();
    let mut expectations: Vec<&str> = Vec::new();
    for check in &exercise.checks {
        if !labs.contains(&check.lab.as_str()) {
            labs.push(&check.lab);
        }
        if !expectations.contains(&check.expected.as_str()) {
            expectations.push(&check.expected);
        }
    }
    let mut columns = vec!["expected"];
    columns.extend(&labs);
    let mut table = Table::new("Checked", columns);
    for expected in expectations {
        let mut cells = vec![expected.to_owned()];
        for lab in &labs {
            let all = exercise.checks.iter();
            let all = all.filter(|check| check.expected == expected && check.lab == *lab);
            let (met, failed): (Vec<_>, Vec<_>) = all.partition(|check| check.failed.is_none());
            cells.push(match (met.len(), failed.len()) {
                (0, 0) => "not run".to_owned(),
                (1, 0) => "met".to_owned(),
                (n, 0) => format!("met, {n} times"),
                (0, 1) => "**FAILED**".to_owned(),
                (met, failed) => format!("**FAILED**, {failed} of {}", met + failed),
            });
        }
        table.row(cells);
    }
    table
}

/// A paragraph, its lines no longer than they are read with ease.
fn paragraph(text: &mut String, words: &str) -> std::fmt::Result {
    const WIDTH: usize = 110;
    let mut length = 0;
    for word in words.split_whitespace() {
        let more = word.chars().count();
        if length > 0 && length + 1 + more > WIDTH {
            writeln!(text)?;
            length = 0;
        } else if length > 0 {
            write!(text, " ")?;
            length += 1;
        }
        write!(text, "{word}")?;
        length += more;
    }
    writeln!(text, "\n")
}

/// A table of GitHub's Markdown, its source aligned too.
fn write_table(text: &mut String, table: &Table) -> std::fmt::Result {
    if table.rows.is_empty() {
        return Ok(());
    }
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    let header = table.columns.iter().map(|column| cell(&column.title));
    let header: Vec<String> = header.collect();
    let rows: Vec<Vec<String>> = table
        .rows
        .iter()
        .map(|row| row.iter().map(|text| cell(text)).collect())
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widths = cells.chain(header.get(column)).map(|c| c.chars().count());
        widths.max().unwrap_or(0).max(3)
    };
    let widths: Vec<usize> = (0..table.columns.len()).map(width).collect();
    if !table.caption.is_empty() {
        writeln!(text, "{}:\n", table.caption)?;
    }
    let mut line = |cells: &[String]| -> std::fmt::Result {
        for ((column, width), i) in table.columns.iter().zip(&widths).zip(0..) {
            let cell = cells.get(i).map_or("", String::as_str);
            let room = " ".repeat(width.saturating_sub(cell.chars().count()));
            match column.right {
                true => write!(text, "| {room}{cell} ")?,
                false => write!(text, "| {cell}{room} ")?,
            }
        }
        writeln!(text, "|")
    };
    line(&header)?;
    let rule = table.columns.iter().zip(&widths).map(|(column, width)| {
        let dashes = "-".repeat(width - 1);
        if column.right {
            format!("{dashes}:")
        } else {
            format!("{dashes}-")
        }
    });
    line(&rule.collect::<Vec<_>>())?;
    for row in &rows {
        line(row)?;
    }
    writeln!(text)
}
