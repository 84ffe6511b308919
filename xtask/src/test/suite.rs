//! What is tested in which lab.

use std::time::Duration;

use clap::ValueEnum;

use crate::kvm_module::Paging;
use crate::lab::{Host, Version};

/// A lab, and what runs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// kvm_intel of Linux 6.12
    #[value(name = "intel-lab")]
    Intel,
    /// kvm_amd of Linux 6.12
    #[value(name = "amd-lab")]
    Amd,
    /// kvm_amd of Linux 6.1
    #[value(name = "amd-lab-6.1")]
    Amd61,
    /// kvm_amd of Linux 6.12 on two CPUs: several VMs, SMP, threads that migrate
    #[value(name = "amd-lab-smp")]
    AmdSmp,
    /// kvm_intel of Linux 6.1
    #[value(name = "intel-lab-6.1")]
    Intel61,
    /// kvm_amd without nested paging
    #[value(name = "amd-lab-shadow")]
    AmdShadow,
    /// kvm_intel without EPT
    #[value(name = "intel-lab-shadow")]
    IntelShadow,
}

impl Suite {
    /// Those that `cargo xtask test` runs, the slowest first.
    pub(crate) const USUAL: [Self; 6] = [
        Self::Intel,
        Self::Amd,
        Self::Amd61,
        Self::IntelShadow,
        Self::AmdSmp,
        Self::AmdShadow,
    ];

    /// All of them, the slowest first.
    pub(crate) const ALL: [Self; 7] = [
        Self::Intel61,
        Self::Intel,
        Self::IntelShadow,
        Self::Amd61,
        Self::Amd,
        Self::AmdShadow,
        Self::AmdSmp,
    ];

    /// Whose CPU.
    pub(crate) fn host(self) -> Host {
        match self {
            Self::Intel | Self::Intel61 | Self::IntelShadow => Host::Intel,
            Self::Amd | Self::Amd61 | Self::AmdSmp | Self::AmdShadow => Host::Amd,
        }
    }

    /// On which kernel.
    pub(crate) fn kernel(self) -> Version {
        match self {
            Self::Amd61 | Self::Intel61 => Version::V6_1,
            _ => Version::V6_12,
        }
    }

    /// How many CPUs the lab has.
    pub(crate) fn cpus(self) -> u32 {
        match self {
            Self::AmdSmp => 2,
            _ => 1,
        }
    }

    /// How its KVM translates addresses.
    pub(crate) fn paging(self) -> Paging {
        if self.is_shadowed() {
            Paging::Shadow
        } else {
            Paging::Nested
        }
    }

    /// Whether this is a lab of which the usual run takes only what is about shadow paging.
    pub(crate) fn is_shadowed(self) -> bool {
        matches!(self, Self::AmdShadow | Self::IntelShadow)
    }

    /// Whether this black-box test program runs there; in the usual run, or when more is asked for.
    pub(crate) fn wants(self, program: &str, usual: bool) -> bool {
        match self {
            // Linux where KVM shadows: on the one emulated CPU that is fast enough.
            _ if program == "linux_shadow" => self == Self::AmdShadow,
            _ if usual && self.is_shadowed() => program == "paging",
            Self::AmdSmp => [
                "exit_log",
                "exit_page",
                "exitlog",
                "gates",
                "neighbours",
                "smp",
            ]
            .contains(&program),
            Self::AmdShadow | Self::IntelShadow => [
                "exit_log",
                "exit_page",
                "kernel_ledger",
                "neighbours",
                "paging",
            ]
            .contains(&program),
            // Emulated CPUs are too slow for Linux inside Linux, but one.
            Self::Intel | Self::Intel61 if program == "exitlog" || program.starts_with("linux") => {
                false
            }
            // Where breakpoints are is the guest's, not the host's: one lab does.
            Self::Amd61 if usual && program == "linux_milestones" => false,
            // Budgets are of one host: the set-up of most published figures.
            _ if program == "linux_cost" => self == Self::Amd61,
            // The slowest lab: what the others show of firmware and devices is not the vendor's.
            Self::Intel if ["firmware", "platform"].contains(&program) => false,
            // Command lines, files and formats are the same everywhere, a lab has no `unshare`, and its
            // KVM is not software.
            _ => {
                let elsewhere = [
                    "emulated", "host", "images", "mutants", "options", "output", "profiles",
                    "terminal",
                ];
                !elsewhere.contains(&program)
            }
        }
    }

    /// After this long it has failed.
    pub(crate) fn limit(self) -> Duration {
        Duration::from_secs(match self.host() {
            Host::Amd => 1200,
            Host::Intel => 2100,
        })
    }

    /// For people: `AMD lab 6.12`.
    pub(crate) fn title(self) -> String {
        let kernel = match self.kernel() {
            Version::V6_1 => "6.1",
            Version::V6_12 => "6.12",
        };
        let more = match self {
            Self::AmdSmp => ", 2 CPUs",
            Self::AmdShadow => ", npt=0",
            Self::IntelShadow => ", ept=0",
            _ => "",
        };
        format!("{} {kernel}{more}", self.host().title())
    }

    /// As the command line names it.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_all() {
        assert_eq!(Suite::ALL.len(), Suite::value_variants().len());
        assert!(Suite::USUAL.iter().all(|usual| Suite::ALL.contains(usual)));
        for (suite, program, usual, wanted) in [
            (Suite::AmdShadow, "paging", true, true),
            (Suite::AmdShadow, "neighbours", true, false),
            (Suite::AmdShadow, "linux_shadow", true, true),
            (Suite::IntelShadow, "linux_shadow", false, false),
            (Suite::Amd, "linux_shadow", true, false),
            (Suite::IntelShadow, "neighbours", false, true),
            (Suite::Amd, "neighbours", true, true),
            (Suite::Amd61, "host", false, false),
        ] {
            assert_eq!(suite.wants(program, usual), wanted, "{suite:?} {program}");
        }
        assert_eq!(Suite::Amd61.title(), "AMD lab 6.1");
        assert_eq!(Suite::AmdSmp.name(), "amd-lab-smp");
    }
}
