//! Symbols: what a guest's addresses are called, and where a name is.
//!
//! A [`Symbols`] table is made once, from a file or from the guest's memory, and never changes. Where the
//! kernel runs is another matter (KASLR), and is known only once it runs: [`KernelMap`] keeps both, is
//! written once, and read by anybody.

pub mod files;
pub mod kallsyms;
pub mod running;
mod table;

use std::sync::{Arc, OnceLock};

pub use table::{Builder, Named, Symbols};

/// What is kept of a kernel's symbols: code, and the bounds of what is looked up in it. Data would be as
/// much again.
fn is_wanted(kind: u8, name: &str) -> bool {
    let is_bound = |name: &str| {
        let bounds = [
            "_text",
            "_etext",
            "_end",
            "_sinittext",
            "_einittext",
            "initial_code",
        ];
        bounds.contains(&name) || name.starts_with("__initcall") && name.ends_with("_start")
    };
    matches!(kind, b't' | b'T' | b'w' | b'W') || is_bound(name) || name == "__initcall_end"
}

/// A kernel's symbols, and where it has been put.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Its symbols, at the addresses that it was linked for.
    pub symbols: Arc<Symbols>,
    /// Run-time address minus link-time address, modulo 2^64.
    pub slide: u64,
    /// Where it runs before it has paging of its own: physical address minus link-time address, modulo
    /// 2^64; `None` if that is not known.
    pub physical: Option<u64>,
    /// Link-time addresses that are the kernel's image: first, and behind the last.
    pub image: (u64, u64),
}

impl Placed {
    /// The run-time address of a name.
    pub fn address(&self, name: &str) -> Option<u64> {
        Some(self.symbols.address(name)?.wrapping_add(self.slide))
    }

    /// Where it has its code at run time, and that of its start: first address and length.
    pub fn code(&self) -> Option<[(u64, u64); 2]> {
        let range = |first: &str, end: &str| {
            let (first, end) = (self.address(first)?, self.address(end)?);
            Some((first, end.wrapping_sub(first)))
        };
        let init = range("_sinittext", "_einittext").unwrap_or((0, 0));
        Some([range("_text", "_etext")?, init])
    }

    /// What is at a run-time address; also at a physical one, where the kernel runs mapped to itself.
    pub fn resolve(&self, address: u64) -> Option<Named<'_>> {
        let slides = [Some(self.slide), self.physical];
        let mut linked = slides
            .into_iter()
            .flatten()
            .map(|s| address.wrapping_sub(s));
        let linked = linked.find(|a| (self.image.0..self.image.1).contains(a))?;
        self.symbols.name(linked)
    }
}

/// The symbols of the kernel that runs in a VM: nothing, until somebody knows them.
#[derive(Debug, Default)]
pub struct KernelMap(OnceLock<Placed>);

impl KernelMap {
    /// Tells them, once; whether they were not known before.
    pub fn set(&self, placed: Placed) -> bool {
        self.0.set(placed).is_ok()
    }

    /// What is known.
    pub fn get(&self) -> Option<&Placed> {
        self.0.get()
    }

    /// What is at a run-time address, if that is known.
    pub fn resolve(&self, address: u64) -> Option<Named<'_>> {
        self.get()?.resolve(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_found_where_it_runs() {
        let mut builder = Builder::default();
        for (address, name) in [
            (0xFFFF_FFFF_8100_0000, "_text"),
            (0xFFFF_FFFF_8100_1000, "f"),
        ] {
            assert!(builder.add(address, name));
        }
        let map = KernelMap::default();
        assert_eq!(map.resolve(0xFFFF_FFFF_8100_0000), None);
        let placed = Placed {
            symbols: Arc::new(builder.finish()),
            slide: 0x20_0000,
            physical: Some(0x400_0000_u64.wrapping_sub(0xFFFF_FFFF_8100_0000)),
            image: (0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8100_2000),
        };
        assert!(map.set(placed.clone()));
        assert!(!map.set(placed), "once");
        let shown = |address| map.resolve(address).map(|n| n.to_string());
        assert_eq!(shown(0xFFFF_FFFF_8120_1004).as_deref(), Some("f+0x4"));
        assert_eq!(shown(0x400_1004).as_deref(), Some("f+0x4"));
        assert_eq!(shown(0xFFFF_FFFF_8120_0000).as_deref(), Some("_text"));
        assert_eq!(shown(0xFFFF_FFFF_8120_2000), None);
        assert_eq!(shown(0xFFFF_FFFF_8110_1004), None);
        assert_eq!(map.get().unwrap().address("f"), Some(0xFFFF_FFFF_8120_1000));
    }
}
