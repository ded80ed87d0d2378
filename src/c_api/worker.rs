//! The worker functions: a second, smaller face of kigo.
//!
//! A worker that was written against these functions and another library links kigo unchanged. `kigo.h` has more to
//! say and to set; both may be used in one process.
//!
//! ## Answers
//!
//! A function that can fail writes a code of worker_errors.h to `*error_code`: CUDA_SUCCESS, or why it returned NULL or
//! false. Other outputs are written on success only. A function whose `error_code` is NULL does nothing and returns NULL
//! or false.
//!
//! ## Handles
//!
//! `CudaContext *`, `CudaModel *` and `InferenceResult *` are handles: numbers that stand for nothing in memory. Each is
//! yours until you free it with the function of its kind. A NULL, freed or made-up handle, or one of another kind, is
//! answered with CUDA_ERROR_INVALID_PARAMETER, or with 0, and does no harm. Freeing NULL does nothing. Things may be
//! freed in any order: a model works without its context, and an inference without its model.
//!
//! ## Threads
//!
//! Every function may be called from any thread. Inferences of one model run side by side. An inference generates for
//! one thread at a time; a second one gets CUDA_ERROR_INVALID_PARAMETER and does no harm. After fork(), the child of a
//! process that used kigo gets CUDA_ERROR_UNKNOWN.
//!
//! ## Environment
//!
//! cuda_init() reads these variables; a value that makes no sense is CUDA_ERROR_INVALID_PARAMETER. An empty one counts
//! as not set.
//!
//!   KIGO_DEVICE: "cuda", which is the default, or "cpu". With "cpu" the CPU is device 0 and the only one, and memory
//!   of the GPU means memory of the model. Nothing else makes a worker run on the CPU.
//!
//!   KIGO_WORKER_TEMPLATE: "1", which is the default, or "0". With "1", a prompt that holds no control token of the
//!   model is put into the model's chat template as one message of a user, if the model has a template. With "0" it is
//!   a text that the model goes on from.
//!
//!   KIGO_WORKER_TOP_K, KIGO_WORKER_N_CTX and the like: the value of the option of `kigo.h` whose key, in capitals, the
//!   name ends with, for all models and inferences of the context. Without it the option has the default that `kigo.h`
//!   names. The options device, prompt_format, max_tokens, temperature and seed come from the calls.
//!
//! Control tokens that a prompt spells out are control tokens, with either template setting: a worker whose prompts come
//! from strangers must take them out first, or use `kigo.h`, in which text never becomes a control token.

mod codes;
mod environment;
mod stream;

pub use codes::cuda_error_message;
pub use stream::{InferenceResult, cuda_inference_free, cuda_inference_next_token, cuda_inference_start};

pub(super) use codes::CODES;

use super::boundary::{Out, free, guarded, handle, path, pointer};
use super::error::Failure;
use super::handle::{Kind, MAX_HANDLES, Table};
use crate::backend::{Purpose, check_gpu, gpus};
use crate::engine::{Engine, LoadOptions};
use crate::error::try_vec;
use crate::{Error, Result, Status};
use codes::{DEVICE_NOT_FOUND, INVALID_DEVICE, SUCCESS, VRAM_RESIDENCY_FAILED, code};
use environment::Environment;
use std::ffi::{c_char, c_int};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A device and the settings that the environment had when it was opened.
pub struct CudaContext {
    _private: [u8; 0],
}

/// A loaded model.
pub struct CudaModel {
    _private: [u8; 0],
}

/// What a CudaContext handle stands for.
struct Context {
    /// The name of the device: `cpu` or `cuda:N`.
    device: String,
    /// The GPU; None is the CPU.
    gpu: Option<u32>,
    environment: Environment,
}

/// What a CudaModel handle stands for.
struct Model {
    engine: Arc<Engine>,
    context: Arc<Context>,
    /// Bytes that it held when it was loaded.
    loaded_bytes: u64,
}

static CONTEXTS: Table<Context> = Table::new(Kind::WorkerContext, MAX_HANDLES);
static MODELS: Table<Model> = Table::new(Kind::WorkerModel, MAX_HANDLES);

/// Every model that was loaded here and still holds memory, with or without a handle.
static ENGINES: Mutex<Vec<Weak<Engine>>> = Mutex::new(Vec::new());

fn engines() -> MutexGuard<'static, Vec<Weak<Engine>>> {
    ENGINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that a model and its inferences hold on their device at the moment.
fn bytes_now(engine: &Engine) -> u64 {
    Purpose::ALL.into_iter().map(|purpose| engine.memory().bytes(purpose)).sum()
}

/// Runs the body of a function that ends with `int *error_code`, and writes the code; `failed` is its answer where
/// there is none. `coded` may change the code of a failure.
///
/// # Safety
/// `error_code` is NULL or valid for writing one integer.
unsafe fn answer<T>(
    error_code: *mut c_int,
    failed: T,
    coded: impl FnOnce(c_int, Status) -> c_int,
    body: impl FnOnce() -> std::result::Result<T, Failure>,
) -> T {
    // SAFETY: `error_code` is NULL or valid for writing by this function's contract.
    let Ok(out) = (unsafe { Out::new(error_code, "error_code") }) else {
        return failed;
    };
    let mut given = None;
    let outcome = guarded(|| {
        given = Some(body()?);
        Ok(0)
    });
    out.write(match outcome {
        Ok(_) => SUCCESS,
        Err(failure) => coded(code(failure.status), failure.status),
    });
    given.unwrap_or(failed)
}

/// The code that the status has by itself.
fn plain(code: c_int, _: Status) -> c_int {
    code
}

/// The number that `body` finds; 0 if it fails.
fn number(body: impl FnOnce() -> Result<u64>) -> u64 {
    let mut found = 0;
    let outcome = guarded(|| {
        found = body()?;
        Ok(0)
    });
    if outcome.is_ok() { found } else { 0 }
}

/// Opens a device: looks whether models can run on it, and reads the environment.
///
/// @param gpu_device  The number of the GPU, from 0 to cuda_get_device_count() - 1.
/// @param error_code  Where the code is written.
/// @returns The context, which cuda_destroy() frees; or NULL.
///   - CUDA_ERROR_DEVICE_NOT_FOUND: there is no GPU, no driver that fits, or this build is for the CPU only.
///   - CUDA_ERROR_INVALID_DEVICE: there is no GPU of this number, or this build has no code for it.
///   - CUDA_ERROR_INVALID_PARAMETER: a variable of the environment makes no sense, or `error_code` is NULL.
///   - CUDA_ERROR_KERNEL_LAUNCH_FAILED: the driver or the GPU failed.
///   - CUDA_ERROR_OUT_OF_MEMORY: there are too many live handles.
///
/// # Safety
/// `error_code` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_init(gpu_device: c_int, error_code: *mut c_int) -> *mut CudaContext {
    // Without any GPU, that of this number is not invalid but missing.
    let coded = |code, _| if code == INVALID_DEVICE && count() == 0 { DEVICE_NOT_FOUND } else { code };
    let body = || {
        let environment = Environment::read()?;
        let none = |found| Error::NoDevice { device: format!("device {gpu_device}"), found, note: String::new() };
        let number = u32::try_from(gpu_device).map_err(|_| none(count()))?;
        let (device, gpu) = match number {
            0 if environment.cpu => ("cpu".to_owned(), None),
            _ if environment.cpu => return Err(none(1).into()),
            _ => (format!("cuda:{number}"), Some(number)),
        };
        gpu.map_or(Ok(()), check_gpu)?;
        Ok(pointer(CONTEXTS.insert(Context { device, gpu, environment })?))
    };
    // SAFETY: `error_code` is NULL or valid for writing by this function's contract.
    unsafe { answer(error_code, std::ptr::null_mut(), coded, body) }
}

/// Frees a context. Its models go on.
///
/// @param ctx  The context, or NULL.
#[unsafe(no_mangle)]
pub extern "C" fn cuda_destroy(ctx: *mut CudaContext) {
    free(&CONTEXTS, handle(ctx), "ctx", |_| ());
}

/// How many devices there are.
///
/// @returns The number of GPUs, 0 if they cannot be counted; 1 if KIGO_DEVICE is "cpu".
#[unsafe(no_mangle)]
pub extern "C" fn cuda_get_device_count() -> c_int {
    c_int::try_from(count()).unwrap_or(c_int::MAX)
}

fn count() -> u32 {
    let count = number(|| if Environment::read()?.cpu { Ok(1) } else { gpus().map(u64::from) });
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Loads a model from a GGUF file into the memory of the GPU.
///
/// @param ctx              The context.
/// @param model_path       The file, or the first of a split one.
/// @param vram_bytes_used  Where the bytes are written that the model holds.
/// @param error_code       Where the code is written.
/// @returns The model, which cuda_unload_model() frees; or NULL.
///   - CUDA_ERROR_MODEL_LOAD_FAILED: the file cannot be read, is no valid GGUF file, or needs something that this version
///     does not have.
///   - CUDA_ERROR_OUT_OF_MEMORY: there is too little memory, or there are too many live handles.
///   - CUDA_ERROR_KERNEL_LAUNCH_FAILED: the driver or the GPU failed.
///   - CUDA_ERROR_INVALID_PARAMETER: a pointer is NULL, or `ctx` is not live.
///
/// # Safety
/// `model_path` is NULL or NUL-terminated; `vram_bytes_used` and `error_code` are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_load_model(
    ctx: *mut CudaContext,
    model_path: *const c_char,
    vram_bytes_used: *mut u64,
    error_code: *mut c_int,
) -> *mut CudaModel {
    let body = || {
        let context = CONTEXTS.get(handle(ctx), "ctx")?;
        // SAFETY: `model_path` is NULL or NUL-terminated by this function's contract.
        let path = unsafe { path(model_path, "model_path") }?;
        // SAFETY: `vram_bytes_used` is NULL or valid for writing by this function's contract.
        let out = unsafe { Out::new(vram_bytes_used, "vram_bytes_used") }?;
        let options = LoadOptions { device: context.device.clone(), ..context.environment.settings().load };
        let engine = Engine::load(&path, &options)?;
        remember(&engine)?;
        let loaded_bytes = bytes_now(&engine);
        let model = pointer(MODELS.insert(Model { engine, context, loaded_bytes })?);
        out.write(loaded_bytes);
        Ok(model)
    };
    // SAFETY: `error_code` is NULL or valid for writing by this function's contract.
    unsafe { answer(error_code, std::ptr::null_mut(), plain, body) }
}

/// Puts an engine on the list of those that hold memory.
fn remember(engine: &Arc<Engine>) -> Result<()> {
    let mut engines = engines();
    engines.retain(|engine| engine.strong_count() > 0);
    let bytes = size_of::<Weak<Engine>>() as u64;
    engines.try_reserve(1).map_err(|_| Error::OutOfMemory { what: "a handle".to_owned(), bytes })?;
    engines.push(Arc::downgrade(engine));
    Ok(())
}

/// Frees a model. Its inferences go on: the memory is given back when the last of them is freed.
///
/// @param model  The model, or NULL.
#[unsafe(no_mangle)]
pub extern "C" fn cuda_unload_model(model: *mut CudaModel) {
    free(&MODELS, handle(model), "model", |_| ());
}

/// How much memory of the GPU a model took when it was loaded.
///
/// @param model  The model.
/// @returns The bytes that cuda_load_model() told; 0 if the model is not live.
#[unsafe(no_mangle)]
pub extern "C" fn cuda_model_get_vram_usage(model: *mut CudaModel) -> u64 {
    number(|| Ok(MODELS.get(handle(model), "model")?.loaded_bytes))
}

/// Asks the driver where every allocation of a model is.
///
/// @param model       The model.
/// @param error_code  Where the code is written.
/// @returns Whether all of it is in the memory of its GPU, and of no other kind; of a model on the CPU, true.
///   - CUDA_ERROR_VRAM_RESIDENCY_FAILED: something is elsewhere.
///   - CUDA_ERROR_KERNEL_LAUNCH_FAILED: the driver cannot be asked.
///   - CUDA_ERROR_INVALID_PARAMETER: `model` is not live, or `error_code` is NULL.
///
/// # Safety
/// `error_code` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_check_vram_residency(model: *mut CudaModel, error_code: *mut c_int) -> bool {
    let elsewhere = |code: c_int, status: Status| if status == Status::Internal { VRAM_RESIDENCY_FAILED } else { code };
    let body = || {
        MODELS.get(handle(model), "model")?.engine.memory().residency()?;
        Ok(true)
    };
    // SAFETY: `error_code` is NULL or valid for writing by this function's contract.
    unsafe { answer(error_code, false, elsewhere, body) }
}

/// How much memory of the GPU a model and its inferences hold at the moment.
///
/// @param model  The model.
/// @returns The bytes; 0 if the model is not live.
#[unsafe(no_mangle)]
pub extern "C" fn cuda_get_vram_usage(model: *mut CudaModel) -> u64 {
    number(|| Ok(bytes_now(&MODELS.get(handle(model), "model")?.engine)))
}

/// How much memory of the GPU all models of this process hold at the moment that were loaded with cuda_load_model() on
/// the device of the context, and their inferences.
///
/// @param ctx  The context.
/// @returns The bytes; 0 if the context is not live.
#[unsafe(no_mangle)]
pub extern "C" fn cuda_get_process_vram_usage(ctx: *mut CudaContext) -> u64 {
    number(|| {
        let context = CONTEXTS.get(handle(ctx), "ctx")?;
        // Collected first: the last owner of an engine must not drop it while the list is locked.
        let live = {
            let engines = engines();
            let mut live = try_vec(engines.len(), "the models of the process")?;
            live.extend(engines.iter().filter_map(Weak::upgrade));
            live
        };
        Ok(live.iter().filter(|engine| engine.device() == context.device).map(|engine| bytes_now(engine)).sum())
    })
}

/// Looks whether models can still run on the device of a context.
///
/// @param ctx         The context.
/// @param error_code  Where the code is written.
/// @returns Whether they can; on the CPU, true.
///   - CUDA_ERROR_KERNEL_LAUNCH_FAILED: the GPU failed in a way that this process cannot recover from.
///   - CUDA_ERROR_INVALID_DEVICE, CUDA_ERROR_DEVICE_NOT_FOUND: it is not there any more.
///   - CUDA_ERROR_INVALID_PARAMETER: `ctx` is not live, or `error_code` is NULL.
///
/// # Safety
/// `error_code` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_check_device_health(ctx: *mut CudaContext, error_code: *mut c_int) -> bool {
    let body = || {
        if let Some(gpu) = CONTEXTS.get(handle(ctx), "ctx")?.gpu {
            check_gpu(gpu)?;
        }
        Ok(true)
    };
    // SAFETY: `error_code` is NULL or valid for writing by this function's contract.
    unsafe { answer(error_code, false, plain, body) }
}
