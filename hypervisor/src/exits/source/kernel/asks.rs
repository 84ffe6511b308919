//! Asks: what a vCPU's exits were for: which MSR, which port, which CPUID leaf.
//!
//! They are kept per vCPU in a small table with open addressing. Those that tell the guest's ticks
//! have their places from the start, so that a full table cannot hide them and finding them takes
//! no search.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::layout;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AskKind {
    /// RDMSR; the index is ECX.
    MsrRead,
    /// WRMSR; the index is ECX.
    MsrWrite,
    /// IN or INS; the index is the port. One event counts once, whatever its items.
    PortIn,
    /// OUT or OUTS; the index is the port. One event counts once, whatever its items.
    PortOut,
    /// CPUID; the index is EAX. Emulated events only.
    CpuidLeaf,
}

impl AskKind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::MsrRead,
        Self::MsrWrite,
        Self::PortIn,
        Self::PortOut,
        Self::CpuidLeaf,
    ];
}

/// How often a vCPU asked for one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    /// What.
    pub kind: AskKind,
    /// Which one: `None` for those that found no room in the table, together.
    pub index: Option<u32>,
    /// How often.
    pub count: u64,
}

/// Asks that depend on time, not on what is booted: the guest's ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeDriven {
    /// WRMSR 0x6E0: the TSC deadline.
    pub tsc_deadline: u64,
    /// WRMSR 0x80B: the x2APIC's EOI.
    pub x2apic_eoi: u64,
    /// OUT to 0x20, 0x21, 0xA0, 0xA1: the two PICs.
    pub pic: u64,
    /// OUT to 0x40–0x43: the PIT.
    pub pit: u64,
}

impl TimeDriven {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.tsc_deadline + self.x2apic_eoi + self.pic + self.pit
    }

    /// Reads them from a vCPU's block.
    pub(super) fn read(block: &[AtomicU64]) -> Self {
        let mut sum = Self::default();
        let places = const { seeded_places() };
        for (&(kind, index), &place) in SEEDED.iter().zip(&places) {
            let word = block.get(word_of(place) + 1);
            let count = word.map_or(0, |word| word.load(Relaxed));
            *match (kind, index) {
                (AskKind::MsrWrite, TSC_DEADLINE) => &mut sum.tsc_deadline,
                (AskKind::MsrWrite, _) => &mut sum.x2apic_eoi,
                (_, 0x40..=0x43) => &mut sum.pit,
                _ => &mut sum.pic,
            } += count;
        }
        sum
    }
}

/// IA32_TSC_DEADLINE, and the x2APIC's EOI register (SDM vol. 4, table 2-2).
const TSC_DEADLINE: u32 = 0x6E0;
const X2APIC_EOI: u32 = 0x80B;

/// The asks that depend on time.
const SEEDED: [(AskKind, u32); 10] = [
    (AskKind::MsrWrite, TSC_DEADLINE),
    (AskKind::MsrWrite, X2APIC_EOI),
    (AskKind::PortOut, 0x20),
    (AskKind::PortOut, 0x21),
    (AskKind::PortOut, 0xA0),
    (AskKind::PortOut, 0xA1),
    (AskKind::PortOut, 0x40),
    (AskKind::PortOut, 0x41),
    (AskKind::PortOut, 0x42),
    (AskKind::PortOut, 0x43),
];

/// Their places in an empty table, entered in this order.
const fn seeded_places() -> [usize; SEEDED.len()] {
    let mut places = [usize::MAX; SEEDED.len()];
    let mut n = 0;
    while n < SEEDED.len() {
        let (kind, index) = SEEDED[n];
        let mut place = layout::ask_home(layout::ask_key(kind, index));
        let mut earlier = 0;
        while earlier < n {
            if places[earlier] == place {
                place += 1;
                earlier = 0;
            } else {
                earlier += 1;
            }
        }
        places[n] = place;
        n += 1;
    }
    places
}

/// A place's key in a block, as an index of words; its count is the next word.
const fn word_of(place: usize) -> usize {
    (layout::ASKS + (place << layout::ASK_SHIFT)) / 8
}

/// A block in which nothing has been asked for.
pub(super) fn fresh_block() -> Vec<u64> {
    let mut block = vec![0; layout::ASK_BLOCK / 8];
    for (&(kind, index), place) in SEEDED.iter().zip(seeded_places()) {
        block[word_of(place)] = layout::ask_key(kind, index);
    }
    block
}

/// The asks of a block, sorted.
pub(super) fn collect(block: &[AtomicU64]) -> Vec<Ask> {
    let word = |at: usize| block.get(at).map_or(0, |word| word.load(Acquire));
    let kind_of = |code| {
        AskKind::ALL
            .into_iter()
            .find(|&k| layout::ask_code(k) == code)
    };
    let known = (0..layout::ASK_PLACES).filter_map(|place| {
        let (key, count) = (word(word_of(place)), word(word_of(place) + 1));
        Some(Ask {
            kind: kind_of(key >> layout::ASK_KIND_SHIFT)?,
            index: Some(key as u32),
            count,
        })
    });
    let overflows = AskKind::ALL.into_iter().map(|kind| Ask {
        kind,
        index: None,
        count: word(kind as usize),
    });
    let mut asks: Vec<_> = known.chain(overflows).filter(|ask| ask.count > 0).collect();
    asks.sort_by_key(|ask| (ask.kind, ask.index.is_none(), ask.index));
    asks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> Vec<AtomicU64> {
        fresh_block().into_iter().map(AtomicU64::new).collect()
    }

    #[test]
    fn a_fresh_block_has_no_asks() {
        assert_eq!(collect(&block()), []);
        assert_eq!(collect(&[]), []);
        assert_eq!(TimeDriven::read(&block()), TimeDriven::default());
        assert_eq!(TimeDriven::read(&[]), TimeDriven::default());
    }

    #[test]
    fn time_driven_asks_have_their_places() {
        let block = block();
        for (n, place) in seeded_places().into_iter().enumerate() {
            let (kind, index) = SEEDED[n];
            let home = layout::ask_home(layout::ask_key(kind, index));
            assert!(
                (home..home + layout::ASK_PROBES).contains(&place),
                "{kind:?} {index:#x}"
            );
            block[word_of(place) + 1].store(10_u64.pow(n as u32), Relaxed);
        }
        let sum = TimeDriven::read(&block);
        let expected = TimeDriven {
            tsc_deadline: 1,
            x2apic_eoi: 10,
            pic: 111_100,
            pit: 1_111_000_000,
        };
        assert_eq!(sum, expected);
        assert_eq!(sum.total(), 1_111_111_111);
        assert_eq!(collect(&block).len(), SEEDED.len());
    }

    #[test]
    fn asks_are_sorted_and_overflows_come_last() {
        let block = block();
        for (place, kind, index) in [(5, AskKind::PortOut, 0x3F8), (9, AskKind::MsrRead, 0x1B)] {
            block[word_of(place)].store(layout::ask_key(kind, index), Relaxed);
            block[word_of(place) + 1].store(3, Relaxed);
        }
        block[AskKind::MsrRead as usize].store(2, Relaxed);
        let ask = |kind, index, count| Ask { kind, index, count };
        let expected = [
            ask(AskKind::MsrRead, Some(0x1B), 3),
            ask(AskKind::MsrRead, None, 2),
            ask(AskKind::PortOut, Some(0x3F8), 3),
        ];
        assert_eq!(collect(&block), expected);
    }
}
