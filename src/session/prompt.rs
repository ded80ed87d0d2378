//! From what a caller asks to token ids.

use serde_json::Value;

use super::Prompt;
use crate::engine::Engine;
use crate::tokenizer::chat::{self, RenderOptions};
use crate::tokenizer::{EncodeOptions, TokenKind};
use crate::{Error, Result};

/// Longest prompt that is looked at, in bytes per token of context; more where the vocabulary has longer tokens.
const MAX_BYTES_PER_TOKEN: usize = 256;

/// The token ids of a prompt.
pub fn tokenize(engine: &Engine, prompt: Prompt) -> Result<Vec<u32>> {
    match prompt {
        Prompt::Text(text) => {
            check_len(engine, text)?;
            let options = EncodeOptions { add_special: true, ..Default::default() };
            engine.tokenizer().encode(text, options)
        }
        Prompt::User(text) => {
            check_len(engine, text)?;
            check_room(text)?;
            encode_chat(engine, &chat::messages([("user", text)]))
        }
        Prompt::Chat(json) => {
            check_len(engine, json)?;
            check_room(json)?;
            let messages: Value = serde_json::from_str(json)
                .map_err(|e| Error::invalid_argument("prompt", "a JSON array of messages", e))?;
            encode_chat(engine, &messages)
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
            Ok(ids)
        }
        Prompt::Rendered(text) => with_bos(engine, encode_rendered(engine, text)?),
        Prompt::RenderedOrUser(text) => {
            let tokenizer = engine.tokenizer();
            let ids = encode_rendered(engine, text)?;
            let rendered = ids.iter().any(|id| tokenizer.token_kind(*id) == Some(TokenKind::Control));
            if rendered || tokenizer.chat_template().is_none() {
                return with_bos(engine, ids);
            }
            tokenize(engine, Prompt::User(text))
        }
    }
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

/// Renders messages with the model's template. What they say stays text; only the template makes control tokens.
fn encode_chat(engine: &Engine, messages: &Value) -> Result<Vec<u32>> {
    let tokenizer = engine.tokenizer();
    let text_of = |token: Option<u32>| token.and_then(|id| std::str::from_utf8(tokenizer.token_bytes(id, true)).ok());
    let options = RenderOptions {
        add_generation_prompt: true,
        bos_token: text_of(tokenizer.bos()),
        eos_token: text_of(tokenizer.eos()),
        ..Default::default()
    };
    let rendered = chat::render_guarded(engine.chat_template()?, messages, &options, engine.control_tokens())?;
    let options = EncodeOptions { add_special: false, parse_special: true, broken_by: rendered.broken_by };
    tokenizer.encode(&rendered.text, options)
}
