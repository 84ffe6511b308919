//! The Linux kernel that is packed in a bzImage, unpacked on the host: emulated, that takes longer
//! than the whole boot.
//!
//! The header is in linux/Documentation/arch/x86/boot.rst, what is packed is an ELF file.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use elf::ElfBytes;
use elf::abi::{PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::note::Note;
use lzma_rust2::XzReader;

/// A kernel in memory as it wants to lie.
#[derive(Debug)]
pub(super) struct Vmlinux {
    /// Its segments: physical address, and the bytes there.
    pub(super) segments: Vec<(u64, Vec<u8>)>,
    /// Where it is entered by the PVH protocol.
    pub(super) entry: u32,
    /// One past the last byte that it uses before it looks at the memory map.
    pub(super) end: u64,
}

/// A bzImage, as far as it is of interest.
#[derive(Debug, PartialEq, Eq)]
struct Packed<'a> {
    /// The packed kernel.
    payload: &'a [u8],
    /// Bytes of memory the kernel needs from its first one on (`init_size`).
    init_size: u32,
}

/// What takes each kind of packing its first bytes, and ends it for a bzImage: the size of what is
/// packed, four bytes.
const SIZE: usize = 4;
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const LZ4_LEGACY: &[u8] = b"\x02\x21\x4c\x18";
const XZ: &[u8] = b"\xfd7zXZ\0";
/// More than any kernel takes unpacked.
const UNPACKED_MAX: usize = 512 << 20;
/// What a block of LZ4's legacy format holds at most, unpacked.
const LZ4_BLOCK: usize = 8 << 20;

impl Vmlinux {
    /// The kernel of this bzImage. What is unpacked is kept in `folder` for the next time.
    pub(super) fn of(image: &Path, folder: &Path) -> anyhow::Result<Self> {
        let kernel = || {
            let bytes = fs::read(image)?;
            let packed = Packed::of(&bytes)?;
            parse(&packed.unpacked(folder)?, packed.init_size)
        };
        kernel().with_context(|| format!("cannot unpack {}", image.display()))
    }
}

/// The kernel that is packed in a bzImage, as a file of this folder.
pub(super) fn file(image: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let unpacked = || {
        let bytes = fs::read(image)?;
        let packed = Packed::of(&bytes)?;
        packed.unpacked(folder)?;
        Ok::<_, anyhow::Error>(packed.file(folder))
    };
    unpacked().with_context(|| format!("cannot unpack {}", image.display()))
}

impl<'a> Packed<'a> {
    fn of(image: &'a [u8]) -> anyhow::Result<Self> {
        let word = |at: usize| {
            let bytes = image.get(at..at + 4)?;
            bytes.try_into().ok().map(u32::from_le_bytes)
        };
        let header = || {
            if image.get(0x202..0x206)? != b"HdrS" {
                return None;
            }
            // setup_sects, 0 for 4; then payload_offset and payload_length behind the setup code.
            let sectors = match *image.get(0x1F1)? {
                0 => 4,
                sectors => usize::from(sectors),
            };
            let start = (sectors + 1) * 512 + usize::try_from(word(0x248)?).ok()?;
            let end = start.checked_add(usize::try_from(word(0x24C)?).ok()?)?;
            Some(Self {
                payload: image.get(start..end)?,
                init_size: word(0x260)?,
            })
        };
        header().context("it is not a whole bzImage")
    }

    /// Size of what is packed.
    fn size(&self) -> anyhow::Result<usize> {
        let size = self.payload.last_chunk::<SIZE>();
        let size = size.and_then(|size| usize::try_from(u32::from_le_bytes(*size)).ok());
        size.filter(|size| *size <= UNPACKED_MAX)
            .context("its size makes no sense")
    }

    /// The unpacked kernel, from the folder if it is there.
    fn unpacked(&self, folder: &Path) -> anyhow::Result<Vec<u8>> {
        let file = self.file(folder);
        let size = self.size()?;
        if let Ok(bytes) = fs::read(&file)
            && bytes.len() == size
        {
            return Ok(bytes);
        }
        let bytes = unpack(self.payload, size)?;
        // Not in one step visible to others: complete, or not there.
        let made = fs::create_dir_all(folder).and_then(|()| {
            let partial = file.with_extension(std::process::id().to_string());
            fs::write(&partial, &bytes)?;
            fs::rename(&partial, &file)
        });
        made.with_context(|| format!("cannot write {}", file.display()))?;
        Ok(bytes)
    }

    fn file(&self, folder: &Path) -> PathBuf {
        let name = format!(
            "{:08x}-{}",
            crc32fast::hash(self.payload),
            self.payload.len()
        );
        folder.join(name)
    }
}

/// Unpacks `size` bytes.
fn unpack(payload: &[u8], size: usize) -> anyhow::Result<Vec<u8>> {
    let Some(packed) = payload.len().checked_sub(SIZE) else {
        bail!("nothing is packed in it");
    };
    let packed = &payload[..packed];
    let mut bytes = Vec::with_capacity(size);
    if packed.starts_with(ZSTD) {
        let mut from = packed;
        let reader = ruzstd::decoding::StreamingDecoder::new(&mut from);
        let reader = reader.map_err(|error| anyhow!("zstd: {error}"))?;
        reader.take(size as u64 + 1).read_to_end(&mut bytes)?;
    } else if packed.starts_with(LZ4_LEGACY) {
        unpack_lz4(&packed[LZ4_LEGACY.len()..], size, &mut bytes)?;
    } else if packed.starts_with(XZ) {
        let reader = XzReader::new(packed, true);
        reader.take(size as u64 + 1).read_to_end(&mut bytes)?;
    } else {
        bail!("its packing is neither zstd, LZ4 nor xz");
    }
    if bytes.len() != size {
        bail!("it holds {} bytes instead of {size}", bytes.len());
    }
    Ok(bytes)
}

/// LZ4's legacy format (lz4/doc/lz4_Frame_format.md): blocks, each with its packed size before it.
fn unpack_lz4(mut packed: &[u8], size: usize, bytes: &mut Vec<u8>) -> anyhow::Result<()> {
    while bytes.len() < size
        && let Some((length, rest)) = packed.split_first_chunk::<4>()
    {
        let length = usize::try_from(u32::from_le_bytes(*length))?;
        let Some((block, rest)) = rest.split_at_checked(length) else {
            bail!("its last block is not whole");
        };
        bytes.extend(lz4_flex::block::decompress(block, LZ4_BLOCK)?);
        packed = rest;
    }
    Ok(())
}

fn parse(kernel: &[u8], init_size: u32) -> anyhow::Result<Vmlinux> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(kernel)?;
    let headers = file.segments().context("its kernel has no segments")?;
    let mut segments = Vec::new();
    let mut entry = None;
    for header in headers {
        if header.p_type == PT_LOAD {
            segments.push((header.p_paddr, file.segment_data(&header)?.to_vec()));
        } else if header.p_type == PT_NOTE {
            entry = file.segment_data_as_notes(&header)?.find_map(pvh).or(entry);
        }
    }
    let Some(start) = segments.iter().map(|(address, _)| *address).min() else {
        bail!("its kernel has nothing to load");
    };
    Ok(Vmlinux {
        segments,
        entry: entry.context("its kernel has no PVH entry (CONFIG_PVH=y gives it one)")?,
        end: start + u64::from(init_size),
    })
}

/// The entry that a note names, if it is `XEN_ELFNOTE_PHYS32_ENTRY` (xen/include/public/elfnote.h).
fn pvh(note: Note<'_>) -> Option<u32> {
    const PHYS32_ENTRY: u64 = 18;
    match note {
        Note::Unknown(note) if note.n_type == PHYS32_ENTRY && note.name_str().ok()? == "Xen" => {
            note.desc
                .first_chunk::<4>()
                .map(|entry| u32::from_le_bytes(*entry))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage around a payload.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x600];
        image[0x1F1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24C].copy_from_slice(&0x200_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[0x24C..0x250].copy_from_slice(&length.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&0x123_4000_u32.to_le_bytes());
        image.extend(payload);
        image
    }

    fn sized(mut packed: Vec<u8>, size: usize) -> Vec<u8> {
        packed.extend(u32::try_from(size).unwrap().to_le_bytes());
        packed
    }

    #[test]
    fn a_header_leads_to_the_payload() {
        let bytes = image(b"packed");
        let packed = Packed::of(&bytes).unwrap();
        assert_eq!(packed.payload, b"packed");
        assert_eq!(packed.init_size, 0x123_4000);
        for end in [0, 0x203, 0x24F, bytes.len() - 1] {
            let error = Packed::of(&bytes[..end]).unwrap_err().to_string();
            assert_eq!(error, "it is not a whole bzImage");
        }
    }

    #[test]
    fn lz4_is_unpacked_block_by_block() {
        let blocks = [vec![7; 1000], b"the rest".to_vec()];
        let mut packed = LZ4_LEGACY.to_vec();
        for block in &blocks {
            let block = lz4_flex::block::compress(block);
            packed.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            packed.extend(block);
        }
        let payload = sized(packed, 1008);
        assert_eq!(unpack(&payload, 1008).unwrap(), blocks.concat());
        let error = unpack(&payload, 1009).unwrap_err().to_string();
        assert_eq!(error, "it holds 1008 bytes instead of 1009");
    }

    #[test]
    fn zstd_is_unpacked() {
        // A frame of one raw block (RFC 8878, section 3.1.1): "abc".
        let packed = b"\x28\xb5\x2f\xfd\x20\x03\x19\x00\x00abc".to_vec();
        assert_eq!(unpack(&sized(packed, 3), 3).unwrap(), b"abc");
    }

    #[test]
    fn what_is_not_a_kernel_is_refused() {
        let error = unpack(&sized(b"gzip".to_vec(), 4), 4)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "its packing is neither zstd, LZ4 nor xz");
        assert!(unpack(b"abc", 0).is_err());
        assert!(parse(b"no ELF file", 0).is_err());
        let wrong = sized(vec![], UNPACKED_MAX + 1);
        let bytes = image(&wrong);
        assert!(Packed::of(&bytes).unwrap().size().is_err());
    }
}
