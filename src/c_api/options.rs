//! Options objects: make, set, free. Which options there are is in [`super::option_table`].

use super::boundary::{Buffer, Out, export, free, handle, pointer, text};
use super::error::kigo_error;
use super::handle::{Kind, MAX_HANDLES, Table};
use super::option_row::Value;
use super::settings::{Listener, Settings, described};
use crate::Result;
use std::ffi::{c_char, c_void};
use std::sync::{Mutex, PoisonError};

/// Settings for kigo_model_load(), kigo_load_start() and kigo_inference_start(), each set by its key; see "Options"
/// above.
///
/// One object may serve all calls, any number of times: each reads the options that concern it when it is called,
/// and keeps nothing of the object. Several threads may use one object; a call sees each setting as a whole.
pub struct kigo_options {
    _private: [u8; 0],
}

static OPTIONS: Table<Mutex<Settings>> = Table::new(Kind::Options, MAX_HANDLES);

/// The settings of `options` as they are now; the defaults if it is NULL.
///
/// # Errors
/// `InvalidHandle` when it is neither NULL nor live.
pub(super) fn snapshot(options: *const kigo_options) -> Result<Settings> {
    if options.is_null() {
        return Ok(Settings::default());
    }
    let options = OPTIONS.get(handle(options), "options")?;
    let settings = options.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(settings.clone())
}

fn set(options: *mut kigo_options, key: &str, value: Value) -> Result<i32> {
    let options = OPTIONS.get(handle(options), "options")?;
    let mut settings = options.lock().unwrap_or_else(PoisonError::into_inner);
    settings.set(key, value)?;
    Ok(0)
}

/// Makes an options object in which every option has its default.
///
/// @param options  Where the new object is written on success; free it with kigo_options_free().
/// @param error    Where an error is written on failure, or NULL.
/// @returns KIGO_OK.
///   - KIGO_INVALID_ARGUMENT: `options` is NULL; pass a place.
///   - KIGO_LIMIT: there are too many live options objects; free some.
///   - KIGO_OUT_OF_MEMORY, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `options` and `error` are NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_options_new(options: *mut *mut kigo_options, error: *mut *mut kigo_error) -> i32 {
    let body = || {
        // SAFETY: `options` is NULL or valid for writing by this function's contract.
        let out = unsafe { Out::new(options, "options") }?;
        out.write(pointer(OPTIONS.insert(Mutex::default())?));
        Ok(0)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// All options, as a JSON array of an object for each.
///
/// - "key": its key, also the value of the macro that begins with KIGO_OPTION_.
/// - "read_by": "model_load" or "inference_start".
/// - "type": "string", "integer" or "number", which also tells the function that sets it.
/// - "lowest", "highest": the range of integers and numbers; "above", in place of "lowest", is not part of it.
/// - "expected": what it accepts, in words.
/// - "default": the value that it has unasked, or null where that is no fixed value; "default_text" says it in words.
/// - "doc": what it does.
///
/// Later versions may add keys.
///
/// @param buffer  Where the text and a NUL are written; may be NULL if `size` is 0.
/// @param size    Bytes in `buffer`; 0 only asks for the size needed.
/// @param error   Where an error is written on failure, or NULL.
/// @returns The bytes that the text and its NUL take, so at least 1.
///   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
///   - KIGO_INVALID_ARGUMENT: `buffer` is NULL though `size` is not 0.
///   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `buffer` is NULL or valid for writing the answer if that fits into `size` bytes; `error` is NULL or valid for
/// writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_options_keys(buffer: *mut c_char, size: usize, error: *mut *mut kigo_error) -> i32 {
    let body = || {
        // SAFETY: `buffer` is NULL or large enough for an answer that fits into `size` bytes by the contract.
        let buffer = unsafe { Buffer::new(buffer, size, "buffer") }?;
        Ok(buffer.answer(&described().to_string())?)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Sets an option that is a text.
///
/// @param options  The options; changed.
/// @param key      The key of the option, as "Options" lists them.
/// @param value    The value in UTF-8; it is copied.
/// @param error    Where an error is written on failure, or NULL.
/// @returns KIGO_OK. On failure the option keeps its value.
///   - KIGO_UNKNOWN_OPTION: no option has this key; the message names the nearest.
///   - KIGO_INVALID_ARGUMENT: `key` or `value` is NULL, the value is not allowed, or the option is not a text; the
///     message names the values allowed and the function to use.
///   - KIGO_INVALID_UTF8: `key` or `value` is not UTF-8.
///   - KIGO_IO, KIGO_BAD_TEMPLATE: the file of "chat_template_file" cannot be read, or is no text or too long.
///   - KIGO_LIMIT: there are too many stop strings.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `key` and `value` are NULL or NUL-terminated; `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_options_set_str(
    options: *mut kigo_options,
    key: *const c_char,
    value: *const c_char,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `key` is NULL or NUL-terminated by this function's contract.
        let key = unsafe { text(key, "key") }?;
        // SAFETY: so is `value`.
        let value = unsafe { text(value, "value") }?;
        Ok(set(options, key, Value::Text(value))?)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Sets an option that is an integer, or one that is a number.
///
/// @param options  The options; changed.
/// @param key      The key of the option, as "Options" lists them.
/// @param value    The value.
/// @param error    Where an error is written on failure, or NULL.
/// @returns KIGO_OK. On failure the option keeps its value.
///   - KIGO_UNKNOWN_OPTION: no option has this key; the message names the nearest.
///   - KIGO_INVALID_ARGUMENT: `key` is NULL, the value is outside the range, or the option is a text; the message
///     names the range and the function to use.
///   - KIGO_INVALID_UTF8, KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `key` is NULL or NUL-terminated; `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_options_set_i64(
    options: *mut kigo_options,
    key: *const c_char,
    value: i64,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `key` is NULL or NUL-terminated by this function's contract.
        let key = unsafe { text(key, "key") }?;
        Ok(set(options, key, Value::Integer(value))?)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Sets an option that is a number.
///
/// @param options  The options; changed.
/// @param key      The key of the option, as "Options" lists them.
/// @param value    The value; a NaN is outside every range.
/// @param error    Where an error is written on failure, or NULL.
/// @returns KIGO_OK. On failure the option keeps its value.
///   - KIGO_UNKNOWN_OPTION: no option has this key; the message names the nearest.
///   - KIGO_INVALID_ARGUMENT: `key` is NULL, the value is outside the range, or the option is not a number; the
///     message names the range and the function to use.
///   - KIGO_INVALID_UTF8, KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `key` is NULL or NUL-terminated; `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_options_set_f64(
    options: *mut kigo_options,
    key: *const c_char,
    value: f64,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `key` is NULL or NUL-terminated by this function's contract.
        let key = unsafe { text(key, "key") }?;
        Ok(set(options, key, Value::Number(value))?)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// A function of yours for kigo_options_set_progress(). It is told how many bytes of weights have been read, and how
/// many there are to read, which is 0 until the header of the file has been read. It returns 0 to go on, or any other
/// number to cancel the load.
pub type kigo_progress = Option<unsafe extern "C" fn(user_data: *mut c_void, done: i64, total: i64) -> i32>;

/// Sets a function that kigo_model_load() calls while it loads.
///
/// It is called on the thread that called kigo_model_load(): at once, then about every 50 milliseconds, and a last
/// time when all has been read. The load goes on meanwhile. When it has returned another number than 0, it is not
/// called again, and kigo_model_load() returns KIGO_CANCELLED. It may call every function of kigo, and even free the
/// options. It must return: no exception, panic or longjmp() may leave it. kigo_load_start() does not call it; ask
/// kigo_load_progress() there.
///
/// @param options    The options; changed.
/// @param progress   The function, or NULL for none, which is the default.
/// @param user_data  What the function gets back, or NULL; kigo never follows it. Function and data are kept with the
///                   options, for every kigo_model_load() that gets these, on whatever thread.
/// @param error      Where an error is written on failure, or NULL.
/// @returns KIGO_OK.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `progress` is NULL or may be called as described; `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_options_set_progress(
    options: *mut kigo_options,
    progress: kigo_progress,
    user_data: *mut c_void,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        let options = OPTIONS.get(handle(options), "options")?;
        let mut settings = options.lock().unwrap_or_else(PoisonError::into_inner);
        settings.progress = progress.map(|progress| Listener { progress, user_data });
        Ok(0)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Frees an options object. Models and inferences that were made with it are not affected.
///
/// @param options  The options, or NULL.
/// @returns KIGO_OK, also for NULL.
///   - KIGO_INVALID_HANDLE: `options` was freed before or is no options object; nothing happened.
///   - KIGO_FORKED: this is a forked child; nothing happened.
///
/// Any thread may call it at any time, also while another uses `options`.
#[unsafe(no_mangle)]
pub extern "C" fn kigo_options_free(options: *mut kigo_options) -> i32 {
    free(&OPTIONS, handle(options), "options", |_| ())
}
