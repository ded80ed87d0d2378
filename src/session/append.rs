//! A further turn: more of a prompt behind what was said so far.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::prompt::tokenize_further;
use super::text::TextStream;
use super::turn::Turn;
use super::{FinishReason, Prompt, Session, Times};
use crate::{Error, Result};

impl Session {
    /// Adds a further turn, after which the generation goes on: `max_tokens` counts anew, and so does the grammar. Whether the
    /// generation had ended, and why, makes no difference; text that was not taken is dropped.
    ///
    /// A text or tokens are put behind the last token. A chat brings further messages: the whole chat, with the answer as the
    /// assistant's message, is rendered again, and what it has in common with the tokens so far stays in the cache. So the
    /// tokens are those of a session that is started with the whole chat.
    ///
    /// # Errors
    /// Those of [`Session::start`] for the prompt; [`Error::InvalidArgument`] for a chat where the session is none; those of
    /// the device. The session is as before.
    pub fn append(&mut self, prompt: Prompt) -> Result<()> {
        let answer = self.answer();
        let so_far = (&*self.tokens, self.chat.as_ref(), answer.as_deref());
        let (tokens, chat) = tokenize_further(&self.engine, so_far, prompt, &self.options)?;
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if tokens.len() >= self.engine.n_ctx() {
            return Err(Error::PromptTooLong { found: tokens.len(), n_ctx: self.engine.n_ctx() });
        }
        let grammar = self.grammar_after(&[])?;
        self.turns.reserve()?;
        let common = tokens.iter().zip(&self.tokens).take_while(|(new, old)| new == old).count();
        self.cut(common.min(tokens.len() - 1))?;
        let drawn = self.sampler.drawn();
        self.sampler.restart(drawn, grammar);
        self.turns.push(Turn::new(tokens.len(), drawn, chat.as_ref()), self.tokens.len(), common);
        (self.tokens, self.chat) = (tokens, chat);
        self.n_cached = self.n_past.get();
        self.pending = None;
        self.text = TextStream::new(&self.options.stop);
        self.finished = None;
        self.times = Times::since(Instant::now());
        self.cancel.store(false, Ordering::Release);
        Ok(())
    }

    /// The text of the answer so far; `None` if there is none.
    fn answer(&self) -> Option<String> {
        let start = self.turns.last().start;
        if start == self.tokens.len() && matches!(self.finished, None | Some(FinishReason::Cancelled)) {
            return None;
        }
        let (mut text, stopped) = TextStream::replayed(&self.options.stop, self.pieces(start, self.tokens.len()), 0);
        if !stopped {
            text.finish();
        }
        Some(text.ready().to_owned())
    }
}
