//! As many milestones as its command line says: numbers nobody has defined, some with names, and
//! a string of them in one instruction.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

fn guest(start_info: u32) -> u32 {
    use exit_abi::port as ports;
    use guest_kernel::arch::port;

    for byte in "first\u{1b}[2J of mine, and a name that is too long".bytes() {
        port::out8(ports::MILESTONE_NAME, byte);
    }
    port::out32(ports::MILESTONE, 0x100);
    port::out32(ports::MILESTONE, 77);
    port::out32(ports::MILESTONE, u32::MAX);
    port::out16(ports::MILESTONE, 0x101);
    port::out8(ports::MILESTONE, 13);
    let string = [0x200_u32, 0x201, 0x202];
    // SAFETY: OUTS reads three words from `string`.
    unsafe {
        core::arch::asm!(
            "rep outsd", in("dx") ports::MILESTONE,
            inout("rsi") string.as_ptr() => _, inout("rcx") 3_u64 => _,
            options(nostack, readonly),
        );
    }
    for n in 0..test_guests::cmdline_number(start_info) {
        port::out32(ports::MILESTONE, n);
    }
    0
}
