//! The exit log's memory: a fixed number of records, each with the reasons seen until then.

use super::reading::{Reading, ReasonLine};

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

/// The figures of one instant.
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
        Self {
            records: [RECORD; RECORDS],
            length: 0,
            lines: [ReasonLine::EMPTY; LINES],
            used: 0,
        }
    }

    /// Whether there is room for another record.
    pub fn has_room(&self) -> bool {
        self.length < RECORDS
    }

    /// Keeps a reading. `None` if there is no room for another record.
    pub fn keep(&mut self, label: Label, reading: &Reading) -> Option<&Record> {
        let slot = self.records.get_mut(self.length)?;
        let reasons = reading.reasons();
        let room = self.lines.get_mut(self.used..).unwrap_or_default();
        let count = reasons.len().min(room.len());
        room[..count].copy_from_slice(&reasons[..count]);
        *slot = Record {
            label,
            exits: reading.exits,
            cycles: reading.cycles,
            first: self.used,
            count,
            lost: reasons.len() - count,
        };
        self.used += count;
        self.length += 1;
        Some(slot)
    }

    /// Forgets the last record.
    pub fn forget_last(&mut self) {
        if let Some(record) = self.length.checked_sub(1) {
            self.length = record;
            self.used = self.records[record].first;
        }
    }

    /// The records, in order.
    pub fn records(&self) -> &[Record] {
        &self.records[..self.length]
    }

    /// A record's reasons, in no order.
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
mod tests {
    use exit_abi::leaf::Layout;

    use super::super::reading::tests::asked;
    use super::*;

    #[test]
    fn a_full_table_says_so() {
        let mut table = Table::new();
        let all: Vec<_> = (0..128).map(|n| (n, 1, 1)).collect();
        let reading = asked(Layout::CLASSIC, &all);
        for i in 0..RECORDS {
            assert!(table.has_room());
            let record = *table.keep(Label::Query(0), &reading).unwrap();
            let lost = if i < 6 { 0 } else { 128 };
            assert_eq!(record.lost, lost);
            assert_eq!(table.reasons(&record).len(), 128 - lost);
        }
        assert!(!table.has_room());
        assert!(table.keep(Label::Query(0), &reading).is_none());
        assert!(table.records().iter().all(|r| r.exits == 128));
        for _ in 0..RECORDS - 3 {
            table.forget_last();
        }
        let record = *table.keep(Label::Query(0), &reading).unwrap();
        assert_eq!((record.lost, table.records().len()), (0, 4));
        (0..9).for_each(|_| table.forget_last());
        assert_eq!((table.length, table.used), (0, 0));
    }
}
