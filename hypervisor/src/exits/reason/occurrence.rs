//! Which reasons a KVM can raise: tells "never seen" from "cannot occur here".
//!
//! Sources: the handler arrays and the execution controls of `arch/x86/kvm/vmx/vmx.c`
//! (`kvm_vmx_exit_handlers`, `vmx_exec_control`, `vmx_secondary_exec_control`) and of
//! `arch/x86/kvm/svm/svm.c` (`svm_exit_handlers`, `init_vmcb`), read at Linux 6.8 and 6.9; later
//! handlers from their patches (MSR immediates, SEAMCALL; AMD's bus lock and idle HLT). A reason
//! that has a handler and no control that enables it never occurs. All this holds for a guest
//! that is not a hypervisor: exits of its own guests (L2) can have any reason that it asked for.

use crate::profile::KvmKind;
use exit_abi::reason::{Edition, Reason};

/// Whether a KVM can raise a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occurrence {
    /// On every host, if the guest gives cause.
    Yes,
    /// Only under this condition, on the processor, the kernel, the module or the VMM.
    When(&'static str),
    /// Never, for this reason.
    Never(&'static str),
}

use Occurrence::{Never, When, Yes};

/// Whether a KVM of this kind can raise the reason.
pub fn can_occur(kind: KvmKind, reason: Reason) -> bool {
    !matches!(occurrence(kind, reason), Never(_))
}

/// Whether a KVM of this kind can raise the reason, and why if it is not plain.
pub fn occurrence(kind: KvmKind, reason: Reason) -> Occurrence {
    if !reason.is_defined(Edition::Current) {
        return Never("the SDM does not define it");
    }
    match kind {
        KvmKind::Intel => intel(reason),
        KvmKind::Amd => amd(reason),
        KvmKind::Software => software(reason),
        KvmKind::Unknown => any(reason),
    }
}

/// `kvm_intel`.
#[rustfmt::skip]
fn intel(reason: Reason) -> Occurrence {
    match reason.number() {
        0..=2 | 7..=10 | 12 | 13 | 15 | 18 | 28..=34 | 41 => Yes,
        14 => When("without EPT (ept=0)"),
        19..=27 | 50 | 53 => When("a VMX instruction at ring 0: #UD for the guest without nested=1"),
        36 | 39 => When("unless the VMM lets MWAIT through (KVM_CAP_X86_DISABLE_EXITS)"),
        40 => When("PAUSE-loop exiting, at ring 0 only; PAUSE as such is let through"),
        43 => When("TPR shadow, without APIC virtualization"),
        44 => When("virtualized APIC accesses (flexpriority=1)"),
        45 | 56 => When("APIC virtualization (enable_apicv=1)"),
        46 | 47 => When("KVM emulates UMIP for a guest that sets CR4.UMIP, on a CPU without it"),
        48 | 49 => When("with EPT"),
        52 => When("the preemption timer is KVM's own, for the APIC timer"),
        54 => When("on a CPU that can intercept WBINVD"),
        55 => When("on a CPU with XSAVE"),
        57 => When("the VMM hides RDRAND in CPUID"),
        58 => When("without EPT (ept=0), on a CPU with INVPCID"),
        60 => When("on a CPU with SGX"),
        61 => When("the VMM hides RDSEED in CPUID"),
        62 => When("dirty logging, on a CPU with page-modification logging"),
        74 => When("the VMM asks for it (KVM_CAP_X86_BUS_LOCK_EXIT)"),
        75 => When("the VMM asks for it (KVM_CAP_X86_NOTIFY_VMEXIT)"),
        76 | 77 => When("on a CPU with TDX, which cannot turn it off; handler in recent kernels only"),
        84 | 85 => When("on a CPU with these instructions; handler in recent kernels only"),

        3 => Never("an INIT signal of the host's: no handler"),
        4 => Never("KVM never enters in the wait-for-SIPI state"),
        5 | 6 | 17 => Never("only with the dual-monitor treatment of SMM"),
        11 => Never("#UD: KVM keeps CR4.SMXE from the guest"),
        16 | 51 => Never("KVM clears RDTSC exiting"),
        37 => Never("a handler, but KVM clears the control"),
        59 => Never("a handler, but #UD: KVM clears the control"),
        63 | 64 => Never("KVM's XSS-exiting bitmap is 0"),
        65 => Never("#UD: KVM does not set the control"),
        66 => Never("KVM does not set the control"),
        67 | 68 => Never("needs RDTSC exiting, which KVM clears"),
        _ => Never("no handler, no control"),
    }
}

/// `kvm_amd`, in the reasons that [`super::svm`] translates to.
#[rustfmt::skip]
fn amd(reason: Reason) -> Occurrence {
    match reason.number() {
        0..=2 | 7 | 9 | 10 | 12 | 13 | 15 | 18 | 28..=33 | 54 => Yes,
        6 => When("a physical SMI (intercept_smi=1), unless the firmware has locked SMM"),
        8 => When("IRET after an injected NMI, without virtual NMI"),
        14 => When("without nested paging (npt=0)"),
        17 => When("RSM of a guest in SMM"),
        20 | 53 => When("an SVM instruction at ring 0: #UD for the guest without nested=1"),
        36 | 39 => When("unless the VMM lets MWAIT through (KVM_CAP_X86_DISABLE_EXITS)"),
        40 => When("unless the VMM lets PAUSE through (KVM_CAP_X86_DISABLE_EXITS)"),
        44 | 45 | 56 => When("AVIC (avic=1)"),
        48 => When("with nested paging"),
        49 => When("with nested paging: a known MMIO page, marked by a reserved bit"),
        51 => When("the VMM hides RDTSCP in CPUID"),
        55 => When("on a CPU with XSAVE"),
        58 => When("on a CPU with INVPCID, without nested paging or with INVPCID hidden in CPUID"),
        62 => When("dirty logging, on a CPU and a kernel with AMD's page-modification logging"),
        74 => When("the VMM asks for it (KVM_CAP_X86_BUS_LOCK_EXIT), on a CPU and a kernel with it"),

        3 => Never("KVM does not intercept INIT"),
        5 => Never("SVM does not tell it from another SMI: see 6"),
        16 => Never("KVM does not intercept RDTSC"),
        41 => Never("a machine check is an exception here: see 0"),
        43 => Never("KVM intercepts the write to CR8 instead: see 28"),
        46 | 47 => Never("KVM does not intercept them"),
        _ => Never("no such exit in SVM"),
    }
}

/// A KVM without hardware underneath: what reaches userspace or one of KVM's own counts. Inside,
/// every exit is an interrupt, an exception or a system call, and the guest's ring 0 is
/// interpreted: no instruction exits by itself, and no source names what was interpreted.
#[rustfmt::skip]
fn software(reason: Reason) -> Occurrence {
    match reason.number() {
        0 | 2 | 12 | 30 | 49 => Yes,
        1 => When("seen as a statistic only (irq_exits)"),
        7 => When("seen as a statistic only (irq_window_exits), or as KVM_EXIT_IRQ_WINDOW_OPEN"),
        8 => When("seen as a statistic only (nmi_window_exits)"),
        10 => When("seen in the trace only (kvm_cpuid)"),
        18 => When("seen as a statistic only (hypercalls); VMCALL itself hangs or is #UD"),
        31 | 32 => When("seen in the trace (kvm_msr), or where an MSR filter sends it to userspace"),
        44 => When("the VMM asks for it (KVM_TPR_ACCESS_REPORTING)"),
        45 => When("a split interrupt controller"),
        48 => When("only as KVM_EXIT_MEMORY_FAULT: paging is shadowed, a page fault is an exception"),

        28 | 29 => Never("interpreted, and nothing shows it"),
        33 => Never("a failed entry becomes #GP for the guest"),
        _ => Never("no exit of its own without hardware"),
    }
}

/// A KVM of which nothing is known: what any of the three can raise.
fn any(reason: Reason) -> Occurrence {
    let kinds = [intel(reason), amd(reason), software(reason)];
    if kinds.contains(&Yes) {
        Yes
    } else if kinds.iter().any(|kind| matches!(kind, When(_))) {
        When("on some KVM, under some condition")
    } else {
        Never("on no KVM")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exits::reason::svm;
    use std::fmt::Write;

    fn reason(number: u32) -> Reason {
        Reason::new(number).unwrap()
    }

    #[test]
    fn handlers_that_no_control_enables() {
        for number in [16, 37, 51, 59, 63, 64, 67, 68] {
            assert!(!can_occur(KvmKind::Intel, reason(number)), "{number}");
        }
        for number in [3, 16, 46, 47] {
            assert!(!can_occur(KvmKind::Amd, reason(number)), "{number}");
        }
    }

    #[test]
    fn vendors_differ() {
        for number in [41, 43, 50, 52, 57, 60, 75] {
            assert!(can_occur(KvmKind::Intel, reason(number)), "{number}");
            assert!(!can_occur(KvmKind::Amd, reason(number)), "{number}");
        }
        for number in [6, 17, 51] {
            assert!(!can_occur(KvmKind::Intel, reason(number)), "{number}");
            assert!(can_occur(KvmKind::Amd, reason(number)), "{number}");
        }
    }

    #[test]
    fn amd_raises_only_what_a_code_translates_to() {
        let infos = [0, 1, 1 << 3, 1 << 32 | 0xB0, 1 << 32 | 0x380];
        let codes = (0..0x500).chain([u64::MAX]);
        let reachable: Vec<_> = codes
            .flat_map(|code| infos.map(|info1| svm::translate(code, info1)))
            .flatten()
            .collect();
        for reason in Reason::all().filter(|&r| can_occur(KvmKind::Amd, r)) {
            assert!(reachable.contains(&reason), "{reason:?}");
        }
    }

    #[test]
    fn undefined_reasons_never_occur_and_unknown_is_the_union() {
        let known = [KvmKind::Intel, KvmKind::Amd, KvmKind::Software];
        for reason in Reason::all() {
            let union = known.iter().any(|&kind| can_occur(kind, reason));
            assert_eq!(can_occur(KvmKind::Unknown, reason), union, "{reason:?}");
            assert!(!union || reason.is_defined(Edition::Current), "{reason:?}");
        }
    }

    #[test]
    fn table() {
        let mut table =
            String::from("reason                             intel amd software unknown\n");
        let word = |kind, reason| match occurrence(kind, reason) {
            Yes => "yes",
            When(_) => "when",
            Never(_) => "-",
        };
        for reason in Reason::all().filter(|r| r.is_defined(Edition::Current)) {
            writeln!(
                table,
                "{:3} {:<30} {:5} {:4} {:8} {}",
                reason.number(),
                reason.name().unwrap(),
                word(KvmKind::Intel, reason),
                word(KvmKind::Amd, reason),
                word(KvmKind::Software, reason),
                word(KvmKind::Unknown, reason),
            )
            .unwrap();
        }
        insta::assert_snapshot!(table);
    }
}
