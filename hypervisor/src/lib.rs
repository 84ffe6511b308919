//! Exitvisor: a tiny KVM hypervisor whose product is knowledge. It boots a guest and says, per
//! exit reason and per milestone, how many VM exits the boot cost, how long they took, and what
//! stays unknown.
//!
//! Data flows one way: `exits::source` → `exits::ledger` and `exits::books` → a snapshot at a
//! milestone → [`profile`] → [`report`].

pub mod boot;
pub mod cli;
pub mod config;
pub mod devices;
pub mod error;
pub mod exits;
pub mod held;
pub mod host;
pub mod layout;
pub mod marks;
pub mod memory;
pub mod platform;
pub mod privileges;
pub mod profile;
pub mod report;
pub mod run;
pub mod status;
pub mod survey;
pub mod symbols;
pub mod terminal;
pub mod vcpu;
pub mod vm;
pub mod walk;
