//! Nested against shadow paging: what the same boot costs with each.
//!
//! With nested paging (EPT, NPT) the processor walks the guest's page tables itself, and exits where
//! the host's own lack a page (48, 49). Without it KVM shadows the guest's tables: it must see page
//! faults (0), INVLPG (14) and writes to CR3 (28).
//!
//! A module parameter that was not what one took it for makes such a comparison worthless, and the
//! figures do not look wrong. So nothing is compared before each profile has passed a check of itself.

use super::compare::{
    COMMAND_LINE, Comparison, Difference, PAGING, StepChange, Trend, differences,
};
use super::{Accounts, Profile};
use crate::profile::figures::KERNEL_LEDGER;
use crate::profile::{EndKind, KvmKind};
use exit_abi::milestone;
use exit_abi::reason::Reason;
use serde::Serialize;
use std::collections::BTreeMap;

/// Value of `schema` in the JSON of [`Pairing`].
pub const SCHEMA: &str = "exitvisor-paging";
/// Version of that schema.
pub const VERSION: u32 = 1;

/// AMD's exit code of a nested page fault (APM vol. 2, appendix C: VMEXIT_NPF).
const NESTED_PAGE_FAULT: u64 = 0x400;
/// Reasons that only nested paging has.
const NESTED_FAULTS: [Reason; 2] = [Reason::EPT_VIOLATION, Reason::EPT_MISCONFIG];

/// Who walks the guest's page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Paging {
    /// The processor: EPT, NPT.
    Nested,
    /// KVM, for the processor: shadow page tables.
    Shadow,
}

impl Paging {
    /// Its name, as [`super::Host::paging`] has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nested => "nested",
            Self::Shadow => "shadow",
        }
    }

    /// The other.
    pub fn other(self) -> Self {
        match self {
            Self::Nested => Self::Shadow,
            Self::Shadow => Self::Nested,
        }
    }
}

/// Why a profile says nothing of the paging that it claims.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Void {
    /// It claims neither.
    #[error(
        "it does not say whether paging was nested or shadowed: record it where kvm_amd or kvm_intel runs"
    )]
    Unknown,
    /// It claims what software KVM does.
    #[error(
        "software KVM (kvm_pvm) has neither nested paging nor hardware exits: record it with \
         kvm_amd or kvm_intel"
    )]
    Software,
    /// Nobody saw every exit.
    #[error(
        "it has no kernel ledger, so that nested page faults cannot be ruled out: record it with \
         the rights that the ledger needs"
    )]
    NoLedger,
    /// Exits without a reason could be anything.
    #[error("{0} exits have no reason, and may be nested page faults: record it again")]
    Unattributed(u64),
    /// It is no whole boot.
    #[error("it was cut short ({0}): record it again")]
    CutShort(String),
    /// A claim of shadow paging with nested page faults.
    #[error(
        "it claims shadow paging, and shows {exits} nested page faults ({what}): paging was nested, \
         load the module again with {parameter}=0"
    )]
    NestedFaults {
        /// How many.
        exits: u64,
        /// What shows them.
        what: &'static str,
        /// The module's parameter that switches nested paging.
        parameter: &'static str,
    },
    /// A claim of nested paging with what only shadow paging has.
    #[error(
        "it claims nested paging, and shows {exits} exits for {what}, which only shadow paging \
         has: load the module again with {parameter}=1"
    )]
    ShadowWork {
        /// How many.
        exits: u64,
        /// What shows them.
        what: &'static str,
        /// The module's parameter that switches nested paging.
        parameter: &'static str,
    },
    /// A claim of nested paging without a single nested page fault.
    #[error(
        "it claims nested paging, and shows no nested page fault at all, though no memory was \
         mapped beforehand: record it again"
    )]
    NoFaults,
}

/// The parameter of a KVM's module that switches nested paging.
pub fn parameter(kvm: KvmKind) -> &'static str {
    match kvm {
        KvmKind::Amd => "npt",
        _ => "ept",
    }
}

/// Exits of a reason by the processor, the profiler's own included: what the VMM booked there by
/// itself (MMIO without a ledger) does not count.
fn traced(accounts: &Accounts, reason: Reason) -> u64 {
    let account = accounts.reason(reason.number());
    account
        .filter(|r| r.source == KERNEL_LEDGER)
        .map_or(0, |r| r.exits)
}

/// Exits by a code of the processor's.
fn coded(accounts: &Accounts, code: u64) -> u64 {
    let codes = accounts.codes.iter().filter(|c| c.code == Some(code));
    codes.map(|c| c.exits).fold(0, u64::saturating_add)
}

/// Nested page faults and what shows them, if there are any.
fn nested_faults(accounts: &Accounts, kvm: KvmKind) -> Option<(u64, &'static str)> {
    let codes = match kvm {
        KvmKind::Amd => coded(accounts, NESTED_PAGE_FAULT),
        _ => 0,
    };
    match (NESTED_FAULTS.map(|reason| traced(accounts, reason)), codes) {
        ([0, 0], 0) => None,
        ([0, 0], n) => Some((n, "code 0x400")),
        ([0, n], _) => Some((n, "reason 49")),
        ([n, 0], _) => Some((n, "reason 48")),
        ([n, m], _) => Some((n.saturating_add(m), "reasons 48 and 49")),
    }
}

impl Profile {
    /// Whatever accounts it has: of the run and its boots, of vCPUs and milestones.
    fn every_account(&self) -> impl Iterator<Item = &Accounts> {
        let first = self.milestones.iter().map(|m| &m.accounts);
        let reboots = self.reboots.iter().flat_map(|boot| {
            let milestones = boot.milestones.iter().map(|m| &m.accounts);
            milestones.chain(&boot.vcpus).chain([&boot.total])
        });
        first.chain(&self.vcpus).chain([&self.total]).chain(reboots)
    }

    /// What contradicts the paging that it claims; `None` if nothing does, or it claims none.
    pub fn paging_contradiction(&self) -> Option<Void> {
        let parameter = parameter(self.host.kvm);
        if self.host.kvm == KvmKind::Software {
            return None;
        }
        match self.host.paging.as_str() {
            "shadow" => self
                .every_account()
                .filter_map(|accounts| nested_faults(accounts, self.host.kvm))
                .max_by_key(|(exits, _)| *exits)
                .map(|(exits, what)| Void::NestedFaults {
                    exits,
                    what,
                    parameter,
                }),
            "nested" => {
                let exits = self
                    .every_account()
                    .map(|a| traced(a, Reason::INVLPG))
                    .max();
                let exits = exits.filter(|&n| n > 0)?;
                Some(Void::ShadowWork {
                    exits,
                    what: "INVLPG (14)",
                    parameter,
                })
            }
            _ => None,
        }
    }

    /// The paging that the run had: what it claims, if its own figures bear that out.
    ///
    /// # Errors
    ///
    /// Why they do not, or do not suffice.
    pub fn checked_paging(&self) -> Result<Paging, Void> {
        if self.host.kvm == KvmKind::Software {
            return Err(Void::Software);
        }
        let paging = match self.host.paging.as_str() {
            "nested" => Paging::Nested,
            "shadow" => Paging::Shadow,
            _ => return Err(Void::Unknown),
        };
        if let Some(void) = self.paging_contradiction() {
            return Err(void);
        }
        if !self.has_kernel_ledger() {
            return Err(Void::NoLedger);
        }
        let end = self.first_end();
        if end.cut_short {
            return Err(Void::CutShort(end.detail.clone()));
        }
        let total = &self.total;
        let counted = u128::from(total.total) + u128::from(total.excess);
        let unattributed = counted.saturating_sub(u128::from(total.attributed()));
        // kvm_intel emulates early real mode without an exit, and counts that: nothing hides there.
        if unattributed > 0 && self.host.kvm != KvmKind::Intel {
            let exits = u64::try_from(unattributed).unwrap_or(u64::MAX);
            return Err(Void::Unattributed(exits));
        }
        let faults = NESTED_FAULTS.map(|reason| traced(total, reason));
        if paging == Paging::Nested && faults == [0, 0] && !self.was_mapped_beforehand() {
            return Err(Void::NoFaults);
        }
        Ok(paging)
    }

    /// Whether KVM mapped the guest's memory before the guest ran (`--prefault kvm`). What the VMM
    /// touches (`touch`) is in the host's tables then, but not in those of the guest.
    fn was_mapped_beforehand(&self) -> bool {
        let memory = self.memory.as_ref();
        memory.is_some_and(|memory| memory.prefault == "kvm")
    }
}

/// A figure with each paging.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sides {
    /// With nested paging.
    pub nested: u64,
    /// With shadow paging.
    pub shadow: u64,
}

impl Sides {
    /// How much shadow paging adds.
    pub fn difference(self) -> i128 {
        i128::from(self.shadow) - i128::from(self.nested)
    }

    /// How many times as much it is with shadow paging; `None` if there is nothing to divide by.
    pub fn ratio(self) -> Option<f64> {
        (self.nested > 0).then(|| self.shadow as f64 / self.nested as f64)
    }

    /// What becomes of it with shadow paging.
    pub fn trend(self) -> Trend {
        super::compare::Change {
            before: self.nested,
            after: self.shadow,
        }
        .trend()
    }

    /// The larger one.
    pub fn most(self) -> u64 {
        self.nested.max(self.shadow)
    }
}

impl From<super::compare::Change> for Sides {
    fn from(change: super::compare::Change) -> Self {
        Self {
            nested: change.before,
            shadow: change.after,
        }
    }
}

/// A reason with each paging.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReasonPair {
    /// Basic exit reason.
    pub reason: u8,
    /// Its name.
    pub name: String,
    /// The guest's exits of it.
    pub exits: Sides,
    /// Their cycles, as far as they were timed.
    pub cycles: Sides,
    /// What becomes of the exits with shadow paging.
    pub trend: Trend,
    /// Whether time drives it: a run that takes longer has more of it.
    pub time_driven: bool,
}

/// A step of the boot with each paging.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StepPair {
    /// The milestone's name.
    pub name: String,
    /// Which time this name comes up, from 0.
    pub nth: usize,
    /// The guest's exits that it added.
    pub exits: Sides,
    /// The same by reason, by number; only those that it added.
    pub reasons: BTreeMap<u8, Sides>,
}

/// One boot with each paging.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// What the profile with nested paging is called.
    pub nested: String,
    /// What the profile with shadow paging is called.
    pub shadow: String,
    /// The kernel's command line.
    pub cmdline: String,
    /// The N of `workload=ptes:N`, if there is one such.
    pub pages: Option<u64>,
    /// The guest's exits, all causes.
    pub total: Sides,
    /// The total without what time drives.
    pub fixed: Sides,
    /// The profiler's own exits.
    pub own: Sides,
    /// The guest's cycles; `None` if exits were not timed.
    pub cycles: Option<Sides>,
    /// The workload's exits without those of reasons that time drives; `None` without a workload.
    pub work: Option<Sides>,
    /// Every reason that either has: what shadow paging adds most to first.
    pub reasons: Vec<ReasonPair>,
    /// The steps, in the order of the boot.
    pub steps: Vec<StepPair>,
}

/// Boots with each paging: one pair, or a sweep over the pages of the workload `ptes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pairing {
    /// Always [`SCHEMA`].
    pub schema: &'static str,
    /// Always [`VERSION`].
    pub version: u32,
    /// The KVM's module.
    pub kvm: String,
    /// The host's kernel.
    pub kernel: String,
    /// The host's CPU.
    pub cpu: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Guest memory, bytes.
    pub memory: u64,
    /// The pairs, by pages.
    pub pairs: Vec<Pair>,
}

/// Why profiles are not compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A profile is not what it says.
    #[error("profile {name} is void: {why}")]
    Void {
        /// The file.
        name: String,
        /// Why.
        why: Void,
    },
    /// A boot is there with one paging alone.
    #[error(
        "profile {name} ({} paging) has no counterpart: give one of the same guest and command line, \
         recorded with {} paging", has.name(), has.other().name()
    )]
    Alone {
        /// The file.
        name: String,
        /// What it has.
        has: Paging,
    },
    /// Two profiles differ in more than paging.
    #[error("profiles {a} and {b} differ in more than {but} ({difference}): record both alike")]
    Unlike {
        /// A file.
        a: String,
        /// Another.
        b: String,
        /// What they may differ in.
        but: &'static str,
        /// In what they differ: what, and what each says.
        difference: String,
    },
}

/// Reasons that time drives as a whole: external interrupts, interrupt windows, HLT, the
/// preemption timer.
pub const TIME_DRIVEN: [u8; 4] = [1, 7, 12, 52];

/// The command line with the workload's pages taken out, and their number; `None` unless there is
/// exactly one `ptes:N`.
fn pages(cmdline: &str) -> Option<(String, u64)> {
    let mut pages = None;
    let words = cmdline.split_ascii_whitespace().map(|word| {
        let Some(list) = word.strip_prefix("workload=") else {
            return word.to_owned();
        };
        let parts = list
            .split(',')
            .map(|part| match part.strip_prefix("ptes:") {
                Some(number) => {
                    let number: Option<u64> = number.parse().ok();
                    pages = match (&pages, number) {
                        (None, Some(number)) => Some(Some(number)),
                        _ => Some(None),
                    };
                    "ptes:N"
                }
                None => part,
            });
        format!("workload={}", parts.collect::<Vec<_>>().join(","))
    });
    let pattern = words.collect::<Vec<_>>().join(" ");
    Some((pattern, pages??))
}

/// The first difference that is not one of these.
fn unlike(a: &Profile, b: &Profile, but: &[&str]) -> Option<Difference> {
    let mut differences = differences(a, b);
    let how = |p: &Profile| {
        let end = p.first_end();
        match end.kind {
            EndKind::Exit => format!("exit status {}", end.status),
            _ => end.detail.clone(),
        }
    };
    if how(a) != how(b) {
        differences.push(Difference {
            what: "end".to_owned(),
            was: how(a),
            is: how(b),
        });
    }
    differences
        .into_iter()
        .find(|difference| !but.contains(&difference.what.as_str()))
}

fn refuse(
    (a, first): (&str, &Profile),
    (b, second): (&str, &Profile),
    may_differ: &[&str],
    but: &'static str,
) -> Result<(), Refused> {
    match unlike(first, second, may_differ) {
        None => Ok(()),
        Some(Difference { what, was, is }) => Err(Refused::Unlike {
            a: a.to_owned(),
            b: b.to_owned(),
            but,
            difference: format!("{what}: {was} → {is}"),
        }),
    }
}

impl Pairing {
    /// Checks each profile, and pairs those that differ in paging alone. The names are those of the
    /// files.
    ///
    /// # Errors
    ///
    /// Why a profile is void, or which differ in something else.
    pub fn of(profiles: &[(String, Profile)]) -> Result<Self, Refused> {
        let mut nested = Vec::new();
        let mut shadow = Vec::new();
        for (name, profile) in profiles {
            let checked = profile.checked_paging();
            let void = |why| Refused::Void {
                name: name.clone(),
                why,
            };
            match checked.map_err(void)? {
                Paging::Nested => nested.push((name.as_str(), profile)),
                Paging::Shadow => shadow.push((name.as_str(), profile)),
            }
        }
        let mut pairs = Vec::new();
        let mut first = None;
        for (name, profile) in nested {
            let same =
                |(_, other): &(&str, &Profile)| other.machine.cmdline == profile.machine.cmdline;
            // Of one alone with each paging, a difference says more than that a counterpart is missing.
            let at = match (shadow.iter().position(same), profiles.len()) {
                (None, 2) if !shadow.is_empty() => 0,
                (None, _) => return Err(alone(name, Paging::Nested)),
                (Some(at), _) => at,
            };
            let other = shadow.remove(at);
            refuse((name, profile), other, &[PAGING], "paging")?;
            match first {
                None => first = Some((name, profile)),
                Some(first) => alike_but_pages(first, (name, profile))?,
            }
            pairs.push(Pair::of((name, profile), other));
        }
        if let Some((name, _)) = shadow.first() {
            return Err(alone(name, Paging::Shadow));
        }
        pairs.sort_by_key(|pair| pair.pages);
        let host = first.map(|(_, profile)| profile);
        Ok(Self {
            schema: SCHEMA,
            version: VERSION,
            kvm: host.map_or("", |p| p.host.kvm.module()).to_owned(),
            kernel: host.map_or(String::new(), |p| p.host.kernel.clone()),
            cpu: host.map_or(String::new(), |p| p.host.cpu.clone()),
            cpus: host.map_or(0, |p| p.machine.cpus),
            memory: host.map_or(0, |p| p.machine.memory),
            pairs,
        })
    }
}

fn alone(name: &str, has: Paging) -> Refused {
    Refused::Alone {
        name: name.to_owned(),
        has,
    }
}

/// Whether two pairs are points of one sweep, told by their profiles with nested paging.
fn alike_but_pages(a: (&str, &Profile), b: (&str, &Profile)) -> Result<(), Refused> {
    let but = "the N of workload=ptes:N";
    refuse(a, b, &[COMMAND_LINE], but)?;
    let [one, other] = [a.1, b.1].map(|p| pages(&p.machine.cmdline).map(|(pattern, _)| pattern));
    if one.is_some() && one == other {
        return Ok(());
    }
    let [was, is] = [a.1, b.1].map(|p| p.machine.cmdline.clone());
    Err(Refused::Unlike {
        a: a.0.to_owned(),
        b: b.0.to_owned(),
        but,
        difference: format!("{COMMAND_LINE}: {was} → {is}"),
    })
}

impl Pair {
    /// Puts two profiles side by side that are known to differ in paging alone.
    fn of(nested: (&str, &Profile), shadow: (&str, &Profile)) -> Self {
        let comparison = Comparison::of(nested, shadow);
        let fixed = comparison.fixed.unwrap_or(comparison.total);
        let times = nested.1.times_every_exit() && shadow.1.times_every_exit();
        let mut reasons: Vec<ReasonPair> = comparison
            .reasons
            .into_iter()
            .map(|r| ReasonPair {
                reason: r.reason,
                name: r.name,
                exits: r.exits.into(),
                cycles: r.cycles.into(),
                trend: r.trend,
                time_driven: TIME_DRIVEN.contains(&r.reason),
            })
            .collect();
        reasons.sort_by_key(|r| (-r.exits.difference(), r.reason));
        let sides = [nested.1, shadow.1].map(by_step);
        let steps: Vec<StepPair> = comparison
            .steps
            .into_iter()
            .map(|step| StepPair::of(step, &sides))
            .collect();
        let cmdline = nested.1.machine.cmdline.clone();
        let workload = milestone::name(milestone::WORKLOAD);
        let work = steps.iter().find(|s| Some(s.name.as_str()) == workload);
        Self {
            nested: nested.0.to_owned(),
            shadow: shadow.0.to_owned(),
            pages: pages(&cmdline).map(|(_, pages)| pages),
            cmdline,
            total: comparison.total.into(),
            fixed: fixed.into(),
            own: comparison.own.into(),
            cycles: times.then_some(comparison.cycles.into()),
            work: work.map(StepPair::not_driven_by_time),
            reasons,
            steps,
        }
    }
}

/// New exits by reason.
type New = BTreeMap<u8, u64>;

/// The new exits of each step, by its name and which time that comes up.
fn by_step(profile: &Profile) -> BTreeMap<(String, usize), New> {
    let mut steps = BTreeMap::new();
    let mut times = BTreeMap::<String, usize>::new();
    for step in profile.guest_steps() {
        let nth = times.entry(step.name.to_owned()).or_default();
        let reasons = step.delta.reasons.iter().filter(|r| r.exits > 0);
        let new = reasons.map(|r| (r.reason, r.exits)).collect();
        steps.insert((step.name.to_owned(), *nth), new);
        *nth += 1;
    }
    steps
}

impl StepPair {
    fn of(step: StepChange, sides: &[BTreeMap<(String, usize), New>; 2]) -> Self {
        let key = (step.name, step.nth);
        let [nested, shadow] = sides.each_ref().map(|steps| steps.get(&key));
        let mut reasons = BTreeMap::<u8, Sides>::new();
        for (&reason, &exits) in nested.into_iter().flatten() {
            reasons.entry(reason).or_default().nested = exits;
        }
        for (&reason, &exits) in shadow.into_iter().flatten() {
            reasons.entry(reason).or_default().shadow = exits;
        }
        Self {
            name: key.0,
            nth: key.1,
            exits: step.new_exits.into(),
            reasons,
        }
    }

    /// Its exits of reasons that time does not drive.
    fn not_driven_by_time(&self) -> Sides {
        let mut sides = Sides::default();
        let reasons = self.reasons.iter();
        for (_, exits) in reasons.filter(|(reason, _)| !TIME_DRIVEN.contains(reason)) {
            sides.nested = sides.nested.saturating_add(exits.nested);
            sides.shadow = sides.shadow.saturating_add(exits.shadow);
        }
        sides
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    fn claims(paging: &str, mut profile: Profile) -> Profile {
        profile.host.paging = paging.to_owned();
        profile
    }

    #[test]
    fn figures_bear_a_claim_out() {
        let [nested, shadow] = fixtures::paging();
        assert_eq!(nested.checked_paging(), Ok(Paging::Nested));
        assert_eq!(shadow.checked_paging(), Ok(Paging::Shadow));
        assert_eq!(nested.paging_contradiction(), None);
        assert!(shadow.warnings().is_empty());
    }

    #[test]
    fn shadow_paging_has_no_nested_page_faults() {
        let [nested, shadow] = fixtures::paging();
        let void = claims("shadow", nested.clone())
            .checked_paging()
            .unwrap_err();
        let Void::NestedFaults {
            exits, parameter, ..
        } = void
        else {
            panic!("{void}");
        };
        assert_eq!(parameter, "npt");
        assert!(exits > 0);
        // However much was taken out: the code behind a reason, a milestone, a vCPU tell.
        let mut hidden = claims("shadow", nested.clone());
        let hide =
            |accounts: &mut Accounts| accounts.reasons.retain(|r| ![48, 49].contains(&r.reason));
        hidden
            .milestones
            .iter_mut()
            .for_each(|m| hide(&mut m.accounts));
        hidden.vcpus.iter_mut().for_each(hide);
        hide(&mut hidden.total);
        let void = hidden.checked_paging().unwrap_err();
        assert!(
            matches!(
                void,
                Void::NestedFaults {
                    what: "code 0x400",
                    ..
                }
            ),
            "{void}"
        );
        let mut early = shadow.clone();
        early.milestones[3].accounts = nested.milestones[3].accounts.clone();
        let void = early.checked_paging().unwrap_err();
        assert!(matches!(void, Void::NestedFaults { .. }), "{void}");
        assert!(early.warnings().iter().any(|w| w.contains("void")));
    }

    #[test]
    fn nested_paging_has_faults_and_no_invlpg() {
        let [nested, shadow] = fixtures::paging();
        let void = claims("nested", shadow).checked_paging().unwrap_err();
        assert!(matches!(void, Void::ShadowWork { .. }), "{void}");
        let mut without = nested;
        let faults = |r: &&mut crate::profile::ReasonAccount| [48, 49].contains(&r.reason);
        // Booked elsewhere, so that all adds up.
        without
            .total
            .reasons
            .iter_mut()
            .filter(faults)
            .for_each(|r| {
                r.source = super::super::figures::KVM_RUN.to_owned();
            });
        assert_eq!(without.checked_paging(), Err(Void::NoFaults));
        for (prefault, checked) in [("touch", Err(Void::NoFaults)), ("kvm", Ok(Paging::Nested))] {
            let memory = crate::profile::MemoryAccount {
                prefault: prefault.to_owned(),
                ..Default::default()
            };
            without.memory = Some(memory);
            assert_eq!(without.checked_paging(), checked, "{prefault}");
        }
    }

    #[test]
    fn what_says_nothing_is_void() {
        let [nested, shadow] = fixtures::paging();
        for paging in ["unknown", "", "Nested"] {
            let void = claims(paging, nested.clone()).checked_paging();
            assert_eq!(void, Err(Void::Unknown), "{paging}");
        }
        assert_eq!(fixtures::software().checked_paging(), Err(Void::Software));
        let mut blind = shadow.clone();
        blind.sources.retain(|s| s.name != KERNEL_LEDGER);
        assert_eq!(blind.checked_paging(), Err(Void::NoLedger));
        let mut open = shadow.clone();
        open.total.total += 7;
        assert_eq!(open.checked_paging(), Err(Void::Unattributed(7)));
        let mut cut = shadow;
        cut.end.cut_short = true;
        assert!(matches!(cut.checked_paging(), Err(Void::CutShort(_))));
        for void in [
            Void::Unknown,
            Void::Software,
            Void::NoLedger,
            Void::NoFaults,
        ] {
            let line = void.to_string();
            assert!(!line.contains('\n') && line.contains(": "), "{line}");
        }
    }

    fn named(profiles: &[&Profile]) -> Vec<(String, Profile)> {
        let profiles = profiles.iter().enumerate();
        profiles
            .map(|(i, &p)| (format!("p{i}.json"), p.clone()))
            .collect()
    }

    #[test]
    fn a_pair_in_any_order() {
        let [nested, shadow] = fixtures::paging();
        let pairing = Pairing::of(&named(&[&shadow, &nested])).unwrap();
        let [pair] = pairing.pairs.as_slice() else {
            panic!("{pairing:?}")
        };
        assert_eq!(
            (pair.nested.as_str(), pair.shadow.as_str()),
            ("p1.json", "p0.json")
        );
        let trend = |reason| {
            pair.reasons
                .iter()
                .find(|r| r.reason == reason)
                .map(|r| r.trend)
        };
        assert_eq!(trend(14), Some(Trend::Appeared));
        assert_eq!(trend(48), Some(Trend::Vanished));
        assert_eq!(pair.pages, Some(64));
        let work = pair.work.unwrap();
        assert_eq!(
            (work.nested, work.shadow),
            (1, 603),
            "without what time drives"
        );
        let sum: u64 = pair.steps.iter().map(|s| s.exits.shadow).sum();
        assert_eq!(sum, pair.total.shadow);
    }

    #[test]
    fn a_sweep_is_sorted_and_differs_in_pages_alone() {
        let [nested, shadow] = fixtures::paging();
        let with = |profile: &Profile, cmdline: &str| {
            let mut profile = profile.clone();
            profile.machine.cmdline = cmdline.to_owned();
            profile
        };
        let line = |n| format!("log=off workload=ptes:{n}");
        let all: Vec<Profile> = [256, 4, 64]
            .iter()
            .flat_map(|n| [with(&nested, &line(n)), with(&shadow, &line(n))])
            .collect();
        let pairing = Pairing::of(&named(&all.iter().collect::<Vec<_>>())).unwrap();
        let pages: Vec<_> = pairing.pairs.iter().map(|p| p.pages).collect();
        assert_eq!(pages, [Some(4), Some(64), Some(256)]);
        let mut odd = all.clone();
        for profile in &mut odd[4..] {
            profile.machine.cmdline = "log=each workload=ptes:64".to_owned();
        }
        let refused = Pairing::of(&named(&odd.iter().collect::<Vec<_>>())).unwrap_err();
        assert!(
            refused.to_string().contains("the N of workload=ptes:N"),
            "{refused}"
        );
        let refused = Pairing::of(&named(&all[..3].iter().collect::<Vec<_>>())).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("p2.json (nested paging) has no"),
            "{refused}"
        );
    }

    #[test]
    fn what_differs_in_more_than_paging_is_refused() {
        let [nested, shadow] = fixtures::paging();
        type Change = fn(&mut Profile);
        let changes: [(Change, &str); 9] = [
            (|p| p.machine.images[0].sha256 = "0".repeat(64), "SHA-256"),
            (
                |p| p.machine.cmdline = "log=off".to_owned(),
                "command line: ",
            ),
            (|p| p.machine.memory *= 2, "memory: "),
            (|p| p.machine.cpus = 2, "vCPUs: "),
            (
                |p| p.memory = Some(Default::default()),
                "pages and prefault: ",
            ),
            (|p| p.host.kernel = "6.1.0".to_owned(), "host kernel: "),
            (|p| p.host.kvm = KvmKind::Intel, "KVM: "),
            (|p| p.end.status = 9, "end: exit status 0 → exit status 9"),
            (
                |p| p.sources[2].level = Some("counts".to_owned()),
                "level of",
            ),
        ];
        for (change, says) in changes {
            let mut other = shadow.clone();
            change(&mut other);
            let refused = Pairing::of(&named(&[&nested, &other])).unwrap_err();
            let line = refused.to_string();
            assert!(line.contains(says) && !line.contains('\n'), "{line}");
            assert!(line.contains("p0.json and p1.json"), "{line}");
        }
    }

    #[test]
    fn pages_of_a_command_line() {
        let of = |cmdline| pages(cmdline);
        let pattern = "a workload=pio:5,ptes:N b".to_owned();
        assert_eq!(of("a workload=pio:5,ptes:16  b"), Some((pattern, 16)));
        for line in [
            "",
            "workload=pio:5",
            "ptes:16",
            "workload=ptes:16,ptes:2",
            "workload=ptes:1 workload=ptes:2",
            "workload=ptes:x",
            "workload=ptes:99999999999999999999",
        ] {
            assert_eq!(of(line), None, "{line}");
        }
    }
}
