//! An ELF image with a PVH entry: checked whole before a byte of it is loaded.
//!
//! The `elf` crate parses, `linux-loader` loads; the rules in between (segments inside memory, none
//! over another, an entry that lies in one of them) are ours.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use elf::abi::{ELFCLASS32, ELFCLASS64, EM_X86_64, PN_XNUM, PT_LOAD, PT_NOTE};
use elf::endian::AnyEndian;
use elf::note::Note;
use exit_abi::{gate, milestone, note};
use linux_loader::loader::{Elf, KernelLoader};
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::bzimage::BzError;
use super::files::Files;
use crate::exits::gate::{Gate, GateKind, is_canonical};
use crate::layout;
use crate::memory::Memory;

/// Most program headers, and most bytes of notes, that are believed.
const SEGMENTS_MAX: usize = 256;
const NOTES_MAX: u64 = 1 << 20;
/// Largest image file: it is hashed whole, however few of its bytes are loaded.
const FILE_MAX: u64 = 4 << 30;

/// Owner of the notes that every Linux has (since 4.19: linux/init/version.c, BUILD_SALT).
const LINUX_OWNER: &[u8] = b"Linux\0";

/// Size of an ELF64 file header.
const HEADER_SIZE: usize = 64;

/// What is wrong with an image. Each message follows "kernel FILE" or "firmware FILE".
#[derive(Debug, Error)]
pub enum ElfError {
    /// Cannot be opened or read.
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
    /// A directory, a device, …
    #[error("is not a regular file")]
    NotAFile,
    /// Zero bytes.
    #[error("is empty")]
    Empty,
    /// Larger than any image is.
    #[error("has {0} MiB: an image has at most {max} MiB", max = FILE_MAX >> 20)]
    TooLarge(u64),
    /// Some other format.
    #[error(
        "is neither an ELF file nor a bzImage (starts with {0}): give an ELF image with a PVH note, or Linux"
    )]
    NotElf(String),
    /// 32-bit.
    #[error("is a 32-bit ELF image: build it for x86-64")]
    Class32,
    /// Another machine.
    #[error("is an ELF image for machine {0}, not for x86-64 (62)")]
    Machine(u16),
    /// Headers that contradict themselves or the file's size.
    #[error("is truncated or damaged: {0}")]
    Damaged(String),
    /// No PVH note.
    #[error(
        "has no PVH note (owner Xen, type 18): link one in, or for Linux build with CONFIG_PVH=y"
    )]
    NoPvh,
    /// Nothing to load.
    #[error("has no loadable segment")]
    NoSegment,
    /// Outside memory.
    #[error(
        "has a segment at {start:#x}..{end:#x}, outside guest memory ({memory} MiB): \
         give more with --memory, or link it elsewhere"
    )]
    Outside {
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// Guest memory, MiB.
        memory: u64,
    },
    /// Below 1 MiB: start info, command line and holes live there.
    #[error("has a segment at {0:#x}, below 1 MiB, where the boot information goes")]
    TooLow(u64),
    /// A firmware's segment outside the firmware's window.
    #[error(
        "has a segment at {0:#x}..{1:#x}, outside {window_start:#x}..{window_end:#x}, the place of a \
         firmware",
        window_start = layout::FIRMWARE,
        window_end = layout::FIRMWARE_END
    )]
    OutsideWindow(u64, u64),
    /// Two segments over each other.
    #[error("has segments over each other, at {0:#x} and {1:#x}")]
    Overlap(u64, u64),
    /// The entry is nowhere.
    #[error("has its PVH entry at {0:#x}, outside its own segments")]
    Entry(u64),
    /// A gate note that cannot be armed.
    #[error("publishes gates that cannot be armed: {0}")]
    Gates(String),
    /// Over an image loaded before.
    #[error("has a segment at {0:#x}, over another image")]
    OverOther(u64),
    /// linux-loader refused it.
    #[error("cannot be loaded: {0}")]
    Load(#[source] linux_loader::loader::Error),
    /// Its start is nowhere.
    #[error("has its entry at {0:#x}, outside its own segments")]
    Start(u64),
    /// A bzImage that cannot be booted.
    #[error(transparent)]
    BzImage(#[from] BzError),
    /// A bzImage is to be entered as it cannot be.
    #[error("is a bzImage, which has no PVH entry: give it as --kernel, and leave out --boot pvh")]
    BzByPvh,
}

/// What an image is: that decides where it may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A kernel: from 1 MiB up.
    Kernel,
    /// A firmware: within [`layout::FIRMWARE`], where no kernel can be.
    Firmware,
}

impl Role {
    /// Its name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Firmware => "firmware",
        }
    }

    fn check(self, start: u64, end: u64) -> Result<(), ElfError> {
        let inside = layout::FIRMWARE <= start && end <= layout::FIRMWARE_END;
        match self {
            Self::Kernel if start < layout::HIGH_START => Err(ElfError::TooLow(start)),
            Self::Firmware if !inside => Err(ElfError::OutsideWindow(start, end)),
            _ => Ok(()),
        }
    }
}

/// An image that passed the checks.
#[derive(Debug)]
pub struct Image {
    file: File,
    /// Where it came from.
    pub path: PathBuf,
    /// Size of the file.
    pub bytes: u64,
    /// PVH entry point; only Linux may be without.
    pub pvh: Option<u32>,
    /// Entry point of the ELF header.
    start: u64,
    /// A note tells that it is Linux.
    pub is_linux: bool,
    /// Where its segments go: (first byte, one past the last), sorted.
    pub segments: Vec<(u64, u64)>,
    /// Where it is linked: (first linear address, one past the last, first physical address).
    linked: Vec<(u64, u64, u64)>,
    /// The gates that its notes publish.
    pub gates: Vec<Gate>,
    /// The milestones that its notes name.
    pub names: BTreeMap<u32, String>,
}

fn damaged(what: impl ToString) -> ElfError {
    ElfError::Damaged(what.to_string())
}

/// What notes publish.
#[derive(Debug, Default)]
struct Published {
    entry: Option<u32>,
    is_linux: bool,
    gates: Vec<Gate>,
    names: BTreeMap<u32, String>,
}

impl Published {
    fn add(&mut self, owner: &[u8], n_type: u64, desc: &[u8]) -> Result<(), ElfError> {
        let trimmed = owner.strip_suffix(b"\0").unwrap_or(owner);
        let is = |name: &[u8]| trimmed == name.strip_suffix(b"\0").unwrap_or(name);
        if is(note::XEN_OWNER) && n_type == u64::from(note::XEN_PHYS32_ENTRY) {
            let entry = desc
                .first_chunk()
                .ok_or_else(|| damaged("PVH note too short"))?;
            self.entry = Some(u32::from_le_bytes(*entry));
        } else if is(LINUX_OWNER) {
            self.is_linux = true;
        } else if is(note::OWNER) {
            match u32::try_from(n_type) {
                Ok(note::CPUID_GATES) => self.add_gates(GateKind::Cpuid, desc)?,
                Ok(note::HYPERCALL_GATES) => self.add_gates(GateKind::Hypercall, desc)?,
                Ok(note::MILESTONE_NAME) => self.add_name(desc)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn add_gates(&mut self, kind: GateKind, desc: &[u8]) -> Result<(), ElfError> {
        let (addresses, rest) = desc.as_chunks();
        if !rest.is_empty() {
            return Err(ElfError::Gates(
                "the note's length is not a multiple of 8".into(),
            ));
        }
        for address in addresses.iter().map(|a| u64::from_le_bytes(*a)) {
            if !is_canonical(address) {
                return Err(ElfError::Gates(format!("{address:#x} is not canonical")));
            }
            if self.gates.iter().any(|g| g.address == address) {
                return Err(ElfError::Gates(format!("{address:#x} stands there twice")));
            }
            if self.gates.len() == gate::SLOTS {
                return Err(ElfError::Gates(format!(
                    "there are only {} slots",
                    gate::SLOTS
                )));
            }
            self.gates.push(Gate { address, kind });
        }
        Ok(())
    }

    fn add_name(&mut self, desc: &[u8]) -> Result<(), ElfError> {
        let (number, name) = desc
            .split_first_chunk()
            .ok_or_else(|| damaged("milestone note too short"))?;
        let name: String = String::from_utf8_lossy(name)
            .chars()
            .filter(|c| !c.is_control())
            .take(milestone::NAME_MAX)
            .collect();
        if self.names.len() < crate::exits::milestone::ROOM && !name.is_empty() {
            self.names.insert(u32::from_le_bytes(*number), name);
        }
        Ok(())
    }
}

impl Image {
    /// Opens an image and checks all that can be checked without a VM.
    pub fn open(path: &Path, files: &mut Files) -> Result<Self, ElfError> {
        let (mut file, bytes) = files.open(path)?;
        if bytes > FILE_MAX {
            return Err(ElfError::TooLarge(bytes >> 20));
        }
        let mut start = [0; HEADER_SIZE];
        let got = read_up_to(&mut file, &mut start).map_err(ElfError::Read)?;
        let shown = || {
            let shown: Vec<String> = start[..got.min(4)]
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            ElfError::NotElf(shown.join(" "))
        };
        if !start.starts_with(b"\x7fELF") {
            return Err(shown());
        }
        match start[4] {
            ELFCLASS64 => {}
            ELFCLASS32 => return Err(ElfError::Class32),
            class => return Err(damaged(format!("class {class}"))),
        }
        if counts_lie_elsewhere(&start) {
            return Err(damaged("more headers than its own header can count"));
        }
        file.seek(SeekFrom::Start(0)).map_err(ElfError::Read)?;
        let mut stream = elf::ElfStream::<AnyEndian, _>::open_stream(&mut file).map_err(damaged)?;
        if stream.ehdr.e_machine != EM_X86_64 {
            return Err(ElfError::Machine(stream.ehdr.e_machine));
        }
        let headers = stream.segments().clone();
        if headers.len() > SEGMENTS_MAX {
            return Err(damaged(format!("{} program headers", headers.len())));
        }
        let (mut segments, mut linked) = (Vec::new(), Vec::new());
        for header in headers
            .iter()
            .filter(|h| h.p_type == PT_LOAD && h.p_memsz > 0)
        {
            let in_file = header.p_offset.checked_add(header.p_filesz);
            if in_file.is_none_or(|end| end > bytes) {
                return Err(damaged("a segment reaches beyond the end of the file"));
            }
            if header.p_filesz > header.p_memsz {
                return Err(damaged(
                    "a segment has more bytes in the file than in memory",
                ));
            }
            let end = header
                .p_paddr
                .checked_add(header.p_memsz)
                .ok_or_else(|| damaged("a segment reaches beyond the address space"))?;
            segments.push((header.p_paddr, end));
            let linked_end = header.p_vaddr.saturating_add(header.p_memsz);
            linked.push((header.p_vaddr, linked_end, header.p_paddr));
        }
        if segments.is_empty() {
            return Err(ElfError::NoSegment);
        }
        segments.sort_unstable();
        for pair in segments.windows(2) {
            if pair[1].0 < pair[0].1 {
                return Err(ElfError::Overlap(pair[0].0, pair[1].0));
            }
        }
        let mut published = Published::default();
        let mut notes = 0_u64;
        for header in headers.iter().filter(|h| h.p_type == PT_NOTE) {
            notes = notes.saturating_add(header.p_filesz);
            if notes > NOTES_MAX {
                return Err(damaged("its notes are absurdly large"));
            }
            for note in stream.segment_data_as_notes(header).map_err(damaged)? {
                if let Note::Unknown(any) = note {
                    published.add(any.name, any.n_type, any.desc)?;
                }
            }
        }
        let start = stream.ehdr.e_entry;
        drop(stream);
        let Published {
            entry: pvh,
            is_linux,
            gates,
            names,
        } = published;
        match pvh.map(u64::from) {
            None if !is_linux => return Err(ElfError::NoPvh),
            Some(entry) if !lies_in(entry, &segments) => return Err(ElfError::Entry(entry)),
            _ => {}
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            bytes,
            pvh,
            start,
            is_linux,
            segments,
            linked,
            gates,
            names,
        })
    }

    /// Where what is linked at a linear address is loaded.
    pub fn physical(&self, linear: u64) -> Option<u64> {
        let within = |(start, end, _): &&(u64, u64, u64)| (*start..*end).contains(&linear);
        let (start, _, physical) = self.linked.iter().find(within)?;
        physical.checked_add(linear - start)
    }

    /// Where what is loaded at a physical address is linked.
    pub fn linear(&self, physical: u64) -> Option<u64> {
        let (linear, ..) = self.linked.iter().find(|(.., at)| *at == physical)?;
        Some(*linear)
    }

    /// Checks the segments against guest memory, the image's role and what is loaded already, then
    /// loads them.
    pub fn load(
        &mut self,
        memory: &Memory,
        role: Role,
        taken: &[(u64, u64)],
    ) -> Result<(), ElfError> {
        let size: u64 = memory.iter().map(|r| r.len()).sum();
        for &(start, end) in &self.segments {
            role.check(start, end)?;
            let length = usize::try_from(end - start).unwrap_or(usize::MAX);
            if !memory.check_range(GuestAddress(start), length) {
                return Err(ElfError::Outside {
                    start,
                    end,
                    memory: size >> 20,
                });
            }
            if taken.iter().any(|&(s, e)| start < e && s < end) {
                return Err(ElfError::OverOther(start));
            }
        }
        Elf::load(memory, None, &mut self.file, None).map_err(ElfError::Load)?;
        Ok(())
    }

    /// Where it is entered by Linux's 64-bit boot protocol: at the ELF header's entry, which in
    /// Linux is a physical address.
    pub fn linux_entry(&self) -> Result<u64, ElfError> {
        match lies_in(self.start, &self.segments) {
            true => Ok(self.start),
            false => Err(ElfError::Start(self.start)),
        }
    }

    /// The file, for its hash.
    pub fn into_file(self) -> File {
        self.file
    }

    /// One past the highest byte of any segment.
    pub fn end(&self) -> u64 {
        self.segments.last().map_or(0, |s| s.1)
    }
}

fn lies_in(address: u64, segments: &[(u64, u64)]) -> bool {
    segments.iter().any(|&(s, e)| (s..e).contains(&address))
}

/// Whether the file header leaves the number of program or section headers to section header 0
/// (gABI, ELF header: PN_XNUM, and `e_shnum` = 0). Those numbers have 32 and 64 bits; the parser
/// would allocate as much as they say, and a sparse file is as large as anybody likes.
fn counts_lie_elsewhere(header: &[u8; HEADER_SIZE]) -> bool {
    // Alike in both byte orders.
    let (shoff, phnum, shnum) = (&header[40..48], &header[56..58], &header[60..62]);
    phnum == PN_XNUM.to_le_bytes() || (shnum == [0; 2] && shoff != [0; 8])
}

/// Reads until the buffer is full or the file ends.
fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn note(owner: &[u8], n_type: u32, desc: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [owner.len() as u32, desc.len() as u32, n_type] {
            out.extend(word.to_le_bytes());
        }
        for part in [owner, desc] {
            out.extend(part);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    /// A small ELF64 with one loadable segment and these notes.
    fn image(notes: &[u8], paddr: u64) -> Vec<u8> {
        let mut out = vec![0x7F, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        out.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        out.extend([0; 8]);
        out.extend(64_u64.to_le_bytes());
        out.extend([0; 8]);
        out.extend([0; 4]);
        for half in [64_u16, 56, 2, 64, 0, 0] {
            out.extend(half.to_le_bytes());
        }
        let data = 64 + 2 * 56;
        for (kind, offset, addr, filesz, memsz) in [
            (PT_LOAD, data as u64, paddr, 16, 32),
            (PT_NOTE, data as u64 + 16, 0, notes.len() as u64, 0),
        ] {
            out.extend(kind.to_le_bytes());
            out.extend(7_u32.to_le_bytes());
            for word in [offset, addr, addr, filesz, memsz, 4_u64] {
                out.extend(word.to_le_bytes());
            }
        }
        out.extend([0x90; 16]);
        out.extend(notes);
        out
    }

    fn parse(bytes: &[u8]) -> Result<Image, ElfError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Image::open(file.path(), &mut Files::default())
    }

    fn pvh() -> Vec<u8> {
        note(b"Xen\0", 18, &0x10_0000_u32.to_le_bytes())
    }

    #[test]
    fn notes_are_read() {
        let mut notes = pvh();
        notes.extend(note(b"Exitvisor\0", 1, &0x10_0004_u64.to_le_bytes()));
        notes.extend(note(b"Exitvisor\0", 2, &0x10_0008_u64.to_le_bytes()));
        notes.extend(note(b"Exitvisor\0", 3, b"\0\x01\0\0my step"));
        notes.extend(note(b"GNU\0", 3, b"build id"));
        let image = parse(&image(&notes, 0x10_0000)).unwrap();
        assert_eq!(image.pvh, Some(0x10_0000));
        assert_eq!(image.segments, [(0x10_0000, 0x10_0020)]);
        assert_eq!(image.gates.len(), 2);
        assert_eq!(
            image.gates[1],
            Gate {
                address: 0x10_0008,
                kind: GateKind::Hypercall
            }
        );
        assert_eq!(image.names[&0x100], "my step");
    }

    #[test]
    fn each_fault_has_its_line() {
        let good = image(&pvh(), 0x10_0000);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        let gates = |n: u64| {
            let addresses: Vec<u8> = (0..n).flat_map(|i| (i * 4).to_le_bytes()).collect();
            let mut notes = pvh();
            notes.extend(note(b"Exitvisor\0", 1, &addresses));
            image(&notes, 0x10_0000)
        };
        let cases: [(Vec<u8>, &str); 14] = [
            (vec![], "is empty"),
            (b"MZ".to_vec(), "starts with 4d 5a"),
            (with(4, 1), "32-bit"),
            (with(18, 3), "machine 3"),
            (with(4, 9), "class 9"),
            (with(40, 64), "more headers than its own header can count"),
            (
                {
                    let mut bytes = good.clone();
                    bytes[56..58].fill(0xFF);
                    bytes
                },
                "more headers than its own header can count",
            ),
            (good[..30].to_vec(), "truncated or damaged"),
            (good[..70].to_vec(), "truncated or damaged"),
            (good[..180].to_vec(), "truncated or damaged"),
            (image(&[], 0x10_0000), "no PVH note"),
            (image(&pvh(), 0x20_0000), "outside its own segments"),
            (gates(5), "only 4 slots"),
            (image(&pvh(), u64::MAX - 3), "beyond the address space"),
        ];
        for (bytes, expected) in cases {
            let message = parse(&bytes).unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
    }

    #[test]
    fn segments_are_checked_against_memory() {
        let memory = crate::memory::map(4 << 20).unwrap();
        let load = |paddr: u64, taken: &[(u64, u64)]| {
            let mut notes = Vec::new();
            notes.extend(note(b"Xen\0", 18, &(paddr as u32).to_le_bytes()));
            parse(&image(&notes, paddr))
                .unwrap()
                .load(&memory, Role::Kernel, taken)
        };
        assert!(load(0x10_0000, &[]).is_ok());
        assert!(matches!(load(0x8_0000, &[]), Err(ElfError::TooLow(_))));
        assert!(matches!(
            load((4 << 20) - 16, &[]),
            Err(ElfError::Outside { .. })
        ));
        let over = load(0x10_0000, &[(0x10_0010, 0x10_0011)]);
        assert!(matches!(over, Err(ElfError::OverOther(_))));
    }

    #[test]
    fn a_firmware_stays_in_its_window() {
        let memory = crate::memory::map(4 << 20).unwrap();
        let load = |paddr: u64| {
            let notes = note(b"Xen\0", 18, &(paddr as u32).to_le_bytes());
            let mut image = parse(&image(&notes, paddr)).unwrap();
            image.load(&memory, Role::Firmware, &[])
        };
        let (start, end) = (layout::FIRMWARE, layout::FIRMWARE_END);
        // 32 bytes each.
        assert!(load(start).is_ok());
        assert!(load(end - 32).is_ok());
        for paddr in [0, start - 1, end - 31, layout::LOW_END, layout::HIGH_START] {
            let refused = load(paddr);
            assert!(matches!(refused, Err(ElfError::OutsideWindow(s, _)) if s == paddr));
        }
        let message = load(0).unwrap_err().to_string();
        assert!(message.contains("outside 0x20000..0x80000"), "{message}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(flips in prop::collection::vec((0_usize..300, any::<u8>()), 1..8)) {
            let mut bytes = image(&pvh(), 0x10_0000);
            for (at, byte) in flips {
                let len = bytes.len();
                bytes[at % len] = byte;
            }
            if let Ok(mut image) = parse(&bytes) {
                let memory = crate::memory::map(4 << 20).unwrap();
                let _ = image.load(&memory, Role::Kernel, &[]);
            }
        }
    }
}
