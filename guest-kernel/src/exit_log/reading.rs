//! A reading: the exits of one instant, by reason, from the exit page or by the leaves.

use exit_abi::leaf::{self, Layout, Registers};
use exit_abi::page::{Head, row};
use exit_abi::reason::Reason;

use crate::arch::window::Window;

/// As many as there may be reasons.
const LINES: usize = 128;

/// One reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonLine {
    /// The reason.
    pub reason: Reason,
    /// Its exits.
    pub exits: u64,
    /// Their cycles.
    pub cycles: u64,
}

impl ReasonLine {
    pub(super) const EMPTY: Self = Self {
        reason: Reason::EXCEPTION,
        exits: 0,
        cycles: 0,
    };
}

/// The figures of one instant.
#[derive(Clone, Debug)]
pub struct Reading {
    /// All exits, those without a reason included.
    pub exits: u64,
    /// Their cycles.
    pub cycles: u64,
    lines: [ReasonLine; LINES],
    length: usize,
}

impl Reading {
    /// Nothing read, in a form that needs no bytes in the image.
    pub const fn new() -> Self {
        Self {
            exits: 0,
            cycles: 0,
            lines: [ReasonLine::EMPTY; LINES],
            length: 0,
        }
    }

    /// Asks for the totals, the map, and exits and cycles of the reasons in the map alone.
    pub fn ask(&mut self, layout: Layout, mut ask: impl FnMut(u32, u32) -> Registers) {
        self.length = 0;
        self.exits = ask(layout.total_exits, 0).exits();
        self.cycles = ask(layout.total_cycles, 0).cycles();
        let mut map = ask(leaf::MAP, 0).map();
        while let Some(reason) = Reason::new(map.trailing_zeros()) {
            map &= map - 1;
            let number = reason.number().into();
            let exits = ask(layout.exits_of, number).exits();
            let cycles = ask(layout.cycles_of, number).cycles();
            self.add(reason, exits, cycles);
        }
    }

    /// Loads the exit page: of each row the exits, and the rest where there are any.
    pub fn load(&mut self, head: &Head, page: &impl Numbers) {
        (self.length, self.exits, self.cycles) = (0, 0, 0);
        let load = |at| page.load(at);
        for vcpu in 0..head.vcpus {
            for row in rows_in_use(head, vcpu, page) {
                let figures = head.row(vcpu, row, load);
                let cycles = head.cycles_of_times(&figures);
                self.exits = self.exits.saturating_add(figures.exits);
                self.cycles = self.cycles.saturating_add(cycles);
                if let Some(reason) = head.reason(row, load) {
                    self.add(reason, figures.exits, cycles);
                }
            }
        }
    }

    fn add(&mut self, reason: Reason, exits: u64, cycles: u64) {
        let known = self.lines[..self.length]
            .iter_mut()
            .find(|l| l.reason == reason);
        if let Some(line) = known {
            line.exits = line.exits.saturating_add(exits);
            line.cycles = line.cycles.saturating_add(cycles);
        } else if let Some(line) = self.lines.get_mut(self.length) {
            *line = ReasonLine {
                reason,
                exits,
                cycles,
            };
            self.length += 1;
        }
    }

    /// Adds the exits by which each reason grew from one reading to another, and all together.
    pub fn add_growth(&mut self, from: &Self, to: &Self) {
        let grown = to.exits.saturating_sub(from.exits);
        self.exits = self.exits.saturating_add(grown);
        for line in to.reasons() {
            let grown = line.exits.saturating_sub(from.of(line.reason).exits);
            if grown > 0 {
                self.add(line.reason, grown, 0);
            }
        }
    }

    /// The reasons seen, in no order.
    pub fn reasons(&self) -> &[ReasonLine] {
        &self.lines[..self.length]
    }

    /// What is known of a reason; zeros if it was not seen.
    pub fn of(&self, reason: Reason) -> ReasonLine {
        let line = self.reasons().iter().find(|l| l.reason == reason);
        line.copied().unwrap_or(ReasonLine {
            reason,
            ..ReasonLine::EMPTY
        })
    }
}

impl Default for Reading {
    fn default() -> Self {
        Self::new()
    }
}

/// Numbers of 64 bits that somebody else writes.
pub trait Numbers {
    /// The number at an offset.
    fn load(&self, at: u64) -> u64;

    /// How many numbers from `at` on, `stride` bytes apart, are zero before the first that is not;
    /// at most `count`.
    fn zeros(&self, at: u64, stride: u64, count: u64) -> u64;
}

impl Numbers for Window {
    fn load(&self, at: u64) -> u64 {
        self.load(at)
    }

    fn zeros(&self, at: u64, stride: u64, count: u64) -> u64 {
        self.zeros(at, stride, count)
    }
}

/// The rows of a vCPU that have exits.
fn rows_in_use(head: &Head, vcpu: u64, page: &impl Numbers) -> impl Iterator<Item = u64> {
    let (rows, stride) = (head.rows, head.row_stride);
    let record = head.records + vcpu * head.record_stride + row::EXITS as u64;
    let mut next = 0;
    core::iter::from_fn(move || {
        next += page.zeros(record + next * stride, stride, rows - next);
        let row = next;
        next = rows.min(next + 1);
        (row < rows).then_some(row)
    })
}

/// Exits of one reason on the exit page, all vCPUs together.
pub fn exits_of(head: &Head, reason: Reason, page: &impl Numbers) -> u64 {
    let load = |at| page.load(at);
    let rows = (0..head.rows).filter(|&row| head.reason(row, load) == Some(reason));
    rows.flat_map(|row| (0..head.vcpus).map(move |vcpu| (vcpu, row)))
        .map(|(vcpu, row)| head.exits(vcpu, row, load))
        .fold(0, u64::saturating_add)
}

/// Exits of one vCPU on the exit page, and their cycles.
pub fn of_vcpu(head: &Head, vcpu: u64, page: &impl Numbers) -> (u64, u64) {
    if vcpu >= head.vcpus {
        return (0, 0);
    }
    let rows = rows_in_use(head, vcpu, page).map(|row| head.row(vcpu, row, |at| page.load(at)));
    rows.fold((0, 0), |(exits, cycles): (u64, u64), row| {
        let more = head.cycles_of_times(&row);
        (exits.saturating_add(row.exits), cycles.saturating_add(more))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    use exit_abi::page::{
        HEAD_SIZE, MAGIC, NO_REASON, PageKind, REASONS, TIMED, VERSION, head, row,
    };

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

    /// A reading that a list of (reason, exits, cycles) answers.
    pub(in super::super) fn asked(layout: Layout, reasons: &[(u32, u64, u64)]) -> Reading {
        let mut reading = Reading::new();
        reading.ask(layout, scripted(layout, reasons));
        reading
    }

    /// A made-up page, which counts how many of its numbers were loaded.
    struct Made {
        words: Vec<u64>,
        loads: std::cell::Cell<u64>,
    }

    impl Numbers for Made {
        fn load(&self, at: u64) -> u64 {
            self.loads.set(self.loads.get() + 1);
            self.words[at as usize / 8]
        }

        fn zeros(&self, at: u64, stride: u64, count: u64) -> u64 {
            let zero = |n: &u64| self.load(at + n * stride) == 0;
            (0..count).take_while(zero).count() as u64
        }
    }

    fn open(words: Vec<u64>) -> (Head, Made) {
        let loads = std::cell::Cell::new(0);
        let made = Made { words, loads };
        let head = Head::read(8 * made.words.len() as u64, |at| made.load(at)).unwrap();
        made.loads.set(0);
        (head, made)
    }

    /// A page whose rows have these reasons, one cycle per unit of time; of each record (row,
    /// exits, time).
    pub(in super::super) fn page(
        kind: PageKind,
        reasons: &[u8],
        records: &[&[(usize, u64, u64)]],
    ) -> Vec<u64> {
        let stride = reasons.len() * row::SIZE;
        let size = HEAD_SIZE as usize + records.len() * stride;
        let mut words = vec![0; size / 8];
        words[head::MAGIC / 8] = MAGIC;
        words[head::VERSION_AND_KIND / 8] = u64::from(VERSION) | u64::from(kind.number()) << 32;
        words[head::VCPUS / 8] = records.len() as u64;
        words[head::RECORDS / 8] = HEAD_SIZE;
        words[head::RECORD_STRIDE / 8] = stride as u64;
        words[head::ROWS / 8] = reasons.len() as u64;
        words[head::ROW_STRIDE / 8] = row::SIZE as u64;
        words[head::RATE / 8] = 1 << 32;
        words[head::FLAGS / 8] = TIMED;
        for (i, &reason) in reasons.iter().enumerate() {
            words[REASONS / 8 + i / 8] |= u64::from(reason) << (i % 8 * 8);
        }
        for (vcpu, rows) in records.iter().enumerate() {
            for &(index, exits, time) in *rows {
                let at = (HEAD_SIZE as usize + vcpu * stride + index * row::SIZE) / 8;
                words[at + row::EXITS / 8] = exits;
                words[at + row::TIMED / 8] = exits;
                words[at + row::TIME / 8] = time;
            }
        }
        words
    }

    #[test]
    fn asks_for_the_reasons_in_the_map_alone() {
        let mut reading = Reading::new();
        let mut asked = 0;
        let mut answers = scripted(Layout::REVERSED, &[(12, 60, 1 << 33), (127, 1, 7)]);
        reading.ask(Layout::REVERSED, |leaf, ecx| {
            asked += 1;
            answers(leaf, ecx)
        });
        assert_eq!(
            (asked, reading.exits, reading.cycles),
            (7, 61, (1 << 33) + 7)
        );
        let reasons: Vec<_> = reading
            .reasons()
            .iter()
            .map(|l| (l.reason.number(), l.exits, l.cycles))
            .collect();
        assert_eq!(reasons, [(12, 60, 1 << 33), (127, 1, 7)]);
    }

    #[test]
    fn a_page_is_summed_over_rows_and_vcpus() {
        let (head, page) = open(page(
            PageKind::Kernel,
            &[30, 10, NO_REASON, 30],
            &[
                &[(0, 7, 700), (2, 1, 5), (3, 2, 20)],
                &[(0, 1, 100), (1, 4, 40)],
            ],
        ));
        let mut reading = asked(Layout::CLASSIC, &[(48, 9, 9)]);
        reading.load(&head, &page);
        assert_eq!((reading.exits, reading.cycles), (15, 865));
        assert_eq!(reading.reasons().len(), 2);
        let io = reading.of(Reason::IO);
        assert_eq!((io.exits, io.cycles), (10, 820));
        assert_eq!(reading.of(Reason::CPUID).exits, 4);
        assert_eq!(reading.of(Reason::HLT).exits, 0);
        assert_eq!(exits_of(&head, Reason::IO, &page), 10);
        assert_eq!(exits_of(&head, Reason::HLT, &page), 0);
        assert_eq!(of_vcpu(&head, 0, &page), (10, 725));
        assert_eq!(of_vcpu(&head, 1, &page), (5, 140));
        assert_eq!(of_vcpu(&head, 2, &page), (0, 0));
    }

    #[test]
    fn only_rows_with_exits_are_loaded_whole() {
        let (head, page) = open(page(PageKind::Vmm, &[0; 100], &[&[(50, 1, 1), (99, 1, 1)]]));
        Reading::new().load(&head, &page);
        assert_eq!(page.loads.get(), 100 + 2 * (5 + 1));
    }

    proptest! {
        /// A page that lies about itself leads nowhere beyond its memory (where `Made` would panic).
        #[test]
        fn no_page_leads_beyond_its_memory(
            fields in prop::collection::vec((2_usize..9, prop_oneof![
                any::<u64>(), 0..5000_u64, (0..700_u64).prop_map(|n| n * 8),
            ]), 0..4),
            rows in prop::collection::vec((512_usize..1024, any::<u64>()), 0..30),
        ) {
            let mut words = page(PageKind::Kernel, &[30, 10, NO_REASON, 30], &[&[], &[]]);
            words.resize(1024, 7);
            for (at, value) in fields.into_iter().chain(rows) {
                words[at] = value;
            }
            let loads = std::cell::Cell::new(0);
            let made = Made { words, loads };
            if let Ok(head) = Head::read(8192, |at| made.load(at)) {
                Reading::new().load(&head, &made);
                let _ = exits_of(&head, Reason::IO, &made);
                let _ = of_vcpu(&head, head.vcpus, &made);
                let _ = of_vcpu(&head, head.vcpus - 1, &made);
            }
        }
    }

    #[test]
    fn every_reason_has_room_and_nothing_overflows() {
        let all: Vec<_> = (0..128).map(|n| (n, u64::MAX / 200, 1)).collect();
        assert_eq!(asked(Layout::CLASSIC, &all).reasons().len(), 128);
        let (head, page) = open(page(
            PageKind::Kernel,
            &[1, 1],
            &[&[(0, u64::MAX, u64::MAX), (1, u64::MAX, u64::MAX)]],
        ));
        let mut reading = Reading::new();
        reading.load(&head, &page);
        assert_eq!((reading.exits, reading.cycles), (u64::MAX, u64::MAX));
        assert_eq!(exits_of(&head, Reason::EXTERNAL_INTERRUPT, &page), u64::MAX);
    }
}
