//! The transport virtio-mmio (virtio, 4.2): what the driver writes into a device's registers, and the
//! life of a device between two resets. Version 2 only.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::registers::{self as r, Page};
use super::rings::{Broken, Figures, Interrupt, Rings, add};
use super::{Device, Kind};
use crate::memory::{Memory, Ram};

/// What the magic value reads as: "virt".
const MAGIC: u32 = 0x7472_6976;
/// `VendorID`: who made the machine, "EXVI".
const VENDOR: u32 = 0x4956_5845;

/// Bits of `Status` (virtio, 2.1).
const FAILED: u32 = 128;
const NEEDS_RESET: u32 = 64;
const FEATURES_OK: u32 = 8;
const DRIVER_OK: u32 = 4;
const DRIVER: u32 = 2;
const ACKNOWLEDGE: u32 = 1;

/// Features of the transport (virtio, 6): `VIRTIO_F_INDIRECT_DESC`, `VIRTIO_F_EVENT_IDX`,
/// `VIRTIO_F_VERSION_1`.
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

/// Where a driver says a queue is; not believed before it says that the queue is ready.
#[derive(Clone, Copy, Debug, Default)]
struct Wish {
    size: u32,
    descriptors: u64,
    driver: u64,
    device: u64,
}

/// A device and its registers.
pub struct Transport {
    device: Box<dyn Device>,
    page: Page,
    interrupt: Arc<Interrupt>,
    figures: Arc<Figures>,
    memory: Arc<Ram>,
    queues: Vec<Queue>,
    wishes: Vec<Wish>,
    /// Of the device's features, which 32 are shown.
    device_sel: u32,
    /// Of the driver's, which 32 are written.
    driver_sel: u32,
    accepted: u64,
    queue_sel: u32,
    generation: u32,
}

/// What an access asks for that is not the transport's to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// A kick.
    Kick,
}

impl Transport {
    /// A device that has been reset.
    pub fn new(
        device: Box<dyn Device>,
        page: Page,
        interrupt: Arc<Interrupt>,
        figures: Arc<Figures>,
        memory: Arc<Ram>,
    ) -> Result<Self, Broken> {
        let sizes = device.queues();
        let queues: Result<Vec<Queue>, _> = sizes.iter().map(|&size| Queue::new(size)).collect();
        page.set(r::MAGIC_VALUE, MAGIC);
        page.set(r::VERSION, 2);
        page.set(r::DEVICE_ID, device.kind().id());
        page.set(r::VENDOR_ID, VENDOR);
        r::SHM.iter().for_each(|&at| page.set(at, u32::MAX));
        let mut transport = Self {
            queues: queues?,
            wishes: vec![Wish::default(); sizes.len()],
            device,
            page,
            interrupt,
            figures,
            memory,
            device_sel: 0,
            driver_sel: 0,
            accepted: 0,
            queue_sel: 0,
            generation: 0,
        };
        transport.reset();
        Ok(transport)
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.device.kind()
    }

    /// The device.
    pub fn device(&mut self) -> &mut dyn Device {
        self.device.as_mut()
    }

    /// All features that are offered.
    fn offered(&self) -> u64 {
        self.device.features() | INDIRECT_DESC | EVENT_IDX | VERSION_1
    }

    fn status(&self) -> u32 {
        self.page.get(r::STATUS)
    }

    /// Whether the device is at work: the driver is ready and nothing is broken.
    pub fn is_running(&self) -> bool {
        self.status() & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK
    }

    /// As after power-on (virtio, 2.1.2; 4.2.2.1).
    fn reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(Queue::reset);
        self.wishes.fill(Wish::default());
        (self.device_sel, self.driver_sel, self.queue_sel) = (0, 0, 0);
        self.accepted = 0;
        self.page.set(r::STATUS, 0);
        self.page.set(r::INTERRUPT_STATUS, 0);
        self.page.set_config(&self.device.config());
        self.show_features();
        self.show_queue();
    }

    fn show_features(&self) {
        let features = match self.device_sel {
            0 => self.offered() as u32,
            1 => (self.offered() >> 32) as u32,
            _ => 0,
        };
        self.page.set(r::DEVICE_FEATURES, features);
    }

    fn show_queue(&self) {
        let queue = self.queues.get(self.queue_sel as usize);
        self.page.set(
            r::QUEUE_SIZE_MAX,
            queue.map_or(0, |queue| queue.max_size().into()),
        );
        self.page.set(
            r::QUEUE_READY,
            queue.is_some_and(|queue| queue.ready()).into(),
        );
    }

    /// The driver writes. Registers are 32 bits wide and written whole (virtio, 4.2.2.2): what is not, is
    /// not heard.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        if let Some(at) = offset.checked_sub(r::CONFIG) {
            if self.device.configure(at, data) {
                self.page.set_config(&self.device.config());
            }
            return Effect::None;
        }
        let Ok(bytes) = data.try_into() else {
            return Effect::None;
        };
        let value = u32::from_le_bytes(bytes);
        match offset {
            r::DEVICE_FEATURES_SEL => {
                self.device_sel = value;
                self.show_features();
            }
            r::DRIVER_FEATURES_SEL => self.driver_sel = value,
            r::DRIVER_FEATURES => self.accept(value),
            r::QUEUE_SEL => {
                self.queue_sel = value;
                self.show_queue();
            }
            r::QUEUE_SIZE => self.wish(|wish| wish.size = value),
            r::QUEUE_READY => self.set_ready(value),
            r::QUEUE_NOTIFY => return Effect::Kick,
            r::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            r::STATUS => self.set_status(value),
            _ => {
                let half = |address: &mut u64| {
                    let shift = offset % 8 / 4 * 32;
                    let mask = u64::from(u32::MAX) << shift;
                    *address = *address & !mask | u64::from(value) << shift;
                };
                match offset & !4 {
                    r::QUEUE_DESC => self.wish(|wish| half(&mut wish.descriptors)),
                    r::QUEUE_DRIVER => self.wish(|wish| half(&mut wish.driver)),
                    r::QUEUE_DEVICE => self.wish(|wish| half(&mut wish.device)),
                    _ => {}
                }
            }
        }
        Effect::None
    }

    /// The driver takes features; once it has said that these are all, no more (virtio, 3.1.1).
    fn accept(&mut self, value: u32) {
        if self.status() & FEATURES_OK != 0 {
            return;
        }
        let shift = match self.driver_sel {
            0 => 0,
            1 => 32,
            // There are none; a driver that takes one shall not get on.
            _ if value == 0 => return,
            _ => {
                self.accepted = u64::MAX;
                return;
            }
        };
        let mask = u64::from(u32::MAX) << shift;
        self.accepted = self.accepted & !mask | u64::from(value) << shift;
    }

    /// Changes where the chosen queue is to be: one that is ready stays where it is.
    fn wish(&mut self, change: impl FnOnce(&mut Wish)) {
        let at = self.queue_sel as usize;
        if let (Some(wish), Some(queue)) = (self.wishes.get_mut(at), self.queues.get(at))
            && !queue.ready()
        {
            change(wish);
        }
    }

    fn set_ready(&mut self, value: u32) {
        let at = self.queue_sel as usize;
        let can = self.status() & (FEATURES_OK | NEEDS_RESET) == FEATURES_OK;
        let (Some(wish), Some(queue)) = (self.wishes.get(at), self.queues.get_mut(at)) else {
            return;
        };
        if value == 0 {
            queue.set_ready(false);
        } else if can && !queue.ready() {
            let event_idx = self.accepted & EVENT_IDX != 0;
            if let Err(why) = place(queue, wish, event_idx, &self.memory) {
                queue.reset();
                self.broken(&why);
            }
        }
        self.show_queue();
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let before = self.status();
        // What has been said stays said, until the reset.
        let asked = value & (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED);
        let mut now = before | asked;
        let agreed = self.accepted & !self.offered() == 0 && self.accepted & VERSION_1 != 0;
        if before & FEATURES_OK == 0 && !agreed {
            now &= !FEATURES_OK;
        }
        if now & FEATURES_OK == 0 {
            now &= !DRIVER_OK;
        }
        self.page.set(r::STATUS, now);
        if !before & now & DRIVER_OK != 0 {
            self.device.start(self.accepted);
        }
    }

    /// What the driver has set up makes no sense.
    fn broken(&mut self, why: &Broken) {
        tracing::debug!(device = self.kind().name(), %why, "the guest has broken a device");
        add(&self.figures.broken, 1);
        self.page.or(r::STATUS, NEEDS_RESET);
        if self.status() & DRIVER_OK != 0 {
            self.interrupt.raise(r::CONFIG_CHANGED);
        }
    }

    /// Lets the device look at its queues; whether there may be more to do.
    pub fn process(&mut self) -> bool {
        self.look(|device, rings| device.process(rings))
    }

    /// Lets the device hand on what has come from outside.
    pub fn offer(&mut self) {
        self.look(|device, rings| device.offer(rings));
    }

    fn look(
        &mut self,
        with: impl FnOnce(&mut dyn Device, &mut Rings<'_>) -> Result<(), Broken>,
    ) -> bool {
        if !self.is_running() {
            return false;
        }
        let memory: &Memory = &self.memory;
        let mut rings = Rings::new(&mut self.queues, memory, &self.interrupt, &self.figures);
        let result = with(self.device.as_mut(), &mut rings);
        let more = rings.more;
        match result {
            Ok(()) => more,
            Err(why) => {
                self.broken(&why);
                false
            }
        }
    }

    /// The device's configuration has changed of itself.
    pub fn changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.page.set_config(&self.device.config());
        self.page.set(r::CONFIG_GENERATION, self.generation);
        if self.is_running() {
            add(&self.figures.interrupts, 1);
            self.interrupt.raise(r::CONFIG_CHANGED);
        }
    }
}

/// Puts a queue where the driver says it is, if it can be there.
fn place(queue: &mut Queue, wish: &Wish, event_idx: bool, memory: &Memory) -> Result<(), Broken> {
    let size = u16::try_from(wish.size).map_err(|_| virtio_queue::Error::InvalidSize)?;
    queue.try_set_size(size)?;
    queue.try_set_desc_table_address(GuestAddress(wish.descriptors))?;
    queue.try_set_avail_ring_address(GuestAddress(wish.driver))?;
    queue.try_set_used_ring_address(GuestAddress(wish.device))?;
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    // At 0 nobody has a ring: such a queue is taken for one that has none.
    let ends = [wish.descriptors, wish.driver, wish.device];
    match queue.is_valid(memory) && !ends.contains(&0) {
        true => Ok(()),
        false => Err(Broken::Queue("it is not in guest memory".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rig::{Rig, SIZE, rings};
    use super::super::rng::Entropy;
    use super::*;
    use proptest::prelude::*;

    fn rig() -> Rig {
        Rig::new(Box::new(Entropy::default()))
    }

    #[test]
    fn a_guest_finds_out_what_it_is() {
        let mut rig = rig();
        let page = rig.page.clone();
        assert_eq!(page.get(r::MAGIC_VALUE), u32::from_le_bytes(*b"virt"));
        assert_eq!([page.get(r::VERSION), page.get(r::DEVICE_ID)], [2, 4]);
        assert_eq!(page.get(r::DEVICE_FEATURES), 3 << 28);
        rig.write(r::DEVICE_FEATURES_SEL, 1);
        assert_eq!(page.get(r::DEVICE_FEATURES), 1);
        rig.write(r::DEVICE_FEATURES_SEL, 2);
        assert_eq!(page.get(r::DEVICE_FEATURES), 0);
        assert_eq!(page.get(r::QUEUE_SIZE_MAX), 64);
        rig.write(r::QUEUE_SEL, 1);
        assert_eq!(page.get(r::QUEUE_SIZE_MAX), 0, "there is no second queue");
        assert_eq!(page.get(r::SHM[0]), u32::MAX);
        // Registers are written whole, and those that say something cannot be written.
        rig.transport.write(r::QUEUE_SEL, &[0]);
        assert_eq!(page.get(r::QUEUE_SIZE_MAX), 0);
        rig.write(r::MAGIC_VALUE, 0);
        rig.write(r::DEVICE_ID, 1);
        assert_eq!(page.get(r::DEVICE_ID), 4);
    }

    #[test]
    fn features_that_were_not_offered_are_refused() {
        for (select, features) in [(0, 1), (0, 1 << 27), (1, 2), (1, 1 << 31), (2, 1)] {
            let mut rig = rig();
            rig.write(r::STATUS, 3);
            rig.write(r::DRIVER_FEATURES_SEL, 1);
            rig.write(r::DRIVER_FEATURES, 1);
            rig.write(r::DRIVER_FEATURES_SEL, select);
            rig.write(r::DRIVER_FEATURES, features | u32::from(select == 1));
            rig.write(r::STATUS, 11);
            assert_eq!(rig.page.get(r::STATUS), 3, "{select} {features:#x}");
            rig.write(r::STATUS, 15);
            assert!(!rig.transport.is_running());
        }
        // Nor does a driver get on that does not know version 1.
        let mut rig = rig();
        rig.write(r::STATUS, 11);
        assert_eq!(rig.page.get(r::STATUS), 3);
    }

    #[test]
    fn a_queue_that_cannot_be_there_breaks_the_device() {
        let [table, available, used] = rings(0);
        let size = u32::from(SIZE);
        for (size, table, available, used) in [
            (0, table, available, used),
            (3, table, available, used),
            (128, table, available, used),
            (65_536 + 16, table, available, used),
            (size, table + 8, available, used),
            (size, table, available + 1, used),
            (size, table, available, used + 2),
            (size, 0, available, used),
            (size, table, available, crate::layout::EXIT_PAGE),
            (size, crate::layout::VIRTIO, available, used),
            (size, table, u64::MAX - 1, used),
            (size, super::super::rig::MEMORY - 16, available, used),
        ] {
            let mut rig = Rig::running(Box::new(Entropy::default()), 0);
            rig.write(r::STATUS, 0);
            rig.write(r::DRIVER_FEATURES_SEL, 1);
            rig.write(r::DRIVER_FEATURES, 1);
            rig.write(r::STATUS, 11);
            rig.write(r::QUEUE_SIZE, size);
            for (register, address) in [
                (r::QUEUE_DESC, table),
                (r::QUEUE_DRIVER, available),
                (r::QUEUE_DEVICE, used),
            ] {
                rig.write(register, address as u32);
                rig.write(register + 4, (address >> 32) as u32);
            }
            rig.write(r::QUEUE_READY, 1);
            assert!(
                rig.is_broken(),
                "{size} {table:#x} {available:#x} {used:#x}"
            );
            assert_eq!(rig.page.get(r::QUEUE_READY), 0);
            rig.write(r::STATUS, 15);
            assert!(!rig.transport.is_running());
            rig.set_up(0);
        }
    }

    #[test]
    fn a_reset_in_the_middle_forgets_all() {
        let mut rig = Rig::running(Box::new(Entropy::default()), 0);
        rig.request(0, &[(super::super::rig::BUFFERS, 8, true)]);
        rig.write(r::STATUS, 0);
        assert_eq!(rig.page.get(r::STATUS), 0);
        assert_eq!(rig.page.get(r::QUEUE_READY), 0);
        rig.kick();
        assert!(rig.used(0).is_empty());
        rig.set_up(0);
        rig.request(0, &[(super::super::rig::BUFFERS, 8, true)]);
        rig.kick();
        assert_eq!(rig.used(0), [(0, 8)]);
        let requests = rig
            .figures
            .requests
            .load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(requests, 1);
    }

    #[test]
    fn a_driver_that_wants_no_interrupt_gets_none() {
        use vm_memory::Bytes;
        let mut rig = Rig::running(Box::new(Entropy::default()), 0);
        let flags = GuestAddress(rings(0)[1]);
        for (flag, interrupts) in [(1_u16, 0), (0, 1)] {
            rig.memory.write_obj(flag, flags).unwrap();
            rig.request(0, &[(super::super::rig::BUFFERS, 8, true)]);
            rig.kick();
            assert_eq!((rig.used(0).len(), rig.interrupts()), (1, interrupts));
        }
        assert_eq!(rig.page.get(r::INTERRUPT_STATUS), r::USED_BUFFER);
        rig.write(r::INTERRUPT_ACK, r::USED_BUFFER);
        assert_eq!(rig.page.get(r::INTERRUPT_STATUS), 0);
        // By event index: not before the one that is named.
        let mut rig = Rig::running(Box::new(Entropy::default()), EVENT_IDX);
        let event = GuestAddress(rings(0)[1] + 4 + 2 * u64::from(SIZE));
        rig.memory.write_obj(1_u16, event).unwrap();
        for interrupts in [0, 1] {
            rig.request(0, &[(super::super::rig::BUFFERS, 8, true)]);
            rig.kick();
            assert_eq!((rig.used(0).len(), rig.interrupts()), (1, interrupts));
        }
    }

    proptest! {
        #[test]
        fn any_access_is_taken(accesses in prop::collection::vec(
            (0_u64..0x140, prop::collection::vec(any::<u8>(), 0..9), any::<bool>()), 0..80,
        )) {
            let mut rig = Rig::running(Box::new(Entropy::default()), EVENT_IDX);
            for (offset, mut data, whole) in accesses {
                if whole {
                    data.resize(4, 0);
                }
                let offset = if whole { offset & !3 } else { offset };
                if rig.transport.write(offset, &data) == Effect::Kick {
                    rig.kick();
                }
                rig.page.read(offset, &mut [0; 8]);
            }
            rig.set_up(EVENT_IDX);
            rig.request(0, &[(super::super::rig::BUFFERS, 8, true)]);
            rig.kick();
            prop_assert_eq!(rig.used(0), [(0, 8)]);
        }
    }
}
