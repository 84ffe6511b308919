//! Boot images: what is loaded, and how it is entered.

pub mod arguments;
pub mod bzimage;
pub mod elf;
pub mod files;
pub mod kernel;
pub mod linux;
pub mod pvh;

/// By which protocol a kernel is to be entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// Linux by its own, all else by PVH.
    #[default]
    Auto,
    /// PVH: 32-bit mode, start info.
    Pvh,
    /// Linux's 64-bit boot protocol: 64-bit mode, zero page.
    Linux,
}

/// Where the boot vCPU begins, and by which protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// PVH.
    Pvh(u32),
    /// Linux's 64-bit boot protocol.
    Linux(u64),
}

impl Entry {
    /// The protocol's name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pvh(_) => "PVH",
            Self::Linux(_) => "Linux 64-bit",
        }
    }
}
