//! `cargo xtask with-paging`: a command while this host's KVM translates in one way; what tests of
//! [`crate::kvm_module`] start inside labs.

use std::ffi::OsString;

use clap::Args;

use crate::kvm_module::{Paging, Reloaded};
use crate::step::Step;

/// Run a command while this host's KVM uses nested or shadow paging, and put KVM back
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct WithPaging {
    #[arg(value_enum)]
    paging: Paging,
    /// The command
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl WithPaging {
    /// Runs it; its status.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        let mut words = self.command.into_iter();
        let program = words.next().unwrap_or_default();
        let step = Step::new(program).args(words);
        Reloaded::with(self.paging, || step.status())
    }
}
