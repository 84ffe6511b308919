//! The CPUID leaves: four of the coursework, in an order that is data, and ours.

/// Discovery, static in every vCPU's CPUID table: EAX = highest leaf, EBX/ECX/EDX = [`SIGNATURE`].
pub const DISCOVERY: u32 = 0x4FFF_FF00;
/// What is known of reason ECX, as flags in EAX: [`flags`].
pub const FLAGS: u32 = 0x4FFF_FF01;
/// A 128-bit map of the reasons seen so far (EAX = reasons 0–31 … EDX = 96–127).
pub const MAP: u32 = 0x4FFF_FF02;
/// EAX = [`crate::VERSION`], EBX = 1 if the exit page exists, ECX = its page number,
/// EDX = the layout in use, packed by [`Layout::pack`]. Static, like [`DISCOVERY`].
pub const INFO: u32 = 0x4FFF_FF03;
/// Highest leaf of ours, as discovery announces it (KVM's out-of-range rule reads it as such).
pub const HIGHEST: u32 = 0x4FFF_FFFF;
/// EBX, ECX, EDX of [`DISCOVERY`], in CPUID's usual byte order.
pub const SIGNATURE: [u8; 12] = *b"ExitvisorABI";
/// EDX of a per-reason leaf when the SDM does not define the reason.
pub const UNDEFINED: u32 = 0xFFFF_FFFF;
/// Prefix of every leaf that a layout may name: `0x4FFFFFxx`.
pub const PREFIX: u32 = 0x4FFF_FF00;
/// Lowest leaf that a layout may name: everything below is reserved for ours.
pub const LOWEST_OF_LAYOUT: u32 = 0x4FFF_FF10;

/// Bits of EAX that [`FLAGS`] answers.
pub mod flags {
    /// The chosen edition of the SDM defines the reason.
    pub const DEFINED: u32 = 1 << 0;
    /// This host's KVM can raise it.
    pub const CAN_OCCUR: u32 = 1 << 1;
    /// Every exit of this reason is counted, whether or not it reaches userspace.
    pub const EXACT: u32 = 1 << 2;
    /// Every exit of this reason that the VMM itself serves (its ports, unassigned addresses,
    /// hypercalls that KVM passes on) is counted; one that KVM finishes in the kernel may not be.
    pub const EXACT_IN_VMM: u32 = 1 << 3;
}

/// Which leaf asks which question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Exits so far, all reasons: EAX = low, EBX = high half.
    pub total_exits: u32,
    /// Cycles spent on them: EBX = high, ECX = low half.
    pub total_cycles: u32,
    /// Exits of reason ECX: EAX = low, EBX = high half.
    pub exits_of: u32,
    /// Cycles spent on reason ECX: EBX = high, ECX = low half.
    pub cycles_of: u32,
}

/// A question put through a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Exits so far, all reasons.
    TotalExits,
    /// Cycles so far, all reasons.
    TotalCycles,
    /// Exits of one reason.
    ExitsOf,
    /// Cycles of one reason.
    CyclesOf,
    /// [`DISCOVERY`].
    Discovery,
    /// [`FLAGS`].
    Flags,
    /// [`MAP`].
    Map,
    /// [`INFO`].
    Info,
}

impl Layout {
    /// The order of the coursework that the project began with.
    pub const CLASSIC: Self = Self::new(0x4FFF_FFFF, 0x4FFF_FFFE, 0x4FFF_FFFD, 0x4FFF_FFFC);
    /// The other order that was handed out.
    pub const REVERSED: Self = Self::new(0x4FFF_FFFC, 0x4FFF_FFFD, 0x4FFF_FFFE, 0x4FFF_FFFF);

    /// A layout from four leaves, unchecked: see [`Layout::is_valid`].
    pub const fn new(total_exits: u32, total_cycles: u32, exits_of: u32, cycles_of: u32) -> Self {
        Self {
            total_exits,
            total_cycles,
            exits_of,
            cycles_of,
        }
    }

    /// The four leaves, in the order of the fields.
    pub const fn leaves(self) -> [u32; 4] {
        [
            self.total_exits,
            self.total_cycles,
            self.exits_of,
            self.cycles_of,
        ]
    }

    /// Whether the four leaves are distinct, within `0x4FFFFFxx` and clear of ours.
    pub fn is_valid(self) -> bool {
        let leaves = self.leaves();
        leaves.iter().enumerate().all(|(i, leaf)| {
            (LOWEST_OF_LAYOUT..=HIGHEST).contains(leaf) && !leaves[..i].contains(leaf)
        })
    }

    /// The low bytes of the four leaves in one word: EDX of [`INFO`].
    pub const fn pack(self) -> u32 {
        (self.total_exits & 0xFF)
            | (self.total_cycles & 0xFF) << 8
            | (self.exits_of & 0xFF) << 16
            | (self.cycles_of & 0xFF) << 24
    }

    /// The layout that [`Layout::pack`] packed.
    pub const fn unpack(word: u32) -> Self {
        Self::new(
            PREFIX | word & 0xFF,
            PREFIX | word >> 8 & 0xFF,
            PREFIX | word >> 16 & 0xFF,
            PREFIX | word >> 24,
        )
    }

    /// What `leaf` asks under this layout; `None` for an ordinary leaf.
    pub const fn question(self, leaf: u32) -> Option<Question> {
        Some(match leaf {
            DISCOVERY => Question::Discovery,
            FLAGS => Question::Flags,
            MAP => Question::Map,
            INFO => Question::Info,
            _ if leaf == self.total_exits => Question::TotalExits,
            _ if leaf == self.total_cycles => Question::TotalCycles,
            _ if leaf == self.exits_of => Question::ExitsOf,
            _ if leaf == self.cycles_of => Question::CyclesOf,
            _ => return None,
        })
    }
}

/// The four registers that CPUID returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

impl Registers {
    /// A count, as [`Layout::total_exits`] and [`Layout::exits_of`] answer it.
    pub const fn from_exits(count: u64) -> Self {
        Self {
            eax: count as u32,
            ebx: (count >> 32) as u32,
            ecx: 0,
            edx: 0,
        }
    }

    /// Cycles, as [`Layout::total_cycles`] and [`Layout::cycles_of`] answer them.
    pub const fn from_cycles(cycles: u64) -> Self {
        Self {
            eax: 0,
            ebx: (cycles >> 32) as u32,
            ecx: cycles as u32,
            edx: 0,
        }
    }

    /// The answer of a per-reason leaf for a reason that the SDM does not define.
    pub const fn undefined() -> Self {
        Self {
            eax: 0,
            ebx: 0,
            ecx: 0,
            edx: UNDEFINED,
        }
    }

    /// The count in an answer of [`Layout::total_exits`] or [`Layout::exits_of`].
    pub const fn exits(self) -> u64 {
        self.eax as u64 | (self.ebx as u64) << 32
    }

    /// The cycles in an answer of [`Layout::total_cycles`] or [`Layout::cycles_of`].
    pub const fn cycles(self) -> u64 {
        self.ecx as u64 | (self.ebx as u64) << 32
    }

    /// The 128-bit map in an answer of [`MAP`].
    pub const fn map(self) -> u128 {
        self.eax as u128
            | (self.ebx as u128) << 32
            | (self.ecx as u128) << 64
            | (self.edx as u128) << 96
    }

    /// A map as [`MAP`] answers it.
    pub const fn from_map(map: u128) -> Self {
        Self {
            eax: map as u32,
            ebx: (map >> 32) as u32,
            ecx: (map >> 64) as u32,
            edx: (map >> 96) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_pack_and_unpack() {
        for layout in [Layout::CLASSIC, Layout::REVERSED] {
            assert!(layout.is_valid());
            assert_eq!(Layout::unpack(layout.pack()), layout);
        }
        assert_eq!(Layout::CLASSIC.pack(), 0xFCFD_FEFF);
    }

    #[test]
    fn invalid_layouts() {
        let invalid = [
            Layout::new(0x4FFF_FFFF, 0x4FFF_FFFF, 0x4FFF_FFFD, 0x4FFF_FFFC),
            Layout::new(0x4FFF_FF03, 0x4FFF_FFFE, 0x4FFF_FFFD, 0x4FFF_FFFC),
            Layout::new(0x4000_0000, 0x4FFF_FFFE, 0x4FFF_FFFD, 0x4FFF_FFFC),
            Layout::new(0x5000_0000, 0x4FFF_FFFE, 0x4FFF_FFFD, 0x4FFF_FFFC),
        ];
        for layout in invalid {
            assert!(!layout.is_valid(), "{layout:x?}");
        }
    }

    #[test]
    fn questions() {
        assert_eq!(
            Layout::CLASSIC.question(0x4FFF_FFFF),
            Some(Question::TotalExits)
        );
        assert_eq!(
            Layout::REVERSED.question(0x4FFF_FFFF),
            Some(Question::CyclesOf)
        );
        assert_eq!(Layout::CLASSIC.question(0x4FFF_FF02), Some(Question::Map));
        assert_eq!(Layout::CLASSIC.question(0x4FFF_FF04), None);
        assert_eq!(Layout::CLASSIC.question(0), None);
    }

    #[test]
    fn registers_round_trip() {
        let n = 0x1234_5678_9ABC_DEF0;
        assert_eq!(Registers::from_exits(n).exits(), n);
        assert_eq!(Registers::from_cycles(n).cycles(), n);
        let m = 0x0011_2233_4455_6677_8899_AABB_CCDD_EEFF;
        assert_eq!(Registers::from_map(m).map(), m);
    }
}
