//! What the process holds. Only for test binaries with one test: others would allocate meanwhile.

#![allow(dead_code, reason = "each test binary uses what it needs")]

use std::time::{Duration, Instant};

use crate::alloc;

/// What a process can run out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub threads: usize,
    pub open_files: usize,
    pub bytes: isize,
    pub blocks: isize,
}

fn held() -> Held {
    let entries = |folder: &str| std::fs::read_dir(folder).unwrap().count();
    let (open_files, threads) = (entries("/proc/self/fd"), entries("/proc/self/task"));
    let alloc::Live { bytes, blocks } = alloc::process();
    Held { bytes, blocks, open_files, threads }
}

/// What is held once what ended threads have left to others is freed.
///
/// All thread pools of the process share a list of memory that some thread may still be looking at
/// (crossbeam-epoch's), from which threads that look for work now and then free the oldest. This frees all of it.
fn swept() -> Held {
    std::thread::sleep(Duration::from_millis(1));
    (0..16).for_each(|_| crossbeam_epoch::pin().flush());
    held()
}

/// What is held once threads that start and end are done with it.
pub fn settled() -> Held {
    let (mut held, mut rounds) = (swept(), 0);
    let started = Instant::now();
    while rounds < 30 && started.elapsed() < Duration::from_secs(5) {
        let now = swept();
        rounds = if now == held { rounds + 1 } else { 0 };
        held = now;
    }
    held
}

/// What is held before and after `body`, which has run once before to prepare what it keeps for ever. What threads
/// give back as they end is waited for, for a while.
pub fn around(patience: Duration, body: &dyn Fn()) -> (Held, Held) {
    body();
    let mut before = settled();
    loop {
        body();
        let started = Instant::now();
        let mut after = swept();
        while after != before && started.elapsed() < patience {
            after = swept();
        }
        if (after.bytes, after.blocks) >= (before.bytes, before.blocks) {
            return (before, after);
        }
        // A thread of a live pool has only now let go of what was there before: that was no measure.
        before = settled();
    }
}

/// Checks that `body` leaves nothing.
pub fn leaves_nothing(name: &str, body: &dyn Fn()) {
    let (before, after) = around(Duration::from_secs(5), body);
    assert_eq!(after, before, "left by {name}");
}
