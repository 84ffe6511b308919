//! bpf(2), as far as the ledger needs it: maps, programs, and what they are attached to.
//!
//! Source: linux/include/uapi/linux/bpf.h, linux/include/uapi/linux/perf_event.h.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use super::asm::Insn;

/// bpf(2)'s commands (`enum bpf_cmd`).
mod command {
    pub(super) const MAP_CREATE: u32 = 0;
    pub(super) const MAP_UPDATE_ELEM: u32 = 2;
    pub(super) const PROG_LOAD: u32 = 5;
    pub(super) const PROG_TEST_RUN: u32 = 10;
    pub(super) const OBJ_GET_INFO_BY_FD: u32 = 15;
    pub(super) const RAW_TRACEPOINT_OPEN: u32 = 17;
    pub(super) const MAP_FREEZE: u32 = 22;
}

const MAP_TYPE_ARRAY: u32 = 2;
/// The map can be mapped into memory.
const F_MMAPABLE: u32 = 1 << 10;
/// ktime_get_ns is for programs under a licence compatible with the GPL.
const LICENSE: &CStr = c"Dual MIT/GPL";
/// Enough for the last words of a verifier that walks a few hundred instructions.
const LOG_SIZE: usize = 1 << 20;

/// How a program is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// On a tracepoint's record.
    Tracepoint = 5,
    /// On a tracepoint's arguments.
    RawTracepoint = 17,
}

/// Runs a command on its attributes.
///
/// # Safety
///
/// `A` is laid out as the command's part of `union bpf_attr`, without padding, and every address in
/// it is valid for what the command does with it.
unsafe fn bpf<A>(command: u32, attributes: &mut A) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes `size_of::<A>()` bytes at `attributes`, which is a live
    // exclusive reference; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<A>(),
        )
    };
    match i32::try_from(result) {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A new descriptor that bpf(2) returned.
fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The number of a descriptor as attributes have it.
fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// An array map with one entry.
#[derive(Debug)]
pub(super) struct ArrayMap {
    fd: OwnedFd,
    size: usize,
}

impl ArrayMap {
    /// Makes one; its entry has so many bytes, all zero.
    pub(super) fn create(size: usize) -> io::Result<Self> {
        #[repr(C)]
        struct Create {
            map_type: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
            map_flags: u32,
        }
        let too_large = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let mut create = Create {
            map_type: MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: u32::try_from(size).map_err(too_large)?,
            max_entries: 1,
            map_flags: F_MMAPABLE,
        };
        // SAFETY: the layout is BPF_MAP_CREATE's; there are no addresses in it.
        let fd = unsafe { bpf(command::MAP_CREATE, &mut create) }?;
        Ok(Self {
            fd: owned(fd),
            size,
        })
    }

    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Writes the entry, from the start; the rest becomes zero.
    pub(super) fn fill(&self, words: &[u64]) -> io::Result<()> {
        #[repr(C)]
        struct Update {
            map_fd: u32,
            _pad: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let key = 0_u32;
        let mut value = words.to_vec();
        value.resize(self.size.div_ceil(8), 0);
        let mut update = Update {
            map_fd: number(&self.fd),
            _pad: 0,
            key: std::ptr::from_ref(&key) as u64,
            value: value.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the layout is BPF_MAP_UPDATE_ELEM's; `key` has the key's four bytes and `value`
        // at least the value's, and both outlive the call, which only reads them.
        unsafe { bpf(command::MAP_UPDATE_ELEM, &mut update) }.map(drop)
    }

    /// Maps the entry into memory.
    pub(super) fn map(&self, writable: bool) -> io::Result<Mapping> {
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours;
        // the map is at least this long.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                self.size,
                protection,
                libc::MAP_SHARED,
                self.fd.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(address) {
            Some(base) if address != libc::MAP_FAILED => Ok(Mapping {
                base: base.cast(),
                words: self.size / 8,
                bytes: self.size,
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Makes it read-only for user space, for good; programs write on.
    pub(super) fn freeze(&self) -> io::Result<()> {
        #[repr(C)]
        struct Freeze {
            map_fd: u32,
        }
        let mut freeze = Freeze {
            map_fd: number(&self.fd),
        };
        // SAFETY: the layout is BPF_MAP_FREEZE's; there are no addresses in it.
        unsafe { bpf(command::MAP_FREEZE, &mut freeze) }.map(drop)
    }
}

/// A map's entry in memory. Programs write it while we read.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<AtomicU64>,
    words: usize,
    bytes: usize,
}

// SAFETY: the memory is reached as atomics only, through shared references; it stays mapped until
// the last of them, which borrow the mapping, is gone.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// All of it.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: `base` is page-aligned and mapped for `words` words as long as `self` lives.
        // The kernel's programs write the same memory, in whole words; so does nobody but through
        // atomics here. Relaxed and acquire loads of 64 bits are allowed on read-only memory.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this size, and `&mut self` shows that nothing refers to
        // it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// A loaded program.
#[derive(Debug)]
pub(super) struct Program {
    fd: OwnedFd,
}

impl Program {
    /// Loads a program.
    pub(super) fn load(kind: Kind, insns: &[Insn]) -> io::Result<Self> {
        Self::load_with(kind, insns, &mut [])
    }

    /// What the verifier says of a program that it refuses: its whole log.
    pub(super) fn complaint(kind: Kind, insns: &[Insn]) -> String {
        let mut log = vec![0; LOG_SIZE];
        let _ = Self::load_with(kind, insns, &mut log);
        let text = log.split(|&byte| byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    fn load_with(kind: Kind, insns: &[Insn], log: &mut [u8]) -> io::Result<Self> {
        #[repr(C)]
        struct Load {
            prog_type: u32,
            insn_cnt: u32,
            insns: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log_buf: u64,
            kern_version: u32,
            prog_flags: u32,
        }
        let has_log = !log.is_empty();
        let mut load = Load {
            prog_type: kind as u32,
            insn_cnt: insns.len() as u32,
            insns: insns.as_ptr() as u64,
            license: LICENSE.as_ptr() as u64,
            log_level: u32::from(has_log),
            log_size: log.len() as u32,
            log_buf: if has_log { log.as_mut_ptr() as u64 } else { 0 },
            kern_version: 0,
            prog_flags: 0,
        };
        // SAFETY: the layout is BPF_PROG_LOAD's; the kernel reads `insn_cnt` instructions and a C
        // string, and writes at most `log_size` bytes to `log`; all outlive the call.
        let fd = unsafe { bpf(command::PROG_LOAD, &mut load) }?;
        Ok(Self { fd: owned(fd) })
    }

    /// Runs a raw-tracepoint program once, here and now, by this thread, with these arguments.
    pub(super) fn run(&self, arguments: &[u64]) -> io::Result<u32> {
        #[repr(C)]
        struct TestRun {
            prog_fd: u32,
            retval: u32,
            data_size_in: u32,
            data_size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            ctx_size_in: u32,
            ctx_size_out: u32,
            ctx_in: u64,
            ctx_out: u64,
            flags: u32,
            cpu: u32,
        }
        let mut run = TestRun {
            prog_fd: number(&self.fd),
            retval: 0,
            data_size_in: 0,
            data_size_out: 0,
            data_in: 0,
            data_out: 0,
            repeat: 0,
            duration: 0,
            ctx_size_in: size_of_val(arguments) as u32,
            ctx_size_out: 0,
            ctx_in: if arguments.is_empty() {
                0
            } else {
                arguments.as_ptr() as u64
            },
            ctx_out: 0,
            flags: 0,
            cpu: 0,
        };
        // SAFETY: the layout is BPF_PROG_TEST_RUN's; the kernel reads `ctx_size_in` bytes of
        // `arguments`, which outlive the call, and writes nothing but the attributes.
        unsafe { bpf(command::PROG_TEST_RUN, &mut run) }?;
        Ok(run.retval)
    }

    /// Attaches it to a raw tracepoint, until what is returned is closed.
    pub(super) fn attach_raw(&self, name: &CStr) -> io::Result<OwnedFd> {
        #[repr(C)]
        struct RawTracepointOpen {
            name: u64,
            prog_fd: u32,
            _pad: u32,
        }
        let mut open = RawTracepointOpen {
            name: name.as_ptr() as u64,
            prog_fd: number(&self.fd),
            _pad: 0,
        };
        // SAFETY: the layout is BPF_RAW_TRACEPOINT_OPEN's; the name is a C string that outlives
        // the call.
        unsafe { bpf(command::RAW_TRACEPOINT_OPEN, &mut open) }.map(owned)
    }

    /// Attaches it to a tracepoint, on all CPUs, until the tracepoint is closed.
    pub(super) fn attach(&self, tracepoint: &OwnedFd) -> io::Result<()> {
        // SAFETY: the request takes a program's descriptor as its argument, and both are open.
        let result = unsafe {
            libc::ioctl(
                tracepoint.as_raw_fd(),
                PERF_EVENT_IOC_SET_BPF,
                self.fd.as_raw_fd(),
            )
        };
        match result {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// How often it was not run because the CPU was already in a program; `None` if the kernel
    /// does not say (before 5.12).
    pub(super) fn misses(&self) -> Option<u64> {
        /// `recursion_misses` in `struct bpf_prog_info`, in words.
        const MISSES: usize = 208 / 8;
        #[repr(C)]
        struct GetInfo {
            bpf_fd: u32,
            info_len: u32,
            info: u64,
        }
        let mut info = [0_u64; MISSES + 1];
        let mut get = GetInfo {
            bpf_fd: number(&self.fd),
            info_len: size_of_val(&info) as u32,
            info: info.as_mut_ptr() as u64,
        };
        // SAFETY: the layout is BPF_OBJ_GET_INFO_BY_FD's; the kernel reads and writes at most
        // `info_len` bytes of `info`, which outlives the call. Zeros in it ask for nothing else.
        unsafe { bpf(command::OBJ_GET_INFO_BY_FD, &mut get) }.ok()?;
        (get.info_len as usize >= size_of_val(&info)).then_some(info[MISSES])
    }
}

/// `_IOW('$', 8, __u32)`.
const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;

/// Opens a tracepoint, by its number, as a perf event. A program attached to it runs on every CPU, whichever the
/// event is of; the event itself stays off, and counts nothing.
pub(super) fn tracepoint(id: u64) -> io::Result<OwnedFd> {
    /// `struct perf_event_attr` of its first version (PERF_ATTR_SIZE_VER0).
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        kind: u32,
        size: u32,
        config: u64,
        sample_period: u64,
        sample_type: u64,
        read_format: u64,
        flags: u64,
        wakeup_events: u32,
        bp_type: u32,
        config1: u64,
    }
    const PERF_TYPE_TRACEPOINT: u32 = 2;
    const DISABLED: u64 = 1 << 0;
    const PERF_FLAG_FD_CLOEXEC: u64 = 1 << 3;
    let attributes = Attributes {
        kind: PERF_TYPE_TRACEPOINT,
        size: size_of::<Attributes>() as u32,
        config: id,
        flags: DISABLED,
        ..Attributes::default()
    };
    let (every_process, no_group) = (-1, -1);
    // SAFETY: the attributes say their own size, are only read, and outlive the call; the other
    // arguments are numbers.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            every_process,
            online_cpu(),
            no_group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    match i32::try_from(fd) {
        Ok(fd) if fd >= 0 => Ok(owned(fd)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The first CPU that is online: CPU 0 need not be.
fn online_cpu() -> i32 {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let first = list.split([',', '-', '\n']).next();
    first.and_then(|n| n.parse().ok()).unwrap_or(0)
}
