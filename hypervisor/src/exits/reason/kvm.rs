//! KVM: what KVM_RUN returns with, and the exit reason behind it.
//!
//! Source: `struct kvm_run` in the kernel's `Documentation/virt/kvm/api.rst`, and the places in
//! `arch/x86/kvm` that set it. KVM tells what userspace must do, not what the processor reported,
//! so some rows are the event's own reason where several would lead there; each such row says so.

use super::sdm;
use exit_abi::reason::Reason;

/// What a return from KVM_RUN says about exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmExit {
    /// An exit of the guest's, for this reason.
    Reason(Reason),
    /// No exit of the guest's is implied: KVM_RUN ended for the host's sake.
    NotAnExit,
    /// KVM gives no reason: counted as "other", under the name that [`name`] gives.
    Other,
}

/// A KVM exit.
pub struct Row {
    /// Its number, which is also its place in the table.
    pub number: u32,
    /// KVM's name.
    pub name: &'static str,
    /// What it says.
    pub exit: KvmExit,
    /// Why, where it is not obvious.
    pub why: &'static str,
}

/// A row: constant of `kvm_bindings`, what it says, why.
macro_rules! row {
    ($constant:ident, $number:literal, $why:literal) => {
        row!($constant, KvmExit::Reason(sdm!($number)), $why)
    };
    ($constant:ident, $exit:expr, $why:literal) => {
        Row {
            number: kvm_bindings::$constant,
            name: stringify!($constant),
            exit: $exit,
            why: $why,
        }
    };
}

use KvmExit::{NotAnExit, Other};

/// The whole table: every number up to the highest that `kvm_bindings` knows.
#[rustfmt::skip]
pub const TABLE: &[Row] = &[
    row!(KVM_EXIT_UNKNOWN, Other, "KVM does not know the processor's code, which is in `hw`"),
    row!(KVM_EXIT_EXCEPTION, 0, ""),
    row!(KVM_EXIT_IO, 30, "one return for a whole REP on hardware KVM, one per item on software KVM"),
    row!(KVM_EXIT_HYPERCALL, 18, ""),
    row!(KVM_EXIT_DEBUG, 0, "#DB, #BP; a guarded MOV DR (29) too, which KVM does not tell apart"),
    row!(KVM_EXIT_HLT, 12, "without an APIC in the kernel; with one, HLT stays there"),
    row!(KVM_EXIT_MMIO, 49, "in hardware the first touch of a page was a 48 (without nested paging, a 0): KVM_RUN cannot tell"),
    row!(KVM_EXIT_IRQ_WINDOW_OPEN, 7, "the window that was asked for; found open at any exit"),
    row!(KVM_EXIT_SHUTDOWN, 2, ""),
    row!(KVM_EXIT_FAIL_ENTRY, 33, "the processor's code (34 or 41 too) is in `fail_entry`"),
    row!(KVM_EXIT_INTR, NotAnExit, "a signal ended KVM_RUN"),
    row!(KVM_EXIT_SET_TPR, 28, "MOV to CR8, without an APIC in the kernel"),
    row!(KVM_EXIT_TPR_ACCESS, 44, "only if KVM_TPR_ACCESS_REPORTING asks; 48 or 49 where APIC accesses are plain MMIO"),
    row!(KVM_EXIT_S390_SIEIC, Other, "not on x86"),
    row!(KVM_EXIT_S390_RESET, Other, "not on x86"),
    row!(KVM_EXIT_DCR, Other, "not on x86"),
    row!(KVM_EXIT_NMI, 0, ""),
    row!(KVM_EXIT_INTERNAL_ERROR, Other, "KVM could not go on, after any exit"),
    row!(KVM_EXIT_OSI, Other, "not on x86"),
    row!(KVM_EXIT_PAPR_HCALL, Other, "not on x86"),
    row!(KVM_EXIT_S390_UCONTROL, Other, "not on x86"),
    row!(KVM_EXIT_WATCHDOG, Other, "not on x86"),
    row!(KVM_EXIT_S390_TSCH, Other, "not on x86"),
    row!(KVM_EXIT_EPR, Other, "not on x86"),
    row!(KVM_EXIT_SYSTEM_EVENT, Other, "an event of the VM's, asked for in several ways"),
    row!(KVM_EXIT_S390_STSI, Other, "not on x86"),
    row!(KVM_EXIT_IOAPIC_EOI, 45, "the EOI of a split interrupt controller; a WRMSR or an access to the APIC where EOIs are not virtualized"),
    row!(KVM_EXIT_HYPERV, Other, "a hypercall or an access to an MSR"),
    row!(KVM_EXIT_ARM_NISV, Other, "not on x86"),
    row!(KVM_EXIT_X86_RDMSR, 31, ""),
    row!(KVM_EXIT_X86_WRMSR, 32, ""),
    row!(KVM_EXIT_DIRTY_RING_FULL, NotAnExit, "found before the entry"),
    row!(KVM_EXIT_AP_RESET_HOLD, Other, "an SEV-ES guest's request"),
    row!(KVM_EXIT_X86_BUS_LOCK, 74, ""),
    row!(KVM_EXIT_XEN, 18, ""),
    row!(KVM_EXIT_RISCV_SBI, Other, "not on x86"),
    row!(KVM_EXIT_RISCV_CSR, Other, "not on x86"),
    row!(KVM_EXIT_NOTIFY, 75, ""),
    row!(KVM_EXIT_LOONGARCH_IOCSR, Other, "not on x86"),
    row!(KVM_EXIT_MEMORY_FAULT, 48, "memory that no slot backs as it was asked for"),
];

/// What the `exit_reason` of `struct kvm_run` says.
pub fn translate(exit_reason: u32) -> KvmExit {
    find(exit_reason).map_or(Other, |row| row.exit)
}

/// Whether a vCPU that is entered again as it is would only leave the guest again, for ever.
pub fn would_repeat(exit_reason: u32) -> bool {
    // Memory that the host cannot give: KVM_RUN failed (EFAULT or EHWPOISON), nothing has changed.
    exit_reason == kvm_bindings::KVM_EXIT_MEMORY_FAULT
}

/// KVM's name for an `exit_reason`; `KVM_EXIT_?` for one that is newer than this table.
pub fn name(exit_reason: u32) -> &'static str {
    find(exit_reason).map_or("KVM_EXIT_?", |row| row.name)
}

/// The row of a number. The table is ordered, so that the exit path need not search.
fn find(exit_reason: u32) -> Option<&'static Row> {
    TABLE.get(usize::try_from(exit_reason).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    #[test]
    fn the_table_is_ordered_and_complete() {
        for (place, row) in TABLE.iter().enumerate() {
            assert_eq!(row.number as usize, place, "{}", row.name);
        }
        assert_eq!(
            TABLE.len(),
            kvm_bindings::KVM_EXIT_MEMORY_FAULT as usize + 1
        );
    }

    #[test]
    fn a_row_without_a_reason_says_why() {
        for row in TABLE {
            assert!(
                matches!(row.exit, KvmExit::Reason(_)) || !row.why.is_empty(),
                "{}",
                row.name
            );
        }
    }

    #[test]
    fn a_signal_is_not_an_exit() {
        assert_eq!(translate(kvm_bindings::KVM_EXIT_INTR), NotAnExit);
    }

    #[test]
    fn memory_that_the_host_cannot_give_ends_a_run() {
        let repeating: Vec<_> = (0..64).filter(|&n| would_repeat(n)).map(name).collect();
        assert_eq!(repeating, ["KVM_EXIT_MEMORY_FAULT"]);
    }

    #[test]
    fn a_number_from_the_future() {
        assert_eq!(translate(40), Other);
        assert_eq!(translate(u32::MAX), Other);
        assert_eq!(name(u32::MAX), "KVM_EXIT_?");
    }

    #[test]
    fn table() {
        let mut table = String::new();
        for number in 0..=TABLE.len() as u32 {
            let exit = match translate(number) {
                KvmExit::Reason(reason) => reason.number().to_string(),
                NotAnExit => "not an exit".to_owned(),
                Other => "other".to_owned(),
            };
            writeln!(table, "{number:2} {:<24} {exit}", name(number)).unwrap();
        }
        insta::assert_snapshot!(table);
    }
}
