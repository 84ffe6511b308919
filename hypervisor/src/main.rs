//! The `exitvisor` command.
fn main() {}
