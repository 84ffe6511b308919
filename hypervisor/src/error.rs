//! What ends a command before or beside a guest: one enum, and its exit status.

use std::path::PathBuf;

use thiserror::Error;

use crate::boot::elf::ElfError;
use crate::boot::linux::LinuxError;
use crate::boot::pvh::PvhError;
use crate::config::ConfigError;
use crate::devices::virtio::block::DiskError;
use crate::memory::MemoryError;
use crate::platform::PlatformError;
use crate::profile::load::LoadError;
use crate::profile::paging::Refused;
use crate::profile::save::SaveError;
use crate::status;
use crate::symbols::files::SymbolsError;

/// An error of a whole command. Its message is one line: what, where, what to do.
#[derive(Debug, Error)]
pub enum Error {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// An option's value makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No usable KVM.
    #[error("{0}")]
    NoKvm(String),
    /// KVM refused an operation.
    #[error("KVM refuses {operation}: {source}")]
    Kvm {
        /// Which.
        operation: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// An image that cannot be booted.
    #[error("{role} {path} {source}", path = .path.display())]
    Image {
        /// `kernel`, `firmware` or `initrd`.
        role: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: ElfError,
    },
    /// A disk that cannot be had.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Symbols that cannot be read.
    #[error("symbols {path} {source}", path = .path.display())]
    Symbols {
        /// Their file.
        path: PathBuf,
        /// Why not.
        source: SymbolsError,
    },
    /// The hand-over.
    #[error(transparent)]
    Pvh(#[from] PvhError),
    /// Linux's hand-over.
    #[error(transparent)]
    Linux(#[from] LinuxError),
    /// The machine's descriptions.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The host refused something.
    #[error("cannot {operation}: {source}")]
    Host {
        /// What.
        operation: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A profile that cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Profiles that say nothing of nested and shadow paging.
    #[error(transparent)]
    Paging(#[from] Refused),
    /// Output that cannot be written.
    #[error(transparent)]
    Save(#[from] SaveError),
}

impl Error {
    /// The exit status of the process.
    pub fn status(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Config(_) => status::USAGE,
            Self::NoKvm(_) | Self::Memory(MemoryError::NoPrefault(_)) => status::NO_KVM,
            Self::Image { .. } | Self::Symbols { .. } | Self::Disk(_) => status::INPUT,
            Self::Pvh(PvhError::NoRoom { .. } | PvhError::Module { .. }) => status::INPUT,
            Self::Kvm { .. } | Self::Memory(_) | Self::Host { .. } => status::HOST,
            Self::Linux(LinuxError::Random(_)) => status::HOST,
            Self::Pvh(_) | Self::Linux(_) | Self::Platform(_) => status::INTERNAL,
            Self::Paging(_) => status::DATA,
            Self::Load(error) => error.status(),
            Self::Save(error) => error.status(),
        }
    }
}

/// For `map_err`: KVM refused `operation`.
pub fn kvm(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |source| Error::Kvm { operation, source }
}

/// For `map_err`: the host refused `operation`.
pub fn host<E: Into<std::io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Host {
        operation,
        source: source.into(),
    }
}
