//! How far a load is, and whether it is still wanted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{Error, Result};

/// Shared by the threads of a load and by whoever watches or cancels it. Nothing here waits.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Bytes of weights that have been read and bytes of all: both 0 until the header has been read, and equal when
    /// all have been.
    pub fn bytes(&self) -> (u64, u64) {
        // `done` first: read after it, a total that was just set would seem to be behind.
        let done = self.done.load(Ordering::Acquire);
        (done, self.total.load(Ordering::Acquire))
    }

    /// Ends the load soon: what it does next is [`Self::check`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// To be asked before every step that takes more than a moment, such as a read of some MiB.
    ///
    /// # Errors
    /// [`Error::LoadCancelled`] once [`Self::cancel`] was called.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::LoadCancelled) } else { Ok(()) }
    }

    /// Says how many bytes are to be read.
    pub fn expect(&self, total: u64) {
        self.total.store(total, Ordering::Release);
    }

    /// Says that some of them have been.
    pub fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::AcqRel);
    }
}
