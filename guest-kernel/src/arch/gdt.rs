//! Segments and the task-state segment.
//!
//! The entry code loads the first CPU's table and it stays: only the descriptor of the TSS, whose
//! address the linker knows, is filled in at run time. Each other CPU has a table of its own,
//! because the TSS that a CPU has loaded is marked busy in it.

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

/// Room for a stack.
#[repr(C, align(16))]
pub struct Stack<const N: usize>(core::cell::UnsafeCell<[u8; N]>);

// SAFETY: no Rust code ever touches the bytes; the CPU uses them as a stack.
unsafe impl<const N: usize> Sync for Stack<N> {}

impl<const N: usize> Stack<N> {
    /// Where it begins: stacks grow downwards.
    pub fn top(&self) -> u64 {
        self.0.get() as u64 + N as u64
    }
}

static EMERGENCY_STACK: Stack<EMERGENCY> = Stack(core::cell::UnsafeCell::new([0; EMERGENCY]));

/// What a CPU other than the first needs of all this.
#[repr(C, align(16))]
pub struct Segments {
    table: [AtomicU64; 5],
    task_state: [AtomicU32; 26],
    emergency: Stack<EMERGENCY>,
}

impl Segments {
    /// Fills them in and loads them, on the CPU that shall have them.
    pub fn load(&'static self) {
        for (ours, first) in self.table.iter().zip(&KERNEL_GDT) {
            ours.store(first.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        for word in &self.task_state {
            word.store(0, Ordering::Relaxed);
        }
        load_table(&self.table);
        load_task(&self.table, &self.task_state, self.emergency.top());
    }
}

/// The two halves of the descriptor of an available 64-bit TSS.
const fn task_descriptor(base: u64, limit: u32) -> [u64; 2] {
    let low = limit as u64 & 0xFFFF
        | (base & 0xFF_FFFF) << 16
        | 0x89 << 40
        | (limit as u64 >> 16 & 0xF) << 48
        | (base >> 24 & 0xFF) << 56;
    [low, base >> 32]
}

/// Gives the first CPU's double faults a stack of their own.
pub fn load_task_state() {
    load_task(&KERNEL_GDT, &TASK_STATE, EMERGENCY_STACK.top());
}

/// Loads a table whose segments are those in use.
fn load_table(table: &'static [AtomicU64; 5]) {
    #[cfg(target_os = "none")]
    {
        #[repr(C, packed)]
        struct Pointer {
            limit: u16,
            base: u64,
        }
        let pointer = Pointer {
            limit: LIMIT,
            base: table.as_ptr() as u64,
        };
        // SAFETY: the table lives as long as the kernel, and its code and data segments are the
        // ones that the segment registers have cached.
        unsafe {
            core::arch::asm!("lgdt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags));
        }
    }
    let _ = table;
}

/// Points a table's TSS at its stack for double faults, and loads it.
fn load_task(table: &'static [AtomicU64; 5], task_state: &'static [AtomicU32; 26], top: u64) {
    task_state[IST1].store(top as u32, Ordering::Relaxed);
    task_state[IST1 + 1].store((top >> 32) as u32, Ordering::Relaxed);
    task_state[IO_MAP].store(104 << 16, Ordering::Relaxed);
    let descriptor = task_descriptor(task_state.as_ptr() as u64, 103);
    table[3].store(descriptor[0], Ordering::Relaxed);
    table[4].store(descriptor[1], Ordering::Relaxed);
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
