//! Facts in JSON, about a model and about a file.

use super::boundary::{Buffer, export, path};
use super::error::kigo_error;
use super::model::{engine, kigo_model};
use super::options::{kigo_options, snapshot};
use crate::engine::{LoadOptions, file_info};
use crate::{Error, Result};
use std::ffi::c_char;

/// Everything about a model as a JSON object.
///
/// - "architecture", "name": texts of the file.
/// - "file": "bytes" of all its parts, "n_files", "version", "n_tensors".
/// - "sizes": "n_layer", "n_embd", "n_head", "n_head_kv", "head_dim", "n_ff", "n_ctx_train", "n_vocab", "n_params" and
///   such, as far as the file has them; a size that differs by layer is an array.
/// - "hyperparameters": what the file says under the name of the architecture.
/// - "types": by name of a tensor type, "count" and "bytes" of its tensors.
/// - "roles": for each name of tensors, without the number of the layer, "role", "count", "n_params", "bytes" and
///   "types".
/// - "tokenizer": "n_vocab"; "bos", "eos", "eot", "eom", "unknown", each null or with "id" and "text"; "eog", an array
///   of such tokens, which end a generation; "add_bos", "add_eos", "max_token_bytes".
/// - "chat_templates": the names of the chat templates.
/// - "memory": "device", "n_ctx", "n_batch", and bytes on the device: "weights", "cache" of one inference that fills a
///   context of `n_ctx` tokens, "cache_per_token", "workspace", "total".
///
/// Later versions may add keys.
///
/// @param model   The model; not changed.
/// @param n_ctx   Tokens of the context that "memory" is for; 0 takes the model's "n_ctx".
/// @param buffer  Where the text and a NUL are written; may be NULL if `size` is 0.
/// @param size    Bytes in `buffer`; 0 only asks for the size needed.
/// @param error   Where an error is written on failure, or NULL.
/// @returns The bytes that the text and its NUL take, so at least 1.
///   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
///   - KIGO_INVALID_ARGUMENT: `n_ctx` is out of range, or `buffer` is NULL though `size` is not 0.
///   - KIGO_INVALID_HANDLE, KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `buffer` is NULL or valid for writing the answer if that fits into `size` bytes; `error` is NULL or valid for
/// writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_info(
    model: *const kigo_model,
    n_ctx: i64,
    buffer: *mut c_char,
    size: usize,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `buffer` is NULL or large enough for an answer that fits into `size` bytes by the contract.
        let buffer = unsafe { Buffer::new(buffer, size, "buffer") }?;
        let info = engine(model)?.info(context(n_ctx)?)?;
        Ok(buffer.answer(&info.to_string())?)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// The context that an argument asks for.
fn context(n_ctx: i64) -> Result<Option<usize>> {
    match usize::try_from(n_ctx) {
        Ok(0) => Ok(None),
        Ok(n) if n <= LoadOptions::MAX_CTX => Ok(Some(n)),
        _ => Err(Error::invalid_argument("n_ctx", format!("0 to {}", LoadOptions::MAX_CTX), n_ctx)),
    }
}

/// Everything about the model in a GGUF file, as kigo_model_info() tells it, without loading it.
///
/// Only the header is read. The options say for which device, context and batch "memory" is computed; the device need
/// not be there. Where kigo cannot run the model, "error" says why, and "memory" or "tokenizer" may be missing.
///
/// @param path     The file, in the bytes of the system; it need not be UTF-8 on Linux.
/// @param options  Options, or NULL for the defaults; not kept.
/// @param buffer   Where the text and a NUL are written; may be NULL if `size` is 0.
/// @param size     Bytes in `buffer`; 0 only asks for the size needed.
/// @param error    Where an error is written on failure, or NULL.
/// @returns The bytes that the text and its NUL take, so at least 1.
///   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
///   - KIGO_IO, KIGO_NOT_GGUF, KIGO_TRUNCATED, KIGO_UNSUPPORTED_VERSION, KIGO_UNSUPPORTED_TYPE, KIGO_BAD_FILE: the
///     file is not a GGUF file that can be read; the message says why.
///   - KIGO_INVALID_ARGUMENT: `path` is NULL, or `buffer` is NULL though `size` is not 0.
///   - KIGO_INVALID_HANDLE: `options` is neither NULL nor a live options object.
///   - KIGO_OUT_OF_MEMORY, KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `path` is NULL or NUL-terminated; `buffer` is NULL or valid for writing the answer if that fits into `size` bytes;
/// `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_file_info(
    path: *const c_char,
    options: *const kigo_options,
    buffer: *mut c_char,
    size: usize,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `path` is NULL or NUL-terminated by this function's contract.
        let path = unsafe { self::path(path, "path") }?;
        // SAFETY: `buffer` is NULL or large enough for an answer that fits into `size` bytes by the contract.
        let buffer = unsafe { Buffer::new(buffer, size, "buffer") }?;
        let settings = snapshot(options)?;
        let info = file_info(&path, &settings.load)?;
        Ok(buffer.answer(&info.to_string())?)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}
