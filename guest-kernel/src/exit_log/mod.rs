//! The exit log: asks for the exits at every milestone, keeps the answers in memory, and prints
//! them at the end (or at each milestone: printing costs exits).
//!
//! Everything it does lies in sections that Exitvisor books as the profiler's own.

pub mod discovery;
pub mod table;
pub mod text;

use exit_abi::leaf::Layout;

use crate::arch::gate;
use crate::cmdline::LogMode;
use crate::line::Line;
use crate::once::Once;
use crate::own::OwnSection;
use crate::serial;
use discovery::Absent;
use table::{Label, Table};

static TABLE: Once<Table> = Once::new(Table::new());

/// The log.
pub struct ExitLog {
    mode: LogMode,
    layout: Result<Layout, Absent>,
    table: Option<&'static mut Table>,
    /// Records for which there was no room.
    lost: u32,
}

impl ExitLog {
    /// Looks whether there is somebody to ask; the layout is the device tree's, if it names one.
    pub fn open(mode: LogMode, described: Option<Layout>) -> Self {
        let own = OwnSection::open();
        let layout = discovery::discover(gate::cpuid, described);
        let mut log = Self {
            mode,
            layout,
            table: TABLE.take(),
            lost: 0,
        };
        // The first answer of all counts at least the exits until here.
        if let Ok(layout) = layout
            && gate::gate_cpuid(layout.total_exits, 0).exits() == 0
        {
            log.layout = Err(Absent::Silent);
        }
        if let (Err(absent), true) = (log.layout, mode != LogMode::Off) {
            serial::println(format_args!("[exit-log] {absent}"));
        }
        drop(own);
        log
    }

    /// Which leaf asks what, if there is somebody to ask.
    pub fn layout(&self) -> Option<Layout> {
        self.layout.ok()
    }

    /// The same, unless the log is off.
    pub fn layout_if_on(&self) -> Option<Layout> {
        self.layout().filter(|_| self.mode != LogMode::Off)
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
        let (Ok(layout), Some(table)) = (self.layout, &mut self.table) else {
            return;
        };
        if self.mode == LogMode::Off {
            return;
        }
        let _own = OwnSection::open();
        if table.query(label, layout, gate::gate_cpuid).is_none() {
            self.lost += 1;
        } else if self.mode == LogMode::Each {
            text::record(table, table.records().len() - 1, layout, serial::send_line);
        }
    }

    /// Prints what is still to be printed.
    pub fn finish(self) {
        let (Ok(layout), Some(table)) = (self.layout, self.table) else {
            return;
        };
        if self.mode == LogMode::Off {
            return;
        }
        let _own = OwnSection::open();
        if self.mode == LogMode::Final {
            for index in 0..table.records().len() {
                text::record(table, index, layout, serial::send_line);
            }
        }
        if let Some(last) = table.records().len().checked_sub(1) {
            text::cycles(table, last, serial::send_line);
        }
        if self.lost > 0 {
            let mut line = Line::new();
            line.text("[exit-log] no room for ")
                .number(self.lost.into())
                .text(" more records");
            serial::send_line(&mut line);
        }
    }
}
