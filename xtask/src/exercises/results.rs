//! The results: pure data, of which the document is one rendering and the JSON another.

use std::collections::BTreeMap;

use serde::Serialize;

/// All results.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    /// Always `exitvisor-exercises`.
    pub(crate) schema: &'static str,
    /// Grows when a field changes its meaning.
    pub(crate) version: u32,
    /// RFC 3339, UTC.
    pub(crate) created: String,
    /// What made them: `exitvisor 0.1.0`.
    pub(crate) tool: String,
    /// The command line that makes them again.
    pub(crate) command: String,
    pub(crate) labs: Vec<Lab>,
    pub(crate) exercises: Vec<Answered>,
}

/// Where it was run.
#[derive(Debug, Serialize)]
pub(crate) struct Lab {
    /// `AMD lab`
    pub(crate) title: String,
    /// What it says of itself, in order: CPU, kernel, KVM, …
    pub(crate) facts: Vec<(String, String)>,
    /// Parameters of KVM's modules, by paging.
    pub(crate) parameters: BTreeMap<String, BTreeMap<String, String>>,
    /// Why it is not there, in whole or in part.
    pub(crate) missing: Vec<String>,
}

/// One exercise, answered.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Answered {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) question: String,
    /// Command lines.
    pub(crate) ran: Vec<String>,
    pub(crate) checks: Vec<Check>,
    pub(crate) not_run: Vec<NotRun>,
    /// Why it is so.
    pub(crate) why: String,
    /// Where the figures come from.
    pub(crate) source: String,
    /// The figures, by lab.
    pub(crate) figures: BTreeMap<String, serde_json::Value>,
    /// The same for people.
    #[serde(skip)]
    pub(crate) body: Vec<Block>,
    /// The same for spreadsheets; the first row names the columns.
    #[serde(skip)]
    pub(crate) csv: Vec<Vec<String>>,
}

/// What was expected, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) lab: String,
    pub(crate) expected: String,
    /// What was found instead; none if it is as expected.
    pub(crate) failed: Option<String>,
}

/// What could not be run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct NotRun {
    pub(crate) lab: String,
    pub(crate) why: String,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    Text(String),
    /// As it was printed.
    Code(String),
    Table(Table),
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) caption: String,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) title: String,
    /// Numbers stand to the right.
    pub(crate) right: bool,
}

impl Table {
    /// Columns as text, those that begin with `>` to the right.
    pub(crate) fn new(caption: &str, columns: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let column = |title: &str| match title.strip_prefix('>') {
            Some(title) => Column {
                title: title.to_owned(),
                right: true,
            },
            None => Column {
                title: title.to_owned(),
                right: false,
            },
        };
        Self {
            caption: caption.to_owned(),
            columns: columns.into_iter().map(|c| column(c.as_ref())).collect(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

impl Answered {
    pub(crate) fn text(&mut self, text: impl Into<String>) {
        self.body.push(Block::Text(text.into()));
    }

    pub(crate) fn code(&mut self, text: &str) {
        self.body.push(Block::Code(text.trim_end().to_owned()));
    }

    /// Adds a table, unless it is empty.
    pub(crate) fn table(&mut self, table: Table) {
        if !table.rows.is_empty() {
            self.body.push(Block::Table(table));
        }
    }

    /// Notes whether something is as expected; `found` is only looked at if it is not.
    pub(crate) fn expect(
        &mut self,
        lab: &str,
        expected: impl Into<String>,
        holds: bool,
        found: impl Into<String>,
    ) {
        self.checks.push(Check {
            lab: lab.to_owned(),
            expected: expected.into(),
            failed: (!holds).then(|| found.into()),
        });
    }

    pub(crate) fn not_run(&mut self, lab: &str, why: impl Into<String>) {
        self.not_run.push(NotRun {
            lab: lab.to_owned(),
            why: why.into(),
        });
    }

    pub(crate) fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.failed.is_some())
    }
}

/// A number with its thousands set apart.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A difference with its sign.
pub(crate) fn signed(now: u64, before: u64) -> String {
    match now.checked_sub(before) {
        Some(0) => "0".to_owned(),
        Some(more) => format!("+{}", grouped(more)),
        None => format!("−{}", grouped(before - now)),
    }
}
