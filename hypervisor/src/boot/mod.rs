//! Boot images: what is loaded, and how it is entered.

pub mod elf;
pub mod files;
pub mod pvh;
