//! One exitlog at a time: they share the gate's address, and the gate port of a vCPU.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::error::Error;

/// A name in the abstract namespace: the kernel forgets it with the process, and init has it before
/// any file system is there.
const NAME: &[u8] = b"exitvisor-exitlog";
/// A reading takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Held while a gate is used.
#[derive(Debug)]
pub(crate) struct Lock(
    /// Bound to the name.
    #[expect(dead_code, reason = "it is held, not used")]
    UnixDatagram,
);

impl Lock {
    /// Waits for the others.
    pub(crate) fn take() -> Result<Self, Error> {
        let name = SocketAddr::from_abstract_name(NAME).map_err(Error::Lock)?;
        let begun = Instant::now();
        loop {
            match UnixDatagram::bind_addr(&name) {
                Ok(socket) => return Ok(Self(socket)),
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    return Err(Error::Lock(error));
                }
                Err(_) if begun.elapsed() > PATIENCE => {
                    return Err(Error::Busy(PATIENCE.as_secs()));
                }
                Err(_) => sleep(Duration::from_millis(5)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_waits_for_the_first() {
        let first = Lock::take().unwrap();
        let next = std::thread::spawn(|| Lock::take().map(|_| Instant::now()));
        sleep(Duration::from_millis(50));
        let freed = Instant::now();
        drop(first);
        assert!(next.join().unwrap().unwrap() >= freed);
    }
}
