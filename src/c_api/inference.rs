//! Inferences: start, take text or tokens, cancel, ask, free. What they do is in [`super::generation`].

use super::boundary::{Buffer, Numbers, Out, array, export, export_fact, free, guarded, handle, pointer, prompt};
use super::error::kigo_error;
use super::generation::{COUNTS, Generation, Lane, TIMES};
use super::handle::{Kind, MAX_HANDLES, Table};
use super::model::{engine, find, keys, kigo_model};
use super::options::{kigo_options, snapshot};
use crate::engine::Engine;
use crate::error::try_vec;
use crate::sampler::logprobs;
use crate::session::{Prompt, Session};
use crate::{Error, Result};
use std::ffi::c_char;
use std::sync::atomic::Ordering;

/// One generation. Any thread may use it, one at a time; cancelling, freeing and asking are possible at all times.
pub struct kigo_inference {
    _private: [u8; 0],
}

pub(super) static INFERENCES: Table<Generation> = Table::new(Kind::Inference, MAX_HANDLES);

/// Starts a generation from a text. Nothing is computed yet: the first call for text or a token does that.
///
/// @param model       The model; it may be freed while the inference lives.
/// @param prompt      The prompt in UTF-8, read as the option "prompt_format" says; it is copied. May be NULL if
///                    `prompt_len` is 0. Nothing in it is taken for a control token, except by "chat" and "user",
///                    whose template adds its own.
/// @param prompt_len  Bytes in `prompt`, NULs included, or KIGO_NUL_TERMINATED if a NUL ends it.
/// @param options     Options, or NULL for the defaults; not kept.
/// @param inference   Where the inference is written on success; free it with kigo_inference_free().
/// @param error       Where an error is written on failure, or NULL.
/// @returns KIGO_OK. On failure nothing is left behind.
///   - KIGO_PROMPT_TOO_LONG: shorten the prompt or load the model with a larger "n_ctx".
///   - KIGO_EMPTY_PROMPT: the prompt is empty and the model adds no token of its own.
///   - KIGO_BAD_TEMPLATE: the chat template is missing or failed; use the prompt_format "text" or the option
///     "chat_template".
///   - KIGO_BAD_GRAMMAR: the option "json_schema", "regex" or "lark" is wrong or takes too much; the message says how.
///   - KIGO_INVALID_UTF8: `prompt` is not UTF-8; the message names the first wrong byte.
///   - KIGO_INVALID_ARGUMENT: `prompt` or `inference` is NULL, the prompt is not what "prompt_format" says, "logit_bias"
///     has an id that the model does not, or the model's own default for an option is not allowed.
///   - KIGO_OUT_OF_MEMORY: there is no room for the prompt. The context itself takes memory as it grows, in later calls.
///   - KIGO_INVALID_HANDLE: `model` is not live, or `options` is neither NULL nor live.
///   - KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time; inferences of one model run at the same time.
///
/// # Safety
/// `prompt` is NULL or readable for `prompt_len` bytes, or NUL-terminated; `inference` and `error` are NULL or valid
/// for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_inference_start(
    model: *const kigo_model,
    prompt: *const c_char,
    prompt_len: usize,
    options: *const kigo_options,
    inference: *mut *mut kigo_inference,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `prompt` is NULL, readable for `prompt_len` bytes or NUL-terminated by this function's contract.
        let text = unsafe { self::prompt(prompt, prompt_len, "prompt") }?;
        // SAFETY: `inference` is NULL or valid for writing by this function's contract.
        let out = unsafe { Out::new(inference, "inference") }?;
        let engine = engine(model)?;
        let settings = snapshot(options)?;
        let prompt = settings.prompt_format.prompt(text);
        out.write(pointer(INFERENCES.insert(Generation::start(&engine, prompt, &settings)?)?));
        Ok(0)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Starts a generation from token ids, which may be control tokens. No token is added to them.
///
/// @param model      The model; it may be freed while the inference lives.
/// @param tokens     The ids, each from 0 to n_vocab - 1; they are copied. May be NULL if `n_tokens` is 0.
/// @param n_tokens   How many there are.
/// @param options    Options, or NULL for the defaults; not kept. "prompt_format" is not used.
/// @param inference  Where the inference is written on success; free it with kigo_inference_free().
/// @param error      Where an error is written on failure, or NULL.
/// @returns KIGO_OK. On failure nothing is left behind.
///   - KIGO_INVALID_ARGUMENT: a token id is outside the vocabulary, or `tokens` or `inference` is NULL.
///   - KIGO_PROMPT_TOO_LONG, KIGO_EMPTY_PROMPT, KIGO_BAD_GRAMMAR, KIGO_OUT_OF_MEMORY, KIGO_INVALID_HANDLE: as for
///     kigo_inference_start().
///   - KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `tokens` is NULL or readable for `n_tokens` ids; `inference` and `error` are NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_inference_start_tokens(
    model: *const kigo_model,
    tokens: *const i32,
    n_tokens: usize,
    options: *const kigo_options,
    inference: *mut *mut kigo_inference,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `tokens` is NULL or readable for `n_tokens` ids by this function's contract.
        let tokens = unsafe { array(tokens, n_tokens, "tokens") }?;
        // SAFETY: `inference` is NULL or valid for writing by this function's contract.
        let out = unsafe { Out::new(inference, "inference") }?;
        let engine = engine(model)?;
        let settings = snapshot(options)?;
        let tokens = checked_tokens(tokens, &engine)?;
        let inference = Generation::start(&engine, Prompt::Tokens(&tokens), &settings)?;
        out.write(pointer(INFERENCES.insert(inference)?));
        Ok(0)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// The ids as the library counts them; the session checks that the vocabulary has them.
///
/// # Errors
/// `PromptTooLong` before anything is read, `InvalidArgument` for a negative id.
pub(super) fn checked_tokens(tokens: &[i32], engine: &Engine) -> Result<Vec<u32>> {
    if tokens.len() >= engine.n_ctx() {
        return Err(Error::PromptTooLong { found: tokens.len(), n_ctx: engine.n_ctx() });
    }
    let mut ids = try_vec(tokens.len(), "the tokens of the prompt")?;
    for (index, token) in tokens.iter().enumerate() {
        let id = u32::try_from(*token).map_err(|_| {
            let expected = format!("an id from 0 to {}", engine.n_vocab().saturating_sub(1));
            Error::invalid_argument(format!("tokens[{index}]"), expected, token)
        })?;
        ids.push(id);
    }
    Ok(ids)
}

/// The next piece of the text, as soon as there is one.
///
/// A piece is one or more whole characters, so that it can be printed as it is; all pieces in a row are the text.
/// Use either this function or kigo_next_token() on an inference, not both.
///
/// @param inference  The inference.
/// @param text       Where the piece and a NUL are written; may be NULL if `size` is 0. A model can generate NUL
///                   characters, so take the length from the return value where that matters.
/// @param size       Bytes in `text`; 256 is enough for nearly every piece.
/// @param error      Where an error is written on failure, or NULL.
/// @returns The bytes of the piece without its NUL, at least 1; or 0 if the generation has ended, now and in every
///   later call: kigo_inference_finish_reason() says why.
///   - KIGO_BUFFER_TOO_SMALL: nothing is lost. Call again with a buffer of "text_size" bytes, which the message and
///     kigo_inference_get_i64() tell: the same piece comes.
///   - KIGO_CONTEXT_FULL: there is no room for another token; all that was generated has been returned before. The
///     same comes from every later call: free the inference.
///   - KIGO_CANCELLED: the inference was cancelled; free it.
///   - KIGO_BUSY: another thread is inside a call on this inference, which goes on.
///   - KIGO_OUT_OF_MEMORY: the context cannot grow. Nothing is lost: free other inferences and call again.
///   - KIGO_NUMERIC: the model computed numbers that are not finite; free the inference.
///   - KIGO_NO_CANDIDATE: every token is banned; free the inference.
///   - KIGO_BAD_GRAMMAR: the grammar takes too much at this place of the text; free the inference.
///   - KIGO_INVALID_ARGUMENT: `text` is NULL though `size` is not 0, or kigo_next_token() was used before.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it, one at a time for an inference. The first call computes the prompt.
///
/// # Safety
/// `text` is NULL or valid for writing the piece if that fits into `size` bytes; `error` is NULL or valid for writing
/// one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_next_text(
    inference: *mut kigo_inference,
    text: *mut c_char,
    size: usize,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        let inference = INFERENCES.get(handle(inference), "inference")?;
        // SAFETY: `text` is NULL or large enough for a piece that fits into `size` bytes by the contract.
        let buffer = unsafe { Buffer::new(text, size, "text") }.map_err(|error| inference.note(error))?;
        inference.advance(Lane::Text, |session| next_text(session, &buffer))
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

fn next_text(session: &mut Session, buffer: &Buffer) -> Result<Option<i32>> {
    let Some(text) = session.peek_text()? else {
        return Ok(None);
    };
    let written = buffer.write_text(text)?;
    session.take_text();
    Ok(Some(written))
}

/// The next token and its bytes, for hosts that want every token by itself.
///
/// The bytes of a token need not be UTF-8: a character may be spread over several tokens. A control token may have
/// no bytes. The tokens of a stop string come, except the one that completes it. Use either this function or
/// kigo_next_text() on an inference, not both.
///
/// @param inference  The inference.
/// @param token      Where the id is written on success.
/// @param bytes      Where the bytes are written, without a NUL; may be NULL if `size` is 0.
/// @param size       Bytes in `bytes`; "max_token_bytes" of the model is always enough.
/// @returns How many bytes the token has, 0 or more.
///   - KIGO_FINISHED: the generation has ended, and nothing was written; the same comes from every later call.
///   - KIGO_BUFFER_TOO_SMALL: nothing is lost. Call again with a larger buffer: the same token comes.
///   - KIGO_CONTEXT_FULL: there is no room for another token; all that was generated has been returned before. The
///     same comes from every later call: free the inference.
///   - KIGO_CANCELLED: the inference was cancelled; free it.
///   - KIGO_BUSY: another thread is inside a call on this inference, which goes on.
///   - KIGO_OUT_OF_MEMORY: the context cannot grow. Nothing is lost: free other inferences and call again.
///   - KIGO_NUMERIC: the model computed numbers that are not finite; free the inference.
///   - KIGO_NO_CANDIDATE: every token is banned; free the inference.
///   - KIGO_BAD_GRAMMAR: the grammar takes too much at this place of the text; free the inference.
///   - KIGO_INVALID_ARGUMENT: `token` is NULL, `bytes` is NULL though `size` is not 0, or kigo_next_text() was used
///     before.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
///   kigo_inference_last_error() has the message.
///
/// Any thread may call it, one at a time for an inference. The first call computes the prompt.
///
/// # Safety
/// `token` is NULL or valid for writing one id; `bytes` is NULL or valid for writing the bytes of the token if they
/// fit into `size`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_next_token(
    inference: *mut kigo_inference,
    token: *mut i32,
    bytes: *mut c_char,
    size: usize,
) -> i32 {
    let body = || {
        let inference = INFERENCES.get(handle(inference), "inference")?;
        // SAFETY: `token` is NULL or valid for writing by this function's contract.
        let out = unsafe { Out::new(token, "token") }.map_err(|error| inference.note(error))?;
        // SAFETY: `bytes` is NULL or large enough for a token that fits into `size` bytes by the contract.
        let buffer = unsafe { Buffer::new(bytes, size, "bytes") }.map_err(|error| inference.note(error))?;
        inference.advance(Lane::Tokens, |session| next_token(session, &out, &buffer))
    };
    guarded(body).unwrap_or_else(|failure| failure.status as i32)
}

fn next_token(session: &mut Session, out: &Out<i32>, buffer: &Buffer) -> Result<Option<i32>> {
    let Some((token, bytes)) = session.peek_token()? else {
        return Ok(None);
    };
    let id = i32::try_from(token).map_err(|_| Error::Internal(format!("token {token} is no id")))?;
    let written = buffer.write(bytes)?;
    out.write(id);
    session.take_token();
    Ok(Some(written))
}

/// The last failure of a call for text or a token on this inference, as that call would have told it.
///
/// KIGO_BUSY is not remembered: it concerns the caller that got it, not the inference.
///
/// @param inference  The inference; not changed.
/// @param error      Where an error is written if there was a failure, or NULL; free it with kigo_error_free().
/// @returns KIGO_OK if no call failed; then nothing is written. Otherwise the status of the last failure.
///   - KIGO_INVALID_HANDLE: the inference is not live.
///   - KIGO_FORKED: this is a forked child.
///
/// Any thread may call it at any time, also while another uses `inference`.
///
/// # Safety
/// `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_inference_last_error(
    inference: *const kigo_inference,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        let inference = INFERENCES.get(handle(inference), "inference")?;
        let failure = inference.report().last_failure.clone();
        failure.map_or(Ok(0), Err)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Cancels an inference. A call that is running returns KIGO_CANCELLED after the layer that the CPU computes, or the
/// layers that a GPU has at hand, 20 ms on a large one; if other inferences have a part in the step, at its end: at
/// most "n_batch" tokens of a prompt or one new token. So does every later call, until kigo_inference_append() or
/// kigo_inference_rewind() lets it go on.
///
/// @param inference  The inference.
/// @returns KIGO_OK, also if it was cancelled before, or has ended, which it then stays.
///   - KIGO_INVALID_HANDLE: the inference is not live.
///   - KIGO_FORKED: this is a forked child.
///
/// Any thread may call it at any time, also while another uses `inference`; it does not wait.
#[unsafe(no_mangle)]
pub extern "C" fn kigo_inference_cancel(inference: *mut kigo_inference) -> i32 {
    let body = || {
        INFERENCES.get(handle(inference), "inference")?.cancel.store(true, Ordering::Release);
        Ok(0)
    };
    guarded(body).unwrap_or_else(|failure| failure.status as i32)
}

/// Why the generation ended, as of the last call for text or a token that returned: KIGO_FINISH_RUNNING until one
/// said that there is no more, or failed.
///
/// @param inference  The inference; not changed.
/// @returns One of the KIGO_FINISH_ numbers, none of which is negative.
///   - KIGO_INVALID_HANDLE: the inference is not live.
///   - KIGO_FORKED: this is a forked child.
///
/// Any thread may call it at any time, also while another uses `inference`.
#[unsafe(no_mangle)]
pub extern "C" fn kigo_inference_finish_reason(inference: *const kigo_inference) -> i32 {
    let body = || Ok(INFERENCES.get(handle(inference), "inference")?.report().finish_reason);
    guarded(body).unwrap_or_else(|failure| failure.status as i32)
}

/// A fact about an inference that is an integer, as of the last call for text or a token that returned. Only
/// "processed_tokens" changes while one runs.
///
/// @param inference  The inference; not changed.
/// @param key        Which fact, as "Facts about an inference" lists them.
/// @param value      Where the fact is written on success.
/// @param error      Where an error is written on failure, or NULL.
/// @returns KIGO_OK.
///   - KIGO_INVALID_ARGUMENT: `key` is NULL or no integer has it, or `value` is NULL.
///   - KIGO_INVALID_UTF8: `key` is not UTF-8.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time, also while another uses `inference`.
///
/// # Safety
/// `key` is NULL or NUL-terminated; `value` and `error` are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_inference_get_i64(
    inference: *const kigo_inference,
    key: *const c_char,
    value: *mut i64,
    error: *mut *mut kigo_error,
) -> i32 {
    let get = |key: &str| {
        let inference = INFERENCES.get(handle(inference), "inference")?;
        let get = find(COUNTS, key, &[(keys(TIMES), "kigo_inference_get_f64")])?;
        Ok(i64::try_from(get(&inference.report())).unwrap_or(i64::MAX))
    };
    // SAFETY: `key`, `value` and `error` are as the contract of this function, which is the same, says.
    unsafe { export_fact(key, value, error, get) }
}

/// A fact about an inference that is a number, as of the last call for text or a token that returned.
///
/// @param inference  The inference; not changed.
/// @param key        Which fact, as "Facts about an inference" lists them.
/// @param value      Where the fact is written on success.
/// @param error      Where an error is written on failure, or NULL.
/// @returns KIGO_OK.
///   - KIGO_INVALID_ARGUMENT: `key` is NULL or no number has it, or `value` is NULL.
///   - KIGO_INVALID_UTF8: `key` is not UTF-8.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time, also while another uses `inference`.
///
/// # Safety
/// `key` is NULL or NUL-terminated; `value` and `error` are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_inference_get_f64(
    inference: *const kigo_inference,
    key: *const c_char,
    value: *mut f64,
    error: *mut *mut kigo_error,
) -> i32 {
    let get = |key: &str| {
        let inference = INFERENCES.get(handle(inference), "inference")?;
        let get = find(TIMES, key, &[(keys(COUNTS), "kigo_inference_get_i64")])?;
        Ok(get(&inference.report()))
    };
    // SAFETY: `key`, `value` and `error` are as the contract of this function, which is the same, says.
    unsafe { export_fact(key, value, error, get) }
}

/// The logits that the last token was drawn from, as the model gave them: before bias, grammar and all other options.
///
/// The inference must have been started with the option "logprobs" above 0. The last token is the one that the last call
/// of kigo_next_token() returned or, after KIGO_FINISHED, the one that ended the text, which is not part of it. Pieces of
/// kigo_next_text() may have several tokens.
///
/// @param inference  The inference; not changed.
/// @param logits     Where the logits are written, by token id; may be NULL if `size` is 0.
/// @param size       How many floats `logits` has room for; "n_vocab" of the model is enough.
/// @param error      Where an error is written on failure, or NULL.
/// @returns How many logits were written: "n_vocab", or 0 if no token was drawn yet.
///   - KIGO_BUFFER_TOO_SMALL: nothing was written, and the message has the size needed.
///   - KIGO_INVALID_ARGUMENT: `logits` is NULL though `size` is not 0, or the inference keeps none; start one with the
///     option "logprobs".
///   - KIGO_BUSY: another thread is inside a call on this inference, which goes on.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it.
///
/// # Safety
/// `logits` is NULL or valid for writing `size` floats; `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_inference_logits(
    inference: *const kigo_inference,
    logits: *mut f32,
    size: usize,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        let inference = INFERENCES.get(handle(inference), "inference")?;
        // SAFETY: `logits` is NULL or valid for writing `size` floats by this function's contract.
        let out = unsafe { Numbers::new(logits, size, "logits") }?;
        inference.read(|session| {
            let (_, logits) = kept(session)?.unwrap_or_default();
            out.write("logits", logits.iter().copied())
        })
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// The last token and the most likely ones in its place, with the logarithms of the probabilities that the model gave
/// them, before bias, grammar and all other options.
///
/// The first entry is the last token itself, as kigo_inference_logits() explains. The others are as many of the most
/// likely tokens as the option "logprobs" says, the most likely first; the last token may be among them again.
///
/// @param inference  The inference; not changed.
/// @param tokens     Where the ids are written; may be NULL if `size` is 0.
/// @param logprobs   Where their natural logarithms are written, in the same order; may be NULL if `size` is 0.
/// @param size       How many entries `tokens` and `logprobs` each have room for; one more than "logprobs" is enough.
/// @param error      Where an error is written on failure, or NULL.
/// @returns How many entries were written; 0 if no token was drawn yet.
///   - KIGO_BUFFER_TOO_SMALL: nothing was written, and the message has the size needed.
///   - KIGO_INVALID_ARGUMENT: `tokens` or `logprobs` is NULL though `size` is not 0, or the inference keeps no logits;
///     start one with the option "logprobs".
///   - KIGO_BUSY: another thread is inside a call on this inference, which goes on.
///   - KIGO_OUT_OF_MEMORY: there is no room to sort the tokens; nothing was written.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it.
///
/// # Safety
/// `tokens` and `logprobs` are NULL or valid for writing `size` numbers each; `error` is NULL or valid for writing one
/// pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_inference_logprobs(
    inference: *const kigo_inference,
    tokens: *mut i32,
    logprobs: *mut f64,
    size: usize,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        let inference = INFERENCES.get(handle(inference), "inference")?;
        // SAFETY: `tokens` is NULL or valid for writing `size` ids by this function's contract.
        let ids = unsafe { Numbers::new(tokens, size, "tokens") }?;
        // SAFETY: `logprobs` is NULL or valid for writing `size` numbers by this function's contract.
        let values = unsafe { Numbers::new(logprobs, size, "logprobs") }?;
        inference.read(|session| {
            let Some((token, logits)) = kept(session)? else { return Ok(0) };
            let n = usize::try_from(session.sampling().logprobs).unwrap_or(usize::MAX);
            let entries = self::logprobs(logits, token, n)?;
            ids.write("tokens", entries.iter().map(|(id, _)| *id as i32))?;
            values.write("tokens", entries.iter().map(|(_, logprob)| *logprob))
        })
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// The last token and its logits, if there was one.
///
/// # Errors
/// `InvalidArgument` when the session keeps none.
fn kept(session: &Session) -> Result<Option<(u32, &[f32])>> {
    if session.sampling().logprobs == 0 {
        let expected = "one that was started with the option logprobs above 0";
        return Err(Error::invalid_argument("inference", expected, "one that keeps no logits"));
    }
    Ok(session.last_logits())
}

/// Frees an inference. The handle is dead at once; a call that is running in another thread is cancelled, and gives
/// the memory back when it returns.
///
/// @param inference  The inference, or NULL.
/// @returns KIGO_OK, also for NULL.
///   - KIGO_INVALID_HANDLE: `inference` was freed before or is no inference; nothing happened.
///   - KIGO_FORKED: this is a forked child; nothing happened.
///
/// Any thread may call it at any time, also while another uses `inference`; it does not wait.
#[unsafe(no_mangle)]
pub extern "C" fn kigo_inference_free(inference: *mut kigo_inference) -> i32 {
    free(&INFERENCES, handle(inference), "inference", |dead| dead.cancel.store(true, Ordering::Release))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Status;
    use crate::c_api::generation::{FAILED, RUNNING};
    use crate::c_api::settings::Settings;
    use crate::c_api::{kigo_error_free, kigo_error_message};
    use crate::engine::LoadOptions;
    use std::path::Path;
    use std::ptr::null_mut;
    use std::time::{Duration, Instant};

    fn inference() -> Generation {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama.gguf");
        let options = LoadOptions { device: "cpu".to_owned(), ..LoadOptions::default() };
        let engine = Engine::load(&path, &options).unwrap();
        Generation::start(&engine, Prompt::Text("Once upon a time"), &Settings::default()).unwrap()
    }

    #[test]
    fn c18_a_panic_ends_its_inference_and_no_other() {
        let hurt = pointer::<kigo_inference>(INFERENCES.insert(inference()).unwrap());
        let well = pointer::<kigo_inference>(INFERENCES.insert(inference()).unwrap());
        let mut text = [0_u8; 64];
        let panicked = INFERENCES.get(handle(hurt), "inference").unwrap();
        let failure = panicked.advance(Lane::Text, |_| panic!("with the lock held")).unwrap_err();
        assert_eq!(failure.status, Status::Internal);
        for _ in 0..3 {
            let mut error = null_mut();
            // SAFETY: the buffer and the place for the error are locals.
            let status = unsafe { kigo_next_text(hurt, text.as_mut_ptr().cast(), text.len(), &raw mut error) };
            assert_eq!(status, Status::Internal as i32);
            // SAFETY: the text lives until the error is freed, below.
            let message = unsafe { std::ffi::CStr::from_ptr(kigo_error_message(error)) };
            assert!(message.to_str().unwrap().starts_with("internal error: with the lock held (src/c_api/"));
            assert_eq!(kigo_error_free(error), 0);
        }
        assert_eq!(kigo_inference_finish_reason(hurt), FAILED);
        // SAFETY: NULL is allowed for the error.
        assert_eq!(unsafe { kigo_inference_last_error(hurt, null_mut()) }, Status::Internal as i32);
        // SAFETY: the buffer is a local, and NULL is allowed for the error.
        assert!(unsafe { kigo_next_text(well, text.as_mut_ptr().cast(), text.len(), null_mut()) } > 0);
        assert_eq!(kigo_inference_free(hurt), 0);
        assert_eq!(kigo_inference_free(well), 0);
    }

    #[test]
    fn a_running_call_makes_others_busy_but_not_the_questions() {
        let live = pointer::<kigo_inference>(INFERENCES.insert(inference()).unwrap());
        let inference = INFERENCES.get(handle(live), "inference").unwrap();
        let outcome = inference.advance(Lane::Tokens, |_| {
            let mut token = 7;
            // SAFETY: the place for the token is a local, and the buffer has no bytes.
            let status = unsafe { kigo_next_token(live, &raw mut token, null_mut(), 0) };
            assert_eq!((status, token), (Status::Busy as i32, 7));
            assert_eq!(kigo_inference_finish_reason(live), RUNNING);
            // SAFETY: NULL is allowed for the error.
            assert_eq!(unsafe { kigo_inference_last_error(live, null_mut()) }, 0, "BUSY is not remembered");
            let mut count = -1;
            // SAFETY: the key is a literal, the place for the value is a local, NULL is allowed for the error.
            let status = unsafe { kigo_inference_get_i64(live, c"prompt_tokens".as_ptr(), &raw mut count, null_mut()) };
            assert!(status == 0 && count > 0);
            assert_eq!(kigo_inference_free(live), 0);
            Ok(Some(1))
        });
        assert_eq!(outcome.unwrap(), 1);
        assert!(inference.cancel.load(Ordering::Acquire), "freeing cancels what is running");
        assert_eq!(kigo_inference_cancel(live), Status::InvalidHandle as i32);
    }

    /// What a token costs above what the backend needs for it: everything from the handle to the batch and back, with a
    /// backend that returns at once. The least of many short runs, for as long as other tests may take: what runs beside it only adds
    /// to that.
    #[test]
    fn a_token_costs_less_than_two_microseconds() {
        const RUNS: usize = 101;
        const TOKENS: u32 = 400;
        const MOST: f64 = 2.0;
        let engine = crate::engine::tests::instant(100);
        let cost = || {
            let started = Generation::start(&engine, Prompt::Text("a"), &Settings::default()).unwrap();
            let live = pointer::<kigo_inference>(INFERENCES.insert(started).unwrap());
            let (mut token, mut bytes) = (0, [0_u8; 64]);
            let began = Instant::now();
            for _ in 0..TOKENS {
                // SAFETY: the places are locals.
                let n = unsafe { kigo_next_token(live, &raw mut token, bytes.as_mut_ptr().cast(), bytes.len()) };
                assert!(n > 0 && token == 100);
            }
            let microseconds = began.elapsed().as_secs_f64() * 1e6;
            assert_eq!(kigo_inference_free(live), 0);
            microseconds / f64::from(TOKENS)
        };
        let (began, mut least, mut costs) = (Instant::now(), f64::INFINITY, Vec::new());
        while costs.len() < RUNS || least >= MOST && began.elapsed() < Duration::from_secs(20) {
            let cost = cost();
            least = least.min(cost);
            costs.push(cost);
        }
        costs.sort_by(f64::total_cmp);
        let (median, n) = (costs[costs.len() / 2], costs.len());
        println!("kigo_next_token: {least:.2} microseconds a token, {median:.2} in the middle of {n} runs");
        assert!(least < MOST, "{least:.2} microseconds");
    }
}
