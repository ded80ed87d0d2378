//! The C functions as a host calls them, with what each must keep to checked at every call.

#![allow(unsafe_code, reason = "the C functions take raw pointers")]
#![allow(dead_code, reason = "each test binary uses what it needs")]

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{null, null_mut};

use kigo::Status;
use kigo::c_api::*;

/// What C holds as a pointer. As a number it can go to other threads, and be wrong.
pub type Handle = usize;

/// The answer of a call, or its status.
pub type Answer<T> = Result<T, Status>;

/// What an option is set to.
pub enum Setting<'a> {
    Text(&'a [u8]),
    Integer(i64),
    Number(f64),
}

/// Makes a call, and checks that an error object comes if and only if it fails, with its status and a text.
fn call(body: impl FnOnce(*mut *mut kigo_error) -> i32) -> Answer<i32> {
    let mut error = null_mut();
    let answer = body(&raw mut error);
    if answer >= 0 {
        assert!(error.is_null());
        return Ok(answer);
    }
    assert_eq!(kigo_error_status(error), answer);
    // SAFETY: the text lives until the error is freed, below.
    let message = unsafe { CStr::from_ptr(kigo_error_message(error)) };
    assert!(!message.is_empty() && message.count_bytes() < 512);
    assert_eq!(kigo_error_free(error), 0);
    Err(status(answer))
}

fn status(number: i32) -> Status {
    *Status::ALL.iter().find(|status| **status as i32 == number).unwrap()
}

/// Ok, or the status of a function that gives no error object.
fn plain(answer: i32) -> Answer<i32> {
    if answer < 0 { Err(status(answer)) } else { Ok(answer) }
}

/// A new handle, which a failed call must not have written.
fn made<T>(body: impl FnOnce(*mut *mut T, *mut *mut kigo_error) -> i32) -> Answer<Handle> {
    let mut out = null_mut();
    let answer = call(|error| body(&raw mut out, error));
    assert_eq!(answer.is_err(), out.is_null());
    answer.map(|_| out as Handle)
}

pub fn options_new() -> Handle {
    // SAFETY: both places are locals.
    made(|out, error| unsafe { kigo_options_new(out, error) }).unwrap()
}

pub fn options_set(options: Handle, key: &[u8], setting: Setting) -> Answer<i32> {
    let (options, key) = (options as *mut kigo_options, CString::new(key).unwrap());
    call(|error| match setting {
        Setting::Text(text) => {
            let text = CString::new(text).unwrap();
            // SAFETY: the texts end with a NUL and outlive the call; the place for the error is a local.
            unsafe { kigo_options_set_str(options, key.as_ptr(), text.as_ptr(), error) }
        }
        // SAFETY: the key ends with a NUL and outlives the call; the place for the error is a local.
        Setting::Integer(value) => unsafe { kigo_options_set_i64(options, key.as_ptr(), value, error) },
        // SAFETY: as above.
        Setting::Number(value) => unsafe { kigo_options_set_f64(options, key.as_ptr(), value, error) },
    })
}

/// Has loads with `options` tell a host that answers `answer`.
pub fn options_tell(options: Handle, answer: i32) -> Answer<i32> {
    unsafe extern "C" fn tell(user_data: *mut c_void, done: i64, total: i64) -> i32 {
        assert!((0..=total).contains(&done));
        user_data.addr() as i32
    }
    let user_data = std::ptr::without_provenance_mut(answer as usize);
    // SAFETY: the function follows no pointer; the place for the error is a local.
    call(|error| unsafe { kigo_options_set_progress(options as *mut _, Some(tell), user_data, error) })
}

/// Options that load on the CPU and take the most likely token, with some more settings.
pub fn options(settings: &[(&str, Setting)]) -> Handle {
    let options = options_new();
    options_set(options, b"device", Setting::Text(b"cpu")).unwrap();
    options_set(options, b"n_threads", Setting::Integer(2)).unwrap();
    options_set(options, b"temperature", Setting::Number(0.0)).unwrap();
    for (key, setting) in settings {
        let setting = match setting {
            Setting::Text(text) => Setting::Text(text),
            Setting::Integer(value) => Setting::Integer(*value),
            Setting::Number(value) => Setting::Number(*value),
        };
        options_set(options, key.as_bytes(), setting).unwrap();
    }
    options
}

/// What a load on the GPU 999, which no machine has, comes to here: there may be no driver, or not even a backend.
pub fn missing_gpu() -> Status {
    kigo::backend::check_gpu(999).unwrap_err().status()
}

pub fn options_free(options: Handle) -> Answer<i32> {
    plain(kigo_options_free(options as *mut _))
}

pub fn load(path: &Path, options: Handle) -> Answer<Handle> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path ends with a NUL and outlives the call; the places are locals.
    made(|out, error| unsafe { kigo_model_load(path.as_ptr(), options as *const _, out, error) })
}

pub fn load_start(path: &Path, options: Handle) -> Answer<Handle> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path ends with a NUL and outlives the call; the places are locals.
    made(|out, error| unsafe { kigo_load_start(path.as_ptr(), options as *const _, out, error) })
}

/// Bytes that are read and bytes of all, and whether the load runs.
pub fn load_progress(load: Handle) -> Answer<(i64, i64, bool)> {
    let (mut done, mut total) = (0, 0);
    // SAFETY: the places are locals.
    let running = call(|error| unsafe { kigo_load_progress(load as *const _, &raw mut done, &raw mut total, error) })?;
    Ok((done, total, running == 1))
}

pub fn load_cancel(load: Handle) -> Answer<i32> {
    plain(kigo_load_cancel(load as *mut _))
}

pub fn load_finish(load: Handle) -> Answer<Handle> {
    // SAFETY: the places are locals.
    made(|out, error| unsafe { kigo_load_finish(load as *mut _, out, error) })
}

pub fn load_free(load: Handle) -> Answer<i32> {
    plain(kigo_load_free(load as *mut _))
}

pub fn model_free(model: Handle) -> Answer<i32> {
    plain(kigo_model_free(model as *mut _))
}

pub fn start(model: Handle, prompt: &[u8], options: Handle) -> Answer<Handle> {
    let (model, options) = (model as *const kigo_model, options as *const kigo_options);
    // SAFETY: the prompt is readable for its length and outlives the call; the places are locals.
    made(|out, error| unsafe { kigo_inference_start(model, prompt.as_ptr().cast(), prompt.len(), options, out, error) })
}

pub fn start_tokens(model: Handle, tokens: &[i32], options: Handle) -> Answer<Handle> {
    let (model, options) = (model as *const kigo_model, options as *const kigo_options);
    // SAFETY: the tokens are readable for their number and outlive the call; the places are locals.
    made(|out, error| unsafe { kigo_inference_start_tokens(model, tokens.as_ptr(), tokens.len(), options, out, error) })
}

pub fn next_text(inference: Handle, buffer: &mut [u8]) -> Answer<i32> {
    let text = if buffer.is_empty() { null_mut() } else { buffer.as_mut_ptr().cast::<c_char>() };
    // SAFETY: the buffer is valid for writing its length; the place for the error is a local.
    call(|error| unsafe { kigo_next_text(inference as *mut _, text, buffer.len(), error) })
}

pub fn next_token(inference: Handle, buffer: &mut [u8]) -> Answer<i32> {
    let mut token = 0;
    // SAFETY: the buffer is valid for writing its length; the place for the token is a local.
    plain(unsafe { kigo_next_token(inference as *mut _, &raw mut token, buffer.as_mut_ptr().cast(), buffer.len()) })
}

/// All the text that is left.
pub fn text(inference: Handle) -> Answer<String> {
    let (mut all, mut buffer) = (String::new(), [0; 512]);
    loop {
        match next_text(inference, &mut buffer)? {
            0 => return Ok(all),
            n => all.push_str(std::str::from_utf8(&buffer[..n as usize]).unwrap()),
        }
    }
}

pub fn last_error(inference: Handle) -> Answer<i32> {
    // SAFETY: the place for the error is a local.
    call(|error| unsafe { kigo_inference_last_error(inference as *const _, error) })
}

pub fn count(inference: Handle, key: &CStr) -> Answer<i64> {
    let mut value = 0;
    // SAFETY: the key ends with a NUL; the places are locals.
    call(|error| unsafe { kigo_inference_get_i64(inference as *const _, key.as_ptr(), &raw mut value, error) })?;
    Ok(value)
}

pub fn model_count(model: Handle, key: &CStr) -> Answer<i64> {
    let mut value = 0;
    // SAFETY: the key ends with a NUL; the places are locals.
    call(|error| unsafe { kigo_model_get_i64(model as *const _, key.as_ptr(), &raw mut value, error) })?;
    Ok(value)
}

/// The length of a text that a model knows, asked without a buffer.
pub fn model_text_size(model: Handle, key: &CStr) -> Answer<i32> {
    // SAFETY: the key ends with a NUL; a buffer of no bytes may be NULL; the place for the error is a local.
    call(|error| unsafe { kigo_model_get_str(model as *const _, key.as_ptr(), null_mut(), 0, error) })
}

pub fn rewind(inference: Handle, n_tokens: usize) -> Answer<i32> {
    // SAFETY: the place for the error is a local.
    call(|error| unsafe { kigo_inference_rewind(inference as *mut _, n_tokens, error) })
}

pub fn fork(inference: Handle, options: Handle) -> Answer<Handle> {
    // SAFETY: the places are locals.
    made(|out, error| unsafe { kigo_inference_fork(inference as *const _, options as *const _, out, error) })
}

pub fn append(inference: Handle, prompt: &[u8]) -> Answer<i32> {
    let inference = inference as *mut kigo_inference;
    // SAFETY: the prompt is readable for its length and outlives the call; the place for the error is a local.
    call(|error| unsafe { kigo_inference_append(inference, prompt.as_ptr().cast(), prompt.len(), error) })
}

pub fn save(inference: Handle, file: &Path) -> Answer<i32> {
    let file = CString::new(file.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path ends with a NUL and outlives the call; the place for the error is a local.
    call(|error| unsafe { kigo_inference_save(inference as *const _, file.as_ptr(), error) })
}

pub fn load_state(model: Handle, file: &Path, options: Handle) -> Answer<Handle> {
    let file = CString::new(file.as_os_str().as_bytes()).unwrap();
    let (model, options) = (model as *const kigo_model, options as *const kigo_options);
    // SAFETY: the path ends with a NUL and outlives the call; the places are locals.
    made(|out, error| unsafe { kigo_inference_load(model, file.as_ptr(), options, out, error) })
}

pub fn clear_prompt_cache(model: Handle) -> Answer<i32> {
    // SAFETY: the place for the error is a local.
    call(|error| unsafe { kigo_model_clear_prompt_cache(model as *mut _, error) })
}

pub fn cancel(inference: Handle) -> Answer<i32> {
    plain(kigo_inference_cancel(inference as *mut _))
}

pub fn inference_free(inference: Handle) -> Answer<i32> {
    plain(kigo_inference_free(inference as *mut _))
}

/// Checks what each function says to NULL where it takes none.
pub fn null_arguments(model: Handle, inference: Handle) {
    let invalid = Err(Status::InvalidArgument);
    #[allow(clippy::multiple_unsafe_ops_per_block, reason = "one reason holds for all")]
    // SAFETY: NULL is allowed everywhere, and answered.
    let answers = unsafe {
        [
            call(|error| kigo_options_new(null_mut(), error)),
            call(|error| kigo_model_load(null(), null(), null_mut(), error)),
            call(|error| kigo_inference_start(model as *const _, null(), 5, null(), null_mut(), error)),
            call(|error| kigo_inference_start_tokens(model as *const _, null(), 5, null(), null_mut(), error)),
            call(|error| kigo_next_text(inference as *mut _, null_mut(), 5, error)),
            plain(kigo_next_token(inference as *mut _, null_mut(), null_mut(), 0)),
            call(|error| kigo_model_get_i64(model as *const _, null(), null_mut(), error)),
            call(|error| kigo_inference_get_f64(inference as *const _, null(), null_mut(), error)),
        ]
    };
    assert_eq!(answers, [invalid; 8]);
}

/// Has `n` error objects live at once.
pub fn live_errors(n: usize) {
    let failed = |_| {
        let mut error = null_mut();
        // SAFETY: NULL is answered with an error, whose place is a local.
        unsafe { kigo_options_new(null_mut(), &raw mut error) };
        error
    };
    let errors: Vec<*mut kigo_error> = (0..n).map(failed).collect();
    errors.into_iter().for_each(|error| assert_eq!(kigo_error_free(error), 0));
}
