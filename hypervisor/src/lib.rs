//! Exitvisor: a tiny KVM hypervisor whose product is knowledge.

pub mod exits;
pub mod profile;
pub mod report;
pub mod status;
