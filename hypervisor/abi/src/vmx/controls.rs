//! The controls of VMX: pin-based, processor-based, of exits and of entries (SDM vol. 3D, A.3–A.5).

use super::{BASIC_TRUE_CONTROLS, Setting};

/// A group of controls: one field of the VMCS, and the MSRs that tell what it may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// Its name.
    pub title: &'static str,
    /// The MSR that tells of it.
    pub msr: u32,
    /// The MSR that tells of it where [`BASIC_TRUE_CONTROLS`] is set.
    pub true_msr: Option<u32>,
    /// The field has 64 bits, each of which may be 0: the MSR tells which may be 1. Otherwise it has
    /// 32, and the MSR's low half has those that must be 1, its high half those that may be.
    pub wide: bool,
    /// Bit and name of each control.
    pub names: &'static [(u8, &'static str)],
}

impl Controls {
    /// The MSR to read, by the value of IA32_VMX_BASIC.
    pub fn msr(&self, basic: u64) -> u32 {
        match self.true_msr {
            Some(number) if basic & BASIC_TRUE_CONTROLS != 0 => number,
            _ => self.msr,
        }
    }

    /// How many bits the field has.
    pub fn bits(&self) -> u8 {
        if self.wide { 64 } else { 32 }
    }

    /// What may be done with one bit, by the value of the MSR. A bit that the field lacks must be 0.
    pub fn setting(&self, value: u64, bit: u8) -> Setting {
        if bit >= self.bits() {
            return Setting {
                can_be_set: false,
                can_be_cleared: true,
            };
        }
        let is = |bit: u8| value >> bit & 1 != 0;
        match self.wide {
            true => Setting {
                can_be_set: is(bit),
                can_be_cleared: true,
            },
            false => Setting {
                can_be_set: is(bit + 32),
                can_be_cleared: !is(bit),
            },
        }
    }

    /// The name of the control that is this bit.
    pub fn name(&self, bit: u8) -> Option<&'static str> {
        let named = self.names.iter().find(|(of, _)| *of == bit);
        named.map(|(_, name)| *name)
    }

    /// The bits without a name that need not be 0, by the value of the MSR: reserved ones that must
    /// be 1, and controls that this table does not know.
    pub fn unnamed(&self, value: u64) -> impl Iterator<Item = (u8, Setting)> + '_ {
        (0..self.bits())
            .filter(|bit| self.name(*bit).is_none())
            .map(move |bit| (bit, self.setting(value, bit)))
            .filter(|(_, setting)| setting.can_be_set || !setting.can_be_cleared)
    }
}

/// All groups, in the order of the SDM.
pub const CONTROLS: [Controls; 7] = [
    Controls {
        title: "pin-based VM-execution controls",
        msr: 0x481,
        true_msr: Some(0x48D),
        wide: false,
        names: &[
            (0, "External-interrupt exiting"),
            (3, "NMI exiting"),
            (5, "Virtual NMIs"),
            (6, "Activate VMX-preemption timer"),
            (7, "Process posted interrupts"),
        ],
    },
    Controls {
        title: "primary processor-based VM-execution controls",
        msr: 0x482,
        true_msr: Some(0x48E),
        wide: false,
        names: &[
            (2, "Interrupt-window exiting"),
            (3, "Use TSC offsetting"),
            (7, "HLT exiting"),
            (9, "INVLPG exiting"),
            (10, "MWAIT exiting"),
            (11, "RDPMC exiting"),
            (12, "RDTSC exiting"),
            (15, "CR3-load exiting"),
            (16, "CR3-store exiting"),
            (17, "Activate tertiary controls"),
            (19, "CR8-load exiting"),
            (20, "CR8-store exiting"),
            (21, "Use TPR shadow"),
            (22, "NMI-window exiting"),
            (23, "MOV-DR exiting"),
            (24, "Unconditional I/O exiting"),
            (25, "Use I/O bitmaps"),
            (27, "Monitor trap flag"),
            (28, "Use MSR bitmaps"),
            (29, "MONITOR exiting"),
            (30, "PAUSE exiting"),
            (31, "Activate secondary controls"),
        ],
    },
    Controls {
        title: "secondary processor-based VM-execution controls",
        msr: 0x48B,
        true_msr: None,
        wide: false,
        names: &[
            (0, "Virtualize APIC accesses"),
            (1, "Enable EPT"),
            (2, "Descriptor-table exiting"),
            (3, "Enable RDTSCP"),
            (4, "Virtualize x2APIC mode"),
            (5, "Enable VPID"),
            (6, "WBINVD exiting"),
            (7, "Unrestricted guest"),
            (8, "APIC-register virtualization"),
            (9, "Virtual-interrupt delivery"),
            (10, "PAUSE-loop exiting"),
            (11, "RDRAND exiting"),
            (12, "Enable INVPCID"),
            (13, "Enable VM functions"),
            (14, "VMCS shadowing"),
            (15, "Enable ENCLS exiting"),
            (16, "RDSEED exiting"),
            (17, "Enable PML"),
            (18, "EPT-violation #VE"),
            (19, "Conceal VMX from PT"),
            (20, "Enable XSAVES/XRSTORS"),
            (21, "PASID translation"),
            (22, "Mode-based execute control for EPT"),
            (23, "Sub-page write permissions for EPT"),
            (24, "Intel PT uses guest physical addresses"),
            (25, "Use TSC scaling"),
            (26, "Enable user wait and pause"),
            (27, "Enable PCONFIG"),
            (28, "Enable ENCLV exiting"),
            (30, "VMM bus-lock detection"),
            (31, "Instruction timeout"),
        ],
    },
    Controls {
        title: "tertiary processor-based VM-execution controls",
        msr: 0x492,
        true_msr: None,
        wide: true,
        names: &[
            (0, "LOADIWKEY exiting"),
            (1, "Enable HLAT"),
            (2, "EPT paging-write control"),
            (3, "Guest-paging verification"),
            (4, "IPI virtualization"),
            (5, "SEAM guest-physical address width"),
            (6, "Enable MSR-list instructions"),
            (7, "Virtualize IA32_SPEC_CTRL"),
            (8, "APIC-timer virtualization"),
            (9, "Enable PBNDKB"),
        ],
    },
    Controls {
        title: "primary VM-exit controls",
        msr: 0x483,
        true_msr: Some(0x48F),
        wide: false,
        names: &[
            (2, "Save debug controls"),
            (9, "Host address-space size"),
            (12, "Load IA32_PERF_GLOBAL_CTRL"),
            (15, "Acknowledge interrupt on exit"),
            (18, "Save IA32_PAT"),
            (19, "Load IA32_PAT"),
            (20, "Save IA32_EFER"),
            (21, "Load IA32_EFER"),
            (22, "Save VMX-preemption timer value"),
            (23, "Clear IA32_BNDCFGS"),
            (24, "Conceal VMX from PT"),
            (25, "Clear IA32_RTIT_CTL"),
            (26, "Clear IA32_LBR_CTL"),
            (27, "Clear UINV"),
            (28, "Load CET state"),
            (29, "Load PKRS"),
            (30, "Save IA32_PERF_GLOBAL_CTRL"),
            (31, "Activate secondary controls"),
        ],
    },
    Controls {
        title: "secondary VM-exit controls",
        msr: 0x493,
        true_msr: None,
        wide: true,
        names: &[
            (0, "Save FRED"),
            (1, "Load FRED"),
            (2, "Load IA32_SPEC_CTRL"),
            (3, "Prematurely busy shadow stack"),
        ],
    },
    Controls {
        title: "VM-entry controls",
        msr: 0x484,
        true_msr: Some(0x490),
        wide: false,
        names: &[
            (2, "Load debug controls"),
            (9, "IA-32e mode guest"),
            (10, "Entry to SMM"),
            (11, "Deactivate dual-monitor treatment"),
            (13, "Load IA32_PERF_GLOBAL_CTRL"),
            (14, "Load IA32_PAT"),
            (15, "Load IA32_EFER"),
            (16, "Load IA32_BNDCFGS"),
            (17, "Conceal VMX from PT"),
            (18, "Load IA32_RTIT_CTL"),
            (19, "Load UINV"),
            (20, "Load CET state"),
            (21, "Load guest IA32_LBR_CTL"),
            (22, "Load PKRS"),
            (23, "Load FRED"),
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmx::{BASIC, msr_name};

    #[test]
    fn tables_are_in_order() {
        for group in &CONTROLS {
            assert!(
                group.names.is_sorted_by(|a, b| a.0 < b.0),
                "{}",
                group.title
            );
            assert!(group.names.iter().all(|(bit, _)| *bit < group.bits()));
            assert!(msr_name(group.msr).is_some_and(|name| !name.contains("TRUE")));
            let of_true = group.true_msr.map(|number| msr_name(number).unwrap());
            assert!(of_true.is_none_or(|name| name.starts_with("IA32_VMX_TRUE_")));
        }
    }

    #[test]
    fn halves_are_what_must_and_what_may_be_1() {
        let pin = &CONTROLS[0];
        // Bits 1, 2 and 4 are reserved and 1; bits 0, 3 and 5 may be either.
        let value = 0x0000_003F_0000_0016;
        let free = Setting {
            can_be_set: true,
            can_be_cleared: true,
        };
        assert_eq!(pin.setting(value, 0), free);
        assert!(pin.setting(value, 0).is_free());
        let never = pin.setting(value, 7);
        assert!(!never.can_be_set && never.can_be_cleared);
        let always = pin.setting(value, 2);
        assert!(always.can_be_set && !always.can_be_cleared);
        assert!(pin.unnamed(value).map(|(bit, _)| bit).eq([1, 2, 4]));
        assert_eq!(pin.setting(u64::MAX, 32), pin.setting(0, 32));
        assert_eq!(pin.setting(u64::MAX, 255), pin.setting(0, 255));
    }

    #[test]
    fn wide_groups_tell_what_may_be_1() {
        let tertiary = &CONTROLS[3];
        assert!(tertiary.setting(1 << 4, 4).is_free());
        assert!(!tertiary.setting(1 << 4, 5).can_be_set);
        assert!(tertiary.unnamed(1 << 63).map(|(bit, _)| bit).eq([63]));
    }

    #[test]
    fn the_true_msrs_where_there_are_any() {
        assert_eq!(CONTROLS[0].msr(0), 0x481);
        assert_eq!(CONTROLS[0].msr(BASIC_TRUE_CONTROLS), 0x48D);
        assert_eq!(CONTROLS[2].msr(BASIC_TRUE_CONTROLS), 0x48B);
        assert_eq!(msr_name(BASIC), Some("IA32_VMX_BASIC"));
    }
}
