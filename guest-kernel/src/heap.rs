//! The heap: linked_list_allocator's, behind a spin lock, in RAM behind the image.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, Ordering};

use linked_list_allocator::Heap;

/// A heap that CPUs take turns to use. Nothing allocates in an interrupt.
struct Locked {
    taken: AtomicBool,
    heap: UnsafeCell<Heap>,
}

// SAFETY: `with` alone reaches the heap, and lets one CPU in at a time.
unsafe impl Sync for Locked {}

impl Locked {
    fn with<R>(&self, act: impl FnOnce(&mut Heap) -> R) -> R {
        while self.taken.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        // SAFETY: `taken` was false: nobody else holds a reference until it is false again.
        let result = act(unsafe { &mut *self.heap.get() });
        self.taken.store(false, Ordering::Release);
        result
    }
}

// SAFETY: linked_list_allocator hands out what fits the layout and lies within the heap; before
// `begin` it has nothing to hand out.
unsafe impl GlobalAlloc for Locked {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let piece = self.with(|heap| heap.allocate_first_fit(layout));
        piece.map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        if let Some(piece) = NonNull::new(piece) {
            // SAFETY: the caller got the piece from `alloc`, for this layout.
            self.with(|heap| unsafe { heap.deallocate(piece, layout) });
        }
    }
}

#[cfg_attr(target_os = "none", global_allocator)]
static HEAP: Locked = Locked {
    taken: AtomicBool::new(false),
    heap: UnsafeCell::new(Heap::empty()),
};

/// Makes memory the heap; `false` if there is one already or the memory is too small.
///
/// # Safety
///
/// The memory must be mapped, writable, and used by nobody else as long as the kernel runs.
pub unsafe fn begin(start: u64, length: u64) -> bool {
    HEAP.with(|heap| {
        if heap.size() > 0 || length < 4096 {
            return false;
        }
        // SAFETY: the caller gives this memory away, and the heap had none yet.
        unsafe { heap.init(start as *mut u8, length as usize) };
        true
    })
}

/// Free bytes.
pub fn free() -> usize {
    HEAP.with(|heap| heap.free())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_and_goes() {
        assert_eq!(free(), 0);
        let layout = Layout::from_size_align(4096, 4096).unwrap();
        // SAFETY: the layout's size is not zero.
        assert!(unsafe { HEAP.alloc(layout) }.is_null(), "no heap yet");
        let room = Vec::leak(vec![0_u64; 4096]);
        let (start, length) = (room.as_ptr() as u64, size_of_val(room) as u64);
        // SAFETY: the room is leaked to the heap.
        unsafe {
            assert!(!begin(start, 100));
            assert!(begin(start, length));
            assert!(!begin(start, length), "once only");
            let before = free();
            let page = HEAP.alloc(layout);
            assert!(!page.is_null() && (page as usize).is_multiple_of(4096));
            assert!(free() < before);
            HEAP.dealloc(page, layout);
            assert_eq!(free(), before);
        }
    }
}
