//! Comparison: what grew, shrank, appeared or vanished between two boots, and whether it may.

use super::limit::{Growth, Limits, Scope};
use super::runs::{Key, keyed, merged};
use super::{MemoryAccount, Profile, ReasonAccount};
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Value of `schema` in a comparison's JSON.
pub const SCHEMA: &str = "exitvisor-comparison";
/// Version of that schema.
pub const VERSION: u32 = 2;

/// A figure in two profiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Change {
    /// In the first profile.
    pub before: u64,
    /// In the second profile.
    pub after: u64,
}

/// What became of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trend {
    /// It is the same.
    Same,
    /// It grew.
    Grew,
    /// It shrank.
    Shrank,
    /// It was 0.
    Appeared,
    /// It is 0.
    Vanished,
}

impl Change {
    /// How much was added.
    pub fn difference(&self) -> i128 {
        i128::from(self.after) - i128::from(self.before)
    }

    /// How much was added, as a share of what there was; `None` if there was nothing.
    pub fn relative(&self) -> Option<f64> {
        (self.before > 0).then(|| self.difference() as f64 / self.before as f64)
    }

    /// What became of it.
    pub fn trend(&self) -> Trend {
        match (self.before, self.after) {
            (a, b) if a == b => Trend::Same,
            (0, _) => Trend::Appeared,
            (_, 0) => Trend::Vanished,
            (a, b) if a < b => Trend::Grew,
            _ => Trend::Shrank,
        }
    }
}

/// A reason in two profiles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReasonChange {
    /// Basic exit reason.
    pub reason: u8,
    /// Its name.
    pub name: String,
    /// The guest's exits of it.
    pub exits: Change,
    /// Their cycles, as far as they were timed.
    pub cycles: Change,
    /// What became of the exits.
    pub trend: Trend,
}

/// A step in two profiles. A step that one of them lacks counts there as 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StepChange {
    /// The milestone's name.
    pub name: String,
    /// Which time this name comes up, from 0.
    pub nth: usize,
    /// Whether the first profile has it.
    pub in_before: bool,
    /// Whether the second profile has it.
    pub in_after: bool,
    /// The guest's exits that it added.
    pub new_exits: Change,
}

/// Two profiles side by side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// Always [`SCHEMA`].
    pub schema: &'static str,
    /// Always [`VERSION`].
    pub version: u32,
    /// What the first profile is called.
    pub before: String,
    /// What the second profile is called.
    pub after: String,
    /// Why the two are not alike: one line each. Empty if they are.
    pub caveats: Vec<String>,
    /// The guest's exits, all causes.
    pub total: Change,
    /// The total without what time drives; `None` unless both have the kernel ledger.
    pub fixed: Option<Change>,
    /// The guest's cycles.
    pub cycles: Change,
    /// Exits whose reason no source shows.
    pub residual: Change,
    /// Exits without a basic exit reason.
    pub other: Change,
    /// The profiler's own exits.
    pub own: Change,
    /// Every reason that either has: the largest change of exits first, then of cycles.
    pub reasons: Vec<ReasonChange>,
    /// The steps, in the order of the boot.
    pub steps: Vec<StepChange>,
}

/// Something that grew by more than its limit, or has one and cannot be judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The reason; `None` for the total and the fixed count.
    pub reason: Option<u8>,
    /// Its name, or "total" or "fixed".
    pub name: String,
    /// The guest's exits; `None` if one of the profiles does not tell.
    pub exits: Option<Change>,
    /// By how much they may grow.
    #[serde(serialize_with = "as_text")]
    pub allowed: Growth,
}

fn as_text<S: serde::Serializer>(growth: &Growth, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(growth)
}

impl Comparison {
    /// Compares a profile with an earlier one; the names are those of the files.
    pub fn of(before: (&str, &Profile), after: (&str, &Profile)) -> Self {
        let ((name_a, a), (name_b, b)) = (before, after);
        let change = |of: fn(&Profile) -> u64| Change {
            before: of(a),
            after: of(b),
        };
        Self {
            schema: SCHEMA,
            version: VERSION,
            before: name_a.to_owned(),
            after: name_b.to_owned(),
            caveats: caveats(a, b),
            total: change(|p| p.total.guest_total()),
            fixed: fixed(a, b),
            cycles: change(|p| p.total.guest_cycles()),
            residual: change(|p| p.total.residual),
            other: change(|p| p.total.other),
            own: change(|p| p.total.own()),
            reasons: reasons(a, b),
            steps: steps(a, b),
        }
    }

    /// What grew by more than its limit: the total first, the fixed count, then reasons as in the
    /// comparison. A limit for the fixed count is not kept where there is none: what cannot be
    /// judged must not pass.
    pub fn violations(&self, limits: &Limits) -> Vec<Violation> {
        let total = (Scope::Total, "total", Some(self.total));
        let fixed = (Scope::Fixed, "fixed", self.fixed);
        let reasons = self
            .reasons
            .iter()
            .map(|r| (Scope::Reason(r.reason), r.name.as_str(), Some(r.exits)));
        [total, fixed]
            .into_iter()
            .chain(reasons)
            .filter_map(|(scope, name, exits)| {
                let allowed = limits.growth(scope)?;
                let fits = exits.is_some_and(|e| allowed.allows(e.before, e.after));
                (!fits).then(|| Violation {
                    reason: match scope {
                        Scope::Reason(reason) => Some(reason),
                        _ => None,
                    },
                    name: name.to_owned(),
                    exits,
                    allowed,
                })
            })
            .collect()
    }
}

fn fixed(a: &Profile, b: &Profile) -> Option<Change> {
    Some(Change {
        before: a.fixed(&a.total)?.count(),
        after: b.fixed(&b.total)?.count(),
    })
}

fn reasons(a: &Profile, b: &Profile) -> Vec<ReasonChange> {
    let accounts = a.total.reasons.iter().chain(&b.total.reasons);
    let numbers: BTreeSet<u8> = accounts.map(|r| r.reason).collect();
    let mut changes: Vec<ReasonChange> = numbers
        .into_iter()
        .map(|reason| {
            let (was, is) = (a.total.reason(reason), b.total.reason(reason));
            let change = |of: fn(&ReasonAccount) -> u64| Change {
                before: was.map_or(0, of),
                after: is.map_or(0, of),
            };
            let exits = change(ReasonAccount::guest_exits);
            let name = if is.is_some() { b } else { a }
                .reason_name(reason)
                .to_owned();
            let cycles = change(ReasonAccount::guest_cycles);
            ReasonChange {
                reason,
                name,
                exits,
                cycles,
                trend: exits.trend(),
            }
        })
        .filter(|r| r.exits != Change::default())
        .collect();
    let size = |change: &Change| Reverse(change.difference().unsigned_abs());
    changes.sort_by_key(|r| (size(&r.exits), size(&r.cycles), r.reason));
    changes
}

fn steps(a: &Profile, b: &Profile) -> Vec<StepChange> {
    let runs = [keyed(a), keyed(b)];
    let [was, is] = runs.each_ref().map(|run| {
        run.iter()
            .map(|(key, _, new)| (key, *new))
            .collect::<BTreeMap<&Key, u64>>()
    });
    merged(
        runs.iter()
            .map(|run| run.iter().map(|(key, ..)| key).collect()),
    )
    .into_iter()
    .map(|key| {
        let (before, after) = (was.get(key).copied(), is.get(key).copied());
        StepChange {
            name: key.0.clone(),
            nth: key.1,
            in_before: before.is_some(),
            in_after: after.is_some(),
            new_exits: Change {
                before: before.unwrap_or(0),
                after: after.unwrap_or(0),
            },
        }
    })
    .collect()
}

fn images(profile: &Profile) -> BTreeMap<&str, &str> {
    profile
        .machine
        .images
        .iter()
        .map(|i| (i.role.as_str(), i.sha256.as_str()))
        .collect()
}

fn served(profile: &Profile) -> String {
    let names = profile
        .sources
        .iter()
        .filter(|s| s.available)
        .map(|s| s.name.as_str());
    let names: Vec<&str> = names.collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(" + ")
    }
}

/// Something in which two profiles should be alike.
type Fact = (&'static str, fn(&Profile) -> String);

/// What it means for the figures that only one profile has the kernel ledger, or its times.
fn unequal_ledgers(a: &Profile, b: &Profile) -> Option<String> {
    let one_of = |of: fn(&Profile) -> bool| match (of(a), of(b)) {
        (true, false) => Some(("first", "second")),
        (false, true) => Some(("second", "first")),
        _ => None,
    };
    if let Some((has, lacks)) = one_of(Profile::has_kernel_ledger) {
        return Some(format!(
            "only the {has} run has the kernel ledger: what appears in a reason there can be \
             residual in the {lacks}, cycles are of other spans, and the fixed count cannot be \
             compared"
        ));
    }
    one_of(Profile::times_every_exit).map(|(times, lacks)| {
        format!("cycles are of other spans: the {times} run's include KVM, the {lacks}'s do not")
    })
}

/// Why two profiles are not alike, one line each.
fn caveats(a: &Profile, b: &Profile) -> Vec<String> {
    let mut caveats = Vec::new();
    for (profile, which) in [(a, "first"), (b, "second")] {
        if profile.first_end().cut_short {
            caveats.push(format!(
                "the {which} run was cut short: {}",
                profile.first_end().detail
            ));
        }
        if profile.has_reboots() {
            let reboots = profile.all_reboots();
            caveats.push(format!(
                "the {which} run rebooted ({reboots} times): only its first boot is compared"
            ));
        }
        if profile.milestones_dropped > 0 {
            let dropped = profile.milestones_dropped;
            caveats.push(format!("the {which} run dropped {dropped} milestones"));
        }
    }
    caveats.extend(unequal_ledgers(a, b));
    let differences = differences(a, b).into_iter();
    caveats.extend(differences.map(|d| format!("{}: {} → {}", d.what, d.was, d.is)));
    let mut recounted = BTreeMap::<(&str, &str), Vec<String>>::new();
    for now in &b.total.reasons {
        if let Some(then) = a.total.reason(now.reason)
            && then.source != now.source
        {
            let numbers = recounted.entry((&then.source, &now.source)).or_default();
            numbers.push(now.reason.to_string());
        }
    }
    for ((was, is), numbers) in recounted {
        let numbers = numbers.join(", ");
        caveats.push(format!("counted by: {was} → {is} (reasons {numbers})"));
    }
    caveats
}

/// A fact in which two profiles differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    /// Which.
    pub(super) what: String,
    /// What the first profile says.
    pub(super) was: String,
    /// What the second profile says.
    pub(super) is: String,
}

/// What the difference in paging is called.
pub(super) const PAGING: &str = "paging";
/// What the difference in the kernel's command line is called.
pub(super) const COMMAND_LINE: &str = "command line";

/// In what host, machine, images and sources of two profiles differ.
pub(super) fn differences(a: &Profile, b: &Profile) -> Vec<Difference> {
    let mut differences = Vec::new();
    let facts: [Fact; 13] = [
        ("KVM", |p| p.host.kvm.module().to_owned()),
        ("sources", served),
        ("level of the kernel ledger", |p| {
            p.ledger_level().unwrap_or_default().to_owned()
        }),
        (PAGING, |p| p.host.paging.clone()),
        ("CPU", |p| p.host.cpu.clone()),
        ("host kernel", |p| p.host.kernel.clone()),
        ("number of vCPUs", |p| p.machine.cpus.to_string()),
        ("memory", |p| format!("{} bytes", p.machine.memory)),
        ("memory's pages and prefault", |p| {
            let of = |memory: &MemoryAccount| format!("{} {}", memory.pages, memory.prefault);
            p.memory.as_ref().map_or(String::new(), of)
        }),
        ("boot", |p| p.machine.boot.clone()),
        (COMMAND_LINE, |p| p.machine.cmdline.clone()),
        ("layout of leaves", |p| p.machine.layout.clone()),
        ("SDM edition", |p| p.machine.sdm.clone()),
    ];
    for (what, of) in facts {
        let (was, is) = (of(a), of(b));
        if was != is {
            let [was, is] = [was, is].map(|s| if s.is_empty() { "none".to_owned() } else { s });
            let what = what.to_owned();
            differences.push(Difference { what, was, is });
        }
    }
    let (were, are) = (images(a), images(b));
    let roles: BTreeSet<&str> = were.keys().chain(are.keys()).copied().collect();
    for role in roles {
        let short = |hash: Option<&&str>| {
            hash.map_or("none".to_owned(), |h| {
                h.chars().take(12).chain(['…']).collect::<String>()
            })
        };
        let (was, is) = (were.get(role), are.get(role));
        if was != is {
            let (was, is) = (short(was), short(is));
            differences.push(Difference {
                what: format!("{role} image, SHA-256"),
                was,
                is,
            });
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;
    use proptest::prelude::*;

    fn compare(a: &Profile, b: &Profile) -> Comparison {
        Comparison::of(("a.json", a), ("b.json", b))
    }

    #[test]
    fn only_first_boots_are_compared() {
        let (a, b) = (fixtures::software(), fixtures::reboots());
        let comparison = Comparison::of(("a", &a), ("b", &b));
        let caveat = "the second run rebooted (3 times): only its first boot is compared";
        assert_eq!(comparison.caveats, [caveat]);
        assert_eq!(comparison.total.difference(), 0);
    }

    #[test]
    fn a_profile_is_like_itself() {
        for profile in fixtures::all()
            .iter()
            .filter(|p| !p.end.cut_short && !p.has_reboots())
        {
            let same = compare(profile, profile);
            assert_eq!(same.total.trend(), Trend::Same);
            assert!(same.reasons.iter().all(|r| r.trend == Trend::Same));
            assert!(same.violations(&"0".parse().unwrap()).is_empty());
            if profile.milestones_dropped == 0 {
                assert_eq!(same.caveats, Vec::<String>::new());
            }
        }
    }

    #[test]
    fn limits_are_judged() {
        let (a, b) = (fixtures::software(), fixtures::ledger());
        let found = |limits: &str| -> Vec<Option<u8>> {
            let limits = limits.parse().unwrap();
            compare(&a, &b)
                .violations(&limits)
                .iter()
                .map(|v| v.reason)
                .collect()
        };
        assert_eq!(found("28=0"), [Some(28)]);
        assert_eq!(found("28=6,total=0"), []);
        assert!(found("0").contains(&Some(48)));
        assert_eq!(found("0,48=1000%,28=99,32=99,7=9,29=1"), []);
    }

    #[test]
    fn the_fixed_count_is_judged_where_both_have_it() {
        let (a, mut b) = (fixtures::ledger(), fixtures::ledger());
        let hlt = b.total.reasons.iter_mut().find(|r| r.reason == 12);
        hlt.unwrap().exits += 500;
        b.total.total += 500;
        let same = compare(&a, &b);
        let fixed = same.fixed.unwrap();
        assert_eq!((fixed.trend(), same.total.difference()), (Trend::Same, 500));
        let found = |c: &Comparison, limits: &str| c.violations(&limits.parse().unwrap()).len();
        assert_eq!(found(&same, "fixed=0"), 0);
        let cpuid = b.total.reasons.iter_mut().find(|r| r.reason == 10);
        cpuid.unwrap().exits += 1;
        b.total.total += 1;
        let grown = compare(&a, &b);
        assert_eq!(found(&grown, "fixed=0"), 1);
        assert_eq!(found(&grown, "fixed=1"), 0);
        assert_eq!(found(&grown, "1000%"), 0, "no limit of its own");
        // What cannot be judged does not pass.
        let unknown = compare(&fixtures::software(), &b);
        let violations = unknown.violations(&"fixed=1000%".parse().unwrap());
        assert_eq!((unknown.fixed, violations[0].exits), (None, None));
        assert_eq!(violations[0].name, "fixed");
    }

    #[test]
    fn unequal_ledgers_are_told() {
        let told = |a: &Profile, b: &Profile| unequal_ledgers(a, b).unwrap_or_default();
        let (none, counts, cycles) = (fixtures::software(), fixtures::intel(), fixtures::ledger());
        assert!(told(&none, &cycles).starts_with("only the second run has the kernel ledger"));
        assert!(told(&counts, &none).starts_with("only the first run has the kernel ledger"));
        assert_eq!(
            told(&cycles, &counts),
            "cycles are of other spans: the first run's include KVM, the second's do not"
        );
        assert_eq!(told(&cycles, &fixtures::histograms()), "");
        assert_eq!(told(&none, &fixtures::emulated()), "");
    }

    #[test]
    fn trends() {
        let trend = |before, after| Change { before, after }.trend();
        assert_eq!(trend(0, 0), Trend::Same);
        assert_eq!(trend(0, 1), Trend::Appeared);
        assert_eq!(trend(1, 0), Trend::Vanished);
        assert_eq!(trend(1, 2), Trend::Grew);
        assert_eq!(trend(2, 1), Trend::Shrank);
        assert_eq!(
            Change {
                before: 0,
                after: 1
            }
            .relative(),
            None
        );
        let most = Change {
            before: u64::MAX,
            after: 0,
        };
        assert_eq!(most.difference(), -i128::from(u64::MAX));
    }

    proptest! {
        #[test]
        fn any_two_can_be_compared(a in fixtures::any_profile(), b in fixtures::any_profile()) {
            let comparison = compare(&a, &b);
            let violations = comparison.violations(&"5%,30=0".parse().unwrap());
            let text = crate::report::compare::text(&comparison, Some(&violations));
            prop_assert!(text.lines().all(|l| crate::report::width(l) <= 120));
            prop_assert!(!text.contains(|c: char| c.is_control() && c != '\n'));
            crate::report::compare::json(&comparison, Some(&violations));
        }
    }
}
