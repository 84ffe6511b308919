//! The *fixed* count: the guest's exits without those that time drives.
//!
//! A guest that waits longer, on a slower host or under a faster tick, takes more timer
//! interrupts, halts and end-of-interrupts; what its code asks for stays the same. So boots are
//! compared by this count. It needs the kernel ledger: every exit with its reason, and the indices
//! behind WRMSR and OUT.

use super::{Accounts, Ask, AskKind, Profile};
use exit_abi::reason::Reason;

/// What time drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// External interrupts (1): the host's timer, and devices.
    ExternalInterrupt,
    /// Interrupt windows (7): the guest could not take an interrupt yet.
    InterruptWindow,
    /// HLT (12): the guest waits.
    Hlt,
    /// The VMX-preemption timer (52), by which KVM keeps the APIC timer.
    PreemptionTimer,
    /// WRMSR to IA32_TSC_DEADLINE: the next tick is ordered.
    TscDeadline,
    /// WRMSR to the x2APIC's EOI register.
    Eoi,
    /// OUT to the 8259s: end of interrupt, and masks.
    Pic,
    /// OUT to the 8254.
    Pit,
}

impl Driver {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExternalInterrupt => "ext. interrupt",
            Self::InterruptWindow => "interrupt window",
            Self::Hlt => "HLT",
            Self::PreemptionTimer => "preemption timer",
            Self::TscDeadline => "TSC deadline",
            Self::Eoi => "EOI",
            Self::Pic => "8259",
            Self::Pit => "8254",
        }
    }
}

/// Reasons that time drives as a whole: SDM vol. 3D, appendix C.
const REASONS: [(Driver, u8); 4] = [
    (Driver::ExternalInterrupt, 1),
    (Driver::InterruptWindow, 7),
    (Driver::Hlt, 12),
    (Driver::PreemptionTimer, 52),
];

/// Those of one reason that are told apart by what they ask for. MSRs: SDM vol. 4, table 2-2;
/// ports: 8259A at 0x20 and 0xA0, 8254 at 0x40, as the PC/AT has them.
const ASKS: [(Driver, Reason, AskKind, &[u64]); 4] = [
    (
        Driver::TscDeadline,
        Reason::WRMSR,
        AskKind::MsrWrite,
        &[0x6E0],
    ),
    (Driver::Eoi, Reason::WRMSR, AskKind::MsrWrite, &[0x80B]),
    (
        Driver::Pic,
        Reason::IO,
        AskKind::PortOut,
        &[0x20, 0x21, 0xA0, 0xA1],
    ),
    (
        Driver::Pit,
        Reason::IO,
        AskKind::PortOut,
        &[0x40, 0x41, 0x42, 0x43],
    ),
];

/// What drives the exits that ask for this; `None` if time does not.
pub fn driver(ask: &Ask) -> Option<Driver> {
    let mut asks = ASKS.iter();
    let row = asks.find(|(_, _, kind, indices)| *kind == ask.kind && indices.contains(&ask.index));
    row.map(|(driver, ..)| *driver)
}

/// The fixed count, and what was taken from the total to get it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// The guest's exits, all causes.
    pub total: u64,
    /// Those that time drives, by what does; only those that are not zero, largest first.
    pub driven: Vec<(Driver, u64)>,
    /// The guest's WRMSR exits whose index is not known (there was no room for it): they count
    /// as fixed, and some may not be.
    pub unknown: u64,
}

impl Fixed {
    /// Exits that time drives.
    pub fn time_driven(&self) -> u64 {
        let sum = self.driven.iter().map(|&(_, exits)| u128::from(exits));
        super::figures::saturate(sum.sum())
    }

    /// The fixed count. Never more than the total, never less than nothing.
    pub fn count(&self) -> u64 {
        self.total.saturating_sub(self.time_driven())
    }
}

impl Accounts {
    /// The fixed count, as far as these accounts tell: whether they tell enough is for
    /// [`Profile::fixed`] to say.
    ///
    /// Asked-for indices do not tell the profiler's own from the guest's, so they never take more
    /// than the guest has exits of their reason.
    fn fixed(&self) -> Fixed {
        let guest = |number| self.reason(number).map_or(0, |r| r.guest_exits());
        let reasons = REASONS.map(|(driver, number)| (driver, guest(number)));
        let mut left = [Reason::WRMSR, Reason::IO].map(|r| (r, guest(r.number())));
        let asks = ASKS.map(|(driver, reason, kind, indices)| {
            let asked = self.asked(|a| a.kind == kind && indices.contains(&a.index));
            let room = left.iter_mut().find(|(of, _)| *of == reason);
            let taken = room.map_or(0, |(_, room)| {
                let taken = asked.min(*room);
                *room -= taken;
                taken
            });
            (driver, taken)
        });
        let mut driven: Vec<_> = reasons.into_iter().chain(asks).collect();
        driven.retain(|&(_, exits)| exits > 0);
        driven.sort_by_key(|&(_, exits)| std::cmp::Reverse(exits));
        let named = self.asked(|a| a.kind == AskKind::MsrWrite);
        Fixed {
            total: self.guest_total(),
            driven,
            unknown: guest(Reason::WRMSR.number()).saturating_sub(named),
        }
    }

    /// How often something of this kind was asked for.
    fn asked(&self, of: impl Fn(&Ask) -> bool) -> u64 {
        let counts = self.asks.iter().filter(|a| of(a));
        super::figures::saturate(counts.map(|a| u128::from(a.count)).sum())
    }
}

impl Profile {
    /// The fixed count of some accounts of this profile. `None` without the kernel ledger: some
    /// exits have no known reason, so nobody can say what drives them.
    pub fn fixed(&self, accounts: &Accounts) -> Option<Fixed> {
        self.has_kernel_ledger().then(|| accounts.fixed())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;
    use proptest::prelude::*;

    fn ask(kind: AskKind, index: u64, count: u64) -> Ask {
        Ask { kind, index, count }
    }

    #[test]
    fn what_time_drives_is_taken_off() {
        let bookings = [
            (1, 400, 0, 1),
            (10, 700, 0, 1),
            (12, 310, 10, 1),
            (30, 100, 40, 1),
            (32, 400, 0, 1),
        ];
        let mut accounts = fixtures::accounts(1_910, &bookings);
        accounts.asks = vec![
            ask(AskKind::MsrWrite, 0x10, 91),
            ask(AskKind::MsrWrite, 0x6E0, 250),
            ask(AskKind::MsrWrite, 0x80B, 59),
            // Reads of the same indices, and other directions, drive nothing.
            ask(AskKind::MsrRead, 0x6E0, 1_000),
            ask(AskKind::PortIn, 0x40, 1_000),
            ask(AskKind::PortOut, 0x20, 7),
            ask(AskKind::PortOut, 0xA1, 1),
            ask(AskKind::PortOut, 0x43, 5),
            ask(AskKind::PortOut, 0x3F8, 20),
        ];
        let fixed = accounts.fixed();
        assert_eq!(fixed.total, 1_860, "without the profiler's own");
        let names: Vec<_> = fixed.driven.iter().map(|(d, n)| (d.name(), *n)).collect();
        assert_eq!(
            names,
            [
                ("ext. interrupt", 400),
                ("HLT", 300),
                ("TSC deadline", 250),
                ("EOI", 59),
                ("8259", 8),
                ("8254", 5)
            ]
        );
        assert_eq!(fixed.time_driven(), 1_022);
        assert_eq!(fixed.count(), 838);
        assert_eq!(fixed.unknown, 0);
    }

    #[test]
    fn no_more_is_taken_than_the_guest_has() {
        let mut accounts = fixtures::accounts(30, &[(30, 12, 10, 1), (32, 18, 0, 1)]);
        accounts.asks = vec![
            ask(AskKind::MsrWrite, 0x6E0, 11),
            ask(AskKind::MsrWrite, 0x80B, 50),
            ask(AskKind::PortOut, 0x20, 5),
        ];
        let fixed = accounts.fixed();
        assert_eq!(
            fixed.driven,
            [
                (Driver::TscDeadline, 11),
                (Driver::Eoi, 7),
                (Driver::Pic, 2)
            ]
        );
        assert_eq!(fixed.count(), 0);
    }

    #[test]
    fn without_the_kernel_ledger_it_is_not_known() {
        let known = |p: &Profile| p.fixed(&p.total).is_some();
        assert!(known(&fixtures::ledger()) && known(&fixtures::intel()));
        assert!(!known(&fixtures::software()) && !known(&fixtures::emulated()));
    }

    #[test]
    fn what_has_no_index_is_told() {
        let mut accounts = fixtures::accounts(9, &[(32, 9, 0, 1)]);
        accounts.asks = vec![ask(AskKind::MsrWrite, 0x6E0, 7)];
        accounts.asks_dropped = 2;
        assert_eq!((accounts.fixed().unknown, accounts.fixed().count()), (2, 2));
    }

    proptest! {
        #[test]
        fn it_is_part_of_the_total(profile in fixtures::any_profile()) {
            let fixed = profile.total.fixed();
            prop_assert!(fixed.count() <= profile.total.guest_total());
        }
    }
}
