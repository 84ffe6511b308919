//! A session: what outlives a reset, and one pass of a machine in it.

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use event_manager::{EventManager, EventOps, SubscriberId, SubscriberOps};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vmm_sys_util::timerfd::TimerFd;

use super::end::end;
use super::names;
use super::watch::{Machine, Watch};
use crate::config::{Config, TimeLimit};
use crate::devices::control::Cause;
use crate::devices::virtio::worker;
use crate::error::{Error, host as host_error};
use crate::exits::books::{Asks, Figures, Scratch};
use crate::exits::milestone::{Clocks, Event};
use crate::memory::prefault::Prefault;
use crate::profile::{End, MemoryAccount, Missed, Pass};
use crate::vcpu::{Shared, Standing, Start, Vcpu, catch_kicks};
use crate::vm::Vm;

/// How often the console is drained and input is offered while nothing else happens.
const TICK_MS: i32 = 20;

/// Signals that end a run.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Blocks [`ENDING`] and SIGWINCH for this thread and those it starts, until dropped.
struct BlockedSignals(SigSet);

impl BlockedSignals {
    fn new() -> nix::Result<Self> {
        let set: SigSet = ENDING.into_iter().chain([Signal::SIGWINCH]).collect();
        set.thread_block()?;
        Ok(Self(set))
    }
}

/// Reads these signals, which are blocked.
fn signals(which: impl IntoIterator<Item = Signal>) -> Result<SignalFd, Error> {
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let set: SigSet = which.into_iter().collect();
    SignalFd::with_flags(&set, flags).map_err(host_error("watch for signals"))
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // Cannot fail: the set is valid and so is the operation.
        let _ = self.0.thread_unblock();
    }
}

/// Lets the tick reach the subscriber: a handle that the manager and the session share.
type SharedWatch = Arc<Mutex<Watch>>;

/// What outlives a reset: signals, the time limit, the terminal, the event loop.
///
/// Fields are dropped in this order: the watch restores the terminal, then signals get through.
pub(super) struct Session {
    manager: EventManager<SharedWatch>,
    id: SubscriberId,
    watch: SharedWatch,
    _blocked: BlockedSignals,
    /// When the first machine started.
    start: Option<Start>,
}

/// A pass that is over.
pub(super) struct Outcome {
    /// Why.
    pub(super) cause: Cause,
    /// How its vCPUs stood.
    pub(super) standings: Vec<Option<Standing>>,
    /// When, since the first machine started.
    pub(super) at: Clocks,
    /// What it cost.
    pub(super) pass: Pass,
    /// What a person is to be told of its milestones, a line each.
    pub(super) notes: Vec<String>,
    /// CPU time of the process until its guest was first entered.
    pub(super) startup_cpu_nanos: Option<u64>,
}

impl Session {
    /// From now on a signal waits until there is a machine to end.
    pub(super) fn open() -> Result<Self, Error> {
        let blocked = BlockedSignals::new().map_err(host_error("block signals"))?;
        let (ending, windows) = (signals(ENDING)?, signals([Signal::SIGWINCH])?);
        catch_kicks().map_err(host_error("install a signal handler"))?;
        let timer = TimerFd::new().map_err(host_error("make a timer"))?;
        let watch = Arc::new(Mutex::new(Watch::new(ending, windows, timer)));
        let mut manager = EventManager::<SharedWatch>::new().map_err(|e| Error::Host {
            operation: "run the event loop",
            source: io::Error::other(e),
        })?;
        let id = manager.add_subscriber(watch.clone());
        Ok(Self {
            manager,
            id,
            watch,
            _blocked: blocked,
            start: None,
        })
    }

    /// The time limit counts from now on.
    pub(super) fn limit(&mut self, limit: TimeLimit) -> Result<(), Error> {
        let mut watch = self.watch.lock().unwrap_or_else(|e| e.into_inner());
        watch.limit(limit).map_err(host_error("start a timer"))
    }

    /// Why the run ends, if somebody outside has ended it.
    pub(super) fn ending(&self) -> Option<Cause> {
        let watch = self.watch.lock().unwrap_or_else(|e| e.into_inner());
        watch.ending()
    }

    /// Whether the next machine will be ended at once: a signal is waiting, or time is up.
    pub(super) fn is_to_end(&self) -> bool {
        let watch = self.watch.lock().unwrap_or_else(|e| e.into_inner());
        watch.is_to_end()
    }

    /// Runs a machine to its end and says what it cost.
    pub(super) fn pass(&mut self, config: &Config, vm: Vm) -> Outcome {
        // Dropped from the last to the first: KVM lets go of guest memory before it is unmapped.
        let Vm {
            shared,
            vcpus,
            listening,
            prefault_time,
            fd: _vm,
            ..
        } = vm;
        let started = shared.start();
        let start = *self.start.get_or_insert(started);
        let machine = Machine {
            shared: shared.clone(),
            listening,
        };
        self.watch(|watch, ops| watch.attach(machine, ops));
        shared.milestones.turn().record(
            Event::Reset,
            0,
            shared.clocks(),
            &Figures::default(),
            Asks::default(),
        );
        let workers = worker::spawn(&shared.devices, &shared.control).unwrap_or_else(|error| {
            let what = format!("cannot start a thread: {error}");
            shared.control.finish(Cause::Internal(what));
            Vec::new()
        });
        let threads = spawn(&shared, vcpus);
        // At least one turn: however soon a guest resets itself, signals and the timer are seen.
        loop {
            self.turn(&shared);
            if shared.control.stopping() {
                break;
            }
        }
        let (clocks, at) = (shared.clocks(), start.clocks());
        let standings = join(&shared, threads);
        // Their control event has been raised; what they are at, they finish.
        workers.into_iter().for_each(|worker| drop(worker.join()));
        self.watch(Watch::detach);
        let cause = shared
            .control
            .cause()
            .unwrap_or_else(|| Cause::Internal("the run ended without a cause".into()));
        let end = end(&cause, config, &standings, clocks);
        let mut notes = shared.marks.notes();
        notes.extend(shared.leaves.note.clone());
        if shared.gates.crowded() {
            notes.push(
                "a CPU has 4 breakpoints, and the guest's gates took them all: milestones gave way. \
                 Withdraw one"
                    .into(),
            );
        }
        Outcome {
            notes,
            standings,
            at,
            startup_cpu_nanos: shared.entered.get().copied().flatten(),
            pass: Pass {
                memory: memory(&shared, config, prefault_time),
                ..account(&shared, started.nanos_since(&start), end)
            },
            cause,
        }
    }

    /// One turn of the event loop.
    fn turn(&mut self, shared: &Shared) {
        if let Err(error) = self.manager.run_with_timeout(TICK_MS) {
            // A signal that is not ours to handle, such as SIGCONT.
            if error != event_manager::Error::Epoll(vmm_sys_util::errno::Error::new(libc::EINTR)) {
                let what = format!("the event loop failed: {error}");
                shared.control.finish(Cause::Internal(what));
            }
        }
        self.watch(Watch::tick);
    }

    /// Lets the watch change what the event loop watches.
    fn watch(&mut self, change: impl FnOnce(&mut Watch, &mut EventOps)) {
        let mut watch = self.watch.lock().unwrap_or_else(|e| e.into_inner());
        // The subscriber of this identifier is never removed.
        if let Ok(mut ops) = self.manager.event_ops(self.id) {
            change(&mut watch, &mut ops);
        }
    }
}

/// Starts every vCPU.
fn spawn(shared: &Shared, vcpus: Vec<Vcpu>) -> Vec<JoinHandle<Option<Standing>>> {
    let mut threads = Vec::new();
    for vcpu in vcpus {
        match vcpu.spawn() {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                let what = format!("cannot start a thread: {error}");
                shared.control.finish(Cause::Internal(what));
                break;
            }
        }
    }
    threads
}

/// Makes every vCPU thread end, and waits for it.
fn join(shared: &Shared, threads: Vec<JoinHandle<Option<Standing>>>) -> Vec<Option<Standing>> {
    while threads.iter().any(|t| !t.is_finished()) {
        for vcpu in 0..threads.len() {
            shared.kick(vcpu);
        }
        thread::sleep(Duration::from_millis(1));
    }
    // A thread catches its own panics: there is nothing to learn from a failed join.
    threads
        .into_iter()
        .map(|t| t.join().ok().flatten())
        .collect()
}

/// What guest memory was made of; nothing where the host does not tell.
fn memory(shared: &Shared, config: &Config, prefault_time: Duration) -> Option<MemoryAccount> {
    let usage = shared.memory.usage()?;
    Some(MemoryAccount {
        pages: shared.memory.pages().name().into(),
        prefault: config.prefault.name().into(),
        prefault_nanos: match config.prefault {
            Prefault::None => 0,
            _ => u64::try_from(prefault_time.as_nanos()).unwrap_or(u64::MAX),
        },
        resident: usage.resident,
        huge: usage.huge,
    })
}

/// Milestones that were looked for, and not reached.
fn missed(shared: &Shared) -> Vec<Missed> {
    let mut missed = shared.marks.missed();
    for more in shared.milestones.missed() {
        if !missed.iter().any(|m| m.name == more.name) {
            missed.push(more);
        }
    }
    if shared.gates.crowded() {
        for missed in missed.iter_mut().filter(|m| m.why == "not reached") {
            missed.why =
                "the guest's gates had left no breakpoint for it, at least for a time".into();
        }
    }
    missed
}

/// Reads the books once more, now that nobody writes them.
fn account(shared: &Shared, start_nanos: u64, end: End) -> Pass {
    let kvm = shared.books.kvm();
    let (mut milestones, milestones_dropped) = shared.milestones.finish(kvm);
    let mut scratch = Scratch::default();
    shared.books.all(&mut scratch);
    let mut total = scratch.figures.accounts(kvm, &shared.books.asks());
    let (mut culprits, cycles) = shared.books.culprits();
    total.culprit_cycles = cycles;
    let map = shared.kernel_map.get();
    names::of_linux(&mut culprits, map, &milestones, &shared.memory);
    let snapshots = milestones.iter_mut().map(|m| &mut m.accounts);
    names::merge(&mut culprits, snapshots.chain([&mut total]));
    let vcpus = (0..shared.books.vcpu_count())
        .map(|i| {
            shared.books.vcpu(i, &mut scratch);
            let asks = shared.books.vcpu_asks(i);
            scratch.figures.accounts(kvm, &asks)
        })
        .collect();
    Pass {
        start_nanos,
        end,
        milestones,
        milestones_dropped,
        milestones_missed: missed(shared),
        total,
        vcpus,
        gates: shared.gates.figures(),
        memory: None,
        devices: shared.devices.slots().iter().map(|s| s.account()).collect(),
        histograms: shared.books.histograms(),
        culprits,
    }
}
