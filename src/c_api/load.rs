//! Loads that run beside the host: start, watch, cancel, finish, free.

use super::boundary::{Out, export, free, guarded, handle, path, pointer};
use super::error::kigo_error;
use super::handle::{Kind, MAX_HANDLES, Table};
use super::model::{kigo_model, new_model};
use super::options::{kigo_options, snapshot};
use crate::Error;
use crate::engine::Loading;
use std::ffi::c_char;

/// A model that is being loaded, for hosts that do not want to wait in kigo_model_load(). Watching and cancelling are
/// possible at all times.
pub struct kigo_load {
    _private: [u8; 0],
}

static LOADS: Table<Loading> = Table::new(Kind::Load, MAX_HANDLES);

/// Starts to load a model from a GGUF file, on a thread of kigo, and returns at once.
///
/// Everything that can be wrong with the file or the device is told by kigo_load_finish().
///
/// @param path     The file, in the bytes of the system; it need not be UTF-8 on Linux. It is copied.
/// @param options  Options, or NULL for the defaults; not kept.
/// @param load     Where the load is written on success; free it with kigo_load_free().
/// @param error    Where an error is written on failure, or NULL.
/// @returns KIGO_OK. On failure nothing is left behind.
///   - KIGO_INVALID_ARGUMENT: `path` or `load` is NULL.
///   - KIGO_INVALID_HANDLE: `options` is neither NULL nor a live options object.
///   - KIGO_OUT_OF_MEMORY: the system has no memory for another thread.
///   - KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time; several models may be loaded at once.
///
/// # Safety
/// `path` is NULL or NUL-terminated; `load` and `error` are NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_load_start(
    path: *const c_char,
    options: *const kigo_options,
    load: *mut *mut kigo_load,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `path` is NULL or NUL-terminated by this function's contract.
        let path = unsafe { self::path(path, "path") }?;
        // SAFETY: `load` is NULL or valid for writing by this function's contract.
        let out = unsafe { Out::new(load, "load") }?;
        let settings = snapshot(options)?;
        out.write(pointer(LOADS.insert(Loading::start(&path, &settings.load)?)?));
        Ok(0)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// How far a load is. It never waits, so it may be called as often as a progress bar is drawn.
///
/// @param load   The load; not changed.
/// @param done   Where the bytes of weights are written that have been read so far; they never become less.
/// @param total  Where the bytes are written that there are to read; 0 until the header of the file has been read.
/// @param error  Where an error is written on failure, or NULL.
/// @returns 1 while the load runs, 0 when it has ended and kigo_load_finish() will not wait.
///   - KIGO_INVALID_ARGUMENT: `done` or `total` is NULL.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time, also while another waits in kigo_load_finish().
///
/// # Safety
/// `done`, `total` and `error` are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_load_progress(
    load: *const kigo_load,
    done: *mut i64,
    total: *mut i64,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `done` is NULL or valid for writing by this function's contract.
        let done = unsafe { Out::new(done, "done") }?;
        // SAFETY: so is `total`.
        let total = unsafe { Out::new(total, "total") }?;
        let load = LOADS.get(handle(load), "load")?;
        // Asked first: a load that is said to have ended then shows its last numbers.
        let running = load.is_running();
        let (done_bytes, total_bytes) = load.bytes();
        // A file has at most i64::MAX bytes.
        done.write(done_bytes as i64);
        total.write(total_bytes as i64);
        Ok(i32::from(running))
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Cancels a load. It ends within moments, and kigo_load_finish() returns KIGO_CANCELLED, unless it had ended before.
///
/// @param load  The load.
/// @returns KIGO_OK, also if it had ended or was cancelled before.
///   - KIGO_INVALID_HANDLE: `load` is NULL, freed or no load; nothing happened.
///   - KIGO_FORKED: this is a forked child; nothing happened.
///
/// Any thread may call it at any time, also while another waits in kigo_load_finish(). It does not wait.
#[unsafe(no_mangle)]
pub extern "C" fn kigo_load_cancel(load: *mut kigo_load) -> i32 {
    let body = || {
        LOADS.get(handle(load), "load")?.cancel();
        Ok(0)
    };
    guarded(body).unwrap_or_else(|failure| failure.status as i32)
}

/// Waits until a load has ended, and gives its model, once.
///
/// @param load   The load; it stays yours to free, and frees nothing of the model.
/// @param model  Where the model is written on success; free it with kigo_model_free().
/// @param error  Where an error is written on failure, or NULL.
/// @returns KIGO_OK. On failure nothing of the load is left but its handle.
///   - KIGO_CANCELLED: the load was cancelled or freed; its memory has been given back.
///   - KIGO_INVALID_ARGUMENT: `model` is NULL, or an earlier call has given the outcome of this load, which comes only
///     once.
///   - KIGO_INVALID_HANDLE: `load` is not live.
///   - Otherwise what kigo_model_load() returns, for the same reasons.
///
/// KIGO_FORKED and KIGO_INTERNAL: see "Statuses". Any thread may call it at any time.
///
/// # Safety
/// `model` and `error` are NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_load_finish(
    load: *mut kigo_load,
    model: *mut *mut kigo_model,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `model` is NULL or valid for writing by this function's contract.
        let out = unsafe { Out::new(model, "model") }?;
        let load = LOADS.get(handle(load), "load")?;
        let engine = load.finish().unwrap_or_else(|| Err(taken()))?;
        out.write(new_model(engine)?);
        Ok(0)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

fn taken() -> Error {
    Error::invalid_argument("load", "one whose outcome was not given yet", "one that kigo_load_finish() has finished")
}

/// Frees a load. One that still runs is cancelled; its thread gives the memory back moments later.
///
/// To know when that has happened, call kigo_load_cancel() and kigo_load_finish() before. A model that
/// kigo_load_finish() gave is not affected.
///
/// @param load  The load, or NULL.
/// @returns KIGO_OK, also for NULL.
///   - KIGO_INVALID_HANDLE: `load` was freed before or is no load; nothing happened.
///   - KIGO_FORKED: this is a forked child; nothing happened.
///
/// Any thread may call it at any time, also while another uses `load`. It does not wait.
#[unsafe(no_mangle)]
pub extern "C" fn kigo_load_free(load: *mut kigo_load) -> i32 {
    free(&LOADS, handle(load), "load", Loading::cancel)
}
