//! Mirostat v2 (Basu et al. 2021, "Mirostat: A Neural Text Decoding Algorithm that Directly Controls Perplexity").
//!
//! Tokens whose surprise, the negative logarithm of their probability, is above a limit are left out. After each draw the
//! limit moves against the difference between the surprise of the token and the wanted one. It begins at twice that.

use super::SamplingParams;
use super::candidates::{Candidates, ONE};
use crate::error::try_vec;
use crate::{Error, Result};

/// The limits after each draw, so that a sampler can be put back to any of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Mirostat {
    limits: Vec<f64>,
    /// Draws that were made before the first of them.
    skipped: u64,
}

impl Mirostat {
    /// Leaves the candidates that are not too surprising, and makes room to note a draw.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn apply(&mut self, params: &SamplingParams, candidates: &mut Candidates) -> Result<()> {
        self.limits.try_reserve(1).map_err(|_| Error::OutOfMemory {
            what: "the limits of mirostat".into(),
            bytes: size_of_val(&*self.limits) as u64,
        })?;
        let limit = self.limit(params);
        let least = (candidates.total() as f64).log2() - limit;
        // In terms of the exponent, where 2^40 is the weight of 0.
        let least = (least - ONE.log2()) * std::f64::consts::LN_2;
        let least = candidates.nth(0).logit() + least * candidates.temperature();
        candidates.keep_while(|candidate| candidate.logit() >= least);
        Ok(())
    }

    /// Moves the limit after the candidate with this weight was drawn of so much weight in all.
    pub(super) fn note(&mut self, params: &SamplingParams, weight: u64, total: u64) {
        let surprise = (total as f64).log2() - (weight as f64).log2();
        let error = surprise - f64::from(params.mirostat_tau);
        let limit = self.limit(params) - f64::from(params.mirostat_eta) * error;
        self.limits.push(limit);
    }

    pub(super) fn limits(&self) -> (u64, &[f64]) {
        (self.skipped, &self.limits)
    }

    pub(super) fn set_limits(&mut self, skipped: u64, limits: Vec<f64>) {
        (self.skipped, self.limits) = (skipped, limits);
    }

    /// The same limits.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn fork(&self) -> Result<Mirostat> {
        let mut limits = try_vec(self.limits.len(), "the limits of mirostat")?;
        limits.extend_from_slice(&self.limits);
        Ok(Mirostat { limits, skipped: self.skipped })
    }

    /// Goes back to the limit after `drawn` draws; to the first limit if that is not known.
    pub(super) fn set_drawn(&mut self, drawn: u64) {
        let known = drawn.checked_sub(self.skipped).and_then(|n| usize::try_from(n).ok());
        match known.filter(|n| *n <= self.limits.len()) {
            Some(n) => self.limits.truncate(n),
            None => {
                self.limits.clear();
                self.skipped = drawn;
            }
        }
    }

    fn limit(&self, params: &SamplingParams) -> f64 {
        self.limits.last().copied().unwrap_or(2.0 * f64::from(params.mirostat_tau))
    }
}
