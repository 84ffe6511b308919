//! A vCPU: its registers at entry, its run loop, and what it does at a gate.
//!
//! The loop decides nothing: `Vcpu::enter` turns what KVM_RUN returned into a `Verdict`, and
//! the loop books it, obeys it and goes on. It allocates nothing (a milestone does, if there is a list of
//! what was asked for), locks nothing (a device locks itself when it is accessed) and logs nothing
//! (but queries, when asked to).

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use exit_abi::gate::{Command, Outcome};
use exit_abi::port;
use exit_abi::reason::{Edition, Reason};
use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_SHUTDOWN, KVM_EXIT_XEN,
    KVM_EXIT_XEN_HCALL, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_DB, KVM_MP_STATE_HALTED,
    kvm_debug_exit_arch, kvm_guest_debug, kvm_regs,
};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use crate::devices::absent;
use crate::devices::console::{Console, Output};
use crate::devices::control::{Cause, Control};
use crate::devices::pci::EmptyBus;
use crate::devices::ports::{Ports, Request};
use crate::devices::serial::Com1;
use crate::devices::virtio::console::Terminal;
use crate::devices::virtio::slot::Set;
use crate::exits::books::{Asks, Books, Figures, Scratch};
use crate::exits::gate::{self, Gate, GateKind, Gates, Oracle, Slots, Step};
use crate::exits::hypercall::{Call, Mechanism};
use crate::exits::ledger::{Entry, Ledger, Owner};
use crate::exits::milestone::{Clocks, Event, Milestones};
use crate::exits::page::{ExitPage, Recorder};
use crate::exits::reason::kvm::{self, KvmExit};
use crate::exits::source::kernel::{EnlistError, KernelLedger, Mark};
use crate::layout;
use crate::marks::leaf::Leaves;
use crate::marks::{Cpu, Marks};
use crate::memory::Ram;
use crate::platform::irqchip::Wired;
use crate::profile::KvmKind;
use crate::symbols::KernelMap;
use crate::walk;

/// Bits of RFLAGS (SDM vol. 1, 3.4.3).
const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;
const RF: u64 = 1 << 16;
/// Long mode is active (SDM vol. 3A, 2.2.1).
const EFER_LMA: u64 = 1 << 10;
/// Supervisors are kept from user pages (SDM vol. 3A, 2.5).
const CR4_SMAP: u64 = 1 << 21;
/// Bits of DR6 (SDM vol. 3B, 19.2.3).
const DR6_BS: u64 = 1 << 14;
const DR6_CAUSES: u64 = 0xF | 1 << 13 | DR6_BS | 1 << 15;
/// ICEBP, the one-byte #DB.
const ICEBP: u8 = 0xF1;
const HLT: u8 = 0xF4;
/// COM1's last register.
const COM1_LAST: u16 = port::COM1 + 7;
/// After this many identical stops in a row a host is taken to ignore RF.
const RF_PATIENCE: u32 = 3;
/// On how many threads more than one a vCPU is tried for which the kernel-side ledger has no place.
const THREADS_MAX: u32 = 8;

/// What the vCPUs of a VM share.
pub struct Shared {
    /// Guest memory.
    pub memory: Arc<Ram>,
    /// Who counts.
    pub books: Books,
    /// The gate table.
    pub gates: Gates,
    /// How hypercalls reach the VMM.
    pub hypercalls: Mechanism,
    /// The snapshots.
    pub milestones: Milestones,
    /// Where the guest's console goes.
    pub output: Output,
    /// What a person does at a console that is a virtio device.
    pub terminal: Option<Arc<Terminal>>,
    /// COM1.
    pub com1: Mutex<Com1>,
    /// COM1's registers are a page.
    pub has_status_page: bool,
    /// An empty PCI bus, where Linux is told of one.
    pub empty_bus: Option<EmptyBus>,
    /// The IOAPIC, where it is not KVM's.
    pub ioapic: Option<Wired>,
    /// The virtio devices.
    pub devices: Set,
    /// How the run ends.
    pub control: Arc<Control>,
    /// Which leaf asks what.
    pub layout: exit_abi::leaf::Layout,
    /// Which reasons are defined.
    pub edition: Edition,
    /// This KVM ignores RF: an instruction is passed by a single step with its breakpoint off.
    pub ignores_rf: AtomicBool,
    /// KVM_GUESTDBG_BLOCKIRQ, if KVM has it.
    pub step_flags: u32,
    /// KVM copies the general registers to and from kvm_run (KVM_CAP_SYNC_REGS).
    pub sync_regs: bool,
    /// Where a line per query goes, if one is asked for.
    pub query_log: Option<Mutex<Console>>,
    /// When the VM started; set once, by the first to run.
    pub started: OnceLock<Start>,
    /// CPU time of the process when a vCPU was about to enter the guest first, nanoseconds.
    pub entered: OnceLock<Option<u64>>,
    /// The run ends there: the guest is never entered.
    pub ends_at_reset: bool,
    /// The kernel-side ledger, if there is one.
    pub kernel: Option<Arc<KernelLedger>>,
    /// The exit page, if there is one: like guest memory, it outlives the VM.
    pub exit_page: Option<Arc<ExitPage>>,
    /// The symbols of the kernel that runs here, once they are known.
    pub kernel_map: Arc<KernelMap>,
    /// Milestones that are noticed by breakpoints.
    pub marks: Marks,
    /// CPUID leaves that are milestones.
    pub leaves: Leaves,
    /// The vCPU threads, so that one can kick another.
    pub threads: Mutex<Vec<Option<libc::pthread_t>>>,
}

impl Shared {
    fn com1(&self) -> MutexGuard<'_, Com1> {
        self.com1.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The IOAPIC, and the offset in its page, if that is where this address is.
    fn ioapic_at(&self, address: u64) -> Option<(&Wired, u64)> {
        let offset = address.checked_sub(layout::IO_APIC)?;
        (offset < 0x1000).then_some(())?;
        Some((self.ioapic.as_ref()?, offset))
    }

    /// The offset in COM1's page, if that is where this address is and COM1 has one.
    fn status_page_at(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(layout::STATUS_PAGE)?;
        (self.has_status_page && offset < 0x1000).then_some(offset)
    }

    /// A read where no memory is. What is read is zero as it comes.
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        if let Some((ioapic, offset)) = self.ioapic_at(address) {
            ioapic.read(offset, data);
        } else if let Some(offset) = self.status_page_at(address) {
            self.com1().load(offset, data);
        } else {
            self.devices.read(address, data);
        }
    }

    /// A write where no memory is, or where it cannot be written: which, and what follows.
    fn mmio_write(&self, address: u64, data: &[u8]) -> (Reason, Action) {
        if let Some((ioapic, offset)) = self.ioapic_at(address) {
            let action = match ioapic.write(offset, data) {
                Ok(()) => Action::Continue,
                Err(error) => Action::Finish(Cause::Kvm(error.to_string())),
            };
            return (Reason::EPT_MISCONFIG, action);
        }
        let (is_page, is_heard) = if let Some(offset) = self.status_page_at(address) {
            let is_page = self.com1().store(offset, data);
            (is_page, is_page)
        } else if let Some(is_heard) = self.devices.write(address, data, &self.control) {
            (self.devices.is_shown(), is_heard)
        } else {
            (false, false)
        };
        let reason = match is_page {
            // It is there, and forbids writing.
            true => Reason::EPT_VIOLATION,
            false => Reason::EPT_MISCONFIG,
        };
        let action = match is_heard {
            true => Action::Console,
            false => Action::Continue,
        };
        (reason, action)
    }

    /// When the VM started: now, if it had not.
    pub fn start(&self) -> Start {
        *self.started.get_or_init(Start::now)
    }

    /// Both clocks since the VM started.
    pub fn clocks(&self) -> Clocks {
        self.start().clocks()
    }

    /// Makes the vCPU's KVM_RUN return. A kick that comes just before KVM_RUN is lost: whoever
    /// waits kicks again.
    pub fn kick(&self, vcpu: usize) {
        let threads = self.threads.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(Some(thread)) = threads.get(vcpu) {
            // SAFETY: a thread takes itself out of `threads` under this lock before it ends, so
            // that the handle names a live thread; the signal's handler does nothing.
            unsafe { libc::pthread_kill(*thread, kick_signal()) };
        }
    }
}

/// CPU time of this process, nanoseconds.
fn cpu_time() -> Option<u64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a timespec to be written.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    (result == 0).then_some(())?;
    seconds
        .ok()?
        .checked_mul(1_000_000_000)?
        .checked_add(nanos.ok()?)
}

/// A moment, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    tsc: u64,
    instant: Instant,
}

impl Start {
    /// This moment.
    pub fn now() -> Self {
        Self {
            tsc: rdtsc(),
            instant: Instant::now(),
        }
    }

    /// Both clocks since then.
    pub fn clocks(&self) -> Clocks {
        Clocks {
            tsc: rdtsc().wrapping_sub(self.tsc),
            nanos: nanos(self.instant.elapsed()),
        }
    }

    /// Nanoseconds from an earlier moment to this one.
    pub fn nanos_since(&self, earlier: &Self) -> u64 {
        nanos(self.instant.duration_since(earlier.instant))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The signal that interrupts KVM_RUN.
pub fn kick_signal() -> i32 {
    vmm_sys_util::signal::SIGRTMIN()
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Lets [`kick_signal`] interrupt system calls of this thread and of those it starts, instead of
/// ending the process.
pub fn catch_kicks() -> io::Result<()> {
    vmm_sys_util::signal::register_signal_handler(kick_signal(), on_kick)?;
    // Whoever started us may have blocked it, and a mask outlives exec: a vCPU that cannot be
    // kicked cannot be stopped.
    vmm_sys_util::signal::unblock_signal(kick_signal())
        .map_err(|error| io::Error::other(error.to_string()))
}

/// The time-stamp counter, read after everything before it has been executed (SDM vol. 2B, RDTSC:
/// "LFENCE immediately before RDTSC"): the path between two readings is only tens of instructions.
pub fn rdtsc() -> u64 {
    // SAFETY: LFENCE (SSE2) and RDTSC read and order; every x86-64 CPU has them, and Linux leaves
    // RDTSC to user mode.
    unsafe {
        std::arch::x86_64::_mm_lfence();
        std::arch::x86_64::_rdtsc()
    }
}

/// What an exit was, and what is to be done about it.
#[derive(Debug)]
struct Verdict {
    entry: Entry,
    owner: Owner,
    action: Action,
}

/// What is to be done about an exit.
#[derive(Debug)]
enum Action {
    Continue,
    Retry,
    Io(Io),
    Debug(kvm_debug_exit_arch),
    /// The guest has written to its console other than by a port.
    Console,
    Finish(Cause),
}

/// An I/O exit; its data lie in the vCPU's kvm_run area until the next KVM_RUN.
#[derive(Debug)]
struct Io {
    port: u16,
    data: *mut u8,
    len: usize,
    out: bool,
}

impl Io {
    fn owner(&self) -> Owner {
        if Ports::is_own(self.port) {
            Owner::Own
        } else {
            Owner::Guest
        }
    }
}

/// How a vCPU stood when it stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// It had executed HLT.
    pub halted: bool,
    /// It took interrupts.
    pub interruptible: bool,
    /// Where it was.
    pub rip: u64,
}

/// A vCPU.
pub struct Vcpu {
    fd: VcpuFd,
    index: usize,
    shared: Arc<Shared>,
    ledger: Arc<Ledger>,
    /// Its record of the exit page, where that is the VMM's to write.
    page: Recorder,
    ports: Ports,
    /// On the heap, as is what follows: a vCPU is handed from thread to thread.
    scratch: Box<Scratch>,
    /// The figures when the open section of the profiler's own began.
    section_start: Box<Figures>,
    /// The gates this vCPU is armed with, and their generation.
    slots: Slots,
    generation: u64,
    step: Option<Step>,
    /// The last stop at a gate that was passed by RF, and how often it came in a row.
    passed: Option<(kvm_regs, u32)>,
}

impl Vcpu {
    /// A vCPU with its registers set, not yet running.
    pub fn new(mut fd: VcpuFd, index: usize, shared: Arc<Shared>, ledger: Arc<Ledger>) -> Self {
        if shared.sync_regs {
            fd.set_sync_valid_reg(SyncReg::Register);
        }
        Self {
            fd,
            index,
            page: Recorder::new(shared.exit_page.as_ref(), index),
            shared,
            ledger,
            ports: Ports::default(),
            scratch: Box::default(),
            section_start: Box::default(),
            slots: Slots::default(),
            generation: 0,
            step: None,
            passed: None,
        }
    }

    /// Runs it on a thread of its own until the run ends.
    pub fn spawn(self) -> io::Result<JoinHandle<Option<Standing>>> {
        self.spawn_again(THREADS_MAX)
    }

    /// The same, on one of at most so many threads: one whose id the kernel-side ledger has no place
    /// for waits for another that has one.
    fn spawn_again(mut self, left: u32) -> io::Result<JoinHandle<Option<Standing>>> {
        thread::Builder::new()
            .name(format!("vcpu{}", self.index))
            .spawn(move || {
                if self.has_no_place() && left > 0 {
                    let shared = self.shared.clone();
                    return match self.spawn_again(left - 1) {
                        Ok(thread) => thread.join().ok().flatten(),
                        Err(error) => {
                            let what = format!("cannot start a thread: {error}");
                            shared.control.finish(Cause::Internal(what));
                            None
                        }
                    };
                }
                self.live()
            })
    }

    /// The thread's life.
    fn live(&mut self) -> Option<Standing> {
        // SAFETY: pthread_self has no preconditions.
        self.enlist(Some(unsafe { libc::pthread_self() }));
        let result = catch_unwind(AssertUnwindSafe(|| self.run()));
        self.enlist(None);
        self.shared.gates.gone(self.index);
        if let Some(kernel) = &self.shared.kernel {
            // Cannot fail but for a vCPU that it does not know, of which it has nothing to forget.
            let _ = kernel.delist(self.index as u32);
        }
        if result.is_err() {
            let what = format!("vCPU {} panicked: this is a fault of Exitvisor", self.index);
            self.shared.control.finish(Cause::Internal(what));
        }
        self.standing()
    }

    /// Tells the others by which thread this vCPU can be kicked.
    fn enlist(&self, thread: Option<libc::pthread_t>) {
        let mut threads = self
            .shared
            .threads
            .lock()
            .unwrap_or_else(|e| e.into_inner());
        if let Some(slot) = threads.get_mut(self.index) {
            *slot = thread;
        }
    }

    /// Tells the kernel-side ledger that this thread is the vCPU; whether it has no place for it.
    fn has_no_place(&self) -> bool {
        let Some(kernel) = &self.shared.kernel else {
            return false;
        };
        match kernel.enlist(self.index as u32) {
            Ok(()) => false,
            Err(EnlistError::Collision) => true,
            Err(error) => {
                // Its exits are counted all the same; that they are not timed shows in the profile.
                tracing::warn!(vcpu = self.index, %error, "the kernel ledger cannot time a vCPU");
                false
            }
        }
    }

    /// Tells the kernel-side ledger whose exit the next entry ends.
    fn mark(&self, entry: Entry, owner: Owner) {
        let Some(kernel) = &self.shared.kernel else {
            return;
        };
        let mark = if self.ports.own_section {
            Mark::OwnUntilCleared
        } else if owner == Owner::Own {
            Mark::OwnOnce
        } else if entry == Entry::NotAnExit {
            // The exit that was open still is.
            return;
        } else {
            Mark::Guest
        };
        kernel.mark(self.index as u32, mark);
    }

    /// How it stands now.
    fn standing(&self) -> Option<Standing> {
        let state = self.fd.get_mp_state().ok()?.mp_state;
        let regs = self.fd.get_regs().ok()?;
        Some(Standing {
            halted: state == KVM_MP_STATE_HALTED,
            interruptible: regs.rflags & IF != 0,
            rip: regs.rip,
        })
    }

    /// The run loop.
    fn run(&mut self) {
        let mut open: Option<(Entry, Owner, u64)> = None;
        self.shared.entered.get_or_init(cpu_time);
        if self.shared.ends_at_reset {
            return self.finish(Cause::Milestone("reset".to_owned()));
        }
        while !self.shared.control.stopping() {
            if self.generation != self.shared.gates.generation()
                && let Err(error) = self.arm()
            {
                return self.finish(Cause::Kvm(format!("KVM cannot arm the gates: {error}")));
            }
            if let Some((entry, owner, left)) = open.take() {
                self.mark(entry, owner);
                let cycles = rdtsc().wrapping_sub(left);
                self.ledger.time(entry, owner, cycles);
                self.page.time(entry, owner, cycles);
            }
            let mut verdict = self.enter();
            let left = rdtsc();
            if matches!(verdict.action, Action::Retry) {
                thread::yield_now();
                continue;
            }
            if self.ports.own_section {
                verdict.owner = Owner::Own;
            }
            self.ledger.count(verdict.entry, verdict.owner);
            self.page.count(verdict.entry);
            open = Some((verdict.entry, verdict.owner, left));
            if verdict.entry == Entry::NotAnExit
                && let Some(label) = self.shared.leaves.interrupted()
            {
                self.milestone(Event::Noticed(label));
            }
            if let Err(error) = self.obey(verdict.action) {
                return self.finish(Cause::Kvm(format!("KVM refuses a register: {error}")));
            }
        }
    }

    fn finish(&self, cause: Cause) {
        self.shared.control.finish(cause);
    }

    /// Enters the guest until it exits.
    fn enter(&mut self) -> Verdict {
        let done = |reason, owner, action| Verdict {
            entry: Entry::Reason(reason),
            owner,
            action,
        };
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                let io = Io {
                    port,
                    data: data.as_ptr().cast_mut(),
                    len: data.len(),
                    out: true,
                };
                done(Reason::IO, io.owner(), Action::Io(io))
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                let io = Io {
                    port,
                    data: data.as_mut_ptr(),
                    len: data.len(),
                    out: false,
                };
                done(Reason::IO, io.owner(), Action::Io(io))
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                // Elsewhere is nothing; zeros end probing soonest.
                data.fill(0);
                self.shared.mmio_read(address, data);
                done(Reason::EPT_MISCONFIG, Owner::Guest, Action::Continue)
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                let (reason, action) = self.shared.mmio_write(address, data);
                done(reason, Owner::Guest, action)
            }
            Ok(VcpuExit::Debug(arch)) => {
                let gated = gate::slot_hit(&self.slots, arch.dr6, arch.pc).is_some();
                let owner = if gated || self.step.is_some() {
                    Owner::Own
                } else {
                    Owner::Guest
                };
                done(Reason::EXCEPTION, owner, Action::Debug(arch))
            }
            Ok(_) => {
                let number = self.fd.get_kvm_run().exit_reason;
                self.other_exit(number)
            }
            Err(error) => {
                let action = match error.errno() {
                    libc::EINTR => Action::Continue,
                    libc::EAGAIN => Action::Retry,
                    _ => Action::Finish(Cause::Kvm(format!("KVM_RUN failed: {error}"))),
                };
                Verdict {
                    entry: Entry::NotAnExit,
                    owner: Owner::Guest,
                    action,
                }
            }
        }
    }

    /// A hypercall that KVM passed on. KVM itself puts the answer into RAX and moves RIP behind the
    /// instruction (with the trap that is due if the guest steps), at the next KVM_RUN.
    fn hypercall(&mut self) -> Verdict {
        // SAFETY: the exit reason is KVM_EXIT_XEN, so that KVM filled in `xen`.
        let exit = unsafe { &mut self.fd.get_kvm_run().__bindgen_anon_1.xen };
        let mut owner = Owner::Guest;
        let mut action = Action::Continue;
        if exit.type_ == KVM_EXIT_XEN_HCALL {
            // SAFETY: this type says that `hcall` is what KVM filled in; the union has nothing else,
            // and any bits are a valid value of it.
            let hcall = unsafe { &mut exit.u.hcall };
            let call = Call {
                rax: hcall.input,
                cpl: hcall.cpl as u8,
                in_64_bit_mode: hcall.longmode != 0,
            };
            hcall.result = call.answer();
            if call.is_ours() {
                owner = Owner::Own;
            }
            self.shared.gates.count_hypercall();
        } else {
            let what = format!("KVM left the guest by KVM_EXIT_XEN of type {}", exit.type_);
            action = Action::Finish(Cause::Kvm(what));
        }
        Verdict {
            entry: Entry::Reason(Reason::VMCALL),
            owner,
            action,
        }
    }

    /// Exits that end the run or need nothing.
    fn other_exit(&mut self, number: u32) -> Verdict {
        if number == KVM_EXIT_XEN {
            return self.hypercall();
        }
        let (entry, failed) = match kvm::translate(number) {
            KvmExit::Reason(reason) => (Entry::Reason(reason), false),
            KvmExit::NotAnExit => (Entry::NotAnExit, false),
            KvmExit::Other => (Entry::Other, true),
        };
        let action = match number {
            KVM_EXIT_SHUTDOWN => Action::Finish(Cause::TripleFault(self.index as u32)),
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the exit reason says that KVM filled in `fail_entry`.
                let why = unsafe {
                    self.fd
                        .get_kvm_run()
                        .__bindgen_anon_1
                        .fail_entry
                        .hardware_entry_failure_reason
                };
                let what = format!("KVM cannot enter the guest: hardware reason {why:#x}");
                Action::Finish(Cause::Kvm(what))
            }
            KVM_EXIT_INTERNAL_ERROR => Action::Finish(Cause::Kvm(self.internal_error())),
            _ if failed || kvm::would_repeat(number) => {
                let what = format!("KVM left the guest by {} ({number})", kvm::name(number));
                Action::Finish(Cause::Kvm(what))
            }
            _ => Action::Continue,
        };
        Verdict {
            entry,
            owner: Owner::Guest,
            action,
        }
    }

    /// Says what KVM could not do, and where.
    fn internal_error(&mut self) -> String {
        // SAFETY: the exit reason says that KVM filled in `internal`.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        // KVM API, KVM_EXIT_INTERNAL_ERROR.
        let what = match suberror {
            1 => "cannot emulate an instruction",
            2 => "met an exception while it delivered another",
            3 => "met an exit while it delivered an event",
            4 => "met an exit reason that it does not know",
            _ => "gave up",
        };
        let Ok(regs) = self.fd.get_regs() else {
            return format!("KVM {what}");
        };
        let mut bytes = [0; 8];
        let got = self.read_linear(regs.rip, &mut bytes);
        let shown: Vec<String> = bytes[..got].iter().map(|b| format!("{b:02x}")).collect();
        format!(
            "KVM {what}, at rip {:#x}: bytes {}",
            regs.rip,
            shown.join(" ")
        )
    }

    /// Does what the verdict says.
    fn obey(&mut self, action: Action) -> Result<(), kvm_ioctls::Error> {
        match action {
            Action::Continue | Action::Retry => {}
            Action::Console => self.heard(),
            Action::Io(io) => self.io(io),
            Action::Debug(arch) => self.debug(&arch)?,
            Action::Finish(cause) => self.finish(cause),
        }
        Ok(())
    }

    /// One I/O exit: any number of accesses of one width to one port.
    fn io(&mut self, io: Io) {
        // SAFETY: KVM_RUN returned KVM_EXIT_IO, for which `io` is the member of the union that KVM
        // filled in; reading its size changes nothing.
        let width = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.io.size };
        let width = usize::from(width.max(1));
        // Pointer and length come from the slice that kvm-ioctls made of the vCPU's mapped
        // kvm_run area. The mapping lives as long as `self.fd`; KVM writes it only inside KVM_RUN,
        // which is not called while this slice lives; `get_kvm_run` is not called either.
        if io.out {
            // SAFETY: as said above.
            let data = unsafe { std::slice::from_raw_parts(io.data.cast_const(), io.len) };
            for access in data.chunks(width) {
                self.port_write(io.port, access);
            }
        } else {
            // SAFETY: as said above; KVM gave this pointer to be written through.
            let data = unsafe { std::slice::from_raw_parts_mut(io.data, io.len) };
            for access in data.chunks_mut(width) {
                self.port_read(io.port, access);
            }
        }
    }

    fn port_write(&mut self, port: u16, access: &[u8]) {
        match port {
            port::COM1..=COM1_LAST => {
                let mut com1 = self.shared.com1();
                // A wider access reaches the registers that follow.
                for (offset, byte) in (port - port::COM1..8).zip(access) {
                    com1.write(offset as u8, *byte);
                }
                drop(com1);
                self.heard();
            }
            port::BASE..=port::LAST => match self.ports.write(port, access) {
                Request::None => {}
                Request::Milestone { number, name } => {
                    self.milestone(Event::Guest { number, name });
                }
                Request::Exit(status) => self.finish(Cause::Exit(status)),
                Request::Gate { number, address } => self.gate_command(number, address),
                Request::PowerOff => self.finish(Cause::PowerOff),
                Request::Reset => self.finish(Cause::Reset),
                Request::OwnSection(opens) => self.own_section(opens),
            },
            _ if absent::resets(port, access) => self.finish(Cause::Reset),
            _ => {
                if let Some(bus) = &self.shared.empty_bus {
                    bus.write(port, access);
                }
            }
        }
    }

    /// Takes the milestones that the guest has just written to its console.
    fn heard(&mut self) {
        for label in self.shared.output.take_seen() {
            self.milestone(Event::Noticed(label));
        }
    }

    fn port_read(&mut self, port: u16, access: &mut [u8]) {
        for (offset, byte) in (0..).zip(access.iter_mut()) {
            *byte = absent::read(port.wrapping_add(offset));
        }
        match port {
            port::COM1..=COM1_LAST => {
                let mut com1 = self.shared.com1();
                for (offset, byte) in (port - port::COM1..8).zip(access) {
                    *byte = com1.read(offset as u8).unwrap_or(*byte);
                }
            }
            port::BASE..=port::LAST => self.ports.read(port, access),
            _ => {
                if let Some(bus) = &self.shared.empty_bus {
                    bus.read(port, access);
                }
            }
        }
    }

    /// Opens or closes a section of the profiler's own. What KVM counted in between and KVM_RUN
    /// did not see (an interrupt, the end of a string) was the profiler's doing too.
    fn own_section(&mut self, opens: bool) {
        if opens == self.ports.own_section {
            return;
        }
        self.ports.own_section = opens;
        self.shared.books.vcpu(self.index, &mut self.scratch);
        self.page.refresh(self.index, &self.scratch.figures);
        if opens {
            (*self.section_start).clone_from(&self.scratch.figures);
        } else {
            let now = &self.scratch.figures;
            self.shared
                .books
                .settle(self.index, &self.section_start, now);
        }
    }

    /// Takes a snapshot.
    fn milestone(&mut self, event: Event) {
        let turn = self.shared.milestones.turn();
        let clocks = self.shared.clocks();
        let mut asks = Asks::default();
        if !turn.is_full() {
            let page = &self.page;
            let books = &self.shared.books;
            books.all_by(&mut self.scratch, |vcpu, figures| {
                page.refresh(vcpu, figures);
            });
            asks = self.shared.books.asks();
        }
        let figures = &self.scratch.figures;
        let ends = turn.record(event, self.index as u32, clocks, figures, asks);
        if let Some(name) = ends {
            self.finish(Cause::Milestone(name));
        }
    }

    // Gates.

    /// Arms the gates of the current generation.
    fn arm(&mut self) -> Result<(), kvm_ioctls::Error> {
        let (slots, generation) = self.shared.gates.read();
        self.set_debug(&slots)?;
        let armed = |slots: &Slots| slots.iter().any(Option::is_some);
        if armed(&self.slots) != armed(&slots) {
            self.shared.books.vcpu(self.index, &mut self.scratch);
            let guarded = self.scratch.figures.lines[Reason::DR_ACCESS.index()];
            self.ledger.guard(armed(&slots), guarded.row.into());
        }
        self.slots = slots;
        self.generation = generation;
        self.shared.gates.acknowledge(self.index, generation);
        Ok(())
    }

    fn set_debug(&self, slots: &Slots) -> Result<(), kvm_ioctls::Error> {
        self.fd
            .set_guest_debug(&gate::debug_control(slots, self.step))
    }

    /// Carries out a command of the guest's and leaves its outcome in the port.
    fn gate_command(&mut self, number: u32, address: u64) {
        self.ports.outcome = match self.try_gate_command(number, address) {
            Ok(()) => Outcome::Done,
            Err(outcome) => outcome,
        };
    }

    fn try_gate_command(&mut self, number: u32, address: u64) -> Result<(), Outcome> {
        let command = Command::from_number(number).ok_or(Outcome::BadCommand)?;
        let kind = match command {
            Command::RegisterCpuid | Command::RegisterUnmappedCpuid => GateKind::Cpuid,
            Command::RegisterHypercall => GateKind::Hypercall,
            Command::Withdraw => {
                let generation = self.shared.gates.withdraw(address)?;
                return self.spread(generation).map_err(|_| Outcome::Refused);
            }
        };
        if !gate::is_canonical(address) {
            return Err(Outcome::BadAddress);
        }
        let mut bytes = [0; 3];
        let bytes = &mut bytes[..kind.length() as usize];
        let is_mapped = self.read_linear(address, bytes) == bytes.len();
        if !is_mapped && command != Command::RegisterUnmappedCpuid {
            return Err(Outcome::BadAddress);
        }
        if is_mapped && !kind.matches(bytes) {
            return Err(Outcome::NotTheInstruction);
        }
        let gate = Gate { address, kind };
        let shared = &self.shared;
        if !gate.needs_slot(shared.hypercalls, shared.books.kvm(), bytes) {
            return shared.gates.register_unarmed(address);
        }
        let generation = shared.gates.register(gate)?;
        if self.spread(generation).is_err() {
            if let Ok(generation) = self.shared.gates.withdraw(address) {
                let _ = self.spread(generation);
            }
            return Err(Outcome::Refused);
        }
        Ok(())
    }

    /// Waits until every vCPU runs with this generation, arming this one meanwhile whenever
    /// another registers too: that is what keeps two of them from waiting for each other.
    fn spread(&mut self, generation: u64) -> Result<(), kvm_ioctls::Error> {
        loop {
            if self.generation != self.shared.gates.generation() {
                self.arm()?;
            }
            let mut all = true;
            for vcpu in self.shared.gates.behind(generation) {
                all = false;
                self.shared.kick(vcpu);
            }
            if all || self.shared.control.stopping() {
                return Ok(());
            }
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// A debug exit: a step that is done, one of our gates, or the guest's own business.
    fn debug(&mut self, arch: &kvm_debug_exit_arch) -> Result<(), kvm_ioctls::Error> {
        let step = self.step.take();
        let stepped = step.is_some();
        if stepped {
            self.set_debug(&self.slots)?;
        }
        if step.is_some_and(|s| s.guest_steps) && arch.dr6 & DR6_BS != 0 {
            // One trap for two who stepped, and KVM has taken TF for ours: it is the guest's.
            let mut regs = self.fd.get_regs()?;
            regs.rflags |= TF;
            self.fd.set_regs(&regs)?;
            self.shared.gates.count_foreign();
            return self.inject_debug(DR6_BS);
        }
        if let Some((slot, gate)) = gate::slot_hit(&self.slots, arch.dr6, arch.pc) {
            return self.at_gate(slot, gate);
        }
        if stepped && arch.dr6 & DR6_BS != 0 {
            return Ok(());
        }
        self.foreign(arch)
    }

    /// Takes the milestone at which a breakpoint is, arms what comes next everywhere, and lets the
    /// guest go on.
    fn at_mark(&mut self, address: u64) -> Result<(), kvm_ioctls::Error> {
        let regs = self.regs_at_exit()?;
        let sregs = self.fd.get_sregs()?;
        let cpu = Cpu {
            rax: regs.rax,
            rbx: regs.rbx,
            rsi: regs.rsi,
            rsp: regs.rsp,
            cr3: sregs.cr3,
            cpl: sregs.ss.dpl,
        };
        let shared = self.shared.clone();
        let reached = shared.marks.reach(address, &cpu);
        tracing::debug!(
            vcpu = self.index,
            address,
            ?cpu,
            steps = reached.len(),
            "breakpoint"
        );
        // First of all: what follows takes time.
        for label in reached.iter().filter_map(|step| step.label.clone()) {
            self.milestone(Event::Noticed(label));
        }
        let was_known = shared.kernel_map.get().is_some();
        for step in &reached {
            let (memory, map) = (&shared.memory, &shared.kernel_map);
            shared.marks.follow(step, &cpu, memory, map);
        }
        if !was_known
            && let Some(placed) = shared.kernel_map.get()
            && let Some(ledger) = &shared.kernel
            && let Some([text, init]) = placed.code()
        {
            ledger.tell_code(text, init);
        }
        if !reached.is_empty()
            && let Some(generation) = shared.gates.want(|| shared.marks.window())
        {
            self.spread(generation)?;
        }
        if self.generation != shared.gates.generation() {
            // Another vCPU was here first: the run loop arms what is wanted now.
            return Ok(());
        }
        let is_here = |slot: &Option<Gate>| slot.is_some_and(|g| g.address == address);
        match self.slots.iter().position(is_here) {
            // It was for another privilege level or address space.
            Some(slot) => {
                let mut first = [0];
                let got = self.read_linear(address, &mut first);
                self.pass(slot, regs, first[..got].first().copied())
            }
            None => Ok(()),
        }
    }

    /// Answers at a gate, or passes the instruction unchanged.
    fn at_gate(&mut self, slot: usize, gate: Gate) -> Result<(), kvm_ioctls::Error> {
        if gate.kind == GateKind::Milestone {
            return self.at_mark(gate.address);
        }
        let mut regs = self.regs_at_exit()?;
        let mut bytes = [0; 3];
        let got = self.read_linear(gate.address, &mut bytes);
        let bytes = &bytes[..got];
        if gate.kind.matches(bytes) {
            match gate.kind {
                GateKind::Cpuid => {
                    // CPUID looks at the low halves alone.
                    let (leaf, ecx) = (regs.rax as u32, regs.rcx as u32);
                    if let Some(label) = self.shared.leaves.at_gate(leaf) {
                        self.milestone(Event::Noticed(label));
                    }
                    if let Some(question) = self.shared.layout.question(leaf) {
                        let answer = self.ask(question, ecx);
                        regs.rax = answer.eax.into();
                        regs.rbx = answer.ebx.into();
                        regs.rcx = answer.ecx.into();
                        regs.rdx = answer.edx.into();
                        self.shared.gates.count_query();
                        return self.complete(regs, gate.kind.length());
                    }
                }
                GateKind::Hypercall => {
                    let sregs = self.fd.get_sregs()?;
                    let in_64_bit_mode = sregs.efer & EFER_LMA != 0 && sregs.cs.l != 0;
                    let call = Call {
                        rax: regs.rax,
                        cpl: sregs.ss.dpl,
                        in_64_bit_mode,
                    };
                    regs.rax = call.answer();
                    self.shared.gates.count_hypercall();
                    return self.complete(regs, gate.kind.length());
                }
                GateKind::Milestone => {}
            }
        }
        self.shared.gates.count_stepped();
        self.pass(slot, regs, bytes.first().copied())
    }

    /// Answers a question, and prints its line when asked to.
    fn ask(&mut self, question: exit_abi::leaf::Question, ecx: u32) -> exit_abi::leaf::Registers {
        let (books, layout, edition) =
            (&self.shared.books, self.shared.layout, self.shared.edition);
        let oracle = Oracle {
            books,
            layout,
            edition,
            exit_page: self.shared.exit_page.is_some(),
        };
        let page = &self.page;
        let answer = oracle.answer(question, ecx, &mut self.scratch, |vcpu, figures| {
            page.refresh(vcpu, figures);
        });
        if let Some(log) = &self.shared.query_log
            && let Some(line) = gate::log_line(question, ecx, answer)
        {
            // Cannot fail: a console takes everything, and drops what nobody reads.
            let _ = writeln!(log.lock().unwrap_or_else(|e| e.into_inner()), "{line}");
        }
        answer
    }

    /// Ends an instruction that was answered, as the CPU would: RIP behind it, RF clear, and a
    /// single-step trap if the guest has set TF.
    fn complete(&mut self, mut regs: kvm_regs, length: u64) -> Result<(), kvm_ioctls::Error> {
        self.passed = None;
        regs.rip = regs.rip.wrapping_add(length);
        regs.rflags &= !RF;
        if regs.rflags & TF != 0 {
            // By the ioctl, before the injection: registers set later would drop the exception.
            self.fd.set_regs(&regs)?;
            return self.inject_debug(DR6_BS);
        }
        self.set_regs_at_entry(&regs)
    }

    /// The registers, right after KVM_RUN has returned. Where KVM leaves them in kvm_run they cost
    /// no system call of their own.
    fn regs_at_exit(&self) -> Result<kvm_regs, kvm_ioctls::Error> {
        if self.shared.sync_regs {
            Ok(self.fd.sync_regs().regs)
        } else {
            self.fd.get_regs()
        }
    }

    /// The registers for the next entry; nothing else may be asked of the vCPU in between.
    fn set_regs_at_entry(&mut self, regs: &kvm_regs) -> Result<(), kvm_ioctls::Error> {
        if self.shared.sync_regs {
            self.fd.sync_regs_mut().regs = *regs;
            self.fd.set_sync_dirty_reg(SyncReg::Register);
            Ok(())
        } else {
            self.fd.set_regs(regs)
        }
    }

    /// Lets the guest execute the instruction itself: with RF set, the breakpoint is passed once;
    /// where RF is ignored, the breakpoint is off for one single step.
    fn pass(
        &mut self,
        slot: usize,
        mut regs: kvm_regs,
        first: Option<u8>,
    ) -> Result<(), kvm_ioctls::Error> {
        // KVM's emulation of CPUID leaves RF set: a gate right behind this one would be missed.
        let next = regs.rip.wrapping_add(GateKind::Cpuid.length());
        let adjacent = self.slots.iter().flatten().any(|g| g.address == next);
        if !adjacent && !self.shared.ignores_rf.load(Ordering::Relaxed) {
            regs.rflags |= RF;
            let again = match self.passed {
                Some((last, n)) if last == regs => n + 1,
                _ => 0,
            };
            self.passed = Some((regs, again));
            if again < RF_PATIENCE {
                return self.set_regs_at_entry(&regs);
            }
            self.shared.ignores_rf.store(true, Ordering::Relaxed);
        }
        // A HLT with interrupts blocked would never wake.
        let flags = if first == Some(HLT) {
            0
        } else {
            self.shared.step_flags
        };
        self.step = Some(Step {
            slot,
            flags,
            guest_steps: regs.rflags & TF != 0,
        });
        self.set_debug(&self.slots)
    }

    /// Gives a #DB that is not ours back to the guest.
    fn foreign(&mut self, arch: &kvm_debug_exit_arch) -> Result<(), kvm_ioctls::Error> {
        self.shared.gates.count_foreign();
        let causes = arch.dr6 & DR6_CAUSES;
        let mut byte = [0];
        // ICEBP sets no cause in DR6. Its #DB is a trap, so the guest must find RIP behind it;
        // VT-x exits before it (SDM vol. 3C, 28.2), AMD-V behind it.
        let before = self.shared.books.kvm() == KvmKind::Intel;
        if before && causes == 0 && self.read_linear(arch.pc, &mut byte) == 1 && byte[0] == ICEBP {
            let mut regs = self.fd.get_regs()?;
            regs.rip = regs.rip.wrapping_add(1);
            self.fd.set_regs(&regs)?;
        }
        self.inject_debug(causes)
    }

    /// Injects #DB with these causes in DR6.
    fn inject_debug(&mut self, causes: u64) -> Result<(), kvm_ioctls::Error> {
        let mut registers = self.fd.get_debug_regs()?;
        // B0-B3 tell of this exception alone (SDM vol. 3B, 19.2.3); the others stay until the
        // guest clears them.
        registers.dr6 = registers.dr6 & !0xF | causes;
        self.fd.set_debug_regs(&registers)?;
        let mut debug: kvm_guest_debug = gate::debug_control(&self.slots, self.step);
        debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB;
        self.fd.set_guest_debug(&debug)
    }

    /// Reads guest memory at a linear address; answers how many bytes are mapped there.
    fn read_linear(&self, address: u64, into: &mut [u8]) -> usize {
        let mut page: Option<(u64, u64)> = None;
        for (i, byte) in into.iter_mut().enumerate() {
            let linear = address.wrapping_add(i as u64);
            let physical = match page {
                Some((p, base)) if p == linear >> 12 => base | linear & 0xFFF,
                _ => match self.translate(linear) {
                    Some(physical) => {
                        page = Some((linear >> 12, physical & !0xFFF));
                        physical
                    }
                    None => return i,
                },
            };
            let Ok(value) = self.shared.memory.read_obj(GuestAddress(physical)) else {
                return i;
            };
            *byte = value;
        }
        into.len()
    }
    /// The physical address of a linear one in the vCPU's address space of now.
    fn translate(&self, linear: u64) -> Option<u64> {
        match self.fd.translate_gva(linear) {
            Ok(found) if found.valid != 0 => Some(found.physical_address),
            _ => {
                let sregs = self.fd.get_sregs().ok()?;
                if sregs.efer & EFER_LMA == 0 || sregs.cr4 & CR4_SMAP == 0 {
                    return None;
                }
                let memory = &self.shared.memory;
                walk::four_levels(sregs.cr3, linear, |at| {
                    memory.read_obj(GuestAddress(at)).ok()
                })
            }
        }
    }
}
