//! Byte-level byte-pair encoding (`tokenizer.ggml.model` = `gpt2`): any text, no unknown token.
//!
//! In the file every byte of a token is written as one printable character; [`byte_of`] reverses that. At run time
//! there are bytes and ids only.

use std::time::Instant;

use super::hash::{NONE, PairTable, TextIndex};
use super::merge::merge;
use super::nfc::composed;
use super::pretokenize::{Step, split};
use crate::error::{Error, Result};
use crate::gguf::StringArray;

/// The byte that a character of a vocabulary stands for: itself for the printable ones of Latin-1, and the n-th of
/// the other bytes for U+0100 + n (`bytes_to_unicode` of GPT-2).
pub fn byte_of(c: char) -> Option<u8> {
    match c {
        '!'..='~' | '\u{a1}'..='\u{ac}' | '\u{ae}'..='\u{ff}' => u8::try_from(c).ok(),
        '\u{100}'..='\u{120}' => u8::try_from(u32::from(c) - 0x100).ok(),
        '\u{121}'..='\u{142}' => u8::try_from(u32::from(c) - 0x121 + 0x7f).ok(),
        '\u{143}' => Some(0xad),
        _ => None,
    }
}

/// The bytes that a token of the vocabulary stands for; `None` when it is not written in that way.
pub fn bytes_of(token: &[u8]) -> Option<impl Iterator<Item = u8>> {
    let text = std::str::from_utf8(token).ok()?;
    text.chars().all(|c| byte_of(c).is_some()).then(|| text.chars().filter_map(byte_of))
}

/// Vocabulary and merges of a byte-level tokenizer.
#[derive(Debug)]
pub struct Bpe {
    /// The token of each single byte. A byte that has none is left out of the text before merging, as Hugging Face
    /// tokenizers do; SmolLM2 lacks 8 control characters and the first bytes of unassigned planes.
    bytes: Box<[u32; 256]>,
    merges: PairTable,
    steps: Vec<Step>,
    nfc: bool,
    /// Tokens by their bytes, where whole pieces are looked up before merging.
    whole: Option<TextIndex>,
}

impl Bpe {
    /// `tokens` as in the file, `index` finds them, `texts` are their bytes. `rules` are how a text is cut, whether it is
    /// composed first, and whether whole pieces are looked up before merging.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(
        tokens: &StringArray,
        index: &TextIndex,
        merges: PairTable,
        texts: &StringArray,
        (steps, nfc, ignore_merges): (Vec<Step>, bool, bool),
    ) -> Result<Bpe> {
        let mut bytes = Box::new([NONE; 256]);
        for c in '\0'..='\u{143}' {
            let token = |text: &[u8]| index.get(text, |id| text_of(tokens, id));
            if let (Some(byte), Some(id)) = (byte_of(c), token(c.encode_utf8(&mut [0; 4]).as_bytes())) {
                bytes[usize::from(byte)] = id;
            }
        }
        let whole = if ignore_merges { Some(whole_index(tokens, texts)?) } else { None };
        Ok(Bpe { bytes, merges, steps, nfc, whole })
    }

    /// Appends the tokens of `text` to `out`; `symbols` is scratch space; all text was `began` then.
    pub fn encode(
        &self,
        text: &str,
        texts: &StringArray,
        began: Instant,
        symbols: &mut Vec<u32>,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        let mut buffer = String::new();
        let text = if self.nfc { composed(text, &mut buffer)? } else { text };
        split(&self.steps, text, began, &mut |piece| {
            symbols.clear();
            let id = self.whole.as_ref().and_then(|index| index.get(piece.as_bytes(), |id| text_of(texts, id)));
            match id {
                Some(id) => symbols.push(id),
                None => {
                    symbols.try_reserve(piece.len()).map_err(|_| out_of_memory(piece.len()))?;
                    symbols.extend(piece.bytes().map(|b| self.bytes[usize::from(b)]).filter(|&id| id != NONE));
                    merge(&self.merges, symbols)?;
                }
            }
            out.try_reserve(symbols.len()).map_err(|_| out_of_memory(symbols.len()))?;
            out.extend_from_slice(symbols);
            Ok(())
        })
    }
}

/// The tokens that are written as bytes, by those bytes.
fn whole_index(tokens: &StringArray, texts: &StringArray) -> Result<TextIndex> {
    let mut index = TextIndex::new(tokens.len())?;
    for ((id, token), text) in (0..).zip(tokens.iter()).zip(texts.iter()) {
        if bytes_of(token).is_some_and(|bytes| bytes.eq(text.iter().copied())) {
            index.insert(text, id, |id| text_of(texts, id));
        }
    }
    Ok(index)
}

/// The string of a token; ids in an index are those of the array.
pub fn text_of(texts: &StringArray, id: u32) -> &[u8] {
    texts.get(id as usize).unwrap_or_default()
}

/// For buffers of token ids.
pub fn out_of_memory(tokens: usize) -> Error {
    Error::OutOfMemory { what: "the tokens of a text".to_string(), bytes: tokens as u64 * 4 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_written_as_one_character() {
        let mut seen = [0; 256];
        for byte in (char::MIN..=char::MAX).filter_map(byte_of) {
            seen[usize::from(byte)] += 1;
        }
        assert_eq!(seen, [1; 256]);
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
    }
}
