//! The one error type. A variant holds the facts; its text says where, what was expected, what was found
//! and what to do, in one line. [`Error::status`] gives the stable number that C callers see.

use std::path::PathBuf;

/// The result of everything in kigo that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// One row per status: Rust name, number, C name, meaning.
macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Stable numbers of the outcomes; 0 is success, errors are negative, no number is ever reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum Status { $($(#[$doc])* $name = $number,)* }

        impl Status {
            /// Every status, in the order of the table.
            pub const ALL: &[Status] = &[$(Status::$name,)*];

            /// The name that the C header uses, without the `KIGO_` prefix.
            pub fn name(self) -> &'static str {
                match self { $(Status::$name => $text,)* }
            }
        }
    };
}

statuses! {
    /// The call did what it says.
    Ok = 0, "OK";
    /// An argument or option value is outside its range.
    InvalidArgument = -1, "INVALID_ARGUMENT";
    /// A handle is NULL, freed, forged or of another kind.
    InvalidHandle = -2, "INVALID_HANDLE";
    /// A text argument is not UTF-8.
    InvalidUtf8 = -3, "INVALID_UTF8";
    /// The caller's buffer is too small; nothing was lost, call again with a larger one.
    BufferTooSmall = -4, "BUFFER_TOO_SMALL";
    /// Another thread is inside a call on this handle.
    Busy = -5, "BUSY";
    /// The inference or the load was cancelled.
    Cancelled = -6, "CANCELLED";
    /// Memory could not be had; nothing changed.
    OutOfMemory = -7, "OUT_OF_MEMORY";
    /// A limit of the library was reached.
    Limit = -8, "LIMIT";
    /// A defect in kigo was caught before it could do harm.
    Internal = -9, "INTERNAL";
    /// The process was forked after the library was first used.
    Forked = -10, "FORKED";
    /// No option has this key.
    UnknownOption = -11, "UNKNOWN_OPTION";
    /// The generation has ended; nothing is wrong.
    Finished = -12, "FINISHED";
    /// The model has nothing of this name.
    NotFound = -13, "NOT_FOUND";
    /// The program was built for another binary interface, or a later version.
    AbiMismatch = -14, "ABI_MISMATCH";
    /// A file cannot be opened or read.
    Io = -20, "IO";
    /// The file is not GGUF.
    NotGguf = -21, "NOT_GGUF";
    /// The file ends before its contents do.
    Truncated = -22, "TRUNCATED";
    /// The GGUF version is not supported.
    UnsupportedVersion = -23, "UNSUPPORTED_VERSION";
    /// A field of the file is missing or makes no sense.
    BadFile = -24, "BAD_FILE";
    /// The model's architecture is not supported.
    UnsupportedArchitecture = -25, "UNSUPPORTED_ARCHITECTURE";
    /// The type of a tensor or of a metadata value is not supported.
    UnsupportedType = -26, "UNSUPPORTED_TYPE";
    /// The tokenizer or pre-tokenizer is not supported.
    UnsupportedTokenizer = -27, "UNSUPPORTED_TOKENIZER";
    /// The chat template is missing, or failed to render.
    BadTemplate = -28, "BAD_TEMPLATE";
    /// A saved state is damaged, or belongs to another model.
    BadState = -29, "BAD_STATE";
    /// The prompt does not fit into the context.
    PromptTooLong = -40, "PROMPT_TOO_LONG";
    /// The prompt holds no token.
    EmptyPrompt = -41, "EMPTY_PROMPT";
    /// The context is full; no further token can be generated.
    ContextFull = -42, "CONTEXT_FULL";
    /// The model produced numbers that are not finite.
    Numeric = -43, "NUMERIC";
    /// Every token is banned, so that none can be drawn.
    NoCandidate = -44, "NO_CANDIDATE";
    /// A grammar is not one, or too much.
    BadGrammar = -45, "BAD_GRAMMAR";
    /// This build of kigo has no backend for the device asked for.
    NoBackend = -60, "NO_BACKEND";
    /// There is no NVIDIA driver.
    NoDriver = -61, "NO_DRIVER";
    /// There is no such GPU.
    NoDevice = -62, "NO_DEVICE";
    /// The NVIDIA driver is too old.
    DriverTooOld = -63, "DRIVER_TOO_OLD";
    /// This build has no code for the GPU.
    UnsupportedGpu = -64, "UNSUPPORTED_GPU";
    /// The GPU failed and cannot be used by this process any more.
    DeviceLost = -65, "DEVICE_LOST";
    /// The NVIDIA driver refused a call.
    DeviceError = -66, "DEVICE_ERROR";
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The failure concerns this file.
    #[error("{}: {error}", shown(path))]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<Error>,
    },
    /// The system refused an operation on a file.
    #[error("cannot {operation}: {source}")]
    Io {
        /// What was tried, such as "open" or "read 512 bytes at offset 64".
        operation: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The first bytes are not those of a GGUF file.
    #[error("not a GGUF file: expected the bytes \"GGUF\" at offset 0, found {found}")]
    NotGguf {
        /// The bytes found, escaped.
        found: String,
    },
    /// The file ends too early.
    #[error(
        "truncated: {what} needs {needed} bytes at offset {offset}, the file has {available}; fetch the file again"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Where it starts, in bytes.
        offset: u64,
        /// How many bytes it needs.
        needed: u64,
        /// How many the file has from there.
        available: u64,
    },
    /// A GGUF version that kigo does not read.
    #[error("unsupported GGUF version {found}{note}; expected 2 or 3")]
    UnsupportedVersion {
        /// The number in the file.
        found: u32,
        /// A hint, such as big-endian byte order.
        note: &'static str,
    },
    /// A field of the file is missing or wrong.
    #[error("{field}: expected {expected}, found {found}")]
    BadFile {
        /// Key, tensor or place in the file.
        field: String,
        /// What would be right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// `general.architecture` names one that kigo does not know.
    #[error("general.architecture: \"{found}\" is not supported; known: {known}")]
    UnsupportedArchitecture {
        /// The name in the file.
        found: String,
        /// The names kigo knows.
        known: String,
    },
    /// A tensor has a type that kigo does not know.
    #[error("tensor {tensor}: type {found} is not supported; known: {known}")]
    UnsupportedType {
        /// The tensor.
        tensor: String,
        /// Its type, by number and name where there is one.
        found: String,
        /// The types kigo knows.
        known: String,
    },
    /// Metadata has a value of a kind that kigo does not read.
    #[error("{key}: {found} is not supported; known: numbers, booleans, strings and arrays of these")]
    UnsupportedValue {
        /// The key.
        key: String,
        /// What it holds.
        found: &'static str,
    },
    /// The tokenizer of the file is not known.
    #[error("{field}: \"{found}\" is not supported; known: {known}")]
    UnsupportedTokenizer {
        /// The key that names it.
        field: &'static str,
        /// The name in the file.
        found: String,
        /// The names kigo knows.
        known: String,
    },
    /// A saved state cannot be gone on from.
    #[error("saved state: {what}: expected {expected}, found {found}")]
    BadState {
        /// Which part of it.
        what: String,
        /// What would be right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The chat template failed.
    #[error("chat template: {0}")]
    BadTemplate(String),
    /// An argument or option value is wrong.
    #[error("{argument}: expected {expected}, found {found}")]
    InvalidArgument {
        /// Name of the argument or option.
        argument: String,
        /// What would be right.
        expected: String,
        /// What was given.
        found: String,
    },
    /// No option has this key.
    #[error("unknown option \"{key}\"; did you mean \"{nearest}\"?")]
    UnknownOption {
        /// The key given.
        key: String,
        /// The known key that looks most like it.
        nearest: &'static str,
    },
    /// The model has nothing of this name.
    #[error("{argument}: the model has no {what} {key}")]
    NotFound {
        /// Name of the argument.
        argument: &'static str,
        /// What was looked for.
        what: &'static str,
        /// Its name, quoted.
        key: String,
    },
    /// A program that this library does not serve.
    #[error("{argument}: the program was built for {found} of kigo, this library is {expected}; {remedy}")]
    AbiMismatch {
        /// Name of the argument.
        argument: &'static str,
        /// What the program has.
        found: String,
        /// What the library has.
        expected: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A handle is not one of ours, or no longer.
    #[error("{argument}: expected a live {expected} handle, found {found}")]
    InvalidHandle {
        /// Name of the argument.
        argument: &'static str,
        /// The kind it should have.
        expected: &'static str,
        /// What it is: NULL, freed, of another kind.
        found: String,
    },
    /// A text is not UTF-8.
    #[error("{argument}: expected UTF-8, found an invalid byte at offset {offset}")]
    InvalidUtf8 {
        /// Name of the argument.
        argument: String,
        /// Where the first invalid byte is.
        offset: usize,
    },
    /// A buffer cannot hold the answer.
    #[error("buffer: expected at least {needed} bytes, found {found}; call again with a larger one, nothing is lost")]
    BufferTooSmall {
        /// Bytes that the answer takes, with its terminator.
        needed: usize,
        /// Bytes the caller gave.
        found: usize,
    },
    /// Somebody else is using the handle.
    #[error("the inference is busy in another thread; use one inference from one thread at a time")]
    Busy,
    /// The inference was cancelled.
    #[error("the inference was cancelled")]
    Cancelled,
    /// The load was cancelled.
    #[error("the load was cancelled")]
    LoadCancelled,
    /// Memory could not be had.
    #[error("out of memory: {what} needs {bytes} bytes")]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// How much was asked for.
        bytes: u64,
    },
    /// A limit was reached.
    #[error("limit reached: at most {limit} {what}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A defect in kigo.
    #[error("internal error: {0}")]
    Internal(String),
    /// The process was forked.
    #[error("the library was first used in process {parent}; a forked child must load its own after exec")]
    Forked {
        /// The process that first used the library.
        parent: u32,
    },
    /// The prompt is longer than the context.
    #[error("prompt of {found} tokens is too long for a context of {n_ctx}; it may have at most {}; raise n_ctx or shorten the prompt", n_ctx.saturating_sub(1))]
    PromptTooLong {
        /// Tokens in the prompt.
        found: usize,
        /// Size of the context in tokens.
        n_ctx: usize,
    },
    /// The text of the prompt is longer than any that fits into the context.
    #[error("prompt of {bytes} bytes cannot fit into a context of {n_ctx} tokens; raise n_ctx or shorten the prompt")]
    PromptTextTooLong {
        /// Length of the text in bytes.
        bytes: usize,
        /// Size of the context in tokens.
        n_ctx: usize,
    },
    /// The prompt is empty and the model has no BOS token.
    #[error("the prompt is empty and the model adds no BOS token; give at least one token")]
    EmptyPrompt,
    /// The context is full.
    #[error("the context of {n_ctx} tokens is full; raise n_ctx or start a new inference")]
    ContextFull {
        /// Size of the context in tokens.
        n_ctx: usize,
    },
    /// Numbers that are not finite.
    #[error(
        "{what} {index} is {found}, expected a finite number; the model file is damaged or its arithmetic overflowed"
    )]
    Numeric {
        /// What the number is, such as "logit of token".
        what: &'static str,
        /// Which one.
        index: usize,
        /// Its value.
        found: f32,
    },
    /// No token is left to draw.
    #[error("no token may be drawn: logit_bias or the grammar bans all that are left; ban fewer tokens")]
    NoCandidate,
    /// A grammar that cannot be used.
    #[error("{option}: {reason}")]
    BadGrammar {
        /// The option that has it.
        option: &'static str,
        /// What is wrong with it, in the words of its parser.
        reason: String,
    },
    /// A buffer for numbers cannot hold the answer.
    #[error("size: expected room for at least {needed} {what}, found {found}; call again with more, nothing is lost")]
    TooFewPlaces {
        /// What the places are for.
        what: &'static str,
        /// How many there must be.
        needed: usize,
        /// How many there are.
        found: usize,
    },
    /// No backend for this device.
    #[error(
        "device \"{device}\": this build of kigo has no {backend} backend; set the option device to one of: {known}"
    )]
    NoBackend {
        /// The device asked for.
        device: String,
        /// The backend it needs.
        backend: &'static str,
        /// The devices this build has.
        known: &'static str,
    },
    /// No driver for NVIDIA GPUs.
    #[error("no NVIDIA driver: {reason}; install the driver, or set the option device to \"cpu\"")]
    NoDriver {
        /// What was looked for, and what the system said.
        reason: String,
    },
    /// No such GPU.
    #[error(
        "device \"{device}\": the NVIDIA driver shows {found} GPU(s){note}; set the option device to one of them or to \"cpu\""
    )]
    NoDevice {
        /// The device asked for.
        device: String,
        /// How many there are.
        found: u32,
        /// What hides others, such as `CUDA_VISIBLE_DEVICES`.
        note: String,
    },
    /// The driver is older than this build needs.
    #[error(
        "the NVIDIA driver is too old: expected one for CUDA {needed} or later, found one for CUDA {found}{note}; update the driver"
    )]
    DriverTooOld {
        /// The CUDA version that the driver is for.
        found: String,
        /// The one that is needed.
        needed: String,
        /// What the driver said, if it said something.
        note: String,
    },
    /// No code for this GPU.
    #[error(
        "device \"{device}\": {name} has architecture {found}, expected {expected}; use another GPU, or build kigo for this one (KIGO_CUDA_ARCHS)"
    )]
    UnsupportedGpu {
        /// The device.
        device: String,
        /// The name of the GPU.
        name: String,
        /// Its architecture, such as `sm_75`.
        found: String,
        /// What this build runs on.
        expected: String,
    },
    /// The GPU failed for good.
    #[error(
        "device \"{device}\" is lost since {call} returned {code} ({name}); free the model and restart the process to use this GPU again"
    )]
    DeviceLost {
        /// The device.
        device: String,
        /// The driver call that found it.
        call: &'static str,
        /// What the call returned.
        code: i32,
        /// The driver's name for it.
        name: String,
    },
    /// The driver refused a call.
    #[error("device \"{device}\": {call} returned {code} ({name})")]
    DeviceError {
        /// The device, or "cuda" when it concerns all.
        device: String,
        /// The driver call.
        call: &'static str,
        /// What it returned.
        code: i32,
        /// The driver's name for it.
        name: String,
    },
    /// Memory of a GPU could not be had.
    #[error("out of GPU memory: {what} needs {needed} bytes, device \"{device}\" has {free} free")]
    OutOfDeviceMemory {
        /// The device.
        device: String,
        /// What the memory was for.
        what: String,
        /// How much was asked for.
        needed: u64,
        /// How much the device had left.
        free: u64,
    },
    /// The driver itself found no memory.
    #[error("out of memory: the NVIDIA driver has none left for {call} on device \"{device}\"")]
    OutOfDriverMemory {
        /// The device.
        device: String,
        /// The driver call.
        call: &'static str,
    },
}

impl Error {
    /// Whether it may be no error once something else has given its memory back.
    pub fn is_out_of_memory(&self) -> bool {
        self.status() == Status::OutOfMemory
    }

    /// The stable number of this outcome.
    pub fn status(&self) -> Status {
        match self {
            Error::InFile { error, .. } => error.status(),
            Error::Io { .. } => Status::Io,
            Error::NotGguf { .. } => Status::NotGguf,
            Error::Truncated { .. } => Status::Truncated,
            Error::UnsupportedVersion { .. } => Status::UnsupportedVersion,
            Error::BadFile { .. } => Status::BadFile,
            Error::UnsupportedArchitecture { .. } => Status::UnsupportedArchitecture,
            Error::UnsupportedType { .. } | Error::UnsupportedValue { .. } => Status::UnsupportedType,
            Error::UnsupportedTokenizer { .. } => Status::UnsupportedTokenizer,
            Error::BadTemplate(_) => Status::BadTemplate,
            Error::BadState { .. } => Status::BadState,
            Error::InvalidArgument { .. } => Status::InvalidArgument,
            Error::UnknownOption { .. } => Status::UnknownOption,
            Error::NotFound { .. } => Status::NotFound,
            Error::AbiMismatch { .. } => Status::AbiMismatch,
            Error::InvalidHandle { .. } => Status::InvalidHandle,
            Error::InvalidUtf8 { .. } => Status::InvalidUtf8,
            Error::BufferTooSmall { .. } | Error::TooFewPlaces { .. } => Status::BufferTooSmall,
            Error::Busy => Status::Busy,
            Error::Cancelled | Error::LoadCancelled => Status::Cancelled,
            Error::OutOfMemory { .. } | Error::OutOfDeviceMemory { .. } | Error::OutOfDriverMemory { .. } => {
                Status::OutOfMemory
            }
            Error::Limit { .. } => Status::Limit,
            Error::Internal(_) => Status::Internal,
            Error::Forked { .. } => Status::Forked,
            Error::PromptTooLong { .. } | Error::PromptTextTooLong { .. } => Status::PromptTooLong,
            Error::EmptyPrompt => Status::EmptyPrompt,
            Error::ContextFull { .. } => Status::ContextFull,
            Error::Numeric { .. } => Status::Numeric,
            Error::NoCandidate => Status::NoCandidate,
            Error::BadGrammar { .. } => Status::BadGrammar,
            Error::NoBackend { .. } => Status::NoBackend,
            Error::NoDriver { .. } => Status::NoDriver,
            Error::NoDevice { .. } => Status::NoDevice,
            Error::DriverTooOld { .. } => Status::DriverTooOld,
            Error::UnsupportedGpu { .. } => Status::UnsupportedGpu,
            Error::DeviceLost { .. } => Status::DeviceLost,
            Error::DeviceError { .. } => Status::DeviceError,
        }
    }

    /// The same failure, naming the file it concerns.
    pub fn in_file(self, path: impl Into<PathBuf>) -> Error {
        Error::InFile { path: path.into(), error: Box::new(self) }
    }

    /// A field of a file that is missing or wrong.
    pub fn bad_file(field: impl ToString, expected: impl ToString, found: impl ToString) -> Error {
        Error::BadFile { field: field.to_string(), expected: expected.to_string(), found: found.to_string() }
    }

    /// An argument or option value that is wrong.
    pub fn invalid_argument(argument: impl ToString, expected: impl ToString, found: impl ToString) -> Error {
        Error::InvalidArgument {
            argument: argument.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}

/// A path without control characters; of a long one, its end.
fn shown(path: &std::path::Path) -> String {
    let text: String = path.to_string_lossy().escape_debug().collect();
    let start = text.char_indices().rev().nth(199).map_or(0, |(at, _)| at);
    format!("{}{}", if start > 0 { "..." } else { "" }, &text[start..])
}

/// At most the first 64 of `bytes`, quoted, with everything that is not printable ASCII escaped.
pub fn quoted(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(64)];
    let more = if shown.len() < bytes.len() { "..." } else { "" };
    format!("\"{}\"{more}", shown.escape_ascii())
}

/// An empty vector with room for exactly `len` elements, or [`Error::OutOfMemory`] naming `what`.
pub fn try_vec<T>(len: usize, what: &str) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len).map_err(|_| Error::OutOfMemory {
        what: what.to_string(),
        bytes: (len as u64).saturating_mul(size_of::<T>() as u64),
    })?;
    Ok(vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_numbers_and_names_are_unique() {
        for (i, a) in Status::ALL.iter().enumerate() {
            for b in &Status::ALL[i + 1..] {
                assert_ne!(*a as i32, *b as i32);
                assert_ne!(a.name(), b.name());
            }
        }
    }

    #[test]
    fn quoted_escapes_and_bounds() {
        assert_eq!(quoted(b"a\x1b[0m\n"), "\"a\\x1b[0m\\n\"");
        assert!(quoted(&[b'x'; 1000]).len() < 80);
    }
}
