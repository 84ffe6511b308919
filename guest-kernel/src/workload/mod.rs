//! Workloads: a number of exits of one known reason, from sites that are not gates.

pub mod run;
pub mod verdict;

use exit_abi::reason::Reason;

/// Most exits that one workload may ask for.
pub const COUNT_MAX: u64 = 10_000_000;
/// Most workloads of one boot.
pub const ITEMS_MAX: usize = 16;

/// What is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// CPUID, leaf 0.
    Cpuid,
    /// OUT of a byte to [`exit_abi::port::SCRATCH`].
    Pio,
    /// A read of [`exit_abi::SCRATCH_PAGE`].
    Mmio,
    /// HLT, ended by the LAPIC timer.
    Hlt,
}

impl Kind {
    /// The workload of this name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "cpuid" => Self::Cpuid,
            "pio" => Self::Pio,
            "mmio" => Self::Mmio,
            "hlt" => Self::Hlt,
            _ => return None,
        })
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpuid => "cpuid",
            Self::Pio => "pio",
            Self::Mmio => "mmio",
            Self::Hlt => "hlt",
        }
    }

    /// The reason of its exits.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Cpuid => Reason::CPUID,
            Self::Pio => Reason::IO,
            Self::Mmio => Reason::EPT_MISCONFIG,
            Self::Hlt => Reason::HLT,
        }
    }

    /// Whether the VMM serves it, so that no exit can be finished in the kernel.
    pub const fn is_served_by_vmm(self) -> bool {
        matches!(self, Self::Pio | Self::Mmio)
    }
}

/// One workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// What is repeated.
    pub kind: Kind,
    /// How often.
    pub count: u64,
}

/// The workloads of one boot, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workloads {
    items: [Option<Item>; ITEMS_MAX],
    length: usize,
}

impl Workloads {
    /// Appends one; `None` if there is no room.
    pub fn push(&mut self, item: Item) -> Option<()> {
        *self.items.get_mut(self.length)? = Some(item);
        self.length += 1;
        Some(())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Item> + '_ {
        self.items[..self.length].iter().copied().flatten()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}
