//! The machine: the entry, the tables, exceptions, raw memory, and the jump into the kernel. All of
//! the firmware's assembler is here.

#[cfg(target_os = "none")]
mod entry;
pub mod gdt;
pub mod jump;
pub mod memory;
pub mod paging;
pub mod traps;
