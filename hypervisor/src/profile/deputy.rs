//! A deputy: a child that writes one file when Exitvisor itself no longer may.
//!
//! Root without capabilities may not write into a directory of somebody else's. Whoever runs
//! Exitvisor by sudo and wants the profile in his own folder gets it by a child that was forked
//! while the right was there, and that does nothing but write this one file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe};

use super::load::MAX_BYTES;
use super::save::{self, SaveError};
use crate::privileges;

/// Where the profile goes, and who writes it.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    deputy: Option<Deputy>,
}

/// The child.
#[derive(Debug)]
struct Deputy {
    child: Pid,
    to: File,
    from: File,
}

impl Place {
    /// Checks that the file can be written, and appoints a deputy if that hangs on a capability.
    /// To be called before any thread is started.
    pub fn new(path: &Path) -> Result<Self, SaveError> {
        save::check(path)?;
        let hangs = privileges::any()
            && path.as_os_str() != "-"
            && privileges::without(|| save::check(path).is_err()).unwrap_or(false);
        let deputy = match hangs.then(|| Deputy::appoint(path)).transpose() {
            Ok(deputy) => deputy,
            Err(source) => {
                let name = save::name(path);
                return Err(SaveError { name, source });
            }
        };
        Ok(Self {
            path: path.to_owned(),
            deputy,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes it.
    pub fn save(self, contents: &str) -> Result<(), SaveError> {
        let Some(deputy) = self.deputy else {
            return save::save(&self.path, contents);
        };
        deputy.write(contents).map_err(|source| SaveError {
            name: save::name(&self.path),
            source,
        })
    }
}

impl Deputy {
    fn appoint(path: &Path) -> io::Result<Self> {
        let (theirs, to) = pipe()?;
        let (from, answer) = pipe()?;
        // SAFETY: no other thread has been started, so the child finds no lock held and may do
        // whatever this process may.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self {
                child,
                to: to.into(),
                from: from.into(),
            }),
            ForkResult::Child => {
                drop((to, from));
                serve(path, theirs, answer);
                // SAFETY: _exit has no preconditions; the parent's exit handlers are not ours.
                unsafe { libc::_exit(0) }
            }
        }
    }

    fn write(mut self, contents: &str) -> io::Result<()> {
        let length = contents.len() as u64;
        self.to.write_all(&length.to_ne_bytes())?;
        self.to.write_all(contents.as_bytes())?;
        let mut answer = [0; 4];
        self.from.read_exact(&mut answer)?;
        match i32::from_ne_bytes(answer) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Drop for Deputy {
    fn drop(&mut self) {
        // Nothing more comes: the child ends, if it has not. The pipe is closed by putting
        // something else in its place.
        if let Ok(null) = File::open("/dev/null") {
            self.to = null;
            let _ = waitpid(self.child, None);
        }
    }
}

/// The child's whole life: waits for the contents, writes them, says how it went.
fn serve(path: &Path, from: OwnedFd, to: OwnedFd) {
    // A Ctrl-C is the parent's to handle; its death is ours too.
    let _ = SigSet::all().thread_block();
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let (mut from, mut to) = (File::from(from), File::from(to));
    let mut length = [0; 8];
    if from.read_exact(&mut length).is_err() {
        return;
    }
    let length = u64::from_ne_bytes(length);
    let mut contents = Vec::new();
    let read = from
        .take(length.min(2 * MAX_BYTES))
        .read_to_end(&mut contents);
    // Half a profile is none.
    if read.ok() != usize::try_from(length).ok() {
        return;
    }
    let errno = match save::save(path, &contents) {
        Ok(()) => 0,
        Err(error) => error.source.raw_os_error().unwrap_or(libc::EIO),
    };
    // If the parent has gone, nobody is left to be told.
    let _ = to.write_all(&errno.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_needs_no_deputy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        let place = Place::new(&path).unwrap();
        assert!(place.deputy.is_none());
        place.save("{}").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}");
    }
}
