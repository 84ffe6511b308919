//! What lies in the Intel lab's memory when the machine starts: the kernel, the initramfs, and what
//! the kernel is told, all in one file.
//!
//! ```text
//! 0x0080_0000  parameters of the option ROM, start info, memory map, kernel arguments
//!     …        spare blocks (see `rom`)
//! 0x0100_0000  the kernel, where it wants to lie, and room for what it takes first
//!     …        the initramfs
//! ```

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, bail};

use super::rom::{BLOCK, END_MARK, Parameters, SPARE_BLOCKS};
use super::vmlinux::Vmlinux;

/// Where the file lies in the machine's memory.
pub(super) const ADDRESS: u32 = 0x80_0000;

/// Behind the parameters of the ROM.
const START_INFO: u32 = ADDRESS + 0x1000;
const MODULES: u32 = START_INFO + 0x100;
const MEMORY_MAP: u32 = START_INFO + 0x200;
const ARGUMENTS: u32 = ADDRESS + 0x2000;

/// Longest kernel command line (`COMMAND_LINE_SIZE`), its final 0 included.
const ARGUMENTS_MAX: usize = 2048;
/// At the end of its memory the BIOS has its ACPI tables (Bochs' rombios, `ACPI_DATA_SIZE`).
const ACPI_TABLES: u64 = 0x1_0000;

const PAGE: u64 = 0x1000;

/// What is to lie in memory.
#[derive(Debug)]
pub(super) struct Contents<'a> {
    /// The kernel.
    pub(super) kernel: &'a Vmlinux,
    /// The initramfs.
    pub(super) initramfs: &'a Path,
    /// Kernel arguments.
    pub(super) arguments: &'a str,
    /// Memory of the machine, MiB.
    pub(super) memory_mib: u32,
}

impl Contents<'_> {
    /// Writes the file.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut initramfs = File::open(self.initramfs)
            .with_context(|| format!("cannot open {}", self.initramfs.display()))?;
        let plan = self.plan(initramfs.metadata()?.len())?;
        let mut write = || {
            let mut file = File::create(path)?;
            for (address, bytes) in plan.pieces.iter().chain(&self.kernel.segments) {
                file.write_all_at(bytes, address - u64::from(ADDRESS))?;
            }
            file.seek(SeekFrom::Start(plan.initramfs - u64::from(ADDRESS)))?;
            io::copy(&mut initramfs, &mut file)?;
            file.flush()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Where everything goes.
    fn plan(&self, initramfs_size: u64) -> anyhow::Result<Plan> {
        let first = u64::from(ADDRESS + SPARE_BLOCKS * BLOCK);
        if self
            .kernel
            .segments
            .iter()
            .any(|(address, _)| *address < first)
        {
            bail!(
                "this kernel wants to lie below {} MiB, where the lab needs room",
                first >> 20
            );
        }
        if self.arguments.len() >= ARGUMENTS_MAX {
            bail!(
                "the kernel arguments are longer than {} bytes",
                ARGUMENTS_MAX - 1
            );
        }
        let ends = self
            .kernel
            .segments
            .iter()
            .map(|(at, bytes)| at + bytes.len() as u64);
        let initramfs = ends.fold(self.kernel.end, u64::max).next_multiple_of(PAGE);
        let end_mark = (initramfs + initramfs_size).next_multiple_of(PAGE);
        let ram_end = (u64::from(self.memory_mib) << 20) - ACPI_TABLES;
        // Twice: the kernel unpacks the initramfs into other memory.
        let needed = end_mark + initramfs_size;
        if needed > ram_end {
            bail!(
                "a machine of {} MiB has no room for what is to run in it: give it {} MiB",
                self.memory_mib,
                (needed >> 20) + 128
            );
        }
        let parameters = Parameters {
            entry: self.kernel.entry,
            start_info: START_INFO,
            end_mark: u32::try_from(end_mark)?,
        };
        let map = memory_map(ram_end);
        let mut pieces = vec![(u64::from(ADDRESS), parameters.bytes().to_vec())];
        // The first block's number is among the parameters.
        for block in 1..SPARE_BLOCKS {
            let at = u64::from(ADDRESS + block * BLOCK);
            pieces.push((at, block.to_le_bytes().to_vec()));
        }
        pieces.extend([
            (START_INFO.into(), start_info(map.len())),
            (MODULES.into(), words(&[initramfs, initramfs_size, 0, 0])),
            (MEMORY_MAP.into(), words(map.as_flattened())),
            (
                ARGUMENTS.into(),
                [self.arguments.as_bytes(), b"\0"].concat(),
            ),
            (end_mark, END_MARK.to_le_bytes().to_vec()),
        ]);
        Ok(Plan { pieces, initramfs })
    }
}

/// Where everything goes.
#[derive(Debug)]
struct Plan {
    /// Addresses and what lies there, but for the kernel and the initramfs.
    pieces: Vec<(u64, Vec<u8>)>,
    /// Where the initramfs lies.
    initramfs: u64,
}

/// `struct hvm_start_info` (xen/include/public/arch-x86/hvm/start_info.h), version 1.
fn start_info(map_entries: usize) -> Vec<u8> {
    const MAGIC: u64 = 0x336E_C578;
    const VERSION: u64 = 1;
    words(&[
        MAGIC | VERSION << 32,
        // flags, nr_modules
        1 << 32,
        MODULES.into(),
        ARGUMENTS.into(),
        // rsdp_paddr: none is told, so the kernel looks for it where the BIOS puts it.
        0,
        MEMORY_MAP.into(),
        map_entries as u64,
    ])
}

/// Address, size and type of each range of memory, as the BIOS would tell it (Bochs' rombios,
/// INT 15h E820h).
fn memory_map(ram_end: u64) -> [[u64; 3]; 6] {
    const RAM: u64 = 1;
    const RESERVED: u64 = 2;
    const ACPI: u64 = 3;
    [
        [0, 0x9_FC00, RAM],
        [0x9_FC00, 0x400, RESERVED],
        [0xE_8000, 0x1_8000, RESERVED],
        [0x10_0000, ram_end - 0x10_0000, RAM],
        [ram_end, ACPI_TABLES, ACPI],
        [0xFFFC_0000, 0x4_0000, RESERVED],
    ]
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(address: u64) -> Vmlinux {
        Vmlinux {
            segments: vec![(address, vec![1; 5000]), (address + 0x20_0000, vec![2; 10])],
            entry: 0x0100_0A30,
            end: address + 0x30_0000,
        }
    }

    fn contents<'a>(kernel: &'a Vmlinux, initramfs: &'a Path, memory_mib: u32) -> Contents<'a> {
        let arguments = "quiet";
        Contents {
            kernel,
            initramfs,
            arguments,
            memory_mib,
        }
    }

    #[test]
    fn everything_lies_where_it_is_said_to_lie() {
        let folder = tempfile::tempdir().unwrap();
        let (path, initramfs) = (
            folder.path().join("memory"),
            folder.path().join("initramfs"),
        );
        std::fs::write(&initramfs, [3; 9000]).unwrap();
        let kernel = kernel(0x100_0000);
        contents(&kernel, &initramfs, 64).write(&path).unwrap();

        let file = std::fs::read(path).unwrap();
        let at = |address: u64, size: usize| {
            let start = usize::try_from(address - u64::from(ADDRESS)).unwrap();
            &file[start..start + size]
        };
        let word = |address: u64| u64::from_le_bytes(at(address, 8).try_into().unwrap());
        let half = |address: u64| u32::from_le_bytes(at(address, 4).try_into().unwrap());
        for block in 0..SPARE_BLOCKS {
            assert_eq!(half(u64::from(ADDRESS + block * BLOCK)), block);
        }
        assert_eq!(at(0x100_0000, 5000), [1; 5000]);
        assert_eq!(at(0x120_0000, 10), [2; 10]);

        let info = u64::from(half(u64::from(ADDRESS) + 8));
        let modules = word(info + 16);
        assert_eq!((word(modules), word(modules + 8)), (0x130_0000, 9000));
        assert_eq!(at(word(modules), 9000), [3; 9000]);
        assert_eq!(at(word(info + 24), 6), b"quiet\0");
        let end_mark = half(u64::from(ADDRESS) + 12);
        assert_eq!(end_mark, 0x130_3000);
        assert_eq!(half(u64::from(end_mark)), END_MARK);
        assert_eq!(file.len(), (end_mark - ADDRESS) as usize + 4);

        let (map, entries) = (word(info + 40), word(info + 48));
        let ranges = (0..entries)
            .map(|i| map + i * 24)
            .map(|at| (word(at), word(at + 8)));
        let ram: Vec<_> = ranges.collect();
        assert_eq!(ram[3], (0x10_0000, (63 << 20) - 0x1_0000));
        assert_eq!(ram[4], ((64 << 20) - 0x1_0000, 0x1_0000));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (path, initramfs) = (
            folder.path().join("memory"),
            folder.path().join("initramfs"),
        );
        std::fs::write(&initramfs, [3; 9000]).unwrap();
        let (good, low) = (kernel(0x100_0000), kernel(0x80_0000));
        let refused = |kernel, mib| {
            let error = contents(kernel, &initramfs, mib).write(&path).unwrap_err();
            error.to_string()
        };
        assert_eq!(
            refused(&good, 16),
            "a machine of 16 MiB has no room for what is to run in it: give it 147 MiB"
        );
        assert_eq!(
            refused(&low, 64),
            "this kernel wants to lie below 16 MiB, where the lab needs room"
        );
    }
}
