//! Opening the sources: which of them this host and this person's rights allow, said in a line each.

use std::path::PathBuf;
use std::sync::Arc;

use kvm_ioctls::VcpuFd;

use super::attribution::KernelSource;
use super::kernel::{KernelLedger, Level, Options};
use super::run::RunSource;
use super::stats::StatsSource;
use super::{Source, SourceKind};
use crate::exits::books::VcpuBook;
use crate::exits::hypercall::Mechanism;
use crate::exits::ledger::Ledger;
use crate::exits::rate::Rate;
use crate::profile::figures::EMULATED_EVENTS;
use crate::profile::{KvmKind, SourceInfo};

/// What is wanted of the kernel-side ledger.
#[derive(Clone, Debug, Default)]
pub struct KernelWish {
    /// How much it keeps; `None`: it is not opened.
    pub level: Option<Level>,
    /// Where tracefs is mounted, if not at a usual place.
    pub tracefs: Option<PathBuf>,
}

/// The kernel-side ledger of a run, or why there is none.
#[derive(Clone)]
pub struct KernelSide {
    /// It, if it could be opened.
    pub ledger: Option<Arc<KernelLedger>>,
    /// What a profile says of it.
    pub info: SourceInfo,
    /// What a person is told who wanted it in vain.
    pub notice: Option<String>,
}

impl KernelSide {
    /// Opens it, as far as it is wanted and allowed.
    pub fn open(wish: &KernelWish, kvm: KvmKind, vcpus: u32, memory: u64) -> Self {
        let name = SourceKind::Kernel.name().to_owned();
        let none = |why: String, notice| Self {
            ledger: None,
            info: SourceInfo {
                name: name.clone(),
                available: false,
                completeness: why,
                level: None,
            },
            notice,
        };
        let Some(level) = wish.level else {
            return none("not wanted (--ledger off)".into(), None);
        };
        let options = Options {
            level,
            kvm,
            vcpus,
            memory,
            tracefs: wish.tracefs.as_deref(),
        };
        let ledger = match KernelLedger::open(&options) {
            Ok(ledger) => ledger,
            Err(error) => {
                let lost = match kvm {
                    KvmKind::Software => "events that KVM emulates are not counted",
                    _ => "exits that the kernel handles are counted, but not by reason",
                };
                let notice = format!("no kernel ledger, {lost}: {error}");
                return none(error.to_string(), Some(notice));
            }
        };
        let completeness = if ledger.is_emulated() {
            "no exits: this KVM traces none. Emulated events instead (CPUID, MSR, port I/O, MMIO, …), \
             with the MSRs, ports and leaves"
                .into()
        } else {
            every_exit(level)
        };
        Self {
            info: SourceInfo {
                name: match ledger.is_emulated() {
                    true => EMULATED_EVENTS.to_owned(),
                    false => name,
                },
                available: true,
                completeness,
                level: (!ledger.is_emulated()).then(|| level.to_string()),
            },
            ledger: Some(Arc::new(ledger)),
            notice: None,
        }
    }
}

/// What a ledger knows of its own gaps once the run is over; nothing where it has none.
pub fn gaps(ledger: &KernelLedger) -> Option<String> {
    let missed = ledger.missed().unwrap_or(0);
    let stray = ledger.stray();
    let mut gaps = Vec::new();
    if missed > 0 {
        gaps.push(format!(
            "{missed} events missed: the kernel was busy with another program"
        ));
    }
    if stray > 0 {
        gaps.push(format!("{stray} events of no vCPU that it knows"));
    }
    (!gaps.is_empty()).then(|| gaps.join("; "))
}

/// What the ledger keeps of every exit.
fn every_exit(level: Level) -> String {
    let what = "every exit by the processor's own code, with who caused it";
    let rate = Rate::measured().mhz();
    let cycles = format!(
        "cycles from exit to next entry (the kernel's nanoseconds times the TSC's rate, \
         measured: {rate} MHz)"
    );
    match level {
        Level::Counts => format!("{what}; no cycles"),
        Level::Cycles => format!("{what}; {cycles}"),
        Level::Histogram => format!("{what}; {cycles}; a histogram of durations per reason"),
    }
}

/// Opens the sources for one vCPU and says how complete they are.
pub fn open(
    fd: &VcpuFd,
    index: u32,
    ledger: &Arc<Ledger>,
    kvm: KvmKind,
    kernel: &KernelSide,
    hypercalls: Mechanism,
) -> (VcpuBook, Vec<SourceInfo>) {
    let mut sources: Vec<Box<dyn Source>> = vec![Box::new(RunSource(ledger.clone()))];
    let mut infos = vec![SourceInfo {
        name: SourceKind::Run.name().into(),
        available: true,
        completeness:
            "every exit that reaches userspace, with cycles from KVM_RUN's return to the \
                       next entry; exits handled in the kernel are not seen"
                .into(),
        level: None,
    }];
    let software = kvm == KvmKind::Software;
    let answered_by_kvm = hypercalls == Mechanism::Gate;
    let (available, completeness) = match StatsSource::open(fd, !software, answered_by_kvm) {
        Ok(stats) => {
            sources.push(Box::new(stats));
            let what = if software {
                "the total of all exits, as software KVM counts them; HLT per reason (the other \
                 counters stay 0 there); no cycles"
            } else if answered_by_kvm {
                "the total of all exits; HLT, external interrupt, I/O, interrupt and NMI window, \
                 VMCALL per reason; no cycles"
            } else {
                "the total of all exits; HLT, external interrupt, I/O, interrupt and NMI window \
                 per reason; no cycles"
            };
            (true, what.to_owned())
        }
        Err(error) => (
            false,
            format!("{error}: exits handled in the kernel are not counted"),
        ),
    };
    infos.push(SourceInfo {
        name: SourceKind::Stats.name().into(),
        available,
        completeness,
        level: None,
    });
    if let Some(ledger) = &kernel.ledger {
        sources.push(Box::new(KernelSource::new(ledger.clone(), index, kvm)));
    }
    infos.push(kernel.info.clone());
    let book = VcpuBook {
        ledger: ledger.clone(),
        sources,
    };
    (book, infos)
}
