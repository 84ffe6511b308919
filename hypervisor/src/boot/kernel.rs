//! What is booted, of whichever format, and the protocol by which it is entered.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::bzimage::{self, BzImage};
use super::elf::{ElfError, Image, Role};
use super::files::Files;
use super::linux::{self, HandOver};
use super::pvh;
use super::{Entry, Protocol};
use crate::error::{Error, kvm as kvm_error};
use crate::exits::gate::Gate;
use crate::memory::Memory;

/// A kernel or a firmware that passed the checks.
#[derive(Debug)]
pub enum Kernel {
    /// An ELF image.
    Elf(Box<Image>),
    /// A bzImage.
    BzImage(Box<BzImage>),
}

impl Kernel {
    /// Opens an image of either format and checks all that can be checked without a VM.
    pub fn open(path: &Path, files: &mut Files) -> Result<Self, ElfError> {
        let (file, bytes) = files.open(path)?;
        let start = start(&file).map_err(ElfError::Read)?;
        if !start.starts_with(b"\x7fELF") && bzimage::is_one(&start) {
            let image = BzImage::check(file, path, bytes)?;
            return Ok(Self::BzImage(Box::new(image)));
        }
        Ok(Self::Elf(Box::new(Image::open(path, files)?)))
    }

    /// Whether it is Linux, which software KVM cannot run.
    pub fn is_linux(&self) -> bool {
        match self {
            Self::Elf(image) => image.is_linux,
            Self::BzImage(_) => true,
        }
    }

    /// The entry for what the user wishes.
    pub fn entry(&self, wish: Protocol) -> Result<Entry, ElfError> {
        match self {
            Self::BzImage(_) if wish == Protocol::Pvh => Err(ElfError::BzByPvh),
            Self::BzImage(image) => Ok(Entry::Linux(image.entry())),
            Self::Elf(image) => {
                let by_linux = match wish {
                    Protocol::Auto => image.is_linux,
                    Protocol::Pvh => false,
                    Protocol::Linux => true,
                };
                if by_linux {
                    return image.linux_entry().map(Entry::Linux);
                }
                image.pvh.map(Entry::Pvh).ok_or(ElfError::NoPvh)
            }
        }
    }

    /// Loads it.
    pub fn load(&mut self, memory: &Memory, role: Role, cmdline: &str) -> Result<(), ElfError> {
        match self {
            Self::Elf(image) => image.load(memory, role, &[]),
            Self::BzImage(image) => Ok(image.load(memory, cmdline)?),
        }
    }

    /// Behind the last byte that it uses before it knows the memory map.
    pub fn end(&self) -> u64 {
        match self {
            Self::Elf(image) => image.end(),
            Self::BzImage(image) => image.place().1,
        }
    }

    /// The highest address that a byte of the initial RAM disk may have.
    pub fn initrd_max(&self) -> u64 {
        match self {
            Self::Elf(_) => u64::MAX,
            Self::BzImage(image) => image.initrd_max(),
        }
    }

    /// Writes what Linux finds at its entry, if it is entered by its own protocol.
    pub fn hand_over(
        &self,
        entry: Entry,
        memory: &Memory,
        hand_over: &HandOver<'_>,
    ) -> Result<(), Error> {
        let header = match (entry, self) {
            (Entry::Pvh(_), _) => return Ok(()),
            (_, Self::Elf(_)) => linux::bare_header(),
            (_, Self::BzImage(image)) => image.header,
        };
        Ok(linux::write(memory, &header, hand_over)?)
    }

    /// The gates that its notes publish, each with what stands there now that it is loaded.
    pub fn take_gates(&mut self, memory: &Memory) -> Vec<(Gate, [u8; 3])> {
        let Self::Elf(image) = self else {
            return Vec::new();
        };
        let gates = std::mem::take(&mut image.gates).into_iter();
        let gates = gates.map(|gate| {
            let mut bytes = [0; 3];
            if let Some(at) = image.physical(gate.address) {
                // Outside memory there is no instruction; what is there later is found at the gate.
                let _ = memory.read_slice(&mut bytes, GuestAddress(at));
            }
            (gate, bytes)
        });
        gates.collect()
    }

    /// The milestones that its notes name.
    pub fn take_names(&mut self) -> BTreeMap<u32, String> {
        match self {
            Self::Elf(image) => std::mem::take(&mut image.names),
            Self::BzImage(_) => BTreeMap::new(),
        }
    }

    /// Size of the file.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Elf(image) => image.bytes,
            Self::BzImage(image) => image.bytes,
        }
    }

    /// Where it came from.
    pub fn path(&self) -> &Path {
        match self {
            Self::Elf(image) => &image.path,
            Self::BzImage(image) => &image.path,
        }
    }

    /// The file, for its hash.
    pub fn into_file(self) -> File {
        match self {
            Self::Elf(image) => image.into_file(),
            Self::BzImage(image) => image.into_file(),
        }
    }
}

/// As much of a file as tells its format.
fn start(mut file: &File) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut start = Vec::new();
    file.by_ref()
        .take(bzimage::START as u64)
        .read_to_end(&mut start)?;
    Ok(start)
}

impl Entry {
    /// Sets the boot vCPU to this entry; the others wait for their start-up IPI.
    pub fn set(self, fd: &VcpuFd) -> Result<(), Error> {
        let mut sregs = fd
            .get_sregs()
            .map_err(kvm_error("reading segment registers"))?;
        let regs = match self {
            Self::Pvh(entry) => {
                pvh::set_system_registers(&mut sregs);
                pvh::registers(entry)
            }
            Self::Linux(entry) => {
                linux::set_system_registers(&mut sregs);
                linux::registers(entry)
            }
        };
        fd.set_sregs(&sregs)
            .map_err(kvm_error("segment registers at entry"))?;
        fd.set_regs(&regs).map_err(kvm_error("registers at entry"))
    }
}
