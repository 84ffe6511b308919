//! Reports: each renders data, most of them a `&Profile`, and knows nothing else.

pub mod ablation;
mod accounts;
mod asks;
pub mod compare;
pub mod csv;
pub mod culprits;
mod durations;
mod emulated;
mod format;
pub mod json;
pub mod layout;
mod names;
pub mod paging;
mod passes;
pub mod questions;
pub mod runs;
pub mod summary;
pub mod survey;
mod table;
pub mod text;

pub use format::clean;
#[cfg(test)]
pub(crate) use format::width;
