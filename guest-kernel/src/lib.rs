//! The parts of Exitvisor's bare-metal guests: what the kernel is made of, and what the small
//! guests of the black-box tests share with it.
//!
//! A guest begins with [`entry!`]; [`serial`], [`milestone`], [`gates`], [`own`], [`exit`](mod@exit)
//! and [`arch::gate`] speak to Exitvisor. Everything that touches the machine is under [`arch`];
//! the rest is plain code that is tested on the host.
#![cfg_attr(not(test), no_std)]

pub use exit_abi as abi;

pub mod arch;
pub mod caps;
pub mod cmdline;
mod entry;
pub mod exit;
pub mod exit_log;
pub mod gates;
pub mod heap;
pub mod hypercall;
pub mod leaves;
pub mod line;
pub mod list;
pub mod machine;
pub mod memory;
pub mod milestone;
pub mod once;
pub mod own;
pub mod ports;
pub mod power;
pub mod serial;
pub mod smp;
pub mod start_info;
pub mod status;
pub mod workload;
