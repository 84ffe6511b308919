//! An empty PCI bus: the address register of configuration mechanism 1, and no device behind it (PCI Local
//! Bus Specification 3.0, 3.2.2.3.2).
//!
//! There is no PCI. But a Linux that is told so (`pci=off`) complains even when it is to be quiet, a line
//! of 68 bytes at two exits a byte; one that is told of this mechanism looks for its register alone.

use std::sync::atomic::{AtomicU32, Ordering};

/// CONFIG_ADDRESS.
const ADDRESS: u16 = 0xCF8;

/// The register. It is one of 32 bits, and takes no others; the data port behind it floats.
#[derive(Debug, Default)]
pub struct EmptyBus(AtomicU32);

impl EmptyBus {
    /// A write to a port.
    pub fn write(&self, port: u16, data: &[u8]) {
        if let (ADDRESS, &[a, b, c, d]) = (port, data) {
            self.0
                .store(u32::from_le_bytes([a, b, c, d]), Ordering::Relaxed);
        }
    }

    /// A read from a port, if that is the register.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        if port == ADDRESS && data.len() == 4 {
            data.copy_from_slice(&self.0.load(Ordering::Relaxed).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_register_is_there() {
        let bus = EmptyBus::default();
        let read = |port, length| {
            let mut data = [0xFF; 4];
            bus.read(port, &mut data[..length]);
            u32::from_le_bytes(data)
        };
        bus.write(0xCF8, &[0, 0, 0, 0x80]);
        // As Linux probes.
        bus.write(0xCFB, &[1]);
        assert_eq!(read(0xCF8, 4), 0x8000_0000);
        for (port, length) in [(0xCFC, 4), (0xCF8, 1), (0xCF8, 2), (0xCFA, 1)] {
            assert_eq!(read(port, length), u32::MAX);
        }
        bus.write(0xCF8, &[0; 8]);
        assert_eq!(read(0xCF8, 4), 0x8000_0000);
    }
}
