//! Virtio devices (Virtual I/O Device (VIRTIO) Version 1.3; "virtio" below): what one is here, and the
//! set that a machine has.
//!
//! A [`Device`] knows its queues, its features and its configuration, and what a request means. It knows
//! neither registers nor interrupts: those are the transport's ([`mmio`]), whose registers the guest
//! reads as memory, without an exit ([`registers`]). What the guest writes into them comes as an exit; a
//! kick need not, where a device has a thread of its own ([`worker`]).

pub mod block;
pub mod build;
pub mod chain;
pub mod console;
pub mod mmio;
pub mod registers;
#[cfg(test)]
pub(crate) mod rig;
pub mod rings;
pub mod rng;
pub mod slot;
pub mod worker;

use std::os::fd::RawFd;

pub use rings::{Broken, Rings};

/// What a device is (virtio, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// 5.1.
    Net,
    /// 5.2.
    Block,
    /// 5.3.
    Console,
    /// 5.4.
    Entropy,
}

impl Kind {
    /// The Virtio Device ID.
    pub const fn id(self) -> u32 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Console => 3,
            Self::Entropy => 4,
        }
    }

    /// What a device of this kind is called, before its number.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Block => "blk",
            Self::Console => "console",
            Self::Entropy => "rng",
        }
    }
}

/// Who looks at the queues when the guest kicks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kicked {
    /// The vCPU that kicks: the kick is an exit to userspace, and when the guest goes on its request is
    /// done. For what never waits, and what the guest waits for.
    Here,
    /// A thread of the device's own: KVM takes the kick (an ioeventfd) and the vCPU goes on at once. For
    /// what may take long.
    Worker,
}

/// A device behind a transport.
///
/// Everything that a guest sends is hostile: a request that makes no sense is answered as the standard
/// has it, and a queue that makes none is [`Broken`], whereupon the device stands still until the guest
/// resets it.
pub trait Device: Send {
    /// What it is.
    fn kind(&self) -> Kind;

    /// The features that it offers besides the transport's (virtio, 5.x.3).
    fn features(&self) -> u64 {
        0
    }

    /// The most entries of each of its queues: powers of two.
    fn queues(&self) -> &'static [u16];

    /// Who looks at the queues.
    fn kicked(&self) -> Kicked;

    /// Its configuration, as the guest reads it (virtio, 5.x.4).
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// The guest writes into its configuration. Whether this changed what is read there.
    fn configure(&mut self, _offset: u64, _data: &[u8]) -> bool {
        false
    }

    /// The driver is ready, with these features of those that were offered.
    fn start(&mut self, _features: u64) {}

    /// The driver starts anew. What was under way is over.
    fn reset(&mut self) {}

    /// A queue may have buffers, or [`Device::source`] may have something.
    fn process(&mut self, rings: &mut Rings<'_>) -> Result<(), Broken>;

    /// Something has come from outside: as [`Device::process`], for a thread that must not wait. Does only
    /// what takes no time.
    fn offer(&mut self, _rings: &mut Rings<'_>) -> Result<(), Broken> {
        Ok(())
    }

    /// A descriptor of the host's that brings something for the guest.
    fn source(&self) -> Option<RawFd> {
        None
    }

    /// Whether it is worth waiting for [`Device::source`]: there are buffers for what it brings.
    fn wants_source(&self) -> bool {
        false
    }
}
