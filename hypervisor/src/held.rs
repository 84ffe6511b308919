//! What a run opens once and holds while its machine is built anew: once everything is open,
//! Exitvisor drops its capabilities, and may open nothing of it again.

use std::sync::Arc;

use kvm_ioctls::Kvm;

use crate::boot::files::Files;
use crate::config::Config;
use crate::devices::virtio::block::Disk;
use crate::error::Error;
use crate::exits::source::open::{self, KernelSide};
use crate::marks::leaf::Stops;
use crate::profile::{KvmKind, SourceInfo};

/// What is held.
#[derive(Default)]
pub struct Held {
    /// The images.
    pub files: Files,
    kvm: Option<Arc<Kvm>>,
    kernel: Option<KernelSide>,
    stops: Option<Stops>,
    disks: Option<Vec<Arc<Disk>>>,
}

impl Held {
    /// `/dev/kvm`, opened by the first who asks.
    pub fn kvm(&mut self, open: impl FnOnce() -> Result<Kvm, Error>) -> Result<Arc<Kvm>, Error> {
        match &mut self.kvm {
            Some(kvm) => Ok(kvm.clone()),
            none => Ok(none.insert(Arc::new(open()?)).clone()),
        }
    }

    /// The kernel-side ledger, opened by the first who asks.
    pub fn kernel(&mut self, config: &Config, kvm: KvmKind) -> &KernelSide {
        self.kernel.get_or_insert_with(|| {
            let (cpus, memory) = (config.cpus.get(), config.memory.bytes());
            KernelSide::open(&config.kernel_ledger, kvm, cpus, memory)
        })
    }

    /// What makes KVM_RUN return at CPUID leaves, opened by the first who asks.
    pub fn stops(&mut self, config: &Config) -> &Stops {
        self.stops.get_or_insert_with(|| {
            let tracefs = config.kernel_ledger.tracefs.as_deref();
            Stops::open(&config.milestones, tracefs)
        })
    }

    /// The disks, opened and locked by the first who asks: what has been written stays written, and
    /// nobody else gets them in between.
    pub fn disks(&mut self, config: &Config) -> Result<Vec<Arc<Disk>>, Error> {
        if let Some(disks) = &self.disks {
            return Ok(disks.clone());
        }
        let open = |wish| Disk::open(wish).map(Arc::new);
        let disks: Result<Vec<_>, _> = config.devices.disks.iter().map(open).collect();
        Ok(self.disks.insert(disks?).clone())
    }

    /// What the sources missed, now that the run is over: added to what is said of them.
    pub fn admit_gaps(&self, sources: &mut [SourceInfo]) {
        let Some(kernel) = &self.kernel else { return };
        let gaps = kernel.ledger.as_deref().and_then(open::gaps);
        let info = sources
            .iter_mut()
            .find(|info| info.name == kernel.info.name);
        if let Some((gaps, info)) = gaps.zip(info) {
            info.completeness = format!("{}; {gaps}", info.completeness);
        }
    }

    /// What a person is to be told before the guest runs.
    pub fn notice(&self) -> Option<&str> {
        self.kernel.as_ref()?.notice.as_deref()
    }
}
