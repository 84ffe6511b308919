//! The ELF notes by which an image publishes gates and names milestones.

/// Owner name of our notes (with its NUL, as notes store it).
pub const OWNER: &[u8; 10] = b"Exitvisor\0";
/// Descriptor: the linear addresses (`u64`, little-endian) of `cpuid` instructions.
pub const CPUID_GATES: u32 = 1;
/// Descriptor: the linear addresses (`u64`, little-endian) of `vmcall`/`vmmcall` instructions.
pub const HYPERCALL_GATES: u32 = 2;
/// Descriptor: a milestone's number (`u32`, little-endian) and its name (UTF-8, to the end).
pub const MILESTONE_NAME: u32 = 3;
/// Owner name of PVH's note.
pub const XEN_OWNER: &[u8; 4] = b"Xen\0";
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the physical 32-bit entry point (PVH boot protocol).
pub const XEN_PHYS32_ENTRY: u32 = 18;
