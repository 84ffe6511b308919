//! Hand-made ELF images: small, and wrong in exactly the way a test wants.

use std::path::{Path, PathBuf};

use exit_abi::note;

/// Where images go unless a test says otherwise: the lowest address that is allowed.
pub const BASE: u64 = 0x10_0000;
/// Where hand-made firmwares go: the start of the window that is theirs.
pub const FIRMWARE_BASE: u64 = 0x2_0000;
/// Offsets of fields of the ELF header (ELF-64 Object File Format, 3).
pub const CLASS: usize = 4;
/// Offset of `e_machine`, two bytes.
pub const MACHINE: usize = 18;
/// Offset of `e_phoff`, eight bytes.
pub const PHOFF: usize = 32;
/// Offset of `e_shoff`, eight bytes.
pub const SHOFF: usize = 40;
/// Offset of `e_phentsize`, two bytes.
pub const PHENTSIZE: usize = 54;
/// Offset of `e_phnum`, two bytes.
pub const PHNUM: usize = 56;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// A loadable segment; what its header says need not be true.
#[derive(Clone, Debug)]
struct Segment {
    paddr: u64,
    bytes: Vec<u8>,
    filesz: u64,
    memsz: u64,
}

/// An ELF64 image for x86-64 in the making.
#[derive(Clone, Debug, Default)]
pub struct Elf {
    segments: Vec<Segment>,
    notes: Vec<u8>,
}

impl Elf {
    /// An image with this code at [`BASE`], where its PVH entry is.
    pub fn of_code(code: &[u8]) -> Self {
        Self::default().segment(BASE, code).entry(BASE as u32)
    }

    /// A firmware with this code at [`FIRMWARE_BASE`], where its PVH entry is.
    pub fn of_firmware_code(code: &[u8]) -> Self {
        let at = FIRMWARE_BASE;
        Self::default().segment(at, code).entry(at as u32)
    }

    /// Adds a segment at this physical address.
    #[must_use]
    pub fn segment(self, paddr: u64, bytes: &[u8]) -> Self {
        let size = bytes.len() as u64;
        self.odd_segment(paddr, bytes, size, size)
    }

    /// Adds a segment whose header names these sizes in the file and in memory.
    #[must_use]
    pub fn odd_segment(mut self, paddr: u64, bytes: &[u8], filesz: u64, memsz: u64) -> Self {
        let bytes = bytes.to_vec();
        self.segments.push(Segment {
            paddr,
            bytes,
            filesz,
            memsz,
        });
        self
    }

    /// Adds the PVH note with this entry.
    #[must_use]
    pub fn entry(self, entry: u32) -> Self {
        self.note(
            note::XEN_OWNER,
            note::XEN_PHYS32_ENTRY,
            &entry.to_le_bytes(),
        )
    }

    /// Adds a note that publishes CPUID gates.
    #[must_use]
    pub fn gates(self, addresses: &[u64]) -> Self {
        let bytes: Vec<u8> = addresses.iter().flat_map(|a| a.to_le_bytes()).collect();
        self.note(note::OWNER, note::CPUID_GATES, &bytes)
    }

    /// Adds a note.
    #[must_use]
    pub fn note(mut self, owner: &[u8], n_type: u32, desc: &[u8]) -> Self {
        for word in [owner.len() as u32, desc.len() as u32, n_type] {
            self.notes.extend(word.to_le_bytes());
        }
        for part in [owner, desc] {
            self.notes.extend(part);
            let padded = self.notes.len().next_multiple_of(4);
            self.notes.resize(padded, 0);
        }
        self
    }

    /// The file: header, program headers, segments, notes.
    pub fn bytes(&self) -> Vec<u8> {
        let headers = self.segments.len() + usize::from(!self.notes.is_empty());
        let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        // ET_EXEC, EM_X86_64, EV_CURRENT; no ELF entry: PVH has its own.
        out.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        for word in [0, HEADER as u64, 0] {
            out.extend(word.to_le_bytes());
        }
        out.extend([0; 4]);
        for half in [HEADER, PROGRAM_HEADER, headers, 64, 0, 0] {
            out.extend((half as u16).to_le_bytes());
        }
        let mut offset = (HEADER + headers * PROGRAM_HEADER) as u64;
        let notes = self.notes.len() as u64;
        let loads = self.segments.iter().map(|s| {
            let len = s.bytes.len() as u64;
            (PT_LOAD, s.paddr, len, s.filesz, s.memsz)
        });
        let all = loads.chain((notes > 0).then_some((PT_NOTE, 0, notes, notes, notes)));
        for (kind, paddr, len, filesz, memsz) in all {
            out.extend(kind.to_le_bytes());
            // Readable, writable, executable.
            out.extend(7_u32.to_le_bytes());
            for word in [offset, paddr, paddr, filesz, memsz, 4] {
                out.extend(word.to_le_bytes());
            }
            offset += len;
        }
        self.segments.iter().for_each(|s| out.extend(&s.bytes));
        out.extend(&self.notes);
        out
    }

    /// Writes the file into a folder.
    pub fn write(&self, folder: &Path) -> PathBuf {
        self.write_as(folder, "image.elf")
    }

    /// Writes the file into a folder, under this name.
    pub fn write_as(&self, folder: &Path, name: &str) -> PathBuf {
        crate::file(folder, name, &self.bytes())
    }
}
