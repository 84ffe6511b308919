//! Exits: where they are counted, what they are called, who asks.

pub mod books;
pub mod culprits;
pub mod gate;
pub mod hypercall;
pub mod ledger;
pub mod milestone;
pub mod page;
pub mod rate;
pub mod reason;
pub mod source;
pub mod sparse;
