//! What happens outside the vCPUs while a run goes on: signals, the time limit, the terminal.
//!
//! All of it outlives a reset: the machine that a watch is about is exchanged, the watch stays.

use std::io::{self, IsTerminal, Write};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::config::TimeLimit;
use crate::devices::control::Cause;
use crate::devices::virtio::Kind;
use crate::terminal::{self, ESCAPE_KEY, RawMode};
use crate::vcpu::Shared;

/// Most bytes of input held back for the guest.
const INPUT_HELD: usize = 4096;

/// What the event loop watches, by the data that comes with an event.
const CONTROL: u32 = 0;
const SIGNAL: u32 = 1;
const TIMER: u32 = 2;
const STDIN: u32 = 3;
const WINDOW: u32 = 4;

/// A driver that has just started is told of the window after this many ticks in which its guest prints
/// nothing. Linux asks for it only when it is told of a change, and hears of none before its console is
/// complete, which is when it has printed the kernel's log (linux/drivers/char/virtio_console.c,
/// `config_work_handler`). Nor does it keep the size for whoever opens the console later
/// (linux/drivers/tty/hvc/hvc_console.c, `hvc_set_winsz`): it is told again with each line typed.
const SETTLED: u32 = 10;

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

/// The machine that is running now.
#[derive(Clone)]
pub(super) struct Machine {
    /// What its vCPUs share.
    pub(super) shared: Arc<Shared>,
    /// Set once its guest listens to its console.
    pub(super) listening: Arc<AtomicBool>,
}

/// The one subscriber: everything that happens outside the vCPUs.
pub(super) struct Watch {
    machine: Option<Machine>,
    /// Why the whole run ends, whatever its machine does.
    ending: Option<Cause>,
    signals: SignalFd,
    /// SIGWINCH.
    windows: SignalFd,
    /// The window may have changed.
    resized: bool,
    /// The guest is to be told of the window.
    tell: bool,
    /// Ticks in which the guest has printed nothing.
    quiet: u32,
    timer: TimerFd,
    input: Input,
    /// Input that the guest has not read yet.
    held: Vec<u8>,
    terminal: bool,
    raw: Option<RawMode>,
}

impl Watch {
    /// Watches for signals, those that end a run and those of the window, and for the timer, which does
    /// not run yet.
    pub(super) fn new(signals: SignalFd, windows: SignalFd, timer: TimerFd) -> Self {
        Self {
            machine: None,
            ending: None,
            signals,
            windows,
            resized: false,
            tell: false,
            quiet: 0,
            timer,
            input: Input::Unasked,
            held: Vec::new(),
            terminal: io::stdin().is_terminal(),
            raw: None,
        }
    }

    /// Starts the timer, if there is a limit.
    pub(super) fn limit(&mut self, limit: TimeLimit) -> vmm_sys_util::errno::Result<()> {
        match limit.0 {
            None => Ok(()),
            Some(limit) => self.timer.reset(limit, None),
        }
    }

    /// From now on this machine is the one that runs.
    pub(super) fn attach(&mut self, machine: Machine, ops: &mut EventOps) {
        let control = &machine.shared.control;
        add(
            ops,
            Events::with_data(control.event(), CONTROL, EventSet::IN),
            &mut self.ending,
        );
        self.machine = Some(machine);
        (self.resized, self.tell, self.quiet) = (false, false, 0);
        if let Some(cause) = self.ending.clone() {
            self.finish(cause);
        }
    }

    /// The machine has ended. Input that its guest has not read waits for the next one.
    pub(super) fn detach(&mut self, ops: &mut EventOps) {
        let Some(Machine { shared, .. }) = self.machine.take() else {
            return;
        };
        let event = Events::with_data(shared.control.event(), CONTROL, EventSet::IN);
        let _ = ops.remove(event);
        if let Ok(com1) = shared.com1.lock() {
            let unread = com1.unread();
            self.held.splice(..0, unread);
        }
        if let Some(terminal) = &shared.terminal {
            self.held.splice(..0, terminal.take_unread());
        }
        shared.output.drain();
    }

    /// Why the whole run ends, if somebody outside has ended it.
    pub(super) fn ending(&self) -> Option<Cause> {
        self.ending.clone()
    }

    /// Whether the run ends as soon as events are looked at: by a signal, or by the timer.
    pub(super) fn is_to_end(&self) -> bool {
        // SAFETY: the descriptor is that of `self.timer`, which is open as long as it.
        let timer = unsafe { BorrowedFd::borrow_raw(self.timer.as_raw_fd()) };
        let mut fds = [self.signals.as_fd(), timer].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        self.ending.is_some() || matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0)
    }

    /// Ends the run, from outside.
    fn finish(&mut self, cause: Cause) {
        let cause = self.ending.get_or_insert(cause);
        if let Some(machine) = &self.machine {
            machine.shared.control.finish(cause.clone());
        }
    }

    fn listening(&self) -> bool {
        let machine = self.machine.as_ref();
        machine.is_some_and(|m| m.listening.load(Ordering::Acquire))
    }

    /// Starts watching input once the guest listens, and gives it the terminal if there is one.
    fn ask_for_input(&mut self, ops: &mut EventOps) {
        if self.terminal {
            match RawMode::enter() {
                Ok(raw) => {
                    let what = "exitvisor: the guest has the terminal; Ctrl-] ends the run";
                    // Whoever does not want to know is no reason to end.
                    let _ = writeln!(io::stderr(), "{what}");
                    self.raw = raw;
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
        // What a machine left unread at its reset can exceed it.
        let room = INPUT_HELD.saturating_sub(self.held.len());
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
                self.tell |= keys.iter().any(|key| b"\r\n".contains(key));
                self.deliver();
                if escape.is_some() {
                    self.finish(Cause::EscapeKey);
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

    /// Moves held input into the console as far as that has room. A guest that has just been reset
    /// gets none before it listens, as at its first boot: it would clear it away unread.
    fn deliver(&mut self) {
        let Some(machine) = &self.machine else {
            return;
        };
        let is_listening = self.listening();
        if let Some(terminal) = &machine.shared.terminal {
            if is_listening {
                let n = terminal.room().min(self.held.len());
                terminal.input(&self.held[..n]);
                self.held.drain(..n);
            }
            if let Some(console) = machine.shared.devices.first(Kind::Console)
                && terminal.is_due()
            {
                // If a vCPU has it: again at the next tick.
                console.offer();
            }
            return;
        }
        if self.held.is_empty() || !is_listening {
            return;
        }
        // A vCPU that waits for a slow console holds the lock; the loop must not wait with it.
        let Ok(mut com1) = machine.shared.com1.try_lock() else {
            return;
        };
        let n = com1.room().min(self.held.len());
        com1.input(&self.held[..n]);
        self.held.drain(..n);
    }

    /// Tells the guest of the window: that it has changed, or, soon after its driver has started, that
    /// there is one.
    fn show_window(&mut self) {
        let Some(shared) = self.machine.as_ref().map(|machine| &machine.shared) else {
            return;
        };
        let (Some(terminal), Some(console)) =
            (&shared.terminal, shared.devices.first(Kind::Console))
        else {
            return;
        };
        let is_untold = terminal.is_untold();
        self.quiet = match is_untold && !terminal.take_printed() {
            true => self.quiet + 1,
            false => 0,
        };
        if mem::take(&mut self.resized) {
            self.tell |= terminal::size().is_some_and(|size| terminal.resize(size));
        }
        let has_settled = is_untold && self.quiet >= SETTLED;
        // If a vCPU has the device: again at the next tick.
        if (self.tell || has_settled) && terminal.has_window() && console.changed() {
            self.tell = false;
            if has_settled {
                terminal.told();
            }
        }
    }

    /// What is done when nothing else happens.
    pub(super) fn tick(&mut self, ops: &mut EventOps) {
        if let Some(machine) = &self.machine {
            machine.shared.output.try_drain();
        }
        self.deliver();
        self.show_window();
        match self.input {
            Input::Unasked if self.listening() => self.ask_for_input(ops),
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

impl Drop for Watch {
    fn drop(&mut self) {
        // Signals that came before the run was over have had their effect: they must not end us
        // before the profile is saved (a service manager sends SIGTERM and SIGHUP together).
        while let Ok(Some(_)) = self.signals.read_signal() {}
    }
}

impl MutEventSubscriber for Watch {
    fn init(&mut self, ops: &mut EventOps) {
        let signals = Events::with_data(&self.signals.as_fd(), SIGNAL, EventSet::IN);
        add(ops, signals, &mut self.ending);
        let windows = Events::with_data(&self.windows.as_fd(), WINDOW, EventSet::IN);
        add(ops, windows, &mut self.ending);
        let timer = Events::with_data(&self.timer, TIMER, EventSet::IN);
        add(ops, timer, &mut self.ending);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            SIGNAL => {
                if let Ok(Some(info)) = self.signals.read_signal() {
                    self.finish(Cause::Signal(info.ssi_signo as i32));
                }
            }
            WINDOW => {
                while let Ok(Some(_)) = self.windows.read_signal() {}
                // Seen to at the tick that follows.
                self.resized = true;
            }
            TIMER => self.finish(Cause::Timeout),
            STDIN => self.feed(ops),
            // CONTROL: the loop sees for itself that the machine is ending.
            _ => {}
        }
    }
}

/// Watches a descriptor; where that fails, the run has to end.
fn add(ops: &mut EventOps, events: Events, ending: &mut Option<Cause>) {
    if let Err(error) = ops.add(events) {
        let what = format!("the event loop cannot watch a descriptor: {error}");
        ending.get_or_insert(Cause::Internal(what));
    }
}
