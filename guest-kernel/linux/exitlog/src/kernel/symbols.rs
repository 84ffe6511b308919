//! The kernel's symbols, as `/proc/kallsyms` tells them.

use std::fs;

use super::Error;

const FILE: &str = "/proc/kallsyms";

/// A symbol: where it is, and how far it is to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    pub(super) start: u64,
    pub(super) size: u64,
}

/// All symbols.
#[derive(Debug)]
pub(super) struct Symbols {
    text: Vec<u8>,
    /// Every address that is one's, in order.
    addresses: Vec<u64>,
}

impl Symbols {
    /// Reads them. An error if the kernel hides their addresses.
    pub(super) fn read() -> Result<Self, Error> {
        let text = fs::read(FILE).map_err(|why| Error::Read { file: FILE, why })?;
        Self::parse(&text)
    }

    /// From lines of `ffffffff81000000 T name`.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Error> {
        let mut addresses: Vec<u64> = lines(text).map(|(address, _)| address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        // Zeros for everyone whom kptr_restrict does not trust.
        if addresses.last().is_none_or(|last| *last == 0) {
            return Err(Error::Hidden);
        }
        let text = text.to_owned();
        Ok(Self { text, addresses })
    }

    /// Those of this name.
    pub(super) fn named(&self, name: &str) -> Vec<Symbol> {
        let starts = lines(&self.text)
            .filter(|(_, found)| *found == name.as_bytes())
            .map(|(start, _)| start);
        let symbol = |start| {
            let next = self.addresses.partition_point(|address| *address <= start);
            let end = self.addresses.get(next).copied().unwrap_or(u64::MAX);
            Symbol {
                start,
                size: end - start,
            }
        };
        starts.map(symbol).collect()
    }
}

/// Address and name of each line that has both.
fn lines(text: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut words = line.split(u8::is_ascii_whitespace);
        let address = std::str::from_utf8(words.next()?).ok()?;
        let address = u64::from_str_radix(address, 16).ok()?;
        Some((address, words.nth(1)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_have_a_size() {
        let text = b"ffffffff81000010 t b\nffffffff81000000 T a\nrubbish\nffffffff81000010 t c\n\
                     ffffffffc0000000 t a\t[module]";
        let symbols = Symbols::parse(text).unwrap();
        let size = |name| {
            let found = symbols.named(name);
            found.iter().map(|symbol| symbol.size).collect::<Vec<_>>()
        };
        assert_eq!(size("a"), [0x10, u64::MAX - 0xFFFF_FFFF_C000_0000]);
        assert_eq!(size("b"), size("c"));
        assert!(size("d").is_empty());
    }

    #[test]
    fn hidden_addresses_are_told() {
        for text in [&b"0000000000000000 T a\n0000000000000000 t b\n"[..], b""] {
            assert!(matches!(Symbols::parse(text), Err(Error::Hidden)));
        }
    }
}
