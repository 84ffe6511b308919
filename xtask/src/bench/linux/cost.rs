//! What a boot cost: the counts of the lab as figures that can be compared.

use std::collections::BTreeMap;

use serde::Serialize;

use super::inside::{Counts, Reading, Row, Said};
use super::names;
use super::start::Start;
use super::vmm::{Console, Vmm, Way};
use crate::smaps::Resident;

/// One boot.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cost {
    /// Which VMM, and how.
    pub(crate) name: String,
    #[serde(skip)]
    pub(crate) way: Way,
    /// The guest's command line.
    pub(crate) cmdline: String,
    /// Why there are no figures.
    pub(crate) error: Option<String>,
    pub(crate) figures: Option<Figures>,
    /// How often it was booted before, and stood still in the lab.
    pub(crate) stood_still: u32,
}

/// Its figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figures {
    /// All exits, up to the first line of user space.
    pub(crate) total: u64,
    /// Those that time does not drive.
    pub(crate) fixed: u64,
    /// Returns of KVM_RUN.
    pub(crate) userspace: u64,
    pub(crate) ports: u64,
    /// Nested page faults.
    pub(crate) faults: u64,
    pub(crate) cpuid: u64,
    pub(crate) msr: u64,
    /// Control registers.
    pub(crate) cr: u64,
    /// All others that time does not drive.
    pub(crate) other: u64,
    /// Lines on the guest's console.
    pub(crate) lines: u64,
    /// Milliseconds of the lab's clock, from the start of the VMM.
    pub(crate) milliseconds: f64,
    /// The VMM's memory besides the guest's, bytes.
    pub(crate) memory: Resident,
    /// What each port, MSR, page and leaf cost, most first.
    pub(crate) keys: Vec<Key>,
    /// Exits by the processor's code.
    pub(crate) codes: BTreeMap<String, u64>,
    /// Returns of KVM_RUN by KVM_EXIT_….
    pub(crate) returns: BTreeMap<u64, u64>,
}

/// What exits were for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    /// Port, MSR or leaf; of a device's page its address, of RAM that of its 2 MiB.
    pub(crate) key: u64,
    /// Written, as opposed to read; pages and leaves are only read.
    pub(crate) write: bool,
    /// What is there.
    pub(crate) name: &'static str,
    pub(crate) exits: u64,
}

/// Of what a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Port,
    Msr,
    Page,
    Leaf,
}

/// The processor's codes (AMD APM vol. 2, appendix C).
mod code {
    pub(super) const INTR: u64 = 0x60;
    pub(super) const VINTR: u64 = 0x64;
    pub(super) const CR0_SELECTIVE: u64 = 0x65;
    pub(super) const CPUID: u64 = 0x72;
    pub(super) const HLT: u64 = 0x78;
    pub(super) const IOIO: u64 = 0x7B;
    pub(super) const MSR: u64 = 0x7C;
    pub(super) const NPF: u64 = 0x400;
    /// Reads of CR0 to CR15, then writes.
    pub(super) const LAST_CR: u64 = 0x1F;
}

/// MSRs that are written because time has passed: the next tick is ordered, an interrupt is done with
/// (SDM vol. 4, table 2-2).
const TSC_DEADLINE: u64 = 0x6E0;
const X2APIC_EOI: u64 = 0x80B;
/// Ports for the same, of a guest that ticks by PIT and PIC.
const TICKS: [u64; 3] = [0x20, 0x21, 0x40];

impl Cost {
    /// Of what the lab said.
    pub(crate) fn of(way: Way, said: &Said) -> Self {
        let figures = said.as_ref().ok().and_then(Figures::of);
        Self {
            name: way.name(),
            way,
            cmdline: way.cmdline(),
            error: said.as_ref().err().cloned(),
            stood_still: said.as_ref().map_or(0, |reading| reading.stood_still),
            figures,
        }
    }
}

impl Figures {
    fn of(reading: &Reading) -> Option<Self> {
        let counts = reading.counts.as_ref()?;
        let of = |wanted: &dyn Fn(u64) -> bool| sum(&counts.exits, |row| wanted(row.key));
        let total = of(&|_| true);
        let driven = driven(counts);
        let (ports, faults) = (of(&|c| c == code::IOIO), of(&|c| c == code::NPF));
        let (cpuid, msr) = (of(&|c| c == code::CPUID), of(&|c| c == code::MSR));
        let cr = of(&|c| c <= code::LAST_CR || c == code::CR0_SELECTIVE);
        let waits = of(&|c| [code::INTR, code::VINTR, code::HLT].contains(&c));
        let known = ports + faults + cpuid + msr + cr + waits;
        Some(Self {
            total,
            fixed: total.saturating_sub(driven),
            userspace: sum(&counts.returns, |_| true),
            ports,
            faults,
            cpuid,
            msr,
            cr,
            other: total.saturating_sub(known),
            lines: reading.lines,
            milliseconds: reading.time as f64 / 1e6,
            memory: reading.memory,
            keys: keys(counts),
            codes: by(&counts.exits, |key| format!("{key:#x}")),
            returns: by(&counts.returns, |key| key),
        })
    }
}

/// Exits that time drives.
fn driven(counts: &Counts) -> u64 {
    let waits = [code::INTR, code::VINTR, code::HLT];
    let waits = sum(&counts.exits, |row| waits.contains(&row.key));
    let written = |index| sum(&counts.msrs, |row| row.write && row.key == index);
    let deadlines = written(TSC_DEADLINE);
    let ticks = match deadlines {
        0 => sum(&counts.ports, |row| row.write && TICKS.contains(&row.key)),
        // It ticks by the TSC deadline.
        _ => 0,
    };
    waits + deadlines + written(X2APIC_EOI) + ticks
}

fn sum(rows: &[Row], wanted: impl Fn(&Row) -> bool) -> u64 {
    rows.iter()
        .filter(|row| wanted(row))
        .map(|row| row.count)
        .sum()
}

fn by<K: Ord>(rows: &[Row], name: impl Fn(u64) -> K) -> BTreeMap<K, u64> {
    rows.iter().map(|row| (name(row.key), row.count)).collect()
}

/// All keys, most first.
fn keys(counts: &Counts) -> Vec<Key> {
    let mut all = BTreeMap::<(Kind, u64, bool), u64>::new();
    let kinds = [
        (Kind::Port, &counts.ports),
        (Kind::Msr, &counts.msrs),
        (Kind::Page, &counts.faults),
        (Kind::Leaf, &counts.leaves),
    ];
    for (kind, rows) in kinds {
        for row in rows {
            let key = match kind {
                Kind::Page => names::place(row.key),
                _ => row.key,
            };
            *all.entry((kind, key, row.write)).or_default() += row.count;
        }
    }
    let key = |((kind, key, write), exits)| Key {
        kind,
        key,
        write,
        name: names::name(kind, key),
        exits,
    };
    let mut keys: Vec<Key> = all.into_iter().map(key).collect();
    keys.sort_by_key(|key| (key.kind, std::cmp::Reverse(key.exits), key.key, key.write));
    keys
}

/// What is aimed at, and whether it was reached.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Aim {
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    /// At most this.
    pub(crate) most: f64,
    pub(crate) measured: f64,
    pub(crate) reached: bool,
}

impl Aim {
    pub(crate) fn new(what: &'static str, unit: &'static str, most: f64, measured: f64) -> Self {
        Self {
            what,
            unit,
            most,
            measured,
            reached: measured <= most,
        }
    }
}

const MIB: f64 = 1024.0 * 1024.0;

/// The fastest boot of someone else's, quiet: milliseconds.
pub(crate) fn best_peer(costs: &[Cost]) -> Option<f64> {
    let peers = costs.iter().filter(|cost| cost.way.vmm != Vmm::Ours);
    let times = peers.filter_map(|cost| Some(cost.figures.as_ref()?.milliseconds));
    times.min_by(f64::total_cmp)
}

/// Our own boots against what is aimed at.
pub(crate) fn aims(costs: &[Cost], start: Option<&Start>) -> Vec<Aim> {
    let ours = |console| {
        let ours = |cost: &&Cost| cost.way.vmm == Vmm::Ours && cost.way.console == console;
        costs.iter().find(ours)?.figures.as_ref()
    };
    let mut aims = Vec::new();
    for (console, what, most) in [
        (Console::Quiet, "fixed, quiet", 1_200.0),
        (Console::Serial, "fixed, not quiet", 42_000.0),
        (Console::Fast, "fixed, not quiet, fast console", 22_000.0),
    ] {
        let measured = ours(console).map(|figures| figures.fixed as f64);
        aims.extend(measured.map(|measured| Aim::new(what, "", most, measured)));
    }
    if let Some(quiet) = ours(Console::Quiet) {
        if let Some(best) = best_peer(costs) {
            let what = "time to user space (best of the others)";
            aims.push(Aim::new(what, "ms", best, quiet.milliseconds));
        }
        let resident = (quiet.memory.anonymous + quiet.memory.file) as f64 / MIB;
        aims.push(Aim::new("memory besides guest RAM", "MiB", 5.0, resident));
    }
    if let Some(start) = start {
        let what = "CPU time of a start, on this machine";
        aims.push(Aim::new(what, "ms", 8.0, start.median));
    }
    aims
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::vmm::ways;
    use super::*;

    fn rows(rows: &[(u64, bool, u64)]) -> Vec<Row> {
        let row = |&(key, write, count)| Row { key, write, count };
        rows.iter().map(row).collect()
    }

    fn reading(extra: u64) -> Reading {
        Reading {
            time: 1_677_000_000 + extra * 1_000_000,
            memory: Resident {
                anonymous: 1 << 20,
                file: 4 << 20,
            },
            lines: 2,
            stood_still: 0,
            counts: Some(Counts {
                exits: rows(&[
                    (0x14, false, 56),
                    (0x60, false, 721),
                    (0x65, false, 1),
                    (0x72, false, 447),
                    (0x7B, false, 248 + extra),
                    (0x7C, false, 378),
                    (0x8D, false, 2),
                    (0x400, false, 85),
                ]),
                faults: rows(&[
                    (0xFEC0_0000, false, 20),
                    (0xFEC0_0010, false, 8),
                    (0x10_0000, false, 57),
                ]),
                returns: rows(&[(2, false, 248 + extra), (6, false, 28)]),
                ports: rows(&[(0x3F8, true, 200), (0x3FD, false, 48 + extra)]),
                msrs: rows(&[
                    (0x6E0, true, 300),
                    (0x80B, true, 1),
                    (0x6E0, false, 7),
                    (0x1B, false, 70),
                ]),
                leaves: rows(&[(0x4000_0000, false, 447)]),
            }),
        }
    }

    pub(in super::super) fn costs() -> Vec<Cost> {
        let ways = ways(&[]);
        let costs = ways.iter().zip(0..).map(|(way, place)| match place {
            3 => Cost::of(*way, &Err("no user space in time".to_owned())),
            _ => Cost::of(*way, &Ok(reading(place * 1_000))),
        });
        costs.collect()
    }

    #[test]
    fn what_time_drives_is_not_fixed() {
        let figures = Figures::of(&reading(0)).unwrap();
        assert_eq!(figures.total, 1_938);
        assert_eq!(figures.fixed, 1_938 - 721 - 301);
        assert_eq!((figures.cr, figures.other), (57, 2));
        assert_eq!(figures.userspace, 276);
    }

    #[test]
    fn only_a_guest_that_ticks_by_the_pit_writes_to_it_for_time() {
        let mut reading = reading(0);
        let counts = reading.counts.as_mut().unwrap();
        counts
            .ports
            .extend(rows(&[(0x40, true, 9), (0x20, true, 5)]));
        assert_eq!(driven(counts), 721 + 301);
        counts.msrs.retain(|row| row.key != 0x6E0);
        assert_eq!(driven(counts), 721 + 1 + 14);
    }

    #[test]
    fn keys_add_up() {
        let keys = Figures::of(&reading(0)).unwrap().keys;
        let of = |kind| keys.iter().filter(move |key| key.kind == kind);
        let pages: Vec<_> = of(Kind::Page).map(|key| (key.key, key.exits)).collect();
        assert_eq!(pages, [(0, 57), (0xFEC0_0000, 28)]);
        assert_eq!(of(Kind::Port).map(|key| key.exits).sum::<u64>(), 248);
    }

    #[test]
    fn aims_of_ours() {
        let start = Start {
            min: 8.5,
            median: 9.0,
            max: 30.0,
            rounds: 20,
        };
        let aims = aims(&costs(), Some(&start));
        let reached: Vec<bool> = aims.iter().map(|aim| aim.reached).collect();
        assert_eq!(reached, [true, true, true, true, true, false]);
        assert_eq!(aims[3].most, 1_677.0 + 4_000.0);
    }
}
