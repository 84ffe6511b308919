//! Evidence for tests, as small as it can be.

use serde_json::{Value, json};

use super::evidence::{Boot, Evidence};
use super::inside::Said;
use crate::kvm_module::Paging;

/// A lab in which nothing was run.
pub(crate) fn lab(title: &str) -> Evidence {
    Evidence {
        title: title.to_owned(),
        boots: [].into(),
        comparisons: Vec::new(),
    }
}

/// Accounts of these reasons, none of them the profiler's own.
pub(crate) fn accounts(reasons: &[(u32, u64)]) -> Value {
    let account = |(reason, exits): &(u32, u64)| json!({"reason": reason, "exits": exits, "own": 0, "cycles": 10 * exits, "own_cycles": 0});
    json!({
        "total": reasons.iter().map(|(_, exits)| exits).sum::<u64>(),
        "residual": 0, "own_residual": 0, "other": 0,
        "reasons": reasons.iter().map(account).collect::<Vec<_>>(),
    })
}

/// A profile that ends with these accounts, its milestones at these.
pub(crate) fn profile(paging: &str, total: &Value, milestones: &[(&str, Value)]) -> Value {
    let milestone = |(name, accounts): &(&str, Value)| json!({"name": name, "accounts": accounts});
    let known =
        [0, 10, 12, 14, 28, 30, 48].map(|reason| json!({"reason": reason, "can_occur": true}));
    json!({
        "tool": {"version": "0.1.0"},
        "host": {"cpu": "a CPU", "kernel": "6.12", "kvm": "amd", "paging": paging, "tsc_khz": 1_000_000},
        "machine": {"hypercall": "gate"},
        "sources": [{"name": "kernel ledger", "available": true, "completeness": "all"}],
        "end": {"status": 0, "detail": "the guest exited with status 0"},
        "milestones": milestones.iter().map(milestone).collect::<Vec<_>>(),
        "total": total,
        "gates": {"hypercalls": 2},
        "reasons": known,
    })
}

impl Evidence {
    /// The same with one run more.
    pub(crate) fn with(
        mut self,
        paging: Paging,
        name: &str,
        console: &str,
        profile: Value,
    ) -> Self {
        let boot = self.boots.entry(paging);
        let boot = boot
            .or_insert_with(|| Ok(Boot::default()))
            .as_mut()
            .unwrap();
        let said = Said {
            stderr: console.to_owned(),
            ..Said::default()
        };
        boot.told.runs.insert(name.to_owned(), said);
        let profile = serde_json::from_value(profile).unwrap();
        boot.profiles.insert(name.to_owned(), profile);
        self
    }
}
