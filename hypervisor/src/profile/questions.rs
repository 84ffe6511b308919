//! The questions that are asked of a boot, answered by several runs of it: how many exits, do they grow
//! steadily, which reasons are frequent, and what does shadow paging cost?

use serde::Serialize;

use super::Profile;
use super::runs::{Key, ReasonSpread, Runs, Spread, StepSpread, merged};

/// Runs of one boot, by how KVM translated the guest's addresses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Questions {
    /// `nested` first, then `shadow`, then what else the profiles say; each once.
    pub groups: Vec<Group>,
    /// Both pagings side by side; empty unless both are there.
    pub side_by_side: Vec<SideBySide>,
    /// What shadow paging costs; `None` unless both are there.
    pub shadow: Option<ShadowCost>,
}

/// The runs with one paging.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// `nested`, `shadow`, or what else the profiles say.
    pub paging: String,
    /// Their figures.
    pub runs: Runs,
    /// How they grow.
    pub growth: Option<Growth>,
    /// Names of the reasons, by number.
    pub names: Vec<(u8, String)>,
    /// Reasons that can occur on this KVM and did not in any run, as far as exits have a reason.
    pub never: usize,
}

/// How exits grow over the steps of a boot: that of the run in the middle.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Growth {
    /// 0 even, 1 all at once ([`Profile::unsteadiness`]).
    pub unsteadiness: f64,
    /// So few steps add half of the exits.
    pub few: usize,
    /// Of so many.
    pub steps: usize,
    /// The step that adds most.
    pub jump: String,
    /// How many it adds.
    pub adds: u64,
}

/// A milestone with either paging: the guest's exits up to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SideBySide {
    /// The milestone's name.
    pub name: String,
    /// Which time this name comes up in a run, from 0.
    pub nth: usize,
    /// With nested paging; `None` if no run has reached it.
    pub nested: Option<Spread>,
    /// With shadow paging.
    pub shadow: Option<Spread>,
}

/// What shadow paging costs beside nested paging, by the medians.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShadowCost {
    /// All exits: nested, shadow.
    pub total: (u64, u64),
    /// Without what time drives; `None` unless known of all runs.
    pub fixed: Option<(u64, u64)>,
    /// Reasons of which either has more: number, name, nested, shadow; the largest difference first.
    pub reasons: Vec<(u8, String, u64, u64)>,
}

/// The pagings that are compared, in their order.
const COMPARED: [&str; 2] = ["nested", "shadow"];

impl Questions {
    /// Of these runs.
    pub fn of(profiles: &[Profile]) -> Self {
        let mut pagings: Vec<&str> = profiles.iter().map(|p| p.host.paging.as_str()).collect();
        let place = |paging: &&str| COMPARED.iter().position(|c| c == paging).unwrap_or(2);
        pagings.sort_by_key(|paging| (place(paging), *paging));
        pagings.dedup();
        let group = |paging: &str| {
            let of = profiles.iter().filter(|p| p.host.paging == paging);
            Group::of(paging, &of.cloned().collect::<Vec<_>>())
        };
        let groups: Vec<Group> = pagings.into_iter().map(group).collect();
        let of = |paging: &str| groups.iter().find(|g| g.paging == paging);
        let both = of(COMPARED[0]).zip(of(COMPARED[1]));
        Self {
            side_by_side: both.map_or_else(Vec::new, |(n, s)| side_by_side(n, s)),
            shadow: both.map(|(n, s)| ShadowCost::of(n, s)),
            groups,
        }
    }
}

impl Group {
    fn of(paging: &str, profiles: &[Profile]) -> Self {
        let runs = Runs::of(profiles);
        let mut names: Vec<(u8, String)> = Vec::new();
        for reason in &runs.reasons {
            let knows = |p: &&Profile| p.reasons.iter().any(|r| r.reason == reason.reason);
            let name = profiles.iter().find(knows).or(profiles.first());
            let name = name.map_or("", |p| p.reason_name(reason.reason));
            names.push((reason.reason, name.to_owned()));
        }
        let never = profiles.first().map_or(0, |p| {
            let seen = |number: &u8| runs.reasons.iter().any(|r| r.reason == *number);
            let never = p.sightings().never;
            never.iter().filter(|number| !seen(number)).count()
        });
        Self {
            paging: paging.to_owned(),
            growth: Growth::of(profiles),
            runs,
            names,
            never,
        }
    }

    /// What a reason is called.
    pub fn name(&self, number: u8) -> &str {
        let found = self.names.iter().find(|(reason, _)| *reason == number);
        found.map_or("", |(_, name)| name)
    }

    /// The most frequent reasons, most first.
    pub fn most(&self) -> impl Iterator<Item = &ReasonSpread> {
        self.runs.reasons.iter()
    }

    /// The least frequent reasons of those that were seen, least first.
    pub fn least(&self) -> impl Iterator<Item = &ReasonSpread> {
        self.runs.reasons.iter().rev()
    }
}

impl Growth {
    /// Of the run whose total is the median (of an even number, the lower of the two).
    fn of(profiles: &[Profile]) -> Option<Self> {
        let mut sorted: Vec<&Profile> = profiles.iter().collect();
        sorted.sort_by_key(|p| p.total.guest_total());
        let middle = sorted.get(sorted.len().checked_sub(1)? / 2)?;
        let (few, steps) = middle.half_of_growth()?;
        let jump = middle.jump()?;
        Some(Self {
            unsteadiness: middle.unsteadiness()?,
            few,
            steps,
            jump: jump.name.to_owned(),
            adds: jump.delta.exits,
        })
    }
}

fn side_by_side(nested: &Group, shadow: &Group) -> Vec<SideBySide> {
    let keys = |group: &Group| -> Vec<Key> {
        let key = |step: &StepSpread| (step.name.clone(), step.nth);
        group.runs.steps.iter().map(key).collect()
    };
    let (of_nested, of_shadow) = (keys(nested), keys(shadow));
    let order = merged([of_nested.iter().collect(), of_shadow.iter().collect()].into_iter());
    let exits = |group: &Group, key: &Key| {
        let mut steps = group.runs.steps.iter();
        let step = steps.find(|step| (&step.name, step.nth) == (&key.0, key.1));
        step.map(|step| step.exits)
    };
    let row = |key: &Key| SideBySide {
        name: key.0.clone(),
        nth: key.1,
        nested: exits(nested, key),
        shadow: exits(shadow, key),
    };
    order.into_iter().map(row).collect()
}

impl ShadowCost {
    fn of(nested: &Group, shadow: &Group) -> Self {
        let median = |group: &Group, number: u8| {
            let mut reasons = group.runs.reasons.iter();
            let found = reasons.find(|r| r.reason == number);
            found.map_or(0, |r| r.exits.median)
        };
        let all = nested.runs.reasons.iter().chain(&shadow.runs.reasons);
        let mut numbers: Vec<u8> = all.map(|r| r.reason).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let reason = |number: u8| {
            let name = match nested.name(number) {
                "" => shadow.name(number),
                name => name,
            };
            let (n, s) = (median(nested, number), median(shadow, number));
            (number, name.to_owned(), n, s)
        };
        let mut reasons: Vec<_> = numbers.into_iter().map(reason).collect();
        reasons.retain(|(_, _, nested, shadow)| nested != shadow);
        reasons.sort_by_key(|&(number, _, n, s)| (std::cmp::Reverse(n.abs_diff(s)), number));
        let fixed = nested.runs.fixed.zip(shadow.runs.fixed);
        Self {
            total: (nested.runs.total.median, shadow.runs.total.median),
            fixed: fixed.map(|(n, s)| (n.median, s.median)),
            reasons,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn groups_by_paging() {
        let [nested, shadow] = fixtures::paging();
        let all = [shadow.clone(), nested.clone(), shadow.clone()];
        let questions = Questions::of(&all);
        let groups = questions.groups.iter();
        let groups: Vec<_> = groups.map(|g| (g.paging.as_str(), g.runs.runs)).collect();
        assert_eq!(groups, [("nested", 1), ("shadow", 2)]);
        let cost = questions.shadow.unwrap();
        assert_eq!(cost.total.0, nested.total.guest_total());
        assert_eq!(cost.total.1, shadow.total.guest_total());
        assert_eq!(cost.reasons[0].0, 14);
        assert_eq!(cost.reasons[0].3, 256);
        let last = questions.side_by_side.last().unwrap();
        assert_eq!(last.shadow.unwrap().median, shadow.total.guest_total());
    }

    #[test]
    fn one_paging_is_not_compared() {
        let questions = Questions::of(&[fixtures::ledger(), fixtures::ledger()]);
        assert_eq!(questions.groups.len(), 1);
        assert!(questions.side_by_side.is_empty() && questions.shadow.is_none());
        assert!(questions.groups[0].growth.is_some());
        assert_eq!(Questions::of(&[]).groups.len(), 0);
    }
}
