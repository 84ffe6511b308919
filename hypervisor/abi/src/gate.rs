//! The gate protocol: how a guest publishes the instructions at which Exitvisor answers.
//!
//! A gate is the linear address of one `cpuid` (`0F A2`), `vmcall` (`0F 01 C1`) or `vmmcall`
//! (`0F 01 D9`) instruction. Images that the VMM loads publish theirs by an ELF note
//! ([`crate::note`]); code loaded later writes the address to [`crate::port::GATE_LOW`] and
//! [`crate::port::GATE_HIGH`], a [`Command`] to [`crate::port::GATE_COMMAND`], and reads the
//! [`Outcome`] back from there.

/// How many gates there are: the debug-address registers DR0–DR3 (SDM vol. 3B, 19.2.1).
pub const SLOTS: usize = 4;

/// What to do with the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Command {
    /// Register a `cpuid` instruction.
    RegisterCpuid = 1,
    /// Register a `vmcall` or `vmmcall` instruction.
    RegisterHypercall = 2,
    /// Withdraw whatever gate stands at the address.
    Withdraw = 3,
    /// Register a `cpuid` instruction that this address space need not map, as a kernel's is not in
    /// that of its user space: unmapped, it is looked at when it is reached, and only then.
    RegisterUnmappedCpuid = 4,
}

impl Command {
    /// The command of this number.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::RegisterCpuid,
            2 => Self::RegisterHypercall,
            3 => Self::Withdraw,
            4 => Self::RegisterUnmappedCpuid,
            _ => return None,
        })
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// Done: armed (or disarmed) on every vCPU.
    Done = 0,
    /// All four slots are taken.
    Full = 1,
    /// The address is not canonical, or not mapped in the asking vCPU's address space.
    BadAddress = 2,
    /// A gate stands at this address already.
    Duplicate = 3,
    /// No gate stands at this address.
    NotFound = 4,
    /// There is no such command.
    BadCommand = 5,
    /// The bytes at the address are not the instruction named.
    NotTheInstruction = 6,
    /// This vCPU has given no command yet.
    None = 7,
    /// KVM refused to arm the breakpoint.
    Refused = 8,
}

impl Outcome {
    /// The outcome of this number, as read from [`crate::port::GATE_COMMAND`].
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Done,
            1 => Self::Full,
            2 => Self::BadAddress,
            3 => Self::Duplicate,
            4 => Self::NotFound,
            5 => Self::BadCommand,
            6 => Self::NotTheInstruction,
            7 => Self::None,
            8 => Self::Refused,
            _ => return None,
        })
    }
}
