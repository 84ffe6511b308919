//! Opening the ledger: tracepoints found, maps made and frozen, programs loaded and attached.

use std::ffi::CStr;
use std::io;
use std::sync::Mutex;

use exit_abi::reason::Reason;

use super::asks::{self, AskKind};
use super::asm::{Asm, Insn, Map, MapFds};
use super::bpf::{self, ArrayMap, Kind, Program};
use super::error::KernelLedgerError as Error;
use super::format::Field;
use super::layout::{self, Sizes, header, row};
use super::programs::{self, ExitFields, Vm};
use super::slots::SLOTS;
use super::tracefs::Tracefs;
use super::{Attached, KernelLedger, Level, Options};
use crate::profile::KvmKind;

/// Opens the ledger; nothing is attached unless everything is.
pub(super) fn open(options: &Options) -> Result<KernelLedger, Error> {
    let Options { kvm, vcpus, .. } = *options;
    // Emulated events have no entry that would close them.
    let level = match kvm {
        KvmKind::Unknown => return Err(Error::UnknownKvm),
        KvmKind::Software => Level::Counts,
        KvmKind::Intel | KvmKind::Amd => options.level,
    };
    let tracefs = Tracefs::find(options.tracefs)?;
    let vm = Vm {
        tgid: whoami()?,
        vcpus,
        sizes: Sizes::of(vcpus),
    };
    let plans = if kvm == KvmKind::Software {
        emulated(&tracefs, &vm)?
    } else {
        hardware(&tracefs, &vm, kvm, level)?
    };

    let maps = Maps::create(vm.sizes, level)?;
    let fds = maps.fds();
    let enlister = load("enlist", Kind::RawTracepoint, programs::enlist(&vm), &fds)?;
    let attached = plans
        .into_iter()
        .map(|plan| plan.carry_out(&fds))
        .collect::<Result<_, _>>()?;

    let failed = |source| bpf_error("map the ledger into memory", source);
    Ok(KernelLedger {
        level,
        kvm,
        vcpus,
        sizes: vm.sizes,
        ledger: maps.ledger.map(false).map_err(failed)?,
        marks: maps.marks.map(true).map_err(failed)?,
        asks: maps.asks.map(false).map_err(failed)?,
        histogram: match &maps.histogram {
            Some(histogram) => Some(histogram.map(false).map_err(failed)?),
            None => None,
        },
        enlister,
        enlisting: Mutex::new(()),
        attached,
    })
}

/// The maps, filled and frozen.
struct Maps {
    ledger: ArrayMap,
    marks: ArrayMap,
    asks: ArrayMap,
    histogram: Option<ArrayMap>,
}

impl Maps {
    fn create(sizes: Sizes, level: Level) -> Result<Self, Error> {
        let create = |size| ArrayMap::create(size).map_err(|e| bpf_error("make a map (bpf)", e));
        let maps = Self {
            ledger: create(sizes.ledger())?,
            marks: create(sizes.marks())?,
            asks: create(sizes.asks())?,
            histogram: match level {
                Level::Histogram => Some(create(sizes.histogram())?),
                Level::Counts | Level::Cycles => None,
            },
        };
        let fill = |map: &ArrayMap, words: &[u64]| {
            map.fill(words)
                .map_err(|e| bpf_error("fill a map (bpf)", e))
        };
        fill(&maps.ledger, &fresh_records(sizes))?;
        fill(&maps.asks, &asks::fresh_block().repeat(sizes.records))?;
        // All but the marks, which are ours to write.
        let frozen = [
            Some(&maps.ledger),
            Some(&maps.asks),
            maps.histogram.as_ref(),
        ];
        for map in frozen.into_iter().flatten() {
            map.freeze().map_err(Error::Freeze)?;
        }
        Ok(maps)
    }

    /// Their descriptors, in the order of [`Map::ALL`].
    fn fds(&self) -> MapFds {
        Map::ALL.map(|map| {
            let map = match map {
                Map::Ledger => Some(&self.ledger),
                Map::Marks => Some(&self.marks),
                Map::Asks => Some(&self.asks),
                Map::Histogram => self.histogram.as_ref(),
            };
            map.map_or(-1, ArrayMap::as_raw_fd)
        })
    }
}

/// Records and headers in which nothing has happened.
pub(super) fn fresh_records(sizes: Sizes) -> Vec<u64> {
    let mut words = vec![0; sizes.threads() / 8];
    let (records, headers) = words.split_at_mut(sizes.headers() / 8);
    for record in records.chunks_exact_mut(layout::RECORD / 8) {
        for slot in 0..SLOTS {
            record[((slot << layout::ROW_SHIFT) + row::MIN_NS) / 8] = u64::MAX;
        }
    }
    for (vcpu, header) in headers
        .chunks_exact_mut((1 << layout::HEADER_SHIFT) / 8)
        .enumerate()
    {
        header[header::OPEN_NS / 8] = header::CLOSED;
        header[header::MARK / 8] = (vcpu << layout::MARK_SHIFT) as u64;
    }
    words
}

/// Where a program goes.
enum Place {
    /// A tracepoint: programs see its record.
    Tracepoint(u64),
    /// A raw tracepoint: programs see its arguments.
    Raw(&'static CStr),
}

/// A program, and where it goes.
struct Plan {
    event: &'static str,
    place: Place,
    asm: Asm,
}

impl Plan {
    fn carry_out(self, fds: &MapFds) -> Result<Attached, Error> {
        let kind = match self.place {
            Place::Tracepoint(_) => Kind::Tracepoint,
            Place::Raw(_) => Kind::RawTracepoint,
        };
        let program = load(self.event, kind, self.asm, fds)?;
        let event = self.event;
        let link = match self.place {
            Place::Tracepoint(id) => {
                let tracepoint = bpf::tracepoint(id).map_err(|e| open_error(event, e))?;
                program
                    .attach(&tracepoint)
                    .map_err(|source| Error::Attach { event, source })?;
                tracepoint
            }
            Place::Raw(name) => program
                .attach_raw(name)
                .map_err(|source| Error::Attach { event, source })?,
        };
        Ok(Attached {
            program,
            _link: link,
        })
    }
}

/// What counts hardware's exits.
fn hardware(tracefs: &Tracefs, vm: &Vm, kvm: KvmKind, level: Level) -> Result<Vec<Plan>, Error> {
    let event = tracefs.event("kvm_exit")?;
    let fields = ExitFields {
        vcpu_id: event.field("vcpu_id", &[4])?,
        exit_reason: event.field("exit_reason", &[4, 8])?,
        info1: event.field("info1", &[8])?,
    };
    let mut plans = Vec::new();
    if level >= Level::Cycles {
        plans.push(Plan {
            event: "kvm_entry",
            place: Place::Raw(c"kvm_entry"),
            asm: programs::entry(vm, level),
        });
    }
    for name in ["kvm_msr", "kvm_pio"] {
        plans.push(traced(tracefs, vm, name, None)?);
    }
    plans.push(Plan {
        event: "kvm_exit",
        place: Place::Tracepoint(event.id),
        asm: programs::exit(vm, kvm, level, &fields),
    });
    Ok(plans)
}

/// The emulated events that are counted, each as the reason that hardware would give it: a read,
/// and a write.
///
/// Not among them, by experiment on a software KVM of Linux 6.18: kvm_cr never fires, however often
/// CR0 is written; kvm_vcpu_wakeup misses each HLT that need not wait, and KVM's statistic
/// `halt_exits` has them all; kvm_apic_accept_irq and kvm_inj_exception tell what the guest is
/// given, for which hardware needs no exit.
const EMULATED: [(&str, Reason, Reason); 5] = [
    ("kvm_cpuid", Reason::CPUID, Reason::CPUID),
    ("kvm_hypercall", Reason::VMCALL, Reason::VMCALL),
    ("kvm_pio", Reason::IO, Reason::IO),
    ("kvm_msr", Reason::RDMSR, Reason::WRMSR),
    ("kvm_mmio", Reason::EPT_MISCONFIG, Reason::EPT_MISCONFIG),
];

/// Whether emulated events of this reason are counted.
pub(super) fn is_emulated_for(reason: Reason) -> bool {
    EMULATED
        .iter()
        .any(|&(_, read, write)| [read, write].contains(&reason))
}

/// What counts a software KVM's emulated events.
fn emulated(tracefs: &Tracefs, vm: &Vm) -> Result<Vec<Plan>, Error> {
    EMULATED
        .into_iter()
        .map(|(name, read, write)| traced(tracefs, vm, name, Some((read, write))))
        .collect()
}

/// A program on one of KVM's other tracepoints: counts it as an exit if it has reasons, and keeps
/// what was asked for.
///
/// They are attached raw: that costs each event less than half, and to close a classic one takes the
/// kernel a grace period of RCU (60 ms and more). Their arguments are their fields, in the same
/// order; in a kernel where those of kvm_msr and kvm_pio are not, the direction shows it.
fn traced(
    tracefs: &Tracefs,
    vm: &Vm,
    name: &'static str,
    reasons: Option<(Reason, Reason)>,
) -> Result<Plan, Error> {
    let event = tracefs.event(name)?;
    let word = |field| event.field(field, &[4]);
    let argument = |n: usize, size| Field {
        offset: n * 8,
        size,
    };
    let does = |direction, index, first| programs::Event {
        direction: Some(direction),
        reasons,
        ask: Some((first, index)),
        unless: None,
    };
    let (place, does) = match name {
        "kvm_msr" if event.starts_with(&["write", "ecx"]) => (
            Place::Raw(c"kvm_msr"),
            does(argument(0, 8), argument(1, 4), AskKind::MsrRead),
        ),
        "kvm_msr" => (
            Place::Tracepoint(event.id),
            does(word("write")?, word("ecx")?, AskKind::MsrRead),
        ),
        "kvm_pio" if event.starts_with(&["rw", "port"]) => (
            Place::Raw(c"kvm_pio"),
            does(argument(0, 8), argument(1, 4), AskKind::PortIn),
        ),
        "kvm_pio" => (
            Place::Tracepoint(event.id),
            does(word("rw")?, word("port")?, AskKind::PortIn),
        ),
        _ => {
            let raw = match name {
                "kvm_cpuid" if event.starts_with(&["function", "index"]) => Some(c"kvm_cpuid"),
                "kvm_mmio" if event.starts_with(&["type", "len", "gpa"]) => Some(c"kvm_mmio"),
                "kvm_hypercall" if event.starts_with(&["nr"]) => Some(c"kvm_hypercall"),
                _ => None,
            };
            let first = |field| match raw {
                Some(_) => Ok(argument(0, 4)),
                None => word(field),
            };
            let does = programs::Event {
                reasons,
                ask: match name {
                    "kvm_cpuid" => Some((AskKind::CpuidLeaf, first("function")?)),
                    _ => None,
                },
                // A read that leaves for user space is traced then (type 0), and when it is
                // answered (1); one that KVM answers itself, once (1).
                unless: match name {
                    "kvm_mmio" => Some((first("type")?, 0)),
                    _ => None,
                },
                direction: None,
            };
            (raw.map_or(Place::Tracepoint(event.id), Place::Raw), does)
        }
    };
    Ok(Plan {
        event: name,
        place,
        asm: programs::event(vm, &does),
    })
}

/// This process's id as programs see it: in a PID namespace getpid() is another.
fn whoami() -> Result<u32, Error> {
    let none = [-1; Map::ALL.len()];
    let program = load("whoami", Kind::RawTracepoint, programs::whoami(), &none)?;
    let id = program.run(&[]);
    id.map_err(|source| bpf_error("run a program (bpf)", source))
}

fn load(program: &'static str, kind: Kind, asm: Asm, fds: &MapFds) -> Result<Program, Error> {
    let insns: Vec<Insn> = asm.assemble(fds).map_err(|error| Error::Assembler {
        program,
        what: error.to_string(),
    })?;
    Program::load(kind, &insns).map_err(|source| {
        if is_denied(&source) {
            return bpf_error("bpf()", source);
        }
        match last_word(&Program::complaint(kind, &insns)) {
            Some(line) => Error::Verifier { program, line },
            None => bpf_error("load a program (bpf)", source),
        }
    })
}

/// The verifier's last line that says why: the very last are statistics.
fn last_word(log: &str) -> Option<String> {
    let says_why = |line: &&str| !line.trim().is_empty() && !line.starts_with("processed ");
    Some(log.lines().rev().find(says_why)?.trim().to_owned())
}

fn is_denied(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM)
}

fn bpf_error(operation: &'static str, source: io::Error) -> Error {
    if is_denied(&source) {
        return Error::BpfDenied;
    }
    Error::Bpf { operation, source }
}

fn open_error(event: &'static str, source: io::Error) -> Error {
    let denied = source.kind() == io::ErrorKind::PermissionDenied;
    let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid");
    let paranoid = paranoid
        .ok()
        .and_then(|text| text.trim().parse::<i32>().ok());
    let hint = match (denied, paranoid) {
        (false, _) => "",
        (true, Some(3..)) => {
            ": kernel.perf_event_paranoid is above 2 and refuses CAP_PERFMON too: lower it to 2, or \
             run as root"
        }
        (true, _) => ": run as root, or with CAP_PERFMON",
    };
    Error::Open {
        event,
        source,
        hint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifier_s_last_word_is_found() {
        let log =
            "0: (79) r1 = *(u64 *)(r1 +8)\nR1 invalid mem access 'inv'\nprocessed 7 insns\n\n";
        assert_eq!(
            last_word(log).as_deref(),
            Some("R1 invalid mem access 'inv'")
        );
        assert_eq!(last_word(""), None);
    }
}
