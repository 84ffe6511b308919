//! The kernel: an ELF64 image with a PVH note, checked whole before a byte of it is loaded.
//!
//! The `elf` crate parses; the rules for what may lie where are ours, and the VMM's for a kernel
//! that it loads itself (`hypervisor/src/boot/elf.rs`).

use elf::ElfBytes;
use elf::abi::{ELFCLASS64, ELFMAGIC, EM_X86_64, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::note::Note;
use elf::segment::{ProgramHeader, SegmentTable};
use exit_abi::gate::{Command, SLOTS};
use exit_abi::note;

use crate::arch::{memory, tables};
use crate::error::Error;
use crate::ram::Ram;

/// The lowest address of a kernel.
const LOWEST: u64 = 1 << 20;
/// Most program headers that are believed.
const SEGMENTS_MAX: usize = 256;

/// A range that no segment may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// What lies there; `None` for a module.
    pub what: Option<&'static str>,
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// A gate that the kernel publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Its linear address.
    pub address: u64,
    /// What registers it.
    pub command: Command,
}

/// All of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gates {
    gates: [Option<Gate>; SLOTS],
}

impl Gates {
    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &Gate> {
        self.gates.iter().flatten()
    }

    fn add(&mut self, command: Command, descriptor: &[u8]) -> Result<(), Error> {
        let (addresses, rest) = descriptor.as_chunks();
        if !rest.is_empty() {
            return Err(Error::GateNote("the note's length is not a multiple of 8"));
        }
        for address in addresses.iter().map(|a| u64::from_le_bytes(*a)) {
            let free = self.gates.iter_mut().find(|gate| gate.is_none());
            *free.ok_or(Error::GateNote("there are only 4 slots"))? =
                Some(Gate { address, command });
        }
        Ok(())
    }
}

/// A kernel that passed the checks.
#[derive(Debug)]
pub struct Kernel<'m> {
    file: &'m [u8],
    headers: SegmentTable<'m, LittleEndian>,
    /// Its PVH entry.
    pub entry: u32,
    /// The gates that its notes publish.
    pub gates: Gates,
}

const fn damaged<E>(why: &'static str) -> impl FnOnce(E) -> Error {
    move |_| Error::Damaged(why)
}

/// Where a segment goes: (first byte, one past the last).
fn place(header: &ProgramHeader) -> (u64, u64) {
    (
        header.p_paddr,
        header.p_paddr.saturating_add(header.p_memsz),
    )
}

/// The bytes of a segment that the file has.
fn content<'m>(file: &'m [u8], header: &ProgramHeader) -> Option<&'m [u8]> {
    let start = usize::try_from(header.p_offset).ok()?;
    let length = usize::try_from(header.p_filesz).ok()?;
    file.get(start..start.checked_add(length)?)
}

fn loads(headers: SegmentTable<'_, LittleEndian>) -> impl Iterator<Item = ProgramHeader> {
    headers
        .iter()
        .filter(|header| header.p_type == PT_LOAD && header.p_memsz > 0)
}

impl<'m> Kernel<'m> {
    /// Checks the kernel in `file` against RAM and what is taken of it.
    pub fn check(
        file: &'m [u8],
        ram: &Ram<'_>,
        taken: impl Iterator<Item = Taken> + Clone,
    ) -> Result<Self, Error> {
        let elf = parse(file)?;
        let headers = elf
            .segments()
            .ok_or(Error::Damaged("it has no program headers"))?;
        if headers.len() > SEGMENTS_MAX {
            return Err(Error::Damaged("it has too many program headers"));
        }
        for (i, header) in loads(headers).enumerate() {
            check_segment(file, &header, ram, taken.clone())?;
            let (start, end) = place(&header);
            let earlier = loads(headers).take(i).map(|h| place(&h));
            if let Some(other) = earlier.into_iter().find(|o| start < o.1 && o.0 < end) {
                return Err(Error::Overlap(other.0.min(start), other.0.max(start)));
            }
        }
        let (entry, gates) = notes(&elf, headers)?;
        let at_entry = |h: ProgramHeader| (place(&h).0..place(&h).1).contains(&entry.into());
        if !loads(headers).any(at_entry) {
            return Err(Error::Entry(entry));
        }
        Ok(Self {
            file,
            headers,
            entry,
            gates,
        })
    }

    /// Copies every segment to its place and clears what the file does not have of it.
    pub fn load(&self) {
        for header in loads(self.headers) {
            let bytes = content(self.file, &header).unwrap_or_default();
            // SAFETY: `check` has found all of the segment's memory to be RAM below 4 GiB, off the
            // firmware, the boot information, every module (so off `bytes`) and every other
            // segment, and the file to have no more bytes than the memory.
            unsafe { memory::fill(header.p_paddr, bytes, header.p_memsz) };
        }
    }
}

/// Parses the headers of an ELF64 file for x86-64.
fn parse(file: &[u8]) -> Result<ElfBytes<'_, LittleEndian>, Error> {
    if !file.starts_with(&ELFMAGIC) {
        let mut start = [0; 4];
        start
            .iter_mut()
            .zip(file)
            .for_each(|(to, from)| *to = *from);
        return Err(Error::NotElf(start));
    }
    match file.get(4) {
        Some(&ELFCLASS64) => {}
        Some(&class) => return Err(Error::Class(class)),
        None => return Err(Error::Damaged("it ends within its header")),
    }
    let elf = ElfBytes::minimal_parse(file).map_err(damaged("its headers make no sense"))?;
    match elf.ehdr.e_machine {
        EM_X86_64 => Ok(elf),
        machine => Err(Error::OtherMachine(machine)),
    }
}

fn check_segment(
    file: &[u8],
    header: &ProgramHeader,
    ram: &Ram<'_>,
    mut taken: impl Iterator<Item = Taken>,
) -> Result<(), Error> {
    if content(file, header).is_none() {
        return Err(Error::Damaged(
            "a segment reaches beyond the end of the file",
        ));
    }
    if header.p_filesz > header.p_memsz {
        return Err(Error::Damaged(
            "a segment has more bytes in the file than in memory",
        ));
    }
    let (start, end) = place(header);
    if header.p_paddr.checked_add(header.p_memsz).is_none() {
        return Err(Error::Damaged("a segment reaches beyond the address space"));
    }
    if start < LOWEST {
        return Err(Error::TooLow(start, end));
    }
    if !ram.contains(start, end) {
        return Err(Error::OutsideRam(start, end));
    }
    if end > tables::MAPPED {
        return Err(Error::TooHigh(start, end));
    }
    match taken.find(|t| start < t.end && t.start < end) {
        None => Ok(()),
        Some(Taken {
            what: Some(what), ..
        }) => Err(Error::OverBootInformation(start, end, what)),
        Some(module) => Err(Error::OverModule(start, end, module.start)),
    }
}

/// The entry and the gates that the notes publish.
fn notes(
    elf: &ElfBytes<'_, LittleEndian>,
    headers: SegmentTable<'_, LittleEndian>,
) -> Result<(u32, Gates), Error> {
    let (mut entry, mut gates) = (None, Gates::default());
    for header in headers.iter().filter(|header| header.p_type == PT_NOTE) {
        let notes = elf.segment_data_as_notes(&header);
        for note in notes.map_err(damaged("its notes make no sense"))? {
            let Note::Unknown(any) = note else { continue };
            let is = |owner: &[u8]| {
                any.name.strip_suffix(b"\0").unwrap_or(any.name)
                    == owner.strip_suffix(b"\0").unwrap_or(owner)
            };
            let number = u32::try_from(any.n_type).unwrap_or(0);
            if is(note::XEN_OWNER) && number == note::XEN_PHYS32_ENTRY {
                let bytes = any
                    .desc
                    .first_chunk()
                    .ok_or(Error::Damaged("its PVH note is too short"))?;
                entry = Some(u32::from_le_bytes(*bytes));
            } else if is(note::OWNER) && number == note::CPUID_GATES {
                gates.add(Command::RegisterCpuid, any.desc)?;
            } else if is(note::OWNER) && number == note::HYPERCALL_GATES {
                gates.add(Command::RegisterHypercall, any.desc)?;
            }
        }
    }
    Ok((entry.ok_or(Error::NoPvh)?, gates))
}
