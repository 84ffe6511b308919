//! Devices: each knows offsets or its own ports, none knows the vCPU.

pub mod absent;
pub mod console;
pub mod control;
pub mod ioapic;
pub mod last_words;
pub mod pci;
pub mod ports;
pub mod serial;
pub mod status_page;
pub mod virtio;
