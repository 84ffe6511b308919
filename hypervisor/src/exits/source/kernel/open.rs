//! Opening the ledger: tracepoints found, maps made and frozen, programs loaded and attached.

use std::ffi::CStr;
use std::io;
use std::sync::Mutex;

use exit_abi::reason::Reason;

use super::asm::{Asm, Insn, Map, MapFds};
use super::bpf::{self, ArrayMap, Kind, Program};
use super::callers;
use super::culprits;
use super::error::KernelLedgerError as Error;
use super::format::Field;
use super::layout::{self, Sizes, header, row};
use super::programs::{self, ExitFields, Key, Ram, Role, Vm};
use super::slots::{self, SLOTS};
use super::tracefs::Tracefs;
use super::{Attached, KernelLedger, Level, Options};
use crate::layout as guest_layout;
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
    let (callers, no_callers) = match callers::how(kvm, level) {
        Ok(callers) => (Some(callers), None),
        Err(why) => (None, Some(why)),
    };
    let vm = Vm {
        tgid: whoami()?,
        vcpus,
        sizes: Sizes::of(vcpus),
        ram: ram(options.memory),
        callers,
    };
    let plans = if kvm == KvmKind::Software {
        emulated(&tracefs, &vm)?
    } else {
        hardware(&tracefs, &vm, kvm, level)?
    };

    let maps = Maps::create(vm.sizes, level, kvm)?;
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
        culprits: maps.culprits.map(false).map_err(failed)?,
        histogram: match &maps.histogram {
            Some(histogram) => Some(histogram.map(false).map_err(failed)?),
            None => None,
        },
        enlister,
        enlisting: Mutex::new(()),
        attached,
        no_callers,
    })
}

/// The maps, filled and frozen.
struct Maps {
    ledger: ArrayMap,
    marks: ArrayMap,
    culprits: ArrayMap,
    histogram: Option<ArrayMap>,
    private: ArrayMap,
}

impl Maps {
    fn create(sizes: Sizes, level: Level, kvm: KvmKind) -> Result<Self, Error> {
        let create = |size| ArrayMap::create(size).map_err(|e| bpf_error("make a map (bpf)", e));
        let maps = Self {
            ledger: create(sizes.ledger())?,
            marks: create(sizes.marks())?,
            culprits: create(sizes.culprits())?,
            histogram: match level {
                Level::Histogram => Some(create(sizes.histogram())?),
                Level::Counts | Level::Cycles => None,
            },
            private: create(sizes.private())?,
        };
        let fill = |map: &ArrayMap, words: &[u64]| {
            map.fill(words)
                .map_err(|e| bpf_error("fill a map (bpf)", e))
        };
        fill(&maps.ledger, &fresh_records(sizes))?;
        let block = culprits::fresh_block(kvm);
        fill(&maps.culprits, &block.repeat(sizes.records))?;
        // All but the marks, which are ours to write.
        let frozen = [
            Some(&maps.ledger),
            Some(&maps.culprits),
            maps.histogram.as_ref(),
            Some(&maps.private),
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
                Map::Culprits => Some(&self.culprits),
                Map::Histogram => self.histogram.as_ref(),
                Map::Private => Some(&self.private),
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
pub(super) enum Place {
    /// A tracepoint: programs see its record.
    Tracepoint(u64),
    /// A raw tracepoint: programs see its arguments.
    Raw(&'static CStr),
}

/// A program, and where it goes.
pub(super) struct Plan {
    pub(super) event: &'static str,
    pub(super) place: Place,
    pub(super) asm: Asm,
}

impl Plan {
    pub(super) fn carry_out(self, fds: &MapFds) -> Result<Attached, Error> {
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

/// Where guest RAM above 1 MiB lies, by pages.
fn ram(memory: u64) -> Ram {
    let mut ram = Ram::default();
    for (start, length) in guest_layout::guest_ram(memory) {
        let page = |address: u64| address >> layout::PAGE_SHIFT;
        let pages = (page(start), page(start + length));
        match start {
            guest_layout::HIGH_START => ram.low = pages,
            guest_layout::HOLE_END => ram.high = pages,
            _ => {}
        }
    }
    ram
}

/// What counts hardware's exits.
fn hardware(tracefs: &Tracefs, vm: &Vm, kvm: KvmKind, level: Level) -> Result<Vec<Plan>, Error> {
    let event = tracefs.event("kvm_exit")?;
    let fields = ExitFields {
        vcpu_id: event.field("vcpu_id", &[4])?,
        exit_reason: event.field("exit_reason", &[4, 8])?,
        info1: event.field("info1", &[8])?,
        info2: event.field("info2", &[8])?,
        intr_info: event.field("intr_info", &[4])?,
        rip: event.field("guest_rip", &[8])?,
    };
    let mut plans = Vec::new();
    if level >= Level::Cycles {
        plans.push(Plan {
            event: "kvm_entry",
            place: Place::Raw(c"kvm_entry"),
            asm: programs::entry(vm, level),
        });
    }
    let reason = |reason: Reason| u64::from(reason.number());
    let (cpuid, msrs) = match kvm {
        KvmKind::Amd => (
            slots::SVM_CPUID,
            (slots::SVM_MSR, slots::SVM_MSR_WRITE as u64),
        ),
        _ => (
            reason(Reason::CPUID),
            (reason(Reason::RDMSR), reason(Reason::WRMSR)),
        ),
    };
    // On AMD, Linux before 6.2 traces an exit when it begins to handle it, and some writes of MSRs are
    // done by then. An open exit tells the one from the other, and there is one only if exits are timed.
    let msr = match kvm {
        KvmKind::Amd if level >= Level::Cycles => Role::Around,
        _ => Role::After,
    };
    let mut keys = vec![
        ("kvm_msr", msrs, msr),
        ("kvm_cpuid", (cpuid, cpuid), Role::After),
    ];
    // AMD's record of the exit has the address itself.
    if kvm != KvmKind::Amd {
        let fault = reason(Reason::EPT_VIOLATION);
        let mmio = reason(Reason::EPT_MISCONFIG);
        keys.push(("kvm_page_fault", (fault, fault), Role::After));
        keys.push(("kvm_mmio", (mmio, mmio), Role::After));
    }
    for (name, slots, role) in keys {
        plans.push(traced(
            tracefs,
            vm,
            name,
            slots,
            role,
            level >= Level::Cycles,
        )?);
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
        .map(|(name, read, write)| {
            let slots = (read.number().into(), write.number().into());
            traced(tracefs, vm, name, slots, Role::Emulated, false)
        })
        .collect()
}

/// A program on one of KVM's other tracepoints: tells the key of an exit, or counts what is none.
///
/// They are attached raw: that costs each event less than half, and to close a classic one takes the
/// kernel a grace period of RCU (60 ms and more). Their arguments are their fields, in the same
/// order; in a kernel where those of kvm_msr and kvm_pio are not, the direction shows it.
fn traced(
    tracefs: &Tracefs,
    vm: &Vm,
    name: &'static str,
    slots: (u64, u64),
    role: Role,
    timed: bool,
) -> Result<Plan, Error> {
    let event = tracefs.event(name)?;
    // The first fields of a known order, and the tracepoint by its raw name.
    let (order, raw): (&[&str], &CStr) = match name {
        "kvm_msr" => (&["write", "ecx"], c"kvm_msr"),
        "kvm_pio" => (&["rw", "port"], c"kvm_pio"),
        "kvm_cpuid" => (&["function", "index"], c"kvm_cpuid"),
        "kvm_mmio" => (&["type", "len", "gpa"], c"kvm_mmio"),
        // The first two are of the vCPU, which is the first argument.
        "kvm_page_fault" => (
            &["vcpu_id", "guest_rip", "fault_address"],
            c"kvm_page_fault",
        ),
        _ => (&["nr"], c"kvm_hypercall"),
    };
    let is_raw = event.starts_with(order);
    let field = |field: &str, argument: usize, size| match is_raw {
        true => Ok(Field {
            offset: argument * 8,
            size,
        }),
        false => event.field(field, &[size]),
    };
    // A direction is looked at whole: what is no direction is found out.
    let direction = |name| field(name, 0, if is_raw { 8 } else { 4 });
    let does = programs::Event {
        direction: match name {
            "kvm_msr" => Some(direction("write")?),
            "kvm_pio" => Some(direction("rw")?),
            _ => None,
        },
        // A read that leaves for user space is traced then (type 0), and when it is answered (1); one
        // that KVM answers itself, once (1).
        unless: match (name, role) {
            ("kvm_mmio", Role::Emulated) => Some((field("type", 0, 4)?, 0)),
            _ => None,
        },
        slots,
        key: match name {
            "kvm_msr" => Some(Key::Number(field("ecx", 1, 4)?)),
            "kvm_pio" => Some(Key::Port(field("port", 1, 4)?)),
            "kvm_cpuid" => Some(Key::Number(field("function", 0, 4)?)),
            "kvm_mmio" => Some(Key::Page(field("gpa", 2, 8)?)),
            "kvm_page_fault" => Some(Key::Page(field("fault_address", 1, 8)?)),
            _ => None,
        },
        role,
        timed,
    };
    Ok(Plan {
        event: name,
        place: match is_raw {
            true => Place::Raw(raw),
            false => Place::Tracepoint(event.id),
        },
        asm: programs::event(vm, &does),
    })
}

/// This process's id as programs see it: in a PID namespace getpid() is another.
pub(super) fn whoami() -> Result<u32, Error> {
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

pub(super) fn bpf_error(operation: &'static str, source: io::Error) -> Error {
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
