//! The statuses as C sees them: names, and what a caller may do about each.

use crate::Status;
use std::ffi::{CStr, c_char};

/// Name of a status and the two lines that the header has on it: what it means, and what to do next.
pub(super) fn row(status: Status) -> (&'static CStr, &'static str, &'static str) {
    match status {
        Status::Ok => (c"KIGO_OK", "The call did what it says.", "Go on."),
        Status::InvalidArgument => (
            c"KIGO_INVALID_ARGUMENT",
            "An argument or option value is NULL or outside its range.",
            "Correct the call; the message names the argument and its range.",
        ),
        Status::InvalidHandle => (
            c"KIGO_INVALID_HANDLE",
            "A handle is NULL, was freed, was made up or is of another kind.",
            "Correct the program; the handle was not followed and no harm was done.",
        ),
        Status::InvalidUtf8 => (
            c"KIGO_INVALID_UTF8",
            "A text argument is not UTF-8.",
            "Convert the text; the message names the first wrong byte.",
        ),
        Status::BufferTooSmall => (
            c"KIGO_BUFFER_TOO_SMALL",
            "The buffer cannot hold the answer; nothing was written and nothing is lost.",
            "Call again with a larger buffer: the same answer comes.",
        ),
        Status::Busy => (
            c"KIGO_BUSY",
            "Another thread is inside a call on this inference.",
            "Use an inference from one thread at a time; the other call goes on.",
        ),
        Status::Cancelled => (
            c"KIGO_CANCELLED",
            "The inference or the load was cancelled, or freed while this call was running.",
            "Free it; an inference may also go on with kigo_inference_append() or kigo_inference_rewind().",
        ),
        Status::OutOfMemory => (
            c"KIGO_OUT_OF_MEMORY",
            "Memory could not be had; nothing changed.",
            "Free something, or use a smaller model or n_ctx, and try again.",
        ),
        Status::Limit => (
            c"KIGO_LIMIT",
            "A limit of the library was reached; nothing changed.",
            "Free handles that are no longer used, or ask for less; the message names the limit.",
        ),
        Status::Internal => (
            c"KIGO_INTERNAL",
            "A defect in kigo was caught before it could do harm.",
            "Report the message. An inference that returns it returns it for ever; other handles still work.",
        ),
        Status::Forked => (
            c"KIGO_FORKED",
            "The process was forked after the library was first used.",
            "Use the library in the parent only, or first after fork(), or call exec().",
        ),
        Status::UnknownOption => (
            c"KIGO_UNKNOWN_OPTION",
            "No option has this key; nothing was set.",
            "Correct the key; the message names the nearest one.",
        ),
        Status::Finished => (
            c"KIGO_FINISHED",
            "The generation has ended; nothing is wrong. Only kigo_next_token() returns it.",
            "Ask kigo_inference_finish_reason() why; then free the inference, or go on by kigo_inference_append().",
        ),
        Status::NotFound => (
            c"KIGO_NOT_FOUND",
            "The model has no metadata or special token of this name; nothing is wrong.",
            "Go on without it.",
        ),
        Status::AbiMismatch => (
            c"KIGO_ABI_MISMATCH",
            "The library that was loaded does not serve programs built with this header.",
            "Use the library that the program was built for, or a later version of it; the message has both versions.",
        ),
        Status::Io => (
            c"KIGO_IO",
            "A file cannot be opened or read.",
            "Check the path and its permissions; the message has the system's reason.",
        ),
        Status::NotGguf => (c"KIGO_NOT_GGUF", "The file is not GGUF.", "Check that the path is that of a model."),
        Status::Truncated => {
            (c"KIGO_TRUNCATED", "The file ends before its contents do.", "Fetch the file again; it is not complete.")
        }
        Status::UnsupportedVersion => (
            c"KIGO_UNSUPPORTED_VERSION",
            "The GGUF version of the file is not supported.",
            "Convert the file to a version that the message names.",
        ),
        Status::BadFile => (
            c"KIGO_BAD_FILE",
            "A field of the file is missing or makes no sense.",
            "Fetch or convert the file again; the message names the field.",
        ),
        Status::UnsupportedArchitecture => (
            c"KIGO_UNSUPPORTED_ARCHITECTURE",
            "The model's architecture is not supported.",
            "Use one of those that the message lists.",
        ),
        Status::UnsupportedType => (
            c"KIGO_UNSUPPORTED_TYPE",
            "The type of a tensor or of a metadata value of the file is not supported.",
            "Use a file quantised to one of the types that the message lists.",
        ),
        Status::UnsupportedTokenizer => (
            c"KIGO_UNSUPPORTED_TOKENIZER",
            "The tokenizer or pre-tokenizer of the file is not supported.",
            "Use a model with one of those that the message lists.",
        ),
        Status::BadTemplate => (
            c"KIGO_BAD_TEMPLATE",
            "The chat template of the model is missing or failed to render.",
            "Render the prompt in the host and use the prompt_format \"text\".",
        ),
        Status::BadState => (
            c"KIGO_BAD_STATE",
            "A saved state is damaged, or is that of another model, device or version.",
            "Start the inference anew; the message says what differs.",
        ),
        Status::PromptTooLong => (
            c"KIGO_PROMPT_TOO_LONG",
            "The prompt does not fit into the context.",
            "Shorten it or load the model with a larger n_ctx; the message has both numbers.",
        ),
        Status::EmptyPrompt => (
            c"KIGO_EMPTY_PROMPT",
            "The prompt holds no token, and the model adds none.",
            "Give at least one character or token.",
        ),
        Status::ContextFull => (
            c"KIGO_CONTEXT_FULL",
            "The context is full; no further token can be generated.",
            "Free the inference, or shorten it by kigo_inference_rewind(); start another with a larger n_ctx.",
        ),
        Status::Numeric => (
            c"KIGO_NUMERIC",
            "The model produced numbers that are not finite.",
            "Free the inference; the model file is damaged or its arithmetic overflows.",
        ),
        Status::NoCandidate => (
            c"KIGO_NO_CANDIDATE",
            "Every token is banned by logit_bias or the grammar, so that none can be drawn.",
            "Free the inference; start another that bans fewer tokens.",
        ),
        Status::BadGrammar => (
            c"KIGO_BAD_GRAMMAR",
            "A JSON schema, regular expression or grammar is not one, or takes too much memory or time.",
            "Correct or simplify what the option that the message names holds.",
        ),
        Status::NoBackend => (
            c"KIGO_NO_BACKEND",
            "This build has no backend for the device asked for.",
            "Set the option device to one that the message lists.",
        ),
        Status::NoDriver => (
            c"KIGO_NO_DRIVER",
            "There is no NVIDIA driver on this machine.",
            "Install the driver, or set the option device to \"cpu\".",
        ),
        Status::NoDevice => (
            c"KIGO_NO_DEVICE",
            "There is no GPU of this number, or none that this process may see.",
            "Set the option device to a GPU that exists; the message says how many there are.",
        ),
        Status::DriverTooOld => (
            c"KIGO_DRIVER_TOO_OLD",
            "The NVIDIA driver is too old for this build, or does not fit the system's kernel module.",
            "Update the driver; the message has both versions.",
        ),
        Status::UnsupportedGpu => (
            c"KIGO_UNSUPPORTED_GPU",
            "This build has no code for the architecture of the GPU.",
            "Use another GPU, or build kigo for this one; the message names the architecture.",
        ),
        Status::DeviceLost => (
            c"KIGO_DEVICE_LOST",
            "The GPU failed in a way that this process cannot recover from; every later call says the same.",
            "Free the handles, which works, and restart the process to use this GPU again.",
        ),
        Status::DeviceError => (
            c"KIGO_DEVICE_ERROR",
            "The NVIDIA driver refused a call; what it was made for did not happen.",
            "Try again or report the message, which has the call and the driver's number.",
        ),
    }
}

/// The name of a status, such as "KIGO_OUT_OF_MEMORY".
///
/// @param status  A number that a function of this library returned.
/// @returns A text that stays valid for ever; do not free it. "KIGO_OK" for 0, and "unknown status" for a number
///   that is no status. Never NULL.
///
/// Any thread may call it at any time, also in a forked child.
#[unsafe(no_mangle)]
pub extern "C" fn kigo_status_name(status: i32) -> *const c_char {
    match Status::ALL.iter().find(|known| **known as i32 == status) {
        Some(known) => row(*known).0.as_ptr(),
        None => c"unknown status".as_ptr(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_table() {
        for status in Status::ALL {
            // SAFETY: the function returns a NUL-terminated text that lives for ever.
            let name = unsafe { CStr::from_ptr(kigo_status_name(*status as i32)) };
            assert_eq!(name.to_str().unwrap(), format!("KIGO_{}", status.name()));
        }
        for unknown in [1, -1000, i32::MIN, i32::MAX] {
            // SAFETY: as above.
            let name = unsafe { CStr::from_ptr(kigo_status_name(unknown)) };
            assert_eq!(name, c"unknown status");
        }
    }
}
