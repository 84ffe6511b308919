//! Exitvisor's ports, from user space: ioperm(2), IN and OUT.
//!
//! What is written to the gate port is kept per vCPU until the command comes: whoever gives one
//! stays on a CPU meanwhile ([`pinned`]).

use std::arch::asm;
use std::io;
use std::marker::PhantomData;

use exit_abi::gate::{Command, Outcome};
use exit_abi::port;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use crate::error::Error;

/// How many ports.
const COUNT: u16 = port::LAST - port::BASE + 1;

/// The right to use the ports, of this thread alone; given back when dropped, so that a program
/// that this process becomes does not have it.
#[derive(Debug)]
pub(crate) struct Ports(PhantomData<*const ()>);

fn ioperm(allowed: bool) -> io::Result<()> {
    // SAFETY: it changes which ports this thread may use, and no memory.
    let result = unsafe { libc::ioperm(port::BASE.into(), COUNT.into(), allowed.into()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

impl Ports {
    /// Asks the kernel for them.
    pub(crate) fn open() -> Result<Self, Error> {
        ioperm(true).map_err(Error::Ports)?;
        Ok(Self(PhantomData))
    }

    fn out32(&self, port: u16, value: u32) {
        // SAFETY: `self` says that this thread may use the port. It is Exitvisor's, which touches no
        // memory of ours.
        unsafe {
            asm!("out dx, eax", in("dx") port, in("eax") value,
                 options(nomem, nostack, preserves_flags));
        }
    }

    fn in32(&self, port: u16) -> u32 {
        let value;
        // SAFETY: as for `out32`.
        unsafe {
            asm!("in eax, dx", in("dx") port, out("eax") value,
                 options(nomem, nostack, preserves_flags));
        }
        value
    }

    fn out8(&self, port: u16, value: u8) {
        // SAFETY: as for `out32`.
        unsafe {
            asm!("out dx, al", in("dx") port, in("al") value,
                 options(nomem, nostack, preserves_flags));
        }
    }

    /// Writes bytes to a port, by one instruction: on hardware one exit.
    fn outs(&self, port: u16, bytes: &[u8]) {
        // SAFETY: as for `out32`; the instruction reads the slice's bytes, in order, as the calling
        // convention has the direction flag clear.
        unsafe {
            asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _,
                 inout("rcx") bytes.len() => _, options(readonly, nostack, preserves_flags));
        }
    }

    /// Gives a command about the instruction at a linear address. An error: nobody serves the port.
    /// To be done [`pinned`].
    pub(crate) fn gate(&self, command: Command, address: u64) -> Result<Outcome, Error> {
        self.out32(port::GATE_LOW, address as u32);
        self.out32(port::GATE_HIGH, (address >> 32) as u32);
        self.out32(port::GATE_COMMAND, command as u32);
        Outcome::from_number(self.in32(port::GATE_COMMAND)).ok_or(Error::NoPort)
    }

    /// Tells Exitvisor that a milestone is reached. To be done [`pinned`].
    pub(crate) fn milestone(&self, number: u32, name: &str) {
        self.outs(port::MILESTONE_NAME, name.as_bytes());
        self.out32(port::MILESTONE, number);
    }

    /// Does what is the profiler's own, and is booked as that: it must not wait for anything. To be
    /// done [`pinned`].
    pub(crate) fn own<T>(&self, work: impl FnOnce() -> T) -> T {
        self.out8(port::OWN_SECTION, 1);
        let result = work();
        self.out8(port::OWN_SECTION, 0);
        result
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        // It cannot fail: to give up a right needs none.
        let _ = ioperm(false);
    }
}

/// Does something on one CPU.
pub(crate) fn pinned<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this).map_err(Error::Pin)?;
    let mut one = CpuSet::new();
    let pin = sched_getcpu().and_then(|cpu| {
        one.set(cpu)?;
        sched_setaffinity(this, &one)
    });
    pin.map_err(Error::Pin)?;
    let result = work();
    sched_setaffinity(this, &before).map_err(Error::Pin)?;
    result
}
