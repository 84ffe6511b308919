//! Page-table work, as a kernel does it: pages are mapped, touched, moved to other frames, write
//! protected and taken away, and two address spaces are switched between. With nested paging none
//! of it exits; a KVM that shadows page tables has to see all of it.
//!
//! Every word that is read through a mapping is the one that was written to that frame last: a
//! translation that should have been forgotten shows.

use crate::arch::address_space::{Rights, Space, Spaces};
use crate::arch::fault::Fault;

/// INVLPGs per page: moved, protected, unprotected, taken away.
pub const FLUSHES: u64 = 4;
/// Switches of address space per page.
pub const SWITCHES: u64 = 2;
/// Switches besides: to the first space, and back to the kernel's own.
pub const SWITCHES_BESIDES: u64 = 2;

const PAGE_FAULT: u8 = 14;
/// Error code of a page fault (SDM vol. 3A, 4.7): the page was there; it was a write.
const PRESENT: u32 = 1;
const WRITE: u32 = 2;

/// What does it: the machine, or a test's.
pub trait Mmu {
    /// Writes a page's entry.
    fn map(&mut self, space: Space, page: u64, frame: u64, rights: Rights);
    /// Clears it.
    fn unmap(&mut self, space: Space, page: u64);
    /// INVLPG.
    fn forget(&mut self, page: u64);
    /// MOV CR3.
    fn enter(&mut self, space: Space);
    /// MOV CR3 of the kernel's own root.
    fn leave(&mut self);
    /// Reads a page's first word.
    fn read(&mut self, page: u64) -> Result<u64, Fault>;
    /// Writes it.
    fn write(&mut self, page: u64, value: u64) -> Result<(), Fault>;
}

impl Mmu for Spaces {
    fn map(&mut self, space: Space, page: u64, frame: u64, rights: Rights) {
        Spaces::map(self, space, page, frame, rights);
    }
    fn unmap(&mut self, space: Space, page: u64) {
        Spaces::unmap(self, space, page);
    }
    fn forget(&mut self, page: u64) {
        Spaces::forget(self, page);
    }
    fn enter(&mut self, space: Space) {
        Spaces::enter(self, space);
    }
    fn leave(&mut self) {
        Spaces::leave(self);
    }
    fn read(&mut self, page: u64) -> Result<u64, Fault> {
        Spaces::read(self, page)
    }
    fn write(&mut self, page: u64, value: u64) -> Result<(), Fault> {
        Spaces::write(self, page, value)
    }
}

/// What went wrong, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The step.
    pub step: &'static str,
    /// The page.
    pub page: u64,
    /// What was found.
    pub found: &'static str,
}

/// The word that a frame holds after it was written so many times.
pub const fn stamp(frame: u64, writes: u64) -> u64 {
    // Odd, so that no zeroed memory and no entry of a table looks like one.
    (frame << 8 | writes) << 1 | 1
}

/// Does it for so many pages, with one frame more; ends in the kernel's own address space.
pub fn run(mmu: &mut impl Mmu, pages: u64) -> Result<(), Wrong> {
    mmu.enter(Space::One);
    let outcome = steps(mmu, pages);
    mmu.leave();
    outcome
}

fn steps(mmu: &mut impl Mmu, pages: u64) -> Result<(), Wrong> {
    // A page begins at the frame of its number in both spaces; in the first it moves to the next.
    for page in 0..pages {
        mmu.map(Space::One, page, page, Rights::Write);
        mmu.map(Space::Other, page, page, Rights::Write);
    }
    for page in 0..pages {
        touch(mmu, "touch", page, page, 0)?;
    }
    for page in 0..pages {
        let frame = page + 1;
        mmu.map(Space::One, page, frame, Rights::Write);
        mmu.forget(page);
        // The last frame is new; the others were written by the page that had them.
        touch(mmu, "remap", page, frame, u64::from(frame < pages))?;
    }
    for page in 0..pages {
        protect(mmu, page, page + 1, 1 + u64::from(page + 1 < pages))?;
    }
    for page in 0..pages {
        mmu.enter(Space::Other);
        // The first frame was written once, the others by two pages and while protected.
        touch(mmu, "switch", page, page, if page == 0 { 1 } else { 3 })?;
        mmu.enter(Space::One);
        holds(mmu, "switch back", page, page + 1, last(page, pages))?;
    }
    for page in 0..pages {
        mmu.unmap(Space::One, page);
        mmu.unmap(Space::Other, page);
        mmu.forget(page);
        faults(mmu.read(page), 0, "unmap", page)?;
    }
    Ok(())
}

/// How often the frame behind a page of the first space was written before the other space has it.
fn last(page: u64, pages: u64) -> u64 {
    2 + u64::from(page + 1 < pages)
}

/// Takes the right to write away and gives it back.
fn protect(mmu: &mut impl Mmu, page: u64, frame: u64, writes: u64) -> Result<(), Wrong> {
    mmu.map(Space::One, page, frame, Rights::Read);
    mmu.forget(page);
    holds(mmu, "protect", page, frame, writes)?;
    faults(mmu.write(page, 0), PRESENT | WRITE, "protect", page)?;
    mmu.map(Space::One, page, frame, Rights::Write);
    mmu.forget(page);
    touch(mmu, "unprotect", page, frame, writes)
}

/// Reads what a frame holds after so many writes, and writes it once more.
fn touch(
    mmu: &mut impl Mmu,
    step: &'static str,
    page: u64,
    frame: u64,
    writes: u64,
) -> Result<(), Wrong> {
    holds(mmu, step, page, frame, writes)?;
    mmu.write(page, stamp(frame, writes + 1))
        .map_err(|_| Wrong {
            step,
            page,
            found: "a store faults",
        })
}

fn holds(
    mmu: &mut impl Mmu,
    step: &'static str,
    page: u64,
    frame: u64,
    writes: u64,
) -> Result<(), Wrong> {
    let found = match mmu.read(page) {
        Ok(word) if word == stamp(frame, writes) => return Ok(()),
        Ok(_) => "a load finds what was not written there",
        Err(_) => "a load faults",
    };
    Err(Wrong { step, page, found })
}

/// An access that must fault, with this error code.
fn faults<T>(
    outcome: Result<T, Fault>,
    error_code: u32,
    step: &'static str,
    page: u64,
) -> Result<(), Wrong> {
    let found = match outcome {
        Err(fault) if (fault.vector, fault.error_code) == (PAGE_FAULT, error_code) => return Ok(()),
        Err(_) => "another fault than a page fault of this kind",
        Ok(_) => "no page fault",
    };
    Err(Wrong { step, page, found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// What a machine does wrong.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Flaw {
        None,
        /// INVLPG does nothing.
        DeafToInvlpg,
        /// MOV CR3 keeps translations.
        DeafToCr3,
        /// A store does not look at the rights.
        WritesAnything,
    }

    type Entry = (u64, Rights);

    /// A machine with a TLB that holds every translation as long as it may.
    struct Fake {
        flaw: Flaw,
        tables: BTreeMap<(bool, u64), Entry>,
        tlb: BTreeMap<u64, Entry>,
        frames: Vec<u64>,
        space: Option<Space>,
        flushes: u64,
        switches: u64,
    }

    impl Fake {
        fn new(pages: u64, flaw: Flaw) -> Self {
            Self {
                flaw,
                tables: BTreeMap::new(),
                tlb: BTreeMap::new(),
                frames: (0..Spaces::frames(pages)).map(|f| stamp(f, 0)).collect(),
                space: None,
                flushes: 0,
                switches: 0,
            }
        }

        fn switch(&mut self, space: Option<Space>) {
            self.space = space;
            self.switches += 1;
            if self.flaw != Flaw::DeafToCr3 {
                self.tlb.clear();
            }
        }

        fn walk(&mut self, page: u64, error_code: u32) -> Result<Entry, Fault> {
            let key = (self.space == Some(Space::One), page);
            let entry = self.tlb.get(&page).or_else(|| self.tables.get(&key));
            let entry = *entry.ok_or(Fault {
                vector: PAGE_FAULT,
                error_code,
                address: 0,
            })?;
            self.tlb.insert(page, entry);
            Ok(entry)
        }
    }

    impl Mmu for Fake {
        fn map(&mut self, space: Space, page: u64, frame: u64, rights: Rights) {
            self.tables
                .insert((space == Space::One, page), (frame, rights));
        }
        fn unmap(&mut self, space: Space, page: u64) {
            self.tables.remove(&(space == Space::One, page));
        }
        fn forget(&mut self, page: u64) {
            self.flushes += 1;
            if self.flaw != Flaw::DeafToInvlpg {
                self.tlb.remove(&page);
            }
        }
        fn enter(&mut self, space: Space) {
            self.switch(Some(space));
        }
        fn leave(&mut self) {
            self.switch(None);
        }
        fn read(&mut self, page: u64) -> Result<u64, Fault> {
            let (frame, _) = self.walk(page, 0)?;
            Ok(self.frames[frame as usize])
        }
        fn write(&mut self, page: u64, value: u64) -> Result<(), Fault> {
            let (frame, rights) = self.walk(page, WRITE)?;
            if rights == Rights::Read && self.flaw != Flaw::WritesAnything {
                return Err(Fault {
                    vector: PAGE_FAULT,
                    error_code: PRESENT | WRITE,
                    address: 0,
                });
            }
            self.frames[frame as usize] = value;
            Ok(())
        }
    }

    #[test]
    fn a_good_machine_passes_and_nothing_is_left() {
        for pages in [1, 2, 3, 64, 513] {
            let mut fake = Fake::new(pages, Flaw::None);
            assert_eq!(run(&mut fake, pages), Ok(()), "{pages}");
            assert_eq!(fake.flushes, FLUSHES * pages);
            assert_eq!(fake.switches, SWITCHES * pages + SWITCHES_BESIDES);
            assert_eq!(fake.space, None);
            assert!(fake.tables.is_empty() && fake.tlb.is_empty());
        }
    }

    #[test]
    fn translations_that_should_be_forgotten_show() {
        for (flaw, step) in [
            (Flaw::DeafToInvlpg, "remap"),
            (Flaw::DeafToCr3, "switch"),
            (Flaw::WritesAnything, "protect"),
        ] {
            for pages in [1, 2, 64] {
                let mut fake = Fake::new(pages, flaw);
                let wrong = run(&mut fake, pages).unwrap_err();
                assert_eq!((wrong.step, wrong.page), (step, 0), "{}", wrong.found);
                assert_eq!(fake.space, None, "the kernel's own space again");
            }
        }
    }
}
