//! SentencePiece byte-pair encoding (`tokenizer.ggml.model` = `llama`): pieces with scores, best score first.
//!
//! A piece of the vocabulary can come about by merging any two of its parts that are pieces themselves. Those pairs
//! are collected once, ranked by the score of what they make, and merged as in byte-level encoding. There is no
//! pre-tokenizer: white space is a character like others, written as U+2581.

use super::TokenKind;
use super::bpe::{out_of_memory, text_of};
use super::hash::{Merge, NONE, PairTable, TextIndex};
use super::merge::merge;
use crate::error::{Error, Result, try_vec};
use crate::gguf::StringArray;

/// What a space is written as in the vocabulary.
pub const SPACE: char = '\u{2581}';

/// Pieces longer than this are not made by merging (SentencePiece's own limit is 16 characters); it bounds the time
/// that a file can take to load.
const LONGEST: usize = 256;

/// A character that is no piece is the symbol `CHARACTER + c`; every token id is below.
const CHARACTER: u32 = 1 << 31;

/// Vocabulary and merges of a SentencePiece tokenizer.
#[derive(Debug)]
pub struct Spm {
    /// Single characters: (character, 0) to its piece.
    characters: PairTable,
    merges: PairTable,
    /// Tokens `<0x00>` to `<0xFF>`.
    bytes: Option<Box<[u32; 256]>>,
    unknown: Option<u32>,
    add_space_prefix: bool,
}

impl Spm {
    /// `tokens` and `scores` as in the file; `unknown` stands for characters when the byte tokens are incomplete.
    ///
    /// # Errors
    /// [`Error::BadFile`] for a score that is not a number, or when there are neither byte tokens nor an unknown one.
    pub fn new(
        tokens: &StringArray,
        kinds: &[TokenKind],
        scores: &[f32],
        unknown: Option<u32>,
        add_space_prefix: bool,
    ) -> Result<Spm> {
        let ranks = ranks(scores)?;
        let pieces =
            || (0_u32..).zip(tokens.iter()).zip(kinds).filter(|(_, kind)| kind.is_piece()).map(|(piece, _)| piece);
        let index = piece_index(tokens, kinds)?;
        let part = |text: &str| match index.get(text.as_bytes(), |id| text_of(tokens, id)) {
            None => character(text.as_bytes()).map(|c| CHARACTER + u32::from(c)),
            id => id,
        };
        let mut pairs = Vec::new();
        for (id, text) in pieces() {
            let Ok(text) = std::str::from_utf8(text) else { continue };
            if text.len() > LONGEST || index.get(text.as_bytes(), |id| text_of(tokens, id)) != Some(id) {
                continue;
            }
            for (at, _) in text.char_indices().skip(1) {
                if let Some(left) = part(&text[..at])
                    && let Some(right) = part(&text[at..])
                {
                    pairs.try_reserve(1).map_err(|_| out_of_memory(4))?;
                    // Rank 0 is that of runs of spaces.
                    pairs.push((left, right, Merge { rank: ranks[id as usize].saturating_add(1), id }));
                }
            }
        }
        let runs = runs_of_spaces(tokens, kinds, part("\u{2581}"));
        for (n, id) in runs.iter().enumerate().filter_map(|(n, id)| Some((n, (*id)?))) {
            for (left, right) in (1..n).filter_map(|i| Some((runs[i]?, runs[n - i]?))) {
                pairs.try_reserve(1).map_err(|_| out_of_memory(4))?;
                pairs.push((left, right, Merge { rank: 0, id }));
            }
        }
        let mut merges = PairTable::new(pairs.len())?;
        for (left, right, merge) in pairs {
            merges.insert(left, right, merge);
        }
        Spm::with_merges(tokens, kinds, merges, unknown, add_space_prefix)
    }

    /// The same with the merges of a tokenizer.json.
    ///
    /// # Errors
    /// [`Error::BadFile`] when there are neither byte tokens nor an unknown one.
    pub fn with_merges(
        tokens: &StringArray,
        kinds: &[TokenKind],
        merges: PairTable,
        unknown: Option<u32>,
        add_space_prefix: bool,
    ) -> Result<Spm> {
        let bytes = byte_tokens(tokens, kinds);
        if bytes.is_none() && unknown.is_none() {
            return Err(Error::bad_file("tokenizer.ggml.tokens", "256 byte tokens or an unknown token", "neither"));
        }
        let index = piece_index(tokens, kinds)?;
        let singles =
            || tokens.iter().zip(kinds).filter(|(_, kind)| kind.is_piece()).filter_map(|(text, _)| character(text));
        let mut characters = PairTable::new(singles().count())?;
        for c in singles() {
            if let Some(id) = index.get(c.encode_utf8(&mut [0; 4]).as_bytes(), |id| text_of(tokens, id)) {
                characters.insert(c.into(), 0, Merge { rank: 0, id });
            }
        }
        Ok(Spm { characters, merges, bytes, unknown, add_space_prefix })
    }

    /// Appends the tokens of `text`, with a space before it when it `starts` the prompt or follows a special token.
    pub fn encode(&self, text: &str, starts: bool, symbols: &mut Vec<u32>, out: &mut Vec<u32>) -> Result<()> {
        symbols.clear();
        symbols.try_reserve(text.len().saturating_add(1)).map_err(|_| out_of_memory(text.len()))?;
        let prefix = if starts && self.add_space_prefix { " " } else { "" };
        symbols.extend(prefix.chars().chain(text.chars()).map(|c| self.symbol(if c == ' ' { SPACE } else { c })));
        merge(&self.merges, symbols)?;
        let mut after_unknown = false;
        for &symbol in symbols.iter() {
            out.try_reserve(4).map_err(|_| out_of_memory(out.len()))?;
            let unknown = symbol.checked_sub(CHARACTER).and_then(char::from_u32);
            match (unknown, &self.bytes, self.unknown) {
                (None, _, _) => out.push(symbol),
                (Some(c), Some(bytes), _) => {
                    out.extend(c.encode_utf8(&mut [0; 4]).bytes().map(|b| bytes[usize::from(b)]));
                }
                (Some(_), None, Some(id)) if !after_unknown => out.push(id),
                (Some(_), None, _) => {}
            }
            after_unknown = unknown.is_some();
        }
        Ok(())
    }

    fn symbol(&self, c: char) -> u32 {
        match self.characters.get(c.into(), 0).id {
            NONE => CHARACTER + u32::from(c),
            id => id,
        }
    }

    /// Whether a space is put before the text, which decoding takes away again.
    pub fn adds_space_prefix(&self) -> bool {
        self.add_space_prefix
    }
}

/// Gemma's user-defined tokens of 2, 3, ... spaces, by their length, and at 1 what one space is. They are cut out of a text
/// as they are, but U+2581 in it stands for a space too and joins them by merging.
fn runs_of_spaces(tokens: &StringArray, kinds: &[TokenKind], one: Option<u32>) -> [Option<u32>; LONGEST + 1] {
    let mut runs = [None; LONGEST + 1];
    runs[1] = one;
    for ((id, text), kind) in (0..).zip(tokens.iter()).zip(kinds) {
        let is_run = *kind == TokenKind::UserDefined && text.len() > 1 && text.iter().all(|&b| b == b' ');
        if let Some(run) = runs.get_mut(text.len()).filter(|_| is_run) {
            *run = Some(id);
        }
    }
    runs
}

/// The tokens that merging may make, by their text.
fn piece_index(tokens: &StringArray, kinds: &[TokenKind]) -> Result<TextIndex> {
    let mut index = TextIndex::new(tokens.len())?;
    for ((id, text), kind) in (0_u32..).zip(tokens.iter()).zip(kinds) {
        if kind.is_piece() {
            index.insert(text, id, |id| text_of(tokens, id));
        }
    }
    Ok(index)
}

/// The character of a text that is exactly one.
fn character(text: &[u8]) -> Option<char> {
    let mut chars = std::str::from_utf8(text.get(..text.len().min(5))?).ok()?.chars();
    chars.next().filter(|_| chars.next().is_none())
}

/// The byte that a token like `<0x0A>` stands for.
pub fn byte_of(token: &[u8]) -> Option<u8> {
    let digits = token.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let digits = std::str::from_utf8(digits).ok().filter(|d| d.len() == 2 && !d.starts_with('+'))?;
    u8::from_str_radix(digits, 16).ok()
}

/// The tokens of all 256 bytes, if there are as many.
fn byte_tokens(tokens: &StringArray, kinds: &[TokenKind]) -> Option<Box<[u32; 256]>> {
    let mut bytes = Box::new([NONE; 256]);
    for ((id, token), &kind) in (0..).zip(tokens.iter()).zip(kinds) {
        if kind == TokenKind::Byte
            && let Some(byte) = byte_of(token)
        {
            bytes[usize::from(byte)] = id;
        }
    }
    (!bytes.contains(&NONE)).then_some(bytes)
}

/// The place of each token when the best score goes first; equal scores share a place.
fn ranks(scores: &[f32]) -> Result<Vec<u32>> {
    if let Some(at) = scores.iter().position(|score| score.is_nan()) {
        return Err(Error::bad_file(format!("tokenizer.ggml.scores[{at}]"), "a number", "NaN"));
    }
    let mut order: Vec<u32> = try_vec(scores.len(), "the scores of the tokenizer")?;
    order.extend((0..).take(scores.len()));
    order.sort_unstable_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
    let mut ranks = try_vec(scores.len(), "the scores of the tokenizer")?;
    ranks.resize(scores.len(), 0);
    let mut rank = 0;
    for pair in order.windows(2) {
        // 0.0 and -0.0 are one score.
        rank += u32::from(scores[pair[0] as usize] != scores[pair[1] as usize]);
        ranks[pair[1] as usize] = rank;
    }
    Ok(ranks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_share_a_rank() {
        assert_eq!(ranks(&[0.0, -2.0, -1.0, -0.0, -2.0]).unwrap(), [0, 2, 1, 0, 2]);
        assert_eq!(ranks(&[]).unwrap(), [0; 0]);
        assert!(ranks(&[f32::NAN]).is_err());
    }

    #[test]
    fn byte_tokens_are_two_hexadecimal_digits() {
        assert_eq!(byte_of(b"<0x0A>"), Some(10));
        assert_eq!(byte_of(b"<0xff>"), Some(255));
        for wrong in ["<0x+1>", "<0x1>", "<0x123>", "0x12", "<0xGG>"] {
            assert_eq!(byte_of(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
