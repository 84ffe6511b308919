//! Running a VM to its end: the event loop around the vCPU threads, and the profile after them.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use exit_abi::milestone;
use exit_abi::reason::Reason;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use sha2::{Digest, Sha256};
use vmm_sys_util::timerfd::TimerFd;

use crate::config::{Config, edition_name};
use crate::devices::control::{Cause, Control};
use crate::error::{Error, host as host_error};
use crate::exits::books::{Figures, Scratch};
use crate::exits::milestone::{Clocks, Name};
use crate::profile::{End, EndKind, Image, Machine, Profile, ReasonInfo, SCHEMA, Tool, VERSION};
use crate::terminal::{ESCAPE_KEY, RawMode};
use crate::vcpu::{Shared, Standing, catch_kicks};
use crate::vm::{self, Loaded, Vm};
use crate::{host, status};

/// How often the console is drained and input is offered while nothing else happens.
const TICK_MS: i32 = 20;

/// Most bytes of input held back for the guest.
const INPUT_HELD: usize = 4096;

/// Signals that end a run.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Blocks [`ENDING`] for this thread and those it starts, until dropped.
struct BlockedSignals(SigSet);

impl BlockedSignals {
    fn new() -> nix::Result<Self> {
        let set: SigSet = ENDING.into_iter().collect();
        set.thread_block()?;
        Ok(Self(set))
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // Cannot fail: the set is valid and so is the operation.
        let _ = self.0.thread_unblock();
    }
}

/// What the event loop watches, by the data that comes with an event.
const CONTROL: u32 = 0;
const SIGNAL: u32 = 1;
const TIMER: u32 = 2;
const STDIN: u32 = 3;

/// Where input for the guest stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// The guest has not asked for any.
    Unasked,
    /// Watched by the event loop.
    Watched,
    /// Cannot be watched (a regular file): offered at each tick.
    Offered,
    /// As much is held back as may be: looked at again once the guest has taken some.
    Full,
    /// Nothing more will come.
    Ended,
}

/// The one subscriber: everything that happens outside the vCPUs.
struct Watch {
    shared: Arc<Shared>,
    listening: Arc<AtomicBool>,
    signals: SignalFd,
    timer: Option<TimerFd>,
    input: Input,
    /// Input that the UART has had no room for.
    held: Vec<u8>,
    terminal: bool,
    raw: Option<RawMode>,
}

impl Watch {
    fn control(&self) -> &Control {
        &self.shared.control
    }

    /// Starts watching input once the guest listens, and gives it the terminal if there is one.
    fn ask_for_input(&mut self, ops: &mut EventOps) {
        if self.terminal {
            match RawMode::enter() {
                Ok(raw) => {
                    self.raw = raw;
                    let what = "exitvisor: the guest has the terminal; Ctrl-] ends the run";
                    // Whoever does not want to know is no reason to end.
                    let _ = writeln!(io::stderr(), "{what}");
                }
                Err(error) => {
                    tracing::warn!(%error, "the terminal cannot be given to the guest");
                }
            }
        }
        let events = Events::with_data(&io::stdin(), STDIN, EventSet::IN);
        // epoll refuses regular files and /dev/null.
        self.input = if ops.add(events).is_ok() {
            Input::Watched
        } else {
            Input::Offered
        };
    }

    /// Takes input, looks for the escape key in it, and hands it on.
    ///
    /// By the descriptor itself: `io::stdin()` would read ahead into a buffer of its own, and no
    /// event would tell of what lies there.
    fn feed(&mut self, ops: &mut EventOps) {
        let mut bytes = [0; 256];
        let room = INPUT_HELD - self.held.len();
        // A terminal is read even if there is no room: the escape key must be seen.
        let most = if self.terminal {
            bytes.len()
        } else {
            room.min(bytes.len())
        };
        if most == 0 {
            self.unwatch(ops, Input::Full);
            return;
        }
        match nix::unistd::read(io::stdin().as_fd(), &mut bytes[..most]) {
            Ok(0) => self.unwatch(ops, Input::Ended),
            Ok(n) => {
                let escape = bytes[..n]
                    .iter()
                    .position(|&b| self.terminal && b == ESCAPE_KEY);
                // Keys for which there is no room are lost, as they are to a UART.
                let keys = &bytes[..escape.unwrap_or(n).min(room)];
                self.held.extend(keys);
                self.deliver();
                if escape.is_some() {
                    self.control().finish(Cause::EscapeKey);
                }
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => self.unwatch(ops, Input::Ended),
        }
    }

    /// Stops watching input. An end that stayed watched would be reported over and over.
    fn unwatch(&mut self, ops: &mut EventOps, then: Input) {
        if self.input == Input::Watched {
            let _ = ops.remove(Events::with_data(&io::stdin(), STDIN, EventSet::IN));
        }
        self.input = then;
    }

    /// Moves held input into the UART as far as that has room.
    fn deliver(&mut self) {
        if self.held.is_empty() {
            return;
        }
        // A vCPU that waits for a slow console holds the lock; the loop must not wait with it.
        let Ok(mut com1) = self.shared.com1.try_lock() else {
            return;
        };
        let n = com1.room().min(self.held.len());
        com1.input(&self.held[..n]);
        self.held.drain(..n);
    }

    /// What is done when nothing else happens.
    fn tick(&mut self, ops: &mut EventOps) {
        if let Ok(mut com1) = self.shared.com1.try_lock() {
            com1.drain();
        }
        self.deliver();
        match self.input {
            Input::Unasked if self.listening.load(Ordering::Acquire) => self.ask_for_input(ops),
            Input::Full if self.held.len() < INPUT_HELD => {
                let events = Events::with_data(&io::stdin(), STDIN, EventSet::IN);
                if ops.add(events).is_ok() {
                    self.input = Input::Watched;
                }
            }
            Input::Offered => self.feed(ops),
            _ => {}
        }
    }
}

impl MutEventSubscriber for Watch {
    fn init(&mut self, ops: &mut EventOps) {
        let mut watch = |events| {
            if let Err(error) = ops.add(events) {
                let what = format!("the event loop cannot watch a descriptor: {error}");
                self.shared.control.finish(Cause::Internal(what));
            }
        };
        watch(Events::with_data(
            self.shared.control.event(),
            CONTROL,
            EventSet::IN,
        ));
        watch(Events::with_data(
            &self.signals.as_fd(),
            SIGNAL,
            EventSet::IN,
        ));
        if let Some(timer) = &self.timer {
            watch(Events::with_data(timer, TIMER, EventSet::IN));
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            SIGNAL => {
                if let Ok(Some(info)) = self.signals.read_signal() {
                    self.control().finish(Cause::Signal(info.ssi_signo as i32));
                }
            }
            TIMER => self.control().finish(Cause::Timeout),
            STDIN => self.feed(ops),
            // CONTROL: the loop sees for itself that the run is ending.
            _ => {}
        }
    }
}

/// Lets the tick reach the subscriber: a handle that the manager and the loop share.
type SharedWatch = Arc<std::sync::Mutex<Watch>>;

/// Runs a VM to its end and says what it cost.
pub fn run(config: &Config) -> Result<Profile, Error> {
    let created = jiff::Timestamp::now().to_string();
    let blocked = BlockedSignals::new().map_err(host_error("block signals"))?;
    let signals = SignalFd::with_flags(&blocked.0, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(host_error("watch for signals"))?;
    catch_kicks().map_err(host_error("install a signal handler"))?;

    let Vm {
        shared,
        vcpus,
        kvm,
        tsc_khz,
        sources,
        images,
        listening,
        fd: _vm,
    } = vm::build(config)?;

    let timer = match config.timeout.0 {
        None => None,
        Some(limit) => {
            let mut timer = TimerFd::new().map_err(host_error("make a timer"))?;
            timer
                .reset(limit, None)
                .map_err(host_error("start a timer"))?;
            Some(timer)
        }
    };
    let watch: SharedWatch = Arc::new(std::sync::Mutex::new(Watch {
        shared: shared.clone(),
        listening,
        signals,
        timer,
        input: Input::Unasked,
        held: Vec::new(),
        terminal: io::stdin().is_terminal(),
        raw: None,
    }));
    let event_error = |e: event_manager::Error| Error::Host {
        operation: "run the event loop",
        source: io::Error::other(e),
    };
    let mut manager = EventManager::<SharedWatch>::new().map_err(event_error)?;
    let id = manager.add_subscriber(watch.clone());

    shared.milestones.record(
        milestone::RESET,
        Name::default(),
        0,
        shared.clocks(),
        &Figures::default(),
    );
    let mut threads = Vec::new();
    for vcpu in vcpus {
        match vcpu.spawn() {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                shared
                    .control
                    .finish(Cause::Internal(format!("cannot start a thread: {error}")));
                break;
            }
        }
    }
    while !shared.control.stopping() {
        if let Err(error) = manager.run_with_timeout(TICK_MS) {
            // A signal that is not ours to handle, such as SIGWINCH or SIGCONT.
            if error != event_manager::Error::Epoll(vmm_sys_util::errno::Error::new(libc::EINTR)) {
                shared
                    .control
                    .finish(Cause::Internal(format!("the event loop failed: {error}")));
            }
        }
        let ops = manager.event_ops(id);
        if let (Ok(mut watch), Ok(mut ops)) = (watch.lock(), ops) {
            watch.tick(&mut ops);
        }
    }
    let clocks = shared.clocks();
    let standings = join(&shared, threads);
    if let Ok(mut com1) = shared.com1.lock() {
        com1.drain();
    }
    if let Ok(mut watch) = watch.lock() {
        // Restores the terminal.
        watch.raw = None;
        // Signals that came before the run was over have had their effect: they must not end us
        // before the profile is saved (a service manager sends SIGTERM and SIGHUP together).
        while let Ok(Some(_)) = watch.signals.read_signal() {}
    }
    drop(blocked);

    let cause = shared
        .control
        .cause()
        .unwrap_or_else(|| Cause::Internal("the run ended without a cause".into()));
    let (milestones, milestones_dropped) = shared.milestones.finish();
    let mut scratch = Scratch::default();
    shared.books.all(&mut scratch);
    let total = scratch.figures.accounts();
    let vcpus = (0..shared.books.vcpu_count())
        .map(|i| {
            shared.books.vcpu(i, &mut scratch);
            scratch.figures.accounts()
        })
        .collect();
    let reasons = Reason::all()
        .filter(|r| r.is_defined(config.edition))
        .map(|r| ReasonInfo {
            reason: r.number(),
            name: r.name().unwrap_or("unnamed").to_owned(),
            can_occur: crate::exits::reason::can_occur(kvm, r),
            exact: shared.books.is_exact(r),
        })
        .collect();
    Ok(Profile {
        schema: SCHEMA.into(),
        version: VERSION,
        tool: Tool {
            name: "exitvisor".into(),
            version: env!("CARGO_PKG_VERSION").into(),
        },
        created,
        host: host::describe(kvm, tsc_khz),
        machine: machine(config, images),
        sources,
        end: end(&cause, config, &standings, clocks),
        milestones,
        milestones_dropped,
        total,
        vcpus,
        gates: shared.gates.figures(),
        reasons,
    })
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

fn machine(config: &Config, images: Vec<Loaded>) -> Machine {
    Machine {
        cpus: config.cpus.get(),
        memory: config.memory.bytes(),
        cmdline: config.cmdline.clone(),
        layout: config.leaves.name.into(),
        leaves: config.leaves.layout.leaves(),
        sdm: edition_name(config.edition).into(),
        boot: if config.firmware.is_some() {
            "PVH via firmware"
        } else {
            "PVH"
        }
        .into(),
        images: images.into_iter().map(hash).collect(),
    }
}

/// Hashes what was loaded, through the descriptor it was loaded from.
fn hash(mut loaded: Loaded) -> Image {
    let mut hasher = Sha256::new();
    let mut buffer = [0; 16 * 1024];
    let mut read = || -> io::Result<()> {
        io::Seek::rewind(&mut loaded.file)?;
        loop {
            match loaded.file.read(&mut buffer)? {
                0 => return Ok(()),
                n => hasher.update(&buffer[..n]),
            }
        }
    };
    let sha256 = match read() {
        Ok(()) => hasher
            .finalize()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect(),
        Err(_) => String::new(),
    };
    Image {
        role: loaded.role.into(),
        path: loaded.path.display().to_string(),
        bytes: loaded.bytes,
        sha256,
    }
}

/// How the vCPUs stood, for people.
fn describe(standings: &[Option<Standing>]) -> String {
    let described: Vec<String> = standings
        .iter()
        .enumerate()
        .filter_map(|(i, s)| {
            let s = (*s)?;
            let state = match (s.halted, s.interruptible) {
                (true, false) => "halted with interrupts off",
                (true, true) => "halted, waiting for an interrupt",
                (false, false) => "running with interrupts off",
                (false, true) => "running",
            };
            Some(format!("vCPU {i} was {state} at rip {:#x}", s.rip))
        })
        .take(4)
        .collect();
    described.join("; ")
}

/// From the cause to the status and the words.
fn end(cause: &Cause, config: &Config, standings: &[Option<Standing>], clocks: Clocks) -> End {
    let (status, kind, detail) = match cause {
        Cause::Exit(exit_abi::status::CRASH) => (
            status::CRASH,
            EndKind::Crash,
            "the guest said that it crashed".to_owned(),
        ),
        Cause::Exit(n) => {
            let cut = (*n).min(exit_abi::status::GUEST_MAX) as u8;
            let detail = if u32::from(cut) == *n {
                format!("the guest exited with status {n}")
            } else {
                format!("the guest exited with status {n}, cut to {cut}")
            };
            (cut, EndKind::Exit, detail)
        }
        Cause::TripleFault(vcpu) => (
            status::TRIPLE_FAULT,
            EndKind::TripleFault,
            format!("triple fault on vCPU {vcpu}"),
        ),
        Cause::Timeout => {
            let limit = config.timeout.0.unwrap_or_default();
            let detail = format!("time limit of {limit:?} reached: {}", describe(standings));
            (status::TIMEOUT, EndKind::Timeout, detail)
        }
        Cause::Signal(number) => {
            let (status, name) = match *number {
                libc::SIGHUP => (status::HUNG_UP, "SIGHUP"),
                libc::SIGTERM => (status::TERMINATED, "SIGTERM"),
                _ => (status::INTERRUPTED, "Ctrl-C"),
            };
            (
                status,
                EndKind::Interrupted,
                format!("interrupted by {name}"),
            )
        }
        Cause::EscapeKey => (
            status::INTERRUPTED,
            EndKind::Interrupted,
            "interrupted by Ctrl-]".to_owned(),
        ),
        Cause::Kvm(what) => (status::KVM_ERROR, EndKind::KvmError, what.clone()),
        Cause::Internal(what) => (status::INTERNAL, EndKind::Internal, what.clone()),
    };
    let cut_short = kind != EndKind::Exit;
    End {
        status,
        kind,
        detail,
        cut_short,
        tsc: clocks.tsc,
        nanos: clocks.nanos,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Console, TimeLimit};
    use exit_abi::reason::Edition;

    fn config() -> Config {
        Config {
            firmware: None,
            kernel: "kernel".into(),
            initrd: None,
            cmdline: String::new(),
            memory: "64M".parse().unwrap(),
            cpus: "1".parse().unwrap(),
            timeout: TimeLimit(Some(Duration::from_secs(2))),
            leaves: "classic".parse().unwrap(),
            edition: Edition::Current,
            log_queries: false,
            console: Console::Stdout,
        }
    }

    #[test]
    fn ends_have_their_statuses() {
        let standing = Standing {
            halted: true,
            interruptible: false,
            rip: 0x10_0000,
        };
        let end = |cause| end(&cause, &config(), &[Some(standing)], Clocks::default());
        let cases = [
            (Cause::Exit(0), 0, false),
            (Cause::Exit(63), 63, false),
            (Cause::Exit(64), 63, false),
            (Cause::Exit(0xFF), 82, true),
            (Cause::TripleFault(0), 81, true),
            (Cause::Timeout, 80, true),
            (Cause::Signal(libc::SIGINT), 130, true),
            (Cause::Signal(libc::SIGTERM), 143, true),
            (Cause::EscapeKey, 130, true),
            (Cause::Kvm("x".into()), 83, true),
            (Cause::Internal("x".into()), 70, true),
        ];
        for (cause, status, cut_short) in cases {
            let end = end(cause.clone());
            assert_eq!(
                (end.status, end.cut_short),
                (status, cut_short),
                "{cause:?}"
            );
        }
        assert_eq!(
            end(Cause::Timeout).detail,
            "time limit of 2s reached: vCPU 0 was halted with interrupts off at rip 0x100000"
        );
    }
}
