//! The gate: the site, registered for as long as questions are asked there.
//!
//! Registered for each reading anew and withdrawn behind it: a gate that is armed costs (each MOV DR
//! exits, hardware breakpoints of the guest's own are masked), and there are four for all.

use exit_abi::gate::{Command, Outcome};
use exit_abi::leaf::{Layout, Registers};
use nix::sys::signal::{SigSet, SigmaskHow};

use crate::error::Error;
use crate::lock::Lock;
use crate::ports::{Ports, pinned};
use crate::site::Site;

/// How often a command is given, if somebody else spoke to the gate port between its parts.
const TRIES: u32 = 3;

/// CPUID at the gate.
pub(crate) type Ask<'a> = &'a dyn Fn(u32, u32) -> Registers;

/// Does something while the site is a gate.
///
/// Signals wait meanwhile: a process that one ended would leave its gate behind.
pub(crate) fn with<T>(
    ports: &Ports,
    site: &Site,
    layout: Layout,
    work: impl FnOnce(Ask<'_>) -> T,
) -> Result<T, Error> {
    let _lock = Lock::take()?;
    site.pin()?;
    let signals = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    let result = pinned(|| {
        let answers = || site.cpuid(layout.total_exits, 0) != Registers::default();
        register(ports, Command::RegisterCpuid, site.address(), answers)?;
        let result = work(&|leaf, subleaf| site.cpuid(leaf, subleaf));
        withdraw(ports, site.address(), answers)?;
        Ok(result)
    });
    if let Ok(before) = signals {
        // It cannot fail: the mask is one that there was.
        let _ = before.thread_set_mask();
    }
    result
}

/// Registers the instruction at an address. A gate that stands there is one that an exitlog before us
/// left: it will do.
pub(crate) fn register(
    ports: &Ports,
    command: Command,
    address: u64,
    answers: impl Fn() -> bool,
) -> Result<(), Error> {
    for _ in 0..TRIES {
        match ports.gate(command, address)? {
            // The kernel module's halves of an address may have got between ours.
            Outcome::Done | Outcome::Duplicate if answers() => return Ok(()),
            Outcome::Done | Outcome::Duplicate => {}
            Outcome::Full => return Err(Error::Full),
            outcome => {
                let at = address;
                return Err(Error::Gate { at, outcome });
            }
        }
    }
    Err(Error::Silent(address))
}

/// Withdraws it.
fn withdraw(ports: &Ports, address: u64, answers: impl Fn() -> bool) -> Result<(), Error> {
    let mut outcome = Outcome::None;
    for _ in 0..TRIES {
        outcome = ports.gate(Command::Withdraw, address)?;
        if !answers() {
            return Ok(());
        }
    }
    let at = address;
    Err(Error::Gate { at, outcome })
}
