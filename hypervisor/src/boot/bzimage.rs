//! A bzImage, Linux as distributions ship it: its header checked whole before a byte of it is loaded
//! (linux/Documentation/arch/x86/boot.rst, "THE REAL-MODE KERNEL HEADER").

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::{XLF_KERNEL_64, boot_params, setup_header};
use linux_loader::loader::{BzImage as Loader, KernelLoader};
use thiserror::Error;
use vm_memory::{ByteValued, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::layout;
use crate::memory::Memory;

/// Where the header begins in the file, and where its magic numbers are.
pub const HEADER: usize = offset_of!(boot_params, hdr);
/// "HdrS".
pub const MAGIC: u32 = 0x5372_6448;
/// The last two bytes of a boot sector.
pub const BOOT_FLAG: u16 = 0xAA55;
/// The first version whose `xloadflags` tell of the 64-bit entry: 2.12 (Linux 3.8).
const VERSION_MIN: u16 = 0x020C;
/// `loadflags`: the protected-mode code goes to 1 MiB and not to 64 KiB.
const LOADED_HIGH: u8 = 1;
/// The 64-bit entry lies so far behind the start of what is loaded.
const ENTRY_64: u64 = 0x200;
/// Largest file: the header counts the kernel's size in 32 bits.
const FILE_MAX: u64 = 4 << 30;

/// What is wrong with a bzImage. Each message follows "kernel FILE".
#[derive(Debug, Error)]
pub enum BzError {
    /// Cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
    /// A boot sector and nothing that can be entered.
    #[error(
        "is a boot sector without Linux's header: give a bzImage of Linux 3.8 or newer, or an ELF image"
    )]
    NoHeader,
    /// From before the 64-bit entry was documented.
    #[error(
        "speaks boot protocol {major}.{minor:02}, older than 2.12: give a kernel of Linux 3.8 or newer"
    )]
    TooOld {
        /// Before the dot.
        major: u8,
        /// Behind it.
        minor: u8,
    },
    /// A zImage.
    #[error("is a zImage, entered in 16-bit mode alone: give a bzImage")]
    Low,
    /// A 32-bit kernel.
    #[error("is a bzImage without 64-bit entry: give a kernel built for x86-64")]
    No64,
    /// Shorter than its header says.
    #[error("is truncated: its header tells of {told} bytes, the file has {bytes}")]
    Truncated {
        /// By the header.
        told: u64,
        /// By the file.
        bytes: u64,
    },
    /// A header that contradicts itself.
    #[error("has a damaged header: {0}")]
    Damaged(String),
    /// Where it wants to be there is no memory.
    #[error(
        "needs memory up to {end} MiB ({start:#x} and {need} MiB from there on), the guest has \
         {memory} MiB: give more with --memory"
    )]
    Outside {
        /// First byte.
        start: u64,
        /// MiB from there on.
        need: u64,
        /// Up to where, MiB.
        end: u64,
        /// Guest memory, MiB.
        memory: u64,
    },
    /// A command line longer than it takes.
    #[error("takes a command line of at most {max} bytes, this one has {bytes}: shorten it")]
    Cmdline {
        /// By the header.
        max: u32,
        /// Given.
        bytes: usize,
    },
    /// linux-loader refused it.
    #[error("cannot be loaded: {0}")]
    Load(#[source] linux_loader::loader::Error),
}

/// A bzImage that passed the checks.
#[derive(Debug)]
pub struct BzImage {
    file: File,
    /// Where it came from.
    pub path: PathBuf,
    /// Size of the file.
    pub bytes: u64,
    /// Its header.
    pub header: setup_header,
}

fn damaged(what: impl ToString) -> BzError {
    BzError::Damaged(what.to_string())
}

/// Whether a file that begins like this is for [`BzImage::check`]: it has the magic number of the
/// header, or is a boot sector of old.
pub fn is_one(start: &[u8]) -> bool {
    let word = |at: usize| start.get(at..at + 2) == Some(&BOOT_FLAG.to_le_bytes()[..]);
    word(HEADER + offset_of!(setup_header, boot_flag)) || has_magic(start)
}

fn has_magic(start: &[u8]) -> bool {
    let at = HEADER + offset_of!(setup_header, header);
    start.get(at..at + 4) == Some(&MAGIC.to_le_bytes()[..])
}

/// As much of a file as [`is_one`] and [`BzImage::check`] look at.
pub const START: usize = HEADER + size_of::<setup_header>();

impl BzImage {
    /// Checks all that can be checked without guest memory.
    pub fn check(mut file: File, path: &Path, bytes: u64) -> Result<Self, BzError> {
        file.seek(SeekFrom::Start(0)).map_err(BzError::Read)?;
        let mut start = Vec::new();
        let got = (&mut file).take(START as u64).read_to_end(&mut start);
        got.map_err(BzError::Read)?;
        if !has_magic(&start) {
            return Err(BzError::NoHeader);
        }
        let Some(raw) = start.get(HEADER..START) else {
            let told = START as u64;
            return Err(BzError::Truncated { told, bytes });
        };
        let mut header = setup_header::default();
        header.as_mut_slice().copy_from_slice(raw);
        check_header(&header, bytes)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            bytes,
            header,
        })
    }

    /// Where it is loaded: where it prefers to be, which is where it unpacks itself to if it is
    /// loaded below. Behind the last byte that it uses before it knows the memory map.
    pub fn place(&self) -> (u64, u64) {
        let start = self.header.pref_address;
        let loaded = self.bytes.saturating_sub(setup_bytes(&self.header));
        let need = u64::from(self.header.init_size).max(loaded);
        (start, start.saturating_add(need))
    }

    /// Its 64-bit entry.
    pub fn entry(&self) -> u64 {
        self.place().0 + ENTRY_64
    }

    /// The highest address that a byte of the initial RAM disk may have.
    pub fn initrd_max(&self) -> u64 {
        self.header.initrd_addr_max.into()
    }

    /// Checks its place against guest memory, and the command line, then loads it.
    pub fn load(&mut self, memory: &Memory, cmdline: &str) -> Result<(), BzError> {
        let max = self.header.cmdline_size;
        if cmdline.len() as u64 > u64::from(max) {
            let bytes = cmdline.len();
            return Err(BzError::Cmdline { max, bytes });
        }
        let (start, end) = self.place();
        let length = usize::try_from(end - start).unwrap_or(usize::MAX);
        if !memory.check_range(GuestAddress(start), length) {
            return Err(BzError::Outside {
                start,
                need: (end - start).div_ceil(1 << 20),
                end: end.div_ceil(1 << 20),
                memory: memory.iter().map(|r| r.len()).sum::<u64>() >> 20,
            });
        }
        crate::memory::expect(memory, start, self.bytes.min(end - start));
        let place = Some(GuestAddress(start));
        Loader::load(memory, place, &mut self.file, None).map_err(BzError::Load)?;
        Ok(())
    }

    /// Reads of what is loaded, from an offset on: as much as there is and fits.
    pub fn read_code(&self, offset: u64, into: &mut [u8]) -> usize {
        use std::os::unix::fs::FileExt;
        let start = setup_bytes(&self.header).saturating_add(offset);
        let mut got = 0;
        while let Some(rest) = into.get_mut(got..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, start.saturating_add(got as u64)) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What cannot be read is not there: loading it will say so.
                Err(_) => break,
            }
        }
        got
    }

    /// The file, for its hash.
    pub fn into_file(self) -> File {
        self.file
    }
}

/// Bytes of the file before the protected-mode code: the boot sector and the set-up code.
fn setup_bytes(header: &setup_header) -> u64 {
    // 0 means 4, for history's sake.
    let sectors = match header.setup_sects {
        0 => 4,
        n => u64::from(n),
    };
    (sectors + 1) * 512
}

fn check_header(header: &setup_header, bytes: u64) -> Result<(), BzError> {
    // Fields of a packed struct: copies.
    let (version, flags, xflags) = (header.version, header.loadflags, header.xloadflags);
    if header.boot_flag != BOOT_FLAG {
        return Err(damaged("no 55 aa where a boot sector ends"));
    }
    if flags & LOADED_HIGH == 0 {
        return Err(BzError::Low);
    }
    if version < VERSION_MIN {
        let [minor, major] = version.to_le_bytes();
        return Err(BzError::TooOld { major, minor });
    }
    if xflags & XLF_KERNEL_64 == 0 {
        return Err(BzError::No64);
    }
    let setup = setup_bytes(header);
    let code = u64::from(header.syssize) * 16;
    if code == 0 {
        return Err(damaged("a kernel of 0 bytes"));
    }
    let told = setup + code;
    if told > bytes {
        return Err(BzError::Truncated { told, bytes });
    }
    if bytes > FILE_MAX {
        return Err(damaged(format!("a file of {} MiB", bytes >> 20)));
    }
    let (offset, length) = (header.payload_offset, header.payload_length);
    if u64::from(offset) + u64::from(length) > code {
        return Err(damaged("its payload reaches beyond its end"));
    }
    let (align, place) = (header.kernel_alignment, header.pref_address);
    if !align.is_power_of_two() || place % u64::from(align) != 0 {
        return Err(damaged(format!(
            "an address of {place:#x} aligned to {align:#x}"
        )));
    }
    if !(layout::HIGH_START..layout::HOLE_START).contains(&place) {
        return Err(damaged(format!("an address of {place:#x}")));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use vm_memory::Bytes;

    /// The header of Debian's 6.1, with a kernel of one page.
    pub(crate) fn header() -> setup_header {
        setup_header {
            setup_sects: 1,
            syssize: 256,
            boot_flag: BOOT_FLAG,
            header: MAGIC,
            version: 0x020F,
            loadflags: LOADED_HIGH,
            code32_start: 0x10_0000,
            initrd_addr_max: 0x7FFF_FFFF,
            kernel_alignment: 0x20_0000,
            relocatable_kernel: 1,
            xloadflags: 0x7F,
            cmdline_size: 2047,
            payload_offset: 0x2CC,
            payload_length: 0x100,
            pref_address: 0x20_0000,
            init_size: 0x10_0000,
            ..setup_header::default()
        }
    }

    pub(crate) fn image(header: setup_header) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[HEADER..START].copy_from_slice(header.as_slice());
        bytes.resize(1024 + 4096, 0x90);
        bytes
    }

    fn check(bytes: &[u8]) -> Result<BzImage, BzError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        BzImage::check(file, Path::new("vmlinuz"), bytes.len() as u64)
    }

    #[test]
    fn a_kernel_goes_where_it_prefers_to_be() {
        let memory = crate::memory::map(4 << 20).unwrap();
        let mut kernel = check(&image(header())).unwrap();
        assert_eq!(kernel.place(), (0x20_0000, 0x30_0000));
        assert_eq!(kernel.entry(), 0x20_0200);
        kernel.load(&memory, "quiet").unwrap();
        let byte = |at| memory.read_obj::<u8>(GuestAddress(at)).unwrap();
        let edges = [0x1F_FFFF, 0x20_0000, 0x20_0FFF, 0x20_1000].map(byte);
        assert_eq!(edges, [0, 0x90, 0x90, 0]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        type Change = fn(&mut setup_header);
        let cases: [(Change, &str); 12] = [
            (
                |h| h.version = 0x0206,
                "boot protocol 2.06, older than 2.12",
            ),
            (|h| h.loadflags = 0, "is a zImage"),
            (|h| h.xloadflags = 0x7E, "without 64-bit entry"),
            (|h| h.header = 0, "boot sector without Linux's header"),
            (|h| h.boot_flag = 0, "no 55 aa"),
            (|h| h.syssize = 0, "0 bytes"),
            (
                |h| h.syssize = 257,
                "truncated: its header tells of 5136 bytes, the file has 5120",
            ),
            (|h| h.setup_sects = 0, "is truncated"),
            (
                |h| h.payload_length = u32::MAX,
                "its payload reaches beyond",
            ),
            (|h| h.kernel_alignment = 3, "aligned to 0x3"),
            (|h| h.pref_address = 0, "an address of 0x0"),
            (|h| h.pref_address = 1 << 40, "an address of 0x10000000000"),
        ];
        for (change, expected) in cases {
            let mut changed = header();
            change(&mut changed);
            let message = check(&image(changed)).unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
        let short = check(&image(header())[..START - 1]).unwrap_err();
        assert!(matches!(short, BzError::Truncated { .. }), "{short}");
    }

    #[test]
    fn it_must_fit() {
        let memory = crate::memory::map(2 << 20).unwrap();
        let mut kernel = check(&image(header())).unwrap();
        let message = kernel.load(&memory, "").unwrap_err().to_string();
        assert!(message.contains("up to 3 MiB"), "{message}");
        let long = "x".repeat(2048);
        let refused = kernel.load(&memory, &long);
        assert!(matches!(
            refused,
            Err(BzError::Cmdline {
                max: 2047,
                bytes: 2048
            })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(flips in prop::collection::vec((HEADER..START, any::<u8>()), 1..8)) {
            let mut bytes = image(header());
            for (at, byte) in flips {
                bytes[at] = byte;
            }
            if let Ok(mut kernel) = check(&bytes) {
                let memory = crate::memory::map(4 << 20).unwrap();
                let _ = kernel.load(&memory, "");
            }
        }
    }
}
