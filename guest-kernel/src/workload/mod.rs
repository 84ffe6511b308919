//! Workloads: a number of exits of one known reason, from sites that are not gates.

pub mod ptes;
pub mod run;
pub mod verdict;

use exit_abi::reason::Reason;

/// Most exits that one workload may ask for.
pub const COUNT_MAX: u64 = 10_000_000;
/// Most workloads of one boot.
pub const ITEMS_MAX: usize = 16;
/// Bytes that one `outs` writes.
pub const STRING: &[u8; 16] = b"a line of bytes\n";

/// What is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// CPUID, leaf 0.
    Cpuid,
    /// OUT of a byte to [`exit_abi::port::SCRATCH`].
    Pio,
    /// IN of a byte from the same port.
    Pin,
    /// A read of [`exit_abi::SCRATCH_PAGE`].
    Mmio,
    /// HLT, ended by the LAPIC timer.
    Hlt,
    /// RDMSR of IA32_APIC_BASE, which KVM never lets through.
    Rdmsr,
    /// WRMSR of IA32_APIC_BASE with the value that it has.
    Wrmsr,
    /// `rep outsb` of [`STRING`] to the scratch port.
    Outs,
    /// The first write to a page of RAM.
    Touch,
    /// MOV to CR0 that toggles AM, which both makers' KVM intercept.
    Cr,
    /// MOV to DR3.
    Dr,
    /// WBINVD.
    Wbinvd,
    /// INVLPG of a page that is mapped.
    Invlpg,
    /// VMCALL, or VMMCALL on AMD.
    Vmcall,
    /// RDTSC, which KVM lets through.
    Rdtsc,
    /// XSETBV of XCR0 with the value that it has.
    Xsetbv,
    /// Page-table work on one page ([`ptes`]).
    Ptes,
}

/// Names, reasons: one row per workload.
const TABLE: &[(Kind, &str, Reason)] = &[
    (Kind::Cpuid, "cpuid", Reason::CPUID),
    (Kind::Pio, "pio", Reason::IO),
    (Kind::Pin, "pin", Reason::IO),
    (Kind::Mmio, "mmio", Reason::EPT_MISCONFIG),
    (Kind::Hlt, "hlt", Reason::HLT),
    (Kind::Rdmsr, "rdmsr", Reason::RDMSR),
    (Kind::Wrmsr, "wrmsr", Reason::WRMSR),
    (Kind::Outs, "outs", Reason::IO),
    (Kind::Touch, "touch", Reason::EPT_VIOLATION),
    (Kind::Cr, "cr", Reason::CR_ACCESS),
    (Kind::Dr, "dr", Reason::DR_ACCESS),
    (Kind::Wbinvd, "wbinvd", Reason::WBINVD),
    (Kind::Invlpg, "invlpg", Reason::INVLPG),
    (Kind::Vmcall, "vmcall", Reason::VMCALL),
    (Kind::Rdtsc, "rdtsc", Reason::RDTSC),
    (Kind::Xsetbv, "xsetbv", Reason::XSETBV),
    (Kind::Ptes, "ptes", Reason::INVLPG),
];

impl Kind {
    fn row(self) -> &'static (Self, &'static str, Reason) {
        // Every kind has a row (a test looks); were one missing, the first is none of its names.
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }

    /// The workload of this name.
    pub fn named(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The reason of its exits.
    pub fn reason(self) -> Reason {
        self.row().2
    }

    /// Whether the VMM serves it, so that no exit can be finished in the kernel.
    pub const fn is_served_by_vmm(self) -> bool {
        // A hypercall where the VMM has every one passed on: FLAGS says nothing of that elsewhere.
        matches!(
            self,
            Self::Pio | Self::Pin | Self::Mmio | Self::Outs | Self::Vmcall
        )
    }

    /// Which counts are right after `count` repetitions and `strays` more exits.
    pub const fn expected(self, count: u64, strays: u64) -> Expected {
        match self {
            // One exit for each instruction; or for each byte; or for each byte and one more, in
            // which KVM finds that nothing is left to do (kvm_amd and kvm_intel, Linux 6.12).
            Self::Outs => {
                let bytes = count * STRING.len() as u64;
                Expected::OneOf([count, bytes, bytes + count])
            }
            // Only where KVM shadows page tables.
            Self::Invlpg => Expected::Either(0, count),
            Self::Ptes => Expected::Either(0, ptes::FLUSHES * count),
            // Fewer where the host maps large pages or has mapped them before.
            Self::Touch => Expected::UpTo(count),
            Self::Rdtsc => Expected::Exactly(0),
            _ => Expected::Exactly(count + strays),
        }
    }

    /// The other reason of which it has exits of a known number.
    pub const fn besides(self, count: u64) -> Option<(Reason, Expected)> {
        match self {
            Self::Ptes => {
                let switches = ptes::SWITCHES * count + ptes::SWITCHES_BESIDES;
                Some((Reason::CR_ACCESS, Expected::Either(0, switches)))
            }
            _ => None,
        }
    }
}

/// How many exits are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// So many.
    Exactly(u64),
    /// One or the other.
    Either(u64, u64),
    /// One of these.
    OneOf([u64; 3]),
    /// At most so many.
    UpTo(u64),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_row() {
        for (kind, name, _) in TABLE {
            assert_eq!(Kind::named(name), Some(*kind));
            assert_eq!(kind.name(), *name);
        }
        assert_eq!(TABLE.len(), Kind::Ptes as usize + 1);
        assert_eq!(Kind::named("popcnt"), None);
    }
}
