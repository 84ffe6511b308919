//! The console's own tests: what a driver does with it, and what one would not do.

use std::fs::File;
use std::io::{Read, Seek};

use proptest::prelude::*;

use super::*;
use crate::devices::console::Console as Sink;
use crate::devices::control::Cause;
use crate::devices::virtio::registers as r;
use crate::devices::virtio::rig::{
    BUFFERS, Descriptor, INDIRECT, MEMORY, NEXT, Rig, SIZE as SIZE_OF_QUEUE, WRITE, rings,
};
use crate::marks::Label;
use crate::marks::pattern::Patterns;
use crate::profile::MilestoneKind;

/// `VIRTIO_F_EVENT_IDX`.
const EVENT_IDX: u64 = 1 << 29;
const WINDOW: Size = Size {
    columns: 80,
    rows: 25,
};

struct Bench {
    rig: Rig,
    terminal: Arc<Terminal>,
    control: Arc<Control>,
    listening: Arc<AtomicBool>,
    output: Output,
    file: File,
}

impl Bench {
    fn new(features: u64, size: Option<Size>) -> Self {
        Self::settling(features, size, Duration::ZERO)
    }

    /// With a device that waits so long for a driver that prints nothing.
    fn settling(features: u64, size: Option<Size>, settling: Duration) -> Self {
        let control = Arc::new(Control::new().unwrap());
        let file = tempfile::tempfile().unwrap();
        let seen = Label::new("login", MilestoneKind::Console);
        let sink = Sink::new(file.try_clone().unwrap(), control.clone())
            .looking_for(Patterns::new([(seen, "login:")]));
        let output = Output::from(sink);
        let listening = Arc::new(AtomicBool::new(false));
        let terminal = Arc::new(Terminal::new(size, listening.clone()));
        let console = Console {
            settling,
            ..Console::new(output.clone(), terminal.clone(), control.clone())
        };
        Self {
            rig: Rig::running(Box::new(console), features),
            terminal,
            control,
            listening,
            output,
            file,
        }
    }

    fn printed(&mut self) -> Vec<u8> {
        self.output.drain();
        let mut bytes = Vec::new();
        self.file.rewind().unwrap();
        self.file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// The guest sends this, in one piece.
    fn send(&mut self, text: &[u8]) {
        let at = BUFFERS;
        let memory = &self.rig.memory;
        memory.write_slice(text, GuestAddress(at)).unwrap();
        self.rig
            .request(TRANSMIT, &[(at, text.len() as u32, false)]);
        self.rig.kick();
    }

    /// A buffer for input, and what is in it.
    fn give(&mut self, len: u32) {
        self.rig.request(RECEIVE, &[(BUFFERS, len, true)]);
        self.rig.kick();
    }

    fn got(&mut self) -> Option<Vec<u8>> {
        let used = self.rig.used(RECEIVE);
        let &(_, len) = used.first()?;
        let mut bytes = vec![0; len as usize];
        let memory = &self.rig.memory;
        memory
            .read_slice(&mut bytes, GuestAddress(BUFFERS))
            .unwrap();
        Some(bytes)
    }
}

#[test]
fn what_the_guest_sends_is_printed_before_it_goes_on() {
    let mut bench = Bench::new(0, None);
    bench.send(b"hello, ");
    assert_eq!(bench.rig.used(TRANSMIT), [(0, 0)]);
    bench.send(b"login: \n");
    assert_eq!(bench.printed(), b"hello, login: \n");
    let seen = bench.output.take_seen();
    assert_eq!(seen.len(), 1);
    assert!(bench.terminal.take_printed() && !bench.terminal.take_printed());
    assert!(!bench.listening.load(Ordering::Acquire));
}

#[test]
fn pieces_are_printed_in_their_order_and_empty_ones_are_none() {
    let mut bench = Bench::new(0, None);
    let memory = bench.rig.memory.clone();
    let text: Vec<u8> = (0..3 * PIECE + 5).map(|i| b'a' + (i % 26) as u8).collect();
    memory.write_slice(&text, GuestAddress(BUFFERS)).unwrap();
    let (first, rest) = (7, text.len() as u32 - 7);
    bench.rig.request(
        TRANSMIT,
        &[
            (BUFFERS, first, false),
            (0, 0, false),
            (BUFFERS + 7, rest, false),
            (BUFFERS, 9, true),
        ],
    );
    bench.rig.kick();
    assert_eq!(bench.printed(), text);
    bench.rig.request(TRANSMIT, &[(0, 0, false)]);
    bench.rig.kick();
    assert_eq!(bench.rig.used(TRANSMIT), [(0, 0), (0, 0)]);
}

#[test]
fn input_waits_for_buffers() {
    let mut bench = Bench::new(EVENT_IDX, None);
    bench.terminal.input(b"early");
    bench.rig.transport.offer();
    assert!(bench.terminal.is_due());
    bench.give(3);
    assert!(bench.listening.load(Ordering::Acquire));
    assert_eq!(bench.got().unwrap(), b"ear");
    assert_eq!(bench.rig.interrupts(), 1);
    bench.give(100);
    assert_eq!(bench.got().unwrap(), b"ly");
    // A buffer that waits for input is not taken before there is some.
    bench.give(100);
    assert_eq!(bench.got(), None);
    bench.terminal.input(b"late");
    bench.rig.transport.offer();
    assert_eq!(bench.got().unwrap(), b"late");
    assert!(!bench.terminal.is_due());
}

#[test]
fn input_is_bounded_and_survives_a_reset() {
    let mut bench = Bench::new(0, None);
    assert_eq!(bench.terminal.room(), TYPED);
    bench.terminal.input(&vec![b'x'; 3 * TYPED]);
    assert_eq!(bench.terminal.room(), 0);
    bench.give(100);
    assert_eq!(bench.got().unwrap().len(), 100);
    bench.rig.set_up(0);
    bench.give(100);
    assert_eq!(bench.got().unwrap().len(), 100);
    assert_eq!(bench.terminal.take_unread().len(), TYPED - 200);
}

#[test]
fn whoever_must_not_wait_prints_nothing() {
    let mut bench = Bench::new(0, None);
    let memory = &bench.rig.memory;
    memory.write_slice(b"text", GuestAddress(BUFFERS)).unwrap();
    bench.rig.request(TRANSMIT, &[(BUFFERS, 4, false)]);
    bench.rig.transport.offer();
    assert_eq!(bench.printed(), b"");
    bench.rig.kick();
    assert_eq!(bench.printed(), b"text");
}

#[test]
fn the_window_is_in_the_configuration() {
    let mut bench = Bench::new(SIZE, Some(WINDOW));
    assert!(bench.terminal.is_untold());
    let size = |bench: &Bench| bench.rig.page.get(r::CONFIG);
    assert_eq!(size(&bench), 25 << 16 | 80);
    let larger = Size {
        columns: 132,
        rows: 43,
    };
    assert!(bench.terminal.resize(larger) && !bench.terminal.resize(larger));
    bench.rig.transport.changed();
    assert_eq!(size(&bench), 43 << 16 | 132);
    assert_eq!(bench.rig.page.get(r::CONFIG_GENERATION), 1);
    assert_eq!(bench.rig.page.get(r::INTERRUPT_STATUS), r::CONFIG_CHANGED);
    assert_eq!(bench.rig.interrupts(), 1);
    // The guest's opinion of it does not matter, of whatever width.
    for width in [1, 2, 4, 8] {
        for at in [0, 1, 3, 4, 8, 11, 12, 0xEFF] {
            bench
                .rig
                .transport
                .write(r::CONFIG + at, &[0xFF; 8][..width]);
        }
    }
    assert_eq!(size(&bench), 43 << 16 | 132);
    bench.rig.set_up(0);
    assert!(!bench.terminal.is_untold());
}

#[test]
fn without_a_window_there_is_no_size() {
    let mut bench = Bench::new(0, None);
    bench.rig.write(r::DEVICE_FEATURES_SEL, 0);
    assert_eq!(bench.rig.page.get(r::DEVICE_FEATURES) as u64 & SIZE, 0);
    assert!(!bench.terminal.has_window() && !bench.terminal.resize(WINDOW));
}

/// A driver that takes its buffers back says so where its available ring ends (virtio, 2.7.7.1).
#[test]
fn only_a_driver_that_waits_is_interrupted() {
    let mut bench = Bench::new(EVENT_IDX, None);
    let used_event = GuestAddress(rings(TRANSMIT)[1] + 4 + u64::from(SIZE_OF_QUEUE) * 2);
    for sent in 1..=40_u16 {
        bench.send(b"x");
        bench.rig.memory.write_obj(sent, used_event).unwrap();
    }
    assert!(bench.terminal.is_due());
    bench.rig.transport.offer();
    assert!(!bench.terminal.is_due());
    assert_eq!(bench.rig.interrupts(), 0);
    // Now it waits: until the next tick, or until it has sent more.
    bench.send(b"y");
    assert_eq!(bench.rig.interrupts(), 0);
    bench.rig.transport.offer();
    assert_eq!(bench.rig.interrupts(), 1);
    bench.rig.memory.write_obj(41_u16, used_event).unwrap();
    bench.send(b"z");
    bench.send(b"z");
    assert_eq!(bench.rig.interrupts(), 1);
    bench.rig.transport.offer();
    assert_eq!(bench.rig.interrupts(), 0);
}

/// 1,000 times 512 KiB by one kick: nobody has to wait for the end of it.
#[test]
fn a_run_that_is_over_does_not_wait_for_a_flood() {
    let mut bench = Bench::new(0, None);
    bench.control.finish(Cause::Timeout);
    let table = BUFFERS + (1 << 20);
    for i in 0..1000_u16 {
        bench.rig.describe_at(
            table + u64::from(i) * 16,
            Descriptor {
                address: 0,
                len: 512 << 10,
                flags: if i < 999 { NEXT } else { 0 },
                next: i + 1,
            },
        );
    }
    bench.rig.describe(
        TRANSMIT,
        0,
        Descriptor {
            address: table,
            len: 16_000,
            flags: INDIRECT,
            next: 0,
        },
    );
    bench.rig.offer(TRANSMIT, 0);
    bench.rig.kick();
    assert_eq!(bench.printed(), b"");
    assert!(bench.rig.used(TRANSMIT).is_empty());
}

#[test]
fn a_driver_that_never_waits_is_heard_by_turns() {
    let mut bench = Bench::new(EVENT_IDX, None);
    for _ in 0..10_000 {
        bench.send(b"0123456789abcde\n");
        assert_eq!(bench.rig.used(TRANSMIT).len(), 1);
    }
    assert_eq!(bench.printed().len(), 160_000);
    let figures = &bench.rig.figures;
    let figure = |figure: &std::sync::atomic::AtomicU64| figure.load(Ordering::Relaxed);
    assert_eq!(figure(&figures.requests), 10_000);
    assert_eq!(figure(&figures.from_guest), 160_000);
    // A kick with nothing behind it.
    for _ in 0..10_000 {
        bench.rig.kick();
    }
    assert!(!bench.rig.is_broken());
}

/// A descriptor of a guest that means no good, or has no idea.
fn descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![
        4 => BUFFERS..MEMORY,
        1 => 0..MEMORY,
        1 => Just(MEMORY - 1),
        1 => any::<u64>(),
    ];
    let len = prop_oneof![4 => 0..9000_u32, 1 => Just(0), 1 => any::<u32>()];
    let flags = prop_oneof![
        6 => Just(0), 6 => Just(WRITE), 4 => Just(NEXT), 2 => Just(NEXT | WRITE),
        1 => Just(INDIRECT), 1 => any::<u16>(),
    ];
    let next = prop_oneof![4 => 0..16_u16, 1 => any::<u16>()];
    (address, len, flags, next).prop_map(|(address, len, flags, next)| Descriptor {
        address,
        len,
        flags,
        next,
    })
}

/// What such a guest does.
#[derive(Clone, Debug)]
enum Step {
    Describe(usize, u16, Descriptor),
    Offer(usize, u16),
    Kick,
    Write(u64, Vec<u8>),
    Type(Vec<u8>),
    Resize(u16, u16),
    SetUp(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..2_usize, 0..16_u16, descriptor()).prop_map(|(q, i, d)| Step::Describe(q, i, d)),
        6 => (0..2_usize, prop_oneof![9 => 0..16_u16, 1 => any::<u16>()])
            .prop_map(|(q, head)| Step::Offer(q, head)),
        6 => Just(Step::Kick),
        2 => (0..0x200_u64, prop::collection::vec(any::<u8>(), 1..=8))
            .prop_map(|(at, data)| Step::Write(at, data)),
        3 => prop::collection::vec(any::<u8>(), 0..300).prop_map(Step::Type),
        1 => (any::<u16>(), any::<u16>()).prop_map(|(c, r)| Step::Resize(c, r)),
        1 => any::<bool>().prop_map(Step::SetUp),
    ]
}

/// A driver that has not registered its console yet would throw away what comes.
#[test]
fn what_is_typed_waits_until_the_guest_prints() {
    let mut bench = Bench::settling(0, None, Duration::from_secs(1000));
    bench.terminal.input(b"early");
    bench.give(16);
    bench.rig.kick();
    assert!(bench.rig.used(RECEIVE).is_empty());
    assert!(
        bench.listening.load(Ordering::Acquire),
        "it is to be asked for"
    );
    bench.send(b"# ");
    bench.rig.kick();
    assert_eq!(bench.rig.used(RECEIVE), [(0, 5)]);
    // A driver that starts anew is waited for anew.
    bench.rig.set_up(0);
    bench.terminal.input(b"again");
    bench.give(16);
    bench.rig.kick();
    assert!(bench.rig.used(RECEIVE).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest does, and a person types meanwhile: it comes to an end, and what was typed is where
    /// it may be.
    #[test]
    fn a_hostile_guest_hurts_nobody(steps in prop::collection::vec(step(), 1..60)) {
        let mut bench = Bench::new(EVENT_IDX, Some(WINDOW));
        for step in steps {
            match step {
                Step::Describe(queue, index, descriptor) => {
                    bench.rig.describe(queue, index, descriptor);
                }
                Step::Offer(queue, head) => bench.rig.offer(queue, head),
                Step::Kick => bench.rig.kick(),
                Step::Write(at, data) => {
                    bench.rig.transport.write(at, &data);
                }
                Step::Type(bytes) => {
                    bench.terminal.input(&bytes);
                    bench.rig.transport.offer();
                }
                Step::Resize(columns, rows) => {
                    bench.terminal.resize(Size { columns, rows });
                    bench.rig.transport.changed();
                }
                Step::SetUp(events) => {
                    bench.rig.set_up(if events { EVENT_IDX | SIZE } else { 0 });
                }
            }
            prop_assert!(bench.terminal.room() <= TYPED);
        }
        // It works again after a reset.
        let unread = bench.terminal.take_unread();
        prop_assert!(unread.len() <= TYPED);
        bench.rig.set_up(0);
        bench.printed();
        let before = bench.printed().len();
        bench.send(b"once more\n");
        prop_assert_eq!(&bench.printed()[before..], b"once more\n");
        bench.terminal.input(b"typed");
        bench.give(64);
        prop_assert_eq!(bench.got().unwrap(), b"typed");
    }
}
