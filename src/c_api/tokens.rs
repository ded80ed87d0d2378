//! Tokens: text to ids and back, and what a token is.

use super::boundary::{Buffer, Numbers, array, export, prompt, text};
use super::error::kigo_error;
use super::model::{Fact, engine, find, kigo_model};
use crate::engine::Engine;
use crate::tokenizer::{EncodeOptions, TokenKind, Tokenizer};
use crate::{Error, Result};
use std::ffi::c_char;

const ADD_SPECIAL: i32 = 1;
const PARSE_SPECIAL: i32 = 2;
const SHOW_SPECIAL: i32 = 1;

/// Flags: name in C, number, meaning.
pub(super) const FLAGS: [(&str, i32, &str); 3] = [
    (
        "KIGO_TOKENIZE_ADD_SPECIAL",
        ADD_SPECIAL,
        "kigo_model_tokenize(): adds the token that begins a text, and the one that ends it, where the model wants them.",
    ),
    (
        "KIGO_TOKENIZE_PARSE_SPECIAL",
        PARSE_SPECIAL,
        "kigo_model_tokenize(): texts of control tokens become those tokens. Never for what a user wrote.",
    ),
    (
        "KIGO_DETOKENIZE_SPECIAL",
        SHOW_SPECIAL,
        "kigo_model_detokenize(): writes the texts of control and unknown tokens too.",
    ),
];

const UNUSED: i32 = 16;
const END_OF_GENERATION: i32 = 64;

/// Attributes of tokens: name in C, number, meaning.
pub(super) const ATTRIBUTES: [(&str, i32, &str); 7] = [
    ("KIGO_TOKEN_NORMAL", 1, "Ordinary text."),
    ("KIGO_TOKEN_UNKNOWN", 2, "Stands for text that the vocabulary does not have."),
    ("KIGO_TOKEN_CONTROL", 4, "Steers the model and is no text."),
    ("KIGO_TOKEN_USER_DEFINED", 8, "A text that is always this one token."),
    ("KIGO_TOKEN_UNUSED", UNUSED, "Reserved, or past the end of the vocabulary."),
    ("KIGO_TOKEN_BYTE", 32, "One byte."),
    ("KIGO_TOKEN_END_OF_GENERATION", END_OF_GENERATION, "Ends a generation; beside one of the others."),
];

fn attribute(kind: TokenKind) -> i32 {
    match kind {
        TokenKind::Normal => 1,
        TokenKind::Unknown => 2,
        TokenKind::Control => 4,
        TokenKind::UserDefined => 8,
        TokenKind::Unused => UNUSED,
        TokenKind::Byte => 32,
    }
}

type IdOf = fn(&Tokenizer) -> Option<u32>;

/// What kigo_model_special_token() knows.
pub(super) static SPECIAL: &[Fact<IdOf>] = &[
    Fact { key: "bos", doc: "Begins a text.", get: Tokenizer::bos },
    Fact { key: "eos", doc: "Ends a text.", get: Tokenizer::eos },
    Fact { key: "eot", doc: "Ends a turn of a chat.", get: Tokenizer::eot },
    Fact { key: "eom", doc: "Ends a message that another of the same turn follows.", get: Tokenizer::eom },
    Fact { key: "unk", doc: "Stands for what the vocabulary does not have.", get: Tokenizer::unknown },
    Fact { key: "sep", doc: "Stands between two texts.", get: Tokenizer::sep },
    Fact { key: "pad", doc: "Fills up a batch.", get: Tokenizer::pad },
    Fact { key: "mask", doc: "Stands for what is to be guessed.", get: Tokenizer::mask },
    Fact { key: "fim_pre", doc: "Before the code that precedes the gap.", get: |tokenizer| tokenizer.fim()[0] },
    Fact { key: "fim_suf", doc: "Before the code that follows the gap.", get: |tokenizer| tokenizer.fim()[1] },
    Fact { key: "fim_mid", doc: "Before the code that fills the gap.", get: |tokenizer| tokenizer.fim()[2] },
    Fact { key: "fim_pad", doc: "Fills up, in code.", get: |tokenizer| tokenizer.fim()[3] },
    Fact { key: "fim_rep", doc: "Before the name of a repository.", get: |tokenizer| tokenizer.fim()[4] },
    Fact { key: "fim_sep", doc: "Before the name of a file.", get: |tokenizer| tokenizer.fim()[5] },
];

/// Refuses flags that are none.
fn check_flags(flags: i32, known: i32) -> Result<()> {
    if flags & !known == 0 {
        return Ok(());
    }
    Err(Error::invalid_argument("flags", "flags of this function only", format!("{flags:#x}")))
}

/// The token that C calls `id`.
fn token(id: i32, argument: impl ToString, engine: &Engine) -> Result<u32> {
    match u32::try_from(id) {
        Ok(token) if (token as usize) < engine.n_vocab() => Ok(token),
        _ => {
            let expected = format!("an id from 0 to {}", engine.n_vocab().saturating_sub(1));
            Err(Error::invalid_argument(argument, expected, id))
        }
    }
}

/// The tokens of a text.
///
/// Without flags they are those of the text alone, in which nothing becomes a control token: concatenated parts of a
/// prompt are best made of such.
///
/// @param model     The model; not changed.
/// @param text      The text in UTF-8; may be NULL if `text_len` is 0.
/// @param text_len  Bytes in `text`, NULs included, or KIGO_NUL_TERMINATED if a NUL ends it.
/// @param flags     KIGO_TOKENIZE_ADD_SPECIAL, KIGO_TOKENIZE_PARSE_SPECIAL, both or 0.
/// @param tokens    Where the ids are written; may be NULL if `size` is 0.
/// @param size      How many ids `tokens` has room for; one for each byte and two more are always enough. 0 only asks
///                  for the number.
/// @param error     Where an error is written on failure, or NULL.
/// @returns How many tokens the text has, 0 or more.
///   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the number needed.
///   - KIGO_INVALID_ARGUMENT: `flags` has others, `text` is NULL though `text_len` is not 0, or `tokens` is NULL though
///     `size` is not 0.
///   - KIGO_INVALID_UTF8: `text` is not UTF-8; the message names the first wrong byte.
///   - KIGO_BAD_FILE: an expression of the tokenizer.json of the model came to no end.
///   - KIGO_OUT_OF_MEMORY: there is no room for the tokens.
///   - KIGO_LIMIT: the text has 4 GiB or more.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `text` is NULL or readable for `text_len` bytes, or NUL-terminated; `tokens` is NULL or valid for writing the ids if
/// they fit into `size`; `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_tokenize(
    model: *const kigo_model,
    text: *const c_char,
    text_len: usize,
    flags: i32,
    tokens: *mut i32,
    size: usize,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `text` is NULL, readable for `text_len` bytes or NUL-terminated by this function's contract.
        let text = unsafe { prompt(text, text_len, "text") }?;
        // SAFETY: `tokens` is NULL or valid for writing `size` ids, or as many as there are, by the contract.
        let out = unsafe { Numbers::new(tokens, size, "tokens") }?;
        check_flags(flags, ADD_SPECIAL | PARSE_SPECIAL)?;
        let options = EncodeOptions {
            add_special: flags & ADD_SPECIAL != 0,
            parse_special: flags & PARSE_SPECIAL != 0,
            broken_by: None,
        };
        let ids = engine(model)?.tokenizer().encode(text, options)?;
        Ok(out.answer("tokens", ids.iter().map(|id| *id as i32))?)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// The text of tokens, as bytes: where tokens begin or end inside a character, they are not UTF-8.
///
/// A tokenizer that puts a space before a text takes it away again, so that the tokens of a text give that text.
///
/// @param model     The model; not changed.
/// @param tokens    The ids, each from 0 to n_vocab - 1; may be NULL if `n_tokens` is 0.
/// @param n_tokens  How many there are.
/// @param flags     KIGO_DETOKENIZE_SPECIAL or 0.
/// @param buffer    Where the bytes and a NUL are written; may be NULL if `size` is 0.
/// @param size      Bytes in `buffer`; 0 only asks for the size needed.
/// @param error     Where an error is written on failure, or NULL.
/// @returns The bytes of the text and its NUL, so at least 1. A text with NULs counts them.
///   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
///   - KIGO_INVALID_ARGUMENT: `flags` has others, an id is outside the vocabulary, `tokens` is NULL though `n_tokens` is
///     not 0, or `buffer` is NULL though `size` is not 0.
///   - KIGO_OUT_OF_MEMORY: there is no room for the text.
///   - KIGO_INVALID_HANDLE, KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `tokens` is NULL or readable for `n_tokens` ids; `buffer` is NULL or valid for writing the answer if that fits into
/// `size` bytes; `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_detokenize(
    model: *const kigo_model,
    tokens: *const i32,
    n_tokens: usize,
    flags: i32,
    buffer: *mut c_char,
    size: usize,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `tokens` is NULL or readable for `n_tokens` ids by this function's contract.
        let tokens = unsafe { array(tokens, n_tokens, "tokens") }?;
        // SAFETY: `buffer` is NULL or large enough for an answer that fits into `size` bytes by the contract.
        let buffer = unsafe { Buffer::new(buffer, size, "buffer") }?;
        check_flags(flags, SHOW_SPECIAL)?;
        let engine = engine(model)?;
        let mut ids = crate::error::try_vec(tokens.len(), "the tokens")?;
        for (index, id) in tokens.iter().enumerate() {
            ids.push(token(*id, format_args!("tokens[{index}]"), &engine)?);
        }
        let bytes = engine.tokenizer().decode(&ids, flags & SHOW_SPECIAL != 0)?;
        Ok(buffer.answer_bytes(&bytes)?)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// The bytes of one token, as the vocabulary has them: those of control and unknown tokens too, which
/// kigo_next_token() leaves out.
///
/// @param model   The model; not changed.
/// @param token   The id, from 0 to n_vocab - 1.
/// @param bytes   Where the bytes are written, without a NUL; may be NULL if `size` is 0.
/// @param size    Bytes in `bytes`; "max_token_bytes" of the model is always enough. 0 only asks for the size needed.
/// @param error   Where an error is written on failure, or NULL.
/// @returns How many bytes the token has, 0 or more.
///   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
///   - KIGO_INVALID_ARGUMENT: the vocabulary has no such id, or `bytes` is NULL though `size` is not 0.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `bytes` is NULL or valid for writing the bytes of the token if they fit into `size`; `error` is NULL or valid for
/// writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_token_bytes(
    model: *const kigo_model,
    token: i32,
    bytes: *mut c_char,
    size: usize,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `bytes` is NULL or large enough for an answer that fits into `size` bytes by the contract.
        let buffer = unsafe { Buffer::new(bytes, size, "bytes") }?;
        let engine = engine(model)?;
        let token = self::token(token, "token", &engine)?;
        let bytes = engine.tokenizer().token_bytes(token, true);
        Ok(if buffer.is_query() { Buffer::size_of(bytes) } else { buffer.write(bytes) }?)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// What a token is.
///
/// @param model  The model; not changed.
/// @param token  The id, from 0 to n_vocab - 1.
/// @param error  Where an error is written on failure, or NULL.
/// @returns KIGO_TOKEN_ numbers: one of the first six, and KIGO_TOKEN_END_OF_GENERATION added where it is such.
///   - KIGO_INVALID_ARGUMENT: the vocabulary has no such id.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_token_attributes(
    model: *const kigo_model,
    token: i32,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        let engine = engine(model)?;
        let token = self::token(token, "token", &engine)?;
        let tokenizer = engine.tokenizer();
        let ends = if tokenizer.is_eog(token) { END_OF_GENERATION } else { 0 };
        Ok(tokenizer.token_kind(token).map_or(UNUSED, attribute) | ends)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}

/// The id of a token with a meaning of its own.
///
/// @param model  The model; not changed.
/// @param key    Which, as "Special tokens" lists them.
/// @param error  Where an error is written on failure, or NULL.
/// @returns Its id, 0 or more.
///   - KIGO_NOT_FOUND: the model has no such token.
///   - KIGO_INVALID_ARGUMENT: `key` is NULL or none of the list.
///   - KIGO_INVALID_UTF8: `key` is not UTF-8.
///   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
///
/// Any thread may call it at any time.
///
/// # Safety
/// `key` is NULL or NUL-terminated; `error` is NULL or valid for writing one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kigo_model_special_token(
    model: *const kigo_model,
    key: *const c_char,
    error: *mut *mut kigo_error,
) -> i32 {
    let body = || {
        // SAFETY: `key` is NULL or NUL-terminated by this function's contract.
        let key = unsafe { text(key, "key") }?;
        let engine = engine(model)?;
        let id = find(SPECIAL, key, &[])?(engine.tokenizer());
        let absent = || Error::NotFound { argument: "key", what: "token", key: key.to_owned() };
        Ok(id.ok_or_else(absent)? as i32)
    };
    // SAFETY: `error` is NULL or valid for writing by this function's contract.
    unsafe { export(error, body) }
}
