//! Going back: the session is what it was when it had its first tokens only.

use std::sync::atomic::Ordering;

use super::text::TextStream;
use super::{FinishReason, Session};
use crate::{Error, Result};

impl Session {
    /// Drops all tokens but the first `n`, prompts and answers counted, and goes on from there: with the random numbers, the
    /// grammar and the text of that place, so that without further ado the same tokens come again. A place in a prompt
    /// becomes the end of the prompt. What layers with a window have forgotten is computed again when the next token is wanted.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there are not so many tokens, or `n` is 0; [`Error::BadGrammar`],
    /// [`Error::OutOfMemory`], those of the device. The session is as before.
    pub fn rewind(&mut self, n: usize) -> Result<()> {
        if !(1..=self.tokens.len()).contains(&n) {
            let expected = format!("1 to {}, the tokens of the inference", self.tokens.len());
            return Err(Error::invalid_argument("n_tokens", expected, n));
        }
        let (turn, drawn, n_before) = self.turns.at(n, self.sampler.draws_per_token());
        let grammar = self.grammar_after(self.tokens.get(turn.start..n).unwrap_or_default())?;
        let is_same = turn.start == self.turns.last().start && n_before + 1 == self.turns.iter().count();
        let shown = if is_same { self.text.shown() } else { usize::MAX };
        let (text, stopped) = TextStream::replayed(&self.options.stop, self.pieces(turn.start, n), shown);
        self.cut(n - 1)?;
        self.sampler.restart(drawn, grammar);
        if n < self.tokens.len() {
            self.pending = None;
        }
        self.tokens.truncate(n);
        self.turns.back_to(turn, n_before);
        match (turn.n_messages, &mut self.chat) {
            (Some(n_messages), Some(chat)) => chat.truncate(n_messages),
            _ => self.chat = None,
        }
        self.n_cached = self.n_cached.min(n);
        self.text = text;
        self.finished = stopped.then_some(FinishReason::StopString);
        self.cancel.store(false, Ordering::Release);
        Ok(())
    }

    /// Takes the tokens from `n` on out of the cache, which then has so many of them, or none if it has forgotten what they see.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], those of the device; nothing changed then.
    pub(super) fn cut(&mut self, n: usize) -> Result<()> {
        self.is_shared = false;
        let n_past = self.n_past.get();
        let n = n_past.min(n);
        if n_past > 0 {
            let held = self.engine.sequence_rewind(self.sequence, n)?;
            self.n_past.set(if held { n } else { 0 });
        }
        Ok(())
    }
}
