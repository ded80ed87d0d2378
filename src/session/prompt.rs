//! From what a caller asks to token ids.

use super::chat::Chat;
use super::{Prompt, SessionOptions};
use crate::engine::Engine;
use crate::tokenizer::chat::Rendered;
use crate::tokenizer::{EncodeOptions, TokenKind};
use crate::{Error, Result};

/// Longest prompt that is looked at, in bytes per token of context; more where the vocabulary has longer tokens.
const MAX_BYTES_PER_TOKEN: usize = 256;

/// The token ids of a prompt, and the chat that it is.
pub fn tokenize(engine: &Engine, prompt: Prompt, options: &SessionOptions) -> Result<(Vec<u32>, Option<Chat>)> {
    let ids = match prompt {
        Prompt::Text(text) => {
            check_len(engine, text)?;
            let options = EncodeOptions { add_special: true, ..Default::default() };
            engine.tokenizer().encode(text, options)?
        }
        Prompt::User(_) | Prompt::Chat(_) => {
            let chat = parse(engine, prompt)?;
            return Ok((encode_chat(engine, &chat, options)?, Some(chat)));
        }
        Prompt::Tokens(tokens) => {
            if let Some(at) = tokens.iter().position(|&token| token as usize >= engine.n_vocab()) {
                let expected = format!("an id below {}", engine.n_vocab());
                return Err(Error::invalid_argument(format!("tokens[{at}]"), expected, tokens[at]));
            }
            if tokens.len() >= engine.n_ctx() {
                return Err(Error::PromptTooLong { found: tokens.len(), n_ctx: engine.n_ctx() });
            }
            let mut ids = crate::error::try_vec(tokens.len(), "the prompt")?;
            ids.extend_from_slice(tokens);
            ids
        }
        Prompt::Rendered(text) => with_bos(engine, encode_rendered(engine, text)?)?,
        Prompt::RenderedOrUser(text) => {
            let tokenizer = engine.tokenizer();
            let ids = encode_rendered(engine, text)?;
            let rendered = ids.iter().any(|id| tokenizer.token_kind(*id) == Some(TokenKind::Control));
            if !rendered && engine.chat_template_names().next().is_some() {
                return tokenize(engine, Prompt::User(text), options);
            }
            with_bos(engine, ids)?
        }
    };
    Ok((ids, None))
}

/// The token ids of all that has been said and a further turn, and the chat that it is. `answer` is what the model said last.
pub fn tokenize_further(
    engine: &Engine,
    so_far: (&[u32], Option<&Chat>, Option<&str>),
    prompt: Prompt,
    options: &SessionOptions,
) -> Result<(Vec<u32>, Option<Chat>)> {
    let (tokens, chat, answer) = so_far;
    let more = match prompt {
        Prompt::User(_) | Prompt::Chat(_) | Prompt::RenderedOrUser(_) => {
            let mut chat = chat.cloned().ok_or_else(|| {
                let expected = "tokens or a text where the inference is no chat, or was rewound into a prompt";
                Error::invalid_argument("prompt", expected, "a chat")
            })?;
            chat.go_on(answer, parse(engine, prompt)?)?;
            return Ok((encode_chat(engine, &chat, options)?, Some(chat)));
        }
        Prompt::Text(text) => {
            check_len(engine, text)?;
            engine.tokenizer().encode_further(text)?
        }
        Prompt::Tokens(_) => tokenize(engine, prompt, options)?.0,
        Prompt::Rendered(text) => encode_rendered(engine, text)?,
    };
    let mut all = crate::error::try_vec(tokens.len() + more.len(), "the prompt")?;
    all.extend_from_slice(tokens);
    all.extend_from_slice(&more);
    Ok((all, None))
}

/// The tokens of what the template makes of a chat. What messages say stays text; only the template makes control tokens.
fn encode_chat(engine: &Engine, chat: &Chat, options: &SessionOptions) -> Result<Vec<u32>> {
    let rendered = chat.render(engine, options.template.as_deref(), options.template_name.as_deref())?;
    let options = EncodeOptions { add_special: false, parse_special: true, broken_by: rendered.broken_by };
    engine.tokenizer().encode(&rendered.text, options)
}

/// The tokens of a text in which control tokens count, and none besides.
fn encode_rendered(engine: &Engine, text: &str) -> Result<Vec<u32>> {
    check_len(engine, text)?;
    engine.tokenizer().encode(text, EncodeOptions { parse_special: true, ..Default::default() })
}

/// Puts BOS in front where the model wants it and it is not there.
fn with_bos(engine: &Engine, mut ids: Vec<u32>) -> Result<Vec<u32>> {
    let tokenizer = engine.tokenizer();
    if let Some(bos) = tokenizer.bos().filter(|bos| tokenizer.add_bos() && ids.first() != Some(bos)) {
        ids.try_reserve(1).map_err(|_| Error::OutOfMemory { what: "the prompt".into(), bytes: 4 })?;
        ids.insert(0, bos);
    }
    Ok(ids)
}

/// What the template makes of a prompt that is a chat.
///
/// # Errors
/// A prompt that is too long, or no chat; a template that is missing or fails.
pub fn render(engine: &Engine, prompt: Prompt, options: &SessionOptions) -> Result<Rendered> {
    parse(engine, prompt)?.render(engine, options.template.as_deref(), options.template_name.as_deref())
}

/// The chat that a prompt is.
fn parse(engine: &Engine, prompt: Prompt) -> Result<Chat> {
    let (Prompt::User(text) | Prompt::Chat(text) | Prompt::RenderedOrUser(text)) = prompt else {
        return Err(Error::invalid_argument("prompt", "a chat", "something else"));
    };
    check_len(engine, text)?;
    check_room(text)?;
    if matches!(prompt, Prompt::Chat(_)) { Chat::parse(text) } else { Ok(Chat::user(text)) }
}

/// Texts that are too long for any tokenizer are refused before anything is computed or allocated.
fn check_len(engine: &Engine, text: &str) -> Result<()> {
    let most_per_token = MAX_BYTES_PER_TOKEN.max(engine.max_token_bytes());
    if text.len().div_ceil(most_per_token) > engine.n_ctx() {
        return Err(Error::PromptTextTooLong { bytes: text.len(), n_ctx: engine.n_ctx() });
    }
    Ok(())
}

/// Messages are copied by code whose allocations cannot fail: asks for their memory first, and gives it back.
fn check_room(text: &str) -> Result<()> {
    const BYTES_PER_VALUE: usize = 128;
    const COPIES: usize = 8;
    let n_values = text.bytes().filter(|b| matches!(b, b',' | b':' | b'[' | b'{')).count();
    let bytes = n_values.saturating_mul(BYTES_PER_VALUE).saturating_add(text.len().saturating_mul(COPIES));
    crate::error::try_vec::<u8>(bytes, "the messages").map(drop)
}
