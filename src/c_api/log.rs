//! The log: a function of the host, or a queue that the host empties.

use super::boundary::{Buffer, Out, export};
use super::error::kigo_error;
use crate::log::{self, Level};
use crate::{Error, Result};
use std::ffi::{CString, c_char, c_void};

/// Levels: name in C, number, meaning.
pub(super) const LEVELS: [(&str, i32, &str); 5] = [
    ("KIGO_LOG_OFF", 0, "Nothing."),
    ("KIGO_LOG_ERROR", Level::Error as i32, "A load has failed, as its caller is told too."),
    ("KIGO_LOG_WARNING", Level::Warning as i32, "Something works, but perhaps not as its owner thinks."),
    ("KIGO_LOG_INFO", Level::Info as i32, "The steps of a load with their times, and what was chosen."),
    ("KIGO_LOG_DEBUG", Level::Debug as i32, "The end of every generation."),
];

/// The level of this number; None is off.
fn level(number: i32) -> Result<Option<Level>> {
    let levels = [Level::Error, Level::Warning, Level::Info, Level::Debug];
    match levels.into_iter().find(|level| *level as i32 == number) {
        None if number != 0 => Err(Error::invalid_argument("level", "0 to 4", number)),
        found => Ok(found),
    }
}

/// A function of yours for kigo_log_set_sink(). It is told the level of a message, one of the KIGO_LOG_ numbers, and its
/// text: one line of at most 511 bytes of UTF-8 without control characters, which it may read until it returns.
pub type kigo_log_sink = Option<unsafe extern "C" fn(user_data: *mut c_void, level: i32, text: *const c_char)>;

/// What the host gets back with every message.
struct UserData(*mut c_void);

// SAFETY: only the host follows the pointer, and kigo_log_set_sink() says that any thread may bring it.
unsafe impl Send for UserData {}

impl UserData {
    fn get(&self) -> *mut c_void {
        self.0
    }
}

/// Sets a function that is told what kigo does, in place of the one before. At first there is none, and nothing is told.
///
/// It is called on the thread on which something happens, by one thread at a time, and never for a token. It must
/// return soon: whoever has something to tell waits for it. It must not call functions of kigo, and no exception, panic
/// or longjmp() may leave it.
///
/// When this returns, the function before has returned for the last time, on whatever thread: what it uses may be
/// freed then.
///
/// @param level      The messages that are wanted: those of this level and of the ones before it, see "Log".
/// @param sink       The function, or NULL for none.
/// @param user_data  What the function gets back, or NULL; kigo never follows it.
/// @param error      Where an error is written on failure, or NULL.
/// @returns KIGO_OK. On failure the function before stays.
///   - KIGO_INVALID_ARGUMENT: `level` is none, or this was called from inside the function.
///   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `sink` is NULL or may be called as described; `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_log_set_sink(
    level: i32,
    sink: kigo_log_sink,
    user_data: *mut c_void,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        let user_data = UserData(user_data);
        let told = self::level(level)?.zip(sink).map(|(level, sink)| -> (Level, log::Sink) {
            let call = move |level: Level, text: &str| {
                // A line has no NUL.
                let text = CString::new(text).unwrap_or_default();
                // SAFETY: the function may be called so by the contract of kigo_log_set_sink(); the text ends with a
                // NUL and outlives the call.
                unsafe { sink(user_data.get(), level as i32, text.as_ptr()) }
            };
            (level, Box::new(call))
        });
        log::set_sink(told)?;
        Ok(0)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Opens or closes a queue of what kigo does, for hosts that would rather ask than be called. At first it is closed.
///
/// It holds 1024 messages. When it is full the oldest go, and kigo_log_next() tells how many.
///
/// @param level  The messages that are wanted: those of this level and of the ones before it, see "Log"; KIGO_LOG_OFF
///               closes the queue and drops what is in it.
/// @param error  Where an error is written on failure, or NULL.
/// @returns KIGO_OK. On failure nothing has changed.
///   - KIGO_INVALID_ARGUMENT: `level` is none.
///   - KIGO_OUT_OF_MEMORY: there is no room for the queue.
///   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time. It is independent of kigo_log_set_sink().
///
/// # Safety
/// `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_log_set_queue(level: i32, error: *mut *mut kigo_error) -> i32 {
    let body = || {
        log::set_queue(self::level(level)?)?;
        Ok(0)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Takes the oldest message out of the queue. It never waits for one.
///
/// @param level    Where the level of the message is written, one of the KIGO_LOG_ numbers.
/// @param time_ms  Where the time of the message is written, in milliseconds since 1970 in UTC.
/// @param text     Where its text and a NUL are written: one line of UTF-8 without control characters. May be NULL if
///                 `size` is 0.
/// @param size     Bytes in `text`; 512 is always enough.
/// @param error    Where an error is written on failure, or NULL.
/// @returns The bytes of the text without its NUL, at least 1; or 0 if there is no message, and nothing was written.
///   - KIGO_BUFFER_TOO_SMALL: nothing is lost. Call again with a larger buffer: the same message comes.
///   - KIGO_INVALID_ARGUMENT: `level` or `time_ms` is NULL, or `text` is NULL though `size` is not 0.
///   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `level` and `time_ms` are NULL or valid for writing; `text` is NULL or valid for writing the text and a NUL if they
/// fit into `size` bytes; `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_log_next(
    level: *mut i32,
    time_ms: *mut i64,
    text: *mut c_char,
    size: usize,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `level` is NULL or valid for writing by this function's contract.
        let level = unsafe { Out::new(level, "level") }?;
        // SAFETY: so is `time_ms`.
        let time_ms = unsafe { Out::new(time_ms, "time_ms") }?;
        // SAFETY: `text` is NULL or large enough for a text that fits into `size` bytes by the contract.
        let buffer = unsafe { Buffer::new(text, size, "text") }?;
        let taken = log::next(|message| {
            let written = buffer.write_text(&message.text)?;
            level.write(message.level as i32);
            time_ms.write(message.time_ms);
            Ok(written)
        })?;
        Ok(taken.unwrap_or(0))
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}
