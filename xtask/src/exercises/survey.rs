//! The fields of what `exitvisor caps --format json` says that the exercises look at.

use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Survey {
    pub(crate) host: Host,
    pub(crate) vmx: Vmx,
    pub(crate) svm: Option<Svm>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Host {
    /// `amd`, `intel`, …
    pub(crate) kvm: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Vmx {
    /// Why KVM offers a guest none.
    pub(crate) no_guest: Option<String>,
    /// Why the bare CPU's own are not known.
    pub(crate) no_cpu: Option<String>,
    pub(crate) msrs: Vec<Msr>,
    pub(crate) controls: Vec<Group>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Msr {
    pub(crate) name: String,
    /// `0x…`
    pub(crate) guest: Option<String>,
}

/// One field of the VMCS.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Group {
    pub(crate) title: String,
    pub(crate) msr: Names,
    pub(crate) controls: Vec<Control>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Names {
    pub(crate) guest: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Control {
    pub(crate) bit: u8,
    /// None of a bit that the SDM reserves.
    pub(crate) name: Option<String>,
    pub(crate) guest: Option<Setting>,
    /// The bare CPU's own.
    pub(crate) cpu: Option<Setting>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Setting {
    pub(crate) can_be_set: bool,
    pub(crate) can_be_cleared: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Svm {
    pub(crate) features: Vec<Feature>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Feature {
    pub(crate) name: String,
    pub(crate) meaning: String,
    /// The CPU has it; KVM offers it to guests.
    pub(crate) cpu: Option<bool>,
    pub(crate) guest: Option<bool>,
}

impl Vmx {
    /// What KVM gives a guest that reads this MSR.
    pub(crate) fn value(&self, msr: &str) -> Option<u64> {
        let msr = self.msrs.iter().find(|known| known.name == msr)?;
        u64::from_str_radix(msr.guest.as_deref()?.strip_prefix("0x")?, 16).ok()
    }
}
