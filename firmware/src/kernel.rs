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

use crate::arch::{memory, paging};
use crate::error::Error;
use crate::ram::Ram;
use crate::taken::Taken;

/// The lowest address of a kernel.
const LOWEST: u64 = 1 << 20;
/// Most program headers that are believed.
const SEGMENTS_MAX: usize = 256;

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

/// The loadable segments.
struct Loads<'m> {
    headers: SegmentTable<'m, LittleEndian>,
    next: usize,
}

impl<'m> Loads<'m> {
    const fn of(headers: SegmentTable<'m, LittleEndian>) -> Self {
        Self { headers, next: 0 }
    }
}

impl Iterator for Loads<'_> {
    type Item = ProgramHeader;

    // One copy of the code: the firmware has little room.
    #[inline(never)]
    fn next(&mut self) -> Option<ProgramHeader> {
        while self.next < self.headers.len() {
            let header = self.headers.get(self.next).ok()?;
            self.next += 1;
            if header.p_type == PT_LOAD && header.p_memsz > 0 {
                return Some(header);
            }
        }
        None
    }
}

impl<'m> Kernel<'m> {
    /// Checks the kernel in `file` against RAM and what is taken of it.
    pub fn check(file: &'m [u8], ram: &Ram<'_>, taken: &Taken) -> Result<Self, Error> {
        let elf = parse(file)?;
        let headers = elf
            .segments()
            .ok_or(Error::Damaged("it has no program headers"))?;
        if headers.len() > SEGMENTS_MAX {
            return Err(Error::Damaged("it has too many program headers"));
        }
        for (i, header) in Loads::of(headers).enumerate() {
            check_segment(file, &header, ram, taken)?;
            let (start, end) = place(&header);
            let earlier = Loads::of(headers).take(i).map(|h| place(&h));
            if let Some(other) = earlier.into_iter().find(|o| start < o.1 && o.0 < end) {
                return Err(Error::Overlap(other.0.min(start), other.0.max(start)));
            }
        }
        let (entry, gates) = notes(&elf, headers)?;
        let at_entry = |h: ProgramHeader| (place(&h).0..place(&h).1).contains(&entry.into());
        if !Loads::of(headers).any(at_entry) {
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
        for header in Loads::of(self.headers) {
            let bytes = content(self.file, &header).unwrap_or_default();
            // SAFETY: `check` has found all of the segment's memory to be RAM that is mapped, off the
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
    taken: &Taken,
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
    check_place(start, end, ram, taken)
}

/// Checks that something can be loaded to `start..end`.
pub(crate) fn check_place(start: u64, end: u64, ram: &Ram<'_>, taken: &Taken) -> Result<(), Error> {
    if start < LOWEST {
        return Err(Error::TooLow(start, end));
    }
    if !ram.contains(start, end) {
        return Err(Error::OutsideRam(start, end));
    }
    if end > paging::mapped() {
        return Err(Error::TooHigh(start, end));
    }
    match taken.over(start, end) {
        None => Ok(()),
        Some(over) => Err(match over.what {
            Some(what) => Error::OverBootInformation(start, end, what),
            None => Error::OverModule(start, end, over.start),
        }),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::Entry;
    use proptest::prelude::*;

    const PVH: (&[u8], u32, &[u8]) = (b"Xen\0", 18, &[0, 0, 0x10, 0]);

    /// An ELF64 with these loadable segments (address, bytes in memory), 16 bytes of each in the
    /// file, and these notes.
    fn image(segments: &[(u64, u64)], notes: &[(&[u8], u32, &[u8])]) -> Vec<u8> {
        let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        for word in [0, 64, 0_u64] {
            out.extend(word.to_le_bytes());
        }
        let headers = segments.len() as u16 + 1;
        for half in [0, 0, 64, 56, headers, 64, 0, 0] {
            out.extend(u16::to_le_bytes(half));
        }
        let mut descriptors = Vec::new();
        for (owner, kind, desc) in notes {
            for word in [owner.len() as u32, desc.len() as u32, *kind] {
                descriptors.extend(word.to_le_bytes());
            }
            for part in [owner, desc] {
                descriptors.extend(*part);
                descriptors.resize(descriptors.len().next_multiple_of(4), 0);
            }
        }
        let data = 64 + 56 * u64::from(headers);
        let note = (4_u32, data + 16, 0, descriptors.len() as u64, 0);
        let loads = segments.iter().map(|s| (1, data, s.0, 16, s.1));
        for (kind, offset, address, in_file, in_memory) in loads.chain([note]) {
            out.extend(kind.to_le_bytes());
            out.extend(7_u32.to_le_bytes());
            for word in [offset, address, address, in_file, in_memory, 4] {
                out.extend(word.to_le_bytes());
            }
        }
        out.extend([0x90; 16]);
        out.extend(descriptors);
        out
    }

    /// Four megabytes, a module in the last page, something else below it.
    fn check(file: &[u8]) -> Result<Kernel<'_>, Error> {
        let mut entry: Entry = [0; 24];
        entry[8..16].copy_from_slice(&(4_u64 << 20).to_le_bytes());
        entry[16] = 1;
        let mut taken = Taken::new();
        taken.add(None, 0x3F_F000, 0x1000);
        taken.add(Some("the start info"), 0x3F_E000, 56);
        Kernel::check(file, &Ram::new(&[entry]).unwrap(), &taken)
    }

    fn error(file: &[u8]) -> String {
        check(file).unwrap_err().to_string()
    }

    #[test]
    fn a_kernel() {
        let site = 0x10_0004_u64.to_le_bytes();
        let call = 0x10_0008_u64.to_le_bytes();
        let notes: [(&[u8], u32, &[u8]); 4] = [
            (b"GNU\0", 3, b"build"),
            (b"Exitvisor\0", 1, &site),
            (b"Exitvisor\0", 2, &call),
            PVH,
        ];
        let file = image(&[(0x10_0000, 32), (0x20_0000, 1 << 20)], &notes);
        let kernel = check(&file).unwrap();
        assert_eq!(kernel.entry, 0x10_0000);
        let gates: Vec<_> = kernel
            .gates
            .iter()
            .map(|g| (g.address, g.command))
            .collect();
        assert_eq!(
            gates,
            [
                (0x10_0004, Command::RegisterCpuid),
                (0x10_0008, Command::RegisterHypercall)
            ]
        );
    }

    #[test]
    fn each_fault_has_its_line() {
        let good = image(&[(0x10_0000, 32)], &[PVH]);
        let with = |at: usize, byte: u8| {
            let mut file = good.clone();
            file[at] = byte;
            error(&file)
        };
        let at = |segments: &[(u64, u64)]| error(&image(segments, &[PVH]));
        let of = |notes: &[(&[u8], u32, &[u8])]| error(&image(&[(0x10_0000, 32)], notes));
        for (message, expected) in [
            (error(b""), "neither an ELF file nor a bzImage"),
            (error(b"MZ"), "starts with 4d 5a 00 00"),
            (error(b"\x7fELF"), "ends within its header"),
            (with(4, 1), "32-bit"),
            (with(4, 7), "class 7"),
            (with(5, 2), "headers make no sense"),
            (with(18, 3), "machine 3"),
            (error(&good[..30]), "truncated or damaged"),
            (error(&good[..70]), "truncated or damaged"),
            (error(&good[..180]), "truncated or damaged"),
            (of(&[]), "no PVH note"),
            (of(&[(b"Xen\0", 18, &[1])]), "PVH note is too short"),
            (of(&[(b"Xen\0", 18, &[0; 4])]), "entry at 0x0, outside"),
            (of(&[PVH, (b"Exitvisor\0", 1, &[0; 40])]), "only 4 slots"),
            (of(&[PVH, (b"Exitvisor\0", 2, &[0; 9])]), "multiple of 8"),
            (at(&[(0x10_0000, 8)]), "more bytes in the file"),
            (at(&[(u64::MAX - 7, 16)]), "beyond the address space"),
            (at(&[(0xF_FFF0, 16)]), "below 1 MiB"),
            (at(&[(0x40_0000, 16)]), "outside RAM"),
            (at(&[(0x10_0000, 4 << 20)]), "outside RAM"),
            (at(&[(0x3F_EFFF, 16)]), "over the module at 0x3ff000"),
            (at(&[(0x10_0000, 0x2F_E001)]), "over the start info"),
            (
                at(&[(0x20_0000, 16), (0x10_0000, 0x10_0001)]),
                "over each other",
            ),
        ] {
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(flips in prop::collection::vec((0_usize..300, any::<u8>()), 1..8)) {
            let mut file = image(&[(0x10_0000, 32)], &[PVH]);
            for (at, byte) in flips {
                let length = file.len();
                file[at % length] = byte;
            }
            let _ = check(&file);
        }
    }
}
