//! What CPUID says of this CPU's virtualization.

use std::arch::x86_64::{__cpuid, CpuidResult};

use exit_abi::{svm, vmx};

/// CPUID.1:ECX: this CPU is one of a virtual machine.
const HYPERVISOR: u32 = 1 << 31;

/// This CPU, or the one that a virtual machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cpu {
    /// `GenuineIntel`.
    pub(super) vendor: String,
    /// It has VMX.
    pub(super) vmx: bool,
    /// What it says of SVM, if it has it.
    pub(super) svm: Option<Leaf>,
    /// It is a virtual machine's.
    pub(super) virtual_machine: bool,
}

/// What leaf 0x8000000A answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) eax: u32,
    pub(super) ebx: u32,
    pub(super) edx: u32,
}

impl Cpu {
    /// The CPU that this runs on.
    pub(super) fn this() -> Self {
        Self::by(__cpuid)
    }

    fn by(cpuid: impl Fn(u32) -> CpuidResult) -> Self {
        let first = cpuid(0);
        let name = [first.ebx, first.edx, first.ecx].map(u32::to_le_bytes);
        let one = cpuid(1);
        let extended = |leaf| (cpuid(0x8000_0000).eax >= leaf).then(|| cpuid(leaf));
        let has_svm =
            extended(0x8000_0001).is_some_and(|r| r.ecx & svm::CPUID_80000001_ECX_SVM != 0);
        let leaf = extended(svm::LEAF).filter(|_| has_svm).map(|r| Leaf {
            eax: r.eax,
            ebx: r.ebx,
            edx: r.edx,
        });
        Self {
            vendor: String::from_utf8_lossy(name.as_flattened()).into_owned(),
            vmx: one.ecx & vmx::CPUID_1_ECX_VMX != 0,
            svm: leaf,
            virtual_machine: one.ecx & HYPERVISOR != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidResult {
        CpuidResult { eax, ebx, ecx, edx }
    }

    #[test]
    fn vendors_and_their_virtualization() {
        let intel = |leaf| match leaf {
            0 => answer(0x16, 0x756E_6547, 0x6C65_746E, 0x4965_6E69),
            1 => answer(0, 0, 1 << 5, 0),
            0x8000_0000 => answer(0x8000_0008, 0, 0, 0),
            _ => answer(0, 0, 0, 0),
        };
        let cpu = Cpu::by(intel);
        assert_eq!(cpu.vendor, "GenuineIntel");
        assert!(cpu.vmx && cpu.svm.is_none() && !cpu.virtual_machine);

        let amd = |leaf| match leaf {
            1 => answer(0, 0, 1 << 31, 0),
            0x8000_0000 => answer(svm::LEAF, 0, 0, 0),
            0x8000_0001 => answer(0, 0, 4, 0),
            svm::LEAF => answer(1, 16, 0, 0x81),
            _ => answer(0, 0, 0, 0),
        };
        let cpu = Cpu::by(amd);
        assert_eq!(cpu.svm.map(|leaf| (leaf.ebx, leaf.edx)), Some((16, 0x81)));
        assert!(cpu.virtual_machine && !cpu.vmx);
    }
}
