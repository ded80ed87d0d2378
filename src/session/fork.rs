//! Branching off: another session that goes on from the same place.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::turn::Turn;
use super::{FinishReason, Past, Session, SessionOptions, Times};
use crate::Result;
use crate::error::try_vec;
use crate::sampler::Sampler;

impl Session {
    /// A session that goes on from the same place, sharing what both have in the cache. Without `options` it does what this one
    /// will do. With them its answer begins here: it draws with their seed from its beginning, follows their grammar, and
    /// counts their `max_tokens`; the chat template stays.
    ///
    /// # Errors
    /// Parameters out of range, a bad grammar, no memory, those of the device; this session is as before.
    pub fn fork(&self, options: Option<&SessionOptions>) -> Result<Session> {
        let mut tokens = try_vec(self.tokens.len(), "the tokens of the inference")?;
        tokens.extend_from_slice(&self.tokens);
        let engine = &self.engine;
        let mut turns = self.turns.clone();
        let (options, sampler, (text, stopped)) = match options {
            None => {
                let stopped = self.finished == Some(FinishReason::StopString);
                (self.options.clone(), self.sampler.fork()?, (self.text.clone(), stopped))
            }
            Some(options) => {
                let mut sampler = Sampler::for_model(options.sampling.clone(), engine.n_vocab(), engine.tokenizer())?;
                if let Some(grammar) = &options.grammar {
                    sampler.set_grammar(engine.grammars()?.start(grammar)?);
                }
                let (template, template_name) = (self.options.template.clone(), self.options.template_name.clone());
                let options = SessionOptions { template, template_name, ..options.clone() };
                turns.reserve()?;
                let text = self.text.fork(&options.stop);
                (Arc::new(options), sampler, text)
            }
        };
        let is_new = !Arc::ptr_eq(&options, &self.options);
        if is_new {
            turns.push(Turn::new(tokens.len(), 0, self.chat.as_ref()), tokens.len(), tokens.len());
        }
        // Without the last token, which the fork may have to run again.
        let n_past = self.n_past.get().min(tokens.len().saturating_sub(1));
        let (sequence, is_shared) = engine.sequence_fork(self.sequence, n_past)?;
        let n_past = if is_shared { n_past } else { 0 };
        let finished = match self.finished {
            _ if stopped => Some(FinishReason::StopString),
            reason if is_new || reason == Some(FinishReason::Cancelled) => None,
            reason => reason,
        };
        Ok(Session {
            engine: engine.clone(),
            sequence,
            sampler: Box::new(sampler),
            options,
            tokens,
            turns,
            chat: self.chat.clone(),
            n_past: Past::new(n_past),
            n_cached: n_past,
            is_shared: false,
            pending: self.pending,
            text,
            finished,
            cancel: Arc::new(AtomicBool::new(false)),
            times: Times::since(Instant::now()),
        })
    }
}
