//! The guard that every export goes through, and the only place where a caller's pointers are followed.
//!
//! An export decodes its arguments, makes one safe call and encodes the answer:
//!
//! 1. [`guarded`] refuses to work in a forked child and catches panics;
//! 2. [`text`], [`prompt`], [`Out`], [`Buffer`] check for NULL and UTF-8, naming the argument;
//! 3. [`export`] turns a failure into a status and, where the caller wants one, an error object.

use super::error::{Failure, kigo_error};
use super::handle::Table;
use crate::{Error, Result, panics};
use std::ffi::{CStr, c_char};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// What an export comes to: a number that is not negative, or a failure.
pub(super) type Outcome = std::result::Result<i32, Failure>;

/// The process that first used the library; 0 before that.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// Locks of another thread of the parent may be held for ever in a forked child, so nothing may be locked there.
fn check_process() -> Result<()> {
    let process = std::process::id();
    match PROCESS.compare_exchange(0, process, Ordering::Relaxed, Ordering::Relaxed) {
        Err(parent) if parent != process => Err(Error::Forked { parent }),
        _ => Ok(()),
    }
}

/// Runs the body of an export: fork check, then the body, with panics caught as `KIGO_INTERNAL`.
pub(super) fn guarded(body: impl FnOnce() -> Outcome) -> Outcome {
    check_process()?;
    caught(body)
}

/// Runs `body`; a panic becomes `KIGO_INTERNAL` with the panic's text.
pub(super) fn caught(body: impl FnOnce() -> Outcome) -> Outcome {
    panics::caught(body).unwrap_or_else(|text| Err(Error::Internal(text).into()))
}

/// Runs the body of an export that ends with `kigo_error **error`.
///
/// # Safety
/// `error` is NULL or valid for writing one pointer.
pub(super) unsafe fn export(error: *mut *mut kigo_error, body: impl FnOnce() -> Outcome) -> i32 {
    match guarded(body) {
        Ok(value) => value,
        Err(failure) => {
            let status = failure.status as i32;
            if !error.is_null() {
                // SAFETY: not NULL, so by this function's contract it is valid for writing one pointer.
                unsafe { error.write_unaligned(failure.into_handle()) };
            }
            status
        }
    }
}

/// Runs an export that writes the value which `get` finds for `key`.
///
/// # Safety
/// `key` is as for [`c_str`]; `value` and `error` are NULL or valid for writing.
pub(super) unsafe fn export_fact<T: Copy>(
    key: *const c_char,
    value: *mut T,
    error: *mut *mut kigo_error,
    get: impl FnOnce(&str) -> Result<T>,
) -> i32 {
    let body = || {
        // SAFETY: the caller keeps the contract, which is the same for `key`.
        let key = unsafe { text(key, "key") }?;
        // SAFETY: `value` is NULL or valid for writing by this function's contract.
        let out = unsafe { Out::new(value, "value") }?;
        out.write(get(key)?);
        Ok(0)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Runs an export that frees `handle`; `end` is told what dies. NULL is freed by doing nothing.
pub(super) fn free<T>(table: &Table<T>, handle: u64, argument: &'static str, end: impl FnOnce(&T)) -> i32 {
    if handle == 0 {
        return 0;
    }
    let body = || {
        let dead = table.remove(handle, argument)?;
        end(&dead);
        Ok(0)
    };
    guarded(body).unwrap_or_else(|failure| failure.status as i32)
}

/// The number that C holds as a pointer; it is never followed.
pub(super) fn handle<T>(pointer: *const T) -> u64 {
    pointer.addr() as u64
}

/// The pointer that stands for a handle in C.
pub(super) fn pointer<T>(handle: u64) -> *mut T {
    std::ptr::without_provenance_mut(handle as usize)
}

fn null(argument: &str) -> Error {
    Error::invalid_argument(argument, "a pointer", "NULL")
}

/// The bytes before the NUL of `start`.
///
/// # Errors
/// `InvalidArgument` names `argument` when it is NULL.
///
/// # Safety
/// `start` is NULL or points to bytes that end with a NUL, all readable and unchanged for `'a`.
unsafe fn c_str<'a>(start: *const c_char, argument: &'static str) -> Result<&'a CStr> {
    if start.is_null() {
        return Err(null(argument));
    }
    // SAFETY: not NULL, so by this function's contract it is a NUL-terminated string that lives for 'a.
    Ok(unsafe { CStr::from_ptr(start) })
}

fn utf8<'a>(bytes: &'a [u8], argument: &'static str) -> Result<&'a str> {
    std::str::from_utf8(bytes)
        .map_err(|error| Error::InvalidUtf8 { argument: argument.to_owned(), offset: error.valid_up_to() })
}

/// A NUL-terminated text.
///
/// # Errors
/// `InvalidArgument` when it is NULL, `InvalidUtf8` when it is not UTF-8; both name `argument`.
///
/// # Safety
/// As for [`c_str`].
pub(super) unsafe fn text<'a>(start: *const c_char, argument: &'static str) -> Result<&'a str> {
    // SAFETY: the caller keeps the contract, which is the same.
    let bytes = unsafe { c_str(start, argument) }?.to_bytes();
    utf8(bytes, argument)
}

/// A NUL-terminated path, of any bytes that the system allows.
///
/// # Errors
/// `InvalidArgument` when it is NULL; `InvalidUtf8` where the system's paths are not bytes.
///
/// # Safety
/// As for [`c_str`].
pub(super) unsafe fn path(start: *const c_char, argument: &'static str) -> Result<PathBuf> {
    // SAFETY: the caller keeps the contract, which is the same.
    let bytes = unsafe { c_str(start, argument) }?.to_bytes();
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        Ok(PathBuf::from(std::ffi::OsStr::from_bytes(bytes)))
    }
    #[cfg(not(unix))]
    utf8(bytes, argument).map(PathBuf::from)
}

/// The length that says "up to the NUL".
pub(super) const NUL_TERMINATED: usize = usize::MAX;

/// A text of `len` bytes, NULs included, or up to its NUL if `len` is [`NUL_TERMINATED`]; NULL with 0 is empty.
///
/// # Errors
/// `InvalidArgument` when it is NULL or `len` is more than memory can hold, `InvalidUtf8` when it is not UTF-8.
///
/// # Safety
/// `start` is NULL, or readable for `len` bytes, or up to its NUL if `len` is [`NUL_TERMINATED`]; unchanged for `'a`.
pub(super) unsafe fn prompt<'a>(start: *const c_char, len: usize, argument: &'static str) -> Result<&'a str> {
    if len == NUL_TERMINATED {
        // SAFETY: the contract of this function for this length is that of `text`.
        return unsafe { text(start, argument) };
    }
    // SAFETY: `start` is NULL or readable for `len` bytes by this function's contract.
    let bytes = unsafe { array(start.cast::<u8>(), len, argument) }?;
    utf8(bytes, argument)
}

/// An array of `len` elements; NULL with 0 is empty.
///
/// # Errors
/// `InvalidArgument` names `argument` when it is NULL, not aligned, or longer than memory can hold.
///
/// # Safety
/// `start` is NULL or readable for `len` elements that stay unchanged for `'a`.
pub(super) unsafe fn array<'a, T: Copy>(start: *const T, len: usize, argument: &'static str) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    if start.is_null() {
        return Err(null(argument));
    }
    if !start.is_aligned() {
        let expected = format!("an address that is a multiple of {}", align_of::<T>());
        return Err(Error::invalid_argument(argument, expected, format!("{:#x}", start.addr())));
    }
    let most = isize::MAX as usize / size_of::<T>();
    if len > most {
        return Err(Error::invalid_argument(argument, format!("a length of at most {most}"), len));
    }
    // SAFETY: not NULL, aligned, not longer than isize::MAX bytes; readable and unchanged by the contract.
    Ok(unsafe { std::slice::from_raw_parts(start, len) })
}

/// Where the caller wants one value written; nothing is read from there.
pub(super) struct Out<T>(*mut T);

impl<T: Copy> Out<T> {
    /// # Errors
    /// `InvalidArgument` names `argument` when it is NULL.
    ///
    /// # Safety
    /// `place` is NULL or valid for writing one `T` as long as the value lives; it need not be aligned.
    pub(super) unsafe fn new(place: *mut T, argument: &'static str) -> Result<Out<T>> {
        if place.is_null() { Err(null(argument)) } else { Ok(Out(place)) }
    }

    /// Writes the value.
    pub(super) fn write(&self, value: T) {
        // SAFETY: `new` saw that the place is not NULL, and its contract is that one T can be written there.
        unsafe { self.0.write_unaligned(value) };
    }
}

/// A caller's buffer of `size` bytes; only as many as an answer needs are touched.
pub(super) struct Buffer {
    start: *mut u8,
    size: usize,
}

impl Buffer {
    /// # Errors
    /// `InvalidArgument` names `argument` when it is NULL and `size` is not 0.
    ///
    /// # Safety
    /// `start` is NULL, or valid for writing `size` bytes, or as many as the answer needs if that is less.
    pub(super) unsafe fn new(start: *mut c_char, size: usize, argument: &'static str) -> Result<Buffer> {
        if start.is_null() && size > 0 {
            return Err(null(argument));
        }
        Ok(Buffer { start: start.cast(), size })
    }

    /// Whether the caller only asks how large the buffer must be.
    pub(super) fn is_query(&self) -> bool {
        self.size == 0
    }

    /// Writes `text` and a NUL, or nothing if the caller only asks, and says how many bytes both take.
    ///
    /// # Errors
    /// `BufferTooSmall` with the size needed; `Limit` when that is more than a return value can say.
    pub(super) fn answer(&self, text: &str) -> Result<i32> {
        self.answer_bytes(text.as_bytes())
    }

    /// Writes `bytes` and a NUL, or nothing if the caller only asks, and says how many bytes both take.
    ///
    /// # Errors
    /// As [`Buffer::answer`].
    pub(super) fn answer_bytes(&self, bytes: &[u8]) -> Result<i32> {
        if self.is_query() { countable(bytes.len() + 1) } else { self.put(bytes, &[0]).map(|n| n + 1) }
    }

    /// How many `bytes` there are, for a caller who only asks.
    ///
    /// # Errors
    /// `Limit` when they are more than a return value can say.
    pub(super) fn size_of(bytes: &[u8]) -> Result<i32> {
        countable(bytes.len())
    }

    /// Writes `bytes` and says how many; nothing is written if they do not fit.
    ///
    /// # Errors
    /// `BufferTooSmall` with the size needed.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<i32> {
        self.put(bytes, &[])
    }

    /// Writes `text` and a NUL, and says how many bytes the text has.
    ///
    /// # Errors
    /// `BufferTooSmall` with the size needed.
    pub(super) fn write_text(&self, text: &str) -> Result<i32> {
        self.put(text.as_bytes(), &[0])
    }

    fn put(&self, bytes: &[u8], end: &[u8]) -> Result<i32> {
        let needed = bytes.len() + end.len();
        if needed > self.size {
            return Err(Error::BufferTooSmall { needed, found: self.size });
        }
        let written = countable(bytes.len())?;
        // SAFETY: `needed` is at most `size`, and `new`'s contract is that so many bytes can be written from a
        // `start` that is not NULL (a NULL has size 0, so 0 bytes are copied to it, which is allowed). The source
        // is kigo's own memory, which no caller's buffer overlaps.
        unsafe { self.start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        for (index, byte) in end.iter().enumerate() {
            // SAFETY: `bytes.len() + index` is less than `needed`, which is at most `size`.
            unsafe { self.start.wrapping_add(bytes.len() + index).write(*byte) };
        }
        Ok(written)
    }
}

/// A caller's array with room for `room` numbers; only as many as an answer has are touched.
pub(super) struct Numbers<T> {
    start: *mut T,
    room: usize,
}

impl<T: Copy> Numbers<T> {
    /// # Errors
    /// `InvalidArgument` names `argument` when it is NULL and `room` is not 0.
    ///
    /// # Safety
    /// `start` is NULL, or valid for writing `room` numbers, or as many as the answer has if that is less; it need not
    /// be aligned.
    pub(super) unsafe fn new(start: *mut T, room: usize, argument: &'static str) -> Result<Numbers<T>> {
        if start.is_null() && room > 0 {
            return Err(null(argument));
        }
        Ok(Numbers { start, room })
    }

    /// As [`Numbers::write`], but a caller without room only asks how many there are.
    ///
    /// # Errors
    /// As [`Numbers::write`].
    pub(super) fn answer(&self, what: &'static str, values: impl ExactSizeIterator<Item = T>) -> Result<i32> {
        if self.room == 0 { countable(values.len()) } else { self.write(what, values) }
    }

    /// Writes `values` and says how many; nothing is written if they do not fit.
    ///
    /// # Errors
    /// `TooFewPlaces` with the number needed; `what` names the values.
    pub(super) fn write(&self, what: &'static str, values: impl ExactSizeIterator<Item = T>) -> Result<i32> {
        let needed = values.len();
        if needed > self.room {
            return Err(Error::TooFewPlaces { what, needed, found: self.room });
        }
        let written = countable(needed)?;
        for (index, value) in values.take(needed).enumerate() {
            // SAFETY: `index` is less than `needed`, which is at most `room`, and `new`'s contract is that so many can
            // be written from a `start` that is not NULL (a NULL has room for 0).
            unsafe { self.start.wrapping_add(index).write_unaligned(value) };
        }
        Ok(written)
    }
}

/// `len` as a return value.
fn countable(len: usize) -> Result<i32> {
    i32::try_from(len).map_err(|_| Error::Limit { what: "bytes in one answer", limit: i32::MAX as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Status;

    fn failure(outcome: Outcome) -> Failure {
        outcome.unwrap_err()
    }

    #[test]
    fn c18_a_panic_becomes_a_status_with_its_text() {
        let failure = failure(guarded(|| panic!("row {} is lost", 3)));
        assert_eq!(failure.status, Status::Internal);
        assert!(failure.message.starts_with("internal error: row 3 is lost (src/c_api/boundary.rs:"));
        assert_eq!(guarded(|| Ok(7)).unwrap(), 7, "the next call works");
    }

    #[test]
    fn c18_a_panic_in_an_export_gives_an_error_object() {
        let mut error = std::ptr::null_mut();
        // SAFETY: `error` is a local that outlives the call.
        let status = unsafe { export(&raw mut error, || panic!("first line\nsecond line")) };
        assert_eq!(status, Status::Internal as i32);
        assert!(!error.is_null());
        assert_eq!(super::super::error::kigo_error_free(error), 0);
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { export(std::ptr::null_mut(), || panic!("unheard")) }, Status::Internal as i32);
    }

    #[test]
    fn c08_c09_a_buffer_takes_the_whole_answer_or_nothing() {
        let mut bytes = [0x55_u8; 8];
        let start = bytes.as_mut_ptr().cast();
        // SAFETY: no more than 8 bytes are written, whatever the size says.
        let sized = |size| unsafe { Buffer::new(start, size, "buffer") }.unwrap();
        for size in 0..4 {
            let error = sized(size).write_text("abc").unwrap_err();
            assert!(matches!(error, Error::BufferTooSmall { needed: 4, found } if found == size));
        }
        assert_eq!(sized(3).write(b"abc").unwrap(), 3);
        assert_eq!(sized(usize::MAX).write_text("xyz").unwrap(), 3);
        assert_eq!(&bytes, b"xyz\0\x55\x55\x55\x55");
        // SAFETY: NULL with size 0 is allowed.
        let none = unsafe { Buffer::new(std::ptr::null_mut(), 0, "buffer") }.unwrap();
        assert_eq!(none.write(b"").unwrap(), 0);
        assert!(none.write(b"x").is_err());
        // SAFETY: NULL is allowed.
        assert!(unsafe { Buffer::new(std::ptr::null_mut(), 1, "buffer") }.is_err());
    }

    #[test]
    fn c12_prompts_may_hold_nul_and_be_empty() {
        // SAFETY: every pointer is NULL, refused before it is read, or a literal of at least the length given.
        let read = |start: *const u8, len| unsafe { prompt(start.cast(), len, "prompt") };
        let none = std::ptr::null();
        assert_eq!(read(none, 0).unwrap(), "");
        assert!(matches!(read(none, 5), Err(Error::InvalidArgument { .. })));
        assert!(matches!(read(none, NUL_TERMINATED), Err(Error::InvalidArgument { .. })));
        assert_eq!(read(b"a\0b".as_ptr(), 3).unwrap(), "a\0b");
        assert_eq!(read(c"ab".as_ptr().cast(), NUL_TERMINATED).unwrap(), "ab");
        assert!(matches!(read(b"ab\xFFc".as_ptr(), 4), Err(Error::InvalidUtf8 { offset: 2, .. })));
        assert!(read(b"ab".as_ptr(), usize::MAX - 1).is_err());
    }

    #[test]
    fn arrays_are_checked_before_they_are_read() {
        let numbers = [1_i32, 2, 3];
        // SAFETY: every pointer is NULL, refused before it is read, or good for 3 elements.
        let read = |start, len| unsafe { array::<i32>(start, len, "tokens") };
        assert_eq!(read(numbers.as_ptr(), 3).unwrap(), numbers);
        assert!(read(numbers.as_ptr().wrapping_byte_add(1), 1).is_err());
        assert!(read(numbers.as_ptr(), usize::MAX / 4).is_err());
        assert!(read(std::ptr::null(), 1).is_err());
        assert!(read(std::ptr::null(), 0).unwrap().is_empty());
    }
}
