//! A global allocator that counts what each thread and the process hold, and can refuse large requests.
//! A test binary that declares this module uses it for everything.

#![allow(unsafe_code, reason = "a global allocator is an unsafe trait")]
#![allow(dead_code, reason = "each test binary uses what it needs")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static PROCESS_BYTES: AtomicIsize = AtomicIsize::new(0);
static PROCESS_BLOCKS: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    // Initialised at compile time and without destructor, so that reading them never allocates.
    static BYTES: Cell<isize> = const { Cell::new(0) };
    static BLOCKS: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static REFUSE_FROM: Cell<usize> = const { Cell::new(usize::MAX) };
    static REFUSE_AFTER: Cell<usize> = const { Cell::new(0) };
    static REFUSED: Cell<usize> = const { Cell::new(0) };
}

/// Memory held: requested bytes, and blocks. May be negative for a thread that frees what another allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    pub bytes: isize,
    pub blocks: isize,
}

/// What the calling thread holds. Other threads of the test harness do not disturb it.
pub fn thread() -> Live {
    Live { bytes: BYTES.get(), blocks: BLOCKS.get() }
}

/// What the process holds; exact only while no other thread allocates.
pub fn process() -> Live {
    Live { bytes: PROCESS_BYTES.load(Relaxed), blocks: PROCESS_BLOCKS.load(Relaxed) }
}

/// Runs `body` and returns its result with the most bytes that this thread held above what it held before.
/// Calls may nest.
pub fn peak<T>(body: impl FnOnce() -> T) -> (T, usize) {
    let (before, outer) = (BYTES.get(), PEAK.get());
    PEAK.set(before);
    let result = body();
    let peak = PEAK.get();
    PEAK.set(peak.max(outer));
    (result, (peak - before).try_into().unwrap_or(0))
}

/// Runs `body` while requests of this thread for `from` bytes or more fail, except the first `after` of them.
/// Returns its result and how many requests were refused.
pub fn refusing<T>(from: usize, after: usize, body: impl FnOnce() -> T) -> (T, usize) {
    REFUSED.set(0);
    REFUSE_AFTER.set(after);
    REFUSE_FROM.set(from);
    let result = body();
    REFUSE_FROM.set(usize::MAX);
    (result, REFUSED.get())
}

fn refuse(size: usize) -> bool {
    if size < REFUSE_FROM.get() {
        return false;
    }
    match REFUSE_AFTER.get() {
        0 => REFUSED.set(REFUSED.get() + 1),
        after => {
            REFUSE_AFTER.set(after - 1);
            return false;
        }
    }
    true
}

fn count(bytes: isize, blocks: isize) {
    PROCESS_BYTES.fetch_add(bytes, Relaxed);
    PROCESS_BLOCKS.fetch_add(blocks, Relaxed);
    BLOCKS.set(BLOCKS.get() + blocks);
    BYTES.set(BYTES.get() + bytes);
    PEAK.set(PEAK.get().max(BYTES.get()));
}

// SAFETY: every request goes to `System` unchanged or is refused with null, which the trait allows; counting
// neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refuse(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's obligations are those of `System`.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            count(layout.size() as isize, 1);
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if refuse(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's obligations are those of `System`.
        let block = unsafe { System.alloc_zeroed(layout) };
        if !block.is_null() {
            count(layout.size() as isize, 1);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` came from `System` with this layout.
        unsafe { System.dealloc(block, layout) };
        count(-(layout.size() as isize), -1);
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > layout.size() && refuse(size) {
            return std::ptr::null_mut();
        }
        // SAFETY: `block` came from `System` with this layout; the rest are the caller's obligations.
        let moved = unsafe { System.realloc(block, layout, size) };
        if !moved.is_null() {
            // The old and the new block may exist at the same time.
            count(size as isize, 1);
            count(-(layout.size() as isize), -1);
        }
        moved
    }
}
