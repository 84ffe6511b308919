//! `cargo xtask lab`: real, unmodified KVM on a machine that has none. An emulator gives a CPU with
//! AMD-V or VT-x, Debian's kernel runs on it, and Exitvisor runs on that kernel's KVM.
#![allow(dead_code, reason = "the labs are under construction")]

mod bochs;
mod iso;
mod machine;
mod packages;
mod qemu;
