//! The source *KVM_RUN*: what reaches userspace, with cycles from its return to the next entry.

use std::sync::Arc;

use exit_abi::reason::Reason;

use super::{Sample, Source, SourceKind};
use crate::exits::ledger::Ledger;

/// The ledger that the vCPU's own loop keeps.
pub struct RunSource(pub Arc<Ledger>);

impl Source for RunSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Run
    }

    /// None: KVM may finish any exit in the kernel. (What the VMM serves reaches it always.)
    fn is_exact(&self, _: Reason) -> bool {
        false
    }

    fn sample(&self, into: &mut Sample) {
        into.clear();
        into.other = self.0.other();
        for reason in Reason::all().filter(|r| self.0.has(*r)) {
            into.rows[reason.index()] = self.0.row(reason);
        }
    }
}
