//! A record: one reading and what it grew by, as data, for text and JSON.

use guest_kernel::exit_log::reading::Reading;
use serde::Serialize;

/// One reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Record {
    /// `start`, `query 3`.
    pub(crate) label: String,
    /// `leaves`, `page` or `leaves and page`.
    pub(crate) source: &'static str,
    /// Of the leaf that asks for all exits.
    pub(crate) leaf: u32,
    /// Nanoseconds since the log began.
    pub(crate) nanos: u64,
    /// All exits, those without a reason included.
    pub(crate) exits: Figure,
    /// Their TSC cycles.
    pub(crate) cycles: Figure,
    /// By reason, most exits first.
    pub(crate) reasons: Vec<OfReason>,
}

/// A figure, and by how much it is more than in the reading before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Figure {
    pub(crate) now: u64,
    /// Counters only grow; if one does not, it shall be seen.
    pub(crate) more: i128,
}

/// What is known of one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct OfReason {
    /// Its number (Intel SDM vol. 3D, appendix C).
    pub(crate) reason: u8,
    /// Its name; none if the SDM does not define it.
    pub(crate) name: Option<&'static str>,
    pub(crate) exits: Figure,
    pub(crate) cycles: Figure,
}

impl Figure {
    fn new(now: u64, before: u64) -> Self {
        let more = i128::from(now) - i128::from(before);
        Self { now, more }
    }
}

impl Record {
    /// What a reading says, beside the one before it.
    pub(crate) fn new(
        label: String,
        source: &'static str,
        leaf: u32,
        nanos: u64,
        now: &Reading,
        before: &Reading,
    ) -> Self {
        let mut reasons: Vec<OfReason> = now
            .reasons()
            .iter()
            .map(|line| {
                let then = before.of(line.reason);
                OfReason {
                    reason: line.reason.number(),
                    name: line.reason.name(),
                    exits: Figure::new(line.exits, then.exits),
                    cycles: Figure::new(line.cycles, then.cycles),
                }
            })
            .collect();
        reasons.sort_by_key(|line| (std::cmp::Reverse(line.exits.now), line.reason));
        Self {
            label,
            source,
            leaf,
            nanos,
            exits: Figure::new(now.exits, before.exits),
            cycles: Figure::new(now.cycles, before.cycles),
            reasons,
        }
    }
}
