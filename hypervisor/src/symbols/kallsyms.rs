//! kallsyms: the table of symbols that a Linux kernel carries in its read-only data (CONFIG_KALLSYMS),
//! found by its structure in an image that is unpacked and relocated.
//!
//! Source: linux/scripts/kallsyms.c, `write_src`; linux/kernel/kallsyms.c. Two orders are known:
//!
//! - up to 6.3: offsets, relative_base, num_syms, names, markers, (from 6.2: seqs_of_names,) token_table,
//!   token_index;
//! - from 6.4 on: num_syms, names, markers, token_table, token_index, offsets, relative_base, seqs_of_names.
//!
//! Each part begins at a multiple of 8. Names are compressed: a length, then so many tokens, each a string
//! of token_table. The image is a guest's: every byte is checked, and the work is bounded.

use super::table::NAME_MAX;

/// Number of tokens.
const TOKENS: usize = 256;
/// Bytes of token_index.
pub const INDEX_BYTES: usize = TOKENS * 2;
/// How much may lie before token_index and behind it: twice what the largest kernels have.
pub const BEFORE: usize = 12 << 20;
/// See [`BEFORE`].
pub const BEHIND: usize = 6 << 20;
/// Fewest and most symbols.
const SYMBOLS: std::ops::RangeInclusive<u64> = 16..=1 << 20;
/// Every so many symbols there is a marker.
const MARKED: usize = 256;
/// Bytes of names that are walked in all, before the search is given up.
const BUDGET: usize = 64 << 20;
/// Longest token.
const TOKEN_MAX: usize = 256;
/// The lowest address of a kernel's image (linux/Documentation/arch/x86/x86_64/mm.rst).
const KERNEL: u64 = 0xFFFF_FFFF_8000_0000;

/// A symbol as the kernel keeps it, at its run-time address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Where it is.
    pub address: u64,
    /// Its kind, as nm(1) has it.
    pub kind: u8,
    /// Its name.
    pub name: &'a str,
}

/// The table.
#[derive(Debug)]
pub struct Kallsyms<'a> {
    tokens: Tokens<'a>,
    /// From the first name on.
    names: &'a [u8],
    offsets: &'a [u8],
    base: u64,
    /// Offsets that are not negative are addresses, of data per CPU (CONFIG_KALLSYMS_ABSOLUTE_PERCPU).
    absolute: bool,
}

/// The strings that names are made of.
#[derive(Debug)]
struct Tokens<'a> {
    table: &'a [u8],
    ends: [(u16, u16); TOKENS],
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn aligned(at: usize) -> usize {
    at.next_multiple_of(8)
}

/// Whether token_index may begin here: 0, then rising, by no more than a token may have.
pub fn may_be_index(bytes: &[u8]) -> bool {
    let Some(first) = word(bytes, 0) else {
        return false;
    };
    // Most of memory is told apart by its first word.
    if first & 0xFFFF != 0 || first >> 16 == 0 {
        return false;
    }
    let Some(index) = bytes.get(..INDEX_BYTES) else {
        return false;
    };
    let mut last = 0;
    let mut numbers = index
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]));
    numbers.next();
    numbers.all(|n| {
        let rises = n > last && usize::from(n - last) <= TOKEN_MAX;
        last = n;
        rises
    })
}

impl<'a> Tokens<'a> {
    /// Of token_index at `at`, the tokens before it; and where token_table begins.
    fn before(bytes: &'a [u8], at: usize) -> Option<(Self, usize)> {
        let index = bytes.get(at..at.checked_add(INDEX_BYTES)?)?;
        let mut starts = index
            .chunks_exact(2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]));
        let mut ends = [(0, 0); TOKENS];
        for (end, start) in ends.iter_mut().zip(&mut starts) {
            end.0 = start;
        }
        let last = usize::from(ends[TOKENS - 1].0);
        // Where the last token ends is not told: the table begins so far before token_index.
        for length in (aligned(last + 2)..=aligned(last + TOKEN_MAX + 1)).step_by(8) {
            let start = at.checked_sub(length)?;
            let table = &bytes[start..at];
            if let Some(ends) = Self::ends(table, ends) {
                return Some((Self { table, ends }, start));
            }
        }
        None
    }

    /// The end of each token, if that is what `table` has.
    fn ends(table: &[u8], mut ends: [(u16, u16); TOKENS]) -> Option<[(u16, u16); TOKENS]> {
        for i in 0..TOKENS {
            let start = usize::from(ends[i].0);
            let rest = table.get(start..)?;
            let length = rest.iter().take(TOKEN_MAX + 1).position(|&b| b == 0)?;
            if !rest[..length].iter().all(u8::is_ascii_graphic) {
                return None;
            }
            let end = start + length;
            match ends.get(i + 1) {
                Some(next) if usize::from(next.0) != end + 1 => return None,
                Some(_) => {}
                None if rest[length..].len() > 8 || rest[length..].iter().any(|&b| b != 0) => {
                    return None;
                }
                None => {}
            }
            ends[i].1 = u16::try_from(end).ok()?;
        }
        Some(ends)
    }

    fn get(&self, token: u8) -> &'a [u8] {
        let (start, end) = self.ends[usize::from(token)];
        self.table
            .get(usize::from(start)..usize::from(end))
            .unwrap_or_default()
    }
}

/// The tokens of the name at the start of `names`, and what follows it. A length of 128 or more has its
/// upper bits in a second byte (from 6.1 on).
fn first_name(names: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&low, rest) = names.split_first()?;
    let (length, rest) = match low {
        0 => return None,
        1..0x80 => (usize::from(low), rest),
        _ => {
            let (&high, rest) = rest.split_first()?;
            (usize::from(low & 0x7F) | usize::from(high) << 7, rest)
        }
    };
    (length <= NAME_MAX).then_some(())?;
    rest.split_at_checked(length)
}

impl<'a> Kallsyms<'a> {
    /// Finds the table of which token_index begins at `at`.
    pub fn at(bytes: &'a [u8], at: usize) -> Option<Self> {
        let (tokens, table) = Tokens::before(bytes, at)?;
        let mut budget = BUDGET;
        let mut place = table & !7;
        loop {
            place = place.checked_sub(8)?;
            let count = word(bytes, place)?;
            if !SYMBOLS.contains(&count) {
                continue;
            }
            let count = count as usize;
            let names = &bytes[place + 8..table];
            if !is_marked(names, count, &mut budget) {
                if budget == 0 {
                    return None;
                }
                continue;
            }
            let length = aligned(count * 4);
            let earlier = place
                .checked_sub(8)
                .and_then(|base| Some((base.checked_sub(length)?, base)));
            let later = at + INDEX_BYTES;
            let later = Some((later, later + length));
            for (offsets, base) in [earlier, later].into_iter().flatten() {
                let Some(base) = word(bytes, base) else {
                    continue;
                };
                let offsets = bytes.get(offsets..offsets.saturating_add(count * 4));
                let Some(offsets) = offsets else { continue };
                if let Some(absolute) = is_in_order(base, offsets) {
                    return Some(Self {
                        tokens,
                        names,
                        offsets,
                        base,
                        absolute,
                    });
                }
            }
            return None;
        }
    }

    /// How many symbols there are.
    pub fn len(&self) -> usize {
        self.offsets.len() / 4
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Shows every symbol of the kernel's image to `each`, by address; data per CPU are not in it.
    pub fn each(&self, mut each: impl FnMut(Entry<'_>)) {
        let mut names = self.names;
        let mut text = Vec::with_capacity(NAME_MAX + 1);
        for offset in self.offsets.chunks_exact(4) {
            let Some((tokens, rest)) = first_name(names) else {
                return;
            };
            names = rest;
            let offset = i32::from_le_bytes([offset[0], offset[1], offset[2], offset[3]]);
            let Some(address) = address(self.base, offset, self.absolute) else {
                continue;
            };
            text.clear();
            for &token in tokens {
                let more = self.tokens.get(token);
                if text.len() + more.len() > NAME_MAX + 1 {
                    break;
                }
                text.extend_from_slice(more);
            }
            let Some((&kind, name)) = text.split_first() else {
                continue;
            };
            if let Ok(name) = std::str::from_utf8(name) {
                each(Entry {
                    address,
                    kind,
                    name,
                });
            }
        }
    }
}

/// The address of a symbol in the kernel's image.
fn address(base: u64, offset: i32, absolute: bool) -> Option<u64> {
    match absolute {
        true if offset >= 0 => None,
        true => Some(base.wrapping_sub(1).wrapping_sub(offset as i64 as u64)),
        false => Some(base.wrapping_add(u64::from(offset as u32))),
    }
}

/// Whether these offsets are a kernel's, rising; and whether those that are not negative are addresses.
fn is_in_order(base: u64, offsets: &[u8]) -> Option<bool> {
    (base >= KERNEL).then_some(())?;
    let offsets = || {
        let chunks = offsets.chunks_exact(4);
        chunks.map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    };
    let absolute = offsets().any(|offset| offset < 0);
    let mut last = KERNEL;
    let mut distinct = 0_usize;
    for offset in offsets() {
        if let Some(address) = address(base, offset, absolute) {
            if address < last {
                return None;
            }
            distinct += usize::from(address > last);
            last = address;
        }
    }
    // Zeros are in order too.
    (distinct > 8).then_some(absolute)
}

/// Whether so many names are followed by their markers: where every 256th of them begins, in words of 32
/// bits (of 64 before 4.20).
fn is_marked(names: &[u8], count: usize, budget: &mut usize) -> bool {
    let mut rest = names;
    let mut marks = Vec::with_capacity(count.div_ceil(MARKED));
    for i in 0..count {
        if i % MARKED == 0 {
            marks.push(names.len() - rest.len());
        }
        let Some((_, behind)) = first_name(rest) else {
            return false;
        };
        let walked = rest.len() - behind.len();
        if walked > *budget {
            *budget = 0;
            return false;
        }
        *budget -= walked;
        rest = behind;
    }
    // Names begin at a multiple of 8, as all parts do.
    let at = aligned(names.len() - rest.len());
    let narrow = |(i, mark): (usize, &usize)| half(names, at + 4 * i) == u32::try_from(*mark).ok();
    let wide = |(i, mark): (usize, &usize)| word(names, at + 8 * i) == u64::try_from(*mark).ok();
    marks.iter().enumerate().all(narrow) || marks.iter().enumerate().all(wide)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The order of the parts.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(crate) enum Order {
        To63 { seqs: bool },
        From64,
    }

    /// A table as scripts/kallsyms.c writes it, with tokens for the letters alone and a few pairs.
    pub(crate) fn table(order: Order, base: u64, symbols: &[(i32, &str)]) -> Vec<u8> {
        fn part(out: &mut Vec<u8>, bytes: &[u8]) {
            out.resize(aligned(out.len()), 0);
            out.extend_from_slice(bytes);
        }
        let mut tokens: Vec<String> = (0..TOKENS).map(|i| format!("~{i}")).collect();
        for c in (33..127_u8).map(char::from) {
            tokens[c as usize] = c.to_string();
        }
        tokens[1] = "init".into();
        let (mut names, mut marks) = (Vec::new(), Vec::new());
        for (i, (_, name)) in symbols.iter().enumerate() {
            if i % MARKED == 0 {
                marks.extend_from_slice(&(names.len() as u32).to_le_bytes());
            }
            let packed = name.replace("init", "\u{1}");
            match packed.len() {
                n @ 0..0x80 => names.push(n as u8),
                n => names.extend_from_slice(&[n as u8 & 0x7F | 0x80, (n >> 7) as u8]),
            }
            names.extend_from_slice(packed.as_bytes());
        }
        let (mut strings, mut index) = (Vec::new(), Vec::new());
        for token in &tokens {
            index.extend_from_slice(&(strings.len() as u16).to_le_bytes());
            strings.extend_from_slice(token.as_bytes());
            strings.push(0);
        }
        let offsets: Vec<u8> = symbols.iter().flat_map(|s| s.0.to_le_bytes()).collect();
        let (base, count) = (base.to_le_bytes(), (symbols.len() as u32).to_le_bytes());
        let seqs = vec![0x5A; symbols.len() * 3];
        let mut out = vec![0xC3; 4096];
        match order {
            Order::To63 { seqs: has } => {
                let last = if has { &seqs[..] } else { &[] };
                for bytes in [
                    &offsets[..],
                    &base,
                    &count,
                    &names,
                    &marks,
                    last,
                    &strings,
                    &index,
                ] {
                    part(&mut out, bytes);
                }
            }
            Order::From64 => {
                for bytes in [
                    &count[..],
                    &names,
                    &marks,
                    &strings,
                    &index,
                    &offsets,
                    &base,
                    &seqs,
                ] {
                    part(&mut out, bytes);
                }
            }
        }
        out.resize(aligned(out.len()) + 4096, 0xC3);
        out
    }

    /// Finds a table as who looks through memory does.
    pub(crate) fn found(bytes: &[u8]) -> Option<Vec<(u64, String)>> {
        let mut places = (0..bytes.len())
            .step_by(8)
            .filter(|&at| may_be_index(&bytes[at..]));
        let table = places.find_map(|at| Kallsyms::at(bytes, at))?;
        let mut all = Vec::new();
        table.each(|e| all.push((e.address, format!("{}{}", char::from(e.kind), e.name))));
        Some(all)
    }

    pub(crate) const BASE: u64 = 0xFFFF_FFFF_9A00_0000;
    const ORDERS: [Order; 3] = [
        Order::To63 { seqs: false },
        Order::To63 { seqs: true },
        Order::From64,
    ];

    fn names(count: usize) -> Vec<String> {
        (0..count)
            .map(|i| format!("tinit_{i}{}", "x".repeat(i % 200)))
            .collect()
    }

    #[test]
    fn every_order_is_read() {
        for order in ORDERS {
            for count in [16, 256, 257, 1000] {
                let names = names(count);
                // Two of data per CPU, then the image's.
                let offset = |i: usize| if i < 2 { i as i32 } else { -1 - 16 * i as i32 };
                let symbols: Vec<_> = names
                    .iter()
                    .enumerate()
                    .map(|(i, n)| (offset(i), &**n))
                    .collect();
                let found = found(&table(order, BASE, &symbols)).expect("a table");
                assert_eq!(found.len(), count - 2, "{order:?}");
                assert_eq!(found[0], (BASE + 32, names[2].clone()));
                let plain: Vec<_> = names
                    .iter()
                    .enumerate()
                    .map(|(i, n)| (16 * i as i32, &**n))
                    .collect();
                let found = super::tests::found(&table(order, BASE, &plain)).expect("a table");
                assert_eq!(found.len(), count);
                assert_eq!(
                    found[count - 1],
                    (BASE + 16 * (count as u64 - 1), names[count - 1].clone())
                );
            }
        }
    }

    #[test]
    fn what_is_no_table_is_none() {
        assert_eq!(found(&[0; 100_000]), None);
        let names = names(300);
        let down: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(i, n)| (5000 - 16 * i as i32, &**n))
            .collect();
        assert_eq!(
            found(&table(Order::From64, BASE, &down)),
            None,
            "not in order"
        );
        let up: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(i, n)| (16 * i as i32, &**n))
            .collect();
        assert_eq!(
            found(&table(Order::From64, 0x1000, &up)),
            None,
            "no kernel's base"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_damage_is_survived(
            order in 0..3_usize,
            count in 16..600_usize,
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..20),
            cut in any::<proptest::sample::Index>(),
        ) {
            let names = names(count);
            let symbols: Vec<_> = names.iter().enumerate().map(|(i, n)| (16 * i as i32, &**n)).collect();
            let mut bytes = table(ORDERS[order], BASE, &symbols);
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let end = cut.index(bytes.len());
            for bytes in [&bytes[..], &bytes[..end], &bytes[end & !7..]] {
                if let Some(found) = found(bytes) {
                    prop_assert!(found.len() <= 1 << 20);
                    prop_assert!(found.iter().all(|(a, _)| *a >= KERNEL));
                }
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let _ = found(&bytes);
            for at in (0..bytes.len()).step_by(8) {
                let _ = Kallsyms::at(&bytes, at);
            }
        }
    }

    /// A whole kernel, unpacked: `EXITVISOR_VMLINUX=FILE cargo test -p exitvisor a_real_kernel -- --nocapture`.
    #[test]
    fn a_real_kernel_s_table_is_found() {
        let Some(path) = std::env::var_os("EXITVISOR_VMLINUX") else {
            return;
        };
        let found = found(&std::fs::read(path).expect("a kernel")).expect("a table");
        println!("{} symbols", found.len());
        let wanted = ["start_kernel", "rest_init", "start_thread"];
        for name in wanted {
            assert!(found.iter().any(|(_, n)| n[1..] == *name), "{name}");
        }
    }
}
