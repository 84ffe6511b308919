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

/// Enters Linux at its 64-bit entry, with the address of its zero page in RSI: 64-bit mode, memory
/// mapped one to one, interrupts off (linux/Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL").
///
/// # Safety
///
/// A kernel must stand at `entry`, and a zero page at `zero_page` that stays there; nothing of the
/// firmware's but its page tables may be needed any more.
#[cfg(target_os = "none")]
pub unsafe fn enter_linux(entry: u64, zero_page: u64) -> ! {
    use super::gdt::{BOOT_CS, BOOT_DS, LINUX_GDT};

    // SAFETY: the caller's promise for what is jumped to; the page tables and the descriptors are
    // statics that map and describe what they did before.
    unsafe {
        core::arch::asm!(
            // As for PVH: an exception before the kernel has an IDT ends in a triple fault.
            "push 0",
            "push 0",
            "lidt [rsp]",
            // A pointer to the table: its limit in the upper two bytes of the first quadword.
            "push {gdt}",
            "shl {limit}, 48",
            "push {limit}",
            "lgdt [rsp + 6]",
            "mov ds, {ds:e}",
            "mov es, {ds:e}",
            "mov fs, {ds:e}",
            "mov gs, {ds:e}",
            "mov ss, {ds:e}",
            "push {cs}",
            "push {entry}",
            "xor ebp, ebp",
            "xor edi, edi",
            "xor ebx, ebx",
            "retfq",
            gdt = in(reg) LINUX_GDT.as_ptr(),
            limit = in(reg) size_of_val(&LINUX_GDT) as u64 - 1,
            ds = in(reg) u64::from(BOOT_DS),
            cs = const BOOT_CS,
            entry = in(reg) entry,
            in("rsi") zero_page,
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
pub unsafe fn enter_linux(_: u64, _: u64) -> ! {
    guest_kernel::arch::cpu::stop()
}
