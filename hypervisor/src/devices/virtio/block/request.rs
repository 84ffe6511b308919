//! Requests to a block device (virtio, 5.2.6).

use std::io;

/// Bytes of a sector, whatever the disk's own may have.
pub(super) const SECTOR: u64 = 512;
/// Bytes of a header.
pub(super) const HEADER: u64 = 16;
/// Bytes of a range to be discarded or zeroed.
pub(super) const RANGE: u64 = 16;

/// Kinds: `VIRTIO_BLK_T_…`.
pub(super) const IN: u32 = 0;
pub(super) const OUT: u32 = 1;
pub(super) const FLUSH: u32 = 4;
pub(super) const GET_ID: u32 = 8;
pub(super) const DISCARD: u32 = 11;
pub(super) const WRITE_ZEROES: u32 = 13;

/// Flag of a range: what is zeroed may be given up.
pub(super) const UNMAP: u32 = 1;

/// What is asked for, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: u32,
    pub(super) sector: u64,
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl Header {
    pub(super) fn parse(bytes: [u8; HEADER as usize]) -> Self {
        Self {
            kind: u32_at(&bytes, 0),
            sector: u64_at(&bytes, 8),
        }
    }
}

/// A range to be discarded or zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) sector: u64,
    pub(super) sectors: u32,
    pub(super) flags: u32,
}

impl Range {
    pub(super) fn parse(bytes: [u8; RANGE as usize]) -> Self {
        Self {
            sector: u64_at(&bytes, 0),
            sectors: u32_at(&bytes, 8),
            flags: u32_at(&bytes, 12),
        }
    }
}

/// How a request ended: `VIRTIO_BLK_S_…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

impl Status {
    /// What the guest is told of an error of the host's.
    pub(super) fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Self::Unsupported,
            _ => Self::IoError,
        }
    }
}
