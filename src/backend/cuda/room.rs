//! Whether a thread can be started where address space is limited (`RLIMIT_AS`). A thread whose start lacks memory does not
//! fail but ends the process: Rust's has nowhere to put the stack of its signal handler, glibc's its destructors.

use std::ffi::{c_int, c_long, c_void};

unsafe extern "C" {
    fn mmap(
        address: *mut c_void,
        bytes: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: c_long,
    ) -> *mut c_void;
    fn munmap(address: *mut c_void, bytes: usize) -> c_int;
}

const PROT_NONE: c_int = 0;
const MAP_PRIVATE_ANONYMOUS: c_int = 0x22;

/// What a start takes: the stack, and some more.
pub const THREAD_BYTES: usize = 4 << 20;

/// What glibc reserves for the heap of a thread, unless there is less; then it does without.
const HEAP_BYTES: usize = 64 << 20;

/// Whether there is room for a thread, as long as no other takes it.
pub fn for_a_thread() -> bool {
    for_bytes(THREAD_BYTES) && (!for_bytes(HEAP_BYTES) || for_bytes(HEAP_BYTES + THREAD_BYTES))
}

fn for_bytes(bytes: usize) -> bool {
    // SAFETY: a new mapping that nobody can touch, wherever there is room.
    let address = unsafe { mmap(std::ptr::null_mut(), bytes, PROT_NONE, MAP_PRIVATE_ANONYMOUS, -1, 0) };
    if address.addr() == usize::MAX {
        return false;
    }
    // SAFETY: the mapping is this function's own.
    unsafe { munmap(address, bytes) };
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_some_bytes_and_not_for_all() {
        assert!(for_a_thread() && for_bytes(1));
        assert!(!for_bytes(usize::MAX / 2));
    }
}
