//! The exit page, mapped from `/dev/mem`: plain loads, at no exit but the first touch.
//!
//! Its address is INFO's. It is no RAM, so that STRICT_DEVMEM allows it, and no driver's, so that
//! IO_STRICT_DEVMEM does; a kernel that is locked down does not.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use exit_abi::page::{BadPage, HEAD_SIZE, Head, VCPUS_MAX};
use guest_kernel::exit_log::reading::{Numbers, Reading};

/// Room for a page of which only the address is known: records of 16 KiB for all vCPUs.
const SIZE_MAX: u64 = HEAD_SIZE + VCPUS_MAX * (16 << 10);
const DEVICE: &str = "/dev/mem";

/// Why there is no exit page to read.
#[derive(Debug)]
pub(crate) enum NoPage {
    /// This VM has none.
    None,
    /// It cannot be mapped.
    Map(io::Error),
    /// What is there cannot be read.
    Bad(BadPage),
}

impl fmt::Display for NoPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("this machine has no exit page"),
            Self::Map(why) => write!(f, "the exit page cannot be mapped from {DEVICE}: {why}"),
            Self::Bad(why) => write!(f, "{why}: not read"),
        }
    }
}

/// Physical memory, mapped read-only.
#[derive(Debug)]
struct Mapping {
    start: *const u64,
    size: usize,
}

impl Mapping {
    fn new(memory: &File, at: u64, size: u64) -> io::Result<Self> {
        let (Ok(offset), Ok(size)) = (libc::off_t::try_from(at), usize::try_from(size)) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        // SAFETY: the kernel chooses where; nothing that is mapped already changes.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ,
                libc::MAP_SHARED,
                memory.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start.cast_const().cast();
        Ok(Self { start, size })
    }
}

impl Numbers for Mapping {
    /// 0 beyond the mapping.
    fn load(&self, at: u64) -> u64 {
        if !at.is_multiple_of(8) || at >= self.size as u64 {
            return 0;
        }
        // SAFETY: the offset is aligned and lies within the mapping, whose size is a multiple of 8;
        // any bytes are a number. Nothing of Rust's is there: whoever writes it breaks no reference.
        unsafe { self.start.add(at as usize / 8).read_volatile() }
    }

    fn zeros(&self, at: u64, stride: u64, count: u64) -> u64 {
        let mut places = (0..count).map(|n| at.saturating_add(stride.saturating_mul(n)));
        let used = places.position(|at| self.load(at) != 0);
        used.map_or(count, |n| n as u64)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `new`, so large, and no reference into it is given out.
        unsafe { libc::munmap(self.start.cast_mut().cast(), self.size) };
    }
}

/// The page, mapped and checked.
#[derive(Debug)]
pub(crate) struct ExitPage {
    mapping: Mapping,
    head: Head,
}

impl ExitPage {
    /// Maps the page at a physical address and checks its head.
    pub(crate) fn open(at: Option<u64>) -> Result<Self, NoPage> {
        let at = at.ok_or(NoPage::None)?;
        let memory = File::open(DEVICE).map_err(NoPage::Map)?;
        let first = Mapping::new(&memory, at, HEAD_SIZE).map_err(NoPage::Map)?;
        let head = Head::read(SIZE_MAX, |at| first.load(at)).map_err(NoPage::Bad)?;
        let size = head.size().next_multiple_of(4096);
        let mapping = Mapping::new(&memory, at, size).map_err(NoPage::Map)?;
        Ok(Self { mapping, head })
    }

    /// Loads something of each of its pages of memory.
    pub(crate) fn touch(&self) {
        for at in (0..self.head.size()).step_by(4096) {
            self.mapping.load(at);
        }
    }

    /// Its head.
    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    /// Reads all of it.
    pub(crate) fn read(&self) -> Reading {
        let mut reading = Reading::new();
        reading.load(&self.head, &self.mapping);
        reading
    }
}
