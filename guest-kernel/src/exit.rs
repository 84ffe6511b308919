//! How a guest ends: by the exit port, with its status or as crashed.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use exit_abi::{port as ports, status};

use crate::arch::{cpu, port};
use crate::serial::println;

/// Ends the VM with this status (0–63).
pub fn exit(status: u32) -> ! {
    port::out32(ports::EXIT, status);
    // Only a machine without the exit port comes here.
    cpu::stop()
}

/// Ends the VM as crashed.
pub fn crash() -> ! {
    exit(status::CRASH)
}

/// What `entry!`'s panic handler does: one line, then the end as crashed. A panic while another is
/// printed ends at once.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    static PRINTING: AtomicBool = AtomicBool::new(false);
    if !PRINTING.load(Ordering::Relaxed) {
        PRINTING.store(true, Ordering::Relaxed);
        println(format_args!("guest panic: {info}"));
    }
    crash()
}
