//! Basic exit reasons: Intel SDM vol. 3D, appendix C ("VMX basic exit reasons"), in two editions.
//!
//! Numbers 82 and 83 are defined by no source at hand (SDM, `asm/vmx.h`); they stand as undefined.

/// How many reasons a ledger tracks: what [`crate::leaf::MAP`] can show.
pub const COUNT: usize = 128;

/// Which edition of the table a VM answers by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Edition {
    /// The current one: 0–81, 84 and 85, without 35, 38, 42 and 71.
    #[default]
    Current,
    /// The one the coursework was marked against: 0–68, without 35, 38, 42 and 65.
    Sdm2020,
}

/// A basic exit reason: a number below [`COUNT`], so it can index a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason(u8);

impl Reason {
    /// #DB, #BP, NMI and other exceptions.
    pub const EXCEPTION: Self = Self(0);
    /// External interrupt.
    pub const EXTERNAL_INTERRUPT: Self = Self(1);
    /// Triple fault.
    pub const TRIPLE_FAULT: Self = Self(2);
    /// Interrupt window.
    pub const INTERRUPT_WINDOW: Self = Self(7);
    /// NMI window.
    pub const NMI_WINDOW: Self = Self(8);
    /// CPUID.
    pub const CPUID: Self = Self(10);
    /// HLT.
    pub const HLT: Self = Self(12);
    /// INVLPG: only where KVM shadows page tables.
    pub const INVLPG: Self = Self(14);
    /// RDTSC: no KVM intercepts it.
    pub const RDTSC: Self = Self(16);
    /// VMCALL.
    pub const VMCALL: Self = Self(18);
    /// Control-register access.
    pub const CR_ACCESS: Self = Self(28);
    /// MOV to or from a debug register.
    pub const DR_ACCESS: Self = Self(29);
    /// I/O instruction.
    pub const IO: Self = Self(30);
    /// RDMSR.
    pub const RDMSR: Self = Self(31);
    /// WRMSR.
    pub const WRMSR: Self = Self(32);
    /// VM-entry failure due to invalid guest state.
    pub const INVALID_STATE: Self = Self(33);
    /// EPT violation (AMD: nested page fault).
    pub const EPT_VIOLATION: Self = Self(48);
    /// EPT misconfiguration: how KVM marks MMIO.
    pub const EPT_MISCONFIG: Self = Self(49);
    /// WBINVD.
    pub const WBINVD: Self = Self(54);
    /// XSETBV.
    pub const XSETBV: Self = Self(55);

    /// The reason of this number, if a ledger has room for it. All 32 bits are checked.
    pub const fn new(number: u32) -> Option<Self> {
        if number < COUNT as u32 {
            Some(Self(number as u8))
        } else {
            None
        }
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Its place in a table of [`COUNT`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Whether the edition defines it.
    pub const fn is_defined(self, edition: Edition) -> bool {
        match edition {
            Edition::Current => self.name().is_some(),
            Edition::Sdm2020 => self.0 <= 68 && self.0 != 65 && self.name().is_some(),
        }
    }

    /// Its name, after the SDM's; `None` if the current edition does not define it.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "exception or NMI",
            1 => "external interrupt",
            2 => "triple fault",
            3 => "INIT signal",
            4 => "start-up IPI",
            5 => "I/O SMI",
            6 => "other SMI",
            7 => "interrupt window",
            8 => "NMI window",
            9 => "task switch",
            10 => "CPUID",
            11 => "GETSEC",
            12 => "HLT",
            13 => "INVD",
            14 => "INVLPG",
            15 => "RDPMC",
            16 => "RDTSC",
            17 => "RSM",
            18 => "VMCALL",
            19 => "VMCLEAR",
            20 => "VMLAUNCH",
            21 => "VMPTRLD",
            22 => "VMPTRST",
            23 => "VMREAD",
            24 => "VMRESUME",
            25 => "VMWRITE",
            26 => "VMXOFF",
            27 => "VMXON",
            28 => "CR access",
            29 => "MOV DR",
            30 => "I/O instruction",
            31 => "RDMSR",
            32 => "WRMSR",
            33 => "entry failure: guest state",
            34 => "entry failure: MSR loading",
            36 => "MWAIT",
            37 => "monitor trap flag",
            39 => "MONITOR",
            40 => "PAUSE",
            41 => "entry failure: machine check",
            43 => "TPR below threshold",
            44 => "APIC access",
            45 => "virtualized EOI",
            46 => "GDTR or IDTR access",
            47 => "LDTR or TR access",
            48 => "EPT violation",
            49 => "EPT misconfiguration",
            50 => "INVEPT",
            51 => "RDTSCP",
            52 => "preemption timer",
            53 => "INVVPID",
            54 => "WBINVD or WBNOINVD",
            55 => "XSETBV",
            56 => "APIC write",
            57 => "RDRAND",
            58 => "INVPCID",
            59 => "VMFUNC",
            60 => "ENCLS",
            61 => "RDSEED",
            62 => "page-modification log full",
            63 => "XSAVES",
            64 => "XRSTORS",
            65 => "PCONFIG",
            66 => "SPP-related event",
            67 => "UMWAIT",
            68 => "TPAUSE",
            69 => "LOADIWKEY",
            70 => "ENCLV",
            72 => "ENQCMD PASID failure",
            73 => "ENQCMDS PASID failure",
            74 => "bus lock",
            75 => "instruction timeout",
            76 => "SEAMCALL",
            77 => "TDCALL",
            78 => "RDMSRLIST",
            79 => "WRMSRLIST",
            80 => "URDMSR",
            81 => "UWRMSR",
            84 => "RDMSR (immediate)",
            85 => "WRMSRNS (immediate)",
            _ => return None,
        })
    }

    /// All [`COUNT`] of them, defined or not.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..COUNT as u8).map(Self)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn undefined(edition: Edition, up_to: u32) -> Vec<u32> {
        (0..=up_to)
            .filter(|&n| !Reason::new(n).is_some_and(|r| r.is_defined(edition)))
            .collect()
    }

    #[test]
    fn editions() {
        assert_eq!(undefined(Edition::Current, 85), [35, 38, 42, 71, 82, 83]);
        assert_eq!(undefined(Edition::Sdm2020, 68), [35, 38, 42, 65]);
        assert!(
            Reason::all()
                .skip(69)
                .all(|r| !r.is_defined(Edition::Sdm2020))
        );
        assert!(
            Reason::all()
                .skip(86)
                .all(|r| !r.is_defined(Edition::Current))
        );
    }

    #[test]
    fn guest_numbers_are_checked_whole() {
        assert_eq!(Reason::new(127).map(Reason::index), Some(127));
        for n in [128, 255, 256, 0x1_0000 + 12, u32::MAX] {
            assert_eq!(Reason::new(n), None);
        }
    }
}
