//! The other capability MSRs: numbers and single features (SDM vol. 3D, A.1, A.6–A.11), and which
//! bits of CR0 and CR4 a VMM may choose while it is in VMX operation (A.7, A.8).

use super::Setting;

/// A number that stands in some bits of an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The MSR.
    pub msr: u32,
    /// What it is.
    pub name: &'static str,
    /// Its lowest bit.
    pub low: u8,
    /// How many bits it has.
    pub width: u8,
}

impl Field {
    /// The number.
    pub fn get(&self, value: u64) -> u64 {
        value >> self.low & ((1 << self.width) - 1)
    }
}

const fn field(msr: u32, low: u8, width: u8, name: &'static str) -> Field {
    Field {
        msr,
        name,
        low,
        width,
    }
}

/// The numbers.
pub const FIELDS: [Field; 9] = [
    field(0x480, 0, 31, "VMCS revision identifier"),
    field(0x480, 32, 13, "bytes of a VMXON region or VMCS"),
    field(0x480, 50, 4, "memory type of VMCS (6: write-back)"),
    field(0x485, 0, 5, "TSC bit at which the preemption timer counts"),
    field(0x485, 16, 9, "CR3-target values"),
    field(0x485, 25, 3, "512 × (N+1) MSRs in a list: N"),
    field(0x485, 32, 32, "MSEG revision identifier"),
    field(0x48A, 1, 9, "highest index of a VMCS field"),
    field(0x48C, 48, 6, "largest HLAT prefix"),
];

/// The features that single bits of an MSR tell of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// The MSR.
    pub msr: u32,
    /// What it is about.
    pub title: &'static str,
    /// Bit and name of each.
    pub names: &'static [(u8, &'static str)],
    /// Bits that tell numbers, or nothing of interest here.
    numbers: u64,
}

impl Features {
    /// Whether a feature is there.
    pub fn has(&self, value: u64, bit: u8) -> bool {
        value.checked_shr(bit.into()).is_some_and(|v| v & 1 != 0)
    }

    /// The bits that are set and have no name here.
    pub fn unnamed(&self, value: u64) -> impl Iterator<Item = u8> + '_ {
        let named = |bit: u8| self.names.iter().any(|(of, _)| *of == bit);
        (0..64).filter(move |&bit| self.has(value & !self.numbers, bit) && !named(bit))
    }
}

/// All of them.
pub const FEATURES: [Features; 4] = [
    Features {
        msr: 0x480,
        title: "basic",
        names: &[
            (48, "VMCS and its structures below 4 GiB alone"),
            (49, "Dual-monitor treatment of SMIs and SMM"),
            (54, "Information on INS and OUTS at exits"),
            (55, "TRUE MSRs: default1 controls may be 0"),
            (56, "Exceptions injected with or without an error code"),
        ],
        numbers: 0x1FFF_FFFF_FFFF & !(1 << 31) | 0xF << 50,
    },
    Features {
        msr: 0x485,
        title: "miscellaneous",
        names: &[
            (5, "EFER.LMA is stored at exits"),
            (6, "Activity state HLT"),
            (7, "Activity state shutdown"),
            (8, "Activity state wait-for-SIPI"),
            (14, "Intel PT in VMX operation"),
            (15, "RDMSR of IA32_SMBASE in SMM"),
            (28, "IA32_SMM_MONITOR_CTL bit 2"),
            (29, "VMWRITE to any field"),
            (30, "Events injected with instruction length 0"),
        ],
        numbers: 0xFFFF_FFFF_0000_0000 | 0x7 << 25 | 0x1FF << 16 | 0x1F,
    },
    Features {
        msr: 0x48C,
        title: "EPT and VPID",
        names: &[
            (0, "Execute-only translations"),
            (6, "Page-walk length 4"),
            (7, "Page-walk length 5"),
            (8, "EPT memory type uncacheable"),
            (14, "EPT memory type write-back"),
            (16, "2-MiB pages"),
            (17, "1-GiB pages"),
            (20, "INVEPT"),
            (21, "Accessed and dirty flags"),
            (22, "Advanced information on EPT violations"),
            (23, "Supervisor shadow-stack control"),
            (25, "INVEPT single-context"),
            (26, "INVEPT all-context"),
            (32, "INVVPID"),
            (40, "INVVPID individual-address"),
            (41, "INVVPID single-context"),
            (42, "INVVPID all-context"),
            (43, "INVVPID single-context, retaining globals"),
        ],
        numbers: 0x3F << 48,
    },
    Features {
        msr: 0x491,
        title: "VM functions",
        names: &[(0, "EPTP switching")],
        numbers: 0,
    },
];

/// A control register whose bits VMX fixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// `CR0`.
    pub name: &'static str,
    /// The MSR whose bits are 1 where the register's must be.
    pub fixed0: u32,
    /// The MSR whose bits are 0 where the register's must be.
    pub fixed1: u32,
    /// Bit and name of each.
    pub names: &'static [(u8, &'static str)],
}

impl Register {
    /// What may be done with one bit, by the values of the two MSRs.
    pub fn setting(&self, fixed0: u64, fixed1: u64, bit: u8) -> Setting {
        let is = |value: u64| value.checked_shr(bit.into()).is_some_and(|v| v & 1 != 0);
        Setting {
            can_be_set: is(fixed1),
            can_be_cleared: !is(fixed0),
        }
    }
}

/// Both.
pub const REGISTERS: [Register; 2] = [
    Register {
        name: "CR0",
        fixed0: 0x486,
        fixed1: 0x487,
        names: &[
            (0, "PE"),
            (1, "MP"),
            (2, "EM"),
            (3, "TS"),
            (4, "ET"),
            (5, "NE"),
            (16, "WP"),
            (18, "AM"),
            (29, "NW"),
            (30, "CD"),
            (31, "PG"),
        ],
    },
    Register {
        name: "CR4",
        fixed0: 0x488,
        fixed1: 0x489,
        names: &[
            (0, "VME"),
            (1, "PVI"),
            (2, "TSD"),
            (3, "DE"),
            (4, "PSE"),
            (5, "PAE"),
            (6, "MCE"),
            (7, "PGE"),
            (8, "PCE"),
            (9, "OSFXSR"),
            (10, "OSXMMEXCPT"),
            (11, "UMIP"),
            (12, "LA57"),
            (13, "VMXE"),
            (14, "SMXE"),
            (16, "FSGSBASE"),
            (17, "PCIDE"),
            (18, "OSXSAVE"),
            (19, "KL"),
            (20, "SMEP"),
            (21, "SMAP"),
            (22, "PKE"),
            (23, "CET"),
            (24, "PKS"),
            (25, "UINTR"),
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmx::msr_name;

    #[test]
    fn tables_are_in_order() {
        for features in &FEATURES {
            let names = features.names;
            assert!(names.is_sorted_by(|a, b| a.0 < b.0), "{}", features.title);
            assert!(
                names
                    .iter()
                    .all(|(bit, _)| features.numbers >> bit & 1 == 0)
            );
            assert!(msr_name(features.msr).is_some());
        }
        for field in &FIELDS {
            assert!(msr_name(field.msr).is_some() && field.low + field.width <= 64);
        }
        for register in &REGISTERS {
            assert!(register.names.is_sorted_by(|a, b| a.0 < b.0));
        }
    }

    #[test]
    fn numbers_are_no_features() {
        for features in &FEATURES {
            let fields = FIELDS.iter().filter(|field| field.msr == features.msr);
            let bits = |field: &Field| ((1_u64 << field.width) - 1) << field.low;
            let all = fields.fold(0, |all, field| all | bits(field));
            assert_eq!(all & !features.numbers, 0, "{}", features.title);
            assert_eq!(features.unnamed(all).count(), 0);
        }
        let misc = &FEATURES[1];
        assert!(misc.unnamed(1 << 9 | 1 << 6).eq([9]));
        assert!(misc.has(1 << 6, 6) && !misc.has(u64::MAX, 64));
    }

    #[test]
    fn fields() {
        // What an emulated Skylake-X says.
        let basic = 0x00DA_0400_0000_002B;
        assert_eq!(FIELDS[0].get(basic), 0x2B);
        assert_eq!(FIELDS[1].get(basic), 1024);
        assert_eq!(FIELDS[2].get(basic), 6);
        assert_eq!(FIELDS[6].get(u64::MAX), u32::MAX.into());
    }

    #[test]
    fn bits_of_control_registers() {
        let cr0 = &REGISTERS[0];
        let pg = cr0.setting(0x8000_0021, 0xFFFF_FFFF, 31);
        assert!(pg.can_be_set && !pg.can_be_cleared);
        assert!(cr0.setting(0x8000_0021, 0xFFFF_FFFF, 3).is_free());
        assert!(!cr0.setting(0, 0, 64).can_be_set);
    }
}
