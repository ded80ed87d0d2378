//! Memory of the device, and host memory that the device reads and writes. Every byte is in the ledger of its context.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint, c_void};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::context::Context;
use super::pages::Pages;
use super::stream::Stream;
pub use crate::backend::Purpose;
use crate::backend::{Memory, Residency};
use crate::{Error, Result};

/// Flags of `cuMemHostAlloc`: known to all contexts, mapped into the device.
const HOST_ALLOC_PORTABLE: c_uint = 1;
const HOST_ALLOC_DEVICEMAP: c_uint = 2;

/// Attributes of a pointer, `CUpointer_attribute`, and the memory type of a device.
const POINTER_MEMORY_TYPE: c_uint = 2;
const POINTER_IS_MANAGED: c_uint = 8;
const POINTER_DEVICE_ORDINAL: c_uint = 9;
const MEMORY_TYPE_DEVICE: c_int = 2;

/// What is allocated through one context.
#[derive(Default)]
pub struct Ledger {
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    /// Purpose and length of what lies at an address of the device.
    device: BTreeMap<u64, (Purpose, usize)>,
    pinned_bytes: u64,
}

impl Ledger {
    /// Bytes of the device that serve `purpose`.
    pub fn bytes(&self, purpose: Purpose) -> u64 {
        self.lock().device.values().filter(|entry| entry.0 == purpose).map(|entry| entry.1 as u64).sum()
    }

    /// Bytes of the device in all.
    pub fn device_bytes(&self) -> u64 {
        self.lock().device.values().map(|entry| entry.1 as u64).sum()
    }

    /// Bytes of host memory that the device can reach.
    pub fn pinned_bytes(&self) -> u64 {
        self.lock().pinned_bytes
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn verify_residency(&self, context: &Context) -> Result<u64> {
        let entries = self.lock();
        let mut bytes = 0;
        for (address, (purpose, len)) in &entries.device {
            for (name, attribute, expected) in [
                ("memory type", POINTER_MEMORY_TYPE, MEMORY_TYPE_DEVICE),
                ("managed", POINTER_IS_MANAGED, 0),
                ("device", POINTER_DEVICE_ORDINAL, context.info().ordinal as c_int),
            ] {
                // "Managed" is written as one byte, the others as an integer.
                let mut found: c_int = 0;
                let place = (&raw mut found).cast::<c_void>();
                // SAFETY: `place` has room for what each of these attributes writes.
                context.call("cuPointerGetAttribute", |f| unsafe {
                    (f.cuPointerGetAttribute)(place, attribute, *address)
                })?;
                if found != expected {
                    return Err(Error::Internal(format!(
                        "{len} bytes for {purpose:?} at {address:#x}: {name} is {found}, expected {expected}"
                    )));
                }
            }
            bytes += *len as u64;
        }
        Ok(bytes)
    }
}

impl Memory for Context {
    fn bytes(&self, purpose: Purpose) -> u64 {
        self.ledger().bytes(purpose)
    }

    fn residency(&self) -> Result<Residency> {
        Ok(Residency { device_bytes: self.verify_residency()?, host_bytes: self.ledger().pinned_bytes() })
    }
}

/// An allocation in the memory of the device. Nobody may use it any more when it is dropped.
pub struct DeviceBuffer {
    context: Arc<Context>,
    address: u64,
    len: usize,
}

impl DeviceBuffer {
    /// Allocates `bytes` that hold anything, at a multiple of 256. No bytes are no allocation, at address 0.
    ///
    /// # Errors
    /// `OutOfMemory` names `what`, the bytes needed and the bytes that are free; `DeviceLost`, `DeviceError`.
    pub fn new(context: &Arc<Context>, purpose: Purpose, bytes: usize, what: &str) -> Result<DeviceBuffer> {
        let mut address = 0;
        if bytes > 0 {
            // SAFETY: it writes one address.
            let outcome = context.call("cuMemAlloc", |f| unsafe { (f.cuMemAlloc)(&raw mut address, bytes) });
            outcome.map_err(|error| match error {
                Error::OutOfDriverMemory { device, .. } => Error::OutOfDeviceMemory {
                    device,
                    what: what.to_string(),
                    needed: bytes as u64,
                    free: context.free_memory().unwrap_or(0),
                },
                error => error,
            })?;
            context.ledger().lock().device.insert(address, (purpose, bytes));
        }
        Ok(DeviceBuffer { context: context.clone(), address, len: bytes })
    }

    /// Where it lies, for kernels.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The context it belongs to.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Copies `bytes` to `offset`, after the earlier work of `stream`, and waits until it is done.
    ///
    /// # Errors
    /// `Internal` when it does not fit; `DeviceLost`, `DeviceError`.
    pub fn upload(&self, stream: &Stream, offset: usize, bytes: &[u8]) -> Result<()> {
        let address = self.part(stream, offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        let start = bytes.as_ptr().cast();
        // SAFETY: the part lies in this buffer; `bytes` are readable until the copy is done, which is waited for.
        self.context.call("cuMemcpyHtoDAsync", |f| unsafe {
            (f.cuMemcpyHtoDAsync)(address, start, bytes.len(), stream.raw())
        })?;
        stream.synchronize()
    }

    /// Copies what is at `offset` to `bytes`, after the earlier work of `stream`, and waits until it is done.
    ///
    /// # Errors
    /// `Internal` when there is not so much; `DeviceLost`, `DeviceError`.
    pub fn download(&self, stream: &Stream, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let address = self.part(stream, offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        let start = bytes.as_mut_ptr().cast();
        // SAFETY: the part lies in this buffer; `bytes` are writable until the copy is done, which is waited for.
        self.context.call("cuMemcpyDtoHAsync", |f| unsafe {
            (f.cuMemcpyDtoHAsync)(start, address, bytes.len(), stream.raw())
        })?;
        stream.synchronize()
    }

    /// Queues a copy of a part of `from` to `offset`. The part must stay as it is until the copy is done, else what
    /// arrives is a mixture; `from` must live until then.
    ///
    /// # Errors
    /// `Internal` when it does not fit; `DeviceLost`, `DeviceError`.
    pub fn upload_async(&self, stream: &Stream, offset: usize, from: &PinnedBuffer, part: Range<usize>) -> Result<()> {
        let bytes = part.len();
        self.upload_from(stream, offset, from.part(part)?, bytes)
    }

    /// The same of a part of pages.
    ///
    /// # Errors
    /// As [`Self::upload_async`].
    pub(super) fn upload_pages(
        &self,
        stream: &Stream,
        offset: usize,
        from: &PinnedPages,
        part: Range<usize>,
    ) -> Result<()> {
        let bytes = part.end.checked_sub(part.start).unwrap_or(usize::MAX);
        check_part(from.pages.len(), part.start, bytes)?;
        self.upload_from(stream, offset, from.pages.start().wrapping_add(part.start), bytes)
    }

    /// Queues a copy of `bytes` at `start`, which live until the stream is idle.
    fn upload_from(&self, stream: &Stream, offset: usize, start: *mut u8, bytes: usize) -> Result<()> {
        let address = self.part(stream, offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both parts lie in their buffers, which live until the stream is idle.
        self.context.call("cuMemcpyHtoDAsync", |f| unsafe {
            (f.cuMemcpyHtoDAsync)(address, start.cast_const().cast(), bytes, stream.raw())
        })
    }

    /// Queues a copy of what is at `offset` to a part of `to`, which nobody reads until the copy is done.
    ///
    /// # Errors
    /// `Internal` when it does not fit; `DeviceLost`, `DeviceError`.
    pub fn download_async(&self, stream: &Stream, offset: usize, to: &PinnedBuffer, part: Range<usize>) -> Result<()> {
        let bytes = part.len();
        let (address, start) = (self.part(stream, offset, bytes)?, to.part(part)?);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both parts lie in their buffers, which live until the stream is idle.
        self.context
            .call("cuMemcpyDtoHAsync", |f| unsafe { (f.cuMemcpyDtoHAsync)(start.cast(), address, bytes, stream.raw()) })
    }

    /// Queues a copy of a part of `from`, which may be this buffer, to `offset`; the parts do not overlap.
    ///
    /// # Errors
    /// `Internal` when it does not fit; `DeviceLost`, `DeviceError`.
    pub fn copy_async(&self, stream: &Stream, offset: usize, from: &DeviceBuffer, part: Range<usize>) -> Result<()> {
        let bytes = part.len();
        let (address, start) = (self.part(stream, offset, bytes)?, from.part(stream, part.start, bytes)?);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both parts lie in their buffers, which live until the stream is idle.
        self.context
            .call("cuMemcpyDtoDAsync", |f| unsafe { (f.cuMemcpyDtoDAsync)(address, start, bytes, stream.raw()) })
    }

    /// Queues the writing of `value` to every byte.
    ///
    /// # Errors
    /// `DeviceLost`, `DeviceError`.
    pub fn fill_u8(&self, stream: &Stream, value: u8) -> Result<()> {
        self.fill_part_u8(stream, 0..self.len, value)
    }

    /// Queues the writing of `value` to every byte of a part.
    ///
    /// # Errors
    /// `Internal` when there is no such part; `DeviceLost`, `DeviceError`.
    pub fn fill_part_u8(&self, stream: &Stream, part: Range<usize>, value: u8) -> Result<()> {
        let bytes = part.len();
        let address = self.part(stream, part.start, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the bytes are those of this buffer.
        self.context.call("cuMemsetD8Async", |f| unsafe { (f.cuMemsetD8Async)(address, value, bytes, stream.raw()) })
    }

    /// The address of a part, for work in `stream`.
    fn part(&self, stream: &Stream, offset: usize, bytes: usize) -> Result<u64> {
        if stream.context().info().ordinal != self.context.info().ordinal {
            return Err(Error::Internal("the stream is that of another device".into()));
        }
        check_part(self.len, offset, bytes)?;
        Ok(self.address + offset as u64)
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.len > 0 {
            self.context.ledger().lock().device.remove(&self.address);
            // SAFETY: the address is that of an allocation which this value owns and nobody uses any more.
            self.context.release("cuMemFree", |f| unsafe { (f.cuMemFree)(self.address) });
        }
    }
}

/// Host memory that stays in place and is mapped into the device.
pub struct PinnedBuffer {
    context: Arc<Context>,
    start: *mut u8,
    device_address: u64,
    len: usize,
}

// SAFETY: it owns its memory as a boxed slice would; nothing of it is bound to a thread.
unsafe impl Send for PinnedBuffer {}
// SAFETY: shared references only read, as those of a boxed slice.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// Allocates `bytes`, at least one, that are zero.
    ///
    /// # Errors
    /// `OutOfMemory` names `what`; `DeviceLost`, `DeviceError`.
    pub fn new(context: &Arc<Context>, bytes: usize, what: &str) -> Result<PinnedBuffer> {
        let len = bytes.max(1);
        let mut start = std::ptr::null_mut();
        let flags = HOST_ALLOC_PORTABLE | HOST_ALLOC_DEVICEMAP;
        // SAFETY: it writes one pointer.
        let outcome = context.call("cuMemHostAlloc", |f| unsafe { (f.cuMemHostAlloc)(&raw mut start, len, flags) });
        outcome.map_err(|error| match error {
            Error::OutOfDriverMemory { .. } => Error::OutOfMemory { what: what.to_string(), bytes: len as u64 },
            error => error,
        })?;
        context.ledger().lock().pinned_bytes += len as u64;
        // From here on dropping frees it.
        let mut buffer = PinnedBuffer { context: context.clone(), start: start.cast(), device_address: 0, len };
        // SAFETY: the driver allocated `len` bytes there.
        unsafe { buffer.start.write_bytes(0, len) };
        buffer.find()?;
        Ok(buffer)
    }

    /// Asks where the device sees it.
    fn find(&mut self) -> Result<()> {
        let (address, start) = (&raw mut self.device_address, self.start.cast());
        // SAFETY: `start` is host memory that the driver mapped; it writes one address.
        self.context.call("cuMemHostGetDevicePointer", |f| unsafe { (f.cuMemHostGetDevicePointer)(address, start, 0) })
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes: never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Where the device sees it.
    pub fn device_address(&self) -> u64 {
        self.device_address
    }

    /// Its bytes. The device must not be writing them meanwhile; for what it writes at any time there is
    /// [`Self::read_u32`].
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes, all initialised, owned by this value.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    /// Its bytes, to write. The device must not be using them meanwhile.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes, all initialised, owned by this value, which is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// The number at byte `offset`, a multiple of 4, as the device wrote it last; what it wrote before that number
    /// and fenced is seen by later reads.
    ///
    /// # Errors
    /// `Internal` when there is no such number.
    pub fn read_u32(&self, offset: usize) -> Result<u32> {
        Ok(self.atomic(offset)?.load(std::sync::atomic::Ordering::Acquire))
    }

    /// The number of eight bytes at `offset`, a multiple of 8, otherwise as [`Self::read_u32`].
    ///
    /// # Errors
    /// `Internal` when there is no such number.
    pub fn read_u64(&self, offset: usize) -> Result<u64> {
        let place = self.part(offset..offset.saturating_add(8))?.cast::<u64>();
        if !place.is_aligned() {
            return Err(Error::Internal(format!("offset {offset} is not a multiple of 8")));
        }
        // SAFETY: aligned, eight bytes inside the buffer, initialised, and alive as long as `self`.
        Ok(unsafe { std::sync::atomic::AtomicU64::from_ptr(place) }.load(std::sync::atomic::Ordering::Acquire))
    }

    /// Writes the number at byte `offset`, a multiple of 4, for the device; what was written before is seen before it.
    ///
    /// # Errors
    /// `Internal` when there is no such number.
    pub fn write_u32(&self, offset: usize, value: u32) -> Result<()> {
        self.atomic(offset)?.store(value, std::sync::atomic::Ordering::Release);
        Ok(())
    }

    fn atomic(&self, offset: usize) -> Result<&std::sync::atomic::AtomicU32> {
        let place = self.part(offset..offset.saturating_add(4))?.cast::<u32>();
        if !place.is_aligned() {
            return Err(Error::Internal(format!("offset {offset} is not a multiple of 4")));
        }
        // SAFETY: aligned, four bytes inside the buffer, initialised, and alive as long as `self`.
        Ok(unsafe { std::sync::atomic::AtomicU32::from_ptr(place) })
    }

    fn part(&self, part: Range<usize>) -> Result<*mut u8> {
        let bytes = part.end.checked_sub(part.start).unwrap_or(usize::MAX);
        check_part(self.len, part.start, bytes)?;
        Ok(self.start.wrapping_add(part.start))
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        self.context.ledger().lock().pinned_bytes -= self.len as u64;
        let start = self.start.cast();
        // SAFETY: the memory is that of this value, which nobody uses any more.
        self.context.release("cuMemFreeHost", |f| unsafe { (f.cuMemFreeHost)(start) });
    }
}

/// Pages that the device copies from. None of its copies may be under way any more when it is dropped.
pub(super) struct PinnedPages {
    context: Arc<Context>,
    pages: Arc<Pages>,
    is_registered: bool,
}

impl PinnedPages {
    /// Takes over `pages`, which were registered with the driver, if they were.
    pub fn new(context: &Arc<Context>, pages: Arc<Pages>, is_registered: bool) -> PinnedPages {
        if is_registered {
            context.ledger().lock().pinned_bytes += pages.len() as u64;
        }
        PinnedPages { context: context.clone(), pages, is_registered }
    }
}

impl Drop for PinnedPages {
    fn drop(&mut self) {
        if self.is_registered {
            self.context.ledger().lock().pinned_bytes -= self.pages.len() as u64;
            let start = self.pages.start().cast();
            // SAFETY: the pages were registered once, and no copy from them is under way.
            self.context.release("cuMemHostUnregister", |f| unsafe { (f.cuMemHostUnregister)(start) });
        }
    }
}

fn check_part(len: usize, offset: usize, bytes: usize) -> Result<()> {
    if offset.checked_add(bytes).is_some_and(|end| end <= len) {
        return Ok(());
    }
    Err(Error::Internal(format!("{bytes} bytes at offset {offset} of a buffer of {len}")))
}
