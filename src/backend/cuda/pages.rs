//! Host memory by the page: mapped and filled without a device, which may be made able to reach it afterwards.

use std::ffi::{c_int, c_long, c_uint, c_void};
use std::ops::Range;
use std::sync::Arc;

use super::context::Context;
use super::memory::PinnedPages;
use crate::{Error, Result};

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
    fn madvise(address: *mut c_void, bytes: usize, advice: c_int) -> c_int;
}

const PROT_NONE: c_int = 0;
const PROT_READ_WRITE: c_int = 3;
const MAP_PRIVATE_ANONYMOUS: c_int = 0x22;
const MADV_DONTFORK: c_int = 10;
const MADV_HUGEPAGE: c_int = 14;

/// Flags of `cuMemHostRegister`: known to all contexts, mapped into the device.
const REGISTER_PORTABLE: c_uint = 1;
const REGISTER_DEVICEMAP: c_uint = 2;

/// Bytes of a page, and of a large one.
pub const PAGE: usize = 4096;
const LARGE_PAGE: usize = 2 << 20;

/// A new mapping of its own.
struct Mapping {
    start: *mut c_void,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize, protection: c_int) -> Option<Mapping> {
        // SAFETY: a new mapping, wherever there is room.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, protection, MAP_PRIVATE_ANONYMOUS, -1, 0) };
        (start.addr() != usize::MAX).then_some(Mapping { start, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { munmap(self.start, self.bytes) };
    }
}

/// Whether there is room for so many bytes of address space, as long as no other takes it.
pub fn has_room(bytes: usize) -> bool {
    Mapping::new(bytes, PROT_NONE).is_some()
}

/// Memory of the host, in large pages where the system has them: these are pinned in a twentieth of the time.
pub struct Pages {
    start: *mut u8,
    len: usize,
    /// Where they lie.
    _mapping: Mapping,
}

// SAFETY: it owns its memory as a boxed slice would; nothing of it is bound to a thread.
unsafe impl Send for Pages {}
// SAFETY: shared references only read, as those of a boxed slice.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps at least `bytes`, whole pages that are zero. A process that is forked off does not get them.
    ///
    /// # Errors
    /// `OutOfMemory` names `what`.
    pub fn new(bytes: usize, what: &str) -> Result<Pages> {
        let no_memory = || Error::OutOfMemory { what: what.to_string(), bytes: bytes as u64 };
        let len = bytes.max(1).checked_next_multiple_of(PAGE).ok_or_else(no_memory)?;
        let room = len.checked_add(LARGE_PAGE).ok_or_else(no_memory)?;
        let mapping = Mapping::new(room, PROT_READ_WRITE).ok_or_else(no_memory)?;
        let before = mapping.start.addr().next_multiple_of(LARGE_PAGE) - mapping.start.addr();
        let start = mapping.start.cast::<u8>().wrapping_add(before);
        for advice in [MADV_HUGEPAGE, MADV_DONTFORK] {
            // SAFETY: the pages are those of the mapping, and what they hold stays. It is no more than advice.
            unsafe { madvise(start.cast(), len, advice) };
        }
        Ok(Pages { start, len, _mapping: mapping })
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.start
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// A part of the bytes, to write; `None` where there is none.
    ///
    /// # Safety
    /// Nobody else reads or writes any of it meanwhile, the device included.
    #[allow(clippy::mut_from_ref, reason = "parts are shared out by whoever calls it")]
    pub unsafe fn part_mut(&self, part: Range<usize>) -> Option<&mut [u8]> {
        let bytes = part.end.checked_sub(part.start).filter(|_| part.end <= self.len)?;
        // SAFETY: bytes of the mapping, zero or written, which lives as long as this value; nobody else uses them.
        Some(unsafe { std::slice::from_raw_parts_mut(self.start.wrapping_add(part.start), bytes) })
    }

    /// Lets the device reach them. Where the driver cannot do that it copies from them all the same, by way of memory of its own.
    ///
    /// # Errors
    /// `DeviceLost`.
    pub fn pin(self: &Arc<Pages>, context: &Arc<Context>) -> Result<PinnedPages> {
        let (start, len) = (self.start.cast(), self.len);
        // SAFETY: the pages stay mapped until they are unregistered, which what is returned sees to.
        let outcome = context.call("cuMemHostRegister", |f| unsafe {
            (f.cuMemHostRegister)(start, len, REGISTER_PORTABLE | REGISTER_DEVICEMAP)
        });
        match outcome {
            Err(error) if context.is_lost() => Err(error),
            outcome => Ok(PinnedPages::new(context, self.clone(), outcome.is_ok())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_some_bytes_and_not_for_all() {
        assert!(has_room(1));
        assert!(!has_room(usize::MAX / 2));
        assert!(Pages::new(usize::MAX / 2, "it").is_err() && Pages::new(usize::MAX, "it").is_err());
    }

    #[test]
    fn pages_are_whole_aligned_and_zero() {
        for bytes in [0, 1, PAGE + 1, LARGE_PAGE + 5] {
            let pages = Pages::new(bytes, "it").unwrap_or_else(|error| panic!("{error}"));
            assert!(pages.len() >= bytes && pages.len().is_multiple_of(PAGE));
            // SAFETY: nobody else has them.
            let slice = unsafe { pages.part_mut(0..pages.len()) }.unwrap_or_default();
            assert!(slice.len() == pages.len() && slice.iter().all(|byte| *byte == 0));
            assert!(slice.as_ptr().addr().is_multiple_of(LARGE_PAGE));
            slice.fill(1);
            // SAFETY: as above; these do not exist.
            assert!(unsafe { pages.part_mut(1..pages.len() + 1) }.is_none());
        }
    }
}
