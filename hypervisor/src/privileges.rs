//! Capabilities: what is done without them, and dropping them for good.
//!
//! The kernel-side ledger needs some to be opened and none to go on. A guest that broke out of its
//! VM must find none.

use std::io;

use caps::CapSet;
use caps::errors::CapsError;

fn error(error: CapsError) -> io::Error {
    io::Error::other(error.to_string())
}

/// Whether this thread has any capability.
pub fn any() -> bool {
    caps::read(None, CapSet::Permitted).is_ok_and(|held| !held.is_empty())
}

/// Drops every capability of this thread, and of all that it will start, for good.
pub fn drop_all() -> io::Result<()> {
    if any() {
        // What a later exec could give back. Not every kernel or sandbox lets us: then it is
        // PR_SET_NO_NEW_PRIVS alone that keeps it away.
        for capability in caps::all() {
            let _ = caps::drop(None, CapSet::Bounding, capability);
        }
        // Ambient ones go with the inheritable.
        for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
            caps::clear(None, set).map_err(error)?;
        }
    }
    nix::sys::prctl::set_no_new_privs().map_err(Into::into)
}

/// Does something as if without capabilities.
pub fn without<T>(what: impl FnOnce() -> T) -> io::Result<T> {
    let held = caps::read(None, CapSet::Effective).map_err(error)?;
    caps::clear(None, CapSet::Effective).map_err(error)?;
    let done = what();
    caps::set(None, CapSet::Effective, &held).map_err(error)?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn what_is_dropped_is_gone() {
        // On a thread of its own: capabilities are a thread's.
        thread::spawn(|| {
            drop_all().unwrap();
            for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
                assert!(caps::read(None, set).unwrap().is_empty(), "{set:?}");
            }
            assert!(!any());
            assert!(nix::sys::prctl::get_no_new_privs().unwrap());
            drop_all().unwrap();
        })
        .join()
        .unwrap();
    }

    #[test]
    fn without_them_for_a_while() {
        thread::spawn(|| {
            let before = caps::read(None, CapSet::Effective).unwrap();
            let during = without(|| caps::read(None, CapSet::Effective).unwrap()).unwrap();
            assert!(during.is_empty());
            assert_eq!(caps::read(None, CapSet::Effective).unwrap(), before);
        })
        .join()
        .unwrap();
    }
}
