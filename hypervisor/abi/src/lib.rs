//! What Exitvisor and its guests agree on: CPUID leaves, the hypercall, ports, ELF notes and
//! milestone numbers. `no_std`, without dependencies, so that any guest can use it.
//!
//! The prose of this contract, with examples, is `docs/guest-interface.md`.
#![no_std]

pub mod devicetree;
pub mod gate;
pub mod hypercall;
pub mod leaf;
pub mod milestone;
pub mod note;
pub mod page;
pub mod port;
pub mod reason;
pub mod status;
pub mod svm;
pub mod vmx;

/// Version of this interface, answered in EAX by [`leaf::INFO`].
pub const VERSION: u32 = 1;

/// Guest-physical address of a page that no device will ever have: reads as zeros, writes vanish,
/// each access exits. For workloads that want MMIO exits.
pub const SCRATCH_PAGE: u64 = 0xD000_0000;
