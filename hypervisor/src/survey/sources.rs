//! Which exit sources there are on this host for this person: opened on a VM that never runs.

use std::sync::Arc;

use kvm_ioctls::Kvm;

use crate::exits::hypercall::Mechanism;
use crate::exits::ledger::Ledger;
use crate::exits::source::SourceKind;
use crate::exits::source::kernel::Level;
use crate::exits::source::open::{self, KernelSide, KernelWish};
use crate::profile::{KvmKind, SourceInfo};

/// Guest memory that the kernel ledger's programs are made for.
const MEMORY: u64 = 64 << 20;

/// All of them, those that are not available with the reason.
pub(super) fn all(no_kvm: Option<&str>, kvm: Option<&Kvm>, kind: KvmKind) -> Vec<SourceInfo> {
    let kinds = [SourceKind::Run, SourceKind::Stats, SourceKind::Kernel];
    let none = |why: &str| {
        let none = |kind: SourceKind| SourceInfo {
            name: kind.name().to_owned(),
            available: false,
            completeness: why.to_owned(),
            level: None,
        };
        kinds.into_iter().map(none).collect()
    };
    match (no_kvm, kvm) {
        (Some(why), _) => none(why),
        (None, Some(kvm)) => {
            of(kvm, kind).unwrap_or_else(|error| none(&format!("KVM makes no VM: {error}")))
        }
        (None, None) => none("there is no usable /dev/kvm"),
    }
}

fn of(kvm: &Kvm, kind: KvmKind) -> Result<Vec<SourceInfo>, kvm_ioctls::Error> {
    let vm = kvm.create_vm()?;
    let vcpu = vm.create_vcpu(0)?;
    let wish = KernelWish {
        level: Some(Level::Cycles),
        tracefs: None,
    };
    // As much memory as a guest has that was given none: the programs know where RAM ends.
    let kernel = KernelSide::open(&wish, kind, 1, MEMORY);
    let ledger = Arc::new(Ledger::default());
    Ok(open::open(&vcpu, 0, &ledger, kind, &kernel, Mechanism::Gate).1)
}
