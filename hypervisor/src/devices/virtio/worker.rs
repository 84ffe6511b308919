//! A device's own thread: it hears the kicks that KVM took, and what the device waits for on the host.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use super::slot::{Set, Slot};
use crate::devices::control::{Cause, Control};

/// What a worker watches, by the data that comes with an event.
const STOP: u32 = 0;
const KICK: u32 = 1;
const SOURCE: u32 = 2;

/// A descriptor that somebody else owns and keeps open.
struct Borrowed(RawFd);

impl AsRawFd for Borrowed {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

struct Worker {
    slot: Arc<Slot>,
    control: Arc<Control>,
    source: Option<Borrowed>,
    /// The source is watched.
    watched: bool,
}

impl Worker {
    fn source(&self) -> Option<Events> {
        let source = self.source.as_ref()?;
        Some(Events::with_data(source, SOURCE, EventSet::IN))
    }

    /// A source that nobody wants must not be watched: it would be reported over and over.
    fn watch(&mut self, wanted: bool, ops: &mut EventOps) {
        let Some(events) = self.source() else { return };
        if wanted != self.watched {
            let done = match wanted {
                true => ops.add(events),
                false => ops.remove(events),
            };
            match done {
                Ok(()) => self.watched = wanted,
                Err(error) => self.give_up(&error),
            }
        }
    }

    fn give_up(&self, error: &event_manager::Error) {
        let what = format!(
            "the thread of {} cannot go on: {error}",
            self.slot.placed.name
        );
        self.control.finish(Cause::Internal(what));
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps) {
        let stop = Events::with_data(self.control.event(), STOP, EventSet::IN);
        let kick = self
            .slot
            .kick()
            .map(|kick| Events::with_data(kick, KICK, EventSet::IN));
        for events in std::iter::once(stop).chain(kick) {
            if let Err(error) = ops.add(events) {
                self.give_up(&error);
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let kicked = events.data() == KICK;
        if let Some(kick) = self.slot.kick().filter(|_| kicked) {
            // Nothing is there if somebody else was faster; nobody is.
            let _ = kick.read();
        }
        if events.data() == STOP || self.control.stopping() {
            return;
        }
        let turn = self.slot.turn(kicked);
        if let Some(kick) = self.slot.kick().filter(|_| turn.more) {
            let _ = kick.write(1);
        }
        self.watch(turn.wants, ops);
    }
}

/// Starts the threads of the devices that have one.
pub fn spawn(set: &Set, control: &Arc<Control>) -> io::Result<Vec<JoinHandle<()>>> {
    set.slots()
        .iter()
        .filter(|slot| slot.kick().is_some())
        .map(|slot| {
            let worker = Worker {
                slot: slot.clone(),
                control: control.clone(),
                source: slot.source().map(Borrowed),
                watched: false,
            };
            let control = control.clone();
            thread::Builder::new()
                .name(slot.placed.name.clone())
                .spawn(move || {
                    let name = worker.slot.placed.name.clone();
                    let lived = catch_unwind(AssertUnwindSafe(|| live(worker, &control)));
                    let what = match lived {
                        Ok(Ok(())) => return,
                        Ok(Err(error)) => format!("the thread of {name} cannot go on: {error}"),
                        Err(_) => format!("{name} panicked: this is a fault of Exitvisor"),
                    };
                    control.finish(Cause::Internal(what));
                })
        })
        .collect()
}

/// The thread's life.
fn live(worker: Worker, control: &Control) -> Result<(), event_manager::Error> {
    let mut manager = EventManager::new()?;
    manager.add_subscriber(worker);
    while !control.stopping() {
        match manager.run() {
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EINTR => {}
            result => {
                result?;
            }
        }
    }
    Ok(())
}
