//! The parameters of a sampler and their ranges.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use super::Step;
use crate::{Error, Result};

/// How a token is chosen from logits.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits, 0..=2; 0 takes the largest logit and draws nothing.
    pub temperature: f32,
    /// How far the temperature may go down and up with the entropy of the candidates, 0..=2; 0 keeps it fixed.
    pub dynatemp_range: f32,
    /// The power of the entropy that this follows, above 0 and up to 10.
    pub dynatemp_exponent: f32,
    /// Keeps this many of the most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest most probable tokens whose probabilities add up to this, above 0 and up to 1; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this times as probable as the most probable one, 0..=1; 0 keeps all.
    pub min_p: f32,
    /// Keeps the tokens nearest to the expected surprise whose probabilities add up to this, above 0 and up to 1; 1
    /// keeps all.
    pub typical_p: f32,
    /// Keeps tokens whose logits are at most this many standard deviations below the largest, 0..=100; 0 keeps all.
    pub top_n_sigma: f32,
    /// How often the most probable tokens are left out, 0..=1.
    pub xtc_probability: f32,
    /// All tokens at least this probable are left out then, except the last of them, 0..=1; from above 0.5 on there
    /// are never two of them.
    pub xtc_threshold: f32,
    /// Each of these filters leaves at least so many tokens, as long as there are; 0 means 1.
    pub min_keep: u32,
    /// Makes tokens of the window less probable, above 0 and up to 10; 1 changes nothing.
    pub repeat_penalty: f32,
    /// Is subtracted from the logits of tokens of the window, -2..=2.
    pub presence_penalty: f32,
    /// Is subtracted as often as they are in the window, -2..=2.
    pub frequency_penalty: f32,
    /// Size of that window: the last tokens of the sequence; 0 turns these three penalties off.
    pub repeat_last_n: u32,
    /// Makes tokens less probable that would go on repeating what came before, 0..=100; 0 turns it off.
    pub dry_multiplier: f32,
    /// How much more so with each token that is repeated, 1..=10.
    pub dry_base: f32,
    /// The longest repetition that may go on without a penalty, in tokens.
    pub dry_allowed_length: u32,
    /// The last tokens of the sequence, in which repetitions are looked for; 0 turns it off.
    pub dry_penalty_last_n: u32,
    /// Texts that a repetition does not go beyond; `None` is [`SamplingParams::DRY_SEQUENCE_BREAKERS`].
    pub dry_sequence_breakers: Option<Vec<String>>,
    /// Keeps the surprise of the text near `mirostat_tau`, in place of all filters but the penalties.
    pub mirostat: bool,
    /// The surprise of a token to be kept, in bits, above 0 and up to 100.
    pub mirostat_tau: f32,
    /// How fast that is followed, above 0 and up to 1.
    pub mirostat_eta: f32,
    /// What is added to the logits of tokens: finite numbers, or minus infinity, which bans the token. The last of equal
    /// ids counts.
    pub logit_bias: Vec<(u32, f32)>,
    /// Which filters are used, in which order; each at most once.
    pub samplers: Cow<'static, [Step]>,
    /// Chooses the sequence of random numbers; every value is good.
    pub seed: u64,
    /// If not 0, the logits are kept beside every token, and this many of the most probable tokens are told.
    pub logprobs: u32,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams::DEFAULT
    }
}

impl SamplingParams {
    /// The texts that end repetitions unasked.
    pub const DRY_SEQUENCE_BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

    /// The defaults, which take no memory of their own.
    const DEFAULT: SamplingParams = SamplingParams {
        temperature: 0.8,
        dynatemp_range: 0.0,
        dynatemp_exponent: 1.0,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.05,
        typical_p: 1.0,
        top_n_sigma: 0.0,
        xtc_probability: 0.0,
        xtc_threshold: 0.1,
        min_keep: 1,
        repeat_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        repeat_last_n: 64,
        dry_multiplier: 0.0,
        dry_base: 1.75,
        dry_allowed_length: 2,
        dry_penalty_last_n: u32::MAX,
        dry_sequence_breakers: None,
        mirostat: false,
        mirostat_tau: 5.0,
        mirostat_eta: 0.1,
        logit_bias: Vec::new(),
        samplers: Cow::Borrowed(&Step::DEFAULT),
        seed: 0,
        logprobs: 0,
    };

    /// The largest finite amount of a bias.
    pub const MAX_BIAS: f32 = 1000.0;

    /// Checks every parameter against its range.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the first parameter that is outside of its range or not a number.
    pub fn validate(&self) -> Result<()> {
        const ABOVE_0: f32 = f32::MIN_POSITIVE;
        in_range("temperature", self.temperature, 0.0..=2.0, "0 to 2")?;
        in_range("dynatemp_range", self.dynatemp_range, 0.0..=2.0, "0 to 2")?;
        let words = "a number above 0 and up to 10";
        in_range("dynatemp_exponent", self.dynatemp_exponent, ABOVE_0..=10.0, words)?;
        in_range("top_p", self.top_p, ABOVE_0..=1.0, "a number above 0 and up to 1")?;
        in_range("min_p", self.min_p, 0.0..=1.0, "0 to 1")?;
        in_range("typical_p", self.typical_p, ABOVE_0..=1.0, "a number above 0 and up to 1")?;
        in_range("top_n_sigma", self.top_n_sigma, 0.0..=100.0, "0 to 100")?;
        in_range("xtc_probability", self.xtc_probability, 0.0..=1.0, "0 to 1")?;
        in_range("xtc_threshold", self.xtc_threshold, 0.0..=1.0, "0 to 1")?;
        in_range("repeat_penalty", self.repeat_penalty, ABOVE_0..=10.0, words)?;
        in_range("presence_penalty", self.presence_penalty, -2.0..=2.0, "-2 to 2")?;
        in_range("frequency_penalty", self.frequency_penalty, -2.0..=2.0, "-2 to 2")?;
        in_range("dry_multiplier", self.dry_multiplier, 0.0..=100.0, "0 to 100")?;
        in_range("dry_base", self.dry_base, 1.0..=10.0, "1 to 10")?;
        in_range("mirostat_tau", self.mirostat_tau, ABOVE_0..=100.0, "a number above 0 and up to 100")?;
        in_range("mirostat_eta", self.mirostat_eta, ABOVE_0..=1.0, "a number above 0 and up to 1")?;
        for (_, bias) in &self.logit_bias {
            if *bias != f32::NEG_INFINITY {
                let words = "-1000 to 1000, or minus infinity";
                in_range("logit_bias", *bias, -Self::MAX_BIAS..=Self::MAX_BIAS, words)?;
            }
        }
        Step::check_order(&self.samplers)
    }

    /// Checks what depends on the vocabulary.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a bias of a token that a vocabulary of `n_vocab` does not have.
    pub fn validate_for(&self, n_vocab: usize) -> Result<()> {
        match self.logit_bias.iter().find(|(id, _)| *id as usize >= n_vocab) {
            Some((id, _)) => {
                let expected = format!("ids from 0 to {}", n_vocab.saturating_sub(1));
                Err(Error::invalid_argument("logit_bias", expected, id))
            }
            None => Ok(()),
        }
    }

    /// Whether the parameters ask for no more than `temperature`, `top_k`, `top_p`, `min_p` and `repeat_penalty` in their
    /// usual order, which a device may know to do by itself.
    pub fn is_simple(&self) -> bool {
        self.dynatemp_range == 0.0
            && self.typical_p == 1.0
            && self.top_n_sigma == 0.0
            && self.xtc_probability == 0.0
            && self.min_keep <= 1
            && self.presence_penalty == 0.0
            && self.frequency_penalty == 0.0
            && self.dry_multiplier == 0.0
            && !self.mirostat
            && self.logit_bias.is_empty()
            && self.logprobs == 0
            && *self.samplers == Step::DEFAULT
    }
}

/// NaN is in no range.
fn in_range(name: &str, value: f32, range: RangeInclusive<f32>, words: &str) -> Result<()> {
    if range.contains(&value) { Ok(()) } else { Err(Error::invalid_argument(name, words, value)) }
}
