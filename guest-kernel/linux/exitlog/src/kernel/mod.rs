//! The kernel's own CPUID instruction as a gate: `cpuid -k` then shows live figures, in an unmodified
//! kernel. Its symbols and its memory are only read.

mod memory;
mod symbols;

use std::io;

use exit_abi::gate::{Command, Outcome};
use guest_kernel::exit_log::discovery::discover;

use crate::error::Error as Any;
use crate::lock::Lock;
use crate::ports::{Ports, pinned};
use crate::site::plain_cpuid;
use memory::Memory;
use symbols::{Symbol, Symbols};

/// The routine that all of the kernel calls for CPUID, where it has paravirt calls.
const NATIVE: &str = "native_cpuid";
/// The table of those calls.
const CALLS: &str = "pv_ops";
/// Where the driver of /dev/cpu/*/cpuid has the instruction itself, in a kernel without.
const DRIVER: &str = "cpuid_smp_cpuid";
/// The instruction (SDM vol. 2A, CPUID).
const CPUID: [u8; 2] = [0x0F, 0xA2];
/// No routine in question is longer.
const ROUTINE_MAX: u64 = 512;
/// Nor is the table.
const CALLS_MAX: u64 = 4096;

/// Why the instruction is not found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read {file}: {why} (root is needed, and a kernel that is not locked down)")]
    Read { file: &'static str, why: io::Error },
    #[error("/proc/kallsyms hides its addresses: write 1 to /proc/sys/kernel/kptr_restrict")]
    Hidden,
    #[error("/proc/kcore is no memory image that can be read")]
    NoImage,
    #[error("/proc/kcore has nothing at {0:#x}")]
    Unmapped(u64),
    #[error(
        "this kernel has neither {NATIVE} nor {DRIVER} (of the module cpuid: `modprobe cpuid`)"
    )]
    NoSymbol,
    #[error("this kernel's paravirt calls do not lead to {NATIVE}: it executes CPUID elsewhere")]
    Elsewhere,
    #[error("{name} at {at:#x} has {count} CPUID instructions, not one")]
    Several {
        name: &'static str,
        at: u64,
        count: usize,
    },
    #[error("no gate stands at the kernel's CPUID instruction at {0:#x}")]
    NoGate(u64),
}

/// `exitlog gate-kernel`
pub(crate) fn gate() -> Result<(), Any> {
    let (ports, site) = open()?;
    let _lock = Lock::take()?;
    let outcome = pinned(|| match ports.gate(Command::RegisterCpuid, site.address)? {
        // With page-table isolation user space runs on tables that have no kernel.
        Outcome::BadAddress => ports.gate(Command::RegisterUnmappedCpuid, site.address),
        outcome => Ok(outcome),
    })?;
    let (name, at) = (site.name, site.address);
    match outcome {
        Outcome::Done => println!("{name}: the CPUID instruction at {at:#x} is a gate"),
        Outcome::Duplicate => {
            println!("{name}: the CPUID instruction at {at:#x} is a gate already")
        }
        Outcome::Full => return Err(Any::Full),
        outcome => return Err(Any::Gate { at, outcome }),
    }
    Ok(())
}

/// `exitlog ungate-kernel`
pub(crate) fn ungate() -> Result<(), Any> {
    let (ports, site) = open()?;
    let _lock = Lock::take()?;
    let outcome = pinned(|| ports.gate(Command::Withdraw, site.address))?;
    let (name, at) = (site.name, site.address);
    match outcome {
        Outcome::Done => println!("{name}: the CPUID instruction at {at:#x} is no gate any more"),
        Outcome::NotFound => return Err(Error::NoGate(at).into()),
        outcome => return Err(Any::Gate { at, outcome }),
    }
    Ok(())
}

/// The instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Site {
    /// Of the routine that has it.
    name: &'static str,
    address: u64,
}

fn open() -> Result<(Ports, Site), Any> {
    discover(plain_cpuid, None).map_err(Any::Absent)?;
    let ports = Ports::open()?;
    let symbols = Symbols::read()?;
    let memory = Memory::open()?;
    Ok((ports, find(&symbols, |at, size| memory.read(at, size))?))
}

/// Finds the instruction that the driver of /dev/cpu/*/cpuid executes.
fn find(
    symbols: &Symbols,
    read: impl Fn(u64, u64) -> Result<Vec<u8>, Error>,
) -> Result<Site, Error> {
    let natives = symbols.named(NATIVE);
    if natives.is_empty() {
        let drivers = symbols.named(DRIVER);
        let driver = drivers.first().ok_or(Error::NoSymbol)?;
        return in_routine(DRIVER, driver, read);
    }
    // Each file of the kernel's source may have a copy of its own: the one that is called counts.
    let called = match symbols.named(CALLS).first() {
        Some(calls) => {
            let table = read(calls.start, calls.size.min(CALLS_MAX))?;
            let calls: Vec<u64> = table
                .as_chunks()
                .0
                .iter()
                .map(|word| u64::from_le_bytes(*word))
                .collect();
            natives.iter().find(|native| calls.contains(&native.start))
        }
        None => natives.first(),
    };
    in_routine(NATIVE, called.ok_or(Error::Elsewhere)?, read)
}

fn in_routine(
    name: &'static str,
    routine: &Symbol,
    read: impl Fn(u64, u64) -> Result<Vec<u8>, Error>,
) -> Result<Site, Error> {
    let code = read(routine.start, routine.size.min(ROUTINE_MAX))?;
    let places: Vec<usize> = code
        .windows(CPUID.len())
        .enumerate()
        .filter(|(_, bytes)| *bytes == CPUID)
        .map(|(place, _)| place)
        .collect();
    match places[..] {
        [place] => Ok(Site {
            name,
            address: routine.start + place as u64,
        }),
        _ => Err(Error::Several {
            name,
            at: routine.start,
            count: places.len(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
ffffffff81000000 T _text
ffffffff81001000 t native_cpuid
ffffffff81001020 t native_other
ffffffff81002000 t native_cpuid
ffffffff81002020 T next
ffffffff82000000 D pv_ops
ffffffff82000100 D other
ffffffffc0001000 t cpuid_smp_cpuid\t[cpuid]
ffffffffc0001040 t cpuid_read\t[cpuid]
";

    /// Memory in which these words stand, at multiples of 8, and CPUID 5 bytes into each routine of
    /// the list.
    fn memory(
        words: &'static [(u64, u64)],
        routines: &'static [u64],
    ) -> impl Fn(u64, u64) -> Result<Vec<u8>, Error> {
        move |at, size| {
            let byte = |address: u64| {
                let word = words.iter().find(|(place, _)| *place == address & !7);
                let of_word = word.map(|(_, value)| value.to_le_bytes()[address as usize % 8]);
                let inside = routines.iter().find_map(|start| {
                    let offset = address.checked_sub(start + 5)?;
                    CPUID.get(offset as usize)
                });
                of_word.or(inside.copied()).unwrap_or(0x90)
            };
            Ok((at..at + size).map(byte).collect())
        }
    }

    #[test]
    fn the_copy_that_is_called_is_found() {
        let symbols = Symbols::parse(TEXT.as_bytes()).unwrap();
        let words = &[(0xFFFF_FFFF_8200_0048, 0xFFFF_FFFF_8100_2000)];
        let both = &[0xFFFF_FFFF_8100_1000, 0xFFFF_FFFF_8100_2000];
        let site = find(&symbols, memory(words, both)).unwrap();
        assert_eq!((site.name, site.address), (NATIVE, 0xFFFF_FFFF_8100_2005));
        let none = find(&symbols, memory(&[], both)).unwrap_err();
        assert!(matches!(none, Error::Elsewhere), "{none}");
        let empty = find(&symbols, memory(words, &[])).unwrap_err();
        assert!(matches!(empty, Error::Several { count: 0, .. }), "{empty}");
    }

    #[test]
    fn a_kernel_without_paravirt_calls() {
        let old: String = TEXT
            .lines()
            .filter(|line| !line.contains("native") && !line.contains("pv_ops"))
            .map(|line| format!("{line}\n"))
            .collect();
        let symbols = Symbols::parse(old.as_bytes()).unwrap();
        let site = find(&symbols, memory(&[], &[0xFFFF_FFFF_C000_1000])).unwrap();
        assert_eq!((site.name, site.address), (DRIVER, 0xFFFF_FFFF_C000_1005));
        let none = Symbols::parse(b"ffffffff81000000 T _text\n").unwrap();
        let error = find(&none, memory(&[], &[])).unwrap_err();
        assert!(matches!(error, Error::NoSymbol), "{error}");
    }
}
