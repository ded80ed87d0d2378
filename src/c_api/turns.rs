//! What an inference can do besides going on: go back, branch off, take a further turn, be saved and loaded.

use super::boundary::{Out, array, export, handle, path, pointer, prompt};
use super::error::kigo_error;
use super::generation::Generation;
use super::inference::{INFERENCES, checked_tokens, kigo_inference};
use super::model::{engine, kigo_model};
use super::options::{kigo_options, snapshot};
use crate::session::Prompt;
use std::ffi::c_char;

/// Drops all tokens of an inference but the first ones, and goes on from there.
///
/// Everything is as it was at that place: the random numbers, the window of the penalties, the grammar, and the text, of
/// which what was returned before does not come again. So without further ado the same tokens come again; for others, use
/// kigo_inference_fork() with another "seed". It makes no difference whether the generation had ended or was cancelled.
/// Prompts can be shortened too: what is left of one is then the prompt.
///
/// What is dropped is gone at once. Models whose layers see only a window of the text forget what is before it; where they
/// would have to remember more, the first tokens are computed again by the next call for text or a token.
///
/// @param inference  The inference.
/// @param n_tokens   How many tokens stay, prompt and generated ones of all turns: from 1 to "prompt_tokens" and
///                   "generated_tokens" together.
/// @param error      Where an error is written on failure, or NULL.
/// @returns KIGO_OK. On failure the inference is as before.
///   - KIGO_INVALID_ARGUMENT: there are not so many tokens, or `n_tokens` is 0.
///   - KIGO_BUSY: another thread is inside a call on this inference, which goes on.
///   - KIGO_OUT_OF_MEMORY: there is no room for a page that has to be copied, since a fork shares it, or for the grammar.
///   - KIGO_BAD_GRAMMAR: the grammar takes too much at this place of the text.
///   - KIGO_DEVICE_LOST, KIGO_DEVICE_ERROR: the GPU or its driver failed.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it, one at a time for an inference. It waits for the step that is being computed for others.
///
/// # Safety
/// `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_inference_rewind(
    inference: *mut kigo_inference,
    n_tokens: usize,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || INFERENCES.get(handle(inference), "inference")?.change(|session| session.rewind(n_tokens));
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Makes another inference that goes on from the same place.
///
/// Both share the memory of what they have in common; a page of it, 32 or 64 tokens, is copied where it is not full. From
/// then on they have nothing to do with each other.
///
/// Without options the new one does what the other will do, token by token. With options its answer begins here: it draws
/// with their "seed" from the beginning of its random numbers, follows their grammar, ends with their "stop" and counts
/// their "max_tokens", and it goes on though the other has ended. "prompt_format" and the chat template stay as they are.
/// Text that was generated but not returned comes from both.
///
/// @param inference  The inference; not changed.
/// @param options    Options, or NULL to go on as the other does; not kept.
/// @param fork       Where the new inference is written on success; free it with kigo_inference_free().
/// @param error      Where an error is written on failure, or NULL.
/// @returns KIGO_OK. On failure nothing is left behind.
///   - KIGO_BUSY: another thread is inside a call on this inference, which goes on.
///   - KIGO_OUT_OF_MEMORY: there is no room for what has to be copied.
///   - KIGO_BAD_GRAMMAR: the option "json_schema", "regex" or "lark" is wrong or takes too much; the message says how.
///   - KIGO_INVALID_ARGUMENT: `fork` is NULL, "logit_bias" has an id that the model does not, or the model's own default
///     for an option is not allowed.
///   - KIGO_INVALID_HANDLE: `inference` is not live, or `options` is neither NULL nor live.
///   - KIGO_DEVICE_LOST, KIGO_DEVICE_ERROR: the GPU or its driver failed.
///   - KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it. It waits for the step that is being computed for others.
///
/// # Safety
/// `fork` and `error` are NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_inference_fork(
    inference: *const kigo_inference,
    options: *const kigo_options,
    fork: *mut *mut kigo_inference,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `fork` is NULL or valid for writing by this function's contract.
        let out = unsafe { Out::new(fork, "fork") }?;
        let inference = INFERENCES.get(handle(inference), "inference")?;
        let settings = if options.is_null() { None } else { Some(snapshot(options)?) };
        out.write(pointer(INFERENCES.insert(inference.fork(settings)?)?));
        Ok(0)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Adds a further turn to an inference, which then goes on: "max_tokens" counts anew, and so does the grammar.
///
/// It makes no difference whether the generation has ended, why, or was cancelled. Text that was generated but not returned
/// is dropped. Nothing is computed yet: the next call for text or a token does that.
///
/// The prompt is read as the "prompt_format" of the inference says. With "text" it is put behind the last token; an empty one
/// only lets the generation go on. With "user" it is the user's next message, and with "chat" the messages that follow in
/// JSON, as "Chats" describes them, where tools and variables are those of before unless others are given. The whole chat is
/// then put into the template again, with the answer, as it was generated, as the assistant's message before the new ones;
/// if the first new message is the assistant's, it stands for the answer. So a model with a template of its own ways, such as
/// leaving out what it thought, gets what it would get from a new inference with the whole chat; only tokens that are the
/// same as before are not computed again.
///
/// @param inference   The inference.
/// @param prompt      The prompt in UTF-8; it is copied. May be NULL if `prompt_len` is 0. Nothing in it is taken for a
///                    control token.
/// @param prompt_len  Bytes in `prompt`, NULs included, or KIGO_NUL_TERMINATED if a NUL ends it.
/// @param error       Where an error is written on failure, or NULL.
/// @returns KIGO_OK. On failure the inference is as before.
///   - KIGO_PROMPT_TOO_LONG: all that was said and the prompt do not fit into the context.
///   - KIGO_INVALID_ARGUMENT: `prompt` is NULL, or not what "prompt_format" says; or the prompt is a chat and the inference
///     is none any more, since it was started with tokens or rewound into a prompt.
///   - KIGO_BAD_TEMPLATE: the chat template failed.
///   - KIGO_INVALID_UTF8: `prompt` is not UTF-8; the message names the first wrong byte.
///   - KIGO_BUSY: another thread is inside a call on this inference, which goes on.
///   - KIGO_OUT_OF_MEMORY, KIGO_BAD_GRAMMAR, KIGO_DEVICE_LOST, KIGO_DEVICE_ERROR: as for kigo_inference_rewind().
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it, one at a time for an inference. It waits for the step that is being computed for others.
///
/// # Safety
/// `prompt` is NULL or readable for `prompt_len` bytes, or NUL-terminated; `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_inference_append(
    inference: *mut kigo_inference,
    prompt: *const c_char,
    prompt_len: usize,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `prompt` is NULL, readable for `prompt_len` bytes or NUL-terminated by this function's contract.
        let text = unsafe { self::prompt(prompt, prompt_len, "prompt") }?;
        let inference = INFERENCES.get(handle(inference), "inference")?;
        inference.change(|session| session.append(inference.format.prompt(text)))
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Adds a further turn of token ids, which may be control tokens, behind the last token, otherwise as
/// kigo_inference_append(). The inference is no chat any more.
///
/// @param inference  The inference.
/// @param tokens     The ids, each from 0 to n_vocab - 1; they are copied. May be NULL if `n_tokens` is 0.
/// @param n_tokens   How many there are.
/// @param error      Where an error is written on failure, or NULL.
/// @returns KIGO_OK. On failure the inference is as before.
///   - KIGO_INVALID_ARGUMENT: a token id is outside the vocabulary, or `tokens` is NULL.
///   - KIGO_PROMPT_TOO_LONG, KIGO_BUSY, KIGO_OUT_OF_MEMORY, KIGO_BAD_GRAMMAR, KIGO_DEVICE_LOST, KIGO_DEVICE_ERROR,
///     KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: as for kigo_inference_append().
///
/// Any thread may call it, one at a time for an inference. It waits for the step that is being computed for others.
///
/// # Safety
/// `tokens` is NULL or readable for `n_tokens` ids; `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_inference_append_tokens(
    inference: *mut kigo_inference,
    tokens: *const i32,
    n_tokens: usize,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `tokens` is NULL or readable for `n_tokens` ids by this function's contract.
        let tokens = unsafe { array(tokens, n_tokens, "tokens") }?;
        let inference = INFERENCES.get(handle(inference), "inference")?;
        inference.change(|session| {
            let tokens = checked_tokens(tokens, session.engine())?;
            session.append(Prompt::Tokens(&tokens))
        })
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Saves an inference to a file, from which kigo_inference_load() goes on, in this process or another.
///
/// The file has the tokens, the chat, and what the model computed of them, which is about "cache_bytes" of the model where
/// there is no other inference. It is for the same model on the same kind of device only, and no secret: whoever can read
/// it can read the text. It is written beside its place and put there when it is complete, so that a file that was there
/// before stays if something fails.
///
/// @param inference  The inference; not changed.
/// @param file       Its path, in the bytes of the system.
/// @param error      Where an error is written on failure, or NULL.
/// @returns KIGO_OK.
///   - KIGO_IO: the file cannot be written; the message has the system's reason.
///   - KIGO_INVALID_ARGUMENT: `file` is NULL.
///   - KIGO_BUSY: another thread is inside a call on this inference, which goes on.
///   - KIGO_OUT_OF_MEMORY, KIGO_DEVICE_LOST, KIGO_DEVICE_ERROR: the cache cannot be brought to the host.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it. Meanwhile other inferences go on, and this one is busy.
///
/// # Safety
/// `file` is NULL or NUL-terminated; `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_inference_save(
    inference: *const kigo_inference,
    file: *const c_char,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `file` is NULL or NUL-terminated by this function's contract.
        let file = unsafe { path(file, "file") }?;
        let inference = INFERENCES.get(handle(inference), "inference")?;
        inference.read(|session| session.save(&file))?;
        Ok(0)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// Makes an inference that goes on from a file of kigo_inference_save().
///
/// With the options that the other was started with it goes on as if it had never been interrupted. With others it obeys
/// them from here on. One that was cancelled, or ended with "max_tokens", goes on if it may. A file that is damaged is found
/// out, and one of another model, of another kind of device, or of a version of kigo that keeps its cache otherwise, is
/// refused. What its checksum cannot find out is a file that somebody made with intent: load only what you would let others
/// put into a prompt.
///
/// @param model      The model; it may be freed while the inference lives.
/// @param file       Its path, in the bytes of the system.
/// @param options    Options, or NULL for the defaults; not kept.
/// @param inference  Where the inference is written on success; free it with kigo_inference_free().
/// @param error      Where an error is written on failure, or NULL.
/// @returns KIGO_OK. On failure nothing is left behind.
///   - KIGO_BAD_STATE: the file is no state, is damaged, or does not fit the model or its device; the message says why.
///   - KIGO_IO: the file cannot be read; the message has the system's reason.
///   - KIGO_PROMPT_TOO_LONG: the tokens do not fit into the context of the model.
///   - KIGO_OUT_OF_MEMORY: there is no room for the cache.
///   - KIGO_INVALID_ARGUMENT: `file` or `inference` is NULL, or an option does not fit the model.
///   - KIGO_BAD_GRAMMAR: the grammar of the options is wrong, or the answer so far does not follow it.
///   - KIGO_INVALID_HANDLE: `model` is not live, or `options` is neither NULL nor live.
///   - KIGO_DEVICE_LOST, KIGO_DEVICE_ERROR: the GPU or its driver failed.
///   - KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `file` is NULL or NUL-terminated; `inference` and `error` are NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_inference_load(
    model: *const kigo_model,
    file: *const c_char,
    options: *const kigo_options,
    inference: *mut *mut kigo_inference,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `file` is NULL or NUL-terminated by this function's contract.
        let file = unsafe { path(file, "file") }?;
        // SAFETY: `inference` is NULL or valid for writing by this function's contract.
        let out = unsafe { Out::new(inference, "inference") }?;
        let engine = engine(model)?;
        let settings = snapshot(options)?;
        out.write(pointer(INFERENCES.insert(Generation::load(&engine, &file, &settings)?)?));
        Ok(0)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}
