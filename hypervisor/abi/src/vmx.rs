//! What a processor's VMX can do: its capability MSRs, their names and how to read them (Intel SDM
//! vol. 3D, appendix A; names of controls: vol. 3C, "VM-execution control fields", "VM-exit control
//! fields", "VM-entry control fields").
//!
//! Host and guest decode with these tables, so that what both say can be compared.

mod controls;
mod features;

pub use controls::{CONTROLS, Controls};
pub use features::{FEATURES, FIELDS, Features, Field, REGISTERS, Register};

/// CPUID.1:ECX: VMX is offered.
pub const CPUID_1_ECX_VMX: u32 = 1 << 5;
/// IA32_FEATURE_CONTROL: what the firmware allows of VMX.
pub const FEATURE_CONTROL: u32 = 0x3A;
/// In [`FEATURE_CONTROL`]: locked until the next reset.
pub const FEATURE_CONTROL_LOCKED: u64 = 1;
/// In [`FEATURE_CONTROL`]: VMXON is allowed outside SMX.
pub const FEATURE_CONTROL_VMX: u64 = 1 << 2;

/// IA32_VMX_BASIC.
pub const BASIC: u32 = 0x480;
/// In [`BASIC`]: the TRUE MSRs are there, and tell which of the controls that are usually 1 may be 0.
pub const BASIC_TRUE_CONTROLS: u64 = 1 << 55;
/// In [`BASIC`]: the VMCS's size, in bytes, from bit 32.
pub const BASIC_VMCS_SIZE: u64 = 0x1FFF << 32;

/// A model-specific register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msr {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: &'static str,
}

const fn msr(number: u32, name: &'static str) -> Msr {
    Msr { number, name }
}

/// The capability MSRs, in order.
pub const MSRS: [Msr; 20] = [
    msr(BASIC, "IA32_VMX_BASIC"),
    msr(0x481, "IA32_VMX_PINBASED_CTLS"),
    msr(0x482, "IA32_VMX_PROCBASED_CTLS"),
    msr(0x483, "IA32_VMX_EXIT_CTLS"),
    msr(0x484, "IA32_VMX_ENTRY_CTLS"),
    msr(0x485, "IA32_VMX_MISC"),
    msr(0x486, "IA32_VMX_CR0_FIXED0"),
    msr(0x487, "IA32_VMX_CR0_FIXED1"),
    msr(0x488, "IA32_VMX_CR4_FIXED0"),
    msr(0x489, "IA32_VMX_CR4_FIXED1"),
    msr(0x48A, "IA32_VMX_VMCS_ENUM"),
    msr(0x48B, "IA32_VMX_PROCBASED_CTLS2"),
    msr(0x48C, "IA32_VMX_EPT_VPID_CAP"),
    msr(0x48D, "IA32_VMX_TRUE_PINBASED_CTLS"),
    msr(0x48E, "IA32_VMX_TRUE_PROCBASED_CTLS"),
    msr(0x48F, "IA32_VMX_TRUE_EXIT_CTLS"),
    msr(0x490, "IA32_VMX_TRUE_ENTRY_CTLS"),
    msr(0x491, "IA32_VMX_VMFUNC"),
    msr(0x492, "IA32_VMX_PROCBASED_CTLS3"),
    msr(0x493, "IA32_VMX_EXIT_CTLS2"),
];

/// The name of a capability MSR.
pub fn msr_name(number: u32) -> Option<&'static str> {
    let index = usize::try_from(number.checked_sub(BASIC)?).ok()?;
    MSRS.get(index).map(|msr| msr.name)
}

/// What software may do with one bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// It may be 1.
    pub can_be_set: bool,
    /// It may be 0.
    pub can_be_cleared: bool,
}

impl Setting {
    /// The choice that is left.
    pub fn is_free(self) -> bool {
        self.can_be_set && self.can_be_cleared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msrs_are_in_order() {
        for (number, msr) in (BASIC..).zip(MSRS) {
            assert_eq!(msr.number, number);
            assert_eq!(msr_name(number), Some(msr.name));
        }
        assert_eq!(msr_name(0x47F), None);
        assert_eq!(msr_name(0x494), None);
    }
}
