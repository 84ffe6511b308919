//! From VMX, SVM and KVM codes to basic exit reasons, and which of them a host can raise.
//!
//! A code that has no honest counterpart among the SDM's reasons is translated to none and keeps
//! its own name: the ledger counts it in a named bucket, it is never dropped and never guessed.
//! The tables in prose, with their sources: `docs/exit-reasons.md`.

pub mod kvm;
pub mod occurrence;
pub mod svm;
pub mod vmx;

pub use occurrence::{Occurrence, can_occur, occurrence};

use exit_abi::reason::{Edition, Reason};

/// The reason of this number. For tables only: see `sdm!`, which makes a number that the
/// current edition does not define an error of compilation.
const fn defined(number: u32) -> Reason {
    match Reason::new(number) {
        Some(reason) if reason.is_defined(Edition::Current) => reason,
        _ => panic!("the current edition of the SDM does not define this reason"),
    }
}

/// A basic exit reason by its number, checked at compile time.
macro_rules! sdm {
    ($number:literal) => {
        const { $crate::exits::reason::defined($number) }
    };
}
use sdm;

#[cfg(test)]
mod docs;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::KvmKind;
    use proptest::prelude::*;

    fn is_defined(reason: Reason) -> bool {
        reason.is_defined(Edition::Current)
    }

    proptest! {
        #[test]
        fn vmx_returns_defined_reasons_only(raw: u32) {
            prop_assert!(vmx::translate(raw).reason.is_none_or(is_defined));
        }

        #[test]
        fn svm_returns_defined_reasons_only(
            code in prop_oneof![any::<u64>(), 0..0x500_u64, any::<u32>().prop_map(u64::from)],
            info1: u64,
        ) {
            let reason = svm::translate(code, info1);
            prop_assert!(reason.is_none_or(is_defined));
            prop_assert!(reason.is_none() || svm::name(code).is_some());
        }

        #[test]
        fn kvm_returns_defined_reasons_only(number in prop_oneof![any::<u32>(), 0..64_u32]) {
            if let kvm::KvmExit::Reason(reason) = kvm::translate(number) {
                prop_assert!(is_defined(reason));
            }
            prop_assert!(kvm::name(number).starts_with("KVM_EXIT_"));
        }
    }

    #[test]
    fn what_kvm_run_can_return_is_never_said_to_be_impossible() {
        for kind in [KvmKind::Intel, KvmKind::Unknown] {
            for number in 0..64 {
                if let kvm::KvmExit::Reason(reason) = kvm::translate(number) {
                    assert!(can_occur(kind, reason), "{kind:?} {}", kvm::name(number));
                }
            }
        }
    }
}
