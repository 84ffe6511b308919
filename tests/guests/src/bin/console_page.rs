//! COM1 as a page (`--console page`), used and abused.
//!
//! Command line: 0 as a driver looks for a UART and prints, 1 stores of every kind, 2 executed, 3 mapped
//! elsewhere, 4 echoes input until a `q`, 5 input of its own in loops, and from 100 on: prints so many
//! bytes, each when the transmitter is empty.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

#[cfg(not(target_os = "none"))]
fn guest(_: u32) -> u32 {
    0
}

/// Where it is: `layout::STATUS_PAGE` of the hypervisor.
#[cfg(target_os = "none")]
const PAGE: u64 = 0xD140_0000;

/// A table of pages.
#[cfg(target_os = "none")]
#[repr(C, align(4096))]
struct Table([u64; 512]);

#[cfg(target_os = "none")]
static mut DIRECTORIES: Table = Table([0; 512]);
#[cfg(target_os = "none")]
static mut DIRECTORY: Table = Table([0; 512]);

#[cfg(target_os = "none")]
fn load(at: u64) -> u8 {
    // SAFETY: the page is mapped one to one; it is a device's, and any byte of it may be read.
    unsafe { (at as *const u8).read_volatile() }
}

#[cfg(target_os = "none")]
fn store(at: u64, value: u8) {
    // SAFETY: as above; a device does with it what it likes.
    unsafe { (at as *mut u8).write_volatile(value) }
}

/// Prints, as an 8250's driver does.
#[cfg(target_os = "none")]
fn print(page: u64, text: &[u8]) {
    for &byte in text {
        while load(page + 5) & 0x20 == 0 {
            core::hint::spin_loop();
        }
        store(page, byte);
    }
}

#[cfg(target_os = "none")]
fn guest(start_info: u32) -> u32 {
    use core::arch::asm;
    use exit_abi::port as ports;
    use guest_kernel::arch::port;
    use test_guests::{check, check_eq};

    let part = test_guests::cmdline_number(start_info);
    let registers = |page: u64| -> [u8; 8] { core::array::from_fn(|at| load(page + at as u64)) };
    const IDLE: [u8; 8] = [0, 0, 0xC1, 3, 8, 0x60, 0xB0, 0];
    check_eq(1, registers(PAGE), IDLE, "the registers");
    check_eq(2, port::in8(ports::COM1 + 5), 0xFF, "nobody at the ports");
    let still_prints = || {
        // Whatever was stored: no divisor, no loop.
        store(PAGE + 3, 3);
        store(PAGE + 4, 8);
        while load(PAGE + 5) & 1 != 0 {
            load(PAGE);
        }
        print(PAGE, b"it still prints\n");
    };
    match part {
        0 => {
            store(PAGE + 1, 0xF);
            check_eq(3, load(PAGE + 1), 0xF, "interrupts are enabled");
            check_eq(4, load(PAGE + 2), 0xC2, "an empty transmitter is pending");
            store(PAGE + 1, 0);
            check_eq(5, load(PAGE + 2), 0xC1, "nothing is");
            store(PAGE + 7, 0xA5);
            check_eq(6, load(PAGE + 7), 0xA5, "the scratch register");
            store(PAGE + 3, 0x83);
            store(PAGE, 12);
            store(PAGE + 1, 0);
            check_eq(7, (load(PAGE), load(PAGE + 1)), (12, 0), "the divisor");
            store(PAGE + 3, 3);
            check_eq(8, load(PAGE), 0, "the receiver");
            store(PAGE + 4, 0x1A);
            check_eq(9, load(PAGE + 6) & 0xF0, 0x90, "modem lines, looped");
            store(PAGE + 4, 8);
            print(PAGE, b"by the page\n");
        }
        1 => {
            for offset in [0, 3, 7, 8, 0x100, 0xFF0, 0xFFF] {
                let at = PAGE + offset;
                // SAFETY: a device's page; what lies around it is no memory of ours.
                unsafe {
                    asm!("mov [{0}], {1}", in(reg) at, in(reg) u64::MAX / 3, options(nostack));
                    asm!("mov [{0}], {1:e}", in(reg) at, in(reg) 7, options(nostack));
                    asm!("mov [{0}], {1:x}", in(reg) at, in(reg) 0x8080, options(nostack));
                    asm!("add qword ptr [{0}], 9", in(reg) at, options(nostack));
                    asm!("lock xadd [{0}], {1}", in(reg) at, inout(reg) 5_u64 => _, options(nostack));
                    asm!("xchg [{0}], {1}", in(reg) at, inout(reg) u64::MAX => _, options(nostack));
                    asm!("rep stosb", inout("rcx") 0x20_u64 => _, inout("rdi") at => _,
                        in("al") 0x1F_u8, options(nostack));
                    let wide: u64;
                    asm!("mov {1}, [{0}]", in(reg) at, out(reg) wide, options(nostack));
                    let _ = wide;
                }
            }
            still_prints();
            for at in 8..4096 {
                check_eq(10, load(PAGE + at), 0, "behind the registers is nothing");
            }
        }
        2 => {
            // SAFETY: none: eight bytes of it are executed, then zeros, `add [rax], al`, up to its end and
            // beyond. The machine does not come back.
            unsafe { asm!("xor eax, eax", "jmp {0}", in(reg) PAGE + 0xFF8, options(noreturn)) };
        }
        3 => {
            const PRESENT_WRITABLE: u64 = 3;
            const LARGE: u64 = 1 << 7;
            let elsewhere = 1_u64 << 39;
            // SAFETY: there is one CPU; the tables are not in use yet; CR3 holds the entry's own root,
            // whose entry 1 is free.
            unsafe {
                DIRECTORY.0[0] = PAGE | LARGE | PRESENT_WRITABLE;
                DIRECTORIES.0[0] = &raw const DIRECTORY as u64 | PRESENT_WRITABLE;
                let root: u64;
                asm!("mov {}, cr3", out(reg) root);
                let entry = &raw const DIRECTORIES as u64 | PRESENT_WRITABLE;
                ((root & !0xFFF) as *mut u64).add(1).write_volatile(entry);
                asm!("mov cr3, {}", in(reg) root);
            }
            check_eq(11, registers(elsewhere), IDLE, "the same from elsewhere");
            print(elsewhere, b"from elsewhere\n");
        }
        4 => {
            store(PAGE + 1, 1);
            loop {
                while load(PAGE + 5) & 1 == 0 {
                    core::hint::spin_loop();
                }
                let byte = load(PAGE);
                print(PAGE, &[byte]);
                if byte == b'q' {
                    break;
                }
            }
        }
        5 => {
            for n in 0..50 {
                store(PAGE + 4, 0x18);
                store(PAGE, n);
                check(12, load(PAGE + 5) & 1 != 0, "there is input");
                check_eq(13, load(PAGE), n, "its own");
                check_eq(14, load(PAGE + 5), 0x60, "no more");
            }
            still_prints();
        }
        bytes => {
            for n in 1..=bytes {
                let byte = if n % 64 == 0 { b'\n' } else { b'x' };
                print(PAGE, &[byte]);
            }
        }
    }
    0
}
