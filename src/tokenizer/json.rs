//! A tokenizer.json, as Hugging Face's crate `tokenizers` writes it, in place of a vocabulary in the GGUF file.
//!
//! The crate itself is not used: it drops the rest of a text when an expression gives up, allocates without a way to fail, and
//! takes seconds for a text of one character. The file is read into the structures that a GGUF file is read into; what they
//! cannot express is refused by name. The special ids, the chat template and whether BOS is added stay those of the GGUF
//! file, where it has them.

mod pipeline;
mod reader;

use std::borrow::Cow;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::bpe::Bpe;
use super::hash::NONE;
use super::load::{Pair, Scheme, Setup, assemble, unsupported};
use super::spm::{SPACE, Spm, byte_of};
use super::{Model, TokenKind, Tokenizer};
use crate::error::{Error, Result, quoted, try_vec};
use crate::gguf::{Metadata, StringArray, open_regular};
use pipeline::{Pipeline, parse, template};
use reader::{Reader, bad};

/// Most bytes of a tokenizer.json; the largest that is known has 34 MB.
const LARGEST: u64 = 128 << 20;

impl Tokenizer {
    /// The tokenizer of the model at `model`: the tokenizer.json that `wanted` names. With `auto` that of the GGUF file; where
    /// it has none, or one that kigo does not know, the tokenizer.json that lies beside it, if there is one.
    ///
    /// # Errors
    /// Those of [`Tokenizer::from_gguf`] and [`Tokenizer::read_json`].
    pub fn choose(model: &Path, metadata: &Metadata, n_vocab: usize, wanted: &str) -> Result<Tokenizer> {
        if wanted != "auto" {
            return Tokenizer::read_json(Path::new(wanted), metadata, n_vocab);
        }
        let beside = model.with_file_name("tokenizer.json");
        let absent = |field: &str, found: &str| found == "no such key" && field.starts_with("tokenizer.ggml.");
        match Tokenizer::from_gguf(metadata) {
            Err(Error::UnsupportedTokenizer { .. }) if beside.exists() => {
                Tokenizer::read_json(&beside, metadata, n_vocab)
            }
            Err(Error::BadFile { field, found, .. }) if absent(&field, &found) && beside.exists() => {
                Tokenizer::read_json(&beside, metadata, n_vocab)
            }
            other => other,
        }
    }

    /// Reads a tokenizer.json from `path`, for a model whose embedding has `n_vocab` rows and whose file has `metadata`.
    ///
    /// # Errors
    /// Those of [`Tokenizer::from_json`]; [`Error::Io`], [`Error::Limit`] from 128 MiB on. All name the file.
    pub fn read_json(path: &Path, metadata: &Metadata, n_vocab: usize) -> Result<Tokenizer> {
        let read = || {
            let file = open_regular(path)?;
            let failed = |source| Error::Io { operation: "read".to_string(), source };
            let size = file.metadata().map_err(failed)?.len();
            let limit = || Error::Limit { what: "bytes of a tokenizer.json", limit: LARGEST };
            let size = usize::try_from(size).ok().filter(|&size| size as u64 <= LARGEST).ok_or_else(limit)?;
            let mut bytes = try_vec(size, "tokenizer.json")?;
            // Whatever is appended meanwhile does not count.
            file.take(size as u64).read_to_end(&mut bytes).map_err(failed)?;
            Tokenizer::from_json(&bytes, metadata, n_vocab)
        };
        read().map_err(|error| error.in_file(path))
    }

    /// Reads a tokenizer.json: byte-level BPE, or BPE that falls back to bytes as SentencePiece does.
    ///
    /// # Errors
    /// [`Error::UnsupportedTokenizer`] for a model, normalizer, pre-tokenizer or property of a token that is not known.
    /// [`Error::BadFile`] naming the field when something is missing or of the wrong type, an id is not below `n_vocab`
    /// or given twice, a merge is not of and to tokens, or an expression does not compile.
    pub fn from_json(json: &[u8], metadata: &Metadata, n_vocab: usize) -> Result<Tokenizer> {
        let json = std::str::from_utf8(json)
            .map_err(|error| bad("the file", "UTF-8", format!("an invalid byte at {}", error.valid_up_to())))?;
        let file = File::read(json, n_vocab)?;
        let pipeline = Pipeline::read(&file.normalizer, &file.pre_tokenizer)?;
        let scheme = match (pipeline.byte_level, pipeline.escaped && pipeline.steps.is_empty()) {
            (true, false) if !pipeline.prefix => Scheme::Bpe,
            (false, true) if !pipeline.nfc => Scheme::Spm,
            _ => {
                let found = format!("{} with {}", file.normalizer, file.pre_tokenizer);
                let known = "ByteLevel, or a normalizer that replaces a space by U+2581 and no cuts".to_string();
                return Err(unsupported("tokenizer.json: pre_tokenizer", &found, known));
            }
        };
        let (tokens, kinds) = file.tokens(n_vocab, scheme)?;
        let find = |text: Option<&str>| {
            let text = text?.as_bytes();
            (0..).zip(tokens.iter()).find(|&(_, token)| token == text).map(|(id, _)| id)
        };
        let (bos, eos) = template(&file.post_processor);
        let setup = Setup {
            scheme,
            default_ids: [find(bos), find(eos), find(file.unknown.as_deref())],
            default_add_bos: find(bos).is_some(),
            default_add_eos: find(eos).is_some(),
        };
        let mut stripping = try_vec(file.added.len(), "the added tokens")?;
        stripping.extend(file.added.iter().filter(|added| added.rstrip).map(|added| added.content.as_bytes()));
        stripping.sort_unstable();
        let rstrip = |text: &[u8]| stripping.binary_search(&text).is_ok();
        assemble(metadata, &tokens, kinds, setup, rstrip, |parts| {
            let merges = parts.merges("tokenizer.json: model.merges", file.n_merges, file.pairs())?;
            Ok(match scheme {
                Scheme::Bpe => {
                    let rules = (pipeline.steps, pipeline.nfc, file.ignore_merges);
                    Model::Bpe(Bpe::new(&tokens, parts.index, merges, parts.texts, rules)?)
                }
                Scheme::Spm => {
                    Model::Spm(Spm::with_merges(&tokens, parts.kinds, merges, parts.unknown, pipeline.prefix)?)
                }
            })
        })
    }
}

/// A token of `added_tokens`.
struct Added<'a> {
    id: u32,
    content: Cow<'a, str>,
    special: bool,
    rstrip: bool,
}

/// The fields of the file.
#[derive(Default)]
struct File<'a> {
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    added: Vec<Added<'a>>,
    /// The tokens of `model.vocab`, and the place of each id among them.
    vocab: StringArray,
    places: Vec<u32>,
    /// The texts that merges join, two for each; or one with a space between.
    merges: StringArray,
    n_merges: usize,
    joined: bool,
    unknown: Option<Cow<'a, str>>,
    byte_fallback: bool,
    ignore_merges: bool,
}

impl<'a> File<'a> {
    fn read(json: &'a str, n_vocab: usize) -> Result<File<'a>> {
        let mut file = File::default();
        let mut has_model = false;
        let mut reader = Reader::new(json);
        reader.object("the file", |reader, key| {
            match &*key {
                "normalizer" => file.normalizer = parse(&key, reader.skip(&key)?)?,
                "pre_tokenizer" => file.pre_tokenizer = parse(&key, reader.skip(&key)?)?,
                "post_processor" => file.post_processor = parse(&key, reader.skip(&key)?)?,
                "added_tokens" => file.read_added(reader, n_vocab)?,
                "model" => {
                    has_model = true;
                    file.read_model(reader, n_vocab)?;
                }
                _ => drop(reader.skip(&key)?),
            }
            Ok(())
        })?;
        reader.end()?;
        if !has_model {
            return Err(bad("model", "an object", "no such field"));
        }
        Ok(file)
    }

    fn read_model(&mut self, reader: &mut Reader<'a>, n_vocab: usize) -> Result<()> {
        let (mut kind, mut has_vocab, mut has_merges) = (Cow::Borrowed("BPE"), false, false);
        reader.object("model", |reader, key| {
            let field = format!("model.{}", quoted(key.as_bytes()).trim_matches('"'));
            match &*key {
                "type" => kind = reader.string(&field)?,
                "vocab" if kind == "BPE" => {
                    has_vocab = true;
                    self.read_vocab(reader, n_vocab)?;
                }
                "merges" if kind == "BPE" => {
                    has_merges = true;
                    self.read_merges(reader)?;
                }
                "unk_token" if !reader.null() => self.unknown = Some(reader.string(&field)?),
                "byte_fallback" => self.byte_fallback = reader.boolean(&field)?,
                "ignore_merges" => self.ignore_merges = reader.boolean(&field)?,
                "continuing_subword_prefix" | "end_of_word_suffix" if !reader.null() => {
                    let text = reader.string(&field)?;
                    if !text.is_empty() {
                        return Err(unsupported("tokenizer.json: model", &format!("{key} {text}"), NO_MARKS.into()));
                    }
                }
                "dropout" => {
                    let text = reader.skip(&field)?;
                    if !matches!(text, "null" | "0" | "0.0") {
                        return Err(unsupported("tokenizer.json: model", &format!("dropout {text}"), NO_MARKS.into()));
                    }
                }
                "unk_token" | "continuing_subword_prefix" | "end_of_word_suffix" => {}
                _ => drop(reader.skip(&field)?),
            }
            Ok(())
        })?;
        if kind != "BPE" {
            return Err(unsupported("tokenizer.json: model.type", &kind, "BPE".to_string()));
        }
        for (has, field) in [(has_vocab, "model.vocab"), (has_merges, "model.merges")] {
            if !has {
                return Err(bad(field, "the tokens and merges of a BPE model", "no such field"));
            }
        }
        Ok(())
    }

    fn read_vocab(&mut self, reader: &mut Reader<'a>, n_vocab: usize) -> Result<()> {
        self.vocab = StringArray::new();
        self.places = try_vec(n_vocab, "the tokens")?;
        self.places.resize(n_vocab, NONE);
        reader.object("model.vocab", |reader, token| {
            let field = || format!("model.vocab[{}]", quoted(token.as_bytes()));
            let id = reader.number("model.vocab")?;
            let place = id_place(&mut self.places, id, field)?;
            if *place != NONE {
                return Err(bad(&field(), "an id of its own", id));
            }
            *place = self.vocab.len() as u32;
            self.vocab.push(token.as_bytes())
        })
    }

    fn read_merges(&mut self, reader: &mut Reader<'a>) -> Result<()> {
        (self.merges, self.n_merges) = (StringArray::new(), 0);
        reader.array("model.merges", |reader, rank| {
            let joined = reader.is_string();
            if rank > 0 && joined != self.joined {
                return Err(bad(&format!("model.merges[{rank}]"), "the form of those before it", "another"));
            }
            (self.joined, self.n_merges) = (joined, rank + 1);
            if joined {
                return self.merges.push(reader.string("model.merges")?.as_bytes());
            }
            let mut n = 0;
            reader.array("model.merges", |reader, _| {
                n += 1;
                self.merges.push(reader.string("model.merges")?.as_bytes())
            })?;
            if n == 2 { Ok(()) } else { Err(bad(&format!("model.merges[{rank}]"), "two tokens", n)) }
        })
    }

    /// The merges in order of their ranks.
    fn pairs(&self) -> impl Iterator<Item = Pair<'_>> {
        let text = |at| self.merges.get(at).unwrap_or_default();
        (0..self.n_merges).map(move |rank| match self.joined {
            true => Pair::of(text(rank)),
            false => Pair::Parts(text(2 * rank), text(2 * rank + 1)),
        })
    }

    fn read_added(&mut self, reader: &mut Reader<'a>, n_vocab: usize) -> Result<()> {
        reader.array("added_tokens", |reader, index| {
            let (mut id, mut content, mut special, mut rstrip) = (None, None, false, false);
            let field = |name: &str| format!("added_tokens[{index}].{name}");
            reader.object("added_tokens", |reader, key| {
                match &*key {
                    "id" => id = Some(reader.number(&field("id"))?),
                    "content" => content = Some(reader.string(&field("content"))?),
                    "special" => special = reader.boolean(&field("special"))?,
                    "rstrip" => rstrip = reader.boolean(&field("rstrip"))?,
                    "lstrip" | "single_word" => {
                        if reader.boolean(&field(&key))? {
                            let found = format!("added_tokens[{index}].{key}");
                            return Err(unsupported("tokenizer.json: added_tokens", &found, "rstrip".to_string()));
                        }
                    }
                    _ => drop(reader.skip("added_tokens")?),
                }
                Ok(())
            })?;
            let id = id.ok_or_else(|| bad(&field("id"), "an id", "no such field"))?;
            if id as usize >= n_vocab {
                return Err(outside(&field("id"), id, n_vocab));
            }
            let content = content.ok_or_else(|| bad(&field("content"), "a text", "no such field"))?;
            let room = |_| Error::OutOfMemory { what: "the added tokens".to_string(), bytes: index as u64 * 64 };
            self.added.try_reserve(1).map_err(room)?;
            self.added.push(Added { id, content, special, rstrip });
            Ok(())
        })
    }

    /// All tokens by id, and their kinds. Ids that the file has not are empty texts, which nothing encodes to.
    fn tokens(&self, n_vocab: usize, scheme: Scheme) -> Result<(StringArray, Vec<TokenKind>)> {
        let mut added: Vec<u32> = try_vec(n_vocab, "the added tokens")?;
        added.resize(n_vocab, NONE);
        for (place, token) in (0..).zip(&self.added) {
            *id_place(&mut added, token.id, || "added_tokens".to_string())? = place;
        }
        let mut tokens = StringArray::with_capacity(n_vocab)?;
        let mut kinds = try_vec(n_vocab, "the types of tokens")?;
        for (&place, &added) in self.places.iter().zip(&added) {
            let text = self.vocab.get(place as usize).unwrap_or_default();
            let (text, kind) = match self.added.get(added as usize) {
                // Runs of spaces that merges make anyway; as text they are written in another way.
                Some(token) if scheme == Scheme::Spm && token.content.contains(SPACE) => (text, TokenKind::Normal),
                Some(token) => (token.content.as_bytes(), self.kind_of(token)),
                None if place == NONE => (text, TokenKind::Unused),
                None if scheme == Scheme::Spm && self.byte_fallback && byte_of(text).is_some() => {
                    (text, TokenKind::Byte)
                }
                None => (text, TokenKind::Normal),
            };
            tokens.push(text)?;
            kinds.push(kind);
        }
        Ok((tokens, kinds))
    }

    fn kind_of(&self, token: &Added) -> TokenKind {
        match token.special {
            true if self.unknown.as_deref() == Some(&*token.content) => TokenKind::Unknown,
            true => TokenKind::Control,
            false => TokenKind::UserDefined,
        }
    }
}

const NO_MARKS: &str = "a BPE model without dropout, continuing_subword_prefix and end_of_word_suffix";

fn id_place(places: &mut [u32], id: u32, field: impl Fn() -> String) -> Result<&mut u32> {
    let n_vocab = places.len();
    places.get_mut(id as usize).ok_or_else(|| outside(&field(), id, n_vocab))
}

fn outside(field: &str, id: u32, n_vocab: usize) -> Error {
    bad(field, format!("an id below {n_vocab}, the rows of the model's embedding"), id)
}
