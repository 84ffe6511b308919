//! The machine: instructions, tables and registers. All of the crate's assembler is here; callers
//! see functions and types without `unsafe`.

pub mod cpu;
#[cfg(target_os = "none")]
pub mod entry;
pub mod gate;
pub mod port;
