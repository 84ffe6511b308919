//! The source *KVM stats*: KVM's binary statistics of a vCPU, which need no privileges
//! (KVM API, 4.133 KVM_GET_STATS_FD).
//!
//! `exits` is the total. Some counters are an exit reason's own, and KVM increments them where it
//! handles that exit: `halt_exits` (12), `irq_exits` (1), `io_exits` (30), `irq_window_exits` (7),
//! `nmi_window_exits` (8), `hypercalls` (18). `mmio_exits` counts what left for userspace only.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use exit_abi::reason::Reason;
use kvm_bindings::{kvm_stats_desc, kvm_stats_header};
use kvm_ioctls::VcpuFd;
use thiserror::Error;

use crate::exits::rate::Rate;

use super::{Sample, Source, SourceKind};

/// The one ioctl that kvm-ioctls lacks (KVM API, 4.133).
mod request {
    vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, kvm_bindings::KVMIO, 0xce);
}

/// Most of a statistics block that is read: today's are under 1 KiB.
const DATA_MAX: usize = 4096;
/// Most descriptors and longest name that are believed.
const DESC_MAX: u32 = 1024;
const NAME_MAX: u32 = 256;
/// The size of a descriptor without its name.
const DESC_SIZE: usize = size_of::<kvm_stats_desc>();
const HEADER_SIZE: usize = size_of::<kvm_stats_header>();

/// Why the statistics cannot serve.
#[derive(Debug, Error)]
pub enum StatsError {
    /// The ioctl failed: a kernel before 5.14.
    #[error("KVM_GET_STATS_FD: {0}")]
    Open(#[source] io::Error),
    /// Reading failed.
    #[error("cannot read KVM's statistics: {0}")]
    Read(#[source] io::Error),
    /// The block makes no sense.
    #[error("KVM's statistics have no usable `exits` counter")]
    Layout,
}

/// Counters that belong to one exit reason.
const PER_REASON: [(&str, Reason); 6] = [
    ("halt_exits", Reason::HLT),
    ("irq_exits", Reason::EXTERNAL_INTERRUPT),
    ("io_exits", Reason::IO),
    ("irq_window_exits", Reason::INTERRUPT_WINDOW),
    ("nmi_window_exits", Reason::NMI_WINDOW),
    ("hypercalls", Reason::VMCALL),
];

/// Nanoseconds in which KVM had the vCPU wait: polling, in vain or not, and asleep.
const BLOCKED: [&str; 3] = ["halt_poll_success_ns", "halt_poll_fail_ns", "halt_wait_ns"];

/// Where in the data block the counters lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Offsets {
    total: usize,
    per_reason: [Option<usize>; PER_REASON.len()],
    blocked: [Option<usize>; BLOCKED.len()],
    /// How much of the block must be read to see them all.
    len: usize,
}

impl Offsets {
    /// Finds the counters by name.
    fn parse(descriptors: &[u8], name_size: usize) -> Option<Self> {
        let mut found = Self::default();
        let mut total = None;
        for descriptor in descriptors.chunks_exact(DESC_SIZE + name_size) {
            let size = u16::from_ne_bytes([descriptor[6], descriptor[7]]);
            let offset: [u8; 4] = descriptor[8..12].try_into().ok()?;
            let offset = u32::from_ne_bytes(offset) as usize;
            let name = descriptor[DESC_SIZE..]
                .split(|&b| b == 0)
                .next()
                .unwrap_or_default();
            if size != 1 || offset.checked_add(8)? > DATA_MAX {
                continue;
            }
            if name == b"exits" {
                total = Some(offset);
            } else if let Some(i) = PER_REASON.iter().position(|(n, _)| n.as_bytes() == name) {
                found.per_reason[i] = Some(offset);
            } else if let Some(i) = BLOCKED.iter().position(|n| n.as_bytes() == name) {
                found.blocked[i] = Some(offset);
            } else {
                continue;
            }
            found.len = found.len.max(offset + 8);
        }
        found.total = total?;
        Some(found)
    }
}

/// KVM's statistics of one vCPU.
#[derive(Debug)]
pub struct StatsSource {
    file: File,
    data: u64,
    offsets: Offsets,
    /// Every counter counts. Software KVM leaves `io_exits` and others at zero: there only halts
    /// are exact (20 of 20, 60 of 60 in every run, Linux 6.18).
    all_count: bool,
    /// `hypercalls` counts: those that KVM answers itself, so none of those that it passes on.
    hypercalls_count: bool,
    rate: Rate,
}

impl StatsSource {
    /// Opens the statistics of a vCPU: whether all its counters count, and that of hypercalls.
    pub fn open(
        vcpu: &VcpuFd,
        all_count: bool,
        hypercalls_count: bool,
    ) -> Result<Self, StatsError> {
        // SAFETY: KVM_GET_STATS_FD takes no argument and touches no memory of ours; `vcpu` is a
        // live vCPU descriptor for the length of the call.
        let fd = unsafe { vmm_sys_util::ioctl::ioctl(vcpu, request::KVM_GET_STATS_FD()) };
        if fd < 0 {
            return Err(StatsError::Open(io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just made this descriptor for us and nobody else has it, so that
        // `File` is its only owner.
        let file = unsafe { File::from_raw_fd(fd) };
        Self::from_file(file, all_count, hypercalls_count)
    }

    fn from_file(file: File, all_count: bool, hypercalls_count: bool) -> Result<Self, StatsError> {
        let mut header = [0; HEADER_SIZE];
        file.read_exact_at(&mut header, 0)
            .map_err(StatsError::Read)?;
        let word = |i: usize| {
            u32::from_ne_bytes([
                header[i * 4],
                header[i * 4 + 1],
                header[i * 4 + 2],
                header[i * 4 + 3],
            ])
        };
        let (name_size, count, descriptors, data) = (word(1), word(2), word(4), word(5));
        if name_size > NAME_MAX || count > DESC_MAX {
            return Err(StatsError::Layout);
        }
        let mut block = vec![0; count as usize * (DESC_SIZE + name_size as usize)];
        file.read_exact_at(&mut block, descriptors.into())
            .map_err(StatsError::Read)?;
        let offsets = Offsets::parse(&block, name_size as usize).ok_or(StatsError::Layout)?;
        let source = Self {
            file,
            data: data.into(),
            offsets,
            all_count,
            hypercalls_count,
            rate: Rate::measured(),
        };
        let mut probe = Sample::default();
        source.read(&mut probe).map_err(StatsError::Read)?;
        Ok(source)
    }

    fn read(&self, into: &mut Sample) -> io::Result<()> {
        let mut data = [0; DATA_MAX];
        let data = &mut data[..self.offsets.len];
        self.file.read_exact_at(data, self.data)?;
        let at = |offset: usize| {
            data.get(offset..offset + 8)
                .and_then(|b| b.try_into().ok())
                .map_or(0, u64::from_ne_bytes)
        };
        into.total = Some(at(self.offsets.total));
        for ((_, reason), offset) in PER_REASON.iter().zip(self.offsets.per_reason) {
            into.rows[reason.index()].exits = offset.map_or(0, at);
        }
        let nanos = self
            .offsets
            .blocked
            .iter()
            .flatten()
            .map(|&offset| at(offset));
        into.blocked_cycles = self.rate.cycles(nanos.fold(0, u64::saturating_add));
        Ok(())
    }
}

impl Source for StatsSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Stats
    }

    fn is_exact(&self, reason: Reason) -> bool {
        (self.all_count || reason == Reason::HLT)
            && (self.hypercalls_count || reason != Reason::VMCALL)
            && PER_REASON
                .iter()
                .zip(self.offsets.per_reason)
                .any(|((_, r), offset)| *r == reason && offset.is_some())
    }

    fn sample(&self, into: &mut Sample) {
        into.clear();
        if self.read(into).is_err() {
            into.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const NAME_SIZE: usize = 48;

    fn descriptor(name: &str, size: u16, offset: u32) -> Vec<u8> {
        let mut d = vec![0; DESC_SIZE + NAME_SIZE];
        d[6..8].copy_from_slice(&size.to_ne_bytes());
        d[8..12].copy_from_slice(&offset.to_ne_bytes());
        d[DESC_SIZE..DESC_SIZE + name.len()].copy_from_slice(name.as_bytes());
        d
    }

    fn file(descriptors: &[Vec<u8>], data: &[u64]) -> File {
        let block = descriptors.concat();
        let words = [
            0,
            NAME_SIZE as u32,
            descriptors.len() as u32,
            0,
            HEADER_SIZE as u32,
            (HEADER_SIZE + block.len()) as u32,
        ];
        let mut file = tempfile::tempfile().unwrap();
        for w in words {
            file.write_all(&w.to_ne_bytes()).unwrap();
        }
        file.write_all(&block).unwrap();
        for d in data {
            file.write_all(&d.to_ne_bytes()).unwrap();
        }
        file
    }

    #[test]
    fn counters_are_found_by_name() {
        let descriptors = [
            descriptor("tlb_flush", 1, 0),
            descriptor("halt_exits", 1, 16),
            descriptor("exits", 1, 8),
        ];
        let source = StatsSource::from_file(file(&descriptors, &[7, 100, 20]), true, true).unwrap();
        let mut sample = Sample::default();
        source.sample(&mut sample);
        assert_eq!(sample.total, Some(100));
        assert_eq!(sample.row(Reason::HLT).exits, 20);
        assert_eq!(sample.row(Reason::IO).exits, 0);
        assert!(source.is_exact(Reason::HLT));
        assert!(!source.is_exact(Reason::IO));
    }

    #[test]
    fn hypercalls_are_known_exactly_while_kvm_answers_them() {
        let descriptors = [descriptor("exits", 1, 0), descriptor("hypercalls", 1, 8)];
        for counted in [true, false] {
            let file = file(&descriptors, &[9, 2]);
            let source = StatsSource::from_file(file, true, counted).unwrap();
            assert_eq!(source.is_exact(Reason::VMCALL), counted);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let none = [descriptor("halt_exits", 1, 0)];
        assert!(matches!(
            StatsSource::from_file(file(&none, &[1]), true, true),
            Err(StatsError::Layout)
        ));
        let far = [descriptor("exits", 1, u32::MAX - 3)];
        assert!(matches!(
            StatsSource::from_file(file(&far, &[1]), true, true),
            Err(StatsError::Layout)
        ));
        let short = [descriptor("exits", 1, 8)];
        assert!(matches!(
            StatsSource::from_file(file(&short, &[1]), true, true),
            Err(StatsError::Read(_))
        ));
    }
}
