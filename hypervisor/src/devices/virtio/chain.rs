//! A chain of descriptors: one request, as pieces of guest memory.

use vm_memory::{Address, GuestMemoryBackend};

use super::rings::Broken;
use crate::memory::Memory;

/// A piece of guest memory: wholly inside, and not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its first byte.
    pub address: u64,
    /// Its bytes.
    pub len: u32,
}

/// A request: what the device reads, then what it writes (virtio, 2.7.4.2).
///
/// The descriptors have been read once; the guest may change them, but not this.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// The descriptor at which it begins: what is given back.
    pub head: u16,
    /// What the device reads.
    pub readable: Vec<Piece>,
    /// What the device writes.
    pub writable: Vec<Piece>,
}

impl Chain {
    /// Fills it in from a chain of the guest's.
    pub(super) fn fill(
        &mut self,
        memory: &Memory,
        chain: virtio_queue::DescriptorChain<&Memory>,
    ) -> Result<(), Broken> {
        self.readable.clear();
        self.writable.clear();
        self.head = chain.head_index();
        let mut goes_on = true;
        for descriptor in chain {
            goes_on = descriptor.has_next();
            let piece = Piece {
                address: descriptor.addr().raw_value(),
                len: descriptor.len(),
            };
            if piece.len > 0 {
                memory
                    .get_slice(descriptor.addr(), piece.len as usize)
                    .map_err(|_| Broken::Outside(piece.address, piece.len))?;
            }
            match (descriptor.is_write_only(), self.writable.is_empty()) {
                _ if piece.len == 0 => {}
                (true, _) => self.writable.push(piece),
                (false, true) => self.readable.push(piece),
                (false, false) => return Err(Broken::Order),
            }
        }
        match goes_on {
            // It loops, leaves its table, or has no first descriptor.
            true => Err(Broken::Chain(self.head)),
            false => Ok(()),
        }
    }

    /// Bytes that the device may read.
    pub fn readable_bytes(&self) -> u64 {
        bytes(&self.readable)
    }

    /// Bytes that the device may write.
    pub fn writable_bytes(&self) -> u64 {
        bytes(&self.writable)
    }
}

/// Bytes of some pieces.
pub fn bytes(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.len)).sum()
}
