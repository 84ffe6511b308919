//! What the accounts of every profile must be, whatever was run; and differences between them.

use std::collections::BTreeMap;

use exitvisor::profile::culprits::{By, Culprits};
use exitvisor::profile::{Accounts, Histogram, KvmKind, Profile};

/// Exits that depend on time, not on what the guest does: external interrupt, interrupt window,
/// preemption timer.
pub const TIME_DRIVEN: [u8; 3] = [1, 7, 52];

/// The guest touches what the host has not mapped yet.
pub const TOUCH: u8 = 48;

/// How often it may, beyond what it was asked to: the host maps memory in small pages, or in large.
pub const FEW: u64 = 8;

/// The name of the source that knows every exit.
pub const KERNEL: &str = "kernel ledger";

/// Whether KVM shadows the guest's page tables: no nested paging, no EPT.
pub fn is_shadowed(profile: &Profile) -> bool {
    profile.host.paging == "shadow"
}

/// Whether KVM traced every exit of this run to the kernel ledger.
pub fn has_ledger(profile: &Profile) -> bool {
    let mut sources = profile.sources.iter();
    profile.host.kvm != KvmKind::Software && sources.any(|s| s.name == KERNEL && s.available)
}

/// How much the ledger kept; `None` where there is none.
pub fn level(profile: &Profile) -> Option<&str> {
    let source = profile.sources.iter().find(|s| s.name == KERNEL)?;
    source.level.as_deref()
}

/// kvm_intel without unrestricted guest emulates while the guest's state is invalid, and counts
/// each pass as an exit that is none.
fn counts_passes(profile: &Profile) -> bool {
    let parameter = "/sys/module/kvm_intel/parameters/unrestricted_guest";
    profile.host.kvm == KvmKind::Intel
        && std::fs::read_to_string(parameter).is_ok_and(|value| value.trim() == "N")
}

/// Checks that the accounts are closed, in runs with a kernel ledger: no exit that KVM's own
/// statistics have is missing or counted twice, on no vCPU and at no step.
#[track_caller]
pub fn check_closed(profile: &Profile) {
    if !has_ledger(profile) {
        return;
    }
    let passes = counts_passes(profile);
    check_boot(&profile.total, &profile.vcpus, &profile.histograms, passes);
    for boot in &profile.reboots {
        check_boot(&boot.total, &boot.vcpus, &boot.histograms, passes);
    }
    // Where other vCPUs run on while the sources are read, one after the other, they differ.
    if profile.machine.cpus == 1 {
        for milestone in &profile.milestones {
            check_sums(&milestone.accounts, &milestone.name, passes);
        }
    }
    check_culprits(profile);
    if level(profile) != Some("counts") {
        for vcpu in profile.vcpus.iter().filter(|vcpu| vcpu.other == 0) {
            let timed: u64 = vcpu.reasons.iter().map(|r| r.timed).sum();
            let exits: u64 = vcpu.reasons.iter().map(|r| r.exits).sum();
            // The last exit has no entry after it.
            assert_eq!(timed, exits.saturating_sub(1), "timed: {vcpu:#?}");
        }
    }
}

/// Checks that those who caused the exits of a reason add up to them: in the whole boot, and on one vCPU
/// at each of its steps.
#[track_caller]
pub fn check_culprits(profile: &Profile) {
    let check = |culprits: &Culprits<'_>, what: &str| {
        for group in culprits.groups(By::Reason) {
            let named: u64 = group.rows.iter().map(|row| row.tally.exits).sum();
            assert_eq!(
                named + group.no_room + group.not_told,
                group.exits,
                "{what}: who caused exits of {:?}: {group:#?}",
                group.reason
            );
        }
    };
    let whole = profile.culprits();
    assert_eq!(
        whole.is_some(),
        profile.total.total > 0,
        "there are culprits"
    );
    if let Some(culprits) = &whole {
        check(culprits, "total");
    }
    if profile.machine.cpus == 1 {
        for (name, culprits) in profile.culprits_by_step() {
            if let Some(culprits) = &culprits {
                check(culprits, &name);
            }
        }
    }
    for boot in &profile.reboots {
        // One that was ended before it began has none.
        match boot.culprits() {
            Some(culprits) => check(&culprits, "a reboot"),
            None => assert_eq!(boot.total.total, 0, "culprits of a reboot"),
        }
    }
}

#[track_caller]
fn check_boot(total: &Accounts, vcpus: &[Accounts], histograms: &[Histogram], passes: bool) {
    check_sums(total, "total", passes);
    for vcpu in vcpus {
        check_sums(vcpu, "a vCPU", passes);
    }
    let sum: u64 = vcpus.iter().map(|vcpu| vcpu.total).sum();
    assert_eq!(sum, total.total, "the vCPUs add up");
    for histogram in histograms {
        let timed = total.reason(histogram.reason).map_or(0, |r| r.timed);
        let in_buckets: u64 = histogram.buckets.iter().sum();
        assert_eq!(
            in_buckets, timed,
            "histogram of reason {}",
            histogram.reason
        );
    }
}

#[track_caller]
fn check_sums(accounts: &Accounts, what: &str, passes: bool) {
    let residual = accounts.residual + accounts.own_residual;
    assert!(
        passes || residual == 0,
        "{what}: a residual of {residual}: {accounts:#?}"
    );
    assert_eq!(accounts.excess, 0, "{what}: excess: {accounts:#?}");
    let reasons: u64 = accounts.reasons.iter().map(|r| r.exits).sum();
    assert_eq!(
        reasons + accounts.other + residual,
        accounts.total,
        "{what}: Σ reasons = KVM's exits: {accounts:#?}"
    );
    let mut by_reason = BTreeMap::<Option<u8>, u64>::new();
    for code in &accounts.codes {
        *by_reason.entry(code.reason).or_default() += code.exits;
    }
    let other = by_reason.remove(&None).unwrap_or(0);
    assert_eq!(other, accounts.other, "{what}: codes without a reason");
    let reasons = accounts.reasons.iter().map(|r| (Some(r.reason), r.exits));
    assert_eq!(
        by_reason,
        reasons.collect(),
        "{what}: codes and reasons tell the same"
    );
    for r in &accounts.reasons {
        assert_eq!(r.source, KERNEL, "{what}: reason {}", r.reason);
    }
}

/// The guest's exits by reason; where hardware exits cannot be traced, KVM's emulated events.
pub fn of_guest(accounts: &Accounts) -> BTreeMap<u8, u64> {
    let exits = accounts.reasons.iter().map(|r| (r.reason, r.exits - r.own));
    let events = accounts
        .emulated
        .iter()
        .map(|e| (e.reason, e.events - e.own));
    if accounts.emulated.is_empty() {
        exits.filter(|(_, n)| *n > 0).collect()
    } else {
        events.filter(|(_, n)| *n > 0).collect()
    }
}

/// The accounts at a milestone.
#[track_caller]
pub fn at<'p>(profile: &'p Profile, name: &str) -> &'p Accounts {
    let mut milestones = profile.milestones.iter();
    match milestones.find(|m| m.name == name) {
        Some(milestone) => &milestone.accounts,
        None => panic!("no milestone {name}: {:?}", profile.milestones),
    }
}

/// By how much the guest's exits (or events) grew from one milestone to another, by reason, without
/// those that depend on time, and without first touches of RAM (48): how many of these there are
/// depends on how the host maps memory. Where page tables are shadowed, these are page faults (0).
#[track_caller]
pub fn grown(profile: &Profile, from: &str, to: &str) -> BTreeMap<u8, u64> {
    let (before, after) = (of_guest(at(profile, from)), of_guest(at(profile, to)));
    let mut grown = after;
    for (reason, n) in before {
        // What shrinks is no count: fail.
        *grown.entry(reason).or_default() -= n;
    }
    let faults = if is_shadowed(profile) { 0 } else { TOUCH };
    grown.retain(|reason, n| {
        *n > 0 && !TIME_DRIVEN.contains(reason) && ![TOUCH, faults].contains(reason)
    });
    grown
}

/// By how much the guest's first touches grew from one milestone to another; on Intel's hardware its
/// accesses to the APIC too.
#[track_caller]
pub fn touched(profile: &Profile, from: &str, to: &str) -> u64 {
    let at = |name| {
        of_guest(at(profile, name))
            .get(&TOUCH)
            .copied()
            .unwrap_or(0)
    };
    at(to) - at(from)
}
