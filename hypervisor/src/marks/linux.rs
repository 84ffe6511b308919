//! The milestones of a Linux kernel's boot, in order (linux/init/main.c).

use vm_memory::{Bytes, GuestAddress};

use crate::memory::Memory;
use crate::symbols::Placed;

/// Where a milestone of the kernel's own code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// At the first of these symbols that there is.
    Symbol(&'static [&'static str]),
    /// At the first function of the table between these two symbols (linux/include/linux/init.h).
    Initcalls(&'static str, &'static str),
}

/// From the kernel's first function in C to the last thing it does before it executes init. `do_initcalls`
/// has no function for a level, so that the first of each level's functions stands for it.
pub(super) const SEQUENCE: [(&str, Where); 14] = [
    ("start_kernel", Where::Symbol(&["start_kernel"])),
    ("rest_init", Where::Symbol(&["rest_init"])),
    (
        "initcalls early",
        Where::Initcalls("__initcall_start", "__initcall0_start"),
    ),
    (
        "initcalls 0 pure",
        Where::Initcalls("__initcall0_start", "__initcall1_start"),
    ),
    (
        "initcalls 1 core",
        Where::Initcalls("__initcall1_start", "__initcall2_start"),
    ),
    (
        "initcalls 2 postcore",
        Where::Initcalls("__initcall2_start", "__initcall3_start"),
    ),
    (
        "initcalls 3 arch",
        Where::Initcalls("__initcall3_start", "__initcall4_start"),
    ),
    (
        "initcalls 4 subsys",
        Where::Initcalls("__initcall4_start", "__initcall5_start"),
    ),
    (
        "initcalls 5 fs",
        Where::Initcalls("__initcall5_start", "__initcallrootfs_start"),
    ),
    (
        "initcalls rootfs",
        Where::Initcalls("__initcallrootfs_start", "__initcall6_start"),
    ),
    (
        "initcalls 6 device",
        Where::Initcalls("__initcall6_start", "__initcall7_start"),
    ),
    (
        "initcalls 7 late",
        Where::Initcalls("__initcall7_start", "__initcall_end"),
    ),
    // kernel_init calls it behind the initcalls, with init's memory freed and the rest write-protected; it
    // has no function of its own for that.
    (
        "kernel_init done",
        Where::Symbol(&["rcu_end_inkernel_boot"]),
    ),
    (
        "exec of init",
        Where::Symbol(&["run_init_process", "kernel_execve", "do_execve"]),
    ),
];

/// The first instruction in user space: the last milestone.
pub(super) const USER_SPACE: &str = "user space";
/// What `exec` calls in the end: with where user space begins, in RSI.
pub(super) const START_THREAD: &str = "start_thread";

/// A place in the running kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Its run-time address.
    pub(super) address: u64,
    /// The symbol there.
    pub(super) symbol: String,
}

impl Where {
    /// Finds it, or says what is missing.
    pub(super) fn find(self, placed: &Placed, memory: &Memory) -> Result<Found, String> {
        match self {
            Self::Symbol(names) => {
                let found = names
                    .iter()
                    .find_map(|name| Some((placed.address(name)?, *name)));
                let (address, symbol) = found.ok_or_else(|| format!("no symbol {}", names[0]))?;
                Ok(Found {
                    address,
                    symbol: symbol.to_owned(),
                })
            }
            Self::Initcalls(start, end) => first_of(placed, memory, start, end),
        }
    }
}

/// The first function of a table: of 32 bits each, from where they stand to the function
/// (CONFIG_HAVE_ARCH_PREL32_RELOCATIONS, from 4.19 on), or addresses of 64 bits.
fn first_of(placed: &Placed, memory: &Memory, start: &str, end: &str) -> Result<Found, String> {
    let at = |name: &str| {
        placed
            .address(name)
            .ok_or_else(|| format!("no symbol {name}"))
    };
    let (first, last) = (at(start)?, at(end)?);
    let none = || format!("no function from {start} to {end}");
    let bytes = last
        .checked_sub(first)
        .filter(|&b| b >= 4)
        .ok_or_else(none)?;
    let linked = first.wrapping_sub(placed.slide);
    let physical = placed.physical.ok_or_else(none)?.wrapping_add(linked);
    let function = |address: u64| {
        let named = placed.resolve(address).filter(|named| named.offset == 0)?;
        is_code(placed, address.wrapping_sub(placed.slide)).then_some(())?;
        let symbol = named.name.to_owned();
        Some(Found { address, symbol })
    };
    let relative = memory.read_obj::<i32>(GuestAddress(physical)).ok();
    let relative = relative.map(|offset| first.wrapping_add_signed(offset.into()));
    let absolute = (bytes >= 8).then(|| memory.read_obj::<u64>(GuestAddress(physical)).ok());
    let mut addresses = relative.into_iter().chain(absolute.flatten());
    addresses.find_map(function).ok_or_else(none)
}

/// Whether there is code at a link-time address, as far as that is known.
fn is_code(placed: &Placed, address: u64) -> bool {
    let bounds = [("_text", "_etext"), ("_sinittext", "_einittext")];
    let bounds = bounds.map(|(start, end)| {
        let at = |name| placed.symbols.address(name);
        Some(at(start)?..at(end)?)
    });
    let mut known = bounds.into_iter().flatten().peekable();
    known.peek().is_none() || known.any(|code| code.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::Builder;
    use std::sync::Arc;

    const LINKED: u64 = 0xFFFF_FFFF_8100_0000;
    const SLIDE: u64 = 0x1260_0000;
    const PHYSICAL: u64 = 0x20_0000;

    fn placed() -> Placed {
        let mut builder = Builder::default();
        for (offset, name) in [
            (0, "_text"),
            (0x100, "start_kernel"),
            (0x200, "first_early"),
            (0x800, "_etext"),
            (0x1000, "__initcall_start"),
            (0x1004, "__initcall0_start"),
            (0x100C, "__initcall1_start"),
            (0x100C, "__initcall2_start"),
            (0x1010, "__initcall3_start"),
        ] {
            builder.add(LINKED + offset, name);
        }
        Placed {
            symbols: Arc::new(builder.finish()),
            slide: SLIDE,
            physical: Some(PHYSICAL.wrapping_sub(LINKED)),
            image: (LINKED, LINKED + 0x2000),
        }
    }

    fn find(level: (&'static str, &'static str), written: &[u8]) -> Result<Found, String> {
        let memory = crate::memory::map(4 << 20).unwrap();
        let placed = placed();
        let at = placed.address(level.0).unwrap() - SLIDE - LINKED + PHYSICAL;
        memory.write_slice(written, GuestAddress(at)).unwrap();
        Where::Initcalls(level.0, level.1).find(&placed, &memory)
    }

    #[test]
    fn the_first_of_a_level() {
        let expected = Ok(Found {
            address: LINKED + SLIDE + 0x200,
            symbol: "first_early".into(),
        });
        let early = ("__initcall_start", "__initcall0_start");
        assert_eq!(find(early, &(0x200_i32 - 0x1000).to_le_bytes()), expected);
        let pure = ("__initcall0_start", "__initcall1_start");
        assert_eq!(
            find(pure, &(LINKED + SLIDE + 0x200).to_le_bytes()),
            expected
        );
        let empty = ("__initcall1_start", "__initcall2_start");
        assert!(find(empty, &[]).unwrap_err().contains("no function"));
        // Into the middle of a function, into nowhere.
        let arch = ("__initcall2_start", "__initcall3_start");
        for offset in [0x201 - 0x100C, i32::MAX, i32::MIN, 0] {
            assert!(find(arch, &offset.to_le_bytes()).is_err(), "{offset}");
        }
        let missing = ("__initcall_start", "__initcall9_start");
        assert_eq!(
            find(missing, &[]),
            Err("no symbol __initcall9_start".into())
        );
    }

    #[test]
    fn symbols_are_found_where_the_kernel_runs() {
        let memory = crate::memory::map(4 << 20).unwrap();
        let found = Where::Symbol(&["nothing", "start_kernel"]).find(&placed(), &memory);
        assert_eq!(found.unwrap().address, LINKED + SLIDE + 0x100);
        let none = Where::Symbol(&["nothing"]).find(&placed(), &memory);
        assert_eq!(none, Err("no symbol nothing".into()));
    }
}
