//! The survey: what this host's KVM can intercept and control, as far as whoever asks may see it
//! (`exitvisor caps`). Pure data once it is taken; `report::survey` renders it.

pub mod capabilities;
mod cpu;
#[cfg(test)]
pub(crate) mod fixtures;
mod modules;
mod msr;
mod sources;
pub mod svm;
pub mod vmx;

use kvm_ioctls::Kvm;
use serde::Serialize;

use crate::profile::{Host, KvmKind, SourceInfo, Tool};
use crate::{host, vm};
use capabilities::Capability;
use modules::Module;
use svm::Svm;
use vmx::Vmx;

/// Version of the survey's JSON.
pub const VERSION: u32 = 1;

/// What is known of this host.
#[derive(Clone, Debug, Serialize)]
pub struct Survey {
    /// [`VERSION`].
    pub survey: u32,
    /// What took it.
    pub tool: Tool,
    /// The machine, its kernel and its KVM.
    pub host: Host,
    /// `GenuineIntel`, `AuthenticAMD`, … by CPUID.
    pub vendor: String,
    /// CPUID says that this CPU is one of a virtual machine.
    pub virtual_machine: bool,
    /// Why there is no usable `/dev/kvm`, and what to do.
    pub no_kvm: Option<String>,
    /// KVM's modules with their parameters.
    pub modules: Vec<Module>,
    /// Where exits are counted, and why not elsewhere.
    pub sources: Vec<SourceInfo>,
    /// KVM's capabilities that matter here; none without `/dev/kvm`.
    pub capabilities: Vec<Capability>,
    /// Intel's virtualization.
    pub vmx: Vmx,
    /// AMD's.
    pub svm: Svm,
}

/// A number that JSON shows in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hex(pub u64);

impl std::fmt::Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Survey {
    /// Takes it. Whatever cannot be had is named in it, never an error.
    pub fn take() -> Self {
        let kind = host::kvm_kind();
        let usable = vm::open_kvm();
        let no_kvm = usable.as_ref().err().map(ToString::to_string);
        // What can be opened at all can be asked, even if no guest runs on it.
        let kvm = usable.ok().or_else(|| Kvm::new().ok());
        let modules = modules::of_kvm();
        let cpu = cpu::Cpu::this();
        let offered = msr::offered(kvm.as_ref(), kind, &modules);
        let own = msr::own(cpu.vmx);
        Self {
            survey: VERSION,
            tool: Tool {
                name: env!("CARGO_PKG_NAME").to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            host: host::describe(kind, tsc_khz(kvm.as_ref())),
            vendor: cpu.vendor.clone(),
            virtual_machine: cpu.virtual_machine,
            sources: sources::all(no_kvm.as_deref(), kvm.as_ref(), kind),
            no_kvm,
            modules,
            capabilities: kvm.as_ref().map_or_else(Vec::new, capabilities::of),
            vmx: Vmx::of(offered, own),
            svm: Svm::of(&cpu, kvm.as_ref()),
        }
    }
}

impl Survey {
    /// The module of this KVM, for people.
    pub fn kvm(&self) -> &'static str {
        match self.host.kvm {
            KvmKind::Unknown if self.no_kvm.is_some() => "no KVM",
            kind => kind.module(),
        }
    }
}

/// The TSC's rate as a vCPU of this KVM would have it; 0 if KVM does not tell.
fn tsc_khz(kvm: Option<&Kvm>) -> u64 {
    let rate = || {
        let vm = kvm?.create_vm().ok()?;
        let vcpu = vm.create_vcpu(0).ok()?;
        vcpu.get_tsc_khz().ok()
    };
    rate().unwrap_or(0).into()
}
