//! What no segment of the kernel may lie over: the firmware, the boot information, the modules.

use crate::modules::{MODULES_MAX, Modules};
use crate::start_info::{Raw, StartInfo, field, wide};

/// Bytes of an ACPI root pointer (ACPI 6.5, 5.2.5.3).
const RSDP_SIZE: u64 = 36;
/// The fixed ones, then each module and its command line.
const MOST: usize = 6 + 2 * MODULES_MAX as usize;

/// A range that no segment may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// What lies there; `None` for a module.
    pub what: Option<&'static str>,
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// All of them.
#[derive(Debug)]
pub struct Taken {
    ranges: [Range; MOST],
    count: usize,
}

impl Taken {
    /// None yet.
    pub const fn new() -> Self {
        const NOTHING: Range = Range {
            what: None,
            start: 0,
            end: 0,
        };
        Self {
            ranges: [NOTHING; MOST],
            count: 0,
        }
    }

    /// Adds a range of so many bytes.
    pub fn add(&mut self, what: Option<&'static str>, start: u64, bytes: u64) {
        // `MOST` is what `boot_information` adds.
        if let Some(range) = self.ranges.get_mut(self.count) {
            *range = Range {
                what,
                start,
                end: start.saturating_add(bytes),
            };
            self.count += 1;
        }
    }

    /// The firmware at `image`, what the start info names, and the modules.
    pub fn boot_information(
        image: (u64, u64),
        info: &StartInfo<'_>,
        modules: &Modules<'_>,
        (map_bytes, cmdline_bytes): (usize, usize),
    ) -> Self {
        let at = |field| wide(info.raw, field);
        let list_bytes = modules.all().len() * size_of::<crate::modules::RawModule>();
        let rsdp_bytes = if at(field::RSDP) == 0 { 0 } else { RSDP_SIZE };
        let mut taken = Self::new();
        taken.add(Some("the firmware"), image.0, image.1 - image.0);
        taken.add(
            Some("the start info"),
            info.address,
            size_of::<Raw>() as u64,
        );
        taken.add(
            Some("the memory map"),
            at(field::MEMORY_MAP),
            map_bytes as u64,
        );
        taken.add(
            Some("the module list"),
            at(field::MODULE_LIST),
            list_bytes as u64,
        );
        taken.add(
            Some("the command line"),
            at(field::CMDLINE),
            cmdline_bytes as u64 + 1,
        );
        taken.add(Some("ACPI's root pointer"), at(field::RSDP), rsdp_bytes);
        for module in modules.all() {
            let what = Some("a module's command line");
            taken.add(what, module.name_address, module.name.len() as u64 + 1);
            taken.add(None, module.start, module.end - module.start);
        }
        taken
    }

    /// Something that shares a byte with `start..end`.
    pub fn over(&self, start: u64, end: u64) -> Option<&Range> {
        let ranges = self.ranges.get(..self.count).unwrap_or_default();
        ranges
            .iter()
            .find(|r| start < r.end && r.start < end && r.start < r.end)
    }
}

impl Default for Taken {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_do_not_touch() {
        let mut taken = Taken::new();
        taken.add(Some("it"), 0x1000, 0x1000);
        taken.add(None, 0x1800, 0);
        assert_eq!(taken.over(0, 0x1000), None);
        assert_eq!(taken.over(0x2000, u64::MAX), None);
        for (start, end) in [
            (0xFFF, 0x1001),
            (0x1FFF, 0x2001),
            (0, u64::MAX),
            (0x1800, 0x1801),
        ] {
            assert_eq!(taken.over(start, end).unwrap().what, Some("it"));
        }
        for _ in 0..2 * MOST {
            taken.add(None, u64::MAX, 9);
        }
        assert_eq!(taken.count, MOST);
    }
}
