//! Where the time of exits goes: KVM, the VMM, and HLT.

use super::figures::{KERNEL_LEDGER, saturate};
use super::{Accounts, Profile};

/// Cycles that the guest's exits took, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeSplit {
    /// In KVM itself; `None` unless the kernel ledger timed the exits.
    pub kvm: Option<u64>,
    /// In the VMM: from KVM_RUN's return to the next KVM_RUN.
    pub vmm: u64,
    /// Waiting in HLT, as KVM's statistics have it.
    pub blocked: u64,
    /// Of the profiler's own exits, contained in none of the above.
    pub own: u64,
}

impl TimeSplit {
    /// All that is known of.
    pub fn all(&self) -> u64 {
        let parts = [self.kvm.unwrap_or(0), self.vmm, self.blocked];
        saturate(parts.iter().map(|&p| u128::from(p)).sum())
    }
}

impl Profile {
    /// Whether cycles are those from the exit to the next entry, and not only those in the VMM.
    pub fn times_every_exit(&self) -> bool {
        self.has_kernel_ledger() && self.ledger_level() != Some("counts")
    }

    /// How much the kernel ledger kept, if it served and says so.
    pub fn ledger_level(&self) -> Option<&str> {
        let source = self.sources.iter().find(|s| s.name == KERNEL_LEDGER);
        source.filter(|s| s.available)?.level.as_deref()
    }

    /// Where the time of these accounts' exits goes. `None` if nothing was timed, or if the whole
    /// is known and the VMM's part is not.
    pub fn time_split(&self, accounts: &Accounts) -> Option<TimeSplit> {
        let vmm = accounts.vmm_cycles.saturating_sub(accounts.own_vmm_cycles);
        let blocked = accounts.blocked_cycles;
        if self.times_every_exit() {
            let known = accounts.vmm_cycles > 0 && accounts.guest_cycles() > 0;
            let outside = vmm.saturating_add(blocked);
            return known.then(|| TimeSplit {
                kvm: Some(accounts.guest_cycles().saturating_sub(outside)),
                vmm,
                blocked,
                own: accounts.own_cycles(),
            });
        }
        // KVM_RUN's own times are the VMM's, too: profiles of version 1 have no others.
        let (vmm, own) = match accounts.vmm_cycles {
            0 => (accounts.guest_cycles(), accounts.own_cycles()),
            _ => (vmm, accounts.own_vmm_cycles),
        };
        (vmm > 0 || blocked > 0).then_some(TimeSplit {
            kvm: None,
            vmm,
            blocked,
            own,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;

    #[test]
    fn it_adds_up() {
        let profile = fixtures::ledger();
        let total = &profile.total;
        let split = profile.time_split(total).unwrap();
        assert_eq!(split.all(), total.guest_cycles());
        assert_eq!(split.vmm, total.vmm_cycles - total.own_vmm_cycles);
        assert_eq!(split.blocked, total.blocked_cycles);
        assert_eq!(split.own, total.own_cycles());
    }

    #[test]
    fn parts_that_exceed_the_whole_leave_nothing_for_kvm() {
        let mut profile = fixtures::ledger();
        profile.total.blocked_cycles = u64::MAX;
        let split = profile.time_split(&profile.total).unwrap();
        assert_eq!(split.kvm, Some(0));
    }

    #[test]
    fn without_the_ledgers_times_only_the_vmms_part_is_known() {
        let profile = fixtures::software();
        let split = profile.time_split(&profile.total).unwrap();
        assert_eq!((split.kvm, split.vmm), (None, profile.total.guest_cycles()));
        let profile = fixtures::intel();
        assert_eq!(profile.ledger_level(), Some("counts"));
        assert_eq!(profile.time_split(&profile.total).unwrap().kvm, None);
        let nothing = fixtures::zero();
        assert_eq!(nothing.time_split(&nothing.total), None);
    }

    #[test]
    fn a_whole_without_the_vmms_part_is_not_split() {
        let mut profile = fixtures::ledger();
        profile.total.vmm_cycles = 0;
        profile.total.own_vmm_cycles = 0;
        assert_eq!(profile.time_split(&profile.total), None);
    }
}
