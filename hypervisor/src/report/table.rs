//! A table: columns aligned by display width, nothing trailing.

use super::format::{WIDTH, fit, width};

/// On which side a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Text.
    Left,
    /// Figures.
    Right,
}

enum Row {
    Cells(Vec<String>),
    Rule,
    Line(String),
}

/// Rows under a head. A column without a single cell is left out.
pub(crate) struct Table {
    head: Vec<(String, Side)>,
    rows: Vec<Row>,
}

const GAP: usize = 2;

impl Table {
    /// A table with this head.
    pub(crate) fn new(head: &[(&str, Side)]) -> Self {
        Self {
            head: head
                .iter()
                .map(|&(name, side)| (name.to_owned(), side))
                .collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(Row::Cells(cells));
    }

    /// Adds a rule.
    pub(crate) fn rule(&mut self) {
        self.rows.push(Row::Rule);
    }

    /// Adds a line that ignores the columns.
    pub(crate) fn line(&mut self, text: &str) {
        self.rows.push(Row::Line(fit(text, WIDTH)));
    }

    fn cells(&self) -> impl Iterator<Item = &Vec<String>> {
        self.rows.iter().filter_map(|row| match row {
            Row::Cells(cells) => Some(cells),
            _ => None,
        })
    }

    fn widest(&self, column: usize) -> usize {
        self.cells()
            .filter_map(|c| c.get(column))
            .map(|c| width(c))
            .max()
            .unwrap_or(0)
    }

    /// Width of the table, the gaps included.
    pub(crate) fn width(&self) -> usize {
        let columns = (0..self.head.len()).filter(|&i| self.widest(i) > 0);
        let widths = columns.map(|i| GAP + self.widest(i).max(width(&self.head[i].0)));
        widths.sum::<usize>().saturating_sub(GAP)
    }

    /// The table as text.
    pub(crate) fn render(&self) -> String {
        let columns: Vec<(usize, usize)> = (0..self.head.len())
            .map(|i| (i, self.widest(i)))
            .filter(|&(_, widest)| widest > 0)
            .map(|(i, widest)| (i, widest.max(width(&self.head[i].0))))
            .collect();
        let line = |cell: &dyn Fn(usize) -> String| {
            let mut out = String::new();
            for (n, &(i, wide)) in columns.iter().enumerate() {
                let text = cell(i);
                let pad = " ".repeat(wide.saturating_sub(width(&text)));
                let gap = if n == 0 { "" } else { &" ".repeat(GAP) };
                out.push_str(gap);
                match self.head[i].1 {
                    Side::Left => out.push_str(&(text + &pad)),
                    Side::Right => out.push_str(&(pad + &text)),
                }
            }
            let mut out = fit(out.trim_end(), WIDTH);
            out.push('\n');
            out
        };
        let rule = "─".repeat(self.width().min(WIDTH)) + "\n";
        let mut out = line(&|i| self.head[i].0.clone());
        out.push_str(&rule);
        for row in &self.rows {
            match row {
                Row::Cells(cells) => {
                    out.push_str(&line(&|i| cells.get(i).cloned().unwrap_or_default()));
                }
                Row::Rule => out.push_str(&rule),
                Row::Line(text) => {
                    out.push_str(text.trim_end());
                    out.push('\n');
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_by_what_is_seen() {
        let mut table = Table::new(&[("a", Side::Left), ("gone", Side::Left), ("n", Side::Right)]);
        table.row(vec!["日本".into(), String::new(), "1".into()]);
        table.row(vec!["x".into(), String::new(), "10".into()]);
        table.row(vec!["y".into()]);
        assert_eq!(
            table.render(),
            "a      n\n────────\n日本   1\nx     10\ny\n"
        );
    }
}
