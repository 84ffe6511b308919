//! The block device (virtio, 5.2): a file of the host's as a disk.

mod disk;
mod request;
#[cfg(test)]
mod tests;

pub use disk::{Disk, DiskError, SERIAL, Wish};

use std::sync::Arc;

use super::chain::{self, Chain};
use super::{Broken, Device, Kicked, Kind, Rings};
use request::{HEADER, Header, SECTOR, Status};

/// Entries of the queue.
const QUEUE: u16 = 256;
/// Most pieces of a request: what the queue has room for besides header and status.
const SEG_MAX: u32 = QUEUE as u32 - 2;
/// Most sectors of a segment to be discarded or zeroed: 32 MiB, so that no request takes long.
const RANGE_SECTORS: u32 = 1 << 16;
/// Most segments of such a request.
const RANGES: u32 = 16;
/// What the guest is told to be the best size of a request, in sectors: 512 KiB. Linux reads ahead twice
/// as much (`disk_update_readahead`), so that it reads a file by 1 MiB, at an eighth of the exits.
const OPTIMAL_SECTORS: u32 = 1 << 10;

/// Features (virtio, 5.2.3).
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// The device.
pub struct Block {
    disk: Arc<Disk>,
    chain: Chain,
    /// The driver knows no flush: what it has written must stay.
    writes_through: bool,
}

impl Block {
    /// A device with this disk.
    pub fn new(disk: Arc<Disk>) -> Self {
        Self {
            disk,
            chain: Chain::default(),
            writes_through: false,
        }
    }

    /// Does what a request asks for; its status, and how many bytes of data it has written.
    fn serve(&self, header: Header, rings: &Rings<'_>) -> (Status, u32) {
        let (memory, chain, disk) = (rings.memory(), &self.chain, &self.disk);
        let room = chain.writable_bytes() - 1;
        let sent = chain.readable_bytes() - HEADER;
        let done = |result: std::io::Result<()>| match result {
            Ok(()) => Status::Ok,
            Err(error) => {
                tracing::debug!(%error, ?header, "a request to a disk failed");
                Status::of(&error)
            }
        };
        match header.kind {
            request::IN => {
                let pieces = chain::part(&chain.writable, 0, room);
                let status = match disk.range(header.sector, room) {
                    Some(at) => done(disk.read(memory, pieces, at)),
                    None => Status::IoError,
                };
                let written = if status == Status::Ok { room } else { 0 };
                // A chain has less than 4 GiB.
                (status, written as u32)
            }
            request::OUT => {
                let pieces = chain::part(&chain.readable, HEADER, sent);
                let status = match disk.range(header.sector, sent) {
                    Some(at) if !disk.is_read_only() => done(disk.write(memory, pieces, at)),
                    _ => Status::IoError,
                };
                match status {
                    Status::Ok if self.writes_through => (done(disk.flush()), 0),
                    status => (status, 0),
                }
            }
            request::FLUSH => (done(disk.flush()), 0),
            request::GET_ID => {
                let id = disk.id();
                let n = chain::write(
                    memory,
                    &chain.writable,
                    0,
                    &id[..id.len().min(room as usize)],
                );
                (Status::Ok, n as u32)
            }
            request::DISCARD | request::WRITE_ZEROES => (self.ranges(header, rings, sent), 0),
            _ => (Status::Unsupported, 0),
        }
    }

    /// Discards or zeroes.
    fn ranges(&self, header: Header, rings: &Rings<'_>, sent: u64) -> Status {
        let zeroes = header.kind == request::WRITE_ZEROES;
        if self.disk.is_read_only() || sent == 0 || !sent.is_multiple_of(request::RANGE) {
            return Status::IoError;
        }
        if sent / request::RANGE > RANGES.into() {
            return Status::Unsupported;
        }
        for index in 0..sent / request::RANGE {
            let mut bytes = [0; request::RANGE as usize];
            let skip = HEADER + index * request::RANGE;
            chain::read(rings.memory(), &self.chain.readable, skip, &mut bytes);
            let range = request::Range::parse(bytes);
            let known = if zeroes { request::UNMAP } else { 0 };
            if range.flags & !known != 0 || range.sectors > RANGE_SECTORS {
                return Status::Unsupported;
            }
            let len = u64::from(range.sectors) * SECTOR;
            let Some(at) = self.disk.range(range.sector, len) else {
                return Status::IoError;
            };
            let unmap = !zeroes || range.flags & request::UNMAP != 0;
            let result = match (zeroes, unmap) {
                _ if len == 0 => Ok(()),
                (false, _) => self.disk.discard(at, len),
                (true, unmap) => self.disk.zero(at, len, unmap),
            };
            if let Err(error) = result {
                tracing::debug!(%error, "a disk could not discard or zero");
                return Status::of(&error);
            }
        }
        Status::Ok
    }
}

impl Device for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let all = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY;
        match self.disk.is_read_only() {
            true => all | F_RO,
            false => all | F_DISCARD | F_WRITE_ZEROES,
        }
    }

    fn queues(&self) -> &'static [u16] {
        &[QUEUE]
    }

    fn kicked(&self) -> Kicked {
        Kicked::Worker
    }

    /// `struct virtio_blk_config` (virtio, 5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.disk.sectors().to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        // Topology: a page of the host's is 2^3 sectors; none is out of step; no less than one at a time.
        put(24, &[3, 0]);
        put(26, &8_u16.to_le_bytes());
        put(28, &OPTIMAL_SECTORS.to_le_bytes());
        // One queue, which is not said but with VIRTIO_BLK_F_MQ.
        put(36, &RANGE_SECTORS.to_le_bytes());
        put(40, &RANGES.to_le_bytes());
        put(44, &8_u32.to_le_bytes());
        put(48, &RANGE_SECTORS.to_le_bytes());
        put(52, &RANGES.to_le_bytes());
        put(56, &[1]);
        config
    }

    fn start(&mut self, features: u64) {
        self.writes_through = features & F_FLUSH == 0;
    }

    fn process(&mut self, rings: &mut Rings<'_>) -> Result<(), Broken> {
        while rings.pop(0, &mut self.chain)? {
            // The last byte that the device may write is the status.
            let Some(answer) = self.chain.writable_bytes().checked_sub(1) else {
                return Err(Broken::NoAnswer);
            };
            let mut bytes = [0; HEADER as usize];
            let n = chain::read(rings.memory(), &self.chain.readable, 0, &mut bytes);
            let (status, written) = match n as u64 {
                HEADER => self.serve(Header::parse(bytes), rings),
                _ => (Status::IoError, 0),
            };
            chain::write(
                rings.memory(),
                &self.chain.writable,
                answer,
                &[status as u8],
            );
            // As many as are written without a gap (2.7.8.2): the status too, if there is none before it.
            let written = written + u32::from(answer == u64::from(written));
            rings.push(0, self.chain.head, written)?;
        }
        rings.signal(0)
    }
}
