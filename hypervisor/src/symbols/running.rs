//! The symbols of a kernel that is about to run: its own table, read from guest memory.

use vm_memory::{Bytes, GuestAddress};

use super::is_wanted;
use super::kallsyms::{self, BEFORE, BEHIND, INDEX_BYTES, Kallsyms};
use super::table::{Builder, Symbols};
use crate::memory::Memory;

/// How much is looked through at a time.
const WINDOW: usize = 256 << 10;
/// How often something may look like a table without being one: a guest could fill its memory with such.
const PATIENCE: usize = 8;
/// What every kernel calls its first byte.
pub const TEXT: &str = "_text";

/// The table of the kernel whose image lies at these guest-physical addresses, by link-time address, and
/// its slide: what a run-time address is more. The image is linked for `text`.
pub fn read(memory: &Memory, image: (u64, u64), text: u64) -> Option<(Symbols, u64)> {
    let mut window = vec![0; WINDOW + INDEX_BYTES];
    let mut patience = PATIENCE;
    let mut start = image.0.checked_next_multiple_of(8)?;
    while start < image.1 {
        let wanted = usize::try_from(image.1 - start)
            .unwrap_or(usize::MAX)
            .min(window.len());
        let window = &mut window[..wanted];
        memory.read_slice(window, GuestAddress(start)).ok()?;
        for at in (0..wanted.min(WINDOW)).step_by(8) {
            if !kallsyms::may_be_index(&window[at..]) {
                continue;
            }
            if let Some(found) = table(memory, image, start + at as u64, text) {
                return Some(found);
            }
            patience = patience.checked_sub(1)?;
        }
        start += WINDOW as u64;
    }
    None
}

/// The table whose token_index lies at `index`.
fn table(memory: &Memory, image: (u64, u64), index: u64, text: u64) -> Option<(Symbols, u64)> {
    // A multiple of 8 before it, as all its parts are.
    let start = image
        .0
        .max(index.saturating_sub(BEFORE as u64))
        .next_multiple_of(8);
    let end = image.1.min(index.saturating_add(BEHIND as u64));
    let mut bytes = vec![0; usize::try_from(end.checked_sub(start)?).ok()?];
    memory.read_slice(&mut bytes, GuestAddress(start)).ok()?;
    let kallsyms = Kallsyms::at(&bytes, usize::try_from(index.checked_sub(start)?).ok()?)?;
    let mut builder = Builder::default();
    let mut runs = None;
    kallsyms.each(|symbol| {
        if symbol.name == TEXT {
            runs = Some(symbol.address);
        }
        if is_wanted(symbol.kind, symbol.name) {
            builder.add(symbol.address, symbol.name);
        }
    });
    let slide = runs?.wrapping_sub(text);
    builder.shift(slide.wrapping_neg());
    Some((builder.finish(), slide))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::kallsyms::tests::{BASE, Order, table as written};

    const LINKED: u64 = 0xFFFF_FFFF_8100_0000;

    fn kernel(order: Order) -> Vec<u8> {
        let names: Vec<String> = (0..500).map(|i| format!("tf{i}")).collect();
        let mut symbols: Vec<_> = (0..500)
            .map(|i| (16 * i, names[i as usize].as_str()))
            .collect();
        symbols.insert(0, (0, "T_text"));
        written(order, BASE, &symbols)
    }

    #[test]
    fn a_kernel_s_table_is_found_wherever_it_lies() {
        for (order, at) in [
            (Order::From64, 0x20_0000),
            (
                Order::To63 { seqs: false },
                0x20_0000 + WINDOW as u64 - 0x2000,
            ),
        ] {
            let memory = crate::memory::map(8 << 20).unwrap();
            let bytes = kernel(order);
            memory.write_slice(&bytes, GuestAddress(at)).unwrap();
            let (symbols, slide) = read(&memory, (0x20_0000, 0x80_0000), LINKED).unwrap();
            assert_eq!(slide, BASE - LINKED);
            assert_eq!(symbols.address("f7"), Some(LINKED + 7 * 16));
            assert_eq!(symbols.len(), 501);
        }
    }

    #[test]
    fn memory_without_a_kernel_has_none() {
        let memory = crate::memory::map(8 << 20).unwrap();
        assert!(read(&memory, (0x20_0000, 0x80_0000), LINKED).is_none());
        assert!(read(&memory, (0x20_0000, u64::MAX), LINKED).is_none());
        // Nothing but what looks like token_index.
        let index: Vec<u8> = (0..256_u16).flat_map(|i| (i * 3).to_le_bytes()).collect();
        for at in (0x10_0000..0x70_0000_u64).step_by(512) {
            memory.write_slice(&index, GuestAddress(at)).unwrap();
        }
        assert!(read(&memory, (0x10_0000, 0x80_0000), LINKED).is_none());
    }
}
