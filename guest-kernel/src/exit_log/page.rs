//! The exit page: found, mapped, checked, and had at hand before anything is counted by it.

use core::fmt;

use exit_abi::page::{BadPage, HEAD_SIZE, Head, PageKind, VCPUS_MAX};
use exit_abi::reason::Reason;

use super::reading::{self, Reading};
use crate::arch::window::Window;

/// Room for a page of which only the address is known: records of 16 KiB for all vCPUs.
const SIZE_MAX: u64 = HEAD_SIZE + VCPUS_MAX * (16 << 10);

/// Why there is no exit page to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPage {
    /// Neither the device tree nor INFO names one.
    None,
    /// They name different ones.
    Contradiction,
    /// It cannot be mapped.
    Place(u64),
    /// What is there cannot be read.
    Bad(BadPage),
}

impl fmt::Display for NoPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("there is no exit page"),
            Self::Contradiction => {
                f.write_str("Exitvisor and its device tree name different exit pages: not read")
            }
            Self::Place(at) => write!(f, "an exit page at {at:#x} cannot be mapped: not read"),
            Self::Bad(why) => write!(f, "{why}: not read"),
        }
    }
}

/// Where the exit page is and how large it may be: what the device tree says, or else INFO.
pub fn place(described: Option<(u64, u64)>, told: Option<u64>) -> Result<(u64, u64), NoPage> {
    match (described, told) {
        (Some((start, _)), Some(other)) if start != other => Err(NoPage::Contradiction),
        (Some(place), _) => Ok(place),
        // It ends below 4 GiB, like everything that can be mapped.
        (None, Some(start)) => Ok((start, SIZE_MAX.min((1_u64 << 32).saturating_sub(start)))),
        (None, None) => Err(NoPage::None),
    }
}

/// The page, mapped and checked.
#[derive(Clone, Copy, Debug)]
pub struct ExitPage {
    window: Window,
    head: Head,
}

impl ExitPage {
    /// Maps the page, checks its head and touches all of it.
    pub fn open(described: Option<(u64, u64)>, told: Option<u64>) -> Result<Self, NoPage> {
        let (start, size) = place(described, told)?;
        let window = Window::open(start, size).ok_or(NoPage::Place(start))?;
        let head = Head::read(window.size(), |at| window.load(at)).map_err(NoPage::Bad)?;
        let page = Self { window, head };
        page.touch();
        Ok(page)
    }

    /// Loads something of each of its pages of memory: to be done where exits are the profiler's
    /// own, and again on new page tables, which a KVM may shadow.
    pub fn touch(&self) {
        self.window.touch(self.head.size());
    }

    /// Its head.
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// Whether it has every exit of every reason at once.
    pub fn is_complete(&self) -> bool {
        self.head.kind == PageKind::Kernel
    }

    /// Reads all of it.
    pub fn read(&self, into: &mut Reading) {
        into.load(&self.head, &self.window);
    }

    /// Exits of a reason, all vCPUs together.
    pub fn exits_of(&self, reason: Reason) -> u64 {
        reading::exits_of(&self.head, reason, &self.window)
    }

    /// Exits of a vCPU, and their cycles.
    pub fn of_vcpu(&self, vcpu: u64) -> (u64, u64) {
        reading::of_vcpu(&self.head, vcpu, &self.window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_goes_before_info_and_must_agree() {
        let tree = Some((0xD100_0000, 0x9000));
        assert_eq!(place(tree, None), Ok((0xD100_0000, 0x9000)));
        assert_eq!(place(tree, Some(0xD100_0000)), Ok((0xD100_0000, 0x9000)));
        assert_eq!(place(tree, Some(0xD200_0000)), Err(NoPage::Contradiction));
        assert_eq!(place(None, None), Err(NoPage::None));
        assert_eq!(place(None, Some(0xD100_0000)), Ok((0xD100_0000, SIZE_MAX)));
        assert_eq!(place(None, Some(0xFFFF_F000)), Ok((0xFFFF_F000, 0x1000)));
        assert_eq!(place(None, Some(1 << 40)), Ok((1 << 40, 0)));
    }

    #[test]
    fn what_is_no_page_is_not_opened() {
        let open = |start, size| ExitPage::open(Some((start, size)), None).map(|_| ());
        assert_eq!(open(0x10_0000, 4096), Err(NoPage::Place(0x10_0000)));
        assert_eq!(open(0xD000_0000, 4096), Err(NoPage::Place(0xD000_0000)));
        assert_eq!(open(1 << 40, 0), Err(NoPage::Place(1 << 40)));
        // A window of the host reads as zeros.
        let none = open(0xDA00_0000, 0x9000);
        assert_eq!(none, Err(NoPage::Bad(BadPage::NoPage)));
        for (why, said) in [
            (NoPage::Place(0x1000), "at 0x1000 cannot be mapped"),
            (NoPage::Bad(BadPage::Version(7)), "version 7"),
            (NoPage::Bad(BadPage::Kind(9)), "unknown kind, 9"),
            (NoPage::Bad(BadPage::Shape), "do not fit"),
            (NoPage::Bad(BadPage::NoPage), "is none"),
            (NoPage::Contradiction, "different exit pages"),
        ] {
            let text = why.to_string();
            assert!(text.contains(said) && !text.contains('\n'), "{text}");
        }
    }
}
