//! The room of the firmware: what will run from reset to the kernel's entry.
//!
//! Nothing boots through it yet; `exitvisor --firmware FILE` says so.
#![no_std]
