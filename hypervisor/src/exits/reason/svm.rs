//! SVM: AMD's exit codes, and the SDM's reason for the same event.
//!
//! Source: AMD APM vol. 2, appendix C, table C-1 (and the kernel's `asm/svm.h` for those newer
//! than the manual). The rule: a code gets a reason if VMX has an exit for the same event, or for
//! the instruction that does the same work. Otherwise it gets none, and the row says why.

use super::sdm;
use exit_abi::reason::Reason;

/// What a code becomes.
#[derive(Clone, Copy)]
pub enum To {
    /// Always this reason.
    Reason(Reason),
    /// RDMSR or WRMSR: EXITINFO1 is 0 or 1.
    Msr,
    /// Nested page fault: EXITINFO1 is the error code, and a reserved bit is KVM's mark of MMIO.
    NestedFault,
    /// Access to the virtual APIC that the hardware does not complete: EXITINFO1 has the register
    /// and the direction.
    ApicAccess,
    /// No counterpart.
    Nothing,
}

/// Consecutive codes of one kind.
pub struct Row {
    /// The first code.
    pub first: u64,
    /// The names, one per code: the APM's, without the prefix `VMEXIT_`.
    pub names: &'static [&'static str],
    /// What they become.
    pub to: To,
    /// Why, where it is not obvious.
    pub why: &'static str,
}

/// Sixteen names, numbered.
macro_rules! sixteen {
    ($before:literal, $after:literal) => {
        &sixteen!(@ $before $after 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $before:literal $after:literal $($number:literal)*) => {
        [$(concat!($before, $number, $after)),*]
    };
}

/// One row that is the same for all its codes.
const fn same(first: u64, names: &'static [&'static str], reason: Reason) -> Row {
    noted(first, names, reason, "")
}

/// The same, with a note.
const fn noted(
    first: u64,
    names: &'static [&'static str],
    reason: Reason,
    why: &'static str,
) -> Row {
    let to = To::Reason(reason);
    Row {
        first,
        names,
        to,
        why,
    }
}

/// Codes without a counterpart.
const fn nothing(first: u64, names: &'static [&'static str], why: &'static str) -> Row {
    let to = To::Nothing;
    Row {
        first,
        names,
        to,
        why,
    }
}

/// The whole table, ordered by code. Codes in no row (0xA7–0x3FF, 0x404–0x406, …) are undefined.
#[rustfmt::skip]
pub const TABLE: &[Row] = &[
    same(0x00, sixteen!("CR", "_READ"), Reason::CR_ACCESS),
    same(0x10, sixteen!("CR", "_WRITE"), Reason::CR_ACCESS),
    same(0x20, sixteen!("DR", "_READ"), sdm!(29)),
    same(0x30, sixteen!("DR", "_WRITE"), sdm!(29)),
    same(0x40, &[
        "EXCP0 #DE", "EXCP1 #DB", "EXCP2", "EXCP3 #BP", "EXCP4 #OF", "EXCP5 #BR", "EXCP6 #UD",
        "EXCP7 #NM", "EXCP8 #DF", "EXCP9", "EXCP10 #TS", "EXCP11 #NP", "EXCP12 #SS",
        "EXCP13 #GP", "EXCP14 #PF", "EXCP15", "EXCP16 #MF", "EXCP17 #AC", "EXCP18 #MC",
        "EXCP19 #XF", "EXCP20", "EXCP21 #CP", "EXCP22", "EXCP23", "EXCP24", "EXCP25", "EXCP26",
        "EXCP27", "EXCP28 #HV", "EXCP29 #VC", "EXCP30 #SX", "EXCP31",
    ], Reason::EXCEPTION),
    same(0x60, &["INTR"], Reason::EXTERNAL_INTERRUPT),
    noted(0x61, &["NMI"], Reason::EXCEPTION, "VMX has exceptions and NMI in one reason"),
    noted(0x62, &["SMI"], sdm!(6), "SVM does not tell an I/O SMI (5) from another"),
    same(0x63, &["INIT"], sdm!(3)),
    same(0x64, &["VINTR"], Reason::INTERRUPT_WINDOW),
    noted(0x65, &["CR0_SEL_WRITE"], Reason::CR_ACCESS, "a write to CR0 that changes more than TS and MP"),
    same(0x66, &["IDTR_READ", "GDTR_READ"], sdm!(46)),
    same(0x68, &["LDTR_READ", "TR_READ"], sdm!(47)),
    same(0x6A, &["IDTR_WRITE", "GDTR_WRITE"], sdm!(46)),
    same(0x6C, &["LDTR_WRITE", "TR_WRITE"], sdm!(47)),
    same(0x6E, &["RDTSC"], sdm!(16)),
    same(0x6F, &["RDPMC"], sdm!(15)),
    nothing(0x70, &["PUSHF", "POPF"], "VMX cannot intercept them"),
    same(0x72, &["CPUID"], Reason::CPUID),
    same(0x73, &["RSM"], sdm!(17)),
    noted(0x74, &["IRET"], Reason::NMI_WINDOW, "KVM intercepts IRET to learn that NMIs are open again"),
    nothing(0x75, &["SWINT"], "INT n itself: VMX intercepts the exception, not the instruction"),
    same(0x76, &["INVD"], sdm!(13)),
    same(0x77, &["PAUSE"], sdm!(40)),
    same(0x78, &["HLT"], Reason::HLT),
    same(0x79, &["INVLPG"], sdm!(14)),
    noted(0x7A, &["INVLPGA"], sdm!(53), "an address in one address space: what INVVPID does"),
    same(0x7B, &["IOIO"], Reason::IO),
    Row { first: 0x7C, names: &["MSR"], to: To::Msr, why: "EXITINFO1 bit 0: 0 read, 1 write" },
    same(0x7D, &["TASK_SWITCH"], sdm!(9)),
    nothing(0x7E, &["FERR_FREEZE"], "x87 errors in the manner of the 80387: VMX has no such exit"),
    same(0x7F, &["SHUTDOWN"], Reason::TRIPLE_FAULT),
    noted(0x80, &["VMRUN"], sdm!(20), "enters a guest, as VMLAUNCH does; SVM has no separate VMRESUME"),
    same(0x81, &["VMMCALL"], Reason::VMCALL),
    nothing(0x82, &["VMLOAD", "VMSAVE"], "moves the part of the state that VMRUN does not; the VMCS is moved whole"),
    nothing(0x84, &["STGI", "CLGI"], "VMX has no global interrupt flag"),
    nothing(0x86, &["SKINIT"], "secure start: one use of GETSEC, which covers others"),
    same(0x87, &["RDTSCP"], sdm!(51)),
    noted(0x88, &["ICEBP"], Reason::EXCEPTION, "VMX sees the #DB that INT1 raises"),
    same(0x89, &["WBINVD"], sdm!(54)),
    same(0x8A, &["MONITOR"], sdm!(39)),
    noted(0x8B, &["MWAIT", "MWAIT_CONDITIONAL"], sdm!(36), "VMX tells an armed monitor in the qualification"),
    same(0x8D, &["XSETBV"], sdm!(55)),
    nothing(0x8E, &["RDPRU"], "an instruction of AMD's"),
    noted(0x8F, &["EFER_WRITE_TRAP"], Reason::WRMSR, "after the write; SEV-ES only"),
    noted(0x90, sixteen!("CR", "_WRITE_TRAP"), Reason::CR_ACCESS, "after the write; SEV-ES only"),
    nothing(0xA0, &["INVLPGB", "INVLPGB_ILLEGAL"], "an instruction of AMD's"),
    same(0xA2, &["INVPCID"], sdm!(58)),
    nothing(0xA3, &["MCOMMIT", "TLBSYNC"], "instructions of AMD's"),
    same(0xA5, &["BUSLOCK"], sdm!(74)),
    noted(0xA6, &["IDLE_HLT"], Reason::HLT, "HLT while no virtual interrupt is pending"),
    Row { first: 0x400, names: &["NPF"], to: To::NestedFault, why: "EXITINFO1 bit 3 (reserved bit set): KVM marks known MMIO so" },
    noted(0x401, &["AVIC_INCOMPLETE_IPI"], sdm!(56), "after a write to the ICR"),
    Row { first: 0x402, names: &["AVIC_NOACCEL"], to: To::ApicAccess, why: "EXITINFO1: fault 44, EOI 45, other trapped write 56" },
    nothing(0x403, &["VMGEXIT"], "an SEV-ES guest's request; what it asks is in the GHCB"),
    noted(0x407, &["PML_FULL"], sdm!(62), "in the kernel's patches for it, not in the APM at hand"),
    nothing(-4_i64 as u64, &["INVALID_PMC", "IDLE_REQUIRED", "BUSY"], "VMRUN refused, but not for the guest's state"),
    same(-1_i64 as u64, &["INVALID"], Reason::INVALID_STATE),
];

/// EXITINFO1 of an MSR exit: a write.
const MSR_WRITE: u64 = 1 << 0;
/// Nested page fault's error code: a reserved bit was set (APM vol. 2, 15.25.6).
const FAULT_RESERVED: u64 = 1 << 3;
/// EXITINFO1 of AVIC_NOACCEL: a write (APM vol. 2, 15.29.9.2).
const APIC_WRITE: u64 = 1 << 32;
/// EXITINFO1 of AVIC_NOACCEL: offset of the register.
const APIC_OFFSET: u64 = 0xFF0;
/// Offset of the EOI register.
const APIC_EOI: u64 = 0xB0;

/// The basic exit reason for an exit code, given EXITINFO1; `None` if it has none.
///
/// The kernel traced only the lower half of the code for years: -1 is known in 32 bits too.
pub fn translate(code: u64, info1: u64) -> Option<Reason> {
    let (row, _) = find(code)?;
    match row.to {
        To::Reason(reason) => Some(reason),
        To::Msr if info1 & MSR_WRITE == 0 => Some(Reason::RDMSR),
        To::Msr => Some(Reason::WRMSR),
        To::NestedFault if info1 & FAULT_RESERVED == 0 => Some(Reason::EPT_VIOLATION),
        To::NestedFault => Some(Reason::EPT_MISCONFIG),
        To::ApicAccess => Some(apic_access(info1)),
        To::Nothing => None,
    }
}

/// The name of an exit code: the APM's, without the prefix `VMEXIT_`.
pub fn name(code: u64) -> Option<&'static str> {
    let (row, place) = find(code)?;
    row.names.get(place).copied()
}

/// The row of a code, and its place in it.
fn find(code: u64) -> Option<(&'static Row, usize)> {
    let code = sign_extended(code);
    let after = TABLE.partition_point(|row| row.first <= code);
    let row = TABLE.get(after.checked_sub(1)?)?;
    let place = usize::try_from(code - row.first).ok()?;
    (place < row.names.len()).then_some((row, place))
}

/// A code that was cut to 32 bits, negative again.
const fn sign_extended(code: u64) -> u64 {
    if code <= u32::MAX as u64 {
        code as u32 as i32 as u64
    } else {
        code
    }
}

/// Reads and some writes fault before the access, as VMX's APIC accesses do; writes to the
/// registers listed trap after it, as VMX's APIC writes do (APM vol. 2, table 15-22, and the list
/// of traps in the kernel's `avic.c`).
const fn apic_access(info1: u64) -> Reason {
    if info1 & APIC_WRITE == 0 {
        return sdm!(44);
    }
    match info1 & APIC_OFFSET {
        APIC_EOI => sdm!(45),
        // ID, remote read, logical and destination format, spurious, error, ICR, LVTs, timer
        0x20 | 0xC0 | 0xD0 | 0xE0 | 0xF0 | 0x280 | 0x300 | 0x320..=0x380 | 0x3E0 => sdm!(56),
        _ => sdm!(44),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    fn number(code: u64, info1: u64) -> Option<u8> {
        translate(code, info1).map(Reason::number)
    }

    #[test]
    fn rows_are_ordered_and_do_not_overlap() {
        for pair in TABLE.windows(2) {
            let end = pair[0].first + pair[0].names.len() as u64;
            assert!(end <= pair[1].first, "{:#x}", pair[1].first);
        }
    }

    #[test]
    fn a_code_without_a_counterpart_says_why() {
        for row in TABLE.iter().filter(|row| matches!(row.to, To::Nothing)) {
            assert!(!row.why.is_empty(), "{:#x}", row.first);
        }
    }

    #[test]
    fn exit_info_decides() {
        assert_eq!(number(0x7C, 0), Some(31));
        assert_eq!(number(0x7C, 1), Some(32));
        assert_eq!(number(0x400, 0x1_0000_0006), Some(48)); // not present, user, write
        assert_eq!(number(0x400, 0x1_0000_000D), Some(49)); // reserved bit
        assert_eq!(number(0x402, 0x30), Some(44)); // version, read
        assert_eq!(number(0x402, 0x380), Some(44)); // a read never traps
        assert_eq!(number(0x402, APIC_WRITE | 0x390), Some(44)); // current count: fault
        assert_eq!(number(0x402, APIC_WRITE | 0xB0), Some(45));
        assert_eq!(number(0x402, APIC_WRITE | 0x380), Some(56)); // initial count: trap
    }

    #[test]
    fn an_invalid_state_is_known_in_32_and_64_bits() {
        assert_eq!(number(u64::MAX, 0), Some(33));
        assert_eq!(number(u64::from(u32::MAX), 0), Some(33));
        assert_eq!(name(u64::from(u32::MAX)), Some("INVALID"));
        assert_eq!(name(u64::from(u32::MAX) - 1), Some("BUSY"));
        assert_eq!(number(-2_i64 as u64, 0), None);
    }

    #[test]
    fn undefined_codes() {
        for code in [
            0xA7,
            0x3FF,
            0x404,
            0x406,
            0x408,
            0x8000_0001,
            0xF000_0000,
            1 << 32,
        ] {
            assert_eq!(number(code, 0), None, "{code:#x}");
            assert_eq!(name(code), None, "{code:#x}");
        }
    }

    #[test]
    fn names_keep_the_code_visible() {
        assert_eq!(name(0x08), Some("CR8_READ"));
        assert_eq!(name(0x4E), Some("EXCP14 #PF"));
        assert_eq!(name(0x84), Some("STGI"));
    }

    #[test]
    fn table() {
        let codes = (0..=0xA8)
            .chain(0x3FF..=0x408)
            .chain(-5_i64 as u64..=u64::MAX);
        let mut table = String::new();
        for code in codes {
            let name = name(code).unwrap_or("-");
            let mut reasons: Vec<_> = [0, 1, 1 << 3, APIC_WRITE | 0xB0, APIC_WRITE | 0x380]
                .into_iter()
                .map(|info1| number(code, info1).map_or("-".to_owned(), |n| n.to_string()))
                .collect();
            reasons.sort();
            reasons.dedup();
            let code = match code as i64 {
                minus @ ..0 => minus.to_string(),
                code => format!("{code:#05x}"),
            };
            writeln!(table, "{code:<5} {name:<19} {}", reasons.join(" ")).unwrap();
        }
        insta::assert_snapshot!(table);
    }
}
