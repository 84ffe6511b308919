//! The files that were loaded: hashed once the run is over, and the same at every boot of it.

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

use sha2::{Digest, Sha256};

use crate::devices::control::Cause;
use crate::error::Error;
use crate::profile::Image;
use crate::status;
use crate::vm::Loaded;

/// Checks that a reboot has loaded what the first boot has: a profile is about one set of images.
pub(super) fn same(first: &[Loaded], now: &[Loaded]) -> Result<(), Cause> {
    let identity = |loaded: &Loaded| {
        let m = loaded.file.metadata().ok()?;
        Some((m.dev(), m.ino(), m.len(), m.mtime(), m.mtime_nsec()))
    };
    let changed = first
        .iter()
        .zip(now)
        .find(|(a, b)| identity(a) != identity(b));
    match changed {
        None => Ok(()),
        Some((_, loaded)) => Err(Cause::Rebuild {
            status: status::INPUT,
            why: format!(
                "{} {} has changed since the first boot",
                loaded.role,
                loaded.path.display()
            ),
        }),
    }
}

/// Why a machine that was built before cannot be built again.
pub(super) fn not_again(error: &Error) -> Cause {
    Cause::Rebuild {
        status: error.status(),
        why: error.to_string(),
    }
}

/// Hashes what was loaded, through the descriptor it was loaded from.
pub(super) fn hash(mut loaded: Loaded) -> Image {
    let mut hasher = Sha256::new();
    let mut buffer = [0; 16 * 1024];
    let mut read = || -> io::Result<()> {
        io::Seek::rewind(&mut loaded.file)?;
        loop {
            match loaded.file.read(&mut buffer)? {
                0 => return Ok(()),
                n => hasher.update(&buffer[..n]),
            }
        }
    };
    let sha256 = match read() {
        Ok(()) => hasher
            .finalize()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect(),
        Err(_) => String::new(),
    };
    Image {
        role: loaded.role.into(),
        path: loaded.path.display().to_string(),
        bytes: loaded.bytes,
        sha256,
    }
}
