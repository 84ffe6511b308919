//! The fields of a profile that are of interest here (`docs/profile-schema.md`).

use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
pub(crate) struct Profile {
    pub(crate) host: Host,
    pub(crate) sources: Vec<Source>,
    pub(crate) end: End,
    pub(crate) milestones: Vec<Milestone>,
    pub(crate) total: Accounts,
    pub(crate) gates: Gates,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Host {
    pub(crate) tsc_khz: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) available: bool,
    pub(crate) completeness: String,
    pub(crate) level: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct End {
    pub(crate) status: u8,
    pub(crate) detail: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Milestone {
    pub(crate) number: u32,
    pub(crate) tsc: u64,
    pub(crate) accounts: Accounts,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Accounts {
    pub(crate) total: u64,
    #[serde(default)]
    pub(crate) userspace: u64,
    #[serde(default)]
    pub(crate) own_userspace: u64,
    pub(crate) reasons: Vec<Reason>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Reason {
    pub(crate) reason: u8,
    pub(crate) own: u64,
    pub(crate) own_timed: u64,
    pub(crate) own_cycles: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Gates {
    pub(crate) queries: u64,
    pub(crate) hypercalls: u64,
    pub(crate) armed: u64,
}

impl Profile {
    /// From a file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path);
        let bytes = bytes.with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
    }

    /// The snapshot of a milestone, if it was reached.
    pub(crate) fn milestone(&self, number: u32) -> Option<&Milestone> {
        self.milestones.iter().find(|m| m.number == number)
    }
}
