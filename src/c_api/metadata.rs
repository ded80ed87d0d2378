//! The metadata of a model's file: what the file says, key by key.

use super::boundary::{Buffer, Out, export, export_fact, text};
use super::error::kigo_error;
use super::model::{engine, kigo_model};
use crate::engine::Engine;
use crate::error::quoted;
use crate::gguf::Value;
use crate::{Error, Result};
use std::ffi::c_char;

/// Types of values: name in C, number in GGUF.
pub(super) const TYPES: [(&str, i32); 13] = [
    ("KIGO_METADATA_UINT8", 0),
    ("KIGO_METADATA_INT8", 1),
    ("KIGO_METADATA_UINT16", 2),
    ("KIGO_METADATA_INT16", 3),
    ("KIGO_METADATA_UINT32", 4),
    ("KIGO_METADATA_INT32", 5),
    ("KIGO_METADATA_FLOAT32", 6),
    ("KIGO_METADATA_BOOL", 7),
    ("KIGO_METADATA_STRING", 8),
    ("KIGO_METADATA_ARRAY", 9),
    ("KIGO_METADATA_UINT64", 10),
    ("KIGO_METADATA_INT64", 11),
    ("KIGO_METADATA_FLOAT64", 12),
];

/// Most elements of an array in one answer.
const MAX_ELEMENTS: i64 = 65536;

/// The largest integer such that it and all smaller ones are exact as a double.
const MAX_EXACT: i128 = 1 << 53;

/// The value of `key`.
///
/// # Errors
/// `NotFound` when the file has none.
fn find<'a>(engine: &'a Engine, key: &str) -> Result<&'a Value> {
    let absent = || Error::NotFound { argument: "key", what: "metadata", key: quoted(key.as_bytes()) };
    engine.metadata().get(key).ok_or_else(absent)
}

/// The error for a value of another type than the function is for.
fn other_type(key: &str, expected: &str, value: &Value) -> Error {
    Error::invalid_argument("key", format!("one whose value is {expected}"), format!("{key}, {}", value.describe()))
}

/// How many keys the metadata of a model's file has.
///
/// @param model  The model; not changed.
/// @param error  Where an error is written on failure, or NULL.
/// @returns The number, 0 or more.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_metadata_count(model: *const kigo_model, error: *mut *mut kigo_error) -> i32 {
    let body = || {
        let n = engine(model)?.metadata().len();
        Ok(i32::try_from(n).unwrap_or(i32::MAX))
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// A key of the metadata, by its place in the file.
///
/// @param model   The model; not changed.
/// @param index   Which one, from 0 to one less than kigo_model_metadata_count().
/// @param buffer  Where the key and a NUL are written; may be NULL if `size` is 0.
/// @param size    Bytes in `buffer`; 0 only asks for the size needed.
/// @param error   Where an error is written on failure, or NULL.
/// @returns The bytes that the key and its NUL take, so at least 1.
///   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
///   - KIGO_INVALID_ARGUMENT: there are not so many keys, or `buffer` is NULL though `size` is not 0.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `buffer` is NULL or valid for writing the answer if that fits into `size` bytes; `error` is NULL or valid for
/// writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_metadata_key(
    model: *const kigo_model,
    index: i32,
    buffer: *mut c_char,
    size: usize,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `buffer` is NULL or large enough for an answer that fits into `size` bytes by the contract.
        let buffer = unsafe { Buffer::new(buffer, size, "buffer") }?;
        let engine = engine(model)?;
        let metadata = engine.metadata();
        let pair = usize::try_from(index).ok().and_then(|at| metadata.pair(at));
        let (key, _) = pair
            .ok_or_else(|| Error::invalid_argument("index", format!("0 or more, below {}", metadata.len()), index))?;
        Ok(buffer.answer(key)?)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// The type of a value of the metadata.
///
/// @param model         The model; not changed.
/// @param key           Its key.
/// @param element_type  Where the type of the elements of an array is written; of another value its type again.
/// @param n_elements    Where the number of elements of an array is written; 1 for another value.
/// @param error         Where an error is written on failure, or NULL.
/// @returns The type, one of the KIGO_METADATA_ numbers.
///   - KIGO_NOT_FOUND: the file has no such key.
///   - KIGO_INVALID_ARGUMENT: `key`, `element_type` or `n_elements` is NULL.
///   - KIGO_INVALID_UTF8: `key` is not UTF-8.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `key` is NULL or NUL-terminated; `element_type`, `n_elements` and `error` are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_metadata_type(
    model: *const kigo_model,
    key: *const c_char,
    element_type: *mut i32,
    n_elements: *mut i64,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `key` is NULL or NUL-terminated by this function's contract.
        let key = unsafe { text(key, "key") }?;
        // SAFETY: `element_type` is NULL or valid for writing by this function's contract.
        let element_type = unsafe { Out::new(element_type, "element_type") }?;
        // SAFETY: so is `n_elements`.
        let n_elements = unsafe { Out::new(n_elements, "n_elements") }?;
        let engine = engine(model)?;
        let value = find(&engine, key)?;
        let (of, n) = match value {
            Value::Array(array) => (array.type_id(), array.len() as i64),
            scalar => (scalar.type_id(), 1),
        };
        element_type.write(of as i32);
        n_elements.write(n);
        Ok(value.type_id() as i32)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// A value of the metadata as a text: a string as it is, anything else but an array as JSON would write it.
///
/// @param model   The model; not changed.
/// @param key     Its key.
/// @param buffer  Where the text and a NUL are written; may be NULL if `size` is 0. A string may have NULs, so take the
///                length from the return value where that matters. Bytes that are not UTF-8 become U+FFFD.
/// @param size    Bytes in `buffer`; 0 only asks for the size needed.
/// @param error   Where an error is written on failure, or NULL.
/// @returns The bytes that the text and its NUL take, so at least 1.
///   - KIGO_NOT_FOUND: the file has no such key.
///   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
///   - KIGO_INVALID_ARGUMENT: `key` is NULL, its value is an array, or `buffer` is NULL though `size` is not 0.
///   - KIGO_INVALID_UTF8: `key` is not UTF-8.
///   - KIGO_OUT_OF_MEMORY: there is no room for the text.
///   - KIGO_INVALID_HANDLE, KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `key` is NULL or NUL-terminated; `buffer` is NULL or valid for writing the answer if that fits into `size` bytes;
/// `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_metadata_get_str(
    model: *const kigo_model,
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
        let engine = engine(model)?;
        let value = find(&engine, key)?;
        match value {
            Value::Array(_) => Err(other_type(key, "no array; call kigo_model_metadata_get_json()", value).into()),
            Value::String(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(buffer.answer(text)?),
                Err(_) => Ok(buffer.answer(&replaced(bytes)?)?),
            },
            scalar => Ok(buffer.answer(&scalar.to_json(0..0)?)?),
        }
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// `bytes` with U+FFFD for what is not UTF-8.
fn replaced(bytes: &[u8]) -> Result<String> {
    const REPLACEMENT: &str = "\u{FFFD}";
    let mut text = String::new();
    let most = bytes.len().saturating_mul(REPLACEMENT.len());
    text.try_reserve(most)
        .map_err(|_| Error::OutOfMemory { what: "the text of a value".into(), bytes: most as u64 })?;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.push_str(if chunk.invalid().is_empty() { "" } else { REPLACEMENT });
    }
    Ok(text)
}

/// A value of the metadata that is an integer of any type, or a boolean, which is 0 or 1.
///
/// @param model  The model; not changed.
/// @param key    Its key.
/// @param value  Where the value is written on success.
/// @param error  Where an error is written on failure, or NULL.
/// @returns KIGO_OK.
///   - KIGO_NOT_FOUND: the file has no such key.
///   - KIGO_INVALID_ARGUMENT: `key` or `value` is NULL, or the value is no integer below 2^63.
///   - KIGO_INVALID_UTF8: `key` is not UTF-8.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `key` is NULL or NUL-terminated; `value` and `error` are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_metadata_get_i64(
    model: *const kigo_model,
    key: *const c_char,
    value: *mut i64,
    error: *mut *mut kigo_error,
) -> i32 {
    let get = |key: &str| {
        let engine = engine(model)?;
        let found = find(&engine, key)?;
        let number = match found {
            Value::Bool(truth) => Some(i64::from(*truth)),
            other => other.integer().and_then(|number| i64::try_from(number).ok()),
        };
        number.ok_or_else(|| other_type(key, "an integer below 2^63 or a boolean", found))
    };
    // SAFETY: `key`, `value` and `error` are as the contract of this function, which is the same, says.
    unsafe { export_fact(key, value, error, get) }
}

/// A value of the metadata that is a floating-point number, or an integer that a double holds exactly.
///
/// @param model  The model; not changed.
/// @param key    Its key.
/// @param value  Where the value is written on success; it may be a NaN or infinite.
/// @param error  Where an error is written on failure, or NULL.
/// @returns KIGO_OK.
///   - KIGO_NOT_FOUND: the file has no such key.
///   - KIGO_INVALID_ARGUMENT: `key` or `value` is NULL, or the value is no such number.
///   - KIGO_INVALID_UTF8: `key` is not UTF-8.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `key` is NULL or NUL-terminated; `value` and `error` are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_metadata_get_f64(
    model: *const kigo_model,
    key: *const c_char,
    value: *mut f64,
    error: *mut *mut kigo_error,
) -> i32 {
    let get = |key: &str| {
        let engine = engine(model)?;
        let found = find(&engine, key)?;
        let number = match found {
            Value::F32(number) => Some(f64::from(*number)),
            Value::F64(number) => Some(*number),
            other => other.integer().filter(|n| (-MAX_EXACT..=MAX_EXACT).contains(n)).map(|n| n as f64),
        };
        number.ok_or_else(|| other_type(key, "a number that a double holds exactly", found))
    };
    // SAFETY: `key`, `value` and `error` are as the contract of this function, which is the same, says.
    unsafe { export_fact(key, value, error, get) }
}

/// A value of the metadata as JSON; of an array the elements from `first` on, at most `count` of them.
///
/// Numbers have all their digits: a reader of JSON must take integers of 64 bits to keep them. Numbers that are not
/// finite are the strings "NaN", "Infinity" and "-Infinity". Bytes of strings that are not UTF-8 become U+FFFD.
///
/// @param model   The model; not changed.
/// @param key     Its key.
/// @param first   The first element wanted of an array, from 0 up to the number of its elements; 0 for another value.
/// @param count   Most elements wanted, from 0 to 65536.
/// @param buffer  Where the text and a NUL are written; may be NULL if `size` is 0.
/// @param size    Bytes in `buffer`; 0 only asks for the size needed.
/// @param error   Where an error is written on failure, or NULL.
/// @returns The bytes that the text and its NUL take, so at least 1.
///   - KIGO_NOT_FOUND: the file has no such key.
///   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
///   - KIGO_INVALID_ARGUMENT: `key` is NULL, `first` or `count` is out of range, or `buffer` is NULL though `size` is not
///     0.
///   - KIGO_INVALID_UTF8: `key` is not UTF-8.
///   - KIGO_OUT_OF_MEMORY: there is no room for the text.
///   - KIGO_LIMIT: the text has 2 GiB or more; ask for fewer elements.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `key` is NULL or NUL-terminated; `buffer` is NULL or valid for writing the answer if that fits into `size` bytes;
/// `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_metadata_get_json(
    model: *const kigo_model,
    key: *const c_char,
    first: i64,
    count: i64,
    buffer: *mut c_char,
    size: usize,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `key` is NULL or NUL-terminated by this function's contract.
        let key = unsafe { text(key, "key") }?;
        // SAFETY: `buffer` is NULL or large enough for an answer that fits into `size` bytes by the contract.
        let buffer = unsafe { Buffer::new(buffer, size, "buffer") }?;
        let engine = engine(model)?;
        let value = find(&engine, key)?;
        let len = if let Value::Array(array) = value { array.len() } else { 0 };
        let start = usize::try_from(first).ok().filter(|start| *start <= len);
        let start = start.ok_or_else(|| Error::invalid_argument("first", format!("0 to {len}"), first))?;
        if !(0..=MAX_ELEMENTS).contains(&count) {
            return Err(Error::invalid_argument("count", format!("0 to {MAX_ELEMENTS}"), count).into());
        }
        Ok(buffer.answer(&value.to_json(start..start.saturating_add(count as usize))?)?)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Array;

    #[test]
    fn numbers_of_types_are_those_of_gguf() {
        let scalars = [
            Value::U8(0),
            Value::I8(0),
            Value::U16(0),
            Value::I16(0),
            Value::U32(0),
            Value::I32(0),
            Value::F32(0.0),
            Value::Bool(false),
            Value::from(""),
            Value::Array(Array::U8(vec![])),
            Value::U64(0),
            Value::I64(0),
            Value::F64(0.0),
        ];
        for (value, (name, number)) in scalars.iter().zip(TYPES) {
            assert_eq!(value.type_id() as i32, number);
            assert_eq!(format!("KIGO_METADATA_{}", value.type_name()), name);
        }
    }
}
