//! Memory as a VMM would leave it, for unit tests.

use crate::arch::memory::Physical;
use crate::start_info::MAGIC;

/// Four megabytes of memory; address 0 is not to be read.
pub(crate) struct Double(Vec<u8>);

impl Double {
    pub(crate) const START_INFO: u64 = 0x6000;
    pub(crate) const CMDLINE: u64 = 0x1_0000;
    /// Where a text does not end.
    pub(crate) const ENDLESS: u64 = 0x9_0000;
    const SIZE: u64 = 4 << 20;

    /// Start info, a map of 4 MiB, modules as (address, size, command line) and a command line.
    pub(crate) fn booting(modules: &[(u64, u64, &str)], cmdline: &[u8]) -> Self {
        let mut double = Self(vec![0; Self::SIZE as usize]);
        let map = [
            (0, 0xA_0000, 1),
            (0xA_0000, 0x6_0000, 2_u64),
            (1 << 20, Self::SIZE - (1 << 20), 1),
        ];
        let wide = |words: &[u64]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        let entries = map.map(|(start, length, kind)| wide(&[start, length, kind]));
        double.put(0x7000, &entries.concat());
        for (i, (start, size, name)) in modules.iter().enumerate() {
            let (i, name_at) = (i as u64, 0x8000 + i as u64 * 16);
            double.put(0x7800 + i * 32, &wide(&[*start, *size, name_at, 0]));
            double.put(name_at, name.as_bytes());
        }
        double.put(Self::CMDLINE, cmdline);
        double.put(Self::ENDLESS, &[b'x'; 4096]);
        let head = u64::from(MAGIC) | 1 << 32;
        let counts = (modules.len() as u64) << 32;
        let info = [
            head,
            counts,
            0x7800,
            Self::CMDLINE,
            0,
            0x7000,
            map.len() as u64,
        ];
        double.put(Self::START_INFO, &wide(&info));
        double
    }

    pub(crate) fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }
}

impl Physical for Double {
    fn slice(&self, start: u64, length: u64) -> Option<&[u8]> {
        let end = start.checked_add(length)?;
        (start > 0).then_some(())?;
        self.0
            .get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
    }
}
