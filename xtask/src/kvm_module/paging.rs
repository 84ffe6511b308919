//! How KVM translates a guest's addresses: a parameter of the vendor's module.

use std::fs;
use std::path::Path;

use clap::ValueEnum;

use crate::lab::Host;

/// How KVM translates a guest's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(crate) enum Paging {
    /// By the processor: EPT (Intel), NPT (AMD)
    Nested,
    /// By page tables that KVM keeps in step with the guest's
    Shadow,
}

/// The vendors' modules, and the parameter of each that asks for nested paging.
pub(super) const PARAMETERS: [(&str, &str); 2] = [("kvm_intel", "ept"), ("kvm_amd", "npt")];

impl Paging {
    /// Both of them.
    pub(crate) const BOTH: [Self; 2] = [Self::Nested, Self::Shadow];

    /// As a profile has it; for people, and in names of files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nested => "nested",
            Self::Shadow => "shadow",
        }
    }

    /// What this machine's module was loaded with; `None` where nothing below `/sys/module` says so.
    pub(crate) fn of_machine(modules: &Path) -> Option<Self> {
        let mut values = PARAMETERS.iter().filter_map(|(module, parameter)| {
            fs::read_to_string(modules.join(module).join("parameters").join(parameter)).ok()
        });
        Self::of_value(values.next()?.trim())
    }

    /// What a parameter's value means, as the kernel tells it.
    pub(super) fn of_value(value: &str) -> Option<Self> {
        match value {
            "Y" | "1" => Some(Self::Nested),
            "N" | "0" => Some(Self::Shadow),
            _ => None,
        }
    }

    /// What a module is loaded with to have it: `npt=0`.
    pub(super) fn assigned(self, parameter: &str) -> String {
        let value = match self {
            Self::Nested => 1,
            Self::Shadow => 0,
        };
        format!("{parameter}={value}")
    }

    /// The same for this vendor's module.
    pub(crate) fn parameter(self, host: Host) -> String {
        let [(_, ept), (_, npt)] = PARAMETERS;
        self.assigned(match host {
            Host::Amd => npt,
            Host::Intel => ept,
        })
    }
}
