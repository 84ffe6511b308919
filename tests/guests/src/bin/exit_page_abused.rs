//! What is done to the exit page besides reading it: nothing of that changes it.
//!
//! Command line: 0 stores of every kind, 1 an instruction that KVM cannot emulate, 2 executed, 3
//! mapped elsewhere, 4 its end, 5 as a root of page tables, 6 as a page table, 7 as a stack when an
//! exception comes, 8 as a table of segments.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);
guest_kernel::publish_cpuid_gate!();

#[cfg(not(target_os = "none"))]
fn guest(_: u32) -> u32 {
    0
}

/// A table of pages.
#[cfg(target_os = "none")]
#[repr(C, align(4096))]
struct Table([u64; 512]);

#[cfg(target_os = "none")]
static mut DIRECTORIES: Table = Table([0; 512]);
#[cfg(target_os = "none")]
static mut DIRECTORY: Table = Table([0; 512]);

/// The head's words, and what a row that has not changed must have.
#[cfg(target_os = "none")]
fn head_words() -> [u64; 512] {
    core::array::from_fn(|at| test_guests::page::load(at as u64 * 8))
}

/// Writes an entry of the page tables in use, at their root.
#[cfg(target_os = "none")]
fn link(index: usize, entry: u64) {
    // SAFETY: CR3 holds the entry's own root, which lies in RAM that is mapped one to one and can
    // be written; the entry was free, so that nothing in use changes.
    unsafe {
        let root: u64;
        core::arch::asm!("mov {}, cr3", out(reg) root);
        ((root & !0xFFF) as *mut u64)
            .add(index)
            .write_volatile(entry);
        core::arch::asm!("mov cr3, {}", in(reg) root);
    }
}

#[cfg(target_os = "none")]
fn guest(start_info: u32) -> u32 {
    use core::arch::asm;
    use exit_abi::leaf::Layout;
    use exit_abi::page::{ADDRESS, HEAD_SIZE};
    use exit_abi::port as ports;
    use exit_abi::reason::Reason;
    use guest_kernel::arch::{gate::gate_cpuid, port};
    use test_guests::{check, check_eq, page};

    let part = test_guests::cmdline_number(start_info);
    let head = page::find();
    let before = head_words();
    let rows = page::total(&head);
    // A row in which nothing happens: its shortest is all ones, all else is zero.
    let idle = (0..head.rows)
        .rev()
        .filter(|&row| head.reason(row, page::load).is_some())
        .find(|&row| head.exits(0, row, page::load) == 0)
        .unwrap_or(0);
    let idle = head.records + idle * head.row_stride;
    let idle_words = || core::array::from_fn::<u64, 8, _>(|n| page::load(idle + n as u64 * 8));
    let idle_before = idle_words();
    port::out32(ports::MILESTONE, 0x300);
    let unchanged = || {
        check(40, head_words() == before, "the head is as it was");
        check(41, page::find() == head, "and says the same");
        check_eq(42, idle_words(), idle_before, "an idle row is as it was");
        check(43, page::total(&head) >= rows, "counters only grow");
        page::check_rows(44, &head);
    };
    match part {
        0 => {
            for at in [
                ADDRESS,
                ADDRESS + HEAD_SIZE,
                ADDRESS + idle,
                ADDRESS + idle + 40,
            ] {
                // SAFETY: the page is memory that the guest cannot write: stores to it vanish.
                unsafe {
                    asm!("mov [{0}], {1}", in(reg) at, in(reg) u64::MAX / 3, options(nostack));
                    asm!("mov [{0}], {1:e}", in(reg) at, in(reg) 7, options(nostack));
                    asm!("mov [{0}], {1:x}", in(reg) at, in(reg) 7, options(nostack));
                    asm!("mov byte ptr [{0}], 7", in(reg) at, options(nostack));
                    asm!("add qword ptr [{0}], 9", in(reg) at, options(nostack));
                    asm!("lock xadd [{0}], {1}", in(reg) at, inout(reg) 5_u64 => _, options(nostack));
                    asm!("xchg [{0}], {1}", in(reg) at, inout(reg) 5_u64 => _, options(nostack));
                    let now: u64;
                    asm!("mov rax, [{0}]", "lock cmpxchg [{0}], {1}", in(reg) at, in(reg) 3_u64,
                        out("rax") now, options(nostack));
                    let _ = now;
                    asm!("lock bts qword ptr [{0}], 3", in(reg) at, options(nostack));
                    asm!("rep stosq", inout("rcx") 4_u64 => _, inout("rdi") at => _,
                        in("rax") 0x55_u64, options(nostack));
                    asm!("rep movsq", inout("rcx") 4_u64 => _, inout("rdi") at => _,
                        inout("rsi") &raw const idle_before => _, options(nostack));
                    // Across the border of two pages.
                    asm!("mov [{0}], {1}", in(reg) (at & !0xFFF) + 0xFFC, in(reg) u64::MAX / 3,
                        options(nostack));
                }
                unchanged();
            }
        }
        1 => {
            // SAFETY: the x87 environment goes to where nothing can be written.
            unsafe { asm!("fnstenv [{0}]", in(reg) ADDRESS, options(nostack)) };
        }
        2 => {
            // SAFETY: none: what is there is no code (bytes 0xFF, an undefined instruction), and
            // there is no IDT. The machine does not come back.
            unsafe { asm!("jmp {0}", in(reg) ADDRESS + HEAD_SIZE - 64, options(noreturn)) };
        }
        3 => {
            const PRESENT_WRITABLE: u64 = 3;
            const LARGE: u64 = 1 << 7;
            let elsewhere = 1_u64 << 39;
            // SAFETY: there is one CPU; the tables are not in use yet.
            unsafe {
                DIRECTORY.0[0] = ADDRESS | LARGE | PRESENT_WRITABLE;
                DIRECTORY.0[1] = (ADDRESS + (2 << 20)) | LARGE | PRESENT_WRITABLE;
                DIRECTORIES.0[0] = &raw const DIRECTORY as u64 | PRESENT_WRITABLE;
            }
            link(1, &raw const DIRECTORIES as u64 | PRESENT_WRITABLE);
            for at in [0, HEAD_SIZE, idle] {
                let value: u64;
                // SAFETY: mapped just now; what is stored vanishes.
                unsafe {
                    asm!("mov {1}, [{0}]", in(reg) elsewhere + at, out(reg) value, options(nostack));
                    asm!("mov [{0}], {1}", in(reg) elsewhere + at, in(reg) !value, options(nostack));
                }
                if at != HEAD_SIZE {
                    check_eq(50, value, page::load(at), "the same from elsewhere");
                }
                unchanged();
            }
        }
        4 => {
            let end = head.size();
            check_eq(51, page::load(end), 0, "behind it is nothing");
            let across: u64;
            // SAFETY: a load across its end, half of it where no device is.
            unsafe {
                asm!("mov {1}, [{0}]", in(reg) ADDRESS + end - 4, out(reg) across, options(nostack));
            }
            check_eq(52, across, 0, "nor across its end");
            // SAFETY: as above, a store: it vanishes.
            unsafe {
                asm!("mov [{0}], {1}", in(reg) ADDRESS + end - 4, in(reg) u64::MAX, options(nostack));
            }
            unchanged();
        }
        5 => {
            // SAFETY: none: what is there maps nothing. The machine does not come back.
            unsafe { asm!("mov cr3, {0}", "ud2", in(reg) ADDRESS, options(noreturn)) };
        }
        7 => {
            test_guests::traps::install();
            let stack = ADDRESS + HEAD_SIZE / 2;
            // SAFETY: none: what the exception leaves on the stack vanishes, and its handler returns to
            // nowhere.
            unsafe { asm!("mov rsp, {0}", "ud2", "ud2", in(reg) stack, options(noreturn)) };
        }
        8 => {
            // The descriptor that is all ones, behind the reasons: a segment, already accessed.
            let mut pointer = [0_u8; 10];
            pointer[..2].copy_from_slice(&(HEAD_SIZE as u16 - 1).to_le_bytes());
            pointer[2..].copy_from_slice(&ADDRESS.to_le_bytes());
            // SAFETY: in 64-bit mode a data segment's base and limit mean nothing; our own table and
            // segment are back before anything else is loaded, and no interrupt can come.
            unsafe {
                asm!("push 0", "push 0", "sgdt [rsp]", "lgdt [{0}]", "mov {1:e}, ds",
                    "mov {2:e}, 0x800", "mov ds, {2:e}", "lgdt [rsp]", "mov ds, {1:e}",
                    "add rsp, 16", in(reg) &raw const pointer, out(reg) _, out(reg) _);
            }
            unchanged();
        }
        _ => {
            // A counter as an entry of a page table: present, if it is odd. The CPU would note there
            // that it has used it, and cannot.
            let row = (0..head.rows)
                .filter(|&row| head.reason(row, page::load) == Some(Reason::EXCEPTION))
                .find(|&row| {
                    gate_cpuid(Layout::CLASSIC.total_exits, 0);
                    head.exits(0, row, page::load) > 0
                })
                .unwrap_or(0);
            while head.exits(0, row, page::load) & 0x21 != 1 {
                gate_cpuid(Layout::CLASSIC.total_exits, 0);
            }
            // It leads to the first page, whose first entry maps itself.
            // SAFETY: nobody uses the first page of RAM, which is mapped one to one.
            unsafe { asm!("mov qword ptr [{0}], 0x81", in(reg) 0_u64, options(nostack)) };
            let at = head.records + row * head.row_stride;
            link(2, ((ADDRESS + at) & !0xFFF) | 3);
            let address = 2_u64 << 39 | (((at & 0xFFF) / 8) << 30);
            let value: u64;
            // SAFETY: a load, by way of a counter: wherever it leads, it changes nothing.
            unsafe { asm!("mov {1}, [{0}]", in(reg) address, out(reg) value, options(nostack)) };
            // Not necessarily what the tables lead to: KVM on VT-x, which emulates the load because the
            // entry cannot be marked, reads the entry itself where its offset is the address's.
            let _ = value;
            unchanged();
        }
    }
    port::out32(ports::MILESTONE, 0x301);
    0
}
