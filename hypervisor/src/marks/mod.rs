//! Milestones that need no word from the guest: execute breakpoints at places of its kernel, patterns on its
//! console, CPUID leaves (`docs/milestones.md`).
//!
//! Breakpoints are armed a few ahead of where the guest is, in the slots that its gates leave free
//! ([`crate::exits::gate`]). What is reached is recorded as any milestone is ([`crate::exits::milestone`]).

mod engine;
pub mod head;
pub mod kernel;
pub mod leaf;
mod linux;
pub mod pattern;
pub mod spec;

use std::sync::Arc;

pub use engine::{Cpu, Marks, Reached};

use crate::profile::MilestoneKind;

/// What a milestone of ours is called, and how it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: Arc<str>,
    /// How it was noticed.
    pub kind: MilestoneKind,
    /// The symbol at which it was, if that is not its name.
    pub at: Option<Arc<str>>,
}

impl Label {
    /// A name, noticed like this.
    pub fn new(name: &str, kind: MilestoneKind) -> Self {
        Self {
            name: name.into(),
            kind,
            at: None,
        }
    }
}
