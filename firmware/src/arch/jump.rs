//! The jump: out of long mode and into the kernel, as PVH wants it entered.

/// Enters the kernel at a physical address, with the address of its start info in EBX: 32-bit
/// protected mode, flat segments, paging off, interrupts off (Xen's docs/misc/pvh). The task
/// register still holds the 32-bit TSS with which the firmware itself was entered.
///
/// # Safety
///
/// A kernel must stand at `entry`, and a start info at `start_info` that stays there; nothing of
/// the firmware's may be needed any more.
#[cfg(target_os = "none")]
pub unsafe fn enter(entry: u32, start_info: u32) -> ! {
    use super::gdt::CODE32;

    // SAFETY: the caller's promise for what is jumped to. The code itself runs on memory that is
    // mapped one to one, so that it goes on where it is when paging ends; the order is the SDM's
    // (vol. 3A, 10.8.5.4): to compatibility mode, paging off, then LME off.
    unsafe {
        core::arch::asm!(
            // An exception before the kernel has an IDT shall end in a clean triple fault, not in
            // our 64-bit gates, which are something else in 32-bit mode.
            "push 0",
            "push 0",
            "lidt [rsp]",
            "push {code32}",
            "lea rax, [rip + 2f]",
            "push rax",
            "retfq",
            ".code32",
            "2:",
            "mov ebx, edi",
            "mov eax, 1", // PE alone; ET is fixed
            "mov cr0, eax",
            "mov ecx, 0xC0000080", // IA32_EFER
            "xor eax, eax",
            "xor edx, edx",
            "wrmsr",
            "mov cr4, eax",
            "jmp esi",
            ".code64",
            code32 = const CODE32,
            in("esi") entry,
            in("edi") start_info,
            options(noreturn)
        )
    }
}

/// The host has no kernel to enter.
///
/// # Safety
///
/// None needed: it does nothing.
#[cfg(not(target_os = "none"))]
pub unsafe fn enter(_: u32, _: u32) -> ! {
    guest_kernel::arch::cpu::stop()
}
