//! Calling Exitvisor by VMCALL (VMMCALL on AMD), and checking what it answers.
//!
//! The site is registered by the gate port when it is needed and withdrawn afterwards: a note
//! would take one of four debug registers from every boot, for one call.

use exit_abi::gate::{Command, Outcome};
use exit_abi::hypercall::{ANSWER, UNKNOWN, WHO_ARE_YOU};

use crate::arch::gate::{self, Hypercall};
use crate::gates;
use crate::own::OwnSection;
use crate::serial::println;

/// How the calls went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called {
    /// As the interface promises.
    Well,
    /// Another answer than promised.
    Wrong,
    /// The gate port did not take the site, or did not let it go.
    Refused,
}

/// Makes the one call that is defined and one that is not, and prints the answers.
pub fn call() -> Called {
    let instruction = Hypercall::native();
    let site = gate::hypercall_site(instruction);
    let registered = gates::command(Command::RegisterHypercall, site);
    if registered != Some(Outcome::Done) {
        let _own = OwnSection::open();
        println(format_args!(
            "FAILED hypercall: the gate port answers {registered:?}"
        ));
        return Called::Refused;
    }
    let name = gate::gate_hypercall(instruction, WHO_ARE_YOU);
    let unknown = gate::gate_hypercall(instruction, WHO_ARE_YOU + 1);
    let withdrawn = gates::command(Command::Withdraw, site);
    let _own = OwnSection::open();
    let bytes = name.to_le_bytes();
    let text = core::str::from_utf8(&bytes)
        .unwrap_or("not text")
        .trim_end_matches('\0');
    println(format_args!(
        "hypercall {WHO_ARE_YOU:#x}: {name:#018x} \"{text}\""
    ));
    println(format_args!(
        "hypercall {:#x}: {}",
        WHO_ARE_YOU + 1,
        unknown as i64
    ));
    if (name, unknown) != (ANSWER, UNKNOWN) {
        println(format_args!(
            "FAILED hypercall: not the answers of the interface"
        ));
        Called::Wrong
    } else if withdrawn != Some(Outcome::Done) {
        println(format_args!(
            "FAILED hypercall: its withdrawal answers {withdrawn:?}"
        ));
        Called::Refused
    } else {
        Called::Well
    }
}
