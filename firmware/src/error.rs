//! Why the firmware does not boot the kernel: a line for the console, and an exit status.

use core::fmt;

use exit_abi::gate::Outcome;
use exit_abi::status::firmware as status;
use guest_kernel::machine::tree;

/// What is wrong.
#[derive(Debug)]
pub enum Error {
    /// The start info does not begin with its magic number.
    Magic(u32),
    /// The start info is of a version without a memory map.
    Version(u32),
    /// Something lies where nothing can be read.
    Unreadable(&'static str, u64),
    /// The command line, or a module's, does not end.
    EndlessText(u64),
    /// The memory map has more entries than are read.
    MapEntries(u32),
    /// There are more modules than are read.
    ModuleEntries(u32),
    /// An entry of the memory map ends beyond the address space.
    MapWraps(u64),
    /// The memory map has no RAM.
    NoRam,
    /// A module that is not all in RAM.
    ModuleOutside(u64, u64),
    /// A device tree that cannot be used.
    Tree(tree::Error),
    /// A device tree of more bytes than are read.
    TreeSize(u64),
    /// No kernel among the modules.
    NoKernel,
    /// Not an ELF file; it begins with these bytes.
    NotElf([u8; 4]),
    /// Not a 64-bit one, but of this class.
    Class(u8),
    /// For another machine.
    OtherMachine(u16),
    /// Headers that contradict themselves or the file's size.
    Damaged(&'static str),
    /// No PVH note.
    NoPvh,
    /// The entry lies outside the segments.
    Entry(u32),
    /// A segment below 1 MiB.
    TooLow(u64, u64),
    /// A segment outside RAM.
    OutsideRam(u64, u64),
    /// A segment beyond what the firmware maps.
    TooHigh(u64, u64),
    /// Two segments over each other.
    Overlap(u64, u64),
    /// A segment over something of the boot information.
    OverBootInformation(u64, u64, &'static str),
    /// A segment over a module.
    OverModule(u64, u64, u64),
    /// Notes that publish gates no one could arm.
    GateNote(&'static str),
    /// A bzImage that cannot be booted.
    BzImage(&'static str),
    /// The gate port refused a gate.
    Gate(u64, Outcome),
}

impl Error {
    /// The exit status that says so.
    pub const fn status(&self) -> u32 {
        match self {
            Self::Magic(_) | Self::Version(_) | Self::Unreadable(..) | Self::EndlessText(_) => {
                status::START_INFO
            }
            Self::MapEntries(_) | Self::MapWraps(_) | Self::NoRam => status::MEMORY_MAP,
            Self::ModuleEntries(_) | Self::ModuleOutside(..) => status::MODULES,
            Self::Tree(_) | Self::TreeSize(_) => status::DEVICE_TREE,
            Self::NoKernel => status::NO_KERNEL,
            Self::NotElf(_) | Self::Class(_) | Self::OtherMachine(_) => status::KERNEL_FORMAT,
            Self::BzImage(_) => status::KERNEL_FORMAT,
            Self::Damaged(_) => status::KERNEL_DAMAGED,
            Self::NoPvh => status::NO_PVH_NOTE,
            Self::Entry(_) => status::KERNEL_ENTRY,
            Self::TooLow(..) => status::TOO_LOW,
            Self::OutsideRam(..) | Self::TooHigh(..) => status::OUTSIDE_RAM,
            Self::Overlap(..) => status::OVERLAP,
            Self::OverBootInformation(..) => status::OVER_BOOT_INFORMATION,
            Self::OverModule(..) => status::OVER_MODULE,
            Self::GateNote(_) | Self::Gate(..) => status::GATES,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let segment = |f: &mut fmt::Formatter<'_>, start: &u64, end: &u64| {
            write!(f, "the kernel has a segment at {start:#x}..{end:#x}, ")
        };
        match self {
            Self::Magic(magic) => write!(f, "start info begins with {magic:#x}, not 0x336ec578"),
            Self::Version(version) => {
                write!(
                    f,
                    "start info is of version {version}, which has no memory map"
                )
            }
            Self::Unreadable(what, at) => write!(f, "{what} at {at:#x} cannot be read"),
            Self::EndlessText(at) => write!(f, "the command line at {at:#x} does not end"),
            Self::MapEntries(entries) => write!(f, "the memory map has {entries} entries"),
            Self::ModuleEntries(entries) => write!(f, "there are {entries} modules"),
            Self::MapWraps(start) => write!(
                f,
                "the memory map's entry at {start:#x} ends beyond the address space"
            ),
            Self::NoRam => f.write_str("the memory map has no RAM"),
            Self::ModuleOutside(start, end) => {
                write!(f, "a module at {start:#x}..{end:#x} lies outside RAM")
            }
            Self::Tree(error) => write!(f, "the device tree cannot be used: {error}"),
            Self::TreeSize(bytes) => write!(f, "the device tree has {bytes} bytes"),
            Self::NoKernel => f.write_str("there is no module to boot"),
            Self::NotElf([a, b, c, d]) => write!(
                f,
                "the kernel is neither an ELF file nor a bzImage (starts with {a:02x} {b:02x} {c:02x} {d:02x})"
            ),
            Self::Class(1) => f.write_str("the kernel is a 32-bit ELF image: build it for x86-64"),
            Self::Class(class) => write!(f, "the kernel is an ELF image of class {class}"),
            Self::OtherMachine(machine) => write!(
                f,
                "the kernel is an ELF image for machine {machine}, not for x86-64 (62)"
            ),
            Self::BzImage(why) => write!(f, "the kernel {why}"),
            Self::Damaged(why) => write!(f, "the kernel is truncated or damaged: {why}"),
            Self::NoPvh => f.write_str("the kernel has no PVH note (owner Xen, type 18)"),
            Self::Entry(entry) => write!(
                f,
                "the kernel has its PVH entry at {entry:#x}, outside its own segments"
            ),
            Self::TooLow(start, end) => {
                segment(f, start, end)?;
                f.write_str("below 1 MiB, where firmware and boot information are")
            }
            Self::OutsideRam(start, end) => {
                segment(f, start, end)?;
                f.write_str("outside RAM: give more with --memory")
            }
            Self::TooHigh(start, end) => {
                segment(f, start, end)?;
                f.write_str("beyond 4 GiB, where PVH's entry could not reach it")
            }
            Self::Overlap(a, b) => {
                write!(
                    f,
                    "the kernel has segments over each other, at {a:#x} and {b:#x}"
                )
            }
            Self::OverBootInformation(start, end, what) => {
                segment(f, start, end)?;
                write!(f, "over {what}")
            }
            Self::OverModule(start, end, module) => {
                segment(f, start, end)?;
                write!(
                    f,
                    "over the module at {module:#x}: give more memory with --memory"
                )
            }
            Self::GateNote(why) => {
                write!(f, "the kernel publishes gates that cannot be armed: {why}")
            }
            Self::Gate(address, outcome) => {
                write!(
                    f,
                    "the kernel's gate at {address:#x} is refused: {outcome:?}"
                )
            }
        }
    }
}
