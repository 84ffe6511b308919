//! SVM: what CPUID leaf 0x8000000A says on this CPU, and what KVM would let a guest see of it.

use exit_abi::svm;
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::Kvm;
use serde::Serialize;

use super::cpu::{Cpu, Leaf};

/// What is known of SVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Svm {
    /// Of this CPU; nothing if it has no SVM.
    pub cpu: Option<Revision>,
    /// Of what KVM offers to guests; nothing if it offers no SVM.
    pub guest: Option<Revision>,
    /// The features by name, and those without a name that are there; empty if there is no SVM.
    pub features: Vec<Feature>,
}

/// Numbers of the leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Revision {
    /// Of SVM.
    pub revision: u32,
    /// Address-space identifiers.
    pub asids: u32,
}

/// A feature: a bit of EDX.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// The bit.
    pub bit: u8,
    /// As AMD names it.
    pub name: Option<&'static str>,
    /// What it is.
    pub meaning: Option<&'static str>,
    /// This CPU has it; nothing where the CPU has no SVM.
    pub cpu: Option<bool>,
    /// KVM offers it to guests; nothing where it offers no SVM.
    pub guest: Option<bool>,
}

impl Svm {
    pub(super) fn of(cpu: &Cpu, kvm: Option<&Kvm>) -> Self {
        Self::new(cpu.svm, kvm.and_then(offered))
    }

    pub(super) fn new(cpu: Option<Leaf>, guest: Option<Leaf>) -> Self {
        let revision = |leaf: Leaf| Revision {
            revision: leaf.eax & 0xFF,
            asids: leaf.ebx,
        };
        let feature = |bit: u8, name, meaning| {
            let has = |leaf: Option<Leaf>| leaf.map(|leaf| leaf.edx >> bit & 1 != 0);
            Feature {
                bit,
                name,
                meaning,
                cpu: has(cpu),
                guest: has(guest),
            }
        };
        let mut features = Vec::new();
        if cpu.or(guest).is_some() {
            let edx = [cpu, guest]
                .into_iter()
                .flatten()
                .fold(0, |all, l| all | l.edx);
            let named = svm::FEATURES.iter();
            features.extend(named.map(|&(bit, name, text)| feature(bit, Some(name), Some(text))));
            features.extend(svm::unnamed(edx).map(|bit| feature(bit, None, None)));
            features.sort_by_key(|f| f.bit);
        }
        Self {
            cpu: cpu.map(revision),
            guest: guest.map(revision),
            features,
        }
    }
}

/// The leaf as a guest would see it, if KVM offers SVM.
fn offered(kvm: &Kvm) -> Option<Leaf> {
    let table = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).ok()?;
    let find = |leaf| table.as_slice().iter().find(|e| e.function == leaf);
    let has_svm = find(0x8000_0001)?.ecx & svm::CPUID_80000001_ECX_SVM != 0;
    let leaf = find(svm::LEAF).filter(|_| has_svm)?;
    Some(Leaf {
        eax: leaf.eax,
        ebx: leaf.ebx,
        edx: leaf.edx,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_of_cpu_and_guest() {
        let leaf = |edx| Leaf {
            eax: 0x101,
            ebx: 16,
            edx,
        };
        let svm = Svm::new(Some(leaf(1 << 9 | 0b1001)), Some(leaf(0b1000)));
        let find = |bit| svm.features.iter().find(|f| f.bit == bit).unwrap();
        assert_eq!((find(0).cpu, find(0).guest), (Some(true), Some(false)));
        assert_eq!((find(3).cpu, find(3).guest), (Some(true), Some(true)));
        assert_eq!((find(9).name, find(9).cpu), (None, Some(true)));
        assert_eq!(
            svm.cpu,
            Some(Revision {
                revision: 1,
                asids: 16
            })
        );
        assert!(svm.features.is_sorted_by(|a, b| a.bit < b.bit));
        let without = Svm::new(None, None);
        assert!(without.features.is_empty() && without.guest.is_none());
    }
}
