//! Sources: where a count comes from, and how complete it is.
//!
//! A source is asked for a [`Sample`] of one vCPU; what several sources say of the same vCPU is
//! put together by [`crate::exits::books`].

pub mod attribution;
pub mod kernel;
pub mod open;
pub mod run;
pub mod stats;

use exit_abi::reason::{COUNT, Reason};

use super::culprits::{Site, Tally};
use super::ledger::RowCopy;
use super::sparse::Sparse;
use crate::profile::Histogram;
use crate::profile::figures::{KERNEL_LEDGER, KVM_RUN, KVM_STATS};
use kernel::slots::SLOTS;

/// Where the count of a reason comes from. The order is that of trust: a later one knows more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceKind {
    /// KVM_RUN returns.
    Run,
    /// KVM's binary statistics.
    Stats,
    /// The kernel-side ledger.
    Kernel,
}

impl SourceKind {
    /// Its name in profiles and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Run => KVM_RUN,
            Self::Stats => KVM_STATS,
            Self::Kernel => KERNEL_LEDGER,
        }
    }
}

/// What a source knows of one vCPU, cumulative. Arrays: filled in place, never allocated.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// All exits, where the source knows.
    pub total: Option<u64>,
    /// Per reason; all zeros where it knows nothing.
    pub rows: Sparse<RowCopy, COUNT>,
    /// Exits without a basic exit reason.
    pub other: u64,
    /// This source sees every exit with its reason: its rows replace what others say.
    pub complete: bool,
    /// Failed entries among the exits.
    pub failed: u64,
    /// TSC cycles that the vCPU waited in HLT.
    pub blocked_cycles: u64,
    /// Exits by the processor's own code, by the ledger's slots.
    pub codes: Sparse<u64, SLOTS>,
    /// What KVM emulated, per reason: events, not exits.
    pub events: Sparse<u64, COUNT>,
}

impl Sample {
    /// A reason's row.
    pub fn row(&self, reason: Reason) -> &RowCopy {
        &self.rows[reason.index()]
    }

    /// Makes all zeros.
    pub fn clear(&mut self) {
        let Self {
            total,
            rows,
            other,
            complete,
            failed,
            blocked_cycles,
            codes,
            events,
        } = self;
        rows.clear();
        codes.clear();
        events.clear();
        (*total, *complete) = (None, false);
        (*other, *failed, *blocked_cycles) = (0, 0, 0);
    }
}

/// A source of counts for one vCPU.
pub trait Source: Send + Sync {
    /// Which it is.
    fn kind(&self) -> SourceKind;

    /// Whether it counts *every* exit of this reason, even one that never leaves the kernel.
    fn is_exact(&self, reason: Reason) -> bool;

    /// Fills in what is known now. A source that cannot answer leaves the sample cleared.
    fn sample(&self, into: &mut Sample);

    /// Who caused the exits, if it keeps that.
    fn culprits(&self) -> Option<Vec<(Site, Tally)>> {
        None
    }

    /// How long exits took, per reason, if it keeps that.
    fn histograms(&self) -> Vec<Histogram> {
        Vec::new()
    }
}

#[cfg(test)]
pub(crate) mod scripted {
    //! A source that says what a test tells it to.

    use super::*;

    /// A scripted source.
    pub(crate) struct Scripted {
        /// Its kind.
        pub(crate) kind: SourceKind,
        /// What it answers.
        pub(crate) sample: Sample,
        /// Reasons it claims to know exactly.
        pub(crate) exact: Vec<Reason>,
    }

    impl Source for Scripted {
        fn kind(&self) -> SourceKind {
            self.kind
        }

        fn is_exact(&self, reason: Reason) -> bool {
            self.exact.contains(&reason)
        }

        fn sample(&self, into: &mut Sample) {
            into.clone_from(&self.sample);
        }
    }
}
