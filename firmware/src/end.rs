//! How the firmware ends without a kernel: a line on the console, then the exit port.

use core::panic::PanicInfo;

use guest_kernel::exit::exit;
use guest_kernel::serial::println;

use crate::error::Error;

/// Says why the kernel is not booted, and ends with the status for it.
pub fn failed(error: &Error) -> ! {
    println(format_args!("firmware: {error}"));
    exit(error.status())
}

/// One line about a panic, then the end as crashed.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    guest_kernel::exit::panicked_in("firmware", info)
}
