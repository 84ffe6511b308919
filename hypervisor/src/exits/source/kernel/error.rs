//! Why there is no kernel ledger: each a line that says what is missing and how to get it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why the kernel ledger cannot be opened. The run can go on without it.
#[derive(Debug, Error)]
pub enum KernelLedgerError {
    /// No tracefs anywhere.
    #[error(
        "no tracefs is mounted: `mount -t tracefs tracefs /sys/kernel/tracing` as root, or run as \
         root"
    )]
    NoTracefs,
    /// tracefs is there, and empty.
    #[error(
        "{root} has no events: the kernel keeps tracing to itself (booted with \
         lockdown=confidentiality?)",
        root = .root.display()
    )]
    NoEvents {
        /// The tracefs.
        root: PathBuf,
    },
    /// The folder given is no tracefs.
    #[error("{root} is no tracefs: {source}", root = .root.display())]
    NotTracefs {
        /// The folder.
        root: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// tracefs is there but may not be read.
    #[error(
        "cannot read {path}: {source}: run as root or with CAP_DAC_READ_SEARCH, or give tracefs \
         to a group (`mount -o remount,gid=GROUP,mode=0750 {root}`)",
        path = .path.display(), root = .root.display()
    )]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// The tracefs it is in.
        root: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel has no such tracepoint.
    #[error(
        "the kernel has no tracepoint kvm:{event} in {root}: is KVM loaded?",
        root = .root.display()
    )]
    NoTracepoint {
        /// Its name.
        event: &'static str,
        /// The tracefs.
        root: PathBuf,
    },
    /// A `format` file that we cannot use.
    #[error("{path} {what}: the kernel ledger does not know this kernel", path = .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A KVM whose exit codes are unknown.
    #[error(
        "none of kvm_intel, kvm_amd and kvm_pvm is loaded: whose exit codes to expect is unknown"
    )]
    UnknownKvm,
    /// bpf() is not allowed.
    #[error("the kernel refuses bpf(): run as root, or with CAP_BPF and CAP_PERFMON")]
    BpfDenied,
    /// bpf() failed otherwise.
    #[error("the kernel cannot {operation}: {source}")]
    Bpf {
        /// What.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The verifier refused a program.
    #[error("the kernel's verifier refuses the program for kvm:{program}: {line}")]
    Verifier {
        /// Which.
        program: &'static str,
        /// The log's last line that says something.
        line: String,
    },
    /// perf_event_open failed.
    #[error("cannot open tracepoint kvm:{event}: {source}{hint}")]
    Open {
        /// Which.
        event: &'static str,
        /// Why.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The tracepoint does not take the program.
    #[error(
        "tracepoint kvm:{event} does not take the program: {source}: is its format file another \
         kernel's?"
    )]
    Attach {
        /// Which.
        event: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The maps cannot be frozen.
    #[error("the kernel cannot freeze the ledger: {0}")]
    Freeze(#[source] io::Error),
    /// A program that we assembled is none: our fault.
    #[error("the program for kvm:{program} cannot be assembled: {what}")]
    Assembler {
        /// Which.
        program: &'static str,
        /// Why.
        what: String,
    },
}

/// Why a vCPU's thread is not known to the kernel ledger.
#[derive(Debug, Error)]
pub enum EnlistError {
    /// The ledger was opened for fewer.
    #[error("the kernel ledger has no vCPU {0}")]
    NoSuchVcpu(u32),
    /// Another vCPU's thread has the same place in the table: start the thread again, for another
    /// thread id.
    #[error("two vCPUs' thread ids share a place in the kernel ledger's table")]
    Collision,
    /// The kernel refused.
    #[error(
        "the kernel does not let a vCPU's thread enlist: {0}: before Linux 5.19 this takes CAP_BPF \
         unless kernel.unprivileged_bpf_disabled is 0"
    )]
    Refused(#[source] io::Error),
}
