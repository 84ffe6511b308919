//! From PVH's 32-bit entry to Rust in long mode.
//!
//! The first page tables are constants of the image: building them would cost an interpreted CPU
//! thousands of instructions. They map the first 4 GiB one to one, in 2 MiB pages.

use core::arch::global_asm;

use super::gdt;

/// Present, writable, accessed, dirty; and the bit that makes an entry a large page.
const TABLE: u64 = 0x63;
const LARGE: u64 = 0x80 | TABLE;

/// A page table, as the CPU wants it aligned.
#[repr(C, align(4096))]
pub struct Table([u64; 512]);

/// 2 MiB pages for one gigabyte after the other.
const fn directory(gigabyte: u64) -> Table {
    let mut table = [0; 512];
    let mut i = 0;
    while i < 512 {
        table[i] = gigabyte << 30 | (i as u64) << 21 | LARGE;
        i += 1;
    }
    Table(table)
}

#[unsafe(no_mangle)]
static BOOT_DIRECTORIES: [Table; 4] = [directory(0), directory(1), directory(2), directory(3)];

global_asm!(
    // Links between the tables, which only the linker can compute.
    ".pushsection .data.boot_tables, \"aw\"",
    ".balign 4096",
    "boot_pml4:",
    ".quad boot_pdpt + {table}",
    ".fill 511, 8, 0",
    "boot_pdpt:",
    ".quad BOOT_DIRECTORIES + {table}",
    ".quad BOOT_DIRECTORIES + 4096 + {table}",
    ".quad BOOT_DIRECTORIES + 8192 + {table}",
    ".quad BOOT_DIRECTORIES + 12288 + {table}",
    ".fill 508, 8, 0",
    "boot_gdt_pointer:",
    ".word {gdt_limit}",
    ".long KERNEL_GDT",
    ".popsection",
    ".pushsection .bss.boot_stack, \"aw\", @nobits",
    // One page that stays unmapped once the kernel runs on its own tables, then the stack.
    ".balign 4096",
    ".global boot_stack_guard",
    "boot_stack_guard:",
    ".fill 4096, 1, 0",
    ".fill 65536, 1, 0",
    "boot_stack_top:",
    ".popsection",
    // PVH: 32-bit protected mode, flat segments, paging off, EBX = start info.
    ".pushsection .text.entry, \"ax\"",
    ".code32",
    ".global pvh_start",
    "pvh_start:",
    "cld",
    "mov esp, offset boot_stack_top",
    "mov eax, offset boot_pml4",
    "mov cr3, eax",
    "mov eax, cr4",
    "or eax, 0x20", // PAE
    "mov cr4, eax",
    "mov ecx, 0xC0000080", // IA32_EFER: LME, NXE
    "rdmsr",
    "or eax, 0x900",
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80010000", // PG, WP
    "mov cr0, eax",
    "lgdt [boot_gdt_pointer]",
    // jmp CODE:boot_long_mode, in bytes: the assembler's Intel syntax cannot spell it.
    ".byte 0xEA",
    ".long boot_long_mode",
    ".word {code}",
    ".code64",
    "boot_long_mode:",
    "mov eax, {data}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "xor eax, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov edi, ebx",
    "xor ebp, ebp",
    "call guest_main",
    // guest_main does not return; should it, there is nothing to return to.
    "3: cli",
    "hlt",
    "jmp 3b",
    ".popsection",
    table = const TABLE,
    gdt_limit = const gdt::LIMIT,
    code = const gdt::CODE,
    data = const gdt::DATA,
);
