//! The interrupt descriptor table: what kernel and firmware, each with stubs of its own, share.

use core::sync::atomic::{AtomicU64, Ordering};

/// Exceptions that push an error code, one bit each (SDM vol. 3A, table 6-1).
pub const WITH_ERROR_CODE: u64 = 1 << 8 | 0x1F << 10 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;

/// One gate, as two quadwords.
pub type Gate = [AtomicU64; 2];

/// A gate that leads nowhere yet.
pub const fn empty() -> Gate {
    [AtomicU64::new(0), AtomicU64::new(0)]
}

/// An interrupt gate for CPL 0 (SDM vol. 3A, figure 6-8), on the interrupt stack of this number.
const fn interrupt_gate(handler: u64, selector: u16, stack: u8) -> [u64; 2] {
    let low = handler & 0xFFFF
        | (selector as u64) << 16
        | (stack as u64) << 32
        | 0x8E << 40
        | (handler >> 16 & 0xFFFF) << 48;
    [low, handler >> 32]
}

/// Makes a gate lead to a handler.
pub fn set(gate: &Gate, handler: u64, selector: u16, stack: u8) {
    let [low, high] = interrupt_gate(handler, selector, stack);
    gate[0].store(low, Ordering::Relaxed);
    gate[1].store(high, Ordering::Relaxed);
}

/// Loads a table: exceptions of this CPU go through it from here on.
///
/// # Safety
///
/// Every gate of the table leads to a stub that keeps all registers or never returns.
#[cfg(target_os = "none")]
pub unsafe fn load(table: &'static [Gate]) {
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let pointer = Pointer {
        limit: (size_of_val(table) - 1) as u16,
        base: table.as_ptr() as u64,
    };
    // SAFETY: the table lives for ever, and leads where the caller promises.
    unsafe {
        core::arch::asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_spread_the_address() {
        let [low, high] = interrupt_gate(0xFFFF_8000_1234_5678, 8, 1);
        assert_eq!((low, high), (0x1234_8E01_0008_5678, 0xFFFF_8000));
        let [low, high] = interrupt_gate(0xFFFF_8000_1234_5678, 8, 0);
        assert_eq!((low, high), (0x1234_8E00_0008_5678, 0xFFFF_8000));
    }

    #[test]
    fn error_codes() {
        let pushing: Vec<_> = (0..64).filter(|v| WITH_ERROR_CODE >> v & 1 == 1).collect();
        assert_eq!(pushing, [8, 10, 11, 12, 13, 14, 17, 21, 29, 30]);
    }
}
