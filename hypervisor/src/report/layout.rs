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

    #[test]
    fn nested_ranges_are_indented() {
        insta::assert_snapshot!(text(&crate::layout::ranges(5 << 30)));
    }
}
