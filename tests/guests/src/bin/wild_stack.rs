//! Exits where a Linux kernel's code lies, with a stack pointer that leads nowhere, to the end of RAM or
//! out of it, by tables that are cut off, point at themselves or at devices. Its command line has the MiB
//! of its RAM. It writes the scratch port once for each stack pointer with each table: 9 × 12 times.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

/// A page of entries.
#[repr(C, align(4096))]
struct Table([u64; 512]);

/// Where Linux's kernel lies (linux/Documentation/arch/x86/x86_64/mm.rst).
const KERNEL: u64 = 0xFFFF_FFFF_8000_0000;
/// Where its stacks lie, by an index that is the same on all four levels.
const INDEX: u64 = 0x192;
const STACK: u64 = 0xFFFF << 48 | INDEX << 39 | INDEX << 30 | INDEX << 21 | INDEX << 12;
/// Present, writable; and a page of 2 MiB.
const TABLE: u64 = 0x3;
const PAGE: u64 = 0x83;

fn guest(start_info: u32) -> u32 {
    static mut TABLES: [Table; 4] = [const { Table([0; 512]) }; 4];
    let tables = &raw mut TABLES;
    // SAFETY: this is the only reference, made once: the guest has one CPU, and `guest` is called once.
    let tables = unsafe { &mut *tables };
    let at = |table: &Table| core::ptr::from_ref(table) as u64;
    let ram_end = u64::from(test_guests::cmdline_number(start_info)) << 20;

    let cr3: u64;
    // SAFETY: reading CR3 changes nothing.
    unsafe { core::arch::asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack)) };
    // SAFETY: the tables in use lie in the first 4 GiB, which are mapped one to one.
    let now = unsafe { &*((cr3 & !0xFFF) as *const Table) };
    let [top, pointers, pages, empty] = tables;
    top.0 = now.0;
    top.0[511] = at(pointers) | TABLE;
    pointers.0[510] = at(pages) | TABLE;
    for (page, n) in pages.0.iter_mut().zip(0..) {
        *page = n << 21 | PAGE;
    }
    // SAFETY: the new tables map all that the old ones did, and more.
    unsafe { core::arch::asm!("mov cr3, {}", in(reg) at(top), options(nostack)) };

    let loops = at(top) | TABLE;
    let last = (ram_end - 0x1000) | TABLE;
    for entry in [
        0,
        loops,
        at(empty) | TABLE,
        last,
        ram_end | TABLE,
        // A device, no device, the highest address, bits that are reserved.
        0xFEE0_0000 | TABLE,
        0xD000_0000 | TABLE,
        0x000F_FFFF_FFFF_F003,
        u64::MAX,
    ] {
        // SAFETY: nothing is mapped there that the guest uses.
        unsafe { (&raw mut top.0[INDEX as usize]).write_volatile(entry) };
        for stack in [
            STACK,
            STACK + 0xFF8,
            STACK + 0xFFF,
            STACK + 0x1000,
            0,
            ram_end - 8,
            u64::MAX,
            u64::MAX - 6,
            1 << 47,
            0x8000_0000_0000_0000,
            KERNEL + ram_end - 1,
            KERNEL - 1,
        ] {
            exit_from_above(stack);
        }
    }
    0
}

/// Writes the scratch port from where a Linux kernel has its code, with this stack pointer. No interrupt
/// comes: they are off, and nothing is asked to send any.
fn exit_from_above(stack: u64) {
    // SAFETY: the code is mapped there too; it uses no memory until it is back with the old stack.
    unsafe {
        core::arch::asm!(
            "lea {there}, [rip + 2f]",
            "lea {back}, [rip + 3f]",
            "add {there}, {kernel}",
            "mov {old}, rsp",
            "jmp {there}",
            "2:",
            "mov rsp, {stack}",
            "out dx, al",
            "mov rsp, {old}",
            "jmp {back}",
            "3:",
            there = out(reg) _,
            back = out(reg) _,
            old = out(reg) _,
            kernel = in(reg) KERNEL,
            stack = in(reg) stack,
            in("dx") exit_abi::port::SCRATCH,
            in("al") 0_u8,
        );
    }
}
