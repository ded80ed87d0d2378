//! Inferences of a worker: start, take pieces that fit the caller's buffer, free.

use super::codes::{INFERENCE_FAILED, MODEL_LOAD_FAILED};
use super::{CudaModel, MODELS, answer, plain};
use crate::c_api::boundary::{Buffer, Out, free, handle, pointer, text};
use crate::c_api::error::Failure;
use crate::c_api::generation::{Generation, Lane};
use crate::c_api::handle::{Kind, MAX_HANDLES, Table};
use crate::session::Prompt;
use crate::{Error, Result};
use std::ffi::{c_char, c_int};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, TryLockError};

/// One generation.
pub struct InferenceResult {
    _private: [u8; 0],
}

const MAX_TOKENS: c_int = 2048;
const MAX_TEMPERATURE: f32 = 2.0;
/// The longest character and a NUL.
const LEAST_BUFFER: c_int = 5;

/// What an InferenceResult handle stands for.
struct Inference {
    generation: Generation,
    rest: Mutex<Rest>,
}

/// Text that was generated and not yet delivered.
#[derive(Default)]
struct Rest {
    text: String,
    /// Bytes of `text` that have been delivered.
    taken: usize,
    /// Pieces that have been delivered.
    n_pieces: c_int,
}

static INFERENCES: Table<Inference> = Table::new(Kind::WorkerInference, MAX_HANDLES);

/// Starts a generation. Nothing is computed yet: the first call for a token does that.
///
/// @param model        The model; it may be unloaded while the inference lives.
/// @param prompt       The prompt in UTF-8; it is copied. KIGO_WORKER_TEMPLATE says how it is read.
/// @param max_tokens   Most tokens to generate, from 1 to 2048.
/// @param temperature  From 0.0, which always takes the most likely token, to 2.0.
/// @param seed         Start of the random numbers: the same model, prompt and settings give the same text.
/// @param error_code   Where the code is written.
/// @returns The inference, which cuda_inference_free() frees; or NULL.
///   - CUDA_ERROR_INVALID_PARAMETER: a number is outside its range, the prompt is not UTF-8, empty, or longer than the
///     context, a pointer is NULL, or `model` is not live.
///   - CUDA_ERROR_INFERENCE_FAILED: the chat template of the model does not render.
///   - CUDA_ERROR_OUT_OF_MEMORY: there is no room for the prompt, or there are too many live handles.
///
/// # Safety
/// `prompt` is NULL or NUL-terminated; `error_code` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_inference_start(
    model: *mut CudaModel,
    prompt: *const c_char,
    max_tokens: c_int,
    temperature: f32,
    seed: u64,
    error_code: *mut c_int,
) -> *mut InferenceResult {
    // A template that fails was in the model file, but it is the inference that comes to nothing.
    let coded = |code, _| if code == MODEL_LOAD_FAILED { INFERENCE_FAILED } else { code };
    let body = || {
        // SAFETY: `prompt` is NULL or NUL-terminated by this function's contract.
        let prompt = unsafe { text(prompt, "prompt") }?;
        let model = MODELS.get(handle(model), "model")?;
        let mut settings = model.context.environment.settings();
        settings.session.max_tokens = Some(checked_tokens(max_tokens)?);
        // The sampler checks it again, for all who ask it; here the message names the argument.
        if !(0.0..=MAX_TEMPERATURE).contains(&temperature) {
            return Err(Error::invalid_argument("temperature", "a number from 0 to 2", temperature).into());
        }
        settings.session.sampling.temperature = temperature;
        settings.session.sampling.seed = seed;
        let prompt = match model.context.environment.template {
            true => Prompt::RenderedOrUser(prompt),
            false => Prompt::Rendered(prompt),
        };
        let generation = Generation::start(&model.engine, prompt, &settings)?;
        Ok(pointer(INFERENCES.insert(Inference { generation, rest: Mutex::default() })?))
    };
    // SAFETY: `error_code` is NULL or valid for writing by this function's contract.
    unsafe { answer(error_code, std::ptr::null_mut(), coded, body) }
}

fn checked_tokens(max_tokens: c_int) -> Result<usize> {
    match usize::try_from(max_tokens) {
        Ok(tokens) if (1..=MAX_TOKENS).contains(&max_tokens) => Ok(tokens),
        _ => Err(Error::invalid_argument("max_tokens", format!("an integer from 1 to {MAX_TOKENS}"), max_tokens)),
    }
}

/// The next piece of the text, as soon as there is one.
///
/// A piece is one or more whole characters in UTF-8, ended by a NUL; all pieces in a row are the text. One that does
/// not fit the buffer comes over several calls. NUL characters, which a model can generate too, are left out.
///
/// @param result             The inference.
/// @param token_out          Where the piece and its NUL are written.
/// @param token_buffer_size  Bytes in `token_out`, at least 5; 256 hold nearly every piece.
/// @param token_index        Where the number of the piece is written: 0, 1, 2 and so on. May be NULL.
/// @param error_code         Where the code is written.
/// @returns true if a piece was written. false with CUDA_SUCCESS is the end of the text, now and in every later call.
///   - CUDA_ERROR_INFERENCE_FAILED: the context is full, though the text was to go on, or the numbers of the model are
///     not finite; all that was generated has been delivered. Free the inference.
///   - CUDA_ERROR_OUT_OF_MEMORY: the context cannot grow. Nothing is lost: free other inferences and call again.
///   - CUDA_ERROR_KERNEL_LAUNCH_FAILED: the driver or the GPU failed.
///   - CUDA_ERROR_INVALID_PARAMETER: `token_out` or `error_code` is NULL, the buffer is too small, `result` is not live,
///     or another thread is inside a call on it. Nothing is lost.
///
/// # Safety
/// `token_out` is NULL or valid for writing `token_buffer_size` bytes; `token_index` and `error_code` are NULL or valid
/// for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_inference_next_token(
    result: *mut InferenceResult,
    token_out: *mut c_char,
    token_buffer_size: c_int,
    token_index: *mut c_int,
    error_code: *mut c_int,
) -> bool {
    let body = || {
        let size = match usize::try_from(token_buffer_size) {
            Ok(size) if token_buffer_size >= LEAST_BUFFER => size,
            _ => {
                let expected = format!("at least {LEAST_BUFFER}");
                return Err(Error::invalid_argument("token_buffer_size", expected, token_buffer_size).into());
            }
        };
        // SAFETY: `token_out` is NULL or valid for writing `size` bytes by this function's contract.
        let buffer = unsafe { Buffer::new(token_out, size, "token_out") }?;
        let inference = INFERENCES.get(handle(result), "result")?;
        let index = inference.deliver(&buffer, size - 1)?;
        // SAFETY: `token_index` is NULL, which the place then is not made of, or valid for writing.
        if let (Some(index), Ok(out)) = (index, unsafe { Out::new(token_index, "token_index") }) {
            out.write(index);
        }
        Ok(index.is_some())
    };
    // SAFETY: `error_code` is NULL or valid for writing by this function's contract.
    unsafe { answer(error_code, false, plain, body) }
}

impl Inference {
    /// Writes the next piece of at most `room` bytes and gives its number; None at the end.
    fn deliver(&self, buffer: &Buffer, room: usize) -> std::result::Result<Option<c_int>, Failure> {
        let mut rest = match self.rest.try_lock() {
            Ok(rest) => rest,
            Err(TryLockError::WouldBlock) => return Err(Error::Busy.into()),
            Err(TryLockError::Poisoned(rest)) => rest.into_inner(),
        };
        while rest.piece(room).is_empty() {
            let more = self.generation.advance(Lane::Text, |session| {
                let Some(text) = session.peek_text()? else {
                    return Ok(None);
                };
                rest.fill(text)?;
                session.take_text();
                Ok(Some(1))
            })?;
            if more == 0 {
                return Ok(None);
            }
        }
        let written = buffer.write_text(rest.piece(room))?;
        rest.taken += usize::try_from(written).unwrap_or_default();
        let index = rest.n_pieces;
        rest.n_pieces = index.saturating_add(1);
        Ok(Some(index))
    }
}

impl Rest {
    /// The next whole characters that fit into `room` bytes, which hold at least one.
    fn piece(&self, room: usize) -> &str {
        let rest = self.text.get(self.taken..).unwrap_or_default();
        let mut end = rest.len().min(room);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        rest.get(..end).unwrap_or_default()
    }

    /// Takes `text` in place of what has been delivered.
    fn fill(&mut self, text: &str) -> Result<()> {
        self.text.clear();
        self.taken = 0;
        let bytes = text.len() as u64;
        self.text.try_reserve(text.len()).map_err(|_| Error::OutOfMemory { what: "a piece of text".into(), bytes })?;
        self.text.extend(text.chars().filter(|char| *char != '\0'));
        Ok(())
    }
}

/// Frees an inference. One that another thread is using is cancelled, and gives the memory back when that call returns.
///
/// @param result  The inference, or NULL.
#[unsafe(no_mangle)]
pub extern "C" fn cuda_inference_free(result: *mut InferenceResult) {
    free(&INFERENCES, handle(result), "result", |dead| dead.generation.cancel.store(true, Ordering::Release));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of a text for a buffer of `room` bytes and a NUL.
    fn pieces(text: &str, room: usize) -> Vec<String> {
        let mut rest = Rest::default();
        rest.fill(text).unwrap();
        let mut pieces = Vec::new();
        while !rest.piece(room).is_empty() {
            pieces.push(rest.piece(room).to_owned());
            rest.taken += rest.piece(room).len();
        }
        pieces
    }

    #[test]
    fn pieces_are_whole_characters_and_together_the_text() {
        let text = "a\u{e9}\u{20ac}\u{1f600}b\0c".repeat(50);
        for room in 4..600 {
            let pieces = pieces(&text, room);
            assert!(pieces.iter().all(|piece| piece.len() <= room));
            assert!(pieces.iter().rev().skip(1).all(|piece| piece.len() + 4 > room), "no piece is needlessly short");
            assert_eq!(pieces.concat(), text.replace('\0', ""));
        }
    }

    #[test]
    fn text_of_nuls_is_no_piece() {
        assert!(pieces("\0\0", 255).is_empty());
    }

    #[test]
    fn numbers_are_taken_inside_their_range_only() {
        assert_eq!([1, 2048].map(|tokens| checked_tokens(tokens).unwrap()), [1, 2048]);
        for wrong in [c_int::MIN, -1, 0, 2049, c_int::MAX] {
            assert!(checked_tokens(wrong).is_err());
        }
    }
}
