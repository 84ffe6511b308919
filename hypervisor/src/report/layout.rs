//! The guest's memory map, as `exitvisor layout` prints it.

use super::json::pretty;
use super::table::{Side, Table};
use crate::layout::Range;

/// One line per range; those that lie in another are indented.
pub fn text(ranges: &[Range]) -> String {
    let mut table = Table::new(&[
        ("start", Side::Right),
        ("end", Side::Right),
        ("name", Side::Left),
        ("purpose", Side::Left),
    ]);
    for range in ranges {
        let depth = ranges.iter().filter(|other| other.holds(range)).count();
        table.row(vec![
            format!("{:#011x}", range.start),
            format!("{:#011x}", range.end),
            format!("{:1$}{2}", "", 2 * depth, range.name),
            range.purpose.to_owned(),
        ]);
    }
    table.render()
}

/// The same for programs: an array, addresses as numbers.
pub fn json(ranges: &[Range]) -> String {
    pretty(&ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole table stands in `docs/architecture.md`.
    #[test]
    fn nested_ranges_are_indented() {
        let text = text(&crate::layout::ranges(5 << 30));
        for line in [
            "0x000000000  0x0000a0000  low RAM  ",
            "0x000006000  0x000007000    start info  ",
            "0x100000000  0x180000000  high RAM  ",
        ] {
            assert!(text.contains(line), "{line:?} is not in {text}");
        }
    }
}
