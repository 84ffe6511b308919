//! The machine: instructions, tables and registers.

#[cfg(target_os = "none")]
pub mod entry;
pub mod gate;
pub mod port;
