//! Surveys for tests: of an Intel host with everything, and of a machine where little can be seen.

use std::collections::BTreeMap;

use super::cpu::{Cpu, Leaf};
use super::modules::Module;
use super::svm::Svm;
use super::vmx::Vmx;
use super::{Survey, VERSION, capabilities};
use crate::profile::{Host, KvmKind, SourceInfo, Tool};

fn tool() -> Tool {
    Tool {
        name: "exitvisor".into(),
        version: "1.2.3".into(),
    }
}

fn source(name: &str, available: bool, completeness: &str) -> SourceInfo {
    SourceInfo {
        name: name.into(),
        available,
        completeness: completeness.into(),
        level: None,
    }
}

fn module(name: &str, parameters: &[(&str, &str)]) -> Module {
    let parameters = parameters.iter();
    Module {
        name: name.into(),
        parameters: parameters
            .map(|&(name, value)| (name.into(), value.into()))
            .collect(),
    }
}

/// What KVM offers in the Intel lab, with a bit that nobody knows; of the CPU's own two MSRs.
pub(crate) fn intel() -> Survey {
    let offered = [
        (0x480, 0x00d8_1000_11e5_7ed0),
        (0x481, 0x0000_007f_0000_0016),
        (0x485, 0x0000_0000_2000_0165),
        (0x486, 0x0000_0000_8000_0021),
        (0x487, 0x0000_0000_ffff_ffff),
        (0x48c, 0x0000_0f01_0633_4041),
        (0x48d, 0x0000_017f_0000_0016),
    ];
    let own = [
        (0x480, 0x00d8_1000_0000_002b),
        (0x48d, 0x0000_00ff_0000_0016),
    ];
    let cpu = Cpu {
        vendor: "GenuineIntel".into(),
        vmx: true,
        svm: None,
        virtual_machine: false,
    };
    Survey {
        survey: VERSION,
        tool: tool(),
        host: Host {
            cpu: "Intel(R) Core(TM) i7-7800X CPU @ 3.50GHz".into(),
            kernel: "6.12.95".into(),
            kvm: KvmKind::Intel,
            paging: "nested".into(),
            tsc_khz: 3_500_000,
        },
        vendor: cpu.vendor.clone(),
        virtual_machine: false,
        no_kvm: None,
        modules: vec![
            module("kvm", &[("ignore_msrs", "N")]),
            module(
                "kvm_intel",
                &[("ept", "Y"), ("vmentry_l1d_flush", "not required")],
            ),
        ],
        sources: vec![
            source("KVM_RUN", true, "every exit that reaches userspace"),
            source("kernel ledger", false, "it needs CAP_BPF: run as root"),
        ],
        capabilities: capabilities::fixture(),
        vmx: Vmx::of(Ok(BTreeMap::from(offered)), Ok(BTreeMap::from(own))),
        svm: Svm::new(None, None),
    }
}

/// An AMD CPU without a usable KVM.
pub(crate) fn without_kvm() -> Survey {
    let why = "permission denied on /dev/kvm: add yourself to group kvm";
    let leaf = Leaf {
        eax: 1,
        ebx: 16,
        edx: 1 << 22 | 0b1001,
    };
    Survey {
        host: Host {
            cpu: "AMD EPYC\u{1b}[31m".into(),
            kernel: "6.1.0".into(),
            kvm: KvmKind::Unknown,
            paging: "unknown".into(),
            tsc_khz: 0,
        },
        vendor: "AuthenticAMD".into(),
        virtual_machine: true,
        no_kvm: Some(why.into()),
        modules: Vec::new(),
        sources: vec![source("KVM_RUN", false, why)],
        capabilities: Vec::new(),
        vmx: Vmx::of(
            Err("there is no usable /dev/kvm".into()),
            Err("it has none".into()),
        ),
        svm: Svm::new(Some(leaf), None),
        ..intel()
    }
}
