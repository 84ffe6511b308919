//! A value that lives as long as the kernel and is handed out once.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

/// A static that one owner takes, to use it without locks.
pub struct Once<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through `take` alone, which gives it to one taker.
unsafe impl<T: Send> Sync for Once<T> {}

impl<T> Once<T> {
    /// A value nobody has taken.
    pub const fn new(value: T) -> Self {
        Self {
            taken: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// The value, the first time; `None` ever after.
    #[allow(clippy::mut_from_ref)] // the flag lets one caller through
    pub fn take(&'static self) -> Option<&'static mut T> {
        if self.taken.swap(true, Ordering::AcqRel) {
            return None;
        }
        // SAFETY: `taken` was false and never becomes false again: this is the only reference.
        Some(unsafe { &mut *self.value.get() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_only() {
        static NUMBER: Once<u32> = Once::new(3);
        assert_eq!(NUMBER.take(), Some(&mut 3));
        assert_eq!(NUMBER.take(), None);
    }
}
