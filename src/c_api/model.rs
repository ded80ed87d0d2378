//! Models: load, ask, free.

use super::boundary::{Buffer, Out, export, export_fact, free, handle, path, pointer, text};
use super::error::kigo_error;
use super::handle::{Kind, MAX_HANDLES, Table};
use super::options::{kigo_options, snapshot};
use super::settings::Listener;
use crate::backend::Purpose;
use crate::engine::{Engine, LoadOptions, LoadTimes, Loading};
use crate::error::quoted;
use crate::{Error, Result, panics};
use std::ffi::c_char;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How often a host is told how far a load is.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// A loaded model. It does not change, and any number of threads and inferences may use it at once.
pub struct kigo_model {
    _private: [u8; 0],
}

/// A fact about a thing, by the key with which C asks for it.
pub(super) struct Fact<F> {
    pub(super) key: &'static str,
    pub(super) doc: &'static str,
    pub(super) get: F,
}

type TextOf = fn(&Engine) -> &str;
type NumberOf = fn(&Engine) -> u64;

/// What kigo_model_get_str() knows.
pub(super) static TEXTS: &[Fact<TextOf>] = &[
    Fact { key: "device", doc: "Where the model lives, such as \"cuda:0\" or \"cpu\".", get: Engine::device },
    Fact { key: "architecture", doc: "general.architecture of the file.", get: Engine::architecture },
    Fact { key: "name", doc: "general.name of the file; may be empty.", get: Engine::name },
];

/// What kigo_model_get_i64() knows.
pub(super) static NUMBERS: &[Fact<NumberOf>] = &[
    Fact { key: "n_ctx", doc: "Size of the context of an inference, in tokens.", get: |model| model.n_ctx() as u64 },
    Fact {
        key: "n_ctx_train",
        doc: "Size of the context that the model was trained for, in tokens.",
        get: |model| model.n_ctx_train() as u64,
    },
    Fact {
        key: "n_batch",
        doc: "Most tokens of a prompt that are computed at once.",
        get: |model| model.n_batch() as u64,
    },
    Fact { key: "n_vocab", doc: "Number of tokens; ids are less than this.", get: |model| model.n_vocab() as u64 },
    Fact { key: "n_embd", doc: "Width of the residual stream.", get: |model| model.n_embd() as u64 },
    Fact { key: "n_layer", doc: "Number of layers.", get: |model| model.n_layer() as u64 },
    Fact {
        key: "memory_bytes",
        doc: "Bytes that the model and its inferences hold on the device at the moment: the next three together.",
        get: |model| Purpose::ALL.into_iter().map(|purpose| model.memory().bytes(purpose)).sum(),
    },
    Fact {
        key: "weight_bytes",
        doc: "Bytes of weights on the device.",
        get: |model| model.memory().bytes(Purpose::Weights),
    },
    Fact {
        key: "cache_bytes",
        doc: "Bytes that the contexts of all inferences hold on the device at the moment: the KV cache.",
        get: |model| model.memory().bytes(Purpose::Cache),
    },
    Fact {
        key: "prompt_cache_bytes",
        doc: "Bytes of these that freed inferences have left for others; see the option \"prompt_cache_mib\".",
        get: |model| model.prompt_cache_bytes(),
    },
    Fact {
        key: "workspace_bytes",
        doc: "Bytes for everything else that computing holds on the device at the moment.",
        get: |model| model.memory().bytes(Purpose::Workspace),
    },
    Fact {
        key: "max_token_bytes",
        doc: "Bytes of the longest token: a buffer that is large enough for every kigo_next_token().",
        get: |model| model.max_token_bytes() as u64,
    },
];

type TimeOf = fn(&LoadTimes) -> Duration;

/// What kigo_model_get_f64() knows.
pub(super) static TIMES: &[Fact<TimeOf>] = &[
    Fact { key: "load_ms", doc: "Milliseconds that loading took in all.", get: |times| times.total },
    Fact { key: "header_ms", doc: "Milliseconds of these for the header and its metadata.", get: |times| times.header },
    Fact {
        key: "tokenizer_ms",
        doc: "Milliseconds for making the tokenizer, on a GPU while the weights are brought there.",
        get: |times| times.tokenizer,
    },
    Fact {
        key: "device_ms",
        doc: "Milliseconds until the device was ready, with the start of its driver.",
        get: |times| times.device,
    },
    Fact { key: "weights_ms", doc: "Milliseconds for bringing the weights to the device.", get: |times| times.weights },
    Fact {
        key: "prepare_ms",
        doc: "Milliseconds for what follows, before a token can be computed.",
        get: |times| times.prepare,
    },
];

/// The fact that `key` asks for. `others` are the keys of other functions, with these.
///
/// # Errors
/// `InvalidArgument` lists the keys there are, or names the function for those of another type.
pub(super) fn find<F: Copy>(facts: &[Fact<F>], key: &str, others: &[(Vec<&str>, &str)]) -> Result<F> {
    if let Some(fact) = facts.iter().find(|fact| fact.key == key) {
        return Ok(fact.get);
    }
    if let Some((_, getter)) = others.iter().find(|(keys, _)| keys.contains(&key)) {
        let expected = format!("a call of {getter}() for this key");
        return Err(Error::invalid_argument("key", expected, quoted(key.as_bytes())));
    }
    let known: Vec<&str> = facts.iter().map(|fact| fact.key).collect();
    Err(Error::invalid_argument("key", format!("one of {}", known.join(", ")), quoted(key.as_bytes())))
}

/// The keys of some facts.
pub(super) fn keys<F>(facts: &[Fact<F>]) -> Vec<&'static str> {
    facts.iter().map(|fact| fact.key).collect()
}

fn texts() -> (Vec<&'static str>, &'static str) {
    (keys(TEXTS), "kigo_model_get_str")
}

fn integers() -> (Vec<&'static str>, &'static str) {
    (keys(NUMBERS), "kigo_model_get_i64")
}

fn times() -> (Vec<&'static str>, &'static str) {
    (keys(TIMES), "kigo_model_get_f64")
}

static MODELS: Table<Arc<Engine>> = Table::new(Kind::Model, MAX_HANDLES);

/// The engine of a live model.
///
/// # Errors
/// `InvalidHandle` when `model` is anything else.
pub(super) fn engine(model: *const kigo_model) -> Result<Arc<Engine>> {
    Ok(Arc::clone(&*MODELS.get(handle(model), "model")?))
}

/// A handle for a model.
///
/// # Errors
/// `Limit` when there are too many; `engine` is dropped.
pub(super) fn new_model(engine: Arc<Engine>) -> Result<*mut kigo_model> {
    Ok(pointer(MODELS.insert(engine)?))
}

/// Loads a model from a GGUF file.
///
/// The file is read while the call runs, which may take seconds, and is not needed afterwards. kigo_load_start() does
/// the same without waiting.
///
/// @param path     The file, in the bytes of the system; it need not be UTF-8 on Linux.
/// @param options  Options, or NULL for the defaults; not kept.
/// @param model    Where the model is written on success; free it with kigo_model_free().
/// @param error    Where an error is written on failure, or NULL.
/// @returns KIGO_OK. On failure nothing is left behind.
///   - KIGO_IO: the file cannot be opened or read; the message has the system's reason.
///   - KIGO_NOT_GGUF, KIGO_TRUNCATED, KIGO_UNSUPPORTED_VERSION, KIGO_BAD_FILE: the file is not a GGUF file that can
///     be loaded; fetch or convert it again.
///   - KIGO_UNSUPPORTED_ARCHITECTURE, KIGO_UNSUPPORTED_TYPE, KIGO_UNSUPPORTED_TOKENIZER: the model needs something
///     that this version does not have; the message lists what it has.
///   - KIGO_NO_BACKEND, KIGO_NO_DRIVER, KIGO_DRIVER_TOO_OLD, KIGO_NO_DEVICE, KIGO_UNSUPPORTED_GPU: the device cannot
///     be used; the message says why. Set the option "device" to another.
///   - KIGO_DEVICE_LOST, KIGO_DEVICE_ERROR: the driver or the GPU failed; the message has its number for it.
///   - KIGO_OUT_OF_MEMORY: the device or the host has too little memory; the message has the bytes.
///   - KIGO_CANCELLED: the function of kigo_options_set_progress() wanted it.
///   - KIGO_INVALID_ARGUMENT: `path` or `model` is NULL.
///   - KIGO_INVALID_HANDLE: `options` is neither NULL nor a live options object.
///   - KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time; several models may be loaded at once.
///
/// # Safety
/// `path` is NULL or NUL-terminated; `model` and `error` are NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_load(
    path: *const c_char,
    options: *const kigo_options,
    model: *mut *mut kigo_model,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `path` is NULL or NUL-terminated by this function's contract.
        let path = unsafe { self::path(path, "path") }?;
        // SAFETY: `model` is NULL or valid for writing by this function's contract.
        let out = unsafe { Out::new(model, "model") }?;
        let settings = snapshot(options)?;
        let engine = match settings.progress {
            Some(listener) => load_telling(&path, &settings.load, listener),
            None => Engine::load(&path, &settings.load),
        };
        out.write(new_model(engine?)?);
        Ok(0)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Loads on another thread, while this one calls the host.
fn load_telling(path: &Path, options: &LoadOptions, listener: Listener) -> Result<Arc<Engine>> {
    let tell = |done: u64, total: u64| {
        // A file has at most i64::MAX bytes.
        let (done, total) = (done as i64, total as i64);
        // SAFETY: the function may be called so by the contract of kigo_options_set_progress(), and nothing is locked.
        panics::outside(|| unsafe { (listener.progress)(listener.user_data, done, total) }) == 0
    };
    let nobody = || Err(Error::Internal("somebody else has the outcome of the load".into()));
    Loading::start(path, options)?.finish_telling(TELL_EVERY, tell).unwrap_or_else(nobody)
}

/// Frees a model. Its inferences go on: the memory is given back when the last of them is freed.
///
/// @param model  The model, or NULL.
/// @returns KIGO_OK, also for NULL.
///   - KIGO_INVALID_HANDLE: `model` was freed before or is no model; nothing happened.
///   - KIGO_FORKED: this is a forked child; nothing happened.
///
/// Any thread may call it at any time, also while another uses `model`.
#[unsafe(no_mangle)]
pub extern "C" fn kigo_model_free(model: *mut kigo_model) -> i32 {
    free(&MODELS, handle(model), "model", |_| ())
}

/// A fact about a model that is a text.
///
/// @param model   The model; not changed.
/// @param key     Which fact, as "Facts about a model" lists them.
/// @param buffer  Where the text and a NUL are written; may be NULL if `size` is 0.
/// @param size    Bytes in `buffer`; 0 only asks for the size needed.
/// @param error   Where an error is written on failure, or NULL.
/// @returns The bytes that the text and its NUL take, so at least 1.
///   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
///   - KIGO_INVALID_ARGUMENT: `key` is NULL or no text has it, or `buffer` is NULL though `size` is not 0.
///   - KIGO_INVALID_UTF8: `key` is not UTF-8.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `key` is NULL or NUL-terminated; `buffer` is NULL or valid for writing the answer if that fits into `size` bytes;
/// `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_get_str(
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
        let model = engine(model)?;
        let value = find(TEXTS, key, &[integers(), times()])?(&model);
        Ok(buffer.answer(value)?)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// A fact about a model that is an integer.
///
/// @param model  The model; not changed.
/// @param key    Which fact, as "Facts about a model" lists them.
/// @param value  Where the fact is written on success.
/// @param error  Where an error is written on failure, or NULL.
/// @returns KIGO_OK.
///   - KIGO_INVALID_ARGUMENT: `key` is NULL or no integer has it, or `value` is NULL.
///   - KIGO_INVALID_UTF8: `key` is not UTF-8.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `key` is NULL or NUL-terminated; `value` and `error` are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_get_i64(
    model: *const kigo_model,
    key: *const c_char,
    value: *mut i64,
    error: *mut *mut kigo_error,
) -> i32 {
    let get = |key: &str| {
        let model = engine(model)?;
        let number = find(NUMBERS, key, &[texts(), times()])?(&model);
        Ok(as_i64(number))
    };
    // SAFETY: `key`, `value` and `error` are as the contract of this function, which is the same, says.
    unsafe { export_fact(key, value, error, get) }
}

/// A fact about a model that is a number.
///
/// @param model  The model; not changed.
/// @param key    Which fact, as "Facts about a model" lists them.
/// @param value  Where the fact is written on success.
/// @param error  Where an error is written on failure, or NULL.
/// @returns KIGO_OK.
///   - KIGO_INVALID_ARGUMENT: `key` is NULL or no number has it, or `value` is NULL.
///   - KIGO_INVALID_UTF8: `key` is not UTF-8.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `key` is NULL or NUL-terminated; `value` and `error` are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_get_f64(
    model: *const kigo_model,
    key: *const c_char,
    value: *mut f64,
    error: *mut *mut kigo_error,
) -> i32 {
    let get = |key: &str| {
        let model = engine(model)?;
        let time = find(TIMES, key, &[texts(), integers()])?(model.load_times());
        Ok(time.as_secs_f64() * 1e3)
    };
    // SAFETY: `key`, `value` and `error` are as the contract of this function, which is the same, says.
    unsafe { export_fact(key, value, error, get) }
}

/// Asks the driver of the device where every allocation of a model really is.
///
/// A model on a GPU has its weights, contexts and workspace in the memory of that GPU and nowhere else: `device_bytes`
/// is then "memory_bytes", and `host_bytes` is what the two exchange tokens through. A model on the CPU has no
/// `device_bytes`.
///
/// @param model         The model; not changed.
/// @param device_bytes  Where the bytes in the memory of the GPU are written.
/// @param host_bytes    Where the bytes in the memory of the host are written.
/// @param error         Where an error is written on failure, or NULL.
/// @returns KIGO_OK: everything is where it belongs.
///   - KIGO_INVALID_ARGUMENT: `device_bytes` or `host_bytes` is NULL.
///   - KIGO_INTERNAL: an allocation is elsewhere; the message says which and where.
///   - KIGO_DEVICE_LOST, KIGO_DEVICE_ERROR: the driver cannot be asked.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED: see "Statuses".
///
/// Any thread may call it at any time, also while inferences run.
///
/// # Safety
/// `device_bytes`, `host_bytes` and `error` are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_verify_residency(
    model: *const kigo_model,
    device_bytes: *mut i64,
    host_bytes: *mut i64,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `device_bytes` is NULL or valid for writing by this function's contract.
        let on_device = unsafe { Out::new(device_bytes, "device_bytes") }?;
        // SAFETY: so is `host_bytes`.
        let on_host = unsafe { Out::new(host_bytes, "host_bytes") }?;
        let found = engine(model)?.memory().residency()?;
        on_device.write(as_i64(found.device_bytes));
        on_host.write(as_i64(found.host_bytes));
        Ok(0)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Frees what inferences have left for others that begin with the same tokens; see the option "prompt_cache_mib". It is
/// freed with the model in any case, and makes room by itself when an inference of the model needs memory.
///
/// @param model  The model.
/// @param error  Where an error is written on failure, or NULL.
/// @returns KIGO_OK.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time. It waits for the step that is being computed.
///
/// # Safety
/// `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_clear_prompt_cache(model: *mut kigo_model, error: *mut *mut kigo_error) -> i32 {
    let body = || {
        engine(model)?.clear_prompt_cache()?;
        Ok(0)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

fn as_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
