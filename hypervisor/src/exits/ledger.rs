//! The ledger: fixed arrays per vCPU, written by its own thread alone, readable by any.
//!
//! No allocation and no lock: one writer per ledger makes a plain load and store of a relaxed
//! atomic exact, and a reader sees each number whole.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use exit_abi::reason::{COUNT, Reason};

/// Whose exit it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The guest's.
    Guest,
    /// The profiler's own: a gate, a milestone, the exit log.
    Own,
}

/// What an exit is booked under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A basic exit reason.
    Reason(Reason),
    /// An exit of KVM's that has none.
    Other,
    /// A return of KVM_RUN that implies no exit of the guest's (a signal).
    NotAnExit,
}

/// One number, written by one thread.
#[derive(Debug, Default)]
struct Cell(AtomicU64);

impl Cell {
    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    fn add(&self, n: u64) {
        self.set(self.get().wrapping_add(n));
    }
}

/// A reason's row.
#[derive(Debug, Default)]
struct Row {
    exits: Cell,
    own: Cell,
    /// The profiler's own that KVM_RUN did not see: what a section's settlement found.
    unseen_own: Cell,
    /// Events of the profiler's own that KVM emulated.
    unseen_own_events: Cell,
    timed: Cell,
    own_timed: Cell,
    cycles: Cell,
    own_cycles: Cell,
    /// Shortest exit plus one, so that 0 means none.
    min_plus_1: Cell,
    max: Cell,
}

/// The ledger of one vCPU.
#[derive(Debug)]
pub struct Ledger {
    rows: [Row; COUNT],
    other: Cell,
    signals: Cell,
    own_residual: Cell,
    /// Of reason 29: what came while gates were armed, but for since they were last; whether they
    /// are; what there was when they were.
    guarded: GuardedCells,
    armed: Cell,
    armed_at: GuardedCells,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            rows: std::array::from_fn(|_| Row::default()),
            other: Cell::default(),
            signals: Cell::default(),
            own_residual: Cell::default(),
            guarded: GuardedCells::default(),
            armed: Cell::default(),
            armed_at: GuardedCells::default(),
        }
    }
}

/// Exits of reason 29: what their row has of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guarded {
    /// Exits.
    pub exits: u64,
    /// Those that were timed.
    pub timed: u64,
    /// Their cycles.
    pub cycles: u64,
}

impl From<RowCopy> for Guarded {
    fn from(row: RowCopy) -> Self {
        Self {
            exits: row.exits,
            timed: row.timed,
            cycles: row.cycles,
        }
    }
}

/// The same, written by one thread.
#[derive(Debug, Default)]
struct GuardedCells {
    exits: Cell,
    timed: Cell,
    cycles: Cell,
}

impl GuardedCells {
    fn get(&self) -> Guarded {
        Guarded {
            exits: self.exits.get(),
            timed: self.timed.get(),
            cycles: self.cycles.get(),
        }
    }

    fn set(&self, to: Guarded) {
        self.exits.set(to.exits);
        self.timed.set(to.timed);
        self.cycles.set(to.cycles);
    }
}

/// A reason's row, copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCopy {
    /// Exits, the profiler's own included.
    pub exits: u64,
    /// The profiler's own among them.
    pub own: u64,
    /// Exits whose cycles are known.
    pub timed: u64,
    /// The profiler's own among them.
    pub own_timed: u64,
    /// Cycles of the timed ones.
    pub cycles: u64,
    /// The profiler's own among them.
    pub own_cycles: u64,
    /// Shortest of the guest's; 0 if none.
    pub min: u64,
    /// Longest of the guest's.
    pub max: u64,
}

impl Ledger {
    /// Books an exit, at once when KVM_RUN has returned: a query counts itself.
    pub fn count(&self, entry: Entry, owner: Owner) {
        match entry {
            Entry::Reason(reason) => {
                let row = &self.rows[reason.index()];
                row.exits.add(1);
                if owner == Owner::Own {
                    row.own.add(1);
                }
            }
            Entry::Other => self.other.add(1),
            Entry::NotAnExit => self.signals.add(1),
        }
    }

    /// Books its cycles, just before the next entry.
    pub fn time(&self, entry: Entry, owner: Owner, cycles: u64) {
        let Entry::Reason(reason) = entry else { return };
        let row = &self.rows[reason.index()];
        row.timed.add(1);
        row.cycles.add(cycles);
        match owner {
            Owner::Own => {
                row.own_timed.add(1);
                row.own_cycles.add(cycles);
            }
            Owner::Guest => {
                let min = row.min_plus_1.get();
                if min == 0 || cycles < min - 1 {
                    row.min_plus_1.set(cycles.saturating_add(1));
                }
                if cycles > row.max.get() {
                    row.max.set(cycles);
                }
            }
        }
    }

    /// Whether there has been an exit of this reason.
    pub fn has(&self, reason: Reason) -> bool {
        self.rows[reason.index()].exits.get() > 0
    }

    /// A reason's row.
    ///
    /// Another thread may be writing it: numbers that depend on each other are read in an order,
    /// and clamped, so that a copy never contradicts itself.
    pub fn row(&self, reason: Reason) -> RowCopy {
        let row = &self.rows[reason.index()];
        let own_timed = row.own_timed.get();
        let (own, timed) = (row.own.get(), row.timed.get());
        let exits = row.exits.get();
        let own_cycles = row.own_cycles.get();
        let cycles = row.cycles.get();
        let min = row.min_plus_1.get().saturating_sub(1);
        RowCopy {
            exits,
            own: own.min(exits),
            timed: timed.min(exits),
            own_timed: own_timed.min(own).min(timed).min(exits),
            cycles,
            own_cycles: own_cycles.min(cycles),
            min,
            max: row.max.get().max(min),
        }
    }

    /// Books exits of the profiler's own that KVM_RUN did not see.
    pub fn settle(&self, reason: Reason, unseen: u64) {
        self.rows[reason.index()].unseen_own.add(unseen);
    }

    /// Books exits of the profiler's own whose reason nobody saw.
    pub fn settle_residual(&self, unseen: u64) {
        self.own_residual.add(unseen);
    }

    /// The profiler's own exits of a reason that KVM_RUN did not see.
    pub fn unseen_own(&self, reason: Reason) -> u64 {
        self.rows[reason.index()].unseen_own.get()
    }

    /// The profiler's own exits whose reason nobody saw.
    pub fn own_residual(&self) -> u64 {
        self.own_residual.get()
    }

    /// Books events of the profiler's own that KVM emulated.
    pub fn settle_events(&self, reason: Reason, events: u64) {
        self.rows[reason.index()].unseen_own_events.add(events);
    }

    /// Events of the profiler's own that KVM emulated.
    pub fn unseen_own_events(&self, reason: Reason) -> u64 {
        self.rows[reason.index()].unseen_own_events.get()
    }

    /// Gates are armed, or no longer: while one is, every MOV DR exits on their account. `now` is
    /// what the vCPU has had of reason 29.
    pub fn guard(&self, armed: bool, now: Guarded) {
        let own = self.own_guarded(now);
        self.guarded.set(own);
        self.armed_at.set(now);
        self.armed.set(armed.into());
    }

    /// How much of reason 29 came while a gate was armed, given what the vCPU has had of it.
    pub fn own_guarded(&self, now: Guarded) -> Guarded {
        let mut own = self.guarded.get();
        if self.armed.get() != 0 {
            let at = self.armed_at.get();
            own.exits += now.exits.saturating_sub(at.exits);
            own.timed += now.timed.saturating_sub(at.timed);
            own.cycles += now.cycles.saturating_sub(at.cycles);
        }
        own
    }

    /// Exits without a basic exit reason.
    pub fn other(&self) -> u64 {
        self.other.get()
    }

    /// Returns of KVM_RUN that were no exits of the guest's.
    pub fn signals(&self) -> u64 {
        self.signals.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_own_exits_apart() {
        let ledger = Ledger::default();
        let io = Entry::Reason(Reason::IO);
        for (owner, cycles) in [(Owner::Guest, 30), (Owner::Own, 5), (Owner::Guest, 10)] {
            ledger.count(io, owner);
            ledger.time(io, owner, cycles);
        }
        let expected = RowCopy {
            exits: 3,
            own: 1,
            timed: 3,
            own_timed: 1,
            cycles: 45,
            own_cycles: 5,
            min: 10,
            max: 30,
        };
        assert_eq!(ledger.row(Reason::IO), expected);
        assert_eq!(ledger.row(Reason::HLT), RowCopy::default());
    }

    #[test]
    fn an_exit_counts_before_it_is_timed() {
        let ledger = Ledger::default();
        ledger.count(Entry::Reason(Reason::EXCEPTION), Owner::Own);
        assert_eq!(ledger.row(Reason::EXCEPTION).exits, 1);
        assert_eq!(ledger.row(Reason::EXCEPTION).timed, 0);
    }

    #[test]
    fn other_and_signals_have_their_own_rooms() {
        let ledger = Ledger::default();
        ledger.count(Entry::Other, Owner::Guest);
        ledger.count(Entry::NotAnExit, Owner::Guest);
        assert_eq!((ledger.other(), ledger.signals()), (1, 1));
        assert!(Reason::all().all(|r| ledger.row(r).exits == 0));
    }
}
