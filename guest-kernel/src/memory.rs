//! RAM: where the heap lies, and pages that nobody has touched yet.

use core::ops::Range;

use crate::arch::paging::LARGE_PAGE;
use crate::machine::{List, RANGES_MAX};
use crate::start_info::MODULES_MAX;

/// Where the heap ends at the latest: room for the stacks of 254 CPUs.
const HEAP_END: u64 = 8 << 20;
/// Room for modules.
const MODULES: usize = MODULES_MAX as usize;
/// Every module may split a range.
const PIECES: usize = RANGES_MAX + MODULES;
const PAGE: u64 = 4096;

/// The modules' places.
pub type Modules = List<(u64, u64), MODULES>;
type Ram = List<(u64, u64), RANGES_MAX>;

/// RAM divided up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Division {
    /// For the heap: what follows the image.
    pub heap: Range<u64>,
    /// Whole large pages behind it, clear of modules, as (start, end).
    fresh: List<(u64, u64), PIECES>,
}

/// Divides RAM; `None` if the image does not lie in it.
pub fn divide(ram: &Ram, modules: &Modules, image: Range<u64>) -> Option<Division> {
    let (start, length) = *ram
        .as_slice()
        .iter()
        .find(|(start, length)| *start <= image.start && image.end - start <= *length)?;
    let behind = modules
        .as_slice()
        .iter()
        .filter(|m| m.1 > 0 && m.0.saturating_add(m.1) > image.end)
        .map(|m| m.0.max(image.end));
    let end = behind.fold((start + length).min(HEAP_END), u64::min);
    let heap = image.end.next_multiple_of(PAGE)..end & !(PAGE - 1);
    let mut fresh = List::new((0, 0));
    for (start, length) in ram.as_slice() {
        let end = start.saturating_add(*length) & !(LARGE_PAGE - 1);
        let start = (*start).max(heap.end.max(image.end));
        let Some(start) = start.checked_next_multiple_of(LARGE_PAGE) else {
            continue;
        };
        cut(start, end, modules.as_slice(), &mut fresh)?;
    }
    Some(Division { heap, fresh })
}

/// Pushes what of a range is left by modules, which are rounded to large pages.
fn cut(
    start: u64,
    end: u64,
    modules: &[(u64, u64)],
    into: &mut List<(u64, u64), PIECES>,
) -> Option<()> {
    let mut start = start;
    while start < end {
        // The lowest module that reaches into what is left.
        let next = modules
            .iter()
            .map(|m| (m.0 & !(LARGE_PAGE - 1), m.0.saturating_add(m.1)))
            .filter(|m| m.1 > start && m.0 < end)
            .min();
        let Some((from, to)) = next else {
            return into.push((start, end));
        };
        if from > start {
            into.push((start, from))?;
        }
        start = to.checked_next_multiple_of(LARGE_PAGE)?.max(start + 1);
    }
    Some(())
}

impl Division {
    /// How many fresh pages there are.
    pub fn fresh(&self) -> u64 {
        let pieces = self.fresh.as_slice().iter();
        pieces.map(|(start, end)| (end - start) / PAGE).sum()
    }

    /// Takes `count` fresh pages in one or more runs (start, pages), the highest first; each run
    /// is handed out downwards from its end. `None`, and nothing taken, if there are not as many.
    pub fn take(&mut self, count: u64, mut run: impl FnMut(u64, u64)) -> Option<()> {
        if self.fresh() < count {
            return None;
        }
        let mut left = count;
        while left > 0 {
            let (start, end) = self.fresh.pop()?;
            let pages = ((end - start) / PAGE).min(left);
            let from = end - pages * PAGE;
            if from > start {
                self.fresh.push((start, from))?;
            }
            run(from, pages);
            left -= pages;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const IMAGE: Range<u64> = MIB..MIB + 0x4_0000;

    fn list<const N: usize>(items: &[(u64, u64)]) -> List<(u64, u64), N> {
        let mut list = List::new((0, 0));
        for &item in items {
            list.push(item).unwrap();
        }
        list
    }

    #[test]
    fn a_small_machine_has_a_heap_and_no_fresh_pages() {
        let ram = list(&[(0, 0xA_0000), (MIB, MIB)]);
        let division = divide(&ram, &list(&[]), IMAGE).unwrap();
        assert_eq!(division.heap, IMAGE.end..2 * MIB);
        assert_eq!(division.fresh(), 0);
        let module = list(&[(2 * MIB - 0x1800, 0x1000)]);
        let division = divide(&ram, &module, IMAGE).unwrap();
        assert_eq!(division.heap, IMAGE.end..2 * MIB - 0x2000);
    }

    #[test]
    fn an_image_outside_ram() {
        assert_eq!(divide(&list(&[(0, MIB)]), &list(&[]), IMAGE), None);
        let covered = list(&[(MIB, 8 * MIB)]);
        let division = divide(&list(&[(0, 64 * MIB)]), &covered, IMAGE).unwrap();
        assert!(division.heap.is_empty(), "a module lies upon the image");
    }

    #[test]
    fn fresh_pages_come_from_the_top_and_keep_clear_of_modules() {
        let ram = list(&[(0, 64 * MIB), (4096 * MIB, 5 * MIB)]);
        let modules = list(&[(63 * MIB + 5, 7), (31 * MIB, MIB)]);
        let mut division = divide(&ram, &modules, IMAGE).unwrap();
        assert_eq!(division.heap.end, 8 * MIB);
        assert_eq!(division.fresh(), (64 - 8 - 2 - 2 + 4) * MIB / PAGE);
        let mut runs = Vec::new();
        assert!(
            division
                .take(1024 + 3, |start, pages| runs.push((start, pages)))
                .is_some()
        );
        assert_eq!(runs, [(4096 * MIB, 1024), (62 * MIB - 3 * PAGE, 3)]);
        let left = division.fresh();
        assert!(division.take(left + 1, |_, _| panic!("taken")).is_none());
        runs.clear();
        division.take(left, |s, p| runs.push((s, p))).unwrap();
        assert_eq!(
            runs.last(),
            Some(&(8 * MIB, 22 * MIB / PAGE)),
            "below the module"
        );
        assert_eq!(division.fresh(), 0);
    }

    proptest! {
        #[test]
        fn never_a_panic_and_never_upon_modules(
            ram in prop::collection::vec((any::<u64>(), any::<u64>()), 0..8),
            modules in prop::collection::vec((any::<u64>(), any::<u64>()), 0..8),
        ) {
            let mut all = vec![(0, 64 * MIB)];
            all.extend(ram.iter().map(|r| (r.0, r.1.min(u64::MAX - r.0))));
            let modules: Vec<_> = modules.iter().map(|r| (r.0, r.1.min(u64::MAX - r.0))).collect();
            if let Some(mut division) = divide(&list(&all), &list(&modules), IMAGE) {
                let count = division.fresh().min(100_000);
                let _ = division.take(count, |start, pages| {
                    assert!(modules.iter().all(|m| m.0 >= start + pages * PAGE || m.0 + m.1 <= start));
                });
            }
        }
    }
}
