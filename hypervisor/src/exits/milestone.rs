//! Milestones: snapshots of the books, taken when the guest says where it is.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use exit_abi::milestone::{self, NAME_MAX};

use super::books::{Asks, Figures};
use crate::marks::Label;
use crate::profile::{KvmKind, Milestone, MilestoneKind, Missed};

/// Most snapshots that one run keeps: a guest may write a million milestones.
pub const ROOM: usize = 1000;

/// How much of what was asked for all snapshots of a run keep together: a guest that asks for
/// everything would make a profile too large to be read. Later ones keep what time drives.
const ROOM_FOR_ASKS: usize = 150_000;

/// How many counts of those who caused exits all snapshots of a run keep together.
const ROOM_FOR_CULPRITS: usize = 500_000;

/// A name that the guest is spelling for its next milestone: bounded, printable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Name {
    bytes: [u8; NAME_MAX],
    len: usize,
}

impl Name {
    /// Adds a byte; what does not fit is dropped, what does not print becomes `?`.
    pub fn push(&mut self, byte: u8) {
        if byte == 0 {
            return;
        }
        if let Some(slot) = self.bytes.get_mut(self.len) {
            *slot = if byte == b' ' || byte.is_ascii_graphic() {
                byte
            } else {
                b'?'
            };
            self.len += 1;
        }
    }

    /// The name, and an empty one in its place.
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// As text; `None` if nothing was spelled.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes[..self.len])
            .ok()
            .filter(|s| !s.trim().is_empty())
    }
}

/// When a snapshot was taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clocks {
    /// TSC cycles since the VM started.
    pub tsc: u64,
    /// Nanoseconds since the VM started.
    pub nanos: u64,
}

/// What has been reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The VM has started.
    Reset,
    /// What the guest wrote to its port.
    Guest {
        /// The number.
        number: u32,
        /// The name that it spelled before.
        name: Name,
    },
    /// What we have noticed ourselves.
    Noticed(Label),
}

impl Event {
    fn number(&self) -> u32 {
        match self {
            Self::Reset => milestone::RESET,
            Self::Guest { number, .. } => *number,
            Self::Noticed(_) => 0,
        }
    }

    fn kind(&self) -> MilestoneKind {
        match self {
            Self::Reset => MilestoneKind::Reset,
            Self::Guest { .. } => MilestoneKind::Port,
            Self::Noticed(label) => label.kind,
        }
    }
}

/// A milestone that somebody waits for.
#[derive(Debug)]
pub struct Awaited {
    name: String,
    /// Any of this kind, whatever its name.
    kind: Option<MilestoneKind>,
    /// The run ends there.
    ends: bool,
    reached: AtomicBool,
}

impl Awaited {
    /// One of this name, or any of a kind.
    pub fn new(name: String, kind: Option<MilestoneKind>, ends: bool) -> Self {
        Self {
            name,
            kind,
            ends,
            reached: AtomicBool::new(false),
        }
    }

    fn is_it(&self, event: &Event, name: &str) -> bool {
        match self.kind {
            Some(kind) => event.kind() == kind,
            None => self.name == name,
        }
    }
}

/// A snapshot.
struct Snapshot {
    event: Event,
    vcpu: u32,
    clocks: Clocks,
    figures: Figures,
    asks: Asks,
}

/// Snapshots in the order in which they were taken.
struct Inner {
    snapshots: Vec<Snapshot>,
    /// Room that is left of [`ROOM_FOR_ASKS`].
    room_for_asks: usize,
    /// Room that is left of [`ROOM_FOR_CULPRITS`].
    room_for_culprits: usize,
    dropped: u64,
}

/// The turn to take one snapshot.
pub struct Turn<'a> {
    inner: MutexGuard<'a, Inner>,
    milestones: &'a Milestones,
}

impl Turn<'_> {
    /// Whether there is no room any more: nothing needs to be read.
    pub fn is_full(&self) -> bool {
        self.inner.snapshots.len() >= ROOM
    }

    /// Keeps a snapshot, or counts that there was no room for it. Answers the name if the run is to end
    /// here.
    pub fn record(
        mut self,
        event: Event,
        vcpu: u32,
        clocks: Clocks,
        figures: &Figures,
        mut asks: Asks,
    ) -> Option<String> {
        let ends = self.milestones.awaits(&event);
        if !self.is_full() {
            if asks.list.len() > self.inner.room_for_asks {
                asks.shorten(0);
            }
            self.inner.room_for_asks = self.inner.room_for_asks.saturating_sub(asks.list.len());
            match self
                .inner
                .room_for_culprits
                .checked_sub(asks.culprits.len())
            {
                Some(left) => self.inner.room_for_culprits = left,
                None => asks.culprits = Vec::new(),
            }
            let figures = figures.clone();
            self.inner.snapshots.push(Snapshot {
                event,
                vcpu,
                clocks,
                figures,
                asks,
            });
        } else {
            self.inner.dropped += 1;
        }
        ends
    }
}

/// The snapshots of a run.
pub struct Milestones {
    inner: Mutex<Inner>,
    /// Names that the image's notes give to numbers.
    noted: BTreeMap<u32, String>,
    awaited: Vec<Awaited>,
}

impl Milestones {
    /// None yet. The room is reserved here, so that taking one allocates nothing.
    pub fn new(noted: BTreeMap<u32, String>) -> Self {
        let inner = Inner {
            snapshots: Vec::with_capacity(ROOM),
            room_for_asks: ROOM_FOR_ASKS,
            room_for_culprits: ROOM_FOR_CULPRITS,
            dropped: 0,
        };
        Self {
            inner: Mutex::new(inner),
            noted,
            awaited: Vec::new(),
        }
    }

    /// The same, for who waits for these.
    pub fn awaiting(self, awaited: Vec<Awaited>) -> Self {
        Self { awaited, ..self }
    }

    /// Notes that this has been reached; the name if the run is to end here.
    fn awaits(&self, event: &Event) -> Option<String> {
        if self.awaited.is_empty() {
            return None;
        }
        let name = self.name(event);
        let mut ends = None;
        for awaited in self.awaited.iter().filter(|a| a.is_it(event, &name)) {
            awaited.reached.store(true, Ordering::Relaxed);
            if awaited.ends {
                ends = Some(name.clone().into_owned());
            }
        }
        ends
    }

    /// What somebody waited for in vain.
    pub fn missed(&self) -> Vec<Missed> {
        let missed = self
            .awaited
            .iter()
            .filter(|a| !a.reached.load(Ordering::Relaxed));
        missed
            .map(|awaited| Missed {
                name: awaited.name.clone(),
                why: "not reached".into(),
            })
            .collect()
    }

    /// Waits for the turn to take a snapshot: whoever reads the clocks and the books while holding
    /// it is recorded in the order in which they were read, whatever other vCPUs reach meanwhile.
    pub fn turn(&self) -> Turn<'_> {
        Turn {
            inner: self.inner.lock().unwrap_or_else(|e| e.into_inner()),
            milestones: self,
        }
    }

    /// The name of what was reached: ours, what the guest spelled, what its image noted, what the
    /// interface defines, or its number.
    fn name<'a>(&'a self, event: &'a Event) -> Cow<'a, str> {
        let number = event.number();
        let spelled = match event {
            Event::Noticed(label) => return Cow::Borrowed(&label.name),
            Event::Reset => None,
            Event::Guest { name, .. } => name.as_str(),
        };
        let known = spelled.or_else(|| self.noted.get(&number).map(String::as_str));
        match known.or_else(|| milestone::name(number)) {
            Some(name) => name.into(),
            None if number < milestone::FIRST_OWN => format!("undefined {number}").into(),
            None => format!("unnamed {number:#x}").into(),
        }
    }

    /// As a profile keeps them, and how many found no room.
    pub fn finish(&self, kvm: KvmKind) -> (Vec<Milestone>, u64) {
        let inner = self.inner.lock().unwrap_or_else(|e| e.into_inner());
        let milestones = inner
            .snapshots
            .iter()
            .map(|s| Milestone {
                number: s.event.number(),
                name: self.name(&s.event).into_owned(),
                kind: Some(s.event.kind()),
                at: match &s.event {
                    Event::Noticed(Label { at: Some(at), .. }) => Some(at.to_string()),
                    _ => None,
                },
                vcpu: s.vcpu,
                tsc: s.clocks.tsc,
                nanos: s.clocks.nanos,
                accounts: s.figures.accounts(kvm, &s.asks),
            })
            .collect();
        (milestones, inner.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(bytes: &[u8]) -> Name {
        let mut name = Name::default();
        bytes.iter().for_each(|&b| name.push(b));
        name
    }

    #[test]
    fn names_are_bounded_and_printable() {
        assert_eq!(spelled(b"init done\0\0").as_str(), Some("init done"));
        assert_eq!(spelled(b"a\x1b[2Jb\xFF").as_str(), Some("a?[2Jb?"));
        assert_eq!(spelled(&[b'x'; 100]).as_str().map(str::len), Some(NAME_MAX));
        assert_eq!(spelled(b"  ").as_str(), None);
    }

    #[test]
    fn a_guest_that_asks_for_everything_is_cut_short() {
        let ask = |kind, index| crate::profile::Ask {
            kind,
            index,
            count: 2,
        };
        use crate::profile::AskKind::{MsrWrite, PortOut};
        let milestones = Milestones::new(BTreeMap::new());
        for _ in 0..4 {
            let mut list: Vec<_> = (0x1000..0x1000 + 49_999)
                .map(|port| ask(PortOut, port))
                .collect();
            list.insert(0, ask(MsrWrite, 0x6E0));
            let asks = Asks {
                list,
                dropped: 1,
                culprits: vec![2; 150_000],
            };
            let figures = Figures::default();
            let turn = milestones.turn();
            turn.record(Event::Reset, 0, Clocks::default(), &figures, asks);
        }
        let (taken, _) = milestones.finish(KvmKind::Amd);
        let kept: Vec<_> = taken
            .iter()
            .map(|m| (m.accounts.asks.len(), m.accounts.asks_dropped))
            .collect();
        let whole = (50_000, 1);
        assert_eq!(kept, [whole, whole, whole, (1, 99_999)]);
        let last = taken.last().unwrap();
        assert_eq!(last.accounts.asks, [ask(MsrWrite, 0x6E0)]);
    }

    #[test]
    fn names_come_from_the_guest_its_notes_or_the_interface() {
        let noted = BTreeMap::from([(0x100, "noted".to_owned())]);
        let milestones = Milestones::new(noted);
        let figures = Figures::default();
        for (number, name) in [
            (13, Name::default()),
            (0x100, Name::default()),
            (0x100, spelled(b"mine")),
            (0x101, Name::default()),
            (77, Name::default()),
        ] {
            milestones.turn().record(
                Event::Guest { number, name },
                0,
                Clocks::default(),
                &figures,
                Asks::default(),
            );
        }
        let names: Vec<_> = milestones
            .finish(KvmKind::Amd)
            .0
            .into_iter()
            .map(|m| m.name)
            .collect();
        assert_eq!(
            names,
            ["done", "noted", "mine", "unnamed 0x101", "undefined 77"]
        );
    }

    #[test]
    fn a_flood_is_counted_not_kept() {
        let milestones = Milestones::new(BTreeMap::new());
        for n in 0..ROOM as u32 + 5 {
            milestones.turn().record(
                Event::Guest {
                    number: n,
                    name: Name::default(),
                },
                0,
                Clocks::default(),
                &Figures::default(),
                Asks::default(),
            );
        }
        let (kept, dropped) = milestones.finish(KvmKind::Amd);
        assert_eq!((kept.len(), dropped), (ROOM, 5));
    }

    #[test]
    fn who_waits_is_told() {
        let awaited = |name: &str, kind, ends| Awaited::new(name.to_owned(), kind, ends);
        let milestones = Milestones::new(BTreeMap::new()).awaiting(vec![
            awaited("done", None, true),
            awaited("login:", None, false),
            awaited("port", Some(MilestoneKind::Port), false),
        ]);
        let record = |event| {
            let (clocks, figures) = (Clocks::default(), Figures::default());
            milestones
                .turn()
                .record(event, 0, clocks, &figures, Asks::default())
        };
        let label = |name| Event::Noticed(Label::new(name, MilestoneKind::Console));
        assert_eq!(record(Event::Reset), None);
        let missed = || {
            milestones
                .missed()
                .into_iter()
                .map(|m| m.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(missed(), ["done", "login:", "port"]);
        assert_eq!(record(label("login:")), None);
        let name = Name::default();
        assert_eq!(
            record(Event::Guest { number: 13, name }).as_deref(),
            Some("done")
        );
        assert_eq!(missed(), Vec::<String>::new());
        let (taken, _) = milestones.finish(KvmKind::Amd);
        let kinds: Vec<_> = taken.iter().filter_map(|m| m.kind).collect();
        use MilestoneKind::{Console, Port, Reset};
        assert_eq!(kinds, [Reset, Console, Port]);
    }
}
