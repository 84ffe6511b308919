//! An option ROM that starts Linux from memory: Bochs loads no kernel by itself, but puts files
//! into memory and runs ROMs, and so needs no disk, no boot loader and no time for them.
//!
//! Bochs 2.7 has a peculiarity that the ROM works with. It gives the guest's memory out in blocks
//! of 128 KiB, one after the other as they are first touched, but loads a file in one piece: only
//! the first block of a file gets to where it belongs, the rest lies in the blocks that are given
//! out *next*. So the ROM touches, from below to above, first memory that does not matter, until
//! the blocks that the BIOS took are made up for, and then the file's blocks. Where a Bochs loads
//! files as one expects, touching changes nothing.

use std::arch::global_asm;

/// Where the ROM is: the BIOS looks for option ROMs from 0xC8000 to 0xDFFFF.
pub(super) const ADDRESS: u32 = 0xD0000;

/// The blocks in which Bochs gives out memory, bytes.
pub(super) const BLOCK: u32 = 0x2_0000;

/// Blocks at the beginning of the file that hold nothing but their number, each at its beginning:
/// more than the BIOS touches, 8 MiB.
pub(super) const SPARE_BLOCKS: u32 = 64;

/// Ends the file: tells the ROM that all of it is in place.
pub(super) const END_MARK: u32 = 0x444E_4521;

/// What the ROM reads from the beginning of the file.
#[derive(Debug)]
pub(super) struct Parameters {
    /// Where the kernel is entered, in 32-bit protected mode without paging.
    pub(super) entry: u32,
    /// What EBX holds then.
    pub(super) start_info: u32,
    /// Where [`END_MARK`] is.
    pub(super) end_mark: u32,
}

impl Parameters {
    /// As they lie in memory.
    pub(super) fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        // The first field is the number of the block.
        let fields = [0, self.entry, self.start_info, self.end_mark];
        for (to, field) in bytes.chunks_exact_mut(4).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

// The BIOS calls the ROM's third byte in real mode (BIOS Boot Specification, section 3.3). It has
// made its tables by then, ACPI's among them, and is not needed any more.
global_asm!(
    r#"
    .section .rodata.lab_option_rom, "a"
    .code16
lab_option_rom:
    .byte 0x55, 0xaa
    .byte 1                             # size: one unit of 512 bytes

    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl 8f - lab_option_rom
    movl %cr0, %eax
    andl $0x9fffffff, %eax              # caches on: not CD, not NW
    orl $1, %eax                        # protected mode: PE
    movl %eax, %cr0
    ljmpl $0x08, $({address} + 2f - lab_option_rom)

    .code32
2:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss

    # Spare blocks, until the last one is found.
    movl ${file}, %esi
3:  movl (%esi), %eax
    addl ${block}, %esi
    cmpl ${last_spare}, %eax
    je 4f
    cmpl ${rest}, %esi
    jb 3b
    jmp 6f

    # The rest of the file.
4:  movl ${rest}, %esi
    movl {file} + 12, %edi
5:  movl (%esi), %eax
    addl ${block}, %esi
    cmpl %edi, %esi
    jbe 5b
    cmpl ${end_mark}, (%edi)
    jne 6f
    movl {file} + 8, %ebx
    jmpl *({file} + 4)

    # Not as it should be: say so on the first serial port, then end the machine by a fault.
6:  movl $({address} + 9f - lab_option_rom), %esi
    movl $0x3f8, %edx
    cld
7:  lodsb
    outb %al, %dx
    testb %al, %al
    jnz 7b
    ud2

    .balign 8
8:  .word 3 * 8 - 1
    .long {address} + 10f - lab_option_rom
9:  .asciz "this Bochs gives out memory in a way that the lab does not know\n"
    .balign 8
10: .quad 0
    .quad 0x00cf9a000000ffff            # flat code
    .quad 0x00cf92000000ffff            # flat data
lab_option_rom_end:
    .code64
    .text
"#,
    address = const ADDRESS,
    block = const BLOCK,
    last_spare = const SPARE_BLOCKS - 1,
    file = const super::memory::ADDRESS,
    rest = const super::memory::ADDRESS + SPARE_BLOCKS * BLOCK,
    end_mark = const END_MARK,
    options(att_syntax)
);

unsafe extern "C" {
    static lab_option_rom: u8;
    static lab_option_rom_end: u8;
}

/// The ROM, with the checksum that the BIOS asks for: all bytes add up to 0.
pub(super) fn image() -> Vec<u8> {
    let start = &raw const lab_option_rom;
    let end = &raw const lab_option_rom_end;
    // SAFETY: both are labels of one section, the second behind the first, and all between them
    // is what the block above put there: initialised, read-only and there for good.
    let code = unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) };
    let mut image = code.to_vec();
    image.resize(512, 0);
    let sum = image.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    image[511] = sum.wrapping_neg();
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bios_takes_it_for_a_rom() {
        let image = image();
        assert_eq!(image.len(), 512);
        assert_eq!(image[..3], [0x55, 0xAA, 1]);
        assert_eq!(
            image.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        // The last code byte, before zeros and the checksum, is in the descriptor of flat data.
        let used = image[..511].iter().rposition(|byte| *byte != 0).unwrap();
        assert!(used < 511 - 8, "{used}");
    }

    #[test]
    fn parameters_lie_where_the_rom_reads_them() {
        let parameters = Parameters {
            entry: 0x0100_0A30,
            start_info: 0x0080_1000,
            end_mark: 0x0400_0000,
        };
        let bytes = parameters.bytes();
        assert_eq!(bytes[..4], [0; 4]);
        assert_eq!(bytes[4..8], [0x30, 0x0A, 0, 1]);
        assert_eq!(bytes[8..12], [0, 0x10, 0x80, 0]);
        assert_eq!(bytes[12..], [0, 0, 0, 4]);
    }
}
