//! `entry!`: what every guest's `main.rs` begins with.

/// Makes a function (not called `main`) the guest's program.
///
/// It takes the physical address of PVH's start info and returns the exit status, or never. The
/// machine is in long mode, the first 4 GiB are mapped one to one and writable, interrupts are
/// off and there is no IDT. On the host the program is empty, so that the workspace builds as a
/// whole.
///
/// ```ignore
/// //! What this guest shows.
/// #![cfg_attr(target_os = "none", no_std, no_main)]
///
/// guest_kernel::entry!(guest);
/// guest_kernel::publish_cpuid_gate!(); // only if it asks the leaves
///
/// fn guest(_start_info: u32) -> u32 {
///     guest_kernel::serial::println(format_args!("hello"));
///     7
/// }
/// ```
///
/// `entry!(guest, no panic handler)` leaves the panic handler to the guest. The package needs a
/// `build.rs` like this crate's, with the same linker script.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        $crate::entry!($main, no panic handler);

        #[cfg(target_os = "none")]
        #[panic_handler]
        fn panicked(info: &::core::panic::PanicInfo<'_>) -> ! {
            $crate::exit::panicked(info)
        }
    };
    ($main:path, no panic handler) => {
        // PVH's note is the image's, not the library's: who links the library for its other parts
        // has an entry of its own.
        #[cfg(target_os = "none")]
        ::core::arch::global_asm!(
            ".pushsection .note.pvh, \"a\", @note",
            ".balign 4",
            ".long 4, 4, {phys32}",
            ".asciz \"Xen\"",
            ".long pvh_start",
            ".popsection",
            phys32 = const $crate::abi::note::XEN_PHYS32_ENTRY,
        );

        /// Called by the assembler entry, once.
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        #[allow(unreachable_code)] // where main never returns
        extern "sysv64" fn guest_main(start_info: u32) -> ! {
            let status: u32 = $main(start_info);
            $crate::exit::exit(status)
        }

        #[cfg(not(target_os = "none"))]
        fn main() {
            let _ = $main;
        }
    };
}
