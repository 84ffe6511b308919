//! Ways to die that show whether a crash is told apart from an end.

/// Writes through a null pointer: a page fault that nobody expects.
#[cfg(target_os = "none")]
pub fn page_fault() -> ! {
    // SAFETY: page 0 is not mapped, so that the store faults and never completes; the handler ends
    // the VM.
    unsafe { core::arch::asm!("mov byte ptr [{}], 0", in(reg) 0_u64, options(nostack, noreturn)) }
}

/// Executes UD2: an invalid opcode that nobody expects.
#[cfg(target_os = "none")]
pub fn undefined() -> ! {
    // SAFETY: UD2 raises #UD and never completes; the handler ends the VM.
    unsafe { core::arch::asm!("ud2", options(nomem, nostack, noreturn)) }
}

/// Runs the stack into its guard page: the page fault has no stack to go to and becomes a double
/// fault, which has one.
#[cfg(target_os = "none")]
pub fn stack_overflow() -> ! {
    // SAFETY: the push hits the unmapped guard page and never completes; the double fault's
    // handler ends the VM on a stack of its own.
    unsafe {
        core::arch::asm!(
            "lea rsp, [boot_stack_guard + 4096]",
            "push rax",
            "ud2",
            options(noreturn)
        )
    }
}

/// The host does not die.
#[cfg(not(target_os = "none"))]
pub fn undefined() -> ! {
    super::cpu::stop()
}

/// The host does not die.
#[cfg(not(target_os = "none"))]
pub fn page_fault() -> ! {
    super::cpu::stop()
}

/// The host does not die.
#[cfg(not(target_os = "none"))]
pub fn stack_overflow() -> ! {
    super::cpu::stop()
}
