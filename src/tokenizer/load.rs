//! Reads a tokenizer from the metadata of a GGUF file.

use super::bpe::{Bpe, bytes_of, text_of};
use super::hash::{Merge, PairTable, TextIndex};
use super::pretokenize::Family;
use super::special::{SpecialIds, Specials};
use super::spm::{SPACE, Spm, byte_of};
use super::{Model, TokenKind, Tokenizer};
use crate::error::{Error, Result, quoted, try_vec};
use crate::gguf::{Metadata, StringArray};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const EXTRA_SPACE: &str = "tokenizer.ggml.remove_extra_whitespaces";

/// How a vocabulary is written and merged: values of `tokenizer.ggml.model`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `gpt2`
    Bpe,
    /// `llama`
    Spm,
}

impl Tokenizer {
    /// Reads the tokenizer that `metadata` describes. Of tokens with the same text the last one is used to encode.
    ///
    /// # Errors
    /// [`Error::UnsupportedTokenizer`] for a `tokenizer.ggml.model` or `tokenizer.ggml.pre` that is not known.
    /// [`Error::BadFile`] when a key is missing or of the wrong type; there are no tokens; scores or token types are
    /// not as many as tokens; the id of a special token is no token; BOS or EOS is to be added and has no id; a
    /// merge has no separator, or is of or to something that is no token.
    pub fn from_gguf(metadata: &Metadata) -> Result<Tokenizer> {
        let scheme = match Metadata::require(MODEL, metadata.str(MODEL)?)? {
            "gpt2" => Scheme::Bpe,
            "llama" => Scheme::Spm,
            other => return Err(unsupported(MODEL, other, "gpt2, llama".to_string())),
        };
        let tokens = Metadata::require(TOKENS, metadata.strings(TOKENS)?)?;
        if tokens.is_empty() || i32::try_from(tokens.len()).is_err() {
            return Err(Error::bad_file(TOKENS, "from 1 to 2147483647 tokens", tokens.len()));
        }
        let scores = metadata.f32s(SCORES)?;
        if let Some(scores) = scores {
            same_length(SCORES, scores.len(), tokens.len())?;
        }
        let kinds = kinds(metadata, tokens.len())?;
        match scheme {
            Scheme::Bpe => {
                let family = family(metadata)?;
                let merges = Metadata::require(MERGES, metadata.strings(MERGES)?)?;
                let setup = Setup { default_add_bos: family.add_bos, ..Setup::new(scheme) };
                assemble(metadata, tokens, kinds, setup, rstrip(metadata), |parts| {
                    let merges = parts.merges(MERGES, merges.len(), merges.iter().map(Pair::of))?;
                    let rules = (family.steps.to_vec(), family.nfc, family.ignore_merges);
                    Ok(Model::Bpe(Bpe::new(tokens, parts.index, merges, parts.texts, rules)?))
                })
            }
            Scheme::Spm => {
                let scores = Metadata::require(SCORES, scores)?;
                if metadata.bool(EXTRA_SPACE)?.unwrap_or(false) {
                    return Err(unsupported(EXTRA_SPACE, "true", "false".to_string()));
                }
                let add_space_prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
                // SentencePiece's own ids; files made before the keys existed rely on them.
                let defaults = [Some(1), Some(2), Some(0)];
                let setup = Setup { default_ids: defaults, default_add_bos: true, ..Setup::new(scheme) };
                assemble(metadata, tokens, kinds, setup, rstrip(metadata), |parts| {
                    Ok(Model::Spm(Spm::new(tokens, parts.kinds, scores, parts.unknown, add_space_prefix)?))
                })
            }
        }
    }
}

/// What tokenizers differ in, beside their tokens.
pub struct Setup {
    pub scheme: Scheme,
    /// BOS, EOS and the unknown token, where the metadata do not give them.
    pub default_ids: [Option<u32>; 3],
    /// Whether BOS and EOS are added where the metadata do not say.
    pub default_add_bos: bool,
    pub default_add_eos: bool,
}

impl Setup {
    /// That of a tokenizer without ids of its own.
    pub fn new(scheme: Scheme) -> Setup {
        Setup { scheme, default_ids: [None; 3], default_add_bos: false, default_add_eos: false }
    }
}

/// What a model is made from.
pub struct Parts<'a> {
    pub tokens: &'a StringArray,
    pub index: &'a TextIndex,
    pub texts: &'a StringArray,
    pub kinds: &'a [TokenKind],
    pub unknown: Option<u32>,
}

/// The texts that a merge joins, or what stands where they should.
pub enum Pair<'a> {
    Parts(&'a [u8], &'a [u8]),
    Wrong(&'a [u8]),
}

impl Pair<'_> {
    /// Two texts with a space between. A token may itself start with a space, so the separator is not the first byte.
    pub fn of(text: &[u8]) -> Pair<'_> {
        match text.iter().skip(1).position(|&b| b == b' ') {
            Some(separator) => Pair::Parts(&text[..=separator], &text[separator + 2..]),
            None => Pair::Wrong(text),
        }
    }
}

impl Parts<'_> {
    /// The table of `n` merges, in the order of their ranks; `field` is where they stand.
    ///
    /// # Errors
    /// [`Error::BadFile`] for a merge without separator, or of or to something that is no token.
    pub fn merges<'m>(&self, field: &str, n: usize, merges: impl Iterator<Item = Pair<'m>>) -> Result<PairTable> {
        let token = |text: &[u8]| self.index.get(text, |id| text_of(self.tokens, id));
        let mut table = PairTable::new(n)?;
        let mut joined = Vec::new();
        for (rank, pair) in (0..).zip(merges) {
            let bad = |found: &str| {
                let expected = "two tokens that join to a third, separated by a space";
                Error::bad_file(format!("{field}[{rank}]"), expected, found)
            };
            let (left, right) = match pair {
                Pair::Parts(left, right) => (left, right),
                Pair::Wrong(text) => return Err(bad(&quoted(text))),
            };
            joined.clear();
            joined.try_reserve(left.len() + right.len()).map_err(|_| super::out_of_memory(left.len() + right.len()))?;
            joined.extend_from_slice(left);
            joined.extend_from_slice(right);
            let unknown =
                |part: &[u8]| bad(&format!("{} {}, and {} is no token", quoted(left), quoted(right), quoted(part)));
            let id = token(&joined).ok_or_else(|| unknown(&joined))?;
            let left = token(left).ok_or_else(|| unknown(left))?;
            let right = token(right).ok_or_else(|| unknown(right))?;
            table.insert(left, right, Merge { rank, id });
        }
        Ok(table)
    }
}

/// Makes a tokenizer of its tokens. The special ids and the chat template are those of the metadata.
pub fn assemble(
    metadata: &Metadata,
    tokens: &StringArray,
    mut kinds: Vec<TokenKind>,
    setup: Setup,
    rstrip: impl Fn(&[u8]) -> bool,
    model: impl FnOnce(&Parts) -> Result<Model>,
) -> Result<Tokenizer> {
    let index = index(tokens)?;
    let find = |text: &str| index.get(text.as_bytes(), |id| text_of(tokens, id));
    let ids = SpecialIds::read(metadata, &mut kinds, find, setup.default_ids)?;
    let texts = texts(tokens, &kinds, setup.scheme)?;
    let model = model(&Parts { tokens, index: &index, texts: &texts, kinds: &kinds, unknown: ids.unknown })?;
    Ok(Tokenizer {
        specials: Specials::new(tokens, &kinds, rstrip)?,
        add_bos: added(metadata, "tokenizer.ggml.add_bos_token", setup.default_add_bos, "bos", ids.bos)?,
        add_eos: added(metadata, "tokenizer.ggml.add_eos_token", setup.default_add_eos, "eos", ids.eos)?,
        chat_templates: chat_templates(metadata)?,
        max_token_bytes: texts.iter().map(<[u8]>::len).max().unwrap_or(0),
        texts,
        kinds,
        model,
        ids,
    })
}

/// The chat templates by name. Of a name the first counts; one without a template is left out, as nobody may want it.
fn chat_templates(metadata: &Metadata) -> Result<Vec<(String, String)>> {
    const KEY: &str = "tokenizer.chat_template";
    const MOST: usize = 32;
    let mut templates: Vec<(String, String)> = Vec::new();
    if let Some(source) = metadata.str(KEY)? {
        templates.push((Tokenizer::DEFAULT_TEMPLATE.to_string(), copied(source)?));
    }
    for name in metadata.strings("tokenizer.chat_templates")?.into_iter().flat_map(StringArray::iter).take(MOST) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        let is_known = templates.iter().any(|(known, _)| known == name);
        if let Some(source) = metadata.str(&format!("{KEY}.{name}"))?.filter(|_| !is_known) {
            templates.push((copied(name)?, copied(source)?));
        }
    }
    Ok(templates)
}

fn copied(text: &str) -> Result<String> {
    let mut copy = String::new();
    let bytes = text.len() as u64;
    copy.try_reserve_exact(text.len())
        .map_err(|_| Error::OutOfMemory { what: "the chat template".to_string(), bytes })?;
    copy.push_str(text);
    Ok(copy)
}

pub fn unsupported(field: &'static str, found: &str, known: String) -> Error {
    let found = quoted(found.as_bytes());
    Error::UnsupportedTokenizer { field, found: found.trim_matches('"').to_string(), known }
}

fn family(metadata: &Metadata) -> Result<&'static Family> {
    let Some(name) = metadata.str(PRE)? else {
        let expected =
            "the name of the pre-tokenizer; convert the model again, or put its tokenizer.json beside the file";
        return Err(Error::bad_file(PRE, expected, "no such key"));
    };
    Family::named(name).ok_or_else(|| unsupported(PRE, name, Family::known()))
}

fn same_length(key: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        Ok(())
    } else {
        Err(Error::bad_file(key, format!("{expected} elements, one per token"), found))
    }
}

/// The kind of every token; without `tokenizer.ggml.token_type` all are normal.
fn kinds(metadata: &Metadata, n_vocab: usize) -> Result<Vec<TokenKind>> {
    let mut kinds = try_vec(n_vocab, "the types of tokens")?;
    let Some(types) = metadata.i32s(TYPES)? else {
        kinds.resize(n_vocab, TokenKind::Normal);
        return Ok(kinds);
    };
    same_length(TYPES, types.len(), n_vocab)?;
    for (id, &kind) in types.iter().enumerate() {
        kinds.push(match kind {
            // 0 is "undefined", which nothing in the vocabulary distinguishes from text.
            0 | 1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => return Err(Error::bad_file(format!("{TYPES}[{id}]"), "a token type from 0 to 6", kind)),
        });
    }
    Ok(kinds)
}

fn index(tokens: &StringArray) -> Result<TextIndex> {
    let mut index = TextIndex::new(tokens.len())?;
    for (id, text) in (0..).zip(tokens.iter()) {
        index.insert(text, id, |id| text_of(tokens, id));
    }
    Ok(index)
}

/// The bytes that each token stands for in a text.
fn texts(tokens: &StringArray, kinds: &[TokenKind], scheme: Scheme) -> Result<StringArray> {
    let mut texts = StringArray::with_capacity(tokens.len())?;
    let mut text = Vec::new();
    for (token, &kind) in tokens.iter().zip(kinds) {
        text.clear();
        text.try_reserve(token.len()).map_err(|_| super::out_of_memory(token.len()))?;
        match (kind, scheme) {
            (TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined, _) => text.extend_from_slice(token),
            (TokenKind::Byte, _) if byte_of(token).is_some() => text.extend(byte_of(token)),
            (_, Scheme::Bpe) => match bytes_of(token) {
                Some(bytes) => text.extend(bytes),
                None => text.extend_from_slice(token),
            },
            (_, Scheme::Spm) => match std::str::from_utf8(token) {
                Ok(token) => token.split(SPACE).enumerate().for_each(|(i, part)| {
                    text.extend_from_slice(if i > 0 { b" " } else { b"" });
                    text.extend_from_slice(part.as_bytes());
                }),
                Err(_) => text.extend_from_slice(token),
            },
        }
        texts.push(&text)?;
    }
    Ok(texts)
}

/// Whether BOS or EOS is added; then it has an id.
fn added(metadata: &Metadata, key: &str, default: bool, name: &str, id: Option<u32>) -> Result<bool> {
    let add = metadata.bool(key)?.unwrap_or(default);
    if add && id.is_none() {
        let expected = format!("tokenizer.ggml.{name}_token_id beside {key}");
        return Err(Error::bad_file(format!("tokenizer.ggml.{name}_token_id"), expected, "no such key"));
    }
    Ok(add)
}

/// Phi-3's special tokens swallow the white space after them, except three. GGUF has no key that says so; the name
/// of the model is all there is.
fn rstrip(metadata: &Metadata) -> impl Fn(&[u8]) -> bool {
    let name = metadata.str("general.name").ok().flatten().unwrap_or_default().as_bytes();
    let contains = |part: &[u8]| name.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part));
    let phi3 = contains(b"phi-3") || contains(b"phi3");
    move |text| phi3 && !matches!(text, b"<unk>" | b"<s>" | b"<|endoftext|>")
}
