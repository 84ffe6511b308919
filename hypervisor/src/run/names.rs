//! What the places are called that exits came from: looked up once the guest has run.

use std::path::Path;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::boot::files::Files;
use crate::layout;
use crate::marks::kernel::LINUX;
use crate::memory::Memory;
use crate::profile::{Culprit, Milestone};
use crate::symbols::{Placed, Symbols, files, running};

/// Where Linux is linked to run, unless it is configured otherwise
/// (linux/arch/x86/include/asm/page_64_types.h, `__START_KERNEL`).
const TEXT: u64 = LINUX + (16 << 20);
/// Behind the addresses at which Linux maps itself (linux/Documentation/arch/x86/x86_64/mm.rst).
const LINUX_END: u64 = LINUX + (1 << 30);
/// Behind the lower half of the addresses: with Linux, user space's.
const LOWER_HALF: u64 = 1 << 47;
/// What such an address is called.
const USER_SPACE: &str = "user space";
/// The milestone from which on Linux runs mapped as it wants to be.
const MAPPED: &str = "start_kernel";
/// How far behind its last symbol an image may reach.
const LAST_FUNCTION: u64 = 64 << 10;

/// Linux's functions: from where it was found when it started, or else from its own table, if it is still
/// there; and the lower half of the addresses, from when it is user space's.
pub(super) fn of_linux(
    culprits: &mut [Culprit],
    known: Option<&Placed>,
    milestones: &[Milestone],
    memory: &Memory,
) {
    let is_linux = |culprit: &Culprit| {
        culprit
            .rip
            .is_some_and(|rip| (LINUX..LINUX_END).contains(&rip))
    };
    if !culprits.iter().any(is_linux) {
        return;
    }
    let found;
    let placed = match known {
        Some(placed) => placed,
        None => {
            found = search(memory);
            match &found {
                Some(placed) => placed,
                None => return,
            }
        }
    };
    let mapped = milestones.iter().find(|m| m.name == MAPPED);
    // Who was first seen before has a lower number.
    let mapped = mapped.map(|m| m.accounts.culprits.len());
    for (number, culprit) in culprits.iter_mut().enumerate() {
        let Some(rip) = culprit.rip else { continue };
        culprit.symbol = match placed.resolve(rip) {
            Some(named) => Some(named.to_string()),
            None if mapped.is_some_and(|first| number >= first)
                && (layout::HIGH_START..LOWER_HALF).contains(&rip) =>
            {
                Some(USER_SPACE.to_owned())
            }
            None => None,
        };
    }
}

/// The kernel in a guest's memory, wherever it is.
fn search(memory: &Memory) -> Option<Placed> {
    let last = memory
        .find_region(GuestAddress(layout::HIGH_START))?
        .last_addr();
    let end = last.0.saturating_add(1);
    let (symbols, slide) = running::read(memory, (layout::HIGH_START, end), TEXT)?;
    let image = bounds(&symbols)?;
    Some(Placed {
        symbols: symbols.into(),
        slide,
        physical: None,
        image,
    })
}

/// From the first symbol to behind the last.
fn bounds(symbols: &Symbols) -> Option<(u64, u64)> {
    let first = symbols.iter().next()?.0;
    let last = symbols.iter().last()?.0;
    let behind = symbols
        .address("_end")
        .unwrap_or_else(|| last.saturating_add(LAST_FUNCTION));
    Some((first, behind))
}

/// The functions of an image that runs where it is linked to run, by its own table, if it has one.
pub(super) fn of_image(culprits: &mut [Culprit], files: &mut Files, path: &Path) {
    let nameless = |culprit: &Culprit| culprit.symbol.is_none() && culprit.rip.is_some();
    if !culprits.iter().any(nameless) {
        return;
    }
    let Ok((file, bytes)) = files.open(path) else {
        return;
    };
    let Ok(symbols) = files::read(file, bytes) else {
        return;
    };
    let Some((first, behind)) = bounds(&symbols) else {
        return;
    };
    for culprit in culprits.iter_mut().filter(|c| nameless(c)) {
        let rip = culprit.rip.filter(|rip| (first..behind).contains(rip));
        let named = rip.and_then(|rip| symbols.name(rip));
        culprit.symbol = named.map(|named| named.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Accounts;
    use crate::symbols::Builder;

    fn at(rip: u64) -> Culprit {
        Culprit {
            reason: Some(30),
            rip: Some(rip),
            ..Culprit::default()
        }
    }

    #[test]
    fn linux_and_its_user_space_are_named() {
        const SLIDE: u64 = 0x1200_0000;
        let mut symbols = Builder::default();
        symbols.add(TEXT, "_text");
        symbols.add(TEXT + 0x100, "outb");
        symbols.add(TEXT + 0x10_0000, "_end");
        let placed = Placed {
            symbols: symbols.finish().into(),
            slide: SLIDE,
            physical: Some(0x100_0000_u64.wrapping_sub(TEXT)),
            image: (TEXT, TEXT + 0x10_0000),
        };
        let mut milestone = crate::profile::fixtures::ledger().milestones[1].clone();
        milestone.name = MAPPED.to_owned();
        milestone.accounts = Accounts {
            culprits: vec![1; 2],
            ..Accounts::default()
        };
        let mut culprits = [
            // The decompressor, the kernel before its paging, and then all kinds.
            at(0x40_0000),
            at(0x100_0108),
            at(TEXT + SLIDE + 0x104),
            at(0x40_0000),
            at(0x9_9000),
            at(0xFFFF_FFFF_C000_1000),
        ];
        let memory = crate::memory::map(4 << 20).unwrap();
        let names = |culprits: &[Culprit]| -> Vec<Option<String>> {
            culprits.iter().map(|c| c.symbol.clone()).collect()
        };
        of_linux(&mut culprits, Some(&placed), &[milestone], &memory);
        let named = |name: &str| Some(name.to_owned());
        let expected = [
            None,
            named("outb+0x8"),
            named("outb+0x4"),
            named(USER_SPACE),
            None,
            None,
        ];
        assert_eq!(names(&culprits), expected);
        // Nobody knows where it is, and its memory does not tell.
        culprits.iter_mut().for_each(|c| c.symbol = None);
        of_linux(&mut culprits, None, &[], &memory);
        assert!(names(&culprits).iter().all(Option::is_none));
    }
}
