//! All CPUs: starting the others one by one, and letting every CPU ask at its gate.
//!
//! Each CPU marks the milestone SMP itself, asks while the first CPU asks too, and parks.

extern crate alloc;

use alloc::alloc::{Layout as Place, alloc};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use exit_abi::leaf::Layout;
use exit_abi::milestone;

use crate::arch::gdt::{Segments, Stack};
use crate::arch::{cpu, gate, lapic, secondary, traps};
use crate::line::Line;
use crate::machine::Machine;
use crate::own::OwnSection;

/// How often each CPU asks.
pub const QUESTIONS: u32 = 4;
/// How long one CPU is waited for, in nanoseconds, before it is sent another IPI: a busy host may have
/// others to run for a while.
const PATIENCE: u32 = 2_000_000_000;
/// How often it is waited for so, at each stage; it is sent another only while it has not begun.
const TRIES: usize = 3;
/// Bytes of the stack of a CPU other than the first. Below it lies its emergency stack.
const STACK: usize = 8192;

/// How far a CPU has come.
mod state {
    pub(super) const UP: u32 = 1;
    pub(super) const PARKED: u32 = 2;
}

/// What a CPU was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    /// The first answer.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// Whether each was at least the one before.
    pub monotonic: bool,
}

/// Asks for all exits, [`QUESTIONS`] times.
pub fn ask(mut exits: impl FnMut() -> u64) -> Answers {
    let first = exits();
    let mut answers = Answers {
        first,
        last: first,
        monotonic: true,
    };
    for _ in 1..QUESTIONS {
        let next = exits();
        answers.monotonic &= next >= answers.last;
        answers.last = next;
    }
    answers
}

/// What belongs to one CPU; its stack comes last, so that its top tells where the rest is.
#[repr(C, align(16))]
struct Block {
    segments: Segments,
    state: AtomicU32,
    /// Set by the first CPU when it asks too.
    go: AtomicU32,
    /// The layout to ask by, packed; 0: ask nothing.
    layout: AtomicU32,
    first: AtomicU64,
    last: AtomicU64,
    monotonic: AtomicU32,
    stack: Stack<STACK>,
}

impl Block {
    /// One for a CPU that is to come; `None` if there is no memory.
    fn new(layout: Option<Layout>) -> Option<&'static Self> {
        // SAFETY: the size is not zero.
        let block = unsafe { alloc(Place::new::<Self>()) }.cast::<Self>();
        if block.is_null() {
            return None;
        }
        // SAFETY: the memory is a block's, ours, and never freed. Atomics and bytes take any bit
        // pattern, and the fields that are read before they are written are written here.
        unsafe {
            (&raw mut (*block).state).write(AtomicU32::new(0));
            (&raw mut (*block).go).write(AtomicU32::new(0));
            let layout = layout.map_or(0, Layout::pack);
            (&raw mut (*block).layout).write(AtomicU32::new(layout));
            Some(&*block)
        }
    }

    fn has(&self, state: u32) -> bool {
        self.state.load(Ordering::SeqCst) >= state
    }

    fn answers(&self) -> Answers {
        Answers {
            first: self.first.load(Ordering::SeqCst),
            last: self.last.load(Ordering::SeqCst),
            monotonic: self.monotonic.load(Ordering::SeqCst) != 0,
        }
    }
}

/// Where every CPU but the first arrives, on its own stack, with interrupts off.
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
pub(crate) extern "sysv64" fn secondary_main(stack_top: u64) -> ! {
    let block = stack_top as usize - size_of::<Block>();
    // SAFETY: only tops of the stacks of blocks are offered, each to one CPU; a stack is its
    // block's last field and its size a multiple of the alignment. Blocks are never freed.
    let block = unsafe { &*(block as *const Block) };
    block.segments.load();
    traps::load();
    lapic::enable();
    crate::milestone::reached(milestone::SMP);
    let layout = block.layout.load(Ordering::SeqCst);
    if layout == 0 {
        block.state.store(state::UP, Ordering::SeqCst);
    } else {
        let leaf = Layout::unpack(layout).total_exits;
        let own = OwnSection::open();
        block.state.store(state::UP, Ordering::SeqCst);
        cpu::spin_until(|| block.go.load(Ordering::SeqCst) != 0);
        let answers = ask(|| gate::gate_cpuid(leaf, 0).exits());
        drop(own);
        block.first.store(answers.first, Ordering::SeqCst);
        block.last.store(answers.last, Ordering::SeqCst);
        let monotonic = u32::from(answers.monotonic);
        block.monotonic.store(monotonic, Ordering::SeqCst);
    }
    block.state.store(state::PARKED, Ordering::SeqCst);
    cpu::stop()
}

/// How the other CPUs came up.
#[derive(Default)]
pub struct Roll {
    /// The CPUs that came, by APIC ID.
    present: Vec<(u8, &'static Block)>,
    /// Those that did not.
    missing: Vec<u8>,
    /// What the first CPU was answered meanwhile.
    ours: Vec<Answers>,
}

/// Waits until `done`, at most [`PATIENCE`]; the timer must be in one-shot mode.
fn wait(done: impl Fn() -> bool) -> bool {
    let before = lapic::ticks();
    lapic::arm(PATIENCE);
    cpu::spin_until(|| done() || lapic::ticks() != before);
    done()
}

/// Starts every CPU but the one that runs, and lets each ask if there is a layout to ask by.
pub fn start_all(machine: &Machine, layout: Option<Layout>) -> Roll {
    let mut roll = Roll::default();
    let boot = machine.boot_cpu;
    let others = machine.cpus.as_slice().iter().copied();
    let mut others = others.filter(|&id| u32::from(id) != boot).peekable();
    if others.peek().is_none() {
        return roll;
    }
    secondary::place_trampoline();
    lapic::one_shot();
    for id in others {
        match start(id, layout) {
            Some(block) => {
                if let Some(layout) = layout {
                    let own = OwnSection::open();
                    block.go.store(1, Ordering::SeqCst);
                    roll.ours
                        .push(ask(|| gate::gate_cpuid(layout.total_exits, 0).exits()));
                    drop(own);
                }
                wait(|| block.has(state::PARKED));
                roll.present.push((id, block));
            }
            None => roll.missing.push(id),
        }
    }
    lapic::stop();
    roll
}

/// Starts one CPU; `None` if it does not come, or there is no memory for it.
fn start(id: u8, layout: Option<Layout>) -> Option<&'static Block> {
    let block = Block::new(layout)?;
    secondary::offer_stack(block.stack.top());
    let before = secondary::arrivals();
    for _ in 0..TRIES {
        if secondary::arrivals() == before {
            lapic::start_cpu(id, (secondary::TRAMPOLINE >> 12) as u8);
        }
        if wait(secondary::stack_is_taken) {
            break;
        }
    }
    if secondary::withdraw_stack() {
        return None;
    }
    let up = (0..TRIES).any(|_| wait(|| block.has(state::UP)));
    up.then_some(block)
}

impl Roll {
    /// The CPUs that did not come.
    pub fn missing(&self) -> &[u8] {
        &self.missing
    }

    /// How many came, besides the first.
    pub fn present(&self) -> usize {
        self.present.len()
    }

    /// Whether the answers that all CPUs got agree: counts never shrink, and each CPU has been
    /// answered by the time the first one asks for the next.
    pub fn agrees(&self) -> bool {
        let theirs: Vec<Answers> = self.present.iter().map(|(_, b)| b.answers()).collect();
        agree(&self.ours, &theirs)
    }

    /// One line for each CPU, without its newline.
    pub fn lines(&self, mut emit: impl FnMut(&mut Line)) {
        if self.ours.is_empty() {
            return;
        }
        for (id, block) in &self.present {
            let answers = block.answers();
            let mut line = Line::new();
            line.text("[exit-log] SMP          CPU ")
                .number((*id).into());
            line.text(" asked ").number(QUESTIONS.into());
            line.text(" times: exits= ").number(answers.first);
            line.text(" to ").number(answers.last);
            emit(&mut line);
        }
    }
}

/// Whether counts never shrink: neither on a CPU, nor from one pair of CPUs to the next.
fn agree(ours: &[Answers], theirs: &[Answers]) -> bool {
    let mut floor = 1; // somebody asked: at least that exit has been
    for (our, their) in ours.iter().zip(theirs) {
        // The two ask at the same time: each against what is past, not against each other.
        if !our.monotonic || !their.monotonic || our.first < floor || their.first < floor {
            return false;
        }
        floor = our.last.max(their.last);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(first: u64, last: u64) -> Answers {
        Answers {
            first,
            last,
            monotonic: true,
        }
    }

    #[test]
    fn asking() {
        let mut counts = [5, 5, 8, 9].into_iter();
        assert_eq!(ask(|| counts.next().unwrap()), answers(5, 9));
        let mut counts = [5, 4, 8, 9].into_iter();
        assert!(!ask(|| counts.next().unwrap()).monotonic);
    }

    #[test]
    fn agreement() {
        let ours = [answers(3, 9), answers(10, 14)];
        assert!(agree(&ours, &[answers(4, 8), answers(9, 20)]));
        assert!(
            !agree(&ours, &[answers(4, 11), answers(11, 20)]),
            "ours shrank"
        );
        assert!(
            !agree(&ours, &[answers(0, 8), answers(9, 20)]),
            "nothing counted"
        );
        let mut backwards = answers(10, 14);
        backwards.monotonic = false;
        assert!(!agree(&ours, &[answers(4, 8), backwards]));
        assert!(agree(&[], &[]));
    }

    #[test]
    fn the_stack_is_the_last_of_a_block() {
        assert_eq!(
            core::mem::offset_of!(Block, stack) + STACK,
            size_of::<Block>()
        );
        // 253 others fit into the heap.
        assert!(253 * size_of::<Block>() < 6 << 20);
    }

    #[test]
    fn one_cpu_needs_nothing() {
        let mut machine = Machine::undescribed();
        machine.cpus.push(0).unwrap();
        let roll = start_all(&machine, None);
        assert!(roll.missing().is_empty() && roll.present() == 0 && roll.agrees());
    }
}
