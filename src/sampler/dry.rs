//! Don't repeat yourself (DRY, by p-e-w, 2024, text-generation-webui).
//!
//! If a token would make the end of the text, n tokens long, the same as something that was there before, and n is at least
//! `dry_allowed_length`, then `dry_multiplier * dry_base ^ (n - dry_allowed_length)` is subtracted from its logit. A
//! repetition does not reach back over a breaker, and breakers themselves are free. A breaker is a token whose bytes
//! contain one of `dry_sequence_breakers`; of a text that no token contains, the last of its tokens.

use super::SamplingParams;
use super::candidates::{Candidates, Source};
use crate::Result;
use crate::error::try_vec;
use crate::tokenizer::{EncodeOptions, Tokenizer};

/// Looks for repetitions and applies the penalty.
#[derive(Debug, Clone, Default)]
pub(super) struct Dry {
    /// Ascending.
    breakers: Vec<u32>,
    /// Of each place of the text, from its end: how many tokens before it are the same as those at the end.
    lengths: Vec<u32>,
    /// Distinct tokens by ascending id, with the longest repetition that each would continue.
    penalized: Vec<(u32, u32)>,
}

impl Dry {
    /// How many of the last tokens count; 0 when it is off.
    pub(super) fn window(params: &SamplingParams) -> usize {
        if params.dry_multiplier == 0.0 { 0 } else { usize::try_from(params.dry_penalty_last_n).unwrap_or(usize::MAX) }
    }

    /// Finds the tokens that are breakers in a vocabulary.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn find_breakers(&mut self, texts: &[impl AsRef<str>], tokenizer: &Tokenizer) -> Result<()> {
        let mut breakers = Vec::new();
        for text in texts.iter().map(AsRef::as_ref).filter(|text: &&str| !text.is_empty()) {
            let known = breakers.len();
            let finder = |bytes: &[u8]| bytes.windows(text.len()).any(|part| part == text.as_bytes());
            for id in (0..tokenizer.n_vocab() as u32).filter(|id| finder(tokenizer.token_bytes(*id, true))) {
                if breakers.len() == breakers.capacity() {
                    let mut more = try_vec(breakers.len() * 2 + 64, "the breakers of repetitions")?;
                    more.extend_from_slice(&breakers);
                    breakers = more;
                }
                breakers.push(id);
            }
            if breakers.len() == known {
                breakers.extend(tokenizer.encode(text, EncodeOptions::default())?.last());
            }
        }
        self.set_breakers(breakers);
        Ok(())
    }

    /// The same breakers.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn fork(&self) -> Result<Dry> {
        let mut breakers = try_vec(self.breakers.len(), "the breakers of repetitions")?;
        breakers.extend_from_slice(&self.breakers);
        Ok(Dry { breakers, ..Dry::default() })
    }

    /// Takes these tokens for breakers.
    pub(super) fn set_breakers(&mut self, mut breakers: Vec<u32>) {
        breakers.sort_unstable();
        breakers.dedup();
        self.breakers = breakers;
    }

    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn apply(
        &mut self,
        params: &SamplingParams,
        recent: &[u32],
        candidates: &mut Candidates,
        source: Source,
    ) -> Result<()> {
        let tokens = &recent[recent.len().saturating_sub(Self::window(params))..];
        self.find_repetitions(tokens, params.dry_allowed_length)?;
        let (multiplier, base) = (f64::from(params.dry_multiplier), f64::from(params.dry_base));
        candidates.change(source, &self.penalized, |logit, length| {
            let more = f64::from(length - params.dry_allowed_length);
            Some((f64::from(logit) - multiplier * base.powf(more)) as f32)
        })
    }

    /// Fills `penalized` with what would continue a repetition of at least `allowed` tokens.
    fn find_repetitions(&mut self, tokens: &[u32], allowed: u32) -> Result<()> {
        self.penalized.clear();
        let is_breaker = |id: &u32| self.breakers.binary_search(id).is_ok();
        let longest = tokens.iter().rev().take_while(|id| !is_breaker(id)).count();
        if longest < allowed as usize {
            return Ok(());
        }
        let n = tokens.len();
        if self.lengths.capacity().min(self.penalized.capacity()) < n {
            self.lengths = try_vec(n, "the repetitions")?;
            self.penalized = try_vec(n, "the repetitions")?;
        }
        // The Z algorithm (Gusfield 1997) on the tokens from last to first: linear.
        let at = |i: usize| tokens[n - 1 - i];
        self.lengths.clear();
        let (mut left, mut right) = (0, 0);
        for i in 0..n {
            let mut length = match self.lengths.get(i.wrapping_sub(left)) {
                Some(known) if i < right && i > 0 => (*known as usize).min(right - i),
                _ => 0,
            };
            while i > 0 && i + length < n && at(i + length) == at(length) {
                length += 1;
            }
            if i + length > right {
                (left, right) = (i, i + length);
            }
            self.lengths.push(length as u32);
        }
        for (i, length) in self.lengths.iter().enumerate().skip(1) {
            let length = (*length as usize).min(longest) as u32;
            let next = at(i - 1);
            if length >= allowed && length > 0 && !is_breaker(&next) {
                self.penalized.push((next, length));
            }
        }
        // The longest of each token comes first and stays.
        self.penalized.sort_unstable_by_key(|(id, length)| (*id, u32::MAX - length));
        self.penalized.dedup_by_key(|(id, _)| *id);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::gguf::Gguf;
    use std::path::Path;

    #[test]
    fn breakers_are_the_tokens_that_contain_a_text() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama.gguf");
        let tokenizer = Tokenizer::from_gguf(Gguf::open(&path).unwrap().metadata()).unwrap();
        let find = |texts: &[&str]| {
            let mut dry = Dry::default();
            dry.find_breakers(texts, &tokenizer).unwrap();
            dry.breakers
        };
        let ids = 0..tokenizer.n_vocab() as u32;
        let with = |bytes: &[u8]| -> Vec<u32> {
            let has = |id: &u32| tokenizer.token_bytes(*id, true).iter().any(|byte| bytes.contains(byte));
            ids.clone().filter(has).collect()
        };
        assert_eq!(find(&["e"]), with(b"e"));
        assert!(find(&["e"]).len() > 1);
        assert_eq!(find(&["a", "", "e"]), with(b"ae"));
        let last = *tokenizer.encode("no token is that long", EncodeOptions::default()).unwrap().last().unwrap();
        assert_eq!(find(&["no token is that long"]), [last]);
        assert!(find(&[""]).is_empty());
    }
}
