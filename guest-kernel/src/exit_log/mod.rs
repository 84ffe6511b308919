//! The exit log: records the exits at every milestone, keeps them in memory, and prints them at
//! the end (or at each milestone: printing costs exits).
//!
//! From the exit page a record is plain loads, and costs no exit. By the leaves each question is an
//! exit; those, the first touch of the page and of the log's own memory, and printing lie in
//! sections that Exitvisor books as the profiler's own.

pub mod both;
pub mod discovery;
pub mod page;
pub mod reading;
pub mod table;
pub mod text;

use exit_abi::leaf::Layout;

use crate::arch::{cpu, gate};
use crate::cmdline::{Exits, LogMode};
use crate::line::Line;
use crate::machine::Machine;
use crate::once::Once;
use crate::own::OwnSection;
use crate::{serial, status};
use both::Both;
use discovery::{Absent, Found};
use page::{ExitPage, NoPage};
use reading::Reading;
use table::{Label, Table};

/// The log's memory.
struct Memory {
    table: Table,
    now: Reading,
    both: Both,
}

static MEMORY: Once<Memory> = Once::new(Memory {
    table: Table::new(),
    now: Reading::new(),
    both: Both::new(),
});

/// Where figures come from.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// From nowhere, or they are not wanted.
    Nobody,
    /// The leaves, by questions at the gate.
    Leaves,
    /// The exit page.
    Page(ExitPage),
    /// The exit page, compared with the leaves.
    Both(ExitPage),
}

/// The log.
pub struct ExitLog {
    mode: LogMode,
    found: Result<Found, Absent>,
    source: Source,
    /// Whether the gate answers, once it has been tried.
    gate: Option<bool>,
    memory: Option<&'static mut Memory>,
    /// Records for which there was no room.
    lost: u32,
    /// An error is the exit status.
    outcome: Result<(), u32>,
}

impl ExitLog {
    /// Looks where figures can be had, and gets ready to record them.
    pub fn open(mode: LogMode, exits: Exits, machine: &Machine) -> Self {
        let _own = OwnSection::open();
        let mut log = Self {
            mode,
            found: discovery::discover(gate::cpuid, machine.layout),
            source: Source::Nobody,
            gate: None,
            memory: MEMORY.take(),
            lost: 0,
            outcome: Ok(()),
        };
        if mode != LogMode::Off {
            log.choose(exits, machine);
            log.rehearse();
        }
        if mode == LogMode::Each {
            log.name_source();
        }
        log
    }

    /// Chooses the source, and says why it is not the one that was to be expected.
    fn choose(&mut self, exits: Exits, machine: &Machine) {
        let by_name = matches!(exits, Exits::Page | Exits::Both);
        let found = match self.found {
            Ok(found) => found,
            Err(absent) => {
                serial::println(format_args!("[exit-log] {absent}"));
                return self.missing(by_name);
            }
        };
        let page = match exits {
            Exits::Leaves => Err(NoPage::None),
            _ => ExitPage::open(machine.exit_page, found.page),
        };
        match page {
            Ok(page) if exits != Exits::Both => return self.source = Source::Page(page),
            Ok(page) => self.source = Source::Both(page),
            Err(NoPage::None) if !by_name => self.source = Source::Leaves,
            Err(why) => {
                serial::println(format_args!("[exit-log] {why}"));
                if by_name {
                    return self.missing(true);
                }
                self.source = Source::Leaves;
            }
        }
        if self.gate().is_none() {
            serial::println(format_args!("[exit-log] {}", Absent::Silent));
            self.source = Source::Nobody;
            self.missing(by_name);
        }
    }

    fn missing(&mut self, by_name: bool) {
        if by_name {
            self.outcome = Err(status::NO_SOURCE);
        }
    }

    /// Which leaf asks what, if the gate answers; the first call asks it.
    pub fn gate(&mut self) -> Option<Layout> {
        let layout = self.found.ok()?.layout;
        // The first answer of all counts at least the exits until here.
        let answers = self
            .gate
            .get_or_insert_with(|| gate::gate_cpuid(layout.total_exits, 0).exits() > 0);
        answers.then_some(layout)
    }

    /// Which leaf asks what, if that is how this log learns of exits.
    pub fn asks(&self) -> Option<Layout> {
        let layout = self.found.ok()?.layout;
        matches!(self.source, Source::Leaves | Source::Both(_)).then_some(layout)
    }

    /// The exit page, if figures come from it alone.
    pub fn page(&self) -> Option<&ExitPage> {
        match &self.source {
            Source::Page(page) => Some(page),
            _ => None,
        }
    }

    /// The page tables are new, and a KVM may shadow them: what first touches cost is had once more.
    pub fn remapped(&mut self) {
        if matches!(self.source, Source::Page(_) | Source::Both(_)) {
            let _own = OwnSection::open();
            self.rehearse();
        }
    }

    /// Makes a record from the exit page and forgets it: all memory that this takes, the code's too,
    /// has then been touched, and a real one costs no exit. To be done in an own section.
    fn rehearse(&mut self) {
        if let (Source::Page(page) | Source::Both(page), Some(memory)) =
            (&self.source, &mut self.memory)
        {
            cpu::touch_all(&mut **memory);
            page.touch();
            let Memory { table, now, .. } = &mut **memory;
            if table.has_room() {
                page.read(now);
                table.keep(Label::Query(0), now);
                table.forget_last();
            }
        }
    }

    /// Tells Exitvisor that a milestone is reached, and records what it has counted.
    pub fn milestone(&mut self, number: u32) {
        crate::milestone::reached(number);
        self.record(Label::Milestone(number));
    }

    /// Repeats the query, so that successive answers can be compared.
    pub fn repeat(&mut self, queries: u32) {
        for number in 1..=queries {
            self.record(Label::Query(number));
        }
    }

    fn record(&mut self, label: Label) {
        let (Ok(Found { layout, .. }), Some(memory)) = (self.found, &mut self.memory) else {
            return;
        };
        if matches!(self.source, Source::Nobody) {
            return;
        }
        let Memory { table, now, both } = &mut **memory;
        if !table.has_room() {
            self.lost += 1;
            return;
        }
        match &self.source {
            Source::Nobody => return,
            Source::Leaves => {
                let _own = OwnSection::open();
                now.ask(layout, gate::gate_cpuid);
            }
            Source::Page(page) => page.read(now),
            Source::Both(page) => {
                if let Err(wrong) = take_both(page, layout, now, both) {
                    self.outcome = Err(status::SOURCES_DISAGREE);
                    let _own = OwnSection::open();
                    let mut line = Line::new();
                    text::begin(&mut line, label);
                    line.text("FAILED exits=both: ");
                    wrong.describe(&mut line);
                    serial::send_line(&mut line);
                }
            }
        }
        table.keep(label, now);
        if self.mode == LogMode::Each {
            let _own = OwnSection::open();
            text::record(table, table.records().len() - 1, layout, serial::send_line);
        }
    }

    /// Says once where the figures come from.
    fn name_source(&self) {
        let mut line = Line::new();
        line.text("[exit-log] ");
        match &self.source {
            Source::Nobody => return,
            Source::Leaves => line.text("by the leaves, at the gate"),
            Source::Page(page) | Source::Both(page) => line
                .text("from the exit page (")
                .text(page.head().kind.name())
                .text(")"),
        };
        if matches!(self.source, Source::Both(_)) {
            line.text(", and by the leaves, at the gate");
        }
        serial::send_line(&mut line);
    }

    /// Prints what is still to be printed. An error is the exit status.
    pub fn finish(self) -> Result<(), u32> {
        let (Ok(Found { layout, .. }), Some(memory)) = (self.found, &self.memory) else {
            return self.outcome;
        };
        if matches!(self.source, Source::Nobody) {
            return self.outcome;
        }
        let _own = OwnSection::open();
        let table = &memory.table;
        if self.mode == LogMode::Final {
            self.name_source();
            for index in 0..table.records().len() {
                text::record(table, index, layout, serial::send_line);
            }
        }
        if let Some(last) = table.records().len().checked_sub(1) {
            text::cycles(table, last, serial::send_line);
        }
        if let Source::Page(page) | Source::Both(page) = &self.source {
            cpus(page);
        }
        if let Source::Both(_) = self.source {
            memory.both.lines(serial::send_line);
        }
        if self.lost > 0 {
            let mut line = Line::new();
            line.text("[exit-log] no room for ")
                .number(self.lost.into())
                .text(" more records");
            serial::send_line(&mut line);
        }
        self.outcome
    }
}

/// Reads the page, asks the leaves, and reads the page twice more.
fn take_both(
    page: &ExitPage,
    layout: Layout,
    now: &mut Reading,
    both: &mut Both,
) -> Result<(), both::Contradiction> {
    page.read(now);
    let begun = cpu::time_stamp();
    let own = OwnSection::open();
    both.leaves.ask(layout, gate::gate_cpuid);
    drop(own);
    let asked = cpu::time_stamp();
    page.read(&mut both.after);
    let read = cpu::time_stamp();
    page.read(&mut both.again);
    let cycles = [asked.wrapping_sub(begun), read.wrapping_sub(asked)];
    both.account(page.head(), now, cycles)
}

/// What each CPU cost: the page tells them apart, the leaves do not.
fn cpus(page: &ExitPage) {
    let vcpus = page.head().vcpus;
    for vcpu in (0..vcpus).filter(|_| vcpus > 1) {
        let (exits, cycles) = page.of_vcpu(vcpu);
        let mut line = Line::new();
        line.text("[exit-log] CPU ").number(vcpu).text(": ");
        line.number(exits).text(" exits, ");
        line.number(cycles).text(" cycles");
        serial::send_line(&mut line);
    }
}
