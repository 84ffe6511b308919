//! A guest without gates: a copy of its image in which the notes that publish them are no longer
//! Exitvisor's.

use anyhow::{Context, bail};
use elf::ElfBytes;
use elf::abi::PT_NOTE;
use elf::endian::LittleEndian;
use exit_abi::note::{CPUID_GATES, HYPERCALL_GATES, OWNER};

/// The header of a note: sizes of name and descriptor, type (System V ABI).
const HEADER: usize = 12;

/// The image with the owner's name of such notes changed; all else stays where it is.
pub(crate) fn without_gates(mut image: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    let mut changed = 0;
    for at in owners(&image).context("cannot read the guest's notes")? {
        image[at].make_ascii_lowercase();
        changed += 1;
    }
    if changed == 0 {
        bail!("the guest publishes no gates");
    }
    Ok(image)
}

/// Where the owner's name begins in each note that publishes gates.
fn owners(image: &[u8]) -> Option<Vec<usize>> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(image).ok()?;
    let mut found = Vec::new();
    for segment in file.segments()?.iter().filter(|s| s.p_type == PT_NOTE) {
        let start = usize::try_from(segment.p_offset).ok()?;
        let mut rest = file.segment_data(&segment).ok()?;
        let size = rest.len();
        while rest.len() >= HEADER {
            let field = |at: usize| Some(u32::from_le_bytes(rest[at..at + 4].try_into().ok()?));
            let (name, descriptor, kind) = (field(0)?, field(4)?, field(8)?);
            let padded = |size: u32| usize::try_from(size).ok()?.checked_next_multiple_of(4);
            let next = HEADER
                .checked_add(padded(name)?)?
                .checked_add(padded(descriptor)?)?;
            if [CPUID_GATES, HYPERCALL_GATES].contains(&kind) && rest[HEADER..].starts_with(OWNER) {
                found.push(start + size - rest.len() + HEADER);
            }
            rest = rest.get(next..)?;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(owner: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for field in [owner.len() as u32, descriptor.len() as u32, kind] {
            note.extend(field.to_le_bytes());
        }
        for part in [owner, descriptor] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    /// An ELF file of one segment, behind its headers.
    fn image(notes: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 64 + 56];
        image[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        image[20] = 1;
        image[32] = 64; // e_phoff
        image[52] = 64; // e_ehsize
        image[54] = 56; // e_phentsize
        image[56] = 1; // e_phnum
        image[64] = 4; // PT_NOTE
        image[72] = 64 + 56; // p_offset
        image[96..104].copy_from_slice(&(notes.len() as u64).to_le_bytes());
        image.extend(notes);
        image
    }

    #[test]
    fn gates_go_and_all_else_stays() {
        let notes = |owner: &[u8]| {
            [
                note(b"Xen\0", 1, &[0; 3]),
                note(OWNER, 3, b"\x01\0\0\0name"),
                note(owner, 1, &[7; 8]),
            ]
            .concat()
        };
        let changed = without_gates(image(&notes(OWNER))).unwrap();
        assert_eq!(changed, image(&notes(b"exitvisor\0")));
        let error = without_gates(changed).unwrap_err().to_string();
        assert_eq!(error, "the guest publishes no gates");
    }

    #[test]
    fn what_is_no_image_is_an_error() {
        assert!(without_gates(b"text".to_vec()).is_err());
        let mut cut = image(&note(OWNER, 1, &[7; 8]));
        cut.truncate(cut.len() - 4);
        assert!(without_gates(cut).is_err());
        let mut long = note(OWNER, 1, &[7; 8]);
        long[4..8].fill(0xFF);
        assert!(without_gates(image(&long)).is_err());
    }
}
