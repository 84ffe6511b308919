//! How the firmware ends without a kernel: a line on the console, then the exit port.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use guest_kernel::arch::traps::Frame;
use guest_kernel::exit::{crash, exit};
use guest_kernel::serial::println;

use crate::error::Error;

/// Says why the kernel is not booted, and ends with the status for it.
pub fn failed(error: &Error) -> ! {
    println(format_args!("firmware: {error}"));
    exit(error.status())
}

/// Whether a crash is being printed: another one meanwhile ends at once.
static CRASHING: AtomicBool = AtomicBool::new(false);

fn crash_with(print: impl FnOnce()) -> ! {
    if !CRASHING.load(Ordering::Relaxed) {
        CRASHING.store(true, Ordering::Relaxed);
        print();
    }
    crash()
}

/// One line about a panic, then the end as crashed.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    crash_with(|| println(format_args!("firmware panic: {info}")))
}

/// What the CPU knew at an exception, then the end as crashed.
pub fn trapped(frame: &Frame, cr2: u64) -> ! {
    crash_with(|| {
        let f = frame;
        println(format_args!(
            "firmware crash: exception {}, error code {:#x}, rip {:#x}, cr2 {cr2:#x}",
            f.vector, f.error_code, f.rip
        ));
        println(format_args!(
            "  rax {:x} rbx {:x} rcx {:x} rdx {:x} rsi {:x} rdi {:x} rbp {:x} rsp {:x}",
            f.rax, f.rbx, f.rcx, f.rdx, f.rsi, f.rdi, f.rbp, f.rsp
        ));
        println(format_args!(
            "  r8 {:x} r9 {:x} r10 {:x} r11 {:x} r12 {:x} r13 {:x} r14 {:x} r15 {:x}",
            f.r8, f.r9, f.r10, f.r11, f.r12, f.r13, f.r14, f.r15
        ));
        println(format_args!(
            "  cs {:x} ss {:x} rflags {:x}",
            f.cs, f.ss, f.rflags
        ));
    })
}
