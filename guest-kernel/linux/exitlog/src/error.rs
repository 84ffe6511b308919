//! What can go wrong, each as one line that says what to do.

use std::io;

use exit_abi::gate::Outcome;
use guest_kernel::exit_log::discovery::Absent;

use crate::page::NoPage;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Absent(Absent),
    #[error(
        "ports 0xe00 to 0xe2f are not to be had ({0}): run it as root, in a kernel that is not locked down"
    )]
    Ports(io::Error),
    #[error("cannot map the page of the gate at {at:#x}: {why}")]
    Site { at: u64, why: io::Error },
    #[error("another exitlog has been asking for {0} s: wait for it, or end it")]
    Busy(u64),
    #[error("cannot tell other exitlogs to wait: {0}")]
    Lock(io::Error),
    #[error("cannot stay on one CPU: {0}")]
    Pin(nix::Error),
    #[error(
        "no slot is left: Exitvisor has four gates for all of this machine, and they are taken (`exitlog ungate-kernel` and `rmmod exitlog` free some)"
    )]
    Full,
    #[error("Exitvisor does not take the gate at {at:#x}: {outcome:?}")]
    Gate { at: u64, outcome: Outcome },
    #[error("nothing serves the gate port, although Exitvisor is underneath")]
    NoPort,
    #[error("the gate at {0:#x} is registered, but nobody answers there")]
    Silent(u64),
    #[error("{0}; without it: --from leaves")]
    Page(NoPage),
    #[error("the leaves and the exit page contradict each other: {0}")]
    Contradiction(String),
    #[error("cannot print: {0}")]
    Print(io::Error),
    #[error("{0}")]
    Kernel(#[from] crate::kernel::Error),
}
