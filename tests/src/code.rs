//! Guests by hand: a few instructions of 32-bit code, entered by PVH with interrupts off.

use crate::elf::{BASE, Elf};

/// `mov dx, 0x3F8; mov al, '!'; out dx, al; mov al, '\n'; out dx, al`: shows that it runs.
const HELLO: [u8; 10] = [0x66, 0xBA, 0xF8, 0x03, 0xB0, b'!', 0xEE, 0xB0, b'\n', 0xEE];
/// `sti; jmp $`: no interrupt comes, and a host can stop it that needs interrupts on for that
const SPIN: [u8; 3] = [0xFB, 0xEB, 0xFE];
/// `jmp $`
const SPIN_DEAF: [u8; 2] = [0xEB, 0xFE];
/// `hlt; jmp` back to it
const HALT: [u8; 3] = [0xF4, 0xEB, 0xFD];
/// `out dx, al; jmp` back to it: after the greeting, the end of its line over and over
const FLOOD: [u8; 3] = [0xEE, 0xEB, 0xFD];
/// `mov dx, 0xE08; mov al, 0; out dx, al; hlt`: ends with status 0.
const EXIT: [u8; 8] = [0x66, 0xBA, 0x08, 0x0E, 0xB0, 0x00, 0xEE, 0xF4];
/// `mov dx, 0x3F9; mov al, 1; out dx, al`: asks COM1 for the receive interrupt.
const LISTEN: [u8; 7] = [0x66, 0xBA, 0xF9, 0x03, 0xB0, 0x01, 0xEE];

/// What it prints before anything else, unless it is called silent.
pub const GREETING: &str = "!\n";

/// Ends with status 0 and prints nothing.
pub fn silent() -> Elf {
    Elf::of_code(&EXIT)
}

/// Prints its greeting and ends with status 0.
pub fn hello() -> Elf {
    Elf::of_code(&[&HELLO[..], &EXIT].concat())
}

/// A firmware that prints its greeting and ends with status 0, whatever the kernel.
pub fn hello_firmware() -> Elf {
    Elf::of_firmware_code(&[&HELLO[..], &EXIT].concat())
}

/// Never ends, running.
pub fn spinning() -> Elf {
    Elf::of_code(&[&HELLO[..], &SPIN].concat())
}

/// Never ends, running, and prints nothing.
pub fn spinning_silently() -> Elf {
    Elf::of_code(&SPIN)
}

/// Never ends, running with interrupts off.
pub fn spinning_deaf() -> Elf {
    Elf::of_code(&[&HELLO[..], &SPIN_DEAF].concat())
}

/// Never ends, halted with interrupts off.
pub fn halted() -> Elf {
    Elf::of_code(&[&HELLO[..], &HALT].concat())
}

/// Ends in a triple fault: loads an empty IDT, then executes UD2.
pub fn triple_fault() -> Elf {
    // lidt [0x100020], where six zero bytes are; ud2
    let mut code = HELLO.to_vec();
    code.extend([0x0F, 0x01, 0x1D, 0x20, 0x00, 0x10, 0x00, 0x0F, 0x0B]);
    code.resize(0x26, 0);
    Elf::of_code(&code)
}

/// Never ends, and never stops printing empty lines.
pub fn flooding() -> Elf {
    Elf::of_code(&[&HELLO[..], &FLOOD].concat())
}

/// Asks for its exits at a gate for ever, and prints nothing.
pub fn asking() -> Elf {
    // mov eax, 0x4FFFFFFF; cpuid; jmp to the start
    let code = [0xB8, 0xFF, 0xFF, 0xFF, 0x4F, 0x0F, 0xA2, 0xEB, 0xF7];
    Elf::of_code(&code).gates(&[BASE + 5])
}

/// Asks for its exits at a gate once, and ends with status 0.
pub fn asking_once() -> Elf {
    let code = [0xB8, 0xFF, 0xFF, 0xFF, 0x4F, 0x0F, 0xA2];
    Elf::of_code(&[&code[..], &EXIT].concat()).gates(&[BASE + 5])
}

/// Reads so many ports from one place, from port 0x4000 on, then ends with status 0. (At most 0x8000.)
pub fn walking_ports(count: u16) -> Elf {
    let end = 0x4000_u16.saturating_add(count).to_le_bytes();
    let code = [
        0x66, 0xBA, 0x00, 0x40, // mov dx, 0x4000
        0xEC, // in al, dx
        0x66, 0x42, // inc dx
        0x66, 0x81, 0xFA, end[0], end[1], // cmp dx, end
        0x75, 0xF6, // jne to the IN
    ];
    Elf::of_code(&[&code[..], &EXIT].concat())
}

/// Writes port 0x80 from so many places, then ends with status 0.
pub fn writing_from_everywhere(places: usize) -> Elf {
    // out 0x80, al
    let code = [0xE6, 0x80].repeat(places);
    Elf::of_code(&[&code[..], &EXIT].concat())
}

/// Asks for input, never takes any, and never stops printing empty lines.
pub fn listening_and_flooding() -> Elf {
    Elf::of_code(&[&LISTEN[..], &HELLO, &FLOOD].concat())
}

/// Asks for input, then halts for good.
pub fn listening() -> Elf {
    Elf::of_code(&[&LISTEN[..], &HELLO, &HALT].concat())
}

/// Asks for input, then gives back every byte that it gets.
pub fn echoing() -> Elf {
    let echo = [
        0x66, 0xBA, 0xFD, 0x03, // mov dx, 0x3FD
        0xEC, 0xA8, 0x01, // in al, dx; test al, 1
        0x74, 0xF7, // jz to the start
        0x66, 0xBA, 0xF8, 0x03, // mov dx, 0x3F8
        0xEC, 0xEE, // in al, dx; out dx, al
        0xEB, 0xEF, // jmp to the start
    ];
    Elf::of_code(&[&LISTEN[..], &HELLO, &echo].concat())
}
