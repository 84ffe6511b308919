//! The exit statuses by which the firmware says why it does not boot the kernel: 40–54, of the
//! guest's range. Prose: `docs/firmware.md`, which a test keeps true to [`ALL`].

/// Defines the statuses, and the table of them, from one list.
macro_rules! statuses {
    ($(#[doc = $meaning:literal] $name:ident = $number:literal;)*) => {
        $(#[doc = $meaning] pub const $name: u32 = $number;)*

        /// Every status of the firmware: its number, its name, what it means.
        pub const ALL: &[(u32, &str, &str)] = &[$(($number, stringify!($name), $meaning)),*];
    };
}

statuses! {
    /// Start info or command line cannot be read.
    START_INFO = 40;
    /// The memory map makes no sense, or has no RAM.
    MEMORY_MAP = 41;
    /// The module list makes no sense, or a module lies outside RAM.
    MODULES = 42;
    /// The device tree makes no sense.
    DEVICE_TREE = 43;
    /// No module is a kernel.
    NO_KERNEL = 44;
    /// The kernel is neither an ELF64 image for x86-64 nor a bzImage with a 64-bit entry that takes command line and initrd.
    KERNEL_FORMAT = 45;
    /// The kernel is truncated or damaged.
    KERNEL_DAMAGED = 46;
    /// The kernel has no PVH note.
    NO_PVH_NOTE = 47;
    /// The kernel's entry lies outside its segments.
    KERNEL_ENTRY = 48;
    /// A segment lies below 1 MiB, where firmware and boot information are.
    TOO_LOW = 49;
    /// A segment lies outside RAM.
    OUTSIDE_RAM = 50;
    /// Two segments lie over each other.
    OVERLAP = 51;
    /// A segment lies over the firmware or the boot information.
    OVER_BOOT_INFORMATION = 52;
    /// A segment lies over a module, perhaps the kernel's own file: too little memory for both.
    OVER_MODULE = 53;
    /// The kernel's gates cannot be armed.
    GATES = 54;
}
