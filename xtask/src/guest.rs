//! `cargo xtask guest`: the guests that are made of what Debian ships, for who wants to boot them by
//! hand.

use std::path::Path;

use clap::{Args, Subcommand};

use crate::lab::{Own, Version, debian};
use crate::workspace;

/// Make a guest and say where it is
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask guest debian
  cargo xtask guest debian --fresh
  cargo xtask run --guest debian")]
pub(crate) struct Guest {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Debian(Debian),
}

/// A whole Debian with systemd: prints its bzImage, an initramfs and a raw disk image
///
/// The packages come from the mirror that this machine's apt uses, by mmdebstrap, once. That takes root,
/// or newuidmap (package uidmap) and a range of ids in /etc/subuid. The disk keeps what the guest
/// writes to it.
#[derive(Debug, Args)]
struct Debian {
    /// Which Linux
    #[arg(long, value_enum, default_value_t = Version::default())]
    kernel: Version,
    /// Put the disk back to how it was made: all that was written to it is gone
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    own: Own,
}

impl Guest {
    /// Makes it.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        let Task::Debian(task) = self.task;
        let guest = debian::fetched(&task.own.or_environment(), task.kernel, task.fresh)?;
        for path in [guest.kernel, guest.initrd, guest.disk] {
            println!("{}", Path::new(workspace::shown(&path)).display());
        }
        Ok(0)
    }
}
