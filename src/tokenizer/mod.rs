//! Text to token ids and back, as the metadata of a GGUF file describes it.
//!
//! [`Tokenizer::from_gguf`] (`load.rs`) reads the vocabulary; [`Tokenizer::encode`] cuts special tokens out of a text
//! (`special.rs`), the rest into pieces (`pretokenize.rs`), and merges the bytes (`bpe.rs`) or characters (`spm.rs`) of
//! each piece (`merge.rs`). A tokenizer.json (`json.rs`) may take the place of the vocabulary. Time is linear in the text, n log n inside one piece.
//!
//! Text is taken as it is, but for the families whose models were trained on composed characters (`nfc.rs`): Qwen, OLMo,
//! MPT, Command R. llama.cpp does not compose them; text that is composed already, as nearly all is, gives the same tokens.

mod bpe;
pub mod chat;
mod hash;
mod json;
mod load;
mod merge;
mod nfc;
mod pretokenize;
mod special;
mod spm;

use std::time::Instant;

use crate::error::{Error, Result};
use crate::gguf::StringArray;
use bpe::{Bpe, out_of_memory, text_of};
use special::{Fragment, SpecialIds, Specials};
use spm::Spm;

/// What a token is, with the numbers of `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TokenKind {
    /// Ordinary text.
    Normal = 1,
    /// Stands for text that the vocabulary does not have.
    Unknown = 2,
    /// Steers the model and is no text: start of a turn, end of a generation.
    Control = 3,
    /// Text that is always this one token.
    UserDefined = 4,
    /// Reserved.
    Unused = 5,
    /// One byte.
    Byte = 6,
}

impl TokenKind {
    /// Whether it is cut out of trusted text as a whole.
    fn is_special(self) -> bool {
        matches!(self, TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined)
    }

    /// Whether it adds nothing to streamed text.
    fn is_silent(self) -> bool {
        matches!(self, TokenKind::Control | TokenKind::Unknown)
    }

    /// Whether merging may make it.
    fn is_piece(self) -> bool {
        matches!(self, TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused)
    }
}

/// How [`Tokenizer::encode`] reads a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Add BOS before and EOS after, where the model wants them.
    pub add_special: bool,
    /// Texts of control and unknown tokens become those tokens: for text from a chat template, never for a user's.
    pub parse_special: bool,
    /// A character that whoever built the text put into what must not become a special token. Special tokens are
    /// looked for with the character in place; then it is removed, and the rest is encoded as if it had never been. A
    /// token of one character cannot be broken inside; two of them before it keep it from being special.
    pub broken_by: Option<char>,
}

/// The vocabulary of a model and the rules to use it. Immutable, so that threads may share it.
#[derive(Debug)]
pub struct Tokenizer {
    /// The bytes that each token stands for; the text itself for special tokens.
    texts: StringArray,
    kinds: Vec<TokenKind>,
    model: Model,
    specials: Specials,
    ids: SpecialIds,
    add_bos: bool,
    add_eos: bool,
    /// Names and sources.
    chat_templates: Vec<(String, String)>,
    max_token_bytes: usize,
}

#[derive(Debug)]
enum Model {
    Bpe(Bpe),
    Spm(Spm),
}

impl Tokenizer {
    /// How many tokens there are; ids are below.
    pub fn n_vocab(&self) -> usize {
        self.kinds.len()
    }

    /// The tokens of `text`, at most one per byte and two more.
    ///
    /// Byte-level vocabularies may lack single bytes; such a byte is left out, as the reference tokenizers do.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Limit`] from 4 GiB of text, [`Error::BadFile`] when an expression of a tokenizer.json
    /// comes to no end.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>> {
        self.encode_from(text, options, true)
    }

    /// The tokens of a text that goes on from another: plain text, without a space that its beginning would get.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_further(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_from(text, EncodeOptions::default(), false)
    }

    fn encode_from(&self, text: &str, options: EncodeOptions, mut starts: bool) -> Result<Vec<u32>> {
        if u32::try_from(text.len()).is_err() {
            return Err(Error::Limit { what: "bytes of text to tokenize", limit: u64::from(u32::MAX) });
        }
        let (mut out, mut symbols, mut whole) = (Vec::new(), Vec::new(), String::new());
        let (bos, eos) = (self.bos().filter(|_| self.add_bos), self.eos().filter(|_| self.add_eos));
        out.try_reserve(2).map_err(|_| out_of_memory(2))?;
        out.extend(bos.filter(|_| options.add_special));
        let began = Instant::now();
        let special = (options.parse_special, options.broken_by);
        self.specials.split(text, &self.texts, special, |fragment| {
            let text = match fragment {
                Fragment::Special(id) => {
                    starts = true;
                    out.try_reserve(2).map_err(|_| out_of_memory(out.len()))?;
                    out.push(id);
                    return Ok(());
                }
                Fragment::Text(text) => without(text, options.broken_by, &mut whole)?,
            };
            if text.is_empty() {
                return Ok(());
            }
            match &self.model {
                Model::Bpe(bpe) => bpe.encode(text, &self.texts, began, &mut symbols, &mut out)?,
                Model::Spm(spm) => spm.encode(text, starts, &mut symbols, &mut out)?,
            }
            starts = false;
            Ok(())
        })?;
        if let Some(eos) = eos.filter(|_| options.add_special) {
            out.try_reserve(1).map_err(|_| out_of_memory(out.len()))?;
            out.push(eos);
        }
        Ok(out)
    }

    /// The bytes that a token adds to a text; they may be part of a character. Empty for an id that is no token,
    /// and for control and unknown tokens unless `special` is set.
    pub fn token_bytes(&self, id: u32, special: bool) -> &[u8] {
        match self.kinds.get(id as usize) {
            Some(kind) if special || !kind.is_silent() => text_of(&self.texts, id),
            _ => &[],
        }
    }

    /// The bytes of all tokens in order. A tokenizer that puts a space before a text takes it away again, so that
    /// `decode(encode(text))` is the text.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn decode(&self, ids: &[u32], special: bool) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut space = self.adds_space_prefix();
        for &id in ids {
            let mut token = self.token_bytes(id, special);
            if space && !token.is_empty() {
                token = token.strip_prefix(b" ").unwrap_or(token);
                space = false;
            }
            bytes.try_reserve(token.len()).map_err(|_| out_of_memory(ids.len()))?;
            bytes.extend_from_slice(token);
        }
        Ok(bytes)
    }

    /// Whether [`Tokenizer::encode`] puts a space before a text. An answer is no text of its own but goes on from
    /// the prompt, so a space that it begins with belongs to it.
    pub fn adds_space_prefix(&self) -> bool {
        match &self.model {
            Model::Bpe(_) => false,
            Model::Spm(spm) => spm.adds_space_prefix(),
        }
    }

    /// What the token is, if it is one.
    pub fn token_kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.ids.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.ids.eos
    }

    /// The token that ends a turn of a chat.
    pub fn eot(&self) -> Option<u32> {
        self.ids.eot
    }

    /// The token that ends a message which another message of the same turn follows.
    pub fn eom(&self) -> Option<u32> {
        self.ids.eom
    }

    /// The token for what the vocabulary does not have.
    pub fn unknown(&self) -> Option<u32> {
        self.ids.unknown
    }

    /// The token between two texts.
    pub fn sep(&self) -> Option<u32> {
        self.ids.sep
    }

    /// The token that fills up a batch.
    pub fn pad(&self) -> Option<u32> {
        self.ids.pad
    }

    /// The token for what is to be guessed.
    pub fn mask(&self) -> Option<u32> {
        self.ids.mask
    }

    /// The marks of places in code, each if there is one: prefix, suffix, middle, padding, repository, file separator.
    pub fn fim(&self) -> [Option<u32>; 6] {
        self.ids.fim
    }

    /// Whether a prompt begins with [`Tokenizer::bos`], which is then there.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether a prompt ends with [`Tokenizer::eos`], which is then there.
    pub fn add_eos(&self) -> bool {
        self.add_eos
    }

    /// Whether a generation ends with this token: EOS, EOT, EOM, and tokens with the well-known texts of such.
    pub fn is_eog(&self, id: u32) -> bool {
        self.ids.eog.binary_search(&id).is_ok()
    }

    /// The ids of all tokens that end a generation, ascending.
    pub fn eog(&self) -> &[u32] {
        &self.ids.eog
    }

    /// The name of `tokenizer.chat_template`.
    pub const DEFAULT_TEMPLATE: &str = "default";

    /// Names and sources of the chat templates: `tokenizer.chat_template`, which is called [`Self::DEFAULT_TEMPLATE`], then
    /// those that `tokenizer.chat_templates` names.
    pub fn chat_templates(&self) -> &[(String, String)] {
        &self.chat_templates
    }

    /// The texts of all control and unknown tokens: what a user's text may contain and `parse_special` would turn
    /// into tokens.
    pub fn control_tokens(&self) -> impl Iterator<Item = &str> {
        let tokens = self.texts.iter().zip(&self.kinds);
        tokens.filter(|(_, kind)| kind.is_silent()).filter_map(|(text, _)| std::str::from_utf8(text).ok())
    }

    /// The length of the longest token. A text of n bytes has at least n / `max_token_bytes` tokens.
    pub fn max_token_bytes(&self) -> usize {
        self.max_token_bytes
    }
}

/// `text` without the character `broken_by`; `buffer` holds the result when there is something to remove.
fn without<'a>(text: &'a str, broken_by: Option<char>, buffer: &'a mut String) -> Result<&'a str> {
    let Some(marker) = broken_by.filter(|&marker| text.contains(marker)) else {
        return Ok(text);
    };
    buffer.clear();
    let bytes = text.len() as u64;
    buffer
        .try_reserve(text.len())
        .map_err(|_| Error::OutOfMemory { what: "the text to tokenize".to_string(), bytes })?;
    buffer.extend(text.split(marker));
    Ok(buffer)
}
