//! Culprits: which exits a vCPU had for what (an MSR, a port, a leaf, a page) and from where in the
//! guest.
//!
//! They are kept per vCPU in a table with open addressing: a slot, a key, an instruction pointer and a
//! count each. One that finds no room is tried again without its instruction pointer; then it is
//! counted by its slot alone. So a slot's counts always add up to its exits. Those that tell the
//! guest's ticks, and the host's, have places without an instruction pointer from the start, so that a full table
//! cannot hide them.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Acquire;

use super::layout::{self, what};
use super::slots;
use crate::exits::culprits::{Lost, Site};
use crate::profile::{AskKind, KvmKind};

/// How often a vCPU exited for one thing, from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Culprit {
    /// Which.
    pub site: Site,
    /// How often.
    pub count: u64,
    /// Nanoseconds that the timed ones took, from exit to next entry.
    pub ns: u64,
}

/// IA32_TSC_DEADLINE, and the x2APIC's EOI register (SDM vol. 4, table 2-2).
const TSC_DEADLINE: u64 = 0x6E0;
const X2APIC_EOI: u64 = 0x80B;

/// The keys of the 8259s' ports, and the 8254's, as OUT has them.
const TICKING_PORTS: [u64; 8] = [0x20, 0x21, 0xA0, 0xA1, 0x40, 0x41, 0x42, 0x43];

/// The slots of WRMSR and of port I/O.
pub(super) const fn msr_write(kvm: KvmKind) -> u64 {
    match kvm {
        KvmKind::Amd => slots::SVM_MSR_WRITE as u64,
        _ => 32,
    }
}
pub(super) const fn io(kvm: KvmKind) -> u64 {
    match kvm {
        KvmKind::Amd => slots::SVM_IOIO,
        _ => 30,
    }
}

/// What tells the guest's ticks, and what comes as time goes by.
fn seeds(kvm: KvmKind) -> impl Iterator<Item = u64> {
    let word = |slot, key: u64| slot | what::USED | what::KEYED | key << what::KEY_SHIFT;
    let msrs = [TSC_DEADLINE, X2APIC_EOI].map(|msr| word(msr_write(kvm), msr));
    let ports = TICKING_PORTS.map(|port| word(io(kvm), port));
    // What comes from anywhere: the host's interrupts, and windows.
    let anywhere: &[u64] = match kvm {
        KvmKind::Amd => &[slots::SVM_INTR, slots::SVM_VINTR, slots::SVM_NMI],
        KvmKind::Intel => &[7, 8, slots::VMX_PREEMPTION_TIMER],
        _ => &[],
    };
    let anywhere = anywhere.iter().map(|slot| slot | what::USED);
    msrs.into_iter().chain(ports).chain(anywhere)
}

/// A place in a block, as an index of words.
const fn word_of(place: usize) -> usize {
    (layout::FIRST_PLACE + place * layout::PLACE) / 8
}

/// A block in which nothing has happened.
pub(super) fn fresh_block(kvm: KvmKind) -> Vec<u64> {
    let mut block = vec![0; layout::BLOCK / 8];
    for seed in seeds(kvm) {
        let home = layout::home(seed, 0);
        let free = (home..home + layout::PROBES).find(|&place| block[word_of(place)] == 0);
        if let Some(place) = free {
            block[word_of(place)] = seed;
        }
    }
    block
}

/// The culprits of a block; `pending` is what the last exit was, while its key is not known.
pub(super) fn collect(kvm: KvmKind, block: &[AtomicU64], pending: u64) -> Vec<Culprit> {
    let word = |at: usize| block.get(at).map_or(0, |word| word.load(Acquire));
    let mut found = Vec::new();
    for place in 0..layout::PLACES {
        let at = word_of(place);
        let count = word(at + layout::PLACE_COUNT / 8);
        if count > 0 {
            found.push(Culprit {
                site: Site {
                    caller: Some(word(at + layout::PLACE_CALLER / 8)).filter(|&caller| caller != 0),
                    ..site(kvm, word(at), word(at + layout::PLACE_RIP / 8))
                },
                count,
                ns: word(at + layout::PLACE_NS / 8),
            });
        }
    }
    let pending = (pending != 0).then_some((pending & what::SLOT) as usize);
    for slot in slots::possible(kvm) {
        let under_way = u64::from(pending == Some(slot));
        for (first, lost, more) in [
            (layout::NO_ROOM, Lost::NoRoom, 0),
            (layout::NO_KEY, Lost::NotTold, under_way),
        ] {
            let count = word(first / 8 + slot).saturating_add(more);
            if count > 0 {
                let reason = slots::describe(kvm, slot).reason.map(|r| r.number());
                found.push(Culprit {
                    site: Site {
                        lost: Some(lost),
                        ..Site::of(reason)
                    },
                    count,
                    ns: 0,
                });
            }
        }
    }
    found
}

/// What a place says.
fn site(kvm: KvmKind, word: u64, rip: u64) -> Site {
    let slot = (word & what::SLOT) as usize;
    let reason = slots::describe(kvm, slot).reason.map(|r| r.number());
    let key = (word & what::KEYED != 0).then_some(word >> what::KEY_SHIFT);
    let large = word & what::LARGE != 0;
    Site {
        ask: meaning(kvm, slot, reason, key, large),
        rip: (rip != 0).then_some(rip),
        ..Site::of(reason)
    }
}

/// What a key is, by the reason; or what the slot itself tells.
fn meaning(
    kvm: KvmKind,
    slot: usize,
    reason: Option<u8>,
    key: Option<u64>,
    large: bool,
) -> Option<(AskKind, u64)> {
    if kvm == KvmKind::Amd
        && let Some(told) = told(slot as u64)
    {
        return Some(told);
    }
    let key = key?;
    match reason? {
        0 => Some((AskKind::Exception, key)),
        1 => Some((AskKind::Interrupt, key)),
        10 => Some((AskKind::Cpuid, key)),
        // Mov to, mov from, CLTS, LMSW: SDM vol. 3C, table 28-3.
        28 => Some(match key >> 4 & 3 {
            1 => (AskKind::CrRead, key & 0xF),
            _ => (AskKind::CrWrite, key & 0xF),
        }),
        30 if key & what::IN != 0 => Some((AskKind::PortIn, key & 0xFFFF)),
        30 => Some((AskKind::PortOut, key & 0xFFFF)),
        31 => Some((AskKind::MsrRead, key)),
        32 => Some((AskKind::MsrWrite, key)),
        48 | 49 if large => Some((AskKind::Ram, key << layout::PAGE_SHIFT)),
        48 | 49 => Some((AskKind::Page, key << layout::PAGE_SHIFT)),
        _ => None,
    }
}

/// What an SVM code tells by itself (AMD APM vol. 2, appendix C).
fn told(code: u64) -> Option<(AskKind, u64)> {
    match code {
        0x00..=0x0F => Some((AskKind::CrRead, code)),
        0x10..=0x1F => Some((AskKind::CrWrite, code - 0x10)),
        0x40..=0x5F => Some((AskKind::Exception, code - 0x40)),
        // CR0_SEL_WRITE.
        0x65 => Some((AskKind::CrWrite, 0)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    fn block(kvm: KvmKind) -> Vec<AtomicU64> {
        fresh_block(kvm).into_iter().map(AtomicU64::new).collect()
    }

    #[test]
    fn a_fresh_block_has_no_culprits_and_room_for_the_ticks() {
        for kvm in [KvmKind::Amd, KvmKind::Intel, KvmKind::Software] {
            let block = block(kvm);
            assert_eq!(collect(kvm, &block, 0), []);
            let used = block.iter().filter(|word| word.load(Relaxed) != 0).count();
            assert_eq!(used, seeds(kvm).count());
        }
        assert_eq!(collect(KvmKind::Amd, &[], 0), []);
    }

    #[test]
    fn a_pending_exit_is_among_those_whose_key_is_not_told() {
        let found = collect(KvmKind::Intel, &block(KvmKind::Intel), 32 | what::USED);
        let site = Site {
            lost: Some(Lost::NotTold),
            ..Site::of(Some(32))
        };
        let expected = Culprit {
            site,
            count: 1,
            ns: 0,
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn keys_mean_what_their_reason_says() {
        use AskKind::{CrRead, CrWrite, Exception, Interrupt, Page, PortIn, PortOut, Ram};
        let of = |kvm, slot: u64, key: u64, flags| {
            let word = slot | what::USED | what::KEYED | flags | key << what::KEY_SHIFT;
            site(kvm, word, 0).ask
        };
        let intel = |slot, key| of(KvmKind::Intel, slot, key, 0);
        assert_eq!(intel(0, 14), Some((Exception, 14)));
        assert_eq!(intel(1, 0xEC), Some((Interrupt, 0xEC)));
        assert_eq!(intel(28, 0x04), Some((CrWrite, 4)));
        assert_eq!(intel(28, 0x13), Some((CrRead, 3)));
        assert_eq!(intel(28, 0x20), Some((CrWrite, 0)));
        assert_eq!(intel(30, 0x3F8), Some((PortOut, 0x3F8)));
        assert_eq!(intel(30, 0x1_03F8), Some((PortIn, 0x3F8)));
        assert_eq!(intel(48, 0xFEE00), Some((Page, 0xFEE0_0000)));
        let large = of(KvmKind::Amd, slots::SVM_HIGH as u64, 0x200, what::LARGE);
        assert_eq!(large, Some((Ram, 0x20_0000)));
        let amd = |slot| site(KvmKind::Amd, slot | what::USED, 0).ask;
        assert_eq!(amd(0x4E), Some((Exception, 14)));
        assert_eq!(amd(0x10), Some((CrWrite, 0)));
        assert_eq!(amd(0x04), Some((CrRead, 4)));
        assert_eq!(amd(0x78), None);
    }
}
