//! The machine: instructions, tables and registers. All of the crate's assembler is here; callers
//! see functions and types without `unsafe`.

pub mod address_space;
pub mod cpu;
pub mod crash;
#[cfg(target_os = "none")]
pub mod entry;
pub mod fault;
pub mod gate;
pub mod gdt;
pub mod idt;
pub mod lapic;
pub mod paging;
pub mod physical;
pub mod port;
pub mod scratch;
pub mod secondary;
pub mod traps;
pub mod window;
