//! How a guest ends: by the exit port, with its status or as crashed.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use exit_abi::status;

use crate::arch::traps::Frame;
use crate::arch::{cpu, port};
use crate::ports;
use crate::serial::println;

/// Ends the VM with this status (0–63).
pub fn exit(status: u32) -> ! {
    port::out32(ports::EXIT.get(), status);
    // Only a machine without the exit port comes here.
    cpu::stop()
}

/// Ends the VM as crashed.
pub fn crash() -> ! {
    exit(status::CRASH)
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

/// What `entry!`'s panic handler does: one line, then the end as crashed.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    panicked_in("guest", info)
}

/// The same for a program of another name.
pub fn panicked_in(program: &str, info: &PanicInfo<'_>) -> ! {
    crash_with(|| println(format_args!("{program} panic: {info}")))
}

/// What becomes of an exception that nobody expected in `program`: it is printed, then the end as
/// crashed.
pub fn trapped(program: &str, frame: &Frame, cr2: u64) -> ! {
    crash_with(|| {
        let f = frame;
        let name = exception_name(f.vector);
        println(format_args!(
            "{program} crash: exception {} ({name}), error code {:#x}, rip {:#x}, cr2 {cr2:#x}",
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

/// The mnemonic of an exception (SDM vol. 3A, table 6-1).
const fn exception_name(vector: u64) -> &'static str {
    match vector {
        0 => "#DE",
        1 => "#DB",
        2 => "NMI",
        3 => "#BP",
        4 => "#OF",
        5 => "#BR",
        6 => "#UD",
        7 => "#NM",
        8 => "#DF",
        10 => "#TS",
        11 => "#NP",
        12 => "#SS",
        13 => "#GP",
        14 => "#PF",
        16 => "#MF",
        17 => "#AC",
        18 => "#MC",
        19 => "#XM",
        20 => "#VE",
        21 => "#CP",
        28 => "#HV",
        29 => "#VC",
        30 => "#SX",
        32.. => "an interrupt",
        _ => "reserved",
    }
}
