//! What the places are called that exits came from: looked up once the guest has run.

use std::collections::HashMap;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::boot::files::Files;
use crate::layout;
use crate::marks::kernel::LINUX;
use crate::memory::Memory;
use crate::profile::{Accounts, Culprit, Milestone};
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

/// Functions that are called for their one instruction: their return address is on the stack where the
/// exit program looks (linux/arch/x86/include/asm/msr.h, processor.h; arch/x86/kernel/paravirt.c,
/// io_delay.c; drivers/tty/serial/8250/8250_port.c; arch/x86/kernel/rtc.c). Of all others the first
/// address of code on the stack may be anybody's.
const PRIMITIVES: [&str; 13] = [
    "native_write_msr",
    "native_write_msr_safe",
    "native_read_msr",
    "native_read_msr_safe",
    "paravirt_write_msr",
    "paravirt_read_msr",
    "native_cpuid",
    "native_io_delay",
    "io_serial_in",
    "io_serial_out",
    "rtc_cmos_read",
    "rtc_cmos_write",
    "cpuid_eax",
];

/// Linux's functions: from where it was found when it started, or else from its own table, if it is still
/// there; and the lower half of the addresses, from when it is user space's.
pub(super) fn of_linux(
    culprits: &mut [Culprit],
    known: Option<&Placed>,
    milestones: &[Milestone],
    memory: &Memory,
) {
    // What was on the stack is a caller only if that can be shown.
    let found: Vec<Option<u64>> = culprits.iter_mut().map(|c| c.caller.take()).collect();
    let is_linux = |culprit: &Culprit| {
        culprit
            .rip
            .is_some_and(|rip| (LINUX..LINUX_END).contains(&rip))
    };
    if !culprits.iter().any(is_linux) {
        return;
    }
    let searched;
    let placed = match known {
        Some(placed) => placed,
        None => {
            searched = search(memory);
            match &searched {
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
        let caller = found.get(number).copied().flatten();
        let caller = caller.filter(|_| is_primitive(culprit.symbol.as_deref()));
        if let Some((address, named)) = caller.and_then(|c| Some((c, returns(placed, memory, c)?)))
        {
            culprit.caller = Some(address);
            culprit.called_from = Some(named);
        }
    }
}

/// Makes one of culprits that differ by nothing, now that it is known what is no caller: in their list, and
/// in the snapshots that count them.
pub(super) fn merge<'a>(
    culprits: &mut Vec<Culprit>,
    snapshots: impl Iterator<Item = &'a mut Accounts>,
) {
    let mut numbers = HashMap::new();
    let mut kept = Vec::new();
    let places: Vec<usize> = culprits
        .drain(..)
        .map(|culprit| {
            let c = &culprit;
            let key = (c.reason, c.kind, c.index, c.rip, c.caller, c.lost);
            *numbers.entry(key).or_insert_with(|| {
                kept.push(culprit);
                kept.len() - 1
            })
        })
        .collect();
    *culprits = kept;
    for accounts in snapshots {
        for counts in [&mut accounts.culprits, &mut accounts.culprit_cycles] {
            let mut merged: Vec<u64> = Vec::new();
            for (&place, &count) in places.iter().zip(counts.iter()) {
                if merged.len() <= place {
                    merged.resize(place + 1, 0);
                }
                if let Some(sum) = merged.get_mut(place) {
                    *sum = sum.saturating_add(count);
                }
            }
            *counts = merged;
        }
    }
}

/// Whether a place is in a function that is called for its instruction; compilers append to names.
fn is_primitive(symbol: Option<&str>) -> bool {
    let name = symbol.and_then(|symbol| symbol.split(['+', '.']).next());
    name.is_some_and(|name| PRIMITIVES.contains(&name))
}

/// What an address is called to which a function may return: it lies in the kernel's code, and behind a
/// CALL. Code of the start is gone by the end (linux/mm/page_alloc.c, `free_initmem_default`), and so
/// are the addresses of a kernel that nobody saw start: what would be looked at there says nothing.
fn returns(placed: &Placed, memory: &Memory, address: u64) -> Option<String> {
    let linked = address.wrapping_sub(placed.slide);
    let [text, init] = placed.code()?;
    let is_in = |(first, length): (u64, u64)| address.wrapping_sub(first) < length;
    let is_code = is_in(text);
    if !is_code && !is_in(init) {
        return None;
    }
    if is_code && let Some(physical) = placed.physical {
        const BEFORE: u64 = 8;
        let at = linked.wrapping_add(physical).wrapping_sub(BEFORE);
        let mut bytes = [0; BEFORE as usize];
        let is_read = memory.read_slice(&mut bytes, GuestAddress(at)).is_ok();
        if !is_read || !ends_in_call(&bytes) {
            return None;
        }
    }
    let named = placed.symbols.name(linked)?;
    // A function that returns to another's first instruction was not called there.
    (named.offset > 0).then(|| named.to_string())
}

/// Whether these bytes end in a CALL (SDM vol. 2A, "CALL"): direct, or through a register or memory; or in a
/// direct one and a NOP, which Linux makes of one through memory once it knows whom it calls
/// (linux/arch/x86/kernel/alternative.c): what was called before that returns behind the NOP.
fn ends_in_call(bytes: &[u8]) -> bool {
    let from_end = |n: usize| bytes.len().checked_sub(n).and_then(|at| bytes.get(at..));
    // FF /2, by what its ModRM byte has behind it: SDM vol. 2A, table 2-2.
    let indirect = |n: usize| match from_end(n) {
        Some([0xFF, modrm, ..]) if modrm >> 3 & 7 == 2 => {
            let (mode, operand) = (modrm >> 6, modrm & 7);
            let with_sib = usize::from(mode != 3 && operand == 4);
            let displacement = match (mode, operand) {
                (0, 5) | (2, _) => 4,
                (1, _) => 1,
                // With no base in its SIB byte, which follows.
                (0, 4) if n == 7 => 4,
                _ => 0,
            };
            n == 2 + with_sib + displacement
        }
        _ => false,
    };
    let direct = matches!(from_end(5), Some([0xE8, ..]));
    let patched = matches!(from_end(6), Some([0xE8, .., 0x90]))
        || matches!(from_end(7), Some([0xE8, .., 0x66, 0x90]));
    direct || patched || [2, 3, 4, 6, 7].into_iter().any(indirect)
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
    use crate::symbols::Builder;

    fn at(rip: u64) -> Culprit {
        Culprit {
            reason: Some(30),
            rip: Some(rip),
            ..Culprit::default()
        }
    }

    #[test]
    fn a_call_is_told_by_its_bytes() {
        for (call, is_one) in [
            (&[0xE8, 1, 2, 3, 4][..], true),
            (&[0xE9, 1, 2, 3, 4], false),
            // call *%rax; *%r11; *(%rax); *8(%rax); *8(%rsp); *disp(%rip); *disp(%rsp); *pv_ops
            (&[0xFF, 0xD0], true),
            (&[0x41, 0xFF, 0xD3], true),
            (&[0xFF, 0x10], true),
            (&[0xFF, 0x50, 8], true),
            (&[0xFF, 0x54, 0x24, 8], true),
            (&[0xFF, 0x15, 0, 0, 0, 0], true),
            (&[0xFF, 0x94, 0x24, 0, 0, 0, 0], true),
            (&[0xFF, 0x14, 0x25, 0, 0, 0, 0], true),
            // jmp *%rax; a call that would be longer, or shorter.
            (&[0xFF, 0xE0], false),
            (&[0xFF, 0x15], false),
            (&[0xE8, 1, 2, 3, 4, 0x90], true),
            (&[0xE8, 1, 2, 3, 4, 0x66, 0x90], true),
            (&[0xE8, 1, 2, 3, 4, 0x66], false),
            (&[0xFF, 0xD0, 0x90], false),
            (&[0xCC; 7], false),
            (&[], false),
        ] {
            let mut bytes = vec![0x90; 8 - call.len()];
            bytes.extend(call);
            assert_eq!(ends_in_call(&bytes), is_one, "{call:x?}");
        }
        assert!(!ends_in_call(&[0xD0]));
    }

    #[test]
    fn callers_are_shown_to_be_some() {
        const SLIDE: u64 = 0x1200_0000;
        let mut symbols = Builder::default();
        for (offset, name) in [
            (0, "_text"),
            (0x100, "native_write_msr"),
            (0x200, "lapic_next_deadline"),
            (0x300, "default_idle"),
            (0x1000, "_etext"),
            (0x2000, "_sinittext"),
            (0x2010, "tsc_init"),
            (0x3000, "_einittext"),
            (0x4000, "_end"),
        ] {
            symbols.add(TEXT + offset, name);
        }
        let symbols = std::sync::Arc::new(symbols.finish());
        let placed = |physical: Option<u64>| Placed {
            symbols: symbols.clone(),
            slide: SLIDE,
            physical: physical.map(|at| at.wrapping_sub(TEXT)),
            image: (TEXT, TEXT + 0x4000),
        };
        let memory = crate::memory::map(4 << 20).unwrap();
        let call = [0xE8, 0, 0, 0, 0];
        memory
            .write_slice(&call, GuestAddress(0x10_0000 + 0x220))
            .unwrap();
        let called = |from: u64, by: u64, physical| {
            let mut culprits = [Culprit {
                caller: Some(TEXT + SLIDE + by),
                ..at(TEXT + SLIDE + from)
            }];
            of_linux(&mut culprits, Some(&placed(physical)), &[], &memory);
            let [culprit] = culprits;
            assert_eq!(culprit.caller.is_some(), culprit.called_from.is_some());
            culprit.called_from
        };
        let deadline = Some("lapic_next_deadline+0x25".to_owned());
        let there = Some(0x10_0000);
        assert_eq!(called(0x104, 0x225, there), deadline);
        assert_eq!(called(0x104, 0x226, there), None, "behind no CALL");
        assert_eq!(
            called(0x104, 0x226, None).as_deref(),
            Some("lapic_next_deadline+0x26")
        );
        assert_eq!(called(0x304, 0x225, there), None, "no primitive");
        assert_eq!(called(0x104, 0x1008, there), None, "data");
        assert_eq!(
            called(0x104, 0x2018, there).as_deref(),
            Some("tsc_init+0x8")
        );
        assert_eq!(called(0x104, 0x225, Some(u64::MAX)), None, "no memory");
        // Where no kernel is, nobody is called by anybody.
        let mut culprits = [Culprit {
            caller: Some(TEXT),
            ..at(0x40_0000)
        }];
        of_linux(&mut culprits, None, &[], &memory);
        assert_eq!(culprits[0].caller, None);
    }

    #[test]
    fn what_differs_by_nothing_is_one() {
        let mut culprits = vec![at(1), at(2), at(1), at(3), at(2)];
        culprits[3].caller = Some(7);
        let mut early = Accounts {
            culprits: vec![1, 2, 3],
            ..Accounts::default()
        };
        let mut late = Accounts {
            culprits: vec![1, 2, 3, 4, 5],
            culprit_cycles: vec![10, 20, 30, 40, 50],
            ..Accounts::default()
        };
        merge(&mut culprits, [&mut early, &mut late].into_iter());
        let mut expected = [at(1), at(2), at(3)];
        expected[2].caller = Some(7);
        assert_eq!(culprits, expected);
        assert_eq!(early.culprits, [4, 2]);
        assert_eq!(late.culprits, [4, 7, 4]);
        assert_eq!(late.culprit_cycles, [40, 70, 40]);
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
