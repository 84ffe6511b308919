//! The engine: which breakpoints are wanted now, and what follows from one that was reached.
//!
//! Two lists. The *sequence* is in the order of a boot: what is reached passes over what lies before it, so
//! that a step that never comes blocks nothing. What a person *wants* besides has no order: each stays
//! until it is reached. The first few of both are to be armed, in turns.

use std::sync::{Arc, Mutex, MutexGuard};

use exit_abi::gate::SLOTS;
use vm_memory::{Bytes, GuestAddress};

use super::Label;
use super::head::JUMP;
use super::kernel::{Facts, Given, LINUX};
use super::linux::{Found, SEQUENCE, START_THREAD, USER_SPACE, Where};
use super::spec::{Sequence, Spec, Wish};
use crate::exits::gate::is_canonical;
use crate::memory::Memory;
use crate::profile::{MilestoneKind, Missed};
use crate::symbols::{KernelMap, Placed, Symbols, running};

/// A kernel stack has so many bytes, and begins at a multiple of them
/// (linux/arch/x86/include/asm/page_64_types.h, THREAD_SIZE without KASAN).
const STACK: u64 = 16 << 10;
/// What in CR3 does not tell address spaces apart: PCID, and which half of a pair of page tables it is
/// (linux/Documentation/arch/x86/pti.rst).
const CR3_IGNORED: u64 = 0x1FFF;
/// Where in user space a breakpoint is, from its first instruction on: there, and at the second one, which
/// is so far behind `xor`, `mov` or `endbr64`. The first passes unnoticed where a page fault comes before
/// it: it then returns with RF set (seen on an emulated CPU; the SDM has breakpoints first, vol. 3A, 7.9).
const SECOND: [u64; 4] = [0, 2, 4, 3];
/// A kernel's image is put at a multiple of this by KASLR, and within so much.
const SLIDE_ALIGNMENT: u64 = 2 << 20;
const SLIDE_MAX: u64 = 1 << 30;

/// The registers of a CPU at a breakpoint, as far as they matter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RSI.
    pub rsi: u64,
    /// RSP.
    pub rsp: u64,
    /// CR3.
    pub cr3: u64,
    /// Privilege level.
    pub cpl: u8,
}

/// What is done at a step besides recording it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// The kernel is entered.
    Entry,
    /// It is about to jump to where it has moved itself.
    Moved,
    /// It is about to jump into the kernel that it has unpacked.
    Unpacked,
    /// A place of the running kernel, to be looked up once it has been put somewhere.
    Place(Where),
    /// Code at a known address.
    Code,
    /// init is about to be executed, by the thread whose stack this is.
    Exec(Where),
    /// A thread is told where user space begins.
    Thread,
    /// User space, in the address space with this CR3.
    User { cr3: u64 },
}

/// How far a step is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    Waiting,
    Reached,
    /// Something later has been reached.
    PassedOver(Arc<str>),
}

/// A step.
#[derive(Clone, Debug)]
struct Step {
    what: What,
    label: Label,
    /// Whether it is recorded: some are there for what they tell.
    shown: bool,
    address: Option<u64>,
    /// Why it has no address.
    unknown: Option<String>,
    progress: Progress,
}

impl Step {
    fn new(name: &str, what: What) -> Self {
        Self {
            what,
            label: Label::new(name, MilestoneKind::Breakpoint),
            shown: true,
            address: None,
            unknown: None,
            progress: Progress::Waiting,
        }
    }

    fn at(self, address: u64) -> Self {
        Self {
            address: Some(address),
            ..self
        }
    }

    fn hidden(self) -> Self {
        Self {
            shown: false,
            ..self
        }
    }

    fn found(&mut self, found: Result<Found, String>) {
        match found {
            Ok(found) => {
                self.address = Some(found.address);
                let says_more = *found.symbol != *self.label.name;
                self.label.at = says_more.then(|| found.symbol.into());
            }
            Err(why) => self.unknown = Some(why),
        }
    }

    /// The addresses that are to be armed.
    fn open(&self) -> impl Iterator<Item = u64> + '_ {
        let offsets = match self.what {
            What::User { .. } => &SECOND[..],
            _ => &SECOND[..1],
        };
        let address = self.address.filter(|_| self.progress == Progress::Waiting);
        let addresses = address.map(|a| offsets.iter().map(move |offset| a.wrapping_add(*offset)));
        addresses.into_iter().flatten().filter(|a| is_canonical(*a))
    }
}

/// A step that was reached.
#[derive(Debug)]
pub struct Reached {
    what: What,
    /// What to record, if anything.
    pub label: Option<Label>,
}

#[derive(Debug, Default)]
struct State {
    sequence: Vec<Step>,
    wanted: Vec<Step>,
    /// What a person is to be told at the end.
    notes: Vec<String>,
    /// The stack on which init is executed.
    stack: Option<u64>,
}

/// The milestones of a VM that are noticed by breakpoints.
#[derive(Debug)]
pub struct Marks {
    facts: Facts,
    given: Given,
    state: Mutex<State>,
}

impl Marks {
    /// What is wished for, of a kernel of which this is known, with symbols that were given.
    pub fn new(wish: &Wish, facts: Facts, given: Given) -> Self {
        let mut state = State::default();
        let is_linux = facts.is_linux();
        let all = wish.sequence == Sequence::Linux && is_linux;
        if wish.sequence == Sequence::Linux && wish.asked && !is_linux {
            state
                .notes
                .push("--milestones linux: the kernel is not Linux: leave it out".into());
        }
        state.notes.extend(given.note.clone());
        let symbols = wish.own.iter().filter_map(|spec| match spec {
            Spec::Symbol(name) => Some(name.as_str()),
            _ => None,
        });
        for name in symbols {
            // One that a sequence has anyway is taken there.
            let is_step = |(step, _): &(&str, Where)| all && *step == name;
            let is_there = state.wanted.iter().any(|s| *s.label.name == *name);
            if !SEQUENCE.iter().any(is_step) && !is_there {
                state.wanted.push(Step::new(name, What::Code));
            }
        }
        if all || is_linux && !state.wanted.is_empty() {
            state.sequence = beginning(&facts, all, &mut state.notes);
        }
        if all {
            state.sequence.extend(SEQUENCE.map(|(name, place)| {
                let what = match name {
                    "exec of init" => What::Exec(place),
                    _ => What::Place(place),
                };
                Step::new(name, what)
            }));
            state
                .sequence
                .push(Step::new(START_THREAD, What::Thread).hidden());
            state
                .sequence
                .push(Step::new(USER_SPACE, What::User { cr3: 0 }));
        }
        if !is_linux {
            // It runs where it was linked for.
            for step in &mut state.wanted {
                step.found(lookup(given.symbols.as_deref(), &step.label.name));
            }
        }
        Self {
            facts,
            given,
            state: Mutex::new(state),
        }
    }

    /// What a person asked for that needs no breakpoint, or nothing.
    pub fn none() -> Self {
        Self::new(&Wish::default(), Facts::Other, Given::default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Addresses of the breakpoints that are wanted now, the first the most.
    pub fn window(&self) -> Vec<u64> {
        self.state().window()
    }

    /// What was reached by a CPU that stopped there. Each is reached once.
    pub fn reach(&self, address: u64, cpu: &Cpu) -> Vec<Reached> {
        let mut state = self.state();
        let stack = state.stack;
        let is_it =
            |step: &Step| step.open().any(|a| a == address) && step.what.accepts(cpu, stack);
        let mut reached = Vec::new();
        let State {
            sequence, wanted, ..
        } = &mut *state;
        if let Some(place) = sequence.iter().position(is_it) {
            let by = sequence[place].label.name.clone();
            for step in &mut sequence[..place] {
                if step.progress == Progress::Waiting {
                    step.progress = Progress::PassedOver(by.clone());
                }
            }
        }
        for step in sequence.iter_mut().chain(wanted).filter(|step| is_it(step)) {
            step.progress = Progress::Reached;
            reached.push(Reached {
                what: step.what,
                label: step.shown.then(|| step.label.clone()),
            });
        }
        reached
    }

    /// Does what follows from a step that was reached: this may take some time.
    pub fn follow(&self, reached: &Reached, cpu: &Cpu, memory: &Memory, map: &KernelMap) {
        match (reached.what, &self.facts) {
            (What::Entry, Facts::Unpacked { image, text, .. }) => {
                self.place(memory, map, *image, *text);
            }
            (What::Moved, Facts::Packed { jumps, .. }) => {
                let jump = jumps.map(|jumps| cpu.rbx.wrapping_add(jumps.second));
                let is_jump = |at: &u64| {
                    let mut bytes = [0; JUMP.len()];
                    let read = memory.read_slice(&mut bytes, GuestAddress(*at));
                    read.is_ok() && bytes == JUMP
                };
                let mut state = self.state();
                match jump.filter(is_jump) {
                    Some(jump) => state.set(What::Unpacked, Ok(jump)),
                    None => state.give_up("its own code is not where it moved itself"),
                }
            }
            (
                What::Unpacked,
                Facts::Packed {
                    load,
                    size,
                    alignment,
                    ..
                },
            ) => {
                let start = cpu.rax - cpu.rax % alignment;
                let image = (start, start.saturating_add(*size));
                self.place(memory, map, image, LINUX.wrapping_add(*load));
            }
            (What::Exec(_), _) => self.state().stack = Some(cpu.rsp / STACK),
            (What::Thread, _) => {
                let cr3 = cpu.cr3 & !CR3_IGNORED;
                let mut state = self.state();
                let step = state
                    .sequence
                    .iter_mut()
                    .find(|s| *s.label.name == *USER_SPACE);
                if let Some(step) = step {
                    (step.what, step.address) = (What::User { cr3 }, Some(cpu.rsi));
                }
            }
            _ => {}
        }
    }

    /// The kernel lies at these physical addresses, and is linked for `text`: finds its symbols, and with
    /// them every step.
    fn place(&self, memory: &Memory, map: &KernelMap, image: (u64, u64), text: u64) {
        let end = memory_end(memory, image);
        let own = running::read(memory, (image.0, end), text);
        let physical = image.0.wrapping_sub(text);
        let mut state = self.state();
        let (symbols, slide) = match (own, &self.given.symbols) {
            (Some((own, slide)), None) => (Arc::new(own), slide),
            (Some((own, slide)), Some(given)) => {
                let differs = |name: &&str| {
                    let at = own.address(name);
                    at.is_some() && at != given.address(name)
                };
                let names = ["start_kernel", "rest_init", "_etext", "start_thread"];
                match names.iter().find(|name| differs(name)) {
                    None => (given.clone(), slide),
                    Some(name) => {
                        state.notes.push(format!(
                            "--symbols {}: it is another kernel's ({name} is elsewhere): this one's own \
                             table is used: leave it out",
                            self.given.name
                        ));
                        (Arc::new(own), slide)
                    }
                }
            }
            (None, Some(given)) => match slide_of(memory, given, physical) {
                Some(slide) => (given.clone(), slide),
                None => {
                    let what = format!("--symbols {} is not this kernel's", self.given.name);
                    return state.give_up(&what);
                }
            },
            (None, None) => {
                return state.give_up("it has no table of symbols: give --symbols FILE");
            }
        };
        let last = symbols.iter().last().map_or(text, |(address, _)| address);
        let behind = symbols.address("_end").unwrap_or(last.saturating_add(1));
        let placed = Placed {
            symbols,
            slide,
            physical: Some(physical),
            image: (text, behind),
        };
        for step in &mut state.sequence {
            match step.what {
                What::Place(place) | What::Exec(place) => step.found(place.find(&placed, memory)),
                What::Thread => step.found(lookup_placed(&placed, START_THREAD)),
                _ => {}
            }
        }
        for step in &mut state.wanted {
            step.found(lookup_placed(&placed, &step.label.name));
        }
        map.set(placed);
    }

    /// What was not reached, and why. What is asked for by name comes from elsewhere too.
    pub fn missed(&self) -> Vec<Missed> {
        let state = self.state();
        let steps = state.sequence.iter().chain(&state.wanted);
        let missed = steps.filter(|step| step.shown && step.progress != Progress::Reached);
        missed
            .map(|step| Missed {
                name: step.label.name.to_string(),
                why: match (&step.progress, &step.unknown) {
                    (Progress::PassedOver(by), None) => format!("{by} was reached before it"),
                    (_, Some(why)) => why.clone(),
                    _ => "not reached".into(),
                },
            })
            .collect()
    }

    /// What a person is to be told: in one line each.
    pub fn notes(&self) -> Vec<String> {
        let state = self.state();
        let mut notes = state.notes.clone();
        // What a kernel of another make has not, or does not reach.
        let odd = state.sequence.iter().filter(|step| {
            let passed = matches!(step.progress, Progress::PassedOver(_));
            step.shown && (passed || step.unknown.is_some() && notes.is_empty())
        });
        let names: Vec<&str> = odd.map(|step| &*step.label.name).collect();
        if !names.is_empty() {
            notes.push(format!(
                "milestones that this boot did not pass: {}: the profile says why",
                names.join(", ")
            ));
        }
        notes
    }
}

impl State {
    fn window(&self) -> Vec<u64> {
        let mut sequence = self.sequence.iter().flat_map(Step::open);
        let mut wanted = self.wanted.iter().flat_map(Step::open);
        let mut window: Vec<u64> = Vec::with_capacity(SLOTS);
        loop {
            let next = [sequence.next(), wanted.next()];
            if next == [None, None] {
                return window;
            }
            for address in next.into_iter().flatten() {
                if window.len() < SLOTS && !window.contains(&address) {
                    window.push(address);
                }
            }
            if window.len() == SLOTS {
                return window;
            }
        }
    }

    /// Gives the address of the step that does this.
    fn set(&mut self, what: What, address: Result<u64, String>) {
        if let Some(step) = self.sequence.iter_mut().find(|step| step.what == what) {
            match address {
                Ok(address) => step.address = Some(address),
                Err(why) => step.unknown = Some(why),
            }
        }
    }

    /// Nothing can be found in the kernel.
    fn give_up(&mut self, why: &str) {
        self.notes
            .push(format!("no milestones within the kernel: {why}"));
        self.unknown(why);
    }

    /// Says why what has no address has none.
    fn unknown(&mut self, why: &str) {
        let steps = self.sequence.iter_mut().chain(&mut self.wanted);
        for step in steps.filter(|step| step.address.is_none()) {
            step.unknown.get_or_insert_with(|| why.to_owned());
        }
    }
}

impl What {
    /// Whether a CPU that stops there is one for which the breakpoint is: addresses are linear, and tell
    /// nothing of privilege or address space.
    fn accepts(self, cpu: &Cpu, stack: Option<u64>) -> bool {
        match self {
            Self::User { cr3 } => cpu.cpl == 3 && cpu.cr3 & !CR3_IGNORED == cr3,
            Self::Thread => cpu.cpl == 0 && stack.is_some_and(|stack| cpu.rsp / STACK == stack),
            _ => cpu.cpl == 0,
        }
    }
}

/// The steps until the kernel runs where it will stay; hidden if they are not wanted themselves.
fn beginning(facts: &Facts, shown: bool, notes: &mut Vec<String>) -> Vec<Step> {
    let steps = match *facts {
        Facts::Packed {
            load,
            entry,
            ref jumps,
            ..
        } => {
            let entry = Step::new("kernel entry", What::Entry).at(entry);
            let mut moved = Step::new("moved", What::Moved).hidden();
            let mut unpacked = Step::new("decompressed", What::Unpacked);
            match jumps {
                Some(jumps) => moved.address = Some(load + jumps.first),
                None => {
                    let why = "where its decompressor enters it is not found";
                    notes.push(format!("no milestones within the kernel: {why}"));
                    unpacked.unknown = Some(why.into());
                }
            }
            vec![entry, moved, unpacked]
        }
        Facts::Unpacked { entry, .. } => {
            vec![Step::new("kernel entry", What::Entry).at(entry)]
        }
        Facts::Other => Vec::new(),
    };
    let hide = |step: Step| match shown {
        true => step,
        false => step.hidden(),
    };
    // To unpack needs no breakpoint at the entry.
    let is_needed =
        |step: &Step| shown || step.what != What::Entry || matches!(facts, Facts::Unpacked { .. });
    steps.into_iter().filter(is_needed).map(hide).collect()
}

fn lookup(symbols: Option<&Symbols>, name: &str) -> Result<Found, String> {
    let symbols = symbols.ok_or("the kernel has no symbols: give --symbols FILE")?;
    let address = symbols
        .address(name)
        .ok_or_else(|| format!("no symbol {name}"))?;
    Ok(Found {
        address,
        symbol: name.to_owned(),
    })
}

fn lookup_placed(placed: &Placed, name: &str) -> Result<Found, String> {
    let mut found = lookup(Some(&placed.symbols), name)?;
    found.address = found.address.wrapping_add(placed.slide);
    Ok(found)
}

/// The end of an image, cut to where there is memory.
fn memory_end(memory: &Memory, image: (u64, u64)) -> u64 {
    use vm_memory::GuestMemoryBackend;
    use vm_memory::GuestMemoryRegion;
    let region = memory.find_region(GuestAddress(image.0));
    let end = region.map(|region| region.start_addr().0.saturating_add(region.len()));
    image.1.min(end.unwrap_or(image.0))
}

/// The slide of a kernel without a table of its own, if these are its symbols: a pointer that it has from
/// its start, relocated (linux/arch/x86/kernel/head_64.S, `initial_code`).
fn slide_of(memory: &Memory, symbols: &Symbols, physical: u64) -> Option<u64> {
    let at = symbols.address("initial_code")?.wrapping_add(physical);
    let pointer: u64 = memory.read_obj(GuestAddress(at)).ok()?;
    let slide = pointer.wrapping_sub(symbols.address("x86_64_start_kernel")?);
    (slide < SLIDE_MAX && slide % SLIDE_ALIGNMENT == 0).then_some(slide)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marks::head::Jumps;
    use crate::symbols::Builder;
    use crate::symbols::kallsyms::tests::{Order, table};
    use proptest::prelude::*;

    const LOAD: u64 = 0x20_0000;
    const TEXT: u64 = LINUX + LOAD;
    const SLIDE: u64 = 0x60_0000;
    /// Where KASLR puts it.
    const AT: u64 = 0x40_0000;

    fn packed(jumps: bool) -> Facts {
        Facts::Packed {
            load: LOAD,
            entry: LOAD + 0x200,
            size: 1 << 20,
            alignment: 0x20_0000,
            jumps: jumps.then_some(Jumps {
                first: 0x2CA,
                second: 0x500,
            }),
        }
    }

    fn wish(own: &[&str]) -> Wish {
        Wish {
            sequence: Sequence::Linux,
            own: own.iter().map(|s| s.parse().unwrap()).collect(),
            ..Wish::default()
        }
    }

    /// Symbols of a kernel that has a few steps of the sequence.
    fn symbols() -> Vec<(i32, String)> {
        let mut symbols = vec![(0, "T_text".to_owned())];
        let names = [
            "start_kernel",
            "rcu_end_inkernel_boot",
            "run_init_process",
            START_THREAD,
            "f",
            "g",
            "h",
        ];
        symbols.extend((0x100..).step_by(0x10).zip(names.map(|n| format!("T{n}"))));
        symbols.extend((0..16).map(|i| (0x1000 + 16 * i, format!("tx{i}"))));
        symbols
    }

    /// Memory with such a kernel, unpacked, and its own code behind it.
    fn memory() -> crate::memory::Ram {
        let memory = crate::memory::map(8 << 20).unwrap();
        let symbols = symbols();
        let symbols: Vec<_> = symbols.iter().map(|(o, n)| (*o, n.as_str())).collect();
        let bytes = table(Order::From64, TEXT + SLIDE, &symbols);
        memory
            .write_slice(&bytes, GuestAddress(AT + 0x8000))
            .unwrap();
        memory
            .write_slice(&JUMP, GuestAddress(0x70_0000 + 0x500))
            .unwrap();
        memory
    }

    /// A CPU stops there: what is recorded.
    fn stop(marks: &Marks, at: u64, cpu: Cpu, map: &KernelMap, memory: &Memory) -> Vec<String> {
        let reached = marks.reach(at, &cpu);
        for step in &reached {
            marks.follow(step, &cpu, memory, map);
        }
        let labels = reached.into_iter().filter_map(|r| r.label);
        labels.map(|l| l.name.to_string()).collect()
    }

    /// Steps up to the kernel's own code.
    fn unpacked(marks: &Marks, map: &KernelMap, memory: &Memory) {
        let zero = Cpu::default();
        assert_eq!(
            stop(marks, LOAD + 0x200, zero, map, memory),
            ["kernel entry"]
        );
        let moved = Cpu {
            rbx: 0x70_0000,
            ..zero
        };
        assert_eq!(stop(marks, LOAD + 0x2CA, moved, map, memory), [""; 0]);
        let jump = Cpu {
            rax: AT + 0xB53,
            ..zero
        };
        assert_eq!(stop(marks, 0x70_0500, jump, map, memory), ["decompressed"]);
    }

    #[test]
    fn a_boot_in_order() {
        let (memory, map) = (memory(), KernelMap::default());
        let marks = Marks::new(
            &wish(&["symbol:f", "symbol:g", "symbol:rest_init"]),
            packed(true),
            Given::default(),
        );
        assert_eq!(
            marks.window(),
            [LOAD + 0x200, LOAD + 0x2CA],
            "what is known"
        );
        unpacked(&marks, &map, &memory);
        let at = |name: &str| map.get().unwrap().address(name).unwrap();
        assert_eq!(at("start_kernel"), TEXT + SLIDE + 0x100);
        // In turns: the next of the sequence, and what was asked for.
        assert_eq!(
            marks.window(),
            ["start_kernel", "f", "rcu_end_inkernel_boot", "g"].map(at)
        );
        let zero = Cpu::default();
        let user = Cpu { cpl: 3, ..zero };
        let stop = |at, cpu| stop(&marks, at, cpu, &map, &memory);
        assert_eq!(stop(at("start_kernel"), user), [""; 0], "not in user space");
        assert_eq!(stop(at("start_kernel"), zero), ["start_kernel"]);
        assert_eq!(stop(at("start_kernel"), zero), [""; 0], "once");
        assert_eq!(stop(at("g"), zero), ["g"]);
        // Passes over kernel_init.
        let exec = Cpu {
            rsp: 0x5_4000 + 0x3F00,
            ..zero
        };
        assert_eq!(stop(at("run_init_process"), exec), ["exec of init"]);
        let thread = Cpu {
            rsi: 0x40_1000,
            cr3: 0x12_3001,
            ..exec
        };
        let other = Cpu {
            rsp: 0x9_4000,
            ..thread
        };
        assert_eq!(marks.reach(at(START_THREAD), &other).len(), 0, "a helper");
        assert_eq!(stop(at(START_THREAD), thread), [""; 0]);
        assert_eq!(marks.window(), [0x40_1000, at("f"), 0x40_1002, 0x40_1004]);
        let init = Cpu {
            cr3: 0x12_3000 | 1 << 12 | 7,
            ..user
        };
        for wrong in [
            Cpu {
                cr3: 0x55_0000,
                ..user
            },
            Cpu { cpl: 0, ..init },
        ] {
            assert_eq!(stop(0x40_1000, wrong), [""; 0]);
        }
        let init = Cpu {
            cr3: 0x12_2007,
            ..init
        };
        assert_eq!(stop(0x40_1004, init), ["user space"]);
        let missed: Vec<_> = marks
            .missed()
            .into_iter()
            .map(|m| (m.name, m.why))
            .collect();
        let why = |name: &str| {
            let found = missed.iter().find(|(n, _)| n == name);
            found.map(|(_, why)| why.as_str())
        };
        assert_eq!(why("f"), Some("not reached"));
        assert_eq!(why("rest_init"), Some("no symbol rest_init"));
        assert_eq!(
            why("kernel_init done"),
            Some("exec of init was reached before it")
        );
        assert_eq!(why("start_kernel"), None);
        let notes = marks.notes();
        assert!(
            notes.len() == 1 && notes[0].contains("kernel_init done"),
            "{notes:?}"
        );
    }

    #[test]
    fn a_jump_that_is_not_found_costs_the_rest_alone() {
        let (memory, map) = (memory(), KernelMap::default());
        let marks = Marks::new(&wish(&[]), packed(false), Given::default());
        assert_eq!(marks.window(), [LOAD + 0x200]);
        assert_eq!(
            stop(&marks, LOAD + 0x200, Cpu::default(), &map, &memory),
            ["kernel entry"]
        );
        assert_eq!(marks.window(), [0; 0]);
        assert_eq!(marks.notes().len(), 1, "{:?}", marks.notes());
        // Found, but not there.
        let marks = Marks::new(&wish(&[]), packed(true), Given::default());
        let elsewhere = Cpu {
            rbx: 0x60_0000,
            ..Cpu::default()
        };
        stop(&marks, LOAD + 0x2CA, elsewhere, &map, &memory);
        assert_eq!(marks.window(), [0; 0]);
        let notes = marks.notes();
        assert!(notes[0].contains("not where it moved itself"), "{notes:?}");
    }

    #[test]
    fn without_a_table_given_symbols_serve() {
        let memory = crate::memory::map(8 << 20).unwrap();
        let code = GuestAddress(0x70_0500);
        memory.write_slice(&JUMP, code).unwrap();
        // initial_code, relocated.
        let at = GuestAddress(AT + 0x100);
        memory.write_obj(TEXT + SLIDE + 0x200, at).unwrap();
        for (wrong, name) in [(0, "start_kernel"), (8, "")] {
            let mut builder = Builder::default();
            for (address, name) in [
                (TEXT, "_text"),
                (TEXT + 0x100, "initial_code"),
                (TEXT + 0x200 + wrong, "x86_64_start_kernel"),
                (TEXT + 0x300, "start_kernel"),
            ] {
                builder.add(address, name);
            }
            let given = Given {
                symbols: Some(Arc::new(builder.finish())),
                name: "System.map".into(),
                note: None,
            };
            let (marks, map) = (
                Marks::new(&wish(&[]), packed(true), given),
                KernelMap::default(),
            );
            unpacked(&marks, &map, &memory);
            match name {
                "" => assert!(marks.notes()[0].contains("System.map is not this kernel's")),
                name => assert_eq!(marks.window(), [map.get().unwrap().address(name).unwrap()]),
            }
        }
        let (marks, map) = (
            Marks::new(&wish(&[]), packed(true), Given::default()),
            KernelMap::default(),
        );
        unpacked(&marks, &map, &memory);
        assert!(
            marks.notes()[0].contains("give --symbols FILE"),
            "{:?}",
            marks.notes()
        );
        assert!(map.get().is_none());
    }

    #[test]
    fn of_another_kernel_there_is_no_sequence() {
        let mut asked = wish(&["symbol:main"]);
        let marks = Marks::new(&asked, Facts::Other, Given::default());
        assert_eq!(marks.notes(), [""; 0]);
        assert_eq!(
            marks.missed()[0].why,
            "the kernel has no symbols: give --symbols FILE"
        );
        asked.asked = true;
        let marks = Marks::new(&asked, Facts::Other, Given::default());
        assert!(marks.notes()[0].contains("not Linux"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn any_stops_in_any_order(
            stops in proptest::collection::vec((0..12_usize, any::<u64>(), 0..4_u8, any::<bool>()), 0..60),
        ) {
            let (memory, map) = (memory(), KernelMap::default());
            let marks = Marks::new(&wish(&["symbol:f", "symbol:h"]), packed(true), Given::default());
            let mut seen = Vec::new();
            for (place, value, cpl, sane) in stops {
                let window = marks.window();
                prop_assert!(window.len() <= SLOTS);
                let at = window.get(place % 5).copied().unwrap_or(value);
                let near = if sane { 0x70_0000 } else { value };
                let cpu = Cpu { rax: near, rbx: near, rsi: value, rsp: value, cr3: 0, cpl };
                seen.extend(stop(&marks, at, cpu, &map, &memory));
            }
            let count = seen.len();
            seen.sort();
            seen.dedup();
            prop_assert_eq!(seen.len(), count, "each once");
            prop_assert_eq!(seen.len() + marks.missed().len(), 19);
        }
    }
}
