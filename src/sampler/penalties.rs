//! Penalties for tokens that came recently.
//!
//! The logit of each distinct token of the window is divided by `repeat_penalty` if it is positive, multiplied by it
//! otherwise (Keskar et al. 2019, "CTRL", as llama.cpp corrects it for negative logits). Then `presence_penalty` is
//! subtracted once and `frequency_penalty` as often as the token is in the window (the OpenAI API has both).

use super::SamplingParams;
use super::candidates::{Candidates, Source};
use crate::Result;
use crate::error::try_vec;

/// Counts what is in the window and applies the penalties.
#[derive(Debug, Clone, Default)]
pub(super) struct Penalties {
    /// Distinct tokens of the window, ascending, with their numbers.
    counts: Vec<(u32, u32)>,
}

impl Penalties {
    /// How many of the last tokens count; 0 when no penalty is on.
    pub(super) fn window(params: &SamplingParams) -> usize {
        let off = params.repeat_penalty == 1.0 && params.presence_penalty == 0.0 && params.frequency_penalty == 0.0;
        if off { 0 } else { usize::try_from(params.repeat_last_n).unwrap_or(usize::MAX) }
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
        let window = &recent[recent.len().saturating_sub(Self::window(params))..];
        self.count(window, source.logits.len())?;
        candidates.change(source, &self.counts, |logit, &count| {
            let scaled = if logit > 0.0 { logit / params.repeat_penalty } else { logit * params.repeat_penalty };
            // A tiny or large penalty may leave the range of f32.
            let scaled = scaled.clamp(f32::MIN, f32::MAX);
            Some(scaled - (count as f32 * params.frequency_penalty + params.presence_penalty))
        })
    }

    fn count(&mut self, window: &[u32], n_vocab: usize) -> Result<()> {
        self.counts.clear();
        if self.counts.capacity() < window.len() {
            self.counts = try_vec(window.len(), "the window of the penalties")?;
        }
        self.counts.extend(window.iter().filter(|id| (**id as usize) < n_vocab).map(|id| (*id, 1)));
        self.counts.sort_unstable();
        self.counts.dedup_by(|next, first| {
            let same = next.0 == first.0;
            first.1 += u32::from(same);
            same
        });
        Ok(())
    }
}
