//! CPUID leaves as milestones: KVM answers CPUID itself, so that the VMM hears of one at a gate alone, unless
//! the kernel can be made to say so ([`Stop`]).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Label;
use super::spec::{Spec, Wish};
use crate::exits::source::kernel::stop::Stop;

/// A leaf that has not been met yet.
#[derive(Debug)]
struct Leaf {
    leaf: u32,
    label: Label,
    met: AtomicBool,
    stop: Option<Arc<Stop>>,
}

impl Leaf {
    /// Its label, the first time.
    fn meet(&self) -> Option<Label> {
        if let Some(stop) = &self.stop {
            stop.done();
        }
        let first = !self.met.swap(true, Ordering::AcqRel);
        first.then(|| self.label.clone())
    }
}

/// What makes KVM_RUN return at leaves: opened once, for all boots of a run.
#[derive(Debug, Default)]
pub struct Stops {
    stops: Vec<(u32, Arc<Stop>)>,
    /// Why there are none, if they are wanted.
    note: Option<String>,
}

impl Stops {
    /// Of the leaves that are wished for.
    pub fn open(wish: &Wish, tracefs: Option<&Path>) -> Self {
        let mut opened = Self::default();
        for leaf in leaves(wish) {
            match Stop::open(leaf, crate::vcpu::kick_signal(), tracefs) {
                Ok(stop) => opened.stops.push((leaf, Arc::new(stop))),
                Err(error) => {
                    opened.note = Some(format!("CPUID leaves are noticed at gates alone: {error}"));
                }
            }
        }
        opened
    }
}

fn leaves(wish: &Wish) -> impl Iterator<Item = u32> + '_ {
    wish.own.iter().filter_map(|spec| match spec {
        Spec::Cpuid(leaf) => Some(*leaf),
        _ => None,
    })
}

/// The leaves that are waited for in one boot.
#[derive(Debug, Default)]
pub struct Leaves {
    leaves: Vec<Leaf>,
    /// What a person is to be told.
    pub note: Option<String>,
}

impl Leaves {
    /// Those that are wished for, anew.
    pub fn new(wish: &Wish, stops: &Stops) -> Self {
        let leaf = |leaf: u32| {
            let stop = stops.stops.iter().find(|(of, _)| *of == leaf);
            let stop = stop.map(|(_, stop)| stop.clone());
            if let Some(stop) = &stop {
                stop.again();
            }
            Leaf {
                leaf,
                label: Spec::Cpuid(leaf).label(),
                met: AtomicBool::new(false),
                stop,
            }
        };
        Self {
            leaves: leaves(wish).map(leaf).collect(),
            note: stops.note.clone(),
        }
    }

    /// A CPUID of this leaf is answered at a gate.
    pub fn at_gate(&self, leaf: u32) -> Option<Label> {
        self.leaves.iter().find(|l| l.leaf == leaf)?.meet()
    }

    /// KVM_RUN was interrupted by a signal: perhaps for one of these.
    pub fn interrupted(&self) -> Option<Label> {
        let met = |leaf: &&Leaf| leaf.stop.as_ref().is_some_and(|stop| stop.take_met());
        self.leaves.iter().find(met)?.meet()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_met_once() {
        let wish = Wish {
            own: vec![Spec::Cpuid(7), Spec::Port],
            ..Wish::default()
        };
        let leaves = Leaves::new(&wish, &Stops::default());
        assert_eq!(leaves.at_gate(8), None);
        assert_eq!(leaves.at_gate(7), Some(Spec::Cpuid(7).label()));
        assert_eq!(leaves.at_gate(7), None);
        assert_eq!(leaves.interrupted(), None);
    }
}
