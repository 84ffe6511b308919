//! The exit log's memory: a fixed number of records, each with the reasons seen until then.

use exit_abi::leaf::{self, Layout, Registers};
use exit_abi::reason::Reason;

/// Most records.
pub const RECORDS: usize = 64;
/// Most lines, all records together.
pub const LINES: usize = 768;

/// What a record was taken at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// A milestone.
    Milestone(u32),
    /// The n-th of repeated queries.
    Query(u32),
}

/// One reason in one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonLine {
    /// The reason.
    pub reason: Reason,
    /// Its exits.
    pub exits: u64,
    /// Their cycles.
    pub cycles: u64,
}

/// The answers at one instant.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// What it was taken at.
    pub label: Label,
    /// All exits.
    pub exits: u64,
    /// Their cycles.
    pub cycles: u64,
    first: usize,
    count: usize,
    /// Reasons for which there was no room.
    pub lost: usize,
}

/// The records.
pub struct Table {
    records: [Record; RECORDS],
    length: usize,
    lines: [ReasonLine; LINES],
    used: usize,
}

impl Table {
    /// An empty table, in a form that needs no bytes in the image.
    pub const fn new() -> Self {
        const RECORD: Record = Record {
            label: Label::Milestone(0),
            exits: 0,
            cycles: 0,
            first: 0,
            count: 0,
            lost: 0,
        };
        const LINE: ReasonLine = ReasonLine {
            reason: Reason::EXCEPTION,
            exits: 0,
            cycles: 0,
        };
        Self {
            records: [RECORD; RECORDS],
            length: 0,
            lines: [LINE; LINES],
            used: 0,
        }
    }

    /// Asks for the totals, the map, and exits and cycles of the reasons in the map alone. `None`
    /// if there is no room for another record.
    pub fn query(
        &mut self,
        label: Label,
        layout: Layout,
        mut ask: impl FnMut(u32, u32) -> Registers,
    ) -> Option<&Record> {
        let slot = self.records.get_mut(self.length)?;
        let exits = ask(layout.total_exits, 0).exits();
        let cycles = ask(layout.total_cycles, 0).cycles();
        let mut map = ask(leaf::MAP, 0).map();
        let first = self.used;
        let mut lost = 0;
        while let Some(reason) = Reason::new(map.trailing_zeros()) {
            map &= map - 1;
            let Some(line) = self.lines.get_mut(self.used) else {
                lost += 1;
                continue;
            };
            let number = reason.number().into();
            let exits = ask(layout.exits_of, number).exits();
            let cycles = ask(layout.cycles_of, number).cycles();
            *line = ReasonLine {
                reason,
                exits,
                cycles,
            };
            self.used += 1;
        }
        *slot = Record {
            label,
            exits,
            cycles,
            first,
            count: self.used - first,
            lost,
        };
        self.length += 1;
        Some(slot)
    }

    /// The records, in order.
    pub fn records(&self) -> &[Record] {
        &self.records[..self.length]
    }

    /// A record's reasons, by number.
    pub fn reasons(&self, record: &Record) -> &[ReasonLine] {
        self.lines
            .get(record.first..record.first + record.count)
            .unwrap_or_default()
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Answers from a list of (reason, exits, cycles).
    pub(in super::super) fn scripted(
        layout: Layout,
        reasons: &[(u32, u64, u64)],
    ) -> impl FnMut(u32, u32) -> Registers {
        move |leaf, ecx| {
            let of = |f: fn(&(u32, u64, u64)) -> u64| {
                reasons.iter().filter(|r| r.0 == ecx).map(f).sum::<u64>()
            };
            match leaf {
                leaf::MAP => Registers::from_map(reasons.iter().fold(0, |m, r| m | 1 << r.0)),
                l if l == layout.total_exits => {
                    Registers::from_exits(reasons.iter().map(|r| r.1).sum())
                }
                l if l == layout.total_cycles => {
                    Registers::from_cycles(reasons.iter().map(|r| r.2).sum())
                }
                l if l == layout.exits_of => Registers::from_exits(of(|r| r.1)),
                l if l == layout.cycles_of => Registers::from_cycles(of(|r| r.2)),
                _ => panic!("asked {leaf:#x}"),
            }
        }
    }

    #[test]
    fn asks_for_the_reasons_in_the_map_alone() {
        let mut table = Table::new();
        let mut asked = 0;
        let mut answers = scripted(Layout::REVERSED, &[(12, 60, 1 << 33), (127, 1, 7)]);
        let record = *table
            .query(Label::Query(1), Layout::REVERSED, |leaf, ecx| {
                asked += 1;
                answers(leaf, ecx)
            })
            .unwrap();
        assert_eq!((asked, record.exits, record.cycles), (7, 61, (1 << 33) + 7));
        let reasons: Vec<_> = table
            .reasons(&record)
            .iter()
            .map(|l| (l.reason.number(), l.exits, l.cycles))
            .collect();
        assert_eq!(reasons, [(12, 60, 1 << 33), (127, 1, 7)]);
    }

    #[test]
    fn a_full_table_says_so() {
        let mut table = Table::new();
        let all: Vec<_> = (0..128).map(|n| (n, 1, 1)).collect();
        for i in 0..RECORDS {
            let record = table.query(
                Label::Query(0),
                Layout::CLASSIC,
                scripted(Layout::CLASSIC, &all),
            );
            assert_eq!(record.unwrap().lost, if i < 6 { 0 } else { 128 });
        }
        assert!(
            table
                .query(Label::Query(0), Layout::CLASSIC, |_, _| panic!("asked"))
                .is_none()
        );
        assert!(table.records().iter().all(|r| r.exits == 128));
    }
}
