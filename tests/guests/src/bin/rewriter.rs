//! Overwrites all RAM below 640 KiB once it runs (start info, command line, the firmware and its
//! page tables), then shows that nothing of it was needed: the gate answers, a milestone is taken.
//! With 1 on its command line it overwrites the page tables that it runs on: a triple fault.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);
guest_kernel::publish_cpuid_gate!();

fn guest(start_info: u32) -> u32 {
    use exit_abi::leaf::Layout;
    use guest_kernel::arch::gate;
    use test_guests::check;

    if test_guests::cmdline_number(start_info) == 1 {
        // SAFETY: that nothing is mapped from here on is what this part is for.
        unsafe {
            core::arch::asm!(
                "mov rdi, cr3",
                "and rdi, -4096",
                "xor eax, eax",
                "mov ecx, 512",
                "rep stosq",
                "mov rax, cr3",
                "mov cr3, rax",
                "ud2",
                options(noreturn),
            );
        }
    }
    let exits = || gate::gate_cpuid(Layout::CLASSIC.total_exits, 0).exits();
    let before = exits();
    check(1, before > 0, "the gate answers");
    // SAFETY: the guest, its stack and its page tables lie from 1 MiB up; below is RAM that nothing
    // of it uses.
    unsafe {
        core::arch::asm!(
            "rep stosq",
            inout("rdi") 0_u64 => _, inout("rcx") 0xA_0000_u64 / 8 => _,
            in("rax") 0xA5A5_A5A5_A5A5_A5A5_u64, options(nostack, preserves_flags),
        );
    }
    check(2, exits() > before, "the gate still answers");
    guest_kernel::milestone::reached(exit_abi::milestone::DONE);
    0
}
