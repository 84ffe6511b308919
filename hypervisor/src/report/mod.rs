//! Reports: each renders data, most of them a `&Profile`, and knows nothing else.

pub mod compare;
pub mod csv;
mod format;
pub mod json;
pub mod layout;
mod passes;
pub mod runs;
pub mod summary;
mod table;
pub mod text;

pub use format::clean;
#[cfg(test)]
pub(crate) use format::width;
