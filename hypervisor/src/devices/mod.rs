//! Devices: each knows offsets or its own ports, none knows the vCPU.

pub mod console;
pub mod control;
pub mod ports;
pub mod serial;
