//! A chain of descriptors: one request, as pieces of guest memory.

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

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

/// The `len` bytes of some pieces after the first `skip`, or as many as there are.
pub fn part(pieces: &[Piece], skip: u64, len: u64) -> impl Iterator<Item = Piece> + Clone {
    let mut at = 0_u64;
    let end = skip.saturating_add(len);
    pieces.iter().filter_map(move |piece| {
        let start = at;
        at += u64::from(piece.len);
        let (from, to) = (start.max(skip), at.min(end));
        (from < to).then(|| Piece {
            address: piece.address + (from - start),
            len: (to - from) as u32,
        })
    })
}

/// Reads what stands after the first `skip` bytes of some pieces; how many bytes there were.
pub fn read(memory: &Memory, pieces: &[Piece], skip: u64, data: &mut [u8]) -> usize {
    let mut done = 0;
    for piece in part(pieces, skip, data.len() as u64) {
        let to = &mut data[done..done + piece.len as usize];
        // A piece is in guest memory, which stays where it is.
        if memory.read_slice(to, GuestAddress(piece.address)).is_err() {
            break;
        }
        done += piece.len as usize;
    }
    done
}

/// Writes after the first `skip` bytes of some pieces; for how many bytes there was room.
pub fn write(memory: &Memory, pieces: &[Piece], skip: u64, data: &[u8]) -> usize {
    let mut done = 0;
    for piece in part(pieces, skip, data.len() as u64) {
        let from = &data[done..done + piece.len as usize];
        // As in `read`.
        if memory
            .write_slice(from, GuestAddress(piece.address))
            .is_err()
        {
            break;
        }
        done += piece.len as usize;
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_are_the_bytes_in_between(
            lens in prop::collection::vec(1_u32..9, 0..6), skip in 0_u64..40, len in 0_u64..40,
        ) {
            let pieces: Vec<Piece> = (0..)
                .zip(&lens)
                .map(|(i, &len)| Piece { address: i * 100, len })
                .collect();
            let addresses = |pieces: &[Piece]| -> Vec<u64> {
                let each = pieces.iter();
                each.flat_map(|p| p.address..p.address + u64::from(p.len)).collect()
            };
            let all = addresses(&pieces);
            let some: Vec<Piece> = part(&pieces, skip, len).collect();
            prop_assert!(some.iter().all(|p| p.len > 0));
            let expected: Vec<u64> =
                all.into_iter().skip(skip as usize).take(len as usize).collect();
            prop_assert_eq!(addresses(&some), expected);
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let pieces = [(0x10, 3), (0x20, 1), (0x30, 4)].map(|(address, len)| Piece { address, len });
        assert_eq!(write(&memory, &pieces, 2, b"abcdefgh"), 6);
        let mut data = [0; 9];
        assert_eq!(read(&memory, &pieces, 0, &mut data), 8);
        assert_eq!(&data, b"\0\0abcdef\0");
    }
}
