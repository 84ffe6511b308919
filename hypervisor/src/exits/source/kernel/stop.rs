//! Stops: the first CPUID of a leaf makes KVM_RUN return, although KVM answers CPUID itself.
//!
//! A program on KVM's tracepoint `kvm_cpuid`, which KVM passes while it answers, sends the vCPU's thread a
//! signal: KVM looks for signals before it enters the guest again. Nothing has been executed in between,
//! so that the counts are those of this CPUID. It happens once for each boot; then the program only reads.

use std::ffi::CStr;
use std::path::Path;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::Attached;
use super::asm::{Asm, Helper, If, Map, MapFds, Op, Reg, Width};
use super::bpf::{ArrayMap, Mapping};
use super::error::KernelLedgerError as Error;
use super::format::Field;
use super::open::{Place, Plan, bpf_error, whoami};
use super::tracefs::Tracefs;

use Reg::{R0, R1, R2, R3, R6};

/// The map, in words: whether a leaf is waited for, and which.
mod word {
    pub(super) const STATE: usize = 0;
    pub(super) const LEAF: usize = 1;
    pub(super) const ALL: usize = 2;
}

/// The states.
const WAITING: u64 = 0;
const MET: u64 = 1;
const DONE: u64 = 2;

/// A leaf at which KVM_RUN returns.
#[derive(Debug)]
pub struct Stop {
    map: Mapping,
    _attached: Attached,
}

impl Stop {
    /// Waits for a leaf, in vCPUs of this process; they are sent this signal. Needs what the kernel ledger
    /// needs ([`super::KernelLedger::open`]).
    pub fn open(leaf: u32, signal: i32, tracefs: Option<&Path>) -> Result<Self, Error> {
        let tracefs = Tracefs::find(tracefs)?;
        let event = tracefs.event("kvm_cpuid")?;
        const RAW: &CStr = c"kvm_cpuid";
        // Raw, its arguments are its fields in this order; else its record is read.
        let (place, function) = match event.starts_with(&["function", "index"]) {
            true => (Place::Raw(RAW), Field { offset: 0, size: 4 }),
            false => (Place::Tracepoint(event.id), event.field("function", &[4])?),
        };
        let failed = |source| bpf_error("make a map (bpf)", source);
        let map = ArrayMap::create(word::ALL * 8).map_err(failed)?;
        let mut words = [0; word::ALL];
        (words[word::STATE], words[word::LEAF]) = (WAITING, leaf.into());
        map.fill(&words).map_err(failed)?;
        let mut fds: MapFds = [-1; Map::ALL.len()];
        // Its only map stands where the ledger would.
        fds[Map::Ledger as usize] = map.as_raw_fd();
        let plan = Plan {
            event: "kvm_cpuid",
            place,
            asm: program(whoami()?, signal, function),
        };
        Ok(Self {
            map: map.map(true).map_err(failed)?,
            _attached: plan.carry_out(&fds)?,
        })
    }

    /// Waits again.
    pub fn again(&self) {
        self.state().store(WAITING, Release);
    }

    /// Whether the leaf has been met; says so once.
    pub fn take_met(&self) -> bool {
        self.state().load(Relaxed) == MET
            && self
                .state()
                .compare_exchange(MET, DONE, AcqRel, Acquire)
                .is_ok()
    }

    /// Waits no more.
    pub fn done(&self) {
        self.state().store(DONE, Release);
    }

    fn state(&self) -> &std::sync::atomic::AtomicU64 {
        &self.map.words()[word::STATE]
    }
}

/// On `kvm:kvm_cpuid`.
fn program(tgid: u32, signal: i32, function: Field) -> Asm {
    let mut asm = Asm::new();
    let out = asm.label();
    asm.op(Op::Move, R6, R1);
    asm.map_value(R1, Map::Ledger, 0);
    asm.load(Width::D, R2, R1, word::STATE * 8);
    asm.jump_if_imm(If::NotEq, R2, WAITING, out);
    asm.load(Width::D, R3, R1, word::LEAF * 8);
    asm.load(Width::W, R2, R6, function.offset);
    asm.jump_if(If::NotEq, R2, R3, out);
    asm.call(Helper::GetCurrentPidTgid);
    asm.op_imm(Op::ShiftRight, R0, 32);
    asm.jump_if_imm(If::NotEq, R0, tgid.into(), out);
    asm.map_value(R1, Map::Ledger, 0);
    asm.store_imm(Width::D, R1, word::STATE * 8, MET);
    asm.op_imm(Op::Move, R1, u64::from(signal.cast_unsigned()));
    asm.call(Helper::SendSignalThread);
    asm.place(out);
    asm.finish_with(0);
    asm
}
