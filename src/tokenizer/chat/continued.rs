//! A last message that the model is to go on with, as transformers does it: a tag is put behind its text, and the
//! prompt ends where the tag comes out.

use serde_json::Value as Json;

use crate::{Error, Result};

/// `messages` with `tag` and a space behind the text of the last one.
///
/// # Errors
/// [`Error::InvalidArgument`] when the last message has no text.
pub fn tagged(messages: &Json, tag: char) -> Result<Json> {
    let mut messages = messages.clone();
    let last = messages.as_array_mut().and_then(|items| items.last_mut());
    let text = match last.and_then(|message| message.get_mut("content")) {
        Some(Json::String(text)) => Some(text),
        Some(Json::Array(parts)) => parts.iter_mut().rev().find_map(|part| match part.get_mut("text") {
            Some(Json::String(text)) => Some(text),
            _ => None,
        }),
        _ => None,
    };
    let text = text.ok_or_else(|| {
        Error::invalid_argument("messages", "a last message with text in \"content\" to go on with", "none")
    })?;
    text.push(tag);
    text.push(' ');
    Ok(messages)
}

/// `text` up to its last `tag`, without the other ones. A template that took the space behind the tag away would have
/// taken white space before it too.
///
/// # Errors
/// [`Error::BadTemplate`] when the template left the tag out.
pub fn cut(text: &str, tag: char) -> Result<String> {
    let (before, after) = text.rsplit_once(tag).ok_or_else(|| {
        Error::BadTemplate("expected the whole last message in the prompt, to go on with it, found less".to_string())
    })?;
    let before = if after.starts_with(' ') { before } else { before.trim_end() };
    Ok(before.replace(&format!("{tag} "), "").replace(tag, ""))
}
