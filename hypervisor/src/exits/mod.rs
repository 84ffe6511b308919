//! Exits: where they are counted, what they are called, who asks.

pub mod reason;
