//! Culprits: who caused an exit: what it was for, and from where in the guest.
//!
//! The kernel ledger keeps them per vCPU; here they get numbers that stay, so that a snapshot is a
//! list of counts.

use std::collections::HashMap;

use crate::profile::{self, AskKind};

pub use crate::profile::Lost;

/// One cause of exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// The basic exit reason; `None` for codes that have none.
    pub reason: Option<u8>,
    /// What it was for: which MSR, port, leaf, page.
    pub ask: Option<(AskKind, u64)>,
    /// The guest's instruction pointer.
    pub rip: Option<u64>,
    /// Where its function returns to, as far as it was looked for and found.
    pub caller: Option<u64>,
    /// Why the rest is not known.
    pub lost: Option<Lost>,
}

impl Site {
    /// All that is known is the reason.
    pub fn of(reason: Option<u8>) -> Self {
        Self {
            reason,
            ask: None,
            rip: None,
            caller: None,
            lost: None,
        }
    }
}

/// Most causes that a boot's profile tells apart. A Linux boot has some thousand.
pub const MOST: usize = 8192;
/// How many of them only those without an instruction pointer may take: few, and worth more.
const RESERVED: usize = 1024;

/// How often, and how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Exits.
    pub exits: u64,
    /// Their cycles, as far as they are timed.
    pub cycles: u64,
}

/// The causes of a boot, each with its number, in the order in which they were first seen.
#[derive(Debug, Default)]
pub struct Registry {
    numbers: HashMap<Site, usize>,
    sites: Vec<Site>,
}

impl Registry {
    /// What a source says of a vCPU, added to counts by number. One for which there is no room any
    /// more is counted without its caller, without its instruction pointer, or by its reason alone: once and for all, so that
    /// counts only grow.
    pub fn add(&mut self, counts: &mut Vec<Tally>, seen: impl IntoIterator<Item = (Site, Tally)>) {
        for (site, more) in seen {
            let number = self.number(site);
            if counts.len() <= number {
                counts.resize(number + 1, Tally::default());
            }
            if let Some(tally) = counts.get_mut(number) {
                tally.exits = tally.exits.saturating_add(more.exits);
                tally.cycles = tally.cycles.saturating_add(more.cycles);
            }
        }
    }

    fn number(&mut self, site: Site) -> usize {
        if let Some(&number) = self.numbers.get(&site) {
            return number;
        }
        let is_last_resort = site.lost.is_some();
        let room = match site.rip {
            Some(_) => MOST - RESERVED,
            None => MOST,
        };
        if self.sites.len() < room || is_last_resort {
            let number = self.sites.len();
            self.sites.push(site);
            self.numbers.insert(site, number);
            return number;
        }
        self.number(match (site.caller, site.rip) {
            (Some(_), _) => Site {
                caller: None,
                ..site
            },
            (None, Some(_)) => Site { rip: None, ..site },
            (None, None) => Site {
                lost: Some(Lost::NoRoom),
                ..Site::of(site.reason)
            },
        })
    }

    /// As a profile keeps them.
    pub fn culprits(&self) -> Vec<profile::Culprit> {
        let culprit = |site: &Site| profile::Culprit {
            reason: site.reason,
            kind: site.ask.map(|(kind, _)| kind),
            index: site.ask.map(|(_, index)| index),
            rip: site.rip,
            symbol: None,
            caller: site.caller,
            called_from: None,
            lost: site.lost,
        };
        self.sites.iter().map(culprit).collect()
    }

    /// The cause of a number.
    pub fn site(&self, number: usize) -> Option<&Site> {
        self.sites.get(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Tally = Tally {
        exits: 1,
        cycles: 10,
    };

    fn site(port: u64, rip: Option<u64>) -> Site {
        Site {
            ask: Some((AskKind::PortOut, port)),
            rip,
            ..Site::of(Some(30))
        }
    }

    #[test]
    fn numbers_stay() {
        let mut registry = Registry::default();
        let (a, b) = (site(1, Some(7)), site(2, None));
        let mut counts = Vec::new();
        registry.add(&mut counts, [(a, ONE), (b, ONE), (a, ONE)]);
        assert_eq!(counts.iter().map(|c| c.exits).collect::<Vec<_>>(), [2, 1]);
        let mut later = Vec::new();
        registry.add(&mut later, [(b, ONE), (site(3, None), ONE)]);
        let exits: Vec<u64> = later.iter().map(|c| c.exits).collect();
        assert_eq!(exits, [0, 1, 1]);
        assert_eq!(registry.culprits().len(), 3);
    }

    #[test]
    fn a_flood_is_counted_without_its_places_then_by_reason() {
        let mut registry = Registry::default();
        let mut counts = Vec::new();
        let flood = (0..20_000).map(|n| (site(n / 10, Some(0x1000 + n)), ONE));
        registry.add(&mut counts, flood);
        assert_eq!(counts.iter().map(|c| c.exits).sum::<u64>(), 20_000);
        assert!(registry.sites.len() <= MOST + 1);
        let lost: u64 = registry
            .culprits()
            .iter()
            .zip(&counts)
            .filter(|(c, _)| c.lost.is_some())
            .map(|(_, tally)| tally.exits)
            .sum();
        assert!(lost > 0 && lost < 20_000, "{lost}");
        let again = counts.clone();
        let mut more = Vec::new();
        registry.add(
            &mut more,
            (0..20_000).map(|n| (site(n / 10, Some(0x1000 + n)), ONE)),
        );
        assert_eq!(more, again, "the same find the same room");
    }
}
