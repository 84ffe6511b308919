//! A disk: a raw file, or a block device of the host's, opened and locked.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::super::chain::Piece;
use super::request::SECTOR;
use crate::memory::Memory;

/// Bytes of the text by which a guest knows a disk (virtio, 5.2.6, `VIRTIO_BLK_T_GET_ID`).
pub const SERIAL: usize = 20;
/// Most pieces that one system call takes (`UIO_MAXIOV`).
const PIECES: usize = 1024;
/// What is written at once where the host has no better way to zero.
const ZEROES: usize = 64 << 10;

/// preadv(2) or pwritev(2).
type Access = unsafe extern "C" fn(i32, *const libc::iovec, i32, libc::off_t) -> isize;

/// A disk that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The file.
    pub path: PathBuf,
    /// The guest may not write to it.
    pub read_only: bool,
    /// By what the guest knows it: at most 20 bytes of ASCII.
    pub serial: String,
}

/// Why a disk cannot be had.
#[derive(Debug, Error)]
pub enum DiskError {
    /// Not opened.
    #[error("cannot open disk {0}: {1}{advice}", advice = advice(.1))]
    Open(String, #[source] io::Error),
    /// Of no use.
    #[error("disk {0} is {1}, not a file nor a block device: give an image, raw")]
    Kind(String, &'static str),
    /// Not whole sectors.
    #[error(
        "disk {0} has {1} bytes, not a multiple of 512: `truncate -s %512 FILE` adds what is missing"
    )]
    Size(String, u64),
    /// Empty.
    #[error("disk {0} is empty: `truncate -s 1G FILE` makes it a disk of 1 GiB")]
    Empty(String),
    /// Somebody else's.
    #[error("disk {0} is in use by another VM: end that one, or give both `,ro`")]
    Locked(String),
}

fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT) => ": `truncate -s 1G FILE` makes an empty one",
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            ": give `,ro` behind it if reading is enough"
        }
        Some(libc::EBUSY) => ": it is mounted, or in use; unmount it first",
        _ => "",
    }
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
    id: [u8; SERIAL],
}

impl Disk {
    /// Opens a disk and locks it: against writers, and if it is to be written against readers too.
    pub fn open(wish: &Wish) -> Result<Self, DiskError> {
        let name = || wish.path.display().to_string();
        let open = |error| DiskError::Open(name(), error);
        // Somebody's pipe must not hold us up.
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(!wish.read_only)
            .custom_flags(libc::O_NONBLOCK);
        let kind = std::fs::metadata(&wish.path).map_err(open)?.file_type();
        if kind.is_dir() {
            return Err(DiskError::Kind(name(), "a directory"));
        } else if kind.is_block_device() && !wish.read_only {
            // One that is mounted would be torn to pieces.
            options.custom_flags(libc::O_NONBLOCK | libc::O_EXCL);
        } else if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind(name(), "a device or a pipe"));
        }
        let mut file = options.open(&wish.path).map_err(open)?;
        let locked = match wish.read_only {
            true => file.try_lock_shared(),
            false => file.try_lock(),
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskError::Locked(name())),
            Err(TryLockError::Error(error)) => return Err(open(error)),
        }
        let bytes = file.seek(SeekFrom::End(0)).map_err(open)?;
        if bytes == 0 {
            return Err(DiskError::Empty(name()));
        }
        if bytes % SECTOR != 0 {
            return Err(DiskError::Size(name(), bytes));
        }
        let mut id = [0; SERIAL];
        for (to, from) in id.iter_mut().zip(wish.serial.bytes()) {
            *to = from;
        }
        Ok(Self {
            file,
            sectors: bytes / SECTOR,
            read_only: wish.read_only,
            id,
        })
    }

    /// Its size.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether nobody may write to it.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// By what a guest knows it.
    pub fn id(&self) -> [u8; SERIAL] {
        self.id
    }

    /// Where whole sectors from this on begin, if they lie on the disk.
    pub(super) fn range(&self, sector: u64, len: u64) -> Option<u64> {
        let end = sector.checked_add(len.checked_div(SECTOR)?)?;
        (len.is_multiple_of(SECTOR) && end <= self.sectors).then_some(sector.checked_mul(SECTOR)?)
    }

    /// Reads into guest memory.
    pub(super) fn read(
        &self,
        memory: &Memory,
        pieces: impl Iterator<Item = Piece>,
        at: u64,
    ) -> io::Result<()> {
        self.each(libc::preadv, memory, pieces, at)
    }

    /// Writes from guest memory.
    pub(super) fn write(
        &self,
        memory: &Memory,
        pieces: impl Iterator<Item = Piece>,
        at: u64,
    ) -> io::Result<()> {
        self.each(libc::pwritev, memory, pieces, at)
    }

    /// Makes what has been written stay.
    pub(super) fn flush(&self) -> io::Result<()> {
        match self.read_only {
            true => Ok(()),
            false => self.file.sync_data(),
        }
    }

    fn allocate(&self, mode: i32, at: u64, len: u64) -> io::Result<()> {
        let (at, len) = (at as libc::off_t, len as libc::off_t);
        // SAFETY: no memory is involved.
        match unsafe { libc::fallocate(self.file.as_raw_fd(), mode, at, len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Gives up what is there.
    pub(super) fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        self.allocate(
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            at,
            len,
        )
    }

    /// Zeroes, and may give up what is there.
    pub(super) fn zero(&self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        let done = match unmap {
            true => self.discard(at, len),
            false => self.allocate(
                libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                at,
                len,
            ),
        };
        match done {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            done => return done,
        }
        let zeroes = vec![0; ZEROES];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(ZEROES as u64);
            self.file.write_all_at(&zeroes[..n as usize], at + done)?;
            done += n;
        }
        Ok(())
    }

    /// Does something with pieces of guest memory and the file from `at` on, until all of them are done. A
    /// file that ends before is an error.
    fn each(
        &self,
        access: Access,
        memory: &Memory,
        pieces: impl Iterator<Item = Piece>,
        mut at: u64,
    ) -> io::Result<()> {
        let mut slices: Vec<libc::iovec> = Vec::new();
        for piece in pieces {
            let slice = memory
                .get_slice(GuestAddress(piece.address), piece.len as usize)
                .map_err(io::Error::other)?;
            slices.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
        let mut first = 0;
        while first < slices.len() {
            let some = &slices[first..];
            let count = some.len().min(PIECES) as i32;
            // SAFETY: the descriptor is open, and each of these `count` slices is of guest memory, which is
            // mapped, writable, and only ever accessed as memory that may change meanwhile.
            let n = unsafe {
                access(
                    self.file.as_raw_fd(),
                    some.as_ptr(),
                    count,
                    at as libc::off_t,
                )
            };
            let Ok(mut n) = usize::try_from(n) else {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            };
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at += n as u64;
            while let Some(slice) = slices.get_mut(first).filter(|_| n > 0) {
                let step = n.min(slice.iov_len);
                n -= step;
                slice.iov_len -= step;
                // Inside the slice, or right behind it.
                slice.iov_base = slice.iov_base.wrapping_byte_add(step);
                if slice.iov_len == 0 {
                    first += 1;
                }
            }
        }
        Ok(())
    }
}
