//! The fields of a profile that the exercises look at (`docs/profile-schema.md`).

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Profile {
    pub(crate) tool: Tool,
    pub(crate) host: Host,
    pub(crate) machine: Machine,
    pub(crate) sources: Vec<Source>,
    pub(crate) end: End,
    pub(crate) milestones: Vec<Milestone>,
    pub(crate) total: Accounts,
    pub(crate) gates: Gates,
    #[serde(default)]
    pub(crate) reboots: Vec<Pass>,
    pub(crate) reasons: Vec<Reason>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Tool {
    pub(crate) version: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Host {
    pub(crate) cpu: String,
    pub(crate) kernel: String,
    pub(crate) kvm: String,
    pub(crate) paging: String,
    pub(crate) tsc_khz: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Machine {
    /// How hypercalls reached the VMM.
    pub(crate) hypercall: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) available: bool,
    pub(crate) completeness: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct End {
    pub(crate) status: u8,
    pub(crate) detail: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Milestone {
    pub(crate) name: String,
    pub(crate) accounts: Accounts,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Pass {
    pub(crate) milestones: Vec<Milestone>,
    pub(crate) total: Accounts,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Accounts {
    pub(crate) total: u64,
    pub(crate) residual: u64,
    pub(crate) own_residual: u64,
    pub(crate) other: u64,
    pub(crate) reasons: Vec<Account>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Account {
    pub(crate) reason: u32,
    pub(crate) exits: u64,
    pub(crate) own: u64,
    pub(crate) cycles: u64,
    pub(crate) own_cycles: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Gates {
    pub(crate) hypercalls: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Reason {
    pub(crate) reason: u32,
    pub(crate) can_occur: bool,
}

impl Accounts {
    /// The profiler's own exits.
    pub(crate) fn own(&self) -> u64 {
        self.own_residual + self.reasons.iter().map(|r| r.own).sum::<u64>()
    }

    /// The guest's exits.
    pub(crate) fn guests(&self) -> u64 {
        self.total.saturating_sub(self.own())
    }

    /// The guest's exits without those of reasons that time drives: interrupts, their windows, HLT,
    /// the preemption timer.
    pub(crate) fn untimed(&self) -> u64 {
        let timed: u64 = [1, 7, 12, 52].map(|reason| self.of(reason)).iter().sum();
        self.guests().saturating_sub(timed)
    }

    /// The guest's cycles.
    pub(crate) fn guests_cycles(&self) -> u64 {
        let cycles = |r: &Account| r.cycles.saturating_sub(r.own_cycles);
        self.reasons.iter().map(cycles).sum()
    }

    /// The guest's exits of a reason.
    pub(crate) fn of(&self, reason: u32) -> u64 {
        let account = self.reasons.iter().find(|r| r.reason == reason);
        account.map_or(0, Account::guests)
    }

    /// The guest's exits by reason, the largest first; only those that are not zero.
    pub(crate) fn ranked(&self) -> Vec<(u32, u64)> {
        let all = self.reasons.iter().map(|r| (r.reason, r.guests()));
        let mut ranked: Vec<_> = all.filter(|(_, exits)| *exits > 0).collect();
        ranked.sort_by_key(|&(reason, exits)| (std::cmp::Reverse(exits), reason));
        ranked
    }
}

impl Account {
    fn guests(&self) -> u64 {
        self.exits.saturating_sub(self.own)
    }
}

impl Profile {
    /// Why the figures are not of every exit, if so.
    pub(crate) fn incomplete(&self) -> Option<String> {
        let ledger = self.sources.iter().find(|s| s.name == "kernel ledger");
        match ledger {
            Some(source) if source.available => None,
            Some(source) => Some(format!("no kernel ledger: {}", source.completeness)),
            None => Some("no kernel ledger".to_owned()),
        }
    }
}

/// A milestone of a list.
pub(crate) fn milestone<'m>(milestones: &'m [Milestone], name: &str) -> Option<&'m Accounts> {
    let found = milestones.iter().find(|milestone| milestone.name == name);
    found.map(|milestone| &milestone.accounts)
}

/// For people: `48 EPT violation`.
pub(crate) fn reason(number: u32) -> String {
    let reason = exit_abi::reason::Reason::new(number);
    match reason.and_then(exit_abi::reason::Reason::name) {
        Some(name) => format!("{number} {name}"),
        None => format!("{number} (undefined)"),
    }
}
