//! What the host has given for guest memory: `/proc/self/smaps`
//! (linux/Documentation/filesystems/proc.rst).

use std::fs;

/// How much the host has given, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Backed by pages of the host's.
    pub resident: u64,
    /// Of this, by huge pages, transparent ones or the pool's.
    pub huge: u64,
}

/// What the host has given for these ranges of our own addresses.
pub(super) fn of(ranges: &[(u64, u64)]) -> Option<Usage> {
    parse(&fs::read_to_string("/proc/self/smaps").ok()?, ranges)
}

fn parse(smaps: &str, ranges: &[(u64, u64)]) -> Option<Usage> {
    let mut usage = Usage::default();
    let mut ours = false;
    for line in smaps.lines() {
        let (key, value) = line.split_once(' ')?;
        // A mapping's first line: `7f0000000000-7f0000200000 rw-p …`.
        if let Some((start, end)) = key.split_once('-') {
            let number = |hex| u64::from_str_radix(hex, 16).ok();
            let (start, end) = (number(start)?, number(end)?);
            ours = ranges.iter().any(|&(s, e)| s <= start && end <= e);
            continue;
        }
        let bytes = || -> Option<u64> {
            let kib = value.trim().strip_suffix(" kB")?;
            kib.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        match key {
            "Rss:" if ours => usage.resident += bytes()?,
            "AnonHugePages:" if ours => usage.huge += bytes()?,
            // Of the pool, and not in Rss.
            "Private_Hugetlb:" | "Shared_Hugetlb:" if ours => {
                usage.resident += bytes()?;
                usage.huge += bytes()?;
            }
            _ => {}
        }
    }
    Some(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000400000 rw-p 00000000 00:00 0 
Size:               4096 kB
Rss:                4096 kB
AnonHugePages:      2048 kB
Private_Hugetlb:       0 kB
VmFlags: rd wr mr mw me ac sd hg 
7f0000400000-7f0000600000 rw-p 00000000 00:0f 1 /anon_hugepage (deleted)
Rss:                   0 kB
Private_Hugetlb:    2048 kB
7f0000600000-7f0000800000 rw-p 00000000 00:00 0 
Rss:                2048 kB
";

    #[test]
    fn ours_is_told_from_the_rest() {
        let all = parse(SMAPS, &[(0x7F00_0000_0000, 0x7F00_0060_0000)]);
        let expected = Usage {
            resident: 6 << 20,
            huge: 4 << 20,
        };
        assert_eq!(all, Some(expected));
        assert_eq!(parse(SMAPS, &[]), Some(Usage::default()));
        assert_eq!(parse("nonsense", &[]), None);
    }
}
