//! Asks: what a vCPU's exits were for: which MSR, which port, which CPUID leaf.

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AskKind {
    /// RDMSR; the index is ECX.
    MsrRead,
    /// WRMSR; the index is ECX.
    MsrWrite,
    /// IN or INS; the index is the port. One event counts once, whatever its items.
    PortIn,
    /// OUT or OUTS; the index is the port. One event counts once, whatever its items.
    PortOut,
    /// CPUID; the index is EAX. Emulated events only.
    CpuidLeaf,
}

impl AskKind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::MsrRead,
        Self::MsrWrite,
        Self::PortIn,
        Self::PortOut,
        Self::CpuidLeaf,
    ];
}

/// How often a vCPU asked for one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    /// What.
    pub kind: AskKind,
    /// Which one: `None` for those that found no room in the table, together.
    pub index: Option<u32>,
    /// How often.
    pub count: u64,
}

/// Asks that depend on time, not on what is booted: the guest's ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeDriven {
    /// WRMSR 0x6E0: the TSC deadline.
    pub tsc_deadline: u64,
    /// WRMSR 0x80B: the x2APIC's EOI.
    pub x2apic_eoi: u64,
    /// OUT to 0x20, 0x21, 0xA0, 0xA1: the two PICs.
    pub pic: u64,
    /// OUT to 0x40–0x43: the PIT.
    pub pit: u64,
}
