//! Address spaces besides the kernel's own: the kernel stays mapped where it is, and each has page
//! tables of its own for a gigabyte of addresses that no other space maps.

use super::fault::{self, Fault};
use super::paging::{self, LARGE_PAGE, PAGE, Table};
use crate::machine::List;
use crate::memory::Division;

/// Where the private addresses begin: the root's second entry.
pub const START: u64 = 1 << 39;
/// How many pages one page directory reaches: a gigabyte.
pub const PAGES_MAX: u64 = 1 << 18;
/// Entries of a table.
const ENTRIES: u64 = 512;
/// Most runs of fresh pages that the frames and tables come from.
const RUNS: usize = 32;

/// Which address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// The first.
    One,
    /// The second.
    Other,
}

/// What may be done to a page that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Reads.
    Read,
    /// Reads and writes.
    Write,
}

/// Why there are no address spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// More than [`PAGES_MAX`] pages.
    TooMany,
    /// Not so many pages of RAM are fresh.
    NoMemory,
    /// They cannot be mapped one to one.
    OutOfReach,
}

/// Pages that nobody else uses, mapped one to one.
struct Fresh {
    runs: List<(u64, u64), RUNS>,
}

impl Fresh {
    fn take(count: u64, memory: &mut Division) -> Result<Self, Refused> {
        let mut runs = List::new((0, 0));
        let mut mapped = true;
        let taken = memory.take(count, |start, pages| {
            let mut page = start & !(LARGE_PAGE - 1);
            while page < start + pages * PAGE && mapped {
                mapped = paging::map_large_page(page);
                page += LARGE_PAGE;
            }
            mapped &= runs.push((start, pages)).is_some();
        });
        taken.ok_or(Refused::NoMemory)?;
        if mapped {
            Ok(Self { runs })
        } else {
            Err(Refused::OutOfReach)
        }
    }

    /// The address of one of them; the last one's for a number that is too high.
    fn address(&self, number: u64) -> u64 {
        let mut left = number;
        let mut last = 0;
        for &(start, pages) in self.runs.as_slice() {
            if left < pages {
                return start + left * PAGE;
            }
            last = start + (pages - 1) * PAGE;
            left -= pages;
        }
        last
    }

    /// One of them as a table.
    fn table(&self, number: u64) -> &Table {
        let address = self.address(number);
        // SAFETY: `take` was given the page by `Division`, which hands out each page of RAM once,
        // and has mapped it; nobody forms another kind of reference to it: frames are reached by
        // their private addresses alone (`fault`), and but for that by `Table`s, all atomics, for
        // which every content is valid.
        unsafe { &*(address as *const Table) }
    }
}

/// Two address spaces with private page tables, and frames to map there.
pub struct Spaces {
    fresh: Fresh,
    pages: u64,
}

impl Spaces {
    /// How many frames there are: one more than pages.
    pub const fn frames(pages: u64) -> u64 {
        pages + 1
    }

    /// Page tables of one space: root, pointers, directory, and those that map.
    const fn tables(pages: u64) -> u64 {
        3 + pages.div_ceil(ENTRIES)
    }

    /// Builds both for so many pages, with nothing mapped at their private addresses. All memory has
    /// been touched then, and every frame begins with the word that `stamp` tells.
    pub fn build(
        pages: u64,
        memory: &mut Division,
        stamp: impl Fn(u64) -> u64,
    ) -> Result<Self, Refused> {
        if pages > PAGES_MAX {
            return Err(Refused::TooMany);
        }
        let frames = Self::frames(pages);
        let fresh = Fresh::take(frames + 2 * Self::tables(pages), memory)?;
        let spaces = Self { fresh, pages };
        for frame in 0..frames {
            spaces.fresh.table(frame).set(0, stamp(frame));
        }
        for space in [Space::One, Space::Other] {
            spaces.link(space);
        }
        Ok(spaces)
    }

    /// The number of a space's first page of tables.
    fn root(&self, space: Space) -> u64 {
        let before = match space {
            Space::One => 0,
            Space::Other => Self::tables(self.pages),
        };
        Self::frames(self.pages) + before
    }

    fn link(&self, space: Space) {
        let root = self.root(space);
        for table in 0..Self::tables(self.pages) {
            self.fresh.table(root + table).clear();
        }
        let [first, pointers, directory] = [0, 1, 2].map(|i| self.fresh.table(root + i));
        first.set(0, paging::kernel_entry());
        first.link((START >> 39) as usize, pointers);
        pointers.link(0, directory);
        for i in 0..self.pages.div_ceil(ENTRIES) {
            directory.link(i as usize, self.fresh.table(root + 3 + i));
        }
    }

    /// The entry that maps a page, and the table that it stands in.
    fn place(&self, space: Space, page: u64) -> (&Table, usize) {
        let page = page.min(self.pages.saturating_sub(1));
        let table = self.root(space) + 3 + page / ENTRIES;
        (self.fresh.table(table), (page % ENTRIES) as usize)
    }

    /// Maps a page to a frame, by a write to a page table.
    pub fn map(&self, space: Space, page: u64, frame: u64, rights: Rights) {
        let frame = self.fresh.address(frame.min(self.pages));
        let rights = match rights {
            Rights::Read => paging::READ_ONLY,
            Rights::Write => paging::DATA,
        };
        let (table, index) = self.place(space, page);
        table.set(index, frame | rights);
    }

    /// Takes a page away, by a write to a page table.
    pub fn unmap(&self, space: Space, page: u64) {
        let (table, index) = self.place(space, page);
        table.set(index, 0);
    }

    /// Switches to a space.
    pub fn enter(&self, space: Space) {
        let root = self.fresh.address(self.root(space));
        // SAFETY: `build` gave the root the kernel's own entry, and the memory of all of its tables
        // is never used for anything else.
        unsafe { paging::load_root(root) }
    }

    /// Back to the kernel's own.
    pub fn leave(&self) {
        paging::load_own();
    }

    /// Makes the CPU forget a page's translation (INVLPG).
    pub fn forget(&self, page: u64) {
        super::cpu::forget_page(START + page * PAGE);
    }

    /// Reads a page's first word in the space that was entered.
    pub fn read(&self, page: u64) -> Result<u64, Fault> {
        fault::read(START + page.min(PAGES_MAX) * PAGE)
    }

    /// Writes it.
    pub fn write(&self, page: u64, value: u64) -> Result<(), Fault> {
        let address = START + page.min(PAGES_MAX) * PAGE;
        // SAFETY: at these addresses nothing is mapped but frames of ours (`map`), to which no
        // reference exists while a space is entered; in other spaces the store faults, and lands.
        unsafe { fault::write(address, value) }
    }
}
