//! What is run in which lab for which exercise: data.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::kvm_module::Paging;

/// The exercises, in the order of the document.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Exercise {
    /// The VMX capability report
    Capabilities,
    /// VMCALL 0x283
    Hypercall,
    /// The four leaves, in both layouts and both editions
    Leaves,
    /// The totals of a boot and of a reboot
    Boot,
    /// Five successive queries
    Queries,
    /// The most and the least frequent reasons
    Reasons,
    /// Nested against shadow paging
    Paging,
}

impl Exercise {
    /// As the command line and files name it.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// One run of exitvisor.
#[derive(Debug)]
pub(crate) struct Run {
    /// Names it, and the files that it leaves.
    pub(crate) name: &'static str,
    /// Which exercises look at it.
    pub(crate) serves: &'static [Exercise],
    /// Where: on which paging.
    pub(crate) on: &'static [Paging],
    /// What is run.
    pub(crate) what: What,
}

/// What is run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    /// `exitvisor caps`
    Caps,
    /// `exitvisor profile` of the guest kernel, through the firmware.
    Profile {
        options: &'static [&'static str],
        cmdline: &'static str,
    },
}

/// Each reason asked for exits and cycles, and the totals before and after: what the reasons add
/// up to must lie between.
const SWEEP: &str = "log=off leaves=total-exits,exits-of:0-90,exits-of:4294967295,total-exits,\
                     total-cycles,cycles-of:0-90,cycles-of:4294967295,total-cycles";
/// Exits of each reason, and cycles of a few, where another run has asked for all.
const SHORT_SWEEP: &str = "log=off leaves=total-exits,exits-of:0-90,total-exits,total-cycles,\
                           cycles-of:10,cycles-of:30,cycles-of:35,cycles-of:65,cycles-of:71";

/// How many INVLPGs the paging exercise has, besides those of its page-table work.
pub(crate) const PAGING_COUNT: u64 = 200;
/// How many CPUIDs lie between "devices" and "workload" in the run of the queries.
pub(crate) const CPUIDS: u64 = 1000;
/// How many queries are asked in a row.
pub(crate) const QUERIES: usize = 5;

use Exercise::{Boot, Capabilities, Hypercall, Leaves, Paging as OfPaging, Queries, Reasons};
use Paging::{Nested, Shadow};

/// Every run.
pub(crate) const RUNS: &[Run] = &[
    Run {
        name: "capabilities",
        serves: &[Capabilities],
        on: &[Nested],
        what: What::Caps,
    },
    Run {
        name: "hypercall",
        serves: &[Hypercall],
        on: &[Nested],
        what: What::Profile {
            options: &[],
            cmdline: "log=off hypercall",
        },
    },
    Run {
        name: "leaves-classic",
        serves: &[Leaves],
        on: &[Nested],
        what: What::Profile {
            options: &["--leaves", "classic"],
            cmdline: SWEEP,
        },
    },
    Run {
        name: "leaves-classic-2020",
        serves: &[Leaves],
        on: &[Nested],
        what: What::Profile {
            options: &["--leaves", "classic", "--sdm", "2020"],
            cmdline: SHORT_SWEEP,
        },
    },
    Run {
        name: "leaves-reversed",
        serves: &[Leaves],
        on: &[Nested],
        what: What::Profile {
            options: &["--leaves", "reversed"],
            cmdline: SWEEP,
        },
    },
    Run {
        name: "leaves-reversed-2020",
        serves: &[Leaves],
        on: &[Nested],
        what: What::Profile {
            options: &["--leaves", "reversed", "--sdm", "2020"],
            cmdline: SHORT_SWEEP,
        },
    },
    Run {
        name: "boot",
        serves: &[Boot, Reasons],
        on: &[Nested],
        what: What::Profile {
            options: &["--on-reset", "continue"],
            cmdline: "exits=leaves reboot=1",
        },
    },
    Run {
        name: "queries",
        serves: &[Queries],
        on: &[Nested],
        what: What::Profile {
            options: &[],
            cmdline: "exits=leaves queries=5 workload=cpuid:1000,pio:500,hlt:20",
        },
    },
    Run {
        name: "queries-page",
        serves: &[Queries],
        on: &[Nested],
        what: What::Profile {
            options: &[],
            cmdline: "exits=page queries=5",
        },
    },
    Run {
        name: "paging",
        serves: &[OfPaging],
        on: &[Nested, Shadow],
        what: What::Profile {
            options: &[],
            cmdline: "log=off workload=ptes:64,invlpg:200,cr:200,cpuid:200",
        },
    },
    sweep("ptes-16", "log=off workload=ptes:16"),
    sweep("ptes-64", "log=off workload=ptes:64"),
    sweep("ptes-256", "log=off workload=ptes:256"),
];

/// Page-table work of one length, on both pagings.
const fn sweep(name: &'static str, cmdline: &'static str) -> Run {
    Run {
        name,
        serves: &[OfPaging],
        on: &[Nested, Shadow],
        what: What::Profile {
            options: &[],
            cmdline,
        },
    }
}

/// The runs that differ in the length of their page-table work, with that length.
pub(crate) const SWEEP_RUNS: [(&str, u64); 3] =
    [("ptes-16", 16), ("ptes-64", 64), ("ptes-256", 256)];

/// The runs on this paging that serve one of these exercises.
pub(crate) fn runs(paging: Paging, wanted: &[Exercise]) -> Vec<&'static Run> {
    let serves = |run: &&Run| run.serves.iter().any(|exercise| wanted.contains(exercise));
    let runs = RUNS.iter().filter(|run| run.on.contains(&paging));
    runs.filter(serves).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exercise_has_its_run_and_names_are_distinct() {
        for exercise in Exercise::value_variants() {
            assert!(!runs(Nested, &[*exercise]).is_empty(), "{exercise:?}");
        }
        let only: Vec<_> = runs(Shadow, Exercise::value_variants());
        let only: Vec<_> = only.iter().map(|r| r.name).collect();
        assert_eq!(only, ["paging", "ptes-16", "ptes-64", "ptes-256"]);
        assert!(runs(Shadow, &[Leaves]).is_empty());
        for (i, run) in RUNS.iter().enumerate() {
            assert!(RUNS[..i].iter().all(|other| other.name != run.name));
        }
    }

    #[test]
    fn counts_are_those_of_the_command_lines() {
        let cmdline = |name| {
            let run = RUNS.iter().find(|run| run.name == name).unwrap();
            match run.what {
                What::Profile { cmdline, .. } => cmdline,
                What::Caps => "",
            }
        };
        let queries = cmdline("queries");
        assert!(queries.contains(&format!("queries={QUERIES} workload=cpuid:{CPUIDS},")));
        for (name, length) in SWEEP_RUNS {
            assert!(cmdline(name).ends_with(&format!("=ptes:{length}")));
        }
        assert!(cmdline("paging").contains(&format!("invlpg:{PAGING_COUNT},")));
    }
}
