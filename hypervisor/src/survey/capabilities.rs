//! KVM's capabilities that matter to a VMM which counts exits, with what each is for
//! (linux/Documentation/virt/kvm/api.rst; linux/include/uapi/linux/kvm.h).

use kvm_bindings as kvm;
use kvm_ioctls::Kvm;
use serde::Serialize;

/// What the number means that KVM answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// 0: no.
    Flag,
    /// A number of these.
    Number(&'static str),
    /// Bits by name.
    Bits(&'static [(u32, &'static str)]),
}

struct Known {
    number: u32,
    name: &'static str,
    purpose: &'static str,
    meaning: Meaning,
}

const fn flag(number: u32, name: &'static str, purpose: &'static str) -> Known {
    Known {
        number,
        name,
        purpose,
        meaning: Meaning::Flag,
    }
}

const fn number(
    unit: &'static str,
    number: u32,
    name: &'static str,
    purpose: &'static str,
) -> Known {
    Known {
        number,
        name,
        purpose,
        meaning: Meaning::Number(unit),
    }
}

const fn bits(
    bits: &'static [(u32, &'static str)],
    number: u32,
    name: &'static str,
    purpose: &'static str,
) -> Known {
    Known {
        number,
        name,
        purpose,
        meaning: Meaning::Bits(bits),
    }
}

const SYNC_REGS: &[(u32, &str)] = &[(0, "REGS"), (1, "SREGS"), (2, "EVENTS")];
const GUEST_DEBUG: &[(u32, &str)] = &[
    (0, "ENABLE"),
    (1, "SINGLESTEP"),
    (16, "USE_SW_BP"),
    (17, "USE_HW_BP"),
    (18, "INJECT_DB"),
    (19, "INJECT_BP"),
    (20, "BLOCKIRQ"),
];
const XEN_HVM: &[(u32, &str)] = &[
    (0, "HYPERCALL_MSR"),
    (1, "INTERCEPT_HCALL"),
    (2, "SHARED_INFO"),
    (3, "RUNSTATE"),
    (4, "EVTCHN_2LEVEL"),
    (5, "EVTCHN_SEND"),
    (6, "RUNSTATE_UPDATE_FLAG"),
    (7, "PVCLOCK_TSC_UNSTABLE"),
    (8, "SHARED_INFO_HVA"),
];
const DISABLE_EXITS: &[(u32, &str)] = &[
    (0, "MWAIT"),
    (1, "HLT"),
    (2, "PAUSE"),
    (3, "CSTATE"),
    (4, "APERFMPERF"),
];
const QUIRKS: &[(u32, &str)] = &[
    (0, "LINT0_REENABLED"),
    (1, "CD_NW_CLEARED"),
    (2, "LAPIC_MMIO_HOLE"),
    (3, "OUT_7E_INC_RIP"),
    (4, "MISC_ENABLE_NO_MWAIT"),
    (5, "FIX_HYPERCALL_INSN"),
    (6, "MWAIT_NEVER_UD_FAULTS"),
    (7, "SLOT_ZAP_ALL"),
    (8, "STUFF_FEATURE_MSRS"),
    (9, "IGNORE_GUEST_PAT"),
];
const BUS_LOCK: &[(u32, &str)] = &[(0, "DETECTION_OFF"), (1, "DETECTION_EXIT")];
const NOTIFY: &[(u32, &str)] = &[(0, "ENABLED"), (1, "USER")];
const HYPERCALLS: &[(u32, &str)] = &[(12, "MAP_GPA_RANGE")];

/// In the order in which they are shown.
const KNOWN: &[Known] = &[
    flag(
        kvm::KVM_CAP_USER_MEMORY,
        "USER_MEMORY",
        "guest memory from the VMM's own",
    ),
    flag(
        kvm::KVM_CAP_READONLY_MEM,
        "READONLY_MEM",
        "memory that a guest can only read: the exit page",
    ),
    flag(
        kvm::KVM_CAP_PRE_FAULT_MEMORY,
        "PRE_FAULT_MEMORY",
        "memory mapped before the guest touches it",
    ),
    number(
        "bytes",
        kvm::KVM_CAP_DIRTY_LOG_RING,
        "DIRTY_LOG_RING",
        "written pages, told in a ring",
    ),
    flag(
        kvm::KVM_CAP_MEMORY_FAULT_INFO,
        "MEMORY_FAULT_INFO",
        "what an access failed at",
    ),
    flag(
        kvm::KVM_CAP_GUEST_MEMFD,
        "GUEST_MEMFD",
        "memory that the host does not map",
    ),
    flag(
        kvm::KVM_CAP_IRQCHIP,
        "IRQCHIP",
        "interrupt controllers in the kernel",
    ),
    flag(
        kvm::KVM_CAP_SPLIT_IRQCHIP,
        "SPLIT_IRQCHIP",
        "local APICs alone in the kernel",
    ),
    flag(kvm::KVM_CAP_IRQFD, "IRQFD", "interrupts without an ioctl"),
    flag(
        kvm::KVM_CAP_IOEVENTFD,
        "IOEVENTFD",
        "writes that do not reach the VMM's vCPU thread",
    ),
    flag(
        kvm::KVM_CAP_TSC_DEADLINE_TIMER,
        "TSC_DEADLINE_TIMER",
        "the local APIC's deadline mode",
    ),
    number(
        "ns",
        kvm::KVM_CAP_X86_APIC_BUS_CYCLES_NS,
        "X86_APIC_BUS_CYCLES_NS",
        "a tick of the local APIC's timer",
    ),
    flag(
        kvm::KVM_CAP_TSC_CONTROL,
        "TSC_CONTROL",
        "a TSC of another rate",
    ),
    flag(
        kvm::KVM_CAP_EXT_CPUID,
        "EXT_CPUID",
        "CPUID as the VMM shapes it",
    ),
    flag(
        kvm::KVM_CAP_SET_GUEST_DEBUG,
        "SET_GUEST_DEBUG",
        "breakpoints that end in the VMM: the gates",
    ),
    bits(
        GUEST_DEBUG,
        kvm::KVM_CAP_SET_GUEST_DEBUG2,
        "SET_GUEST_DEBUG2",
        "which of them",
    ),
    bits(
        SYNC_REGS,
        kvm::KVM_CAP_SYNC_REGS,
        "SYNC_REGS",
        "registers without an ioctl",
    ),
    flag(
        kvm::KVM_CAP_IMMEDIATE_EXIT,
        "IMMEDIATE_EXIT",
        "an exit that is finished without running on",
    ),
    flag(
        kvm::KVM_CAP_BINARY_STATS_FD,
        "BINARY_STATS_FD",
        "KVM's statistics: the source KVM stats",
    ),
    bits(
        XEN_HVM,
        kvm::KVM_CAP_XEN_HVM,
        "XEN_HVM",
        "VMCALL and VMMCALL that end in the VMM, where INTERCEPT_HCALL is",
    ),
    bits(
        HYPERCALLS,
        kvm::KVM_CAP_EXIT_HYPERCALL,
        "EXIT_HYPERCALL",
        "KVM's own hypercalls that end in the VMM",
    ),
    flag(
        kvm::KVM_CAP_X86_USER_SPACE_MSR,
        "X86_USER_SPACE_MSR",
        "RDMSR and WRMSR that end in the VMM",
    ),
    flag(
        kvm::KVM_CAP_X86_MSR_FILTER,
        "X86_MSR_FILTER",
        "which of them",
    ),
    flag(
        kvm::KVM_CAP_GET_MSR_FEATURES,
        "GET_MSR_FEATURES",
        "what the MSRs of features would hold",
    ),
    bits(
        DISABLE_EXITS,
        kvm::KVM_CAP_X86_DISABLE_EXITS,
        "X86_DISABLE_EXITS",
        "instructions that need not exit",
    ),
    bits(
        BUS_LOCK,
        kvm::KVM_CAP_X86_BUS_LOCK_EXIT,
        "X86_BUS_LOCK_EXIT",
        "bus locks that end in the VMM",
    ),
    bits(
        NOTIFY,
        kvm::KVM_CAP_X86_NOTIFY_VMEXIT,
        "X86_NOTIFY_VMEXIT",
        "an exit where a guest lets no event in",
    ),
    flag(
        kvm::KVM_CAP_EXIT_ON_EMULATION_FAILURE,
        "EXIT_ON_EMULATION_FAILURE",
        "instructions that KVM cannot emulate end in the VMM",
    ),
    bits(
        QUIRKS,
        kvm::KVM_CAP_DISABLE_QUIRKS2,
        "DISABLE_QUIRKS2",
        "odd behaviour that can be switched off",
    ),
    number(
        "bytes",
        kvm::KVM_CAP_NESTED_STATE,
        "NESTED_STATE",
        "a guest's own VMX or SVM",
    ),
    number(
        "vCPUs",
        kvm::KVM_CAP_NR_VCPUS,
        "NR_VCPUS",
        "recommended in a VM",
    ),
    number(
        "vCPUs",
        kvm::KVM_CAP_MAX_VCPUS,
        "MAX_VCPUS",
        "possible in a VM",
    ),
    number(
        "slots",
        kvm::KVM_CAP_NR_MEMSLOTS,
        "NR_MEMSLOTS",
        "of memory in a VM",
    ),
];

/// A capability, as KVM answers for a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// As in `linux/kvm.h`, without `KVM_CAP_`.
    pub name: &'static str,
    /// Its number there.
    pub number: u32,
    /// What it is for.
    pub purpose: &'static str,
    /// What KVM answers; 0: it has not got it.
    pub value: i64,
    /// What the answer counts, where it is a number.
    pub unit: Option<&'static str>,
    /// What the bits of the answer stand for, where they do; those without a name as `bit 12`.
    pub flags: Option<Vec<String>>,
}

impl Capability {
    fn new(known: &Known, value: i32) -> Self {
        let (unit, flags) = match known.meaning {
            Meaning::Flag => (None, None),
            Meaning::Number(unit) => (Some(unit), None),
            Meaning::Bits(names) => (None, Some(flags(names, value as u32))),
        };
        Self {
            name: known.name,
            number: known.number,
            purpose: known.purpose,
            value: value.into(),
            unit,
            flags,
        }
    }
}

fn flags(names: &[(u32, &str)], value: u32) -> Vec<String> {
    let set = (0..u32::BITS).filter(|bit| value >> bit & 1 != 0);
    set.map(|bit| {
        let named = names.iter().find(|(of, _)| *of == bit);
        named.map_or_else(|| format!("bit {bit}"), |(_, name)| (*name).to_owned())
    })
    .collect()
}

/// All of them. A VM is asked where one can be made: some are a VM's own.
pub(super) fn of(kvm: &Kvm) -> Vec<Capability> {
    let vm = kvm.create_vm().ok();
    let ask = |number: u32| match &vm {
        Some(vm) => vm.check_extension_raw(number.into()),
        None => kvm.check_extension_raw(number.into()),
    };
    // An error is a no.
    let all = KNOWN.iter();
    all.map(|known| Capability::new(known, ask(known.number).max(0)))
        .collect()
}

/// Some of every kind.
#[cfg(test)]
pub(super) fn fixture() -> Vec<Capability> {
    let answers = [
        ("USER_MEMORY", 1),
        ("PRE_FAULT_MEMORY", 0),
        ("XEN_HVM", 0b11_1111_1111),
        ("EXIT_HYPERCALL", 0),
        ("MAX_VCPUS", 1024),
    ];
    let known = |name| KNOWN.iter().find(|known| known.name == name);
    let all = answers.into_iter();
    all.filter_map(|(name, value)| Some(Capability::new(known(name)?, value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_each_once() {
        for (i, known) in KNOWN.iter().enumerate() {
            assert!(
                KNOWN[i + 1..].iter().all(|k| k.number != known.number),
                "{}",
                known.name
            );
            assert!(!known.name.starts_with("KVM_"));
        }
    }

    #[test]
    fn answers_are_numbers_or_bits() {
        let find = |name| KNOWN.iter().find(|known| known.name == name).unwrap();
        let xen = Capability::new(find("XEN_HVM"), 0b10_0000_0011);
        assert_eq!(
            xen.flags.unwrap(),
            ["HYPERCALL_MSR", "INTERCEPT_HCALL", "bit 9"]
        );
        let vcpus = Capability::new(find("MAX_VCPUS"), 1024);
        assert_eq!(
            (vcpus.value, vcpus.unit, vcpus.flags),
            (1024, Some("vCPUs"), None)
        );
        assert_eq!(flags(QUIRKS, 1 << 31), ["bit 31"]);
    }
}
