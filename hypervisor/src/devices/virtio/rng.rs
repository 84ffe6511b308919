//! The entropy device (virtio, 5.4): the guest gives buffers, the host's kernel fills them in.

use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::chain::Chain;
use super::{Broken, Device, Kicked, Kind, Rings};
use crate::memory::Memory;

/// The most that one request gets: more is a guest's mistake, or its malice.
const MOST: usize = 64 << 10;

/// The device.
#[derive(Debug, Default)]
pub struct Entropy {
    chain: Chain,
}

/// Fills in a piece of guest memory; how many bytes.
fn fill(memory: &Memory, address: u64, len: usize) -> io::Result<usize> {
    let slice = memory
        .get_slice(GuestAddress(address), len)
        .map_err(io::Error::other)?;
    let guard = slice.ptr_guard_mut();
    // SAFETY: the guard is of `len` bytes of guest memory, which is mapped, and which only ever is
    // accessed as memory that the guest may change.
    let n = unsafe { libc::getrandom(guard.as_ptr().cast(), len, 0) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

impl Device for Entropy {
    fn kind(&self) -> Kind {
        Kind::Entropy
    }

    fn queues(&self) -> &'static [u16] {
        &[64]
    }

    fn kicked(&self) -> Kicked {
        Kicked::Here
    }

    fn process(&mut self, rings: &mut Rings<'_>) -> Result<(), Broken> {
        while rings.pop(0, &mut self.chain)? {
            let mut written = 0;
            for piece in &self.chain.writable {
                let len = (piece.len as usize).min(MOST - written);
                // What the host will not give, the guest does without.
                let n = fill(rings.memory(), piece.address, len).unwrap_or(0);
                written += n;
                if n < piece.len as usize {
                    break;
                }
            }
            rings.push(0, self.chain.head, written as u32)?;
        }
        rings.signal(0)
    }
}
