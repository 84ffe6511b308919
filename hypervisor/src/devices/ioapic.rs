//! An IOAPIC with as many pins as the machine has devices (Intel 82093AA, 290566-001; version 0x11,
//! which has no EOI register).
//!
//! KVM's own has 24, and Linux reads and writes the entry of each pin, several times, at two exits an
//! access: pins that nothing is wired to cost some 240 exits a boot. This one is used where KVM's
//! is not asked for; the local APICs stay KVM's (KVM API, KVM_CAP_SPLIT_IRQCHIP).

/// Register offsets: select, and window.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// Registers behind the window.
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const FIRST_ENTRY: u8 = 0x10;
/// What the version register says besides the number of pins.
const VERSION_11: u32 = 0x11;
/// The identifier's bits.
const ID_BITS: u32 = 0xF << 24;
/// Bits of an entry (3.2.4): masked; those that are the guest's to write: all but delivery status and
/// remote IRR.
const MASKED: u64 = 1 << 16;
const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;

/// A message-signalled interrupt (SDM vol. 3A, 12.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Where to: destination and its mode.
    pub address: u32,
    /// What: vector and delivery mode.
    pub data: u32,
}

/// The IOAPIC.
#[derive(Debug)]
pub struct IoApic {
    id: u32,
    select: u8,
    entries: Vec<u64>,
}

impl IoApic {
    /// One with so many pins (at most 240), as it is after reset: every entry is masked.
    pub fn new(pins: usize) -> Self {
        Self {
            id: 0,
            select: 0,
            entries: vec![MASKED; pins.min(240)],
        }
    }

    /// What each pin sends, if it is not masked.
    pub fn routes(&self) -> Vec<Option<Msi>> {
        self.entries.iter().copied().map(route).collect()
    }

    /// A read of these many bytes at this offset of its page.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let value = match offset {
            SELECT => self.select.into(),
            WINDOW => self.register(),
            _ => return,
        };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    /// A write; whether it changes what [`Self::routes`] says.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        // Registers have 32 bits, and are to be accessed as such (3.0).
        let Ok(bytes) = data.try_into() else {
            return false;
        };
        let value = u32::from_le_bytes(bytes);
        match offset {
            SELECT => self.select = value as u8,
            WINDOW => return self.set_register(value),
            _ => {}
        }
        false
    }

    /// The entry that the selected register is a half of, and by how many bits it is shifted.
    fn entry(&self) -> Option<(usize, u32)> {
        let index = self.select.checked_sub(FIRST_ENTRY)?;
        let shift = u32::from(index & 1) * 32;
        let pin = usize::from(index / 2);
        (pin < self.entries.len()).then_some((pin, shift))
    }

    fn register(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => self.id,
            VERSION => VERSION_11 | (self.entries.len() as u32).saturating_sub(1) << 16,
            _ => match self.entry() {
                Some((pin, shift)) => (self.entries[pin] >> shift) as u32,
                None => 0,
            },
        }
    }

    /// Whether this changes what a pin sends.
    fn set_register(&mut self, value: u32) -> bool {
        if self.select == ID {
            self.id = value & ID_BITS;
            return false;
        }
        let Some((pin, shift)) = self.entry() else {
            return false;
        };
        let before = self.entries[pin];
        let half = u64::from(u32::MAX) << shift;
        self.entries[pin] = (before & !half | u64::from(value) << shift) & WRITABLE;
        route(self.entries[pin]) != route(before)
    }
}

/// What an entry sends, if it is not masked.
fn route(entry: u64) -> Option<Msi> {
    (entry & MASKED == 0).then(|| message(entry))
}

/// The message that an entry makes of an interrupt: the same fields at other places.
///
/// Always an edge: the devices of this machine pulse their lines, and what a guest that takes them for
/// levels loses is nothing, since no pulse is repeated.
fn message(entry: u64) -> Msi {
    let field = |from: u32, bits: u32| (entry >> from) as u32 & ((1 << bits) - 1);
    let (vector, delivery, logical) = (field(0, 8), field(8, 3), field(11, 1));
    let destination = field(56, 8);
    // Lowest priority is said in the address, too: redirection hint.
    let hint = u32::from(delivery == 1);
    Msi {
        address: 0xFEE0_0000 | destination << 12 | hint << 3 | logical << 2,
        data: delivery << 8 | vector,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(ioapic: &mut IoApic, register: u8) -> u32 {
        ioapic.write(SELECT, &u32::from(register).to_le_bytes());
        let mut data = [0; 4];
        ioapic.read(WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(ioapic: &mut IoApic, register: u8, value: u32) -> bool {
        ioapic.write(SELECT, &u32::from(register).to_le_bytes());
        ioapic.write(WINDOW, &value.to_le_bytes())
    }

    #[test]
    fn it_says_how_many_pins_it_has() {
        assert_eq!(get(&mut IoApic::new(1), VERSION), 0x11);
        assert_eq!(get(&mut IoApic::new(24), VERSION), 0x17_0011);
        let mut ioapic = IoApic::new(1);
        set(&mut ioapic, ID, 0xFFFF_FFFF);
        assert_eq!(get(&mut ioapic, ID), 0x0F00_0000);
        assert_eq!(get(&mut ioapic, 0x12), 0, "there is no second pin");
        assert!(!set(&mut ioapic, 0x12, 0));
    }

    #[test]
    fn an_entry_becomes_a_message() {
        let mut ioapic = IoApic::new(2);
        assert_eq!(get(&mut ioapic, 0x12), 1 << 16, "masked after reset");
        assert!(!set(&mut ioapic, 0x13, 0x0300_0000), "masked still");
        assert!(set(&mut ioapic, 0x12, 0x0000_0031));
        let route = Msi {
            address: 0xFEE0_3000,
            data: 0x31,
        };
        assert_eq!(ioapic.routes(), [None, Some(route)]);
        // Lowest priority, logical destination, level, both read-only bits.
        assert!(set(&mut ioapic, 0x12, 0x0000_D931));
        let route = Msi {
            address: 0xFEE0_300C,
            data: 0x131,
        };
        assert_eq!(ioapic.routes(), [None, Some(route)]);
        assert_eq!(get(&mut ioapic, 0x12), 0x8931);
        assert!(set(&mut ioapic, 0x12, 0x0001_0031));
        assert_eq!(ioapic.routes(), [None, None]);
    }

    proptest! {
        #[test]
        fn any_access_is_taken(accesses in prop::collection::vec(
            (any::<bool>(), 0_u64..0x1000, prop::collection::vec(any::<u8>(), 0..9)), 0..64,
        )) {
            let mut ioapic = IoApic::new(3);
            for (write, offset, mut data) in accesses {
                let offset = [SELECT, WINDOW, offset][data.len() % 3];
                if write {
                    ioapic.write(offset, &data);
                } else {
                    ioapic.read(offset, &mut data);
                }
            }
        }
    }
}
