//! Milestones: snapshots of the books, taken when the guest says where it is.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use exit_abi::milestone::{self, NAME_MAX};

use super::books::{Asks, Figures};
use crate::profile::{KvmKind, Milestone};

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

/// A snapshot.
struct Snapshot {
    number: u32,
    name: Name,
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
pub struct Turn<'a>(MutexGuard<'a, Inner>);

impl Turn<'_> {
    /// Whether there is no room any more: nothing needs to be read.
    pub fn is_full(&self) -> bool {
        self.0.snapshots.len() >= ROOM
    }

    /// Keeps a snapshot, or counts that there was no room for it.
    pub fn record(
        mut self,
        number: u32,
        name: Name,
        vcpu: u32,
        clocks: Clocks,
        figures: &Figures,
        mut asks: Asks,
    ) {
        if !self.is_full() {
            if asks.list.len() > self.0.room_for_asks {
                asks.shorten(0);
            }
            self.0.room_for_asks = self.0.room_for_asks.saturating_sub(asks.list.len());
            match self.0.room_for_culprits.checked_sub(asks.culprits.len()) {
                Some(left) => self.0.room_for_culprits = left,
                None => asks.culprits = Vec::new(),
            }
            let figures = figures.clone();
            self.0.snapshots.push(Snapshot {
                number,
                name,
                vcpu,
                clocks,
                figures,
                asks,
            });
        } else {
            self.0.dropped += 1;
        }
    }
}

/// The snapshots of a run.
pub struct Milestones {
    inner: Mutex<Inner>,
    /// Names that the image's notes give to numbers.
    noted: BTreeMap<u32, String>,
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
        }
    }

    /// Waits for the turn to take a snapshot: whoever reads the clocks and the books while holding
    /// it is recorded in the order in which they were read, whatever other vCPUs reach meanwhile.
    pub fn turn(&self) -> Turn<'_> {
        Turn(self.inner.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// The name of a snapshot: what the guest spelled, what its image noted, what the interface
    /// defines, or its number.
    fn name(&self, snapshot: &Snapshot) -> String {
        if let Some(name) = snapshot.name.as_str() {
            return name.to_owned();
        }
        if let Some(name) = self.noted.get(&snapshot.number) {
            return name.clone();
        }
        match milestone::name(snapshot.number) {
            Some(name) => name.to_owned(),
            None if snapshot.number < milestone::FIRST_OWN => {
                format!("undefined {}", snapshot.number)
            }
            None => format!("unnamed {:#x}", snapshot.number),
        }
    }

    /// As a profile keeps them, and how many found no room.
    pub fn finish(&self, kvm: KvmKind) -> (Vec<Milestone>, u64) {
        let inner = self.inner.lock().unwrap_or_else(|e| e.into_inner());
        let milestones = inner
            .snapshots
            .iter()
            .map(|s| Milestone {
                number: s.number,
                name: self.name(s),
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
            turn.record(1, Name::default(), 0, Clocks::default(), &figures, asks);
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
                number,
                name,
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
                n,
                Name::default(),
                0,
                Clocks::default(),
                &Figures::default(),
                Asks::default(),
            );
        }
        let (kept, dropped) = milestones.finish(KvmKind::Amd);
        assert_eq!((kept.len(), dropped), (ROOM, 5));
    }
}
