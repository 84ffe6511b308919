//! What a processor's SVM can do: CPUID leaf 0x8000000A (AMD APM vol. 3, appendix E.4.9).

/// CPUID.80000001H:ECX: SVM is offered.
pub const CPUID_80000001_ECX_SVM: u32 = 1 << 2;
/// The leaf: EAX\[7:0\] the revision, EBX the number of ASIDs, EDX the features.
pub const LEAF: u32 = 0x8000_000A;

/// Bit of EDX, name and meaning of each feature.
pub const FEATURES: [(u8, &str, &str); 28] = [
    (0, "NP", "nested paging"),
    (1, "LbrVirt", "last-branch records virtualized"),
    (2, "SVML", "SVM lock"),
    (3, "NRIPS", "next RIP saved at exits"),
    (4, "TscRateMsr", "TSC scaled"),
    (5, "VmcbClean", "VMCB clean bits"),
    (6, "FlushByAsid", "TLB flushed by ASID"),
    (7, "DecodeAssists", "instructions decoded at exits"),
    (8, "PmcVirt", "performance counters virtualized"),
    (10, "PauseFilter", "PAUSE filter"),
    (12, "PauseFilterThreshold", "PAUSE filter with a threshold"),
    (13, "AVIC", "interrupt controller virtualized"),
    (15, "VMSAVEvirt", "VMSAVE and VMLOAD virtualized"),
    (16, "VGIF", "global interrupt flag virtualized"),
    (17, "GMET", "guest-mode execute trap"),
    (18, "x2AVIC", "x2APIC virtualized"),
    (19, "SSSCheck", "supervisor shadow-stack restrictions"),
    (20, "SpecCtrl", "SPEC_CTRL virtualized"),
    (21, "ROGPT", "guest page tables read-only"),
    (23, "HOST_MCE_OVERRIDE", "machine checks taken by the host"),
    (24, "TlbiCtl", "INVLPGB and TLBSYNC in guests"),
    (25, "VNMI", "NMIs virtualized"),
    (26, "IbsVirt", "instruction-based sampling virtualized"),
    (
        27,
        "ExtLvtAvicAccessChg",
        "AVIC lets the extended LVT be read",
    ),
    (
        28,
        "NestedVirtVmcbAddrChk",
        "address of a guest's VMCB checked",
    ),
    (29, "BusLockThreshold", "exit after so many bus locks"),
    (30, "IdleHltIntercept", "HLT intercepted only when idle"),
    (
        31,
        "EnhancedShutdownIntercept",
        "shutdown intercept, enhanced",
    ),
];

/// The features in EDX that have no name here.
pub fn unnamed(edx: u32) -> impl Iterator<Item = u8> {
    let named = |bit: u8| FEATURES.iter().any(|(of, ..)| *of == bit);
    (0..32).filter(move |&bit| edx >> bit & 1 != 0 && !named(bit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order() {
        assert!(FEATURES.is_sorted_by(|a, b| a.0 < b.0));
        assert!(FEATURES.iter().all(|(bit, ..)| *bit < 32));
        assert!(unnamed(u32::MAX).eq([9, 11, 14, 22]));
        assert_eq!(unnamed(0x1000_0081).count(), 0);
    }
}
