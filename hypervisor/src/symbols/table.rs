//! The table: addresses in order, and their names in one string.

use std::fmt;

/// Most bytes of names, and most symbols: four times what the largest kernels have.
const NAMES_MAX: usize = 32 << 20;
const SYMBOLS_MAX: usize = 1 << 20;
/// Longest name that is kept whole: Linux's KSYM_NAME_LEN.
pub(super) const NAME_MAX: usize = 512;

/// A symbol, and how far behind it an address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named<'a> {
    /// The symbol.
    pub name: &'a str,
    /// Bytes from it.
    pub offset: u64,
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        match self.offset {
            0 => Ok(()),
            offset => write!(f, "+{offset:#x}"),
        }
    }
}

/// Symbols at the addresses that they were linked for: immutable.
#[derive(Debug, Default)]
pub struct Symbols {
    /// By address; several may have the same.
    addresses: Box<[u64]>,
    /// Of each: where its name begins in `names`; it ends where the next in `names` begins.
    starts: Box<[(u32, u16)]>,
    names: Box<str>,
}

impl Symbols {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    fn name_at(&self, place: usize) -> &str {
        let (start, length) = self.starts.get(place).copied().unwrap_or_default();
        let start = start as usize;
        self.names
            .get(start..start + usize::from(length))
            .unwrap_or_default()
    }

    /// Address of a name: the lowest, if several symbols are called so.
    pub fn address(&self, name: &str) -> Option<u64> {
        let may_be = |i: &usize| {
            self.starts
                .get(*i)
                .is_some_and(|s| usize::from(s.1) == name.len())
        };
        let mut places = (0..self.len()).filter(may_be);
        let place = places.find(|&i| self.name_at(i) == name)?;
        self.addresses.get(place).copied()
    }

    /// All that have a name of this kind, by address.
    pub fn find(&self, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = (u64, &str)> {
        self.iter().filter(move |(_, name)| wanted(name))
    }

    /// All of them, by address.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &str)> {
        let names = (0..self.len()).map(|i| self.name_at(i));
        self.addresses.iter().copied().zip(names)
    }

    /// What is at an address: the nearest symbol at or below it.
    pub fn name(&self, address: u64) -> Option<Named<'_>> {
        let behind = self.addresses.partition_point(|&a| a <= address);
        let at = *self.addresses.get(behind.checked_sub(1)?)?;
        let first = self.addresses[..behind].partition_point(|&a| a < at);
        // Of several at one address, the one that people gave a function: marks of sections and of
        // padding begin with an underscore.
        let mut names = (first..behind).map(|i| self.name_at(i));
        let name = names.clone().find(|name| !name.starts_with('_'));
        Some(Named {
            name: name.or_else(|| names.next())?,
            offset: address - at,
        })
    }
}

/// Collects symbols in any order.
#[derive(Debug, Default)]
pub struct Builder {
    symbols: Vec<(u64, u32, u16)>,
    names: String,
}

impl Builder {
    /// Adds one; not if there is no room, or if its name does not print. Whether it was added.
    pub fn add(&mut self, address: u64, name: &str) -> bool {
        let fits = self.symbols.len() < SYMBOLS_MAX && self.names.len() + name.len() <= NAMES_MAX;
        let printable = name.bytes().all(|b| b.is_ascii_graphic());
        if !fits || !printable || name.is_empty() || name.len() > NAME_MAX {
            return false;
        }
        let start = self.names.len() as u32;
        self.names.push_str(name);
        self.symbols.push((address, start, name.len() as u16));
        true
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// Moves all that were added, modulo 2^64.
    pub fn shift(&mut self, by: u64) {
        for (address, ..) in &mut self.symbols {
            *address = address.wrapping_add(by);
        }
    }

    /// The table.
    pub fn finish(mut self) -> Symbols {
        // Stable: what was added first comes first of those at one address.
        self.symbols.sort_by_key(|(address, ..)| *address);
        Symbols {
            addresses: self.symbols.iter().map(|s| s.0).collect(),
            starts: self.symbols.iter().map(|s| (s.1, s.2)).collect(),
            names: self.names.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(symbols: &[(u64, &str)]) -> Symbols {
        let mut builder = Builder::default();
        for (address, name) in symbols {
            builder.add(*address, name);
        }
        builder.finish()
    }

    #[test]
    fn names_and_addresses() {
        let symbols = table(&[
            (0x30, "c"),
            (0x10, "_start"),
            (0x10, "a"),
            (0x20, "_b"),
            (0x20, "__b"),
        ]);
        assert_eq!(symbols.address("c"), Some(0x30));
        assert_eq!(symbols.address("d"), None);
        let named = |address| symbols.name(address).map(|n| n.to_string());
        assert_eq!(named(0xF), None);
        assert_eq!(named(0x10).as_deref(), Some("a"));
        assert_eq!(named(0x2F).as_deref(), Some("_b+0xf"));
        assert_eq!(named(u64::MAX).as_deref(), Some("c+0xffffffffffffffcf"));
        assert_eq!(symbols.find(|n| n.starts_with('_')).count(), 3);
    }

    #[test]
    fn what_is_no_name_is_not_added() {
        let mut builder = Builder::default();
        for name in ["", "a b", "a\n", "\u{e4}", &"x".repeat(NAME_MAX + 1)] {
            assert!(!builder.add(1, name));
        }
        assert!(builder.finish().is_empty());
    }

    proptest! {
        #[test]
        fn the_nearest_below_is_found(mut addresses in proptest::collection::vec(0..1000_u64, 1..50), at in 0..1100_u64) {
            let mut builder = Builder::default();
            for address in &addresses {
                let name = format!("s{address}");
                builder.add(*address, &name);
            }
            let symbols = builder.finish();
            addresses.sort_unstable();
            let expected = addresses.iter().rev().find(|a| **a <= at);
            let found = symbols.name(at);
            prop_assert_eq!(found.map(|n| at - n.offset), expected.copied());
            if let Some(found) = found {
                let address = symbols.address(found.name);
                prop_assert_eq!(address, expected.copied());
            }
        }
    }
}
