//! From PVH's 32-bit entry to Rust in long mode.

use core::arch::global_asm;

use exit_abi::{milestone, port};

use super::{gdt, paging};

/// Bytes of the stack: several times what a boot and the printing of a crash need.
const STACK: usize = 8192;

global_asm!(
    // The upper levels of the page tables, whose links only the linker can compute.
    ".pushsection .data.firmware_tables, \"aw\"",
    ".balign 4096",
    ".global firmware_tables",
    "firmware_tables:",
    ".quad firmware_pdpt + {table}",
    ".fill 511, 8, 0",
    "firmware_pdpt:",
    ".quad FIRMWARE_DIRECTORY + {table}",
    ".quad FIRMWARE_MORE_DIRECTORIES + {table}",
    ".quad FIRMWARE_MORE_DIRECTORIES + 4096 + {table}",
    ".quad FIRMWARE_MORE_DIRECTORIES + 8192 + {table}",
    ".fill 508, 8, 0",
    ".popsection",
    ".pushsection .rodata.firmware_gdt, \"a\"",
    ".balign 8",
    ".global firmware_gdt_pointer",
    "firmware_gdt_pointer:",
    ".word {gdt_limit}",
    ".quad FIRMWARE_GDT",
    ".popsection",
    ".pushsection .bss.firmware_stack, \"aw\", @nobits",
    ".balign 16",
    ".fill {stack}, 1, 0",
    "firmware_stack_top:",
    ".popsection",
    // PVH: 32-bit protected mode, flat segments, paging off, EBX = start info.
    ".pushsection .text.firmware_entry, \"ax\"",
    ".code32",
    ".global firmware_start",
    "firmware_start:",
    "mov eax, {firmware_entry}",
    "mov edx, {milestone_port}",
    "out dx, eax",
    "cld",
    "mov esp, offset firmware_stack_top",
    "mov eax, offset firmware_tables",
    "mov cr3, eax",
    "mov eax, 0x20", // PAE
    "mov cr4, eax",
    "mov ecx, 0xC0000080", // IA32_EFER: LME
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80010000", // PG, WP
    "mov cr0, eax",
    "lgdt [firmware_gdt_pointer]",
    // jmp CODE64:firmware_long_mode, in bytes: the assembler's Intel syntax cannot spell it.
    ".byte 0xEA",
    ".long firmware_long_mode",
    ".word {code64}",
    ".code64",
    "firmware_long_mode:",
    "mov eax, {data}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov edi, ebx",
    "xor ebp, ebp",
    "call firmware_main",
    "ud2",
    ".popsection",
    ".pushsection .note.firmware, \"a\", @note",
    ".balign 4",
    ".long 4, 4, {phys32}",
    ".asciz \"Xen\"",
    ".long firmware_start",
    ".popsection",
    table = const paging::TABLE,
    gdt_limit = const size_of_val(&gdt::FIRMWARE_GDT) - 1,
    stack = const STACK,
    firmware_entry = const milestone::FIRMWARE_ENTRY,
    milestone_port = const port::MILESTONE,
    code64 = const gdt::CODE64,
    data = const gdt::DATA,
    phys32 = const exit_abi::note::XEN_PHYS32_ENTRY,
);
