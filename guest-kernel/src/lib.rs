//! The parts of Exitvisor's bare-metal guests: what the kernel is made of, and what the small
//! guests of the black-box tests share with it.
//!
//! Everything that touches the machine is under [`arch`]; the rest is plain code that is tested
//! on the host.
#![cfg_attr(not(test), no_std)]

pub mod arch;
pub mod serial;
