//! The parameters of a sampler and their ranges.

use std::ops::RangeInclusive;

use crate::{Error, Result};

/// How a token is chosen from logits.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits, 0..=2; 0 takes the largest logit and draws nothing.
    pub temperature: f32,
    /// Keeps this many of the most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest most probable tokens whose probabilities add up to this, above 0 and up to 1; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this times as probable as the most probable one, 0..=1; 0 keeps all.
    pub min_p: f32,
    /// Makes tokens of the window less probable, above 0 and up to 10; 1 changes nothing.
    pub repeat_penalty: f32,
    /// Size of that window: the last tokens of the sequence; 0 turns the penalty off.
    pub repeat_last_n: u32,
    /// Chooses the sequence of random numbers; every value is good.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Checks every parameter against its range.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the first parameter that is outside of its range or not a number.
    pub fn validate(&self) -> Result<()> {
        in_range("temperature", self.temperature, 0.0..=2.0, "0 to 2")?;
        in_range("top_p", self.top_p, f32::MIN_POSITIVE..=1.0, "a number above 0 and up to 1")?;
        in_range("min_p", self.min_p, 0.0..=1.0, "0 to 1")?;
        in_range("repeat_penalty", self.repeat_penalty, f32::MIN_POSITIVE..=10.0, "a number above 0 and up to 10")
    }
}

/// NaN is in no range.
fn in_range(name: &str, value: f32, range: RangeInclusive<f32>, words: &str) -> Result<()> {
    if range.contains(&value) { Ok(()) } else { Err(Error::invalid_argument(name, words, value)) }
}
