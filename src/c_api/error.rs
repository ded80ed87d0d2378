//! The error object: a status and one line of text.

use super::boundary::{free, guarded, handle, pointer};
use super::handle::{Kind, MAX_HANDLES, STATIC_GENERATION, Table, pack, unpack};
use crate::line::one_line;
use crate::{Error, Status};
use std::ffi::{CStr, CString, c_char};

/// What went wrong in a call, as a status and a message for people.
///
/// A failing call makes one for the caller who passed a place for it, and the caller frees it with
/// kigo_error_free(). It does not change, belongs to no thread and outlives the object that it is about.
pub struct kigo_error {
    _private: [u8; 0],
}

/// What went wrong in a call.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) status: Status,
    /// One printable line of at most 511 bytes; empty for `Forked`, whose error object lives for ever.
    pub(super) message: String,
    /// Bytes that the buffer should have had; 0 if the failure is another.
    pub(super) needed: u64,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let needed = if let Error::BufferTooSmall { needed, .. } = error { needed as u64 } else { 0 };
        // In a forked child the allocator may be locked for ever; the everlasting error has the words.
        let message = if error.status() == Status::Forked { String::new() } else { one_line(&error.to_string()) };
        Failure { status: error.status(), message, needed }
    }
}

impl Failure {
    /// An error object for C; one of those that live for ever if there is no room for another.
    pub(super) fn into_handle(self) -> *mut kigo_error {
        if self.status == Status::Forked {
            return everlasting(Status::Forked);
        }
        let message = CString::new(self.message).unwrap_or_default();
        match ERRORS.insert(ErrorObject { status: self.status, message }) {
            Ok(handle) => pointer(handle),
            Err(error) => everlasting(error.status()),
        }
    }
}

struct ErrorObject {
    status: Status,
    message: CString,
}

static ERRORS: Table<ErrorObject> = Table::new(Kind::Error, MAX_HANDLES);

/// Errors that need neither memory nor a lock; freeing them does nothing.
const EVERLASTING: [(Status, &CStr); 3] = [
    (Status::OutOfMemory, c"out of memory: there was none left to describe the error"),
    (Status::Limit, c"limit reached: too many live kigo_error handles to describe another error; free some"),
    (
        Status::Forked,
        c"the library was first used in the parent of this process; a forked child must load its own after exec",
    ),
];

fn everlasting(status: Status) -> *mut kigo_error {
    let slot = EVERLASTING.iter().position(|(known, _)| *known == status).unwrap_or(0);
    pointer(pack(Kind::Error, STATIC_GENERATION, slot as u32))
}

fn find_everlasting(error: *const kigo_error) -> Option<(Status, &'static CStr)> {
    let (kind, generation, slot) = unpack(handle(error));
    let row = EVERLASTING.get(slot as usize)?;
    (kind == Kind::Error as u8 && generation == STATIC_GENERATION).then_some(*row)
}

/// The status of an error.
///
/// @param error  The error; not freed.
/// @returns Its status, a negative number.
///   - KIGO_INVALID_HANDLE: `error` is NULL, freed or no error.
///   - KIGO_FORKED: this is a forked child.
///
/// Any thread may call it at any time.
#[unsafe(no_mangle)]
pub extern "C" fn kigo_error_status(error: *const kigo_error) -> i32 {
    if let Some((status, _)) = find_everlasting(error) {
        return status as i32;
    }
    let body = || Ok(ERRORS.get(handle(error), "error")?.status as i32);
    guarded(body).unwrap_or_else(|failure| failure.status as i32)
}

/// What went wrong, for people: where, what was expected, what was found and what to do.
///
/// One line of at most 511 bytes of UTF-8 without control characters. It may quote text from a model file, so
/// print it with "%s", never as a format. Its wording may change with any version; compare kigo_error_status().
///
/// @param error  The error; not freed.
/// @returns A text that stays valid until `error` is freed; do not free it. Never NULL: for an `error` that is
///   NULL, freed or no error it is a text that says so and stays valid for ever.
///
/// Any thread may call it at any time.
#[unsafe(no_mangle)]
pub extern "C" fn kigo_error_message(error: *const kigo_error) -> *const c_char {
    if let Some((_, message)) = find_everlasting(error) {
        return message.as_ptr();
    }
    let mut message = c"not an error: the handle is NULL, was freed or is of another kind".as_ptr();
    let outcome = guarded(|| {
        // The table keeps the object, and with it the text, until kigo_error_free.
        message = ERRORS.get(handle(error), "error")?.message.as_ptr();
        Ok(0)
    });
    match outcome {
        Err(Failure { status: Status::Forked, .. }) => kigo_error_message(everlasting(Status::Forked)),
        _ => message,
    }
}

/// Frees an error and its message.
///
/// @param error  The error, or NULL.
/// @returns KIGO_OK, also for NULL.
///   - KIGO_INVALID_HANDLE: `error` was freed before or is no error; nothing happened.
///   - KIGO_FORKED: this is a forked child; nothing happened.
///
/// Any thread may call it, once no thread uses the message any more.
#[unsafe(no_mangle)]
pub extern "C" fn kigo_error_free(error: *mut kigo_error) -> i32 {
    if find_everlasting(error).is_some() {
        return Status::Ok as i32;
    }
    free(&ERRORS, handle(error), "error", |_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(error: *const kigo_error) -> &'static str {
        // SAFETY: the texts of these tests are read before their error is freed.
        unsafe { CStr::from_ptr(kigo_error_message(error)) }.to_str().unwrap()
    }

    #[test]
    fn an_error_lives_until_it_is_freed() {
        let error = Failure::from(Error::Busy).into_handle();
        assert_eq!(kigo_error_status(error), Status::Busy as i32);
        assert!(message(error).contains("busy"));
        assert_eq!(kigo_error_free(error), 0);
        assert_eq!(kigo_error_free(error), Status::InvalidHandle as i32);
        assert_eq!(kigo_error_status(error), Status::InvalidHandle as i32);
        assert!(message(error).starts_with("not an error"));
        assert_eq!(kigo_error_free(std::ptr::null_mut()), 0);
        assert!(message(std::ptr::null()).starts_with("not an error"));
    }

    #[test]
    fn everlasting_errors_need_no_table() {
        for (status, text) in EVERLASTING {
            let error = everlasting(status);
            assert_eq!(kigo_error_status(error), status as i32);
            assert_eq!(message(error), text.to_str().unwrap());
            assert_eq!(kigo_error_free(error), 0);
            assert_eq!(kigo_error_status(error), status as i32);
        }
        let forked = Failure::from(Error::Forked { parent: 1 }).into_handle();
        assert_eq!(kigo_error_status(forked), Status::Forked as i32);
        let beyond = pointer(pack(Kind::Error, STATIC_GENERATION, EVERLASTING.len() as u32));
        assert_eq!(kigo_error_status(beyond), Status::InvalidHandle as i32);
    }
}
