//! Segments and the task-state segment.
//!
//! The entry code loads this table and it stays: only the descriptor of the TSS, whose address
//! the linker knows, is filled in at run time.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Selector of the 64-bit code segment.
pub const CODE: u16 = 0x08;
/// Selector of the data segment.
pub const DATA: u16 = 0x10;
/// Selector of the TSS; its descriptor takes two places (SDM vol. 3A, 8.2.3).
const TASK: u16 = 0x18;
/// Limit of the table, as LGDT wants it.
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
pub(super) const LIMIT: u16 = 5 * 8 - 1;

/// Which of the TSS's stacks a double fault takes.
pub const DOUBLE_FAULT_STACK: u8 = 1;
/// Room on that stack: enough to print the registers.
const EMERGENCY: usize = 8192;

/// The table; the entry code refers to it by name.
#[unsafe(no_mangle)]
static KERNEL_GDT: [AtomicU64; 5] = [
    AtomicU64::new(0),
    AtomicU64::new(0x00AF_9B00_0000_FFFF),
    AtomicU64::new(0x00CF_9300_0000_FFFF),
    AtomicU64::new(0),
    AtomicU64::new(0),
];

/// 104 bytes in words, because IST1 starts at byte 36 (SDM vol. 3A, figure 8-11).
static TASK_STATE: [AtomicU32; 26] = [const { AtomicU32::new(0) }; 26];
const IST1: usize = 36 / 4;
/// Bytes 102 and 103: where the I/O permission map would start, here behind the segment.
const IO_MAP: usize = 100 / 4;

#[repr(C, align(16))]
struct Stack(core::cell::UnsafeCell<[u8; EMERGENCY]>);

// SAFETY: no Rust code ever touches the bytes; the CPU uses them as a stack.
unsafe impl Sync for Stack {}

static EMERGENCY_STACK: Stack = Stack(core::cell::UnsafeCell::new([0; EMERGENCY]));

/// The two halves of the descriptor of an available 64-bit TSS.
const fn task_descriptor(base: u64, limit: u32) -> [u64; 2] {
    let low = limit as u64 & 0xFFFF
        | (base & 0xFF_FFFF) << 16
        | 0x89 << 40
        | (limit as u64 >> 16 & 0xF) << 48
        | (base >> 24 & 0xFF) << 56;
    [low, base >> 32]
}

/// Gives double faults a stack of their own.
pub fn load_task_state() {
    let top = EMERGENCY_STACK.0.get() as u64 + EMERGENCY as u64;
    TASK_STATE[IST1].store(top as u32, Ordering::Relaxed);
    TASK_STATE[IST1 + 1].store((top >> 32) as u32, Ordering::Relaxed);
    TASK_STATE[IO_MAP].store(104 << 16, Ordering::Relaxed);
    let descriptor = task_descriptor(&raw const TASK_STATE as u64, 103);
    KERNEL_GDT[3].store(descriptor[0], Ordering::Relaxed);
    KERNEL_GDT[4].store(descriptor[1], Ordering::Relaxed);
    #[cfg(target_os = "none")]
    // SAFETY: the selector names the descriptor just written, which describes a TSS that lives as
    // long as the kernel. LTR writes the descriptor's busy bit, in a table that is all atomics.
    unsafe {
        core::arch::asm!("ltr {0:x}", in(reg) TASK, options(nostack, preserves_flags));
    }
    #[cfg(not(target_os = "none"))]
    let _ = TASK;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptor_spreads_the_base() {
        let [low, high] = task_descriptor(0xFEDC_BA98_7654_3210, 0x67);
        assert_eq!(low, 0x7600_8954_3210_0067);
        assert_eq!(high, 0xFEDC_BA98);
    }

    #[test]
    fn the_limit_covers_the_table() {
        assert_eq!(usize::from(LIMIT) + 1, size_of_val(&KERNEL_GDT));
        assert_eq!(size_of_val(&TASK_STATE), 104);
    }
}
