//! Gates: instructions at which the VMM answers in the guest's place.
//!
//! The table is shared by all vCPUs; each vCPU's own thread arms it as execute breakpoints
//! (`docs/guest-interface.md`). A change raises the generation; whoever changed the table waits
//! until every vCPU has acknowledged it, arming itself meanwhile, so that two who register at once
//! cannot wait for each other.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use exit_abi::gate::{Outcome, SLOTS};
use exit_abi::leaf;
use exit_abi::leaf::{Layout, Question, Registers, SIGNATURE};
use exit_abi::reason::{Edition, Reason};
use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug,
};

use super::books::{Books, Figures, Scratch};
use super::hypercall::{self, Mechanism};
use crate::profile::{GateFigures, KvmKind};

/// What instruction stands at a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateKind {
    /// `cpuid`.
    Cpuid,
    /// `vmcall` or `vmmcall`.
    Hypercall,
    /// Any: nothing is answered, it is a milestone of ours.
    Milestone,
}

impl GateKind {
    /// Length of the instruction.
    pub fn length(self) -> u64 {
        match self {
            Self::Cpuid => 2,
            Self::Hypercall => 3,
            Self::Milestone => 0,
        }
    }

    /// Whether `bytes` begin with the instruction.
    pub fn matches(self, bytes: &[u8]) -> bool {
        match self {
            Self::Cpuid => bytes.starts_with(&[0x0F, 0xA2]),
            Self::Hypercall => {
                bytes.starts_with(&[0x0F, 0x01, 0xC1]) || bytes.starts_with(&[0x0F, 0x01, 0xD9])
            }
            Self::Milestone => false,
        }
    }
}

/// A gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Linear address of the instruction.
    pub address: u64,
    /// Which instruction it is.
    pub kind: GateKind,
}

impl Gate {
    /// Whether only a breakpoint brings what stands there (`bytes`) to the VMM: not a hypercall that
    /// KVM passes on by itself. (The other vendor's is #UD, and KVM would have to rewrite it, which
    /// code that is write-protected does not allow.)
    pub fn needs_slot(&self, hypercalls: Mechanism, kvm: KvmKind, bytes: &[u8]) -> bool {
        let passed_on = hypercalls == Mechanism::Xen && hypercall::is_native(kvm, bytes);
        self.kind == GateKind::Cpuid || !passed_on
    }
}

/// The four slots; slot i is DRi.
pub type Slots = [Option<Gate>; SLOTS];

/// Whether an address is canonical (48-bit linear addresses: we offer no LA57).
pub fn is_canonical(address: u64) -> bool {
    let top = (address as i64) >> 47;
    top == 0 || top == -1
}

/// Most hypercall gates that need no slot, since KVM passes the instruction on wherever it stands. A
/// guest cannot have more of them remembered than that.
pub const UNARMED_MAX: usize = 16;

/// What a guest has registered.
#[derive(Clone, Debug, Default)]
struct Registered {
    slots: Slots,
    /// Addresses of hypercalls that reach the VMM without a breakpoint.
    unarmed: Vec<u64>,
    /// Addresses of milestones of ours, the first the most wanted: they get what slots are left.
    marks: Vec<u64>,
}

impl Registered {
    /// What is armed: the gates where they are, milestones in between.
    fn armed(&self) -> Slots {
        let mut slots = self.slots;
        let is_free = |address: &&u64| !self.slots.iter().flatten().any(|g| g.address == **address);
        let mut marks = self.marks.iter().filter(is_free);
        for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
            *slot = marks.next().map(|&address| Gate {
                address,
                kind: GateKind::Milestone,
            });
        }
        slots
    }

    fn has(&self, address: u64) -> bool {
        let armed = self.slots.iter().flatten().any(|g| g.address == address);
        armed || self.unarmed.contains(&address)
    }
}

/// The gate table of a VM.
#[derive(Debug)]
pub struct Gates {
    registered: Mutex<Registered>,
    generation: AtomicU64,
    /// Per vCPU: the generation it runs with.
    acknowledged: Vec<AtomicU64>,
    queries: AtomicU64,
    hypercalls: AtomicU64,
    stepped: AtomicU64,
    foreign: AtomicU64,
    /// Most gates at once.
    armed: AtomicU64,
    /// Milestones were wanted when there was no slot left for one.
    crowded: AtomicBool,
}

/// The generation of a vCPU that will not run again.
const GONE: u64 = u64::MAX;

impl Gates {
    /// A table for `vcpus` vCPUs.
    pub fn new(vcpus: usize) -> Self {
        Self {
            registered: Mutex::default(),
            generation: AtomicU64::new(0),
            acknowledged: (0..vcpus).map(|_| AtomicU64::new(0)).collect(),
            queries: AtomicU64::new(0),
            hypercalls: AtomicU64::new(0),
            stepped: AtomicU64::new(0),
            foreign: AtomicU64::new(0),
            armed: AtomicU64::new(0),
            crowded: AtomicBool::new(false),
        }
    }

    fn registered(&self) -> std::sync::MutexGuard<'_, Registered> {
        self.registered.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Puts a gate into a free slot; the new generation must reach every vCPU.
    pub fn register(&self, gate: Gate) -> Result<u64, Outcome> {
        let mut registered = self.registered();
        if !is_canonical(gate.address) {
            return Err(Outcome::BadAddress);
        }
        if registered.has(gate.address) {
            return Err(Outcome::Duplicate);
        }
        let slots = &mut registered.slots;
        let free = slots
            .iter_mut()
            .find(|s| s.is_none())
            .ok_or(Outcome::Full)?;
        *free = Some(gate);
        let armed = slots.iter().flatten().count() as u64;
        self.armed.fetch_max(armed, Ordering::Relaxed);
        self.note_crowding(&registered);
        Ok(self.generation.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// Tells which milestones of ours are wanted, the first the most: gates come first, whenever they
    /// come, and milestones take the slots that are left. The new generation must reach every vCPU, if
    /// there is one.
    pub fn want(&self, marks: impl FnOnce() -> Vec<u64>) -> Option<u64> {
        let mut registered = self.registered();
        let before = registered.armed();
        registered.marks = marks();
        self.note_crowding(&registered);
        let changed = registered.armed() != before;
        changed.then(|| self.generation.fetch_add(1, Ordering::AcqRel) + 1)
    }

    fn note_crowding(&self, registered: &Registered) {
        let full = registered.slots.iter().all(Option::is_some);
        if full && !registered.marks.is_empty() {
            self.crowded.store(true, Ordering::Relaxed);
        }
    }

    /// Whether gates have left no slot for a milestone that was wanted.
    pub fn crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    /// Remembers a gate whose hypercall KVM passes on by itself. Nothing is armed, so nothing must
    /// reach anybody.
    pub fn register_unarmed(&self, address: u64) -> Result<(), Outcome> {
        let mut registered = self.registered();
        if !is_canonical(address) {
            return Err(Outcome::BadAddress);
        }
        if registered.has(address) {
            return Err(Outcome::Duplicate);
        }
        if registered.unarmed.len() == UNARMED_MAX {
            return Err(Outcome::Full);
        }
        registered.unarmed.push(address);
        Ok(())
    }

    /// Takes a gate away; the new generation must reach every vCPU. (It is the old one where nothing
    /// was armed.)
    pub fn withdraw(&self, address: u64) -> Result<u64, Outcome> {
        let mut registered = self.registered();
        if let Some(place) = registered.unarmed.iter().position(|a| *a == address) {
            registered.unarmed.swap_remove(place);
            return Ok(self.generation());
        }
        let slot = registered
            .slots
            .iter_mut()
            .find(|s| s.is_some_and(|g| g.address == address))
            .ok_or(Outcome::NotFound)?;
        *slot = None;
        Ok(self.generation.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// The table and its generation, as one.
    pub fn read(&self) -> (Slots, u64) {
        let registered = self.registered();
        (registered.armed(), self.generation.load(Ordering::Acquire))
    }

    /// The current generation: all that the run loop looks at.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// A vCPU runs with this generation from now on.
    pub fn acknowledge(&self, vcpu: usize, generation: u64) {
        if let Some(slot) = self.acknowledged.get(vcpu) {
            slot.store(generation, Ordering::Release);
        }
    }

    /// A vCPU will not run again.
    pub fn gone(&self, vcpu: usize) {
        self.acknowledge(vcpu, GONE);
    }

    /// The vCPUs that do not run with this generation yet.
    pub fn behind(&self, generation: u64) -> impl Iterator<Item = usize> + '_ {
        self.acknowledged
            .iter()
            .enumerate()
            .filter(move |(_, a)| a.load(Ordering::Acquire) < generation)
            .map(|(i, _)| i)
    }

    /// A query was answered.
    pub fn count_query(&self) {
        self.queries.fetch_add(1, Ordering::Relaxed);
    }

    /// A hypercall was answered.
    pub fn count_hypercall(&self) {
        self.hypercalls.fetch_add(1, Ordering::Relaxed);
    }

    /// An instruction was stepped over unchanged.
    pub fn count_stepped(&self) {
        self.stepped.fetch_add(1, Ordering::Relaxed);
    }

    /// A #DB was given back to the guest.
    pub fn count_foreign(&self) {
        self.foreign.fetch_add(1, Ordering::Relaxed);
    }

    /// What the gates did.
    pub fn figures(&self) -> GateFigures {
        GateFigures {
            queries: self.queries.load(Ordering::Relaxed),
            hypercalls: self.hypercalls.load(Ordering::Relaxed),
            stepped: self.stepped.load(Ordering::Relaxed),
            foreign: self.foreign.load(Ordering::Relaxed),
            armed: self.armed.load(Ordering::Relaxed),
        }
    }
}

/// The slot, if any, whose breakpoint a #DB reports: B0–B3 of DR6 (SDM vol. 3B, 19.2.3).
pub fn slot_hit(slots: &Slots, dr6: u64, pc: u64) -> Option<(usize, Gate)> {
    slots.iter().enumerate().find_map(|(i, gate)| {
        let gate = (*gate)?;
        (dr6 & 1 << i != 0 && gate.address == pc).then_some((i, gate))
    })
}

/// What KVM_SET_GUEST_DEBUG is given for these slots, but the one to be stepped over.
pub fn debug_control(slots: &Slots, step: Option<Step>) -> kvm_guest_debug {
    let mut debug = kvm_guest_debug::default();
    for (i, gate) in slots.iter().enumerate() {
        let skipped = step.is_some_and(|s| s.slot == i);
        if let Some(gate) = gate.filter(|_| !skipped) {
            debug.arch.debugreg[i] = gate.address;
            // Gi set; R/Wi = 00 and LENi = 00: break on execution (SDM vol. 3B, 19.2.4).
            debug.arch.debugreg[7] |= 2 << (2 * i);
        }
    }
    if debug.arch.debugreg[7] != 0 {
        // Bit 10 of DR7 reads as 1.
        debug.arch.debugreg[7] |= 1 << 10;
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
    }
    if let Some(step) = step {
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | step.flags;
    }
    debug
}

/// One instruction is being stepped over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The slot whose breakpoint is off meanwhile.
    pub slot: usize,
    /// KVM_GUESTDBG_BLOCKIRQ, where KVM has it.
    pub flags: u32,
    /// The guest steps too: its trap is due behind the instruction.
    pub guest_steps: bool,
}

/// What a VM answers from.
pub struct Oracle<'a> {
    /// The books.
    pub books: &'a Books,
    /// Which leaf asks what.
    pub layout: Layout,
    /// Which reasons are defined.
    pub edition: Edition,
    /// Whether there is an exit page.
    pub exit_page: bool,
}

/// EBX, ECX, EDX of the discovery leaf and EAX: static.
pub fn discovery() -> Registers {
    let word = |i: usize| {
        u32::from_le_bytes([
            SIGNATURE[i],
            SIGNATURE[i + 1],
            SIGNATURE[i + 2],
            SIGNATURE[i + 3],
        ])
    };
    Registers {
        eax: leaf::HIGHEST,
        ebx: word(0),
        ecx: word(4),
        edx: word(8),
    }
}

/// The answer of the information leaf: static.
pub fn info(layout: Layout, exit_page: bool) -> Registers {
    /// Its page number. (Below 4 GiB: it fits.)
    const NUMBER: u32 = (exit_abi::page::ADDRESS >> 12) as u32;
    Registers {
        eax: exit_abi::VERSION,
        ebx: exit_page.into(),
        ecx: if exit_page { NUMBER } else { 0 },
        edx: layout.pack(),
    }
}

impl Oracle<'_> {
    /// Answers a question. `ecx` is the guest's: all 32 bits of it are checked. What each vCPU's
    /// figures are, as far as they are read for it, is shown to `each`.
    pub fn answer(
        &self,
        question: Question,
        ecx: u32,
        scratch: &mut Scratch,
        each: impl Fn(usize, &Figures),
    ) -> Registers {
        let defined = || Reason::new(ecx).filter(|r| r.is_defined(self.edition));
        match question {
            Question::Discovery => discovery(),
            Question::Info => info(self.layout, self.exit_page),
            Question::Flags => {
                let flags = Reason::new(ecx).map_or(0, |r| self.books.flags(r, self.edition));
                Registers {
                    eax: flags,
                    ..Registers::default()
                }
            }
            Question::Map => {
                self.books.all_by(scratch, each);
                Registers::from_map(scratch.figures.map())
            }
            Question::TotalExits => {
                self.books.all_by(scratch, each);
                Registers::from_exits(scratch.figures.known())
            }
            Question::TotalCycles => {
                self.books.all_by(scratch, each);
                Registers::from_cycles(scratch.figures.cycles())
            }
            Question::ExitsOf => match defined() {
                Some(reason) => {
                    self.books.all_by(scratch, each);
                    Registers::from_exits(scratch.figures.lines[reason.index()].row.exits)
                }
                None => Registers::undefined(),
            },
            Question::CyclesOf => match defined() {
                Some(reason) => {
                    self.books.all_by(scratch, each);
                    Registers::from_cycles(scratch.figures.lines[reason.index()].row.cycles)
                }
                None => Registers::undefined(),
            },
        }
    }
}

/// The coursework's log line for a query, as its patched kernels print it; `None` for our leaves.
pub fn log_line(question: Question, ecx: u32, answer: Registers) -> Option<String> {
    Some(match question {
        Question::TotalExits => format!("sd> Exit_Reason : ALL , ExitCount : {}", answer.exits()),
        Question::TotalCycles => {
            format!("sd> Exit_Reason : ALL , Time_Taken : {}", answer.cycles())
        }
        Question::ExitsOf => format!("sd> Exit_Reason : {ecx} , ExitCount : {}", answer.exits()),
        Question::CyclesOf => format!("sd> Exit_Reason : {ecx} , Time_Taken : {}", answer.cycles()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exits::books::VcpuBook;
    use crate::exits::ledger::{Entry, Ledger, Owner};
    use crate::exits::source::run::RunSource;
    use crate::profile::KvmKind;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn gate(address: u64) -> Gate {
        Gate {
            address,
            kind: GateKind::Cpuid,
        }
    }

    #[test]
    fn the_table_refuses_what_it_must() {
        let gates = Gates::new(1);
        for i in 0..4 {
            assert_eq!(gates.register(gate(0x1000 + i)), Ok(i + 1));
        }
        assert_eq!(gates.register(gate(0x1000)), Err(Outcome::Duplicate));
        assert_eq!(gates.register(gate(0x2000)), Err(Outcome::Full));
        assert_eq!(gates.register(gate(1 << 47)), Err(Outcome::BadAddress));
        assert_eq!(gates.withdraw(0x2000), Err(Outcome::NotFound));
        assert_eq!(gates.withdraw(0x1002), Ok(5));
        assert_eq!(gates.register(gate(0x2000)), Ok(6));
        assert_eq!(gates.read().0[2], Some(gate(0x2000)));
    }

    #[test]
    fn a_change_waits_for_every_vcpu_that_still_runs() {
        let gates = Gates::new(3);
        let generation = gates.register(gate(0x1000)).unwrap();
        assert_eq!(gates.behind(generation).collect::<Vec<_>>(), [0, 1, 2]);
        gates.acknowledge(1, generation);
        gates.gone(2);
        assert_eq!(gates.behind(generation).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn milestones_take_the_slots_that_gates_leave() {
        let gates = Gates::new(1);
        let armed = |gates: &Gates| gates.read().0.map(|s| s.map(|g| g.address));
        gates.register(gate(0x1000)).unwrap();
        let marks = vec![0xA, 0x1000, 0xB, 0xC, 0xD];
        assert_eq!(gates.want(|| marks.clone()), Some(2));
        assert_eq!(
            armed(&gates),
            [Some(0x1000), Some(0xA), Some(0xB), Some(0xC)]
        );
        assert_eq!(gates.want(|| marks), None, "the same");
        for address in [0x2000, 0x3000, 0x4000] {
            assert!(!gates.crowded());
            gates.register(gate(address)).unwrap();
        }
        assert!(gates.crowded());
        assert_eq!(armed(&gates)[3], Some(0x4000));
        assert_eq!(gates.register(gate(0x5000)), Err(Outcome::Full));
        gates.withdraw(0x2000).unwrap();
        assert_eq!(armed(&gates)[1], Some(0xA), "back again");
        assert_eq!(gates.figures().armed, 4, "gates alone");
    }

    #[test]
    fn debug_registers() {
        let mut slots = Slots::default();
        assert_eq!(debug_control(&slots, None).control, 0);
        slots[0] = Some(gate(0xA));
        slots[3] = Some(gate(0xB));
        let debug = debug_control(&slots, None);
        assert_eq!(debug.arch.debugreg, [0xA, 0, 0, 0xB, 0, 0, 0, 0x482]);
        assert_eq!(debug.control, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP);
        let step = Step {
            slot: 0,
            flags: 0,
            guest_steps: false,
        };
        let debug = debug_control(&slots, Some(step));
        assert_eq!(debug.arch.debugreg, [0, 0, 0, 0xB, 0, 0, 0, 0x480]);
        assert_eq!(slot_hit(&slots, 1 << 3, 0xB), Some((3, gate(0xB))));
        assert_eq!(slot_hit(&slots, 1 << 3, 0xA), None);
        assert_eq!(slot_hit(&slots, 0, 0xB), None);
    }

    #[test]
    fn a_gate_that_needs_no_slot_is_remembered_all_the_same() {
        let gates = Gates::new(1);
        let most = UNARMED_MAX as u64;
        for i in 0..most {
            assert_eq!(gates.register_unarmed(0x1000 + i), Ok(()));
        }
        assert_eq!(gates.register_unarmed(0x1001), Err(Outcome::Duplicate));
        assert_eq!(gates.register_unarmed(0x2000), Err(Outcome::Full));
        assert_eq!(gates.register_unarmed(1 << 47), Err(Outcome::BadAddress));
        assert_eq!(gates.register(gate(0x1001)), Err(Outcome::Duplicate));
        assert_eq!((gates.generation(), gates.figures().armed), (0, 0));
        assert_eq!(gates.withdraw(0x1001), Ok(0), "nothing to spread");
        assert_eq!(gates.withdraw(0x1001), Err(Outcome::NotFound));
        assert_eq!(gates.register(gate(0x1001)), Ok(1));
        assert_eq!(gates.register_unarmed(0x1001), Err(Outcome::Duplicate));
        assert_eq!(
            gates.register_unarmed(0x2000),
            Ok(()),
            "there is room again"
        );
    }

    fn books() -> Books {
        let ledger = Arc::new(Ledger::default());
        for _ in 0..402 {
            ledger.count(Entry::Reason(Reason::IO), Owner::Guest);
            ledger.time(Entry::Reason(Reason::IO), Owner::Guest, 1 << 24);
        }
        let sources = vec![Box::new(RunSource(ledger.clone())) as _];
        Books::new(vec![VcpuBook { ledger, sources }], KvmKind::Amd)
    }

    fn ask(books: &Books, edition: Edition, question: Question, ecx: u32) -> Registers {
        Oracle {
            exit_page: false,
            books,
            layout: Layout::CLASSIC,
            edition,
        }
        .answer(question, ecx, &mut Scratch::default(), |_, _| ())
    }

    #[test]
    fn answers() {
        let books = books();
        let ask = |q, ecx| ask(&books, Edition::Current, q, ecx);
        assert_eq!(
            ask(Question::TotalExits, 0),
            Registers {
                eax: 402,
                ..Registers::default()
            }
        );
        let cycles = 402_u64 << 24;
        let split = Registers {
            ebx: (cycles >> 32) as u32,
            ecx: cycles as u32,
            ..Registers::default()
        };
        assert_eq!(ask(Question::TotalCycles, 0), split);
        assert_eq!(ask(Question::ExitsOf, 30).exits(), 402);
        assert_eq!(ask(Question::CyclesOf, 30), split);
        assert_eq!(
            ask(Question::ExitsOf, 11),
            Registers::default(),
            "defined, not enabled"
        );
        assert_eq!(ask(Question::Map, 0).map(), 1 << 30);
        let line = log_line(Question::ExitsOf, 30, ask(Question::ExitsOf, 30));
        assert_eq!(
            line.as_deref(),
            Some("sd> Exit_Reason : 30 , ExitCount : 402")
        );
    }

    #[test]
    fn undefined_reasons_by_edition() {
        let books = books();
        for (edition, ecx) in [
            (Edition::Current, 35),
            (Edition::Current, 71),
            (Edition::Sdm2020, 65),
            (Edition::Sdm2020, 69),
        ] {
            assert_eq!(
                ask(&books, edition, Question::ExitsOf, ecx),
                Registers::undefined()
            );
            assert_eq!(
                ask(&books, edition, Question::CyclesOf, ecx),
                Registers::undefined()
            );
        }
        assert_eq!(
            ask(&books, Edition::Current, Question::ExitsOf, 65),
            Registers::default()
        );
    }

    proptest! {
        #[test]
        fn any_ecx_is_answered(ecx: u32) {
            let books = books();
            for q in [Question::ExitsOf, Question::CyclesOf, Question::Flags] {
                let answer = ask(&books, Edition::Current, q, ecx);
                if ecx > 85 && q != Question::Flags {
                    prop_assert_eq!(answer, Registers::undefined());
                }
            }
        }

        #[test]
        fn canonical_addresses(address: u64) {
            let sign_extended = ((address << 16) as i64 >> 16) as u64;
            prop_assert_eq!(is_canonical(address), sign_extended == address);
        }
    }
}
