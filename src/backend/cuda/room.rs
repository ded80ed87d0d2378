//! Whether a thread can be started where address space is limited (`RLIMIT_AS`). A thread whose start lacks memory does not
//! fail but ends the process: Rust's has nowhere to put the stack of its signal handler, glibc's its destructors.

use super::pages::has_room;

/// What a start takes: the stack, and some more.
pub const THREAD_BYTES: usize = 4 << 20;

/// What glibc reserves for the heap of a thread, unless there is less; then it does without.
const HEAP_BYTES: usize = 64 << 20;

/// Whether there is room for a thread, as long as no other takes it.
pub fn for_a_thread() -> bool {
    has_room(THREAD_BYTES) && (!has_room(HEAP_BYTES) || has_room(HEAP_BYTES + THREAD_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_a_thread() {
        assert!(for_a_thread());
    }
}
