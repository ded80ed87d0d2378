//! The error codes of the worker functions: numbers, texts, and which status becomes which.

use crate::Status;
use std::ffi::{CStr, c_char, c_int};

/// Name in C, number, text.
pub(in crate::c_api) static CODES: [(&str, c_int, &CStr); 10] = [
    ("CUDA_SUCCESS", SUCCESS, c"success"),
    ("CUDA_ERROR_INVALID_DEVICE", INVALID_DEVICE, c"invalid device: there is no GPU of this number that can be used"),
    ("CUDA_ERROR_OUT_OF_MEMORY", OUT_OF_MEMORY, c"out of memory: free something, or use a smaller model or context"),
    (
        "CUDA_ERROR_MODEL_LOAD_FAILED",
        MODEL_LOAD_FAILED,
        c"model load failed: the file cannot be read, is no valid GGUF file, or needs what this version does not have",
    ),
    (
        "CUDA_ERROR_INFERENCE_FAILED",
        INFERENCE_FAILED,
        c"inference failed: the context is full, the chat template does not render, or the numbers are not finite",
    ),
    (
        "CUDA_ERROR_INVALID_PARAMETER",
        INVALID_PARAMETER,
        c"invalid parameter: a pointer is NULL, a handle is not live, or a value is outside its range",
    ),
    ("CUDA_ERROR_KERNEL_LAUNCH_FAILED", KERNEL_LAUNCH_FAILED, c"kernel launch failed: the driver or the GPU failed"),
    (
        "CUDA_ERROR_VRAM_RESIDENCY_FAILED",
        VRAM_RESIDENCY_FAILED,
        c"vram residency failed: memory of the model is not where it belongs",
    ),
    ("CUDA_ERROR_DEVICE_NOT_FOUND", DEVICE_NOT_FOUND, c"device not found: there is no GPU, or no driver that fits"),
    ("CUDA_ERROR_UNKNOWN", UNKNOWN, c"unknown error"),
];

pub(super) const SUCCESS: c_int = 0;
pub(super) const INVALID_DEVICE: c_int = 1;
const OUT_OF_MEMORY: c_int = 2;
pub(super) const MODEL_LOAD_FAILED: c_int = 3;
pub(super) const INFERENCE_FAILED: c_int = 4;
const INVALID_PARAMETER: c_int = 5;
const KERNEL_LAUNCH_FAILED: c_int = 6;
pub(super) const VRAM_RESIDENCY_FAILED: c_int = 7;
pub(super) const DEVICE_NOT_FOUND: c_int = 8;
const UNKNOWN: c_int = 99;

/// The code of a status. Statuses are numbered by what they concern, so that a later one finds its code too.
pub(super) fn code(status: Status) -> c_int {
    match status {
        Status::Ok | Status::Finished => SUCCESS,
        Status::OutOfMemory | Status::Limit => OUT_OF_MEMORY,
        Status::Cancelled => INFERENCE_FAILED,
        Status::Internal | Status::Forked => UNKNOWN,
        Status::PromptTooLong | Status::EmptyPrompt => INVALID_PARAMETER,
        Status::NoDevice | Status::UnsupportedGpu => INVALID_DEVICE,
        Status::NoBackend | Status::NoDriver | Status::DriverTooOld => DEVICE_NOT_FOUND,
        other => match (other as i32).unsigned_abs() {
            1..=19 => INVALID_PARAMETER,
            20..=39 => MODEL_LOAD_FAILED,
            40..=59 => INFERENCE_FAILED,
            60..=79 => KERNEL_LAUNCH_FAILED,
            _ => UNKNOWN,
        },
    }
}

/// What an error code means.
///
/// @param error_code  A code that one of these functions wrote.
/// @returns A line of text that stays valid for ever; do not free it. That of CUDA_ERROR_UNKNOWN for a number that is
///   no code. Never NULL.
///
/// Any thread may call it at any time, also in a forked child.
#[unsafe(no_mangle)]
pub extern "C" fn cuda_error_message(error_code: c_int) -> *const c_char {
    let known = CODES.iter().find(|(_, number, _)| *number == error_code);
    known.map_or(c"unknown error", |(_, _, text)| text).as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_a_code() {
        for status in Status::ALL {
            let code = code(*status);
            let unknown = matches!(status, Status::Internal | Status::Forked);
            assert_eq!(code == UNKNOWN, unknown, "{status:?}");
            assert!(CODES.iter().any(|(_, number, _)| *number == code));
        }
        assert_eq!(code(Status::InvalidHandle), INVALID_PARAMETER);
        assert_eq!(code(Status::Truncated), MODEL_LOAD_FAILED);
        assert_eq!(code(Status::ContextFull), INFERENCE_FAILED);
        assert_eq!(code(Status::DeviceLost), KERNEL_LAUNCH_FAILED);
    }

    #[test]
    fn messages_are_those_of_the_table() {
        for (_, number, text) in CODES {
            // SAFETY: the function returns a NUL-terminated text that lives for ever.
            assert_eq!(unsafe { CStr::from_ptr(cuda_error_message(number)) }, text);
        }
        for unknown in [-1, 9, 98, c_int::MIN, c_int::MAX] {
            // SAFETY: as above.
            assert_eq!(unsafe { CStr::from_ptr(cuda_error_message(unknown)) }, c"unknown error");
        }
    }
}
