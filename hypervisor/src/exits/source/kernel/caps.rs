//! Capabilities: once everything is open, none is needed any more.

use caps::{CapSet, errors::CapsError};

/// Drops every capability of the calling thread, from every set, for good; threads started later
/// have none either. To be called before any other thread is started, and after everything that
/// needs rights is open: root without capabilities is an ordinary user whose id is 0.
pub fn drop_all() -> Result<(), CapsError> {
    // What cannot be had back through execve. Needs CAP_SETPCAP, so it goes first; who lacks that
    // keeps a bounding set that bounds nothing, since no_new_privs is set below.
    let _ = caps::clear(None, CapSet::Bounding);
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Effective)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::clear(None, CapSet::Permitted)?;
    // SAFETY: PR_SET_NO_NEW_PRIVS takes four numbers and touches no memory.
    let _ = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    Ok(())
}
