//! Ports and addresses at which nothing is, in every width, and strings.
//!
//! Command line: how many bytes a string has, up to 65,536, a multiple of 4.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

static mut BUFFER: [u8; 65536] = [0x5A; 65536];

#[cfg(not(target_os = "none"))]
fn guest(_: u32) -> u32 {
    0
}

#[cfg(target_os = "none")]
fn guest(start_info: u32) -> u32 {
    use core::arch::asm;
    use exit_abi::port as ports;
    use guest_kernel::arch::port;
    use test_guests::check_eq;

    // Ports of nobody's, ours at odd offsets, those around COM1, the last one.
    for p in [
        0x0000, 0x0080, 0x03E8, 0x0CF8, 0x0E03, 0x0E0D, 0x0E1D, 0x1234, 0xFFFF,
    ] {
        port::out8(p, 1);
        port::out16(p, 1);
        port::out32(p, 1);
        port::in8(p);
        port::in16(p);
        port::in32(p);
    }
    check_eq(1, port::in8(0x1234), 0xFF, "a port of nobody's, 8 bits");
    check_eq(2, port::in16(0x1234), 0xFFFF, "a port of nobody's, 16 bits");
    check_eq(
        3,
        port::in32(0x1234),
        0xFFFF_FFFF,
        "a port of nobody's, 32 bits",
    );
    check_eq(4, port::in32(ports::SCRATCH), 0, "the scratch port");
    // COM1 in widths that reach over its registers.
    port::out16(ports::COM1 + 6, 0);
    port::in32(ports::COM1 + 4);

    // Aligned and not, and over the end of the page.
    for offset in [0, 1, 7, 0xFF8, 0xFFF] {
        let at = exit_abi::SCRATCH_PAGE + offset;
        // SAFETY: these addresses are mapped and no memory of ours; any width may be used on them.
        unsafe {
            let (byte, half, word, long): (u8, u16, u32, u64);
            asm!("mov byte ptr [{0}], 1", "mov {1}, [{0}]", in(reg) at, out(reg_byte) byte);
            check_eq(5, byte, 0, "MMIO of nobody's, 8 bits");
            asm!("mov word ptr [{0}], 1", "mov {1:x}, [{0}]", in(reg) at, out(reg) half);
            check_eq(6, half, 0, "MMIO of nobody's, 16 bits");
            asm!("mov dword ptr [{0}], 1", "mov {1:e}, [{0}]", in(reg) at, out(reg) word);
            check_eq(7, word, 0, "MMIO of nobody's, 32 bits");
            asm!("mov qword ptr [{0}], 1", "mov {1}, [{0}]", in(reg) at, out(reg) long);
            check_eq(8, long, 0, "MMIO of nobody's, 64 bits");
        }
    }

    let length = u64::from(test_guests::cmdline_number(start_info)).clamp(4, 65536);
    let buffer = &raw mut BUFFER;
    for (port, width) in [
        (ports::SCRATCH, 1),
        (ports::SCRATCH, 4),
        (0x1234, 2),
        (ports::GATE_COMMAND, 4),
        (ports::MILESTONE_NAME, 1),
    ] {
        let count = length / width;
        // SAFETY: OUTS reads and INS writes `count * width` bytes, at most the 65,536 of `buffer`.
        unsafe {
            match width {
                1 => {
                    asm!("rep outsb", in("dx") port, inout("rsi") buffer => _, inout("rcx") count => _)
                }
                2 => {
                    asm!("rep outsw", in("dx") port, inout("rsi") buffer => _, inout("rcx") count => _)
                }
                _ => {
                    asm!("rep outsd", in("dx") port, inout("rsi") buffer => _, inout("rcx") count => _)
                }
            }
        }
    }
    for (port, expected) in [(ports::SCRATCH, 0), (0x1234, 0xFF)] {
        // SAFETY: INS writes at most the 65,536 bytes of `buffer`, of which nobody else knows.
        let last = unsafe {
            asm!("rep insb", in("dx") port, inout("rdi") buffer => _, inout("rcx") length => _);
            (*buffer)[length as usize - 1]
        };
        check_eq(9, last, expected, "the last byte of a string in");
    }
    0
}
