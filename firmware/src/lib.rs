//! The parts of the firmware: what runs from reset to the kernel's entry.
//!
//! Everything that touches the machine is under [`arch`]; the rest reads bytes that the VMM placed,
//! believes none of them, and is tested on the host. `docs/firmware.md` tells the whole.
#![cfg_attr(not(test), no_std)]

pub mod arch;
pub mod device_tree;
pub mod end;
pub mod error;
#[cfg(test)]
mod fixtures;
pub mod gates;
pub mod hand_over;
pub mod kernel;
pub mod linux;
pub mod log;
pub mod modules;
pub mod ram;
pub mod start_info;
pub mod taken;
