//! The machine as the guest sees it described.

pub mod cpuid;
