//! GPUs: how many there are, and what C can learn about each.

use super::boundary::{Buffer, export, export_fact, text};
use super::error::kigo_error;
use super::model::{Fact, find, keys};
use crate::backend::{DeviceInfo, check_gpu, gpu, gpus};
use crate::line::one_line;
use crate::{Error, Result};
use serde_json::{Value as Json, json};
use std::ffi::c_char;

type TextOf = fn(&DeviceInfo) -> String;
type NumberOf = fn(&DeviceInfo) -> u64;

/// What kigo_device_get_str() knows.
pub(super) static TEXTS: &[Fact<TextOf>] = &[
    Fact { key: "name", doc: "Its name, such as \"NVIDIA H200\".", get: |gpu| gpu.name.clone() },
    Fact { key: "architecture", doc: "Its architecture, such as \"sm_90\".", get: DeviceInfo::architecture },
];

/// What kigo_device_get_i64() knows.
pub(super) static NUMBERS: &[Fact<NumberOf>] = &[
    Fact { key: "memory_bytes", doc: "Bytes of its memory, used or not.", get: |gpu| gpu.total_bytes },
    Fact { key: "n_sm", doc: "Number of its multiprocessors.", get: |gpu| gpu.n_sm.into() },
];

/// The GPU with the number that C gave.
fn device_info(device: i32) -> Result<DeviceInfo> {
    let ordinal = u32::try_from(device).map_err(|_| Error::invalid_argument("device", "0 or more", device))?;
    gpu(ordinal)
}

/// How many GPUs the process may use, whether kigo has code for them or not.
///
/// Their numbers are 0 to one less than this, in the order of the driver, which CUDA_VISIBLE_DEVICES changes; the
/// value "cuda:1" of the option "device" is the GPU 1.
///
/// @param error  Where an error is written on failure, or NULL.
/// @returns The number, 0 if there is a driver but no GPU.
///   - KIGO_NO_BACKEND: this build runs on the CPU only.
///   - KIGO_NO_DRIVER, KIGO_DRIVER_TOO_OLD, KIGO_DEVICE_ERROR, KIGO_OUT_OF_MEMORY: the driver cannot be used; the
///     message says why.
///   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time. The first call loads the driver, which takes part of a second.
///
/// # Safety
/// `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_device_count(error: *mut *mut kigo_error) -> i32 {
    let body = || match gpus() {
        Ok(n) => Ok(i32::try_from(n).unwrap_or(i32::MAX)),
        Err(Error::NoDevice { .. }) => Ok(0),
        Err(error) => Err(error.into()),
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// The devices that a model can be loaded to, as a JSON object.
///
/// - "devices": an array of objects with "device", a value of the option "device", and "name"; GPUs also have
///   "architecture", "memory_bytes" and "n_sm" as kigo_device_get_str() and kigo_device_get_i64() tell them. GPUs come
///   first, in the order of their numbers, the CPU is the last.
/// - "unusable": an array of objects with "device" and "error", which says why no model can be loaded there: "cuda" where
///   there is no driver or this build has no code for it, else GPUs.
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
/// Any thread may call it at any time. The first call loads the driver, which takes part of a second.
///
/// # Safety
/// `buffer` is NULL or valid for writing the answer if that fits into `size` bytes; `error` is NULL or valid for
/// writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_device_list(buffer: *mut c_char, size: usize, error: *mut *mut kigo_error) -> i32 {
    let body = || {
        // SAFETY: `buffer` is NULL or large enough for an answer that fits into `size` bytes by the contract.
        let buffer = unsafe { Buffer::new(buffer, size, "buffer") }?;
        Ok(buffer.answer(&list().to_string())?)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// The devices, and those that cannot be used.
fn list() -> Json {
    let (mut devices, mut unusable) = (vec![], vec![]);
    let n = gpus().unwrap_or_else(|error| {
        unusable.push(json!({ "device": "cuda", "error": one_line(&error.to_string()) }));
        0
    });
    for ordinal in 0..n {
        let device = format!("cuda:{ordinal}");
        match check_gpu(ordinal).and_then(|()| gpu(ordinal)) {
            Ok(gpu) => devices.push(json!({
                "device": device,
                "name": gpu.name,
                "architecture": gpu.architecture(),
                "memory_bytes": gpu.total_bytes,
                "n_sm": gpu.n_sm,
            })),
            Err(error) => unusable.push(json!({ "device": device, "error": one_line(&error.to_string()) })),
        }
    }
    devices.push(json!({ "device": "cpu", "name": "CPU" }));
    json!({ "devices": devices, "unusable": unusable })
}

/// A fact about a GPU that is a text.
///
/// @param device  The number of the GPU, from 0.
/// @param key     Which fact, as "Facts about a GPU" lists them.
/// @param buffer  Where the text and a NUL are written; may be NULL if `size` is 0.
/// @param size    Bytes in `buffer`; 0 only asks for the size needed.
/// @param error   Where an error is written on failure, or NULL.
/// @returns The bytes that the text and its NUL take, so at least 1.
///   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
///   - KIGO_INVALID_ARGUMENT: `device` is negative, `key` is NULL or no text has it, or `buffer` is NULL though `size`
///     is not 0.
///   - KIGO_INVALID_UTF8: `key` is not UTF-8.
///   - KIGO_NO_DEVICE: there are not so many GPUs.
///   - KIGO_NO_BACKEND, KIGO_NO_DRIVER, KIGO_DRIVER_TOO_OLD, KIGO_DEVICE_ERROR, KIGO_DEVICE_LOST, KIGO_OUT_OF_MEMORY:
///     as for kigo_device_count().
///   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `key` is NULL or NUL-terminated; `buffer` is NULL or valid for writing the answer if that fits into `size` bytes;
/// `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_device_get_str(
    device: i32,
    key: *const c_char,
    buffer: *mut c_char,
    size: usize,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `key` is NULL or NUL-terminated by this function's contract.
        let key = unsafe { text(key, "key") }?;
        // SAFETY: `buffer` is NULL or large enough for an answer that fits into `size` bytes by the contract.
        let buffer = unsafe { Buffer::new(buffer, size, "buffer") }?;
        let get = find(TEXTS, key, &[(keys(NUMBERS), "kigo_device_get_i64")])?;
        let value = get(&device_info(device)?);
        Ok(buffer.answer(&value)?)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// A fact about a GPU that is an integer.
///
/// @param device  The number of the GPU, from 0.
/// @param key     Which fact, as "Facts about a GPU" lists them.
/// @param value   Where the fact is written on success.
/// @param error   Where an error is written on failure, or NULL.
/// @returns KIGO_OK.
///   - KIGO_INVALID_ARGUMENT: `device` is negative, `key` is NULL or no integer has it, or `value` is NULL.
///   - KIGO_INVALID_UTF8: `key` is not UTF-8.
///   - KIGO_NO_DEVICE: there are not so many GPUs.
///   - KIGO_NO_BACKEND, KIGO_NO_DRIVER, KIGO_DRIVER_TOO_OLD, KIGO_DEVICE_ERROR, KIGO_DEVICE_LOST, KIGO_OUT_OF_MEMORY:
///     as for kigo_device_count().
///   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `key` is NULL or NUL-terminated; `value` and `error` are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_device_get_i64(
    device: i32,
    key: *const c_char,
    value: *mut i64,
    error: *mut *mut kigo_error,
) -> i32 {
    let get = |key: &str| {
        let get = find(NUMBERS, key, &[(keys(TEXTS), "kigo_device_get_str")])?;
        Ok(i64::try_from(get(&device_info(device)?)).unwrap_or(i64::MAX))
    };
    // SAFETY: `key`, `value` and `error` are as the contract of this function, which is the same, says.
    unsafe { export_fact(key, value, error, get) }
}
