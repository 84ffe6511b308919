//! Slots: where in a vCPU's record an exit is counted, so that its raw code stays visible.
//!
//! A slot is a processor's code, where needed split by EXITINFO1 so finely that every slot has one
//! reason. What a code means is said by [`crate::exits::reason`] alone.
//!
//! | slots | SVM | VMX | emulated events |
//! |---|---|---|---|
//! | 0–0x7F | exit code | basic exit reason | basic exit reason |
//! | 0x80–0xDF | exit code | – | – |
//! | 0xE0–0xE7 | 0x400–0x407 | – | – |
//! | 0xE8 | 0x7C, EXITINFO1 bit 0: WRMSR (0x7C itself: RDMSR) | – | – |
//! | 0xE9 | 0x400, EXITINFO1 bit 3: MMIO (0xE0: any other fault) | – | – |
//! | 0xEA, 0xEB | 0x402: EOI, other trap (0xE2: fault) | – | – |
//! | 0xEC–0xEF | −4…−1 | – | – |
//! | 0xF0 | any other code | any other reason | – |

use exit_abi::reason::Reason;

use crate::exits::reason::{svm, vmx};
use crate::profile::KvmKind;

/// How many slots a record has.
pub const SLOTS: usize = OTHER + 1;

/// Codes and reasons that have no slot of their own.
pub const OTHER: usize = 0xF0;

/// SVM codes below this are their own slots; of them the APM defines those up to 0xA6.
pub(super) const SVM_DIRECT: usize = 0xE0;
/// Where 0x400 and the seven codes after it are.
pub(super) const SVM_HIGH: usize = 0xE0;
/// The first of these codes, and how many.
pub(super) const SVM_HIGH_FIRST: u64 = 0x400;
pub(super) const SVM_HIGH_COUNT: u64 = 8;
/// CPUID, and port I/O; what time drives: INTR, NMI, VINTR.
pub(super) const SVM_CPUID: u64 = 0x72;
pub(super) const SVM_IOIO: u64 = 0x7B;
pub(super) const SVM_INTR: u64 = 0x60;
pub(super) const SVM_NMI: u64 = 0x61;
pub(super) const SVM_VINTR: u64 = 0x64;
/// MSR (0x7C) and its writes.
pub(super) const SVM_MSR: u64 = 0x7C;
pub(super) const SVM_MSR_WRITE: usize = 0xE8;
/// Nested page fault (0x400) with the reserved bit.
pub(super) const SVM_NPF: u64 = 0x400;
pub(super) const SVM_NPF_RESERVED: usize = 0xE9;
/// AVIC_NOACCEL (0x402): a write to EOI, and one that trapped after it was done.
pub(super) const SVM_AVIC: u64 = 0x402;
pub(super) const SVM_AVIC_EOI: usize = 0xEA;
pub(super) const SVM_AVIC_TRAP: usize = 0xEB;
/// −4; −3, −2 and −1 follow.
pub(super) const SVM_NEGATIVE: usize = 0xEC;
/// How many negative codes have a slot.
pub(super) const SVM_NEGATIVE_COUNT: u64 = 4;
/// VMX: the preemption timer.
pub(super) const VMX_PREEMPTION_TIMER: u64 = 52;
/// VMX: basic exit reasons below this are their own slots.
pub(super) const VMX_DIRECT: usize = 0x80;

/// EXITINFO1 of an MSR exit: a write.
pub(super) const MSR_WRITE: u64 = 1 << 0;
/// EXITINFO1 of a nested page fault: a reserved bit was set.
pub(super) const FAULT_RESERVED: u64 = 1 << 3;
/// EXITINFO1 of AVIC_NOACCEL: a write, and the register's offset (a multiple of 16).
pub(super) const APIC_WRITE: u64 = 1 << 32;
pub(super) const APIC_OFFSET: u64 = 0xFF0;

/// What a slot stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The processor's code: SVM's exit code, VMX's basic exit reason. `None` where the slot is
    /// not one code's (another code, an emulated event).
    pub code: Option<u64>,
    /// Its name: the APM's for an SVM code, the SDM's for a reason.
    pub name: &'static str,
    /// The basic exit reason that it is booked under; `None` if it has none.
    pub reason: Option<Reason>,
}

const OTHER_SLOT: Slot = Slot {
    code: None,
    name: "another code",
    reason: None,
};

/// What a slot stands for on this KVM.
pub fn describe(kvm: KvmKind, slot: usize) -> Slot {
    match kvm {
        KvmKind::Amd => describe_svm(slot),
        KvmKind::Intel if slot < VMX_DIRECT => {
            let reason = vmx::translate(slot as u32).reason;
            Slot {
                code: Some(slot as u64),
                name: reason_name(reason),
                reason,
            }
        }
        KvmKind::Software if slot < VMX_DIRECT => {
            let reason = vmx::translate(slot as u32).reason;
            Slot {
                code: None,
                name: reason_name(reason),
                reason,
            }
        }
        _ => OTHER_SLOT,
    }
}

/// The slots in which this KVM's exits can be.
pub fn possible(kvm: KvmKind) -> impl Iterator<Item = usize> {
    let direct = match kvm {
        KvmKind::Amd => OTHER,
        KvmKind::Intel | KvmKind::Software | KvmKind::Unknown => VMX_DIRECT,
    };
    (0..direct).chain([OTHER])
}

fn reason_name(reason: Option<Reason>) -> &'static str {
    reason.and_then(Reason::name).unwrap_or("undefined reason")
}

fn describe_svm(slot: usize) -> Slot {
    let (code, info1) = match slot {
        0..SVM_DIRECT => (slot as u64, 0),
        SVM_HIGH..SVM_MSR_WRITE => (SVM_HIGH_FIRST + (slot - SVM_HIGH) as u64, 0),
        SVM_MSR_WRITE => (SVM_MSR, MSR_WRITE),
        SVM_NPF_RESERVED => (SVM_NPF, FAULT_RESERVED),
        SVM_AVIC_EOI => (SVM_AVIC, APIC_WRITE | APIC_EOI),
        SVM_AVIC_TRAP => (SVM_AVIC, APIC_WRITE | apic_trap()),
        SVM_NEGATIVE..OTHER => {
            let above = (slot - SVM_NEGATIVE) as u64;
            (above.wrapping_sub(SVM_NEGATIVE_COUNT), 0)
        }
        _ => return OTHER_SLOT,
    };
    Slot {
        code: Some(code),
        name: svm::name(code).unwrap_or("undefined code"),
        reason: svm::translate(code, info1),
    }
}

/// Offset of the virtual APIC's EOI register.
const APIC_EOI: u64 = 0xB0;

/// One register whose write traps.
fn apic_trap() -> u64 {
    apic_class(SVM_AVIC_TRAP).next().unwrap_or(0)
}

/// The registers of the virtual APIC whose writes belong to this slot.
pub(super) fn apic_class(slot: usize) -> impl Iterator<Item = u64> {
    (0..=APIC_OFFSET)
        .step_by(16)
        .filter(move |offset| avic_slot(APIC_WRITE | offset) == slot)
}

/// The slot of an AVIC_NOACCEL, by the one table that knows.
fn avic_slot(info1: u64) -> usize {
    match svm::translate(SVM_AVIC, info1).map(Reason::number) {
        Some(45) => SVM_AVIC_EOI,
        Some(56) => SVM_AVIC_TRAP,
        _ => SVM_HIGH + (SVM_AVIC - SVM_HIGH_FIRST) as usize,
    }
}

/// The slot of a traced exit. The programs do the same; a test compares them.
pub fn slot_of(kvm: KvmKind, code: u64, info1: u64) -> usize {
    match kvm {
        KvmKind::Amd => slot_of_svm(code, info1),
        KvmKind::Intel => match (code & 0xFFFF) as usize {
            basic @ 0..VMX_DIRECT => basic,
            _ => OTHER,
        },
        KvmKind::Software | KvmKind::Unknown => OTHER,
    }
}

fn slot_of_svm(code: u64, info1: u64) -> usize {
    // A code that was cut to 32 bits, negative again.
    let code = u32::try_from(code).map_or(code, |low| low.cast_signed() as i64 as u64);
    let negative = code.wrapping_add(SVM_NEGATIVE_COUNT);
    match code {
        SVM_MSR if info1 & MSR_WRITE != 0 => SVM_MSR_WRITE,
        SVM_NPF if info1 & FAULT_RESERVED != 0 => SVM_NPF_RESERVED,
        SVM_AVIC => avic_slot(info1),
        _ if code < SVM_DIRECT as u64 => code as usize,
        _ if (SVM_HIGH_FIRST..SVM_HIGH_FIRST + SVM_HIGH_COUNT).contains(&code) => {
            SVM_HIGH + (code - SVM_HIGH_FIRST) as usize
        }
        _ if negative < SVM_NEGATIVE_COUNT => SVM_NEGATIVE + negative as usize,
        _ => OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// EXITINFO1 of every class that any code distinguishes.
    fn infos() -> impl Iterator<Item = u64> {
        let apic = (0..=0xFFF).flat_map(|offset| [offset, APIC_WRITE | offset]);
        apic.chain([1, 1 << 3, 0x1_0000_000D, u64::MAX])
    }

    fn agrees(code: u64, info1: u64) {
        let slot = slot_of(KvmKind::Amd, code, info1);
        let slot_is = describe(KvmKind::Amd, slot);
        let reason = svm::translate(code, info1);
        assert_eq!(slot_is.reason, reason, "{code:#x} {info1:#x}: {slot:#x}");
        if slot != OTHER {
            let known = slot_is.code.unwrap();
            assert_eq!(known as u32, code as u32, "{code:#x} {info1:#x}: {slot:#x}");
            let name = svm::name(code).unwrap_or("undefined code");
            assert_eq!(slot_is.name, name);
        }
    }

    #[test]
    fn an_svm_slot_has_the_reason_of_all_its_codes() {
        for code in 0..0x500 {
            for info1 in infos() {
                agrees(code, info1);
            }
        }
        for code in [
            -6_i64 as u64,
            -5_i64 as u64,
            -4_i64 as u64,
            -1_i64 as u64,
            u64::from(u32::MAX),
            u64::from(u32::MAX) - 3,
            u64::from(u32::MAX) - 4,
            0x8000_0001,
            1 << 32,
            (1 << 32) + 0x7C,
        ] {
            agrees(code, 0);
        }
    }

    proptest! {
        #[test]
        fn any_code_agrees(code: u64, low: u32, info1: u64) {
            agrees(code, info1);
            agrees(low.into(), info1);
        }

        #[test]
        fn a_vmx_slot_is_the_basic_reason(raw: u32) {
            for raw in [raw, raw & 0xF000_01FF] {
                let slot = slot_of(KvmKind::Intel, raw.into(), 0);
                let reason = describe(KvmKind::Intel, slot).reason;
                prop_assert_eq!(reason, vmx::translate(raw).reason);
            }
        }
    }

    #[test]
    fn no_exit_is_where_nobody_looks() {
        for kvm in [KvmKind::Amd, KvmKind::Intel] {
            let slots: Vec<_> = possible(kvm).collect();
            for code in (0..0x500).chain([-1_i64 as u64, -4_i64 as u64, u64::MAX / 2]) {
                for info1 in infos() {
                    assert!(slots.contains(&slot_of(kvm, code, info1)), "{code:#x}");
                }
            }
        }
    }

    #[test]
    fn every_slot_is_described() {
        for kvm in [KvmKind::Amd, KvmKind::Intel, KvmKind::Software] {
            for slot in 0..SLOTS + 2 {
                assert!(!describe(kvm, slot).name.is_empty());
            }
        }
        assert_eq!(describe(KvmKind::Amd, 0x72).reason, Some(Reason::CPUID));
        assert_eq!(describe(KvmKind::Amd, 0xEF).code, Some(u64::MAX));
        assert_eq!(describe(KvmKind::Amd, 0xEF).name, "INVALID");
        assert_eq!(describe(KvmKind::Intel, 12).code, Some(12));
        assert_eq!(describe(KvmKind::Software, 12).code, None);
    }
}
