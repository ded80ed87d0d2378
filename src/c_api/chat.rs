//! Chats: what the template makes of one, without a generation.

use super::boundary::{Buffer, export, prompt};
use super::error::kigo_error;
use super::model::{engine, kigo_model};
use super::options::{kigo_options, snapshot};
use super::settings::PromptFormat;
use crate::session::{Prompt, render_prompt};
use std::ffi::c_char;

/// Renders a chat with the chat template and generates nothing.
///
/// The text is for people to look at. Generate from the chat itself: in the text, what a user wrote cannot be told
/// from what the template wrote, and a user's text may spell control tokens.
///
/// @param model         The model; not changed.
/// @param messages      The chat in JSON, as "Chats" describes it; with the prompt_format "user" one message of a
///                      user.
/// @param messages_len  Bytes in `messages`, or KIGO_NUL_TERMINATED if a NUL ends it.
/// @param options       Options, or NULL for the defaults; not kept. The prompt_format "text" counts as "chat".
/// @param buffer        Where the text and a NUL are written; may be NULL if `size` is 0.
/// @param size          Bytes in `buffer`; 0 only asks for the size needed.
/// @param error         Where an error is written on failure, or NULL.
/// @returns The bytes that the text and its NUL take, so at least 1. A text with NULs of messages counts them.
///   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
///   - KIGO_BAD_TEMPLATE: the chat template is missing or failed; the message says where.
///   - KIGO_INVALID_ARGUMENT: `messages` is NULL or no chat; the message names the key. Or `buffer` is NULL though
///     `size` is not 0.
///   - KIGO_INVALID_UTF8: `messages` is not UTF-8.
///   - KIGO_PROMPT_TOO_LONG: the chat is far too long for the context of the model.
///   - KIGO_OUT_OF_MEMORY: there is no room for the chat.
///   - KIGO_INVALID_HANDLE: `model` is not live, or `options` is neither NULL nor live.
///   - KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `messages` is NULL or readable for `messages_len` bytes, or NUL-terminated; `buffer` is NULL or valid for writing
/// the answer if that fits into `size` bytes; `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_chat_render(
    model: *const kigo_model,
    messages: *const c_char,
    messages_len: usize,
    options: *const kigo_options,
    buffer: *mut c_char,
    size: usize,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `messages` is NULL, readable for `messages_len` bytes or NUL-terminated by this function's contract.
        let messages = unsafe { prompt(messages, messages_len, "messages") }?;
        // SAFETY: `buffer` is NULL or large enough for an answer that fits into `size` bytes by the contract.
        let buffer = unsafe { Buffer::new(buffer, size, "buffer") }?;
        let engine = engine(model)?;
        let settings = snapshot(options)?;
        let chat = match settings.prompt_format {
            PromptFormat::User => Prompt::User(messages),
            PromptFormat::Text | PromptFormat::Chat => Prompt::Chat(messages),
        };
        let text = render_prompt(&engine, chat, &settings.session)?.plain();
        Ok(buffer.answer(&text)?)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}
