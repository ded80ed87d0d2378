//! Chooses the next token from logits.
//!
//! The steps and their order are those of llama.cpp's usual chain; each has a file of its own.
//!
//! 1. `logit_bias` (`bias.rs`) is added to the logits; tokens that it bans or that a grammar (`grammar.rs`) forbids are
//!    none from here on.
//! 2. The penalties for tokens that came recently (`penalties.rs`), and for repetitions (`dry.rs`).
//! 3. What leaves tokens out: `top_n_sigma.rs`; `top_k`, where the largest logits stay; `typical_p.rs`; `top_p.rs`;
//!    `min_p.rs`; `xtc.rs`.
//! 4. The logits that are left are divided by the temperature (`temperature.rs`).
//! 5. One token is drawn, with the probabilities of the softmax.
//!
//! `samplers` changes the order of 2 to 4, and leaves out what it does not name (`order.rs`). With `mirostat` the penalties
//! are followed by the temperature and `mirostat.rs`. At temperature 0 they are followed by the largest logit, of equal
//! ones the lowest id, and nothing is drawn.
//!
//! Candidates are in the order of descending logit, equal ones by ascending id, through all steps, and one of them always
//! stays (`candidates.rs`). The weight of a candidate is `floor(2^40 * exp((logit - largest) / temperature))`, with a
//! temperature of 1 before step 4; it is computed in f64, by operations that are written down in `exp.rs`. Weights are
//! integers, so their sums are exact in any order, and any device gets the same bits. Step 5 takes the first candidate at
//! which the cumulative weight exceeds `floor(total * draw / 2^64)`, where `draw` is [`rng::draw`] of the seed and the
//! number of draws so far. A token takes one draw, with XTC two.
//!
//! What a sampler will do is a function of its parameters, the tokens so far and the number of draws: so a sequence can be
//! continued from any draw. DRY and the penalties look at the tokens anew each time. The limit of mirostat follows from
//! the logits of all earlier draws; the sampler keeps it for each of them ([`Sampler::set_drawn`]).

mod bias;
mod candidates;
mod defaults;
mod dry;
mod exp;
mod grammar;
mod logprobs;
mod min_p;
mod mirostat;
mod order;
mod params;
mod penalties;
pub mod rng;
mod temperature;
mod top_n_sigma;
mod top_p;
mod typical_p;
mod xtc;

use crate::error::try_vec;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use candidates::{Candidates, Source};
use dry::Dry;
use mirostat::Mirostat;
use penalties::Penalties;

pub use bias::{EXPECTED as BIAS_EXPECTED, parse as parse_bias};
pub use defaults::{DefaultValue, ModelDefault, model_defaults, unknown_defaults};
pub use grammar::{Grammar, GrammarText, Grammars};
pub use logprobs::logprobs;
pub use order::Step;
pub use params::SamplingParams;

/// Largest vocabulary: the sum of its weights fits into 64 bits.
pub(crate) const MAX_VOCAB: usize = 1 << 23;

/// Draws tokens with one set of parameters. Its buffers are reused from call to call; the default has none, and takes no
/// memory.
#[derive(Debug, Clone, Default)]
pub struct Sampler {
    params: SamplingParams,
    drawn: u64,
    penalties: Penalties,
    dry: Dry,
    mirostat: Mirostat,
    grammar: Option<Box<Grammar>>,
    candidates: Candidates,
    /// The logits of the last token and its id, if they are to be kept and there is one.
    kept: Vec<f32>,
    last: Option<u32>,
}

impl Sampler {
    /// A sampler that has drawn nothing yet.
    ///
    /// # Errors
    /// Those of [`SamplingParams::validate`].
    pub fn new(params: SamplingParams) -> Result<Sampler> {
        params.validate()?;
        let mut sampler = Sampler { params, ..Sampler::default() };
        bias::order(&mut sampler.params.logit_bias);
        Ok(sampler)
    }

    /// A sampler for a model with this vocabulary.
    ///
    /// # Errors
    /// Those of [`SamplingParams::validate`] and [`SamplingParams::validate_for`]; `OutOfMemory`.
    pub fn for_model(params: SamplingParams, n_vocab: usize, tokenizer: &Tokenizer) -> Result<Sampler> {
        params.validate_for(n_vocab)?;
        let mut sampler = Sampler::new(params)?;
        if sampler.uses(Step::Dry) && Dry::window(&sampler.params) > 0 {
            match &sampler.params.dry_sequence_breakers {
                Some(texts) => sampler.dry.find_breakers(texts, tokenizer)?,
                None => sampler.dry.find_breakers(&SamplingParams::DRY_SEQUENCE_BREAKERS, tokenizer)?,
            }
        }
        Ok(sampler)
    }

    /// Takes these tokens for those that repetitions do not go beyond.
    pub fn set_breakers(&mut self, tokens: Vec<u32>) {
        self.dry.set_breakers(tokens);
    }

    /// Allows only what this grammar does, from here on.
    pub fn set_grammar(&mut self, grammar: Grammar) {
        self.grammar = Some(Box::new(grammar));
    }

    /// Does what can be done before the logits are there: call it before each [`Self::sample`]. False if the grammar is
    /// complete, so that no token can follow.
    ///
    /// # Errors
    /// Those of [`Grammar::prepare`].
    pub fn prepare(&mut self) -> Result<bool> {
        self.grammar.as_mut().map_or(Ok(true), |grammar| grammar.prepare())
    }

    /// Takes note of a token that became part of the sequence.
    ///
    /// # Errors
    /// Those of [`Grammar::accept`].
    pub fn accept(&mut self, token: u32) -> Result<()> {
        self.grammar.as_mut().map_or(Ok(()), |grammar| grammar.accept(token))
    }

    /// Goes back to before the last `n` tokens that were accepted, when `drawn` random numbers had been used.
    ///
    /// # Errors
    /// Those of [`Grammar::rewind`].
    pub fn rewind(&mut self, n: usize, drawn: u64) -> Result<()> {
        self.set_drawn(drawn);
        self.last = None;
        self.grammar.as_mut().map_or(Ok(()), |grammar| grammar.rewind(n))
    }

    /// Goes on in another text, in which `drawn` random numbers had been used, with its grammar.
    pub fn restart(&mut self, drawn: u64, grammar: Option<Grammar>) {
        self.set_drawn(drawn);
        self.last = None;
        self.grammar = grammar.map(Box::new);
    }

    /// A sampler that draws as this one will. It has no logits of a last token.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; those of [`Grammar::fork`].
    pub fn fork(&self) -> Result<Sampler> {
        Ok(Sampler {
            params: self.params.clone(),
            drawn: self.drawn,
            dry: self.dry.fork()?,
            mirostat: self.mirostat.fork()?,
            grammar: self.grammar.as_ref().map(|grammar| grammar.fork()).transpose()?.map(Box::new),
            ..Sampler::default()
        })
    }

    /// The limits of mirostat after each draw, and how many draws were before the first of them.
    pub fn limits(&self) -> (u64, &[f64]) {
        self.mirostat.limits()
    }

    /// Takes up such limits.
    pub fn set_limits(&mut self, skipped: u64, limits: Vec<f64>) {
        self.mirostat.set_limits(skipped, limits);
    }

    /// How many random numbers a token takes.
    pub fn draws_per_token(&self) -> u64 {
        let (params, greedy) = (&self.params, self.params.temperature == 0.0);
        let xtc = params.xtc_probability > 0.0 && !params.mirostat && self.uses(Step::Xtc);
        if greedy { 0 } else { 1 + u64::from(xtc) }
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Whether [`SamplingParams::is_simple`] says all there is to its choices, so that a device may make them.
    pub fn is_simple(&self) -> bool {
        self.params.is_simple() && self.grammar.is_none()
    }

    /// How many random numbers were used.
    pub fn drawn(&self) -> u64 {
        self.drawn
    }

    /// Continues as if `drawn` random numbers had been used. Mirostat takes up the limit that it had then; it begins anew
    /// if this sampler has not made that draw.
    pub fn set_drawn(&mut self, drawn: u64) {
        self.drawn = drawn;
        self.mirostat.set_drawn(drawn);
    }

    /// The last token and the logits that it was drawn from, as the model gave them; `None` before the first, and
    /// without `logprobs`.
    pub fn last(&self) -> Option<(u32, &[f32])> {
        self.last.map(|token| (token, &*self.kept))
    }

    /// The tokens of `tokens` that [`Self::sample`] looks at.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn window_of(&self, tokens: &[u32]) -> Result<Vec<u32>> {
        let window = Penalties::window(&self.params).max(Dry::window(&self.params));
        let window = &tokens[tokens.len().saturating_sub(window)..];
        let mut out = try_vec(window.len(), "the latest tokens")?;
        out.extend_from_slice(window);
        Ok(out)
    }

    /// The id of the next token, from `logits[n_vocab]` and the sequence so far, `recent`, of which the last
    /// `repeat_last_n` or `dry_penalty_last_n` count (`recent` may be shorter or longer; ids outside the vocabulary are
    /// passed over).
    ///
    /// # Errors
    /// [`Error::Numeric`] names the first logit that is not finite, [`Error::NoCandidate`] says that all tokens are
    /// banned, [`Error::Internal`] that there are none or more than 2^23, and [`Error::OutOfMemory`] that there was no
    /// room for candidates. After an error nothing was drawn.
    pub fn sample(&mut self, logits: &[f32], recent: &[u32]) -> Result<u32> {
        // Without an early exit, so that the loop vectorises.
        if !logits.iter().fold(true, |finite, x| finite & x.is_finite()) {
            let (index, found) = logits.iter().enumerate().find(|(_, x)| !x.is_finite()).unwrap_or((0, &f32::NAN));
            return Err(Error::Numeric { what: "logit of token", index, found: *found });
        }
        if !(1..=MAX_VOCAB).contains(&logits.len()) {
            return Err(Error::Internal(format!("expected 1 to {MAX_VOCAB} logits, found {}", logits.len())));
        }
        let keeps = self.params.logprobs > 0;
        if keeps && self.kept.len() != logits.len() {
            self.last = None;
            self.kept = try_vec(logits.len(), "the logits")?;
            self.kept.resize(logits.len(), 0.0);
        }
        let token = self.choose(logits, recent)?;
        if keeps {
            self.kept.copy_from_slice(logits);
            self.last = Some(token);
        }
        Ok(token)
    }

    fn choose(&mut self, logits: &[f32], recent: &[u32]) -> Result<u32> {
        let allowed = self.grammar.as_ref().map(|grammar| grammar.allowed());
        let (params, candidates, source) = (&self.params, &mut self.candidates, Source { logits, allowed });
        candidates.reset(usize::try_from(params.min_keep).unwrap_or(usize::MAX));
        bias::apply(&params.logit_bias, candidates, source)?;
        let greedy = params.temperature == 0.0;
        let mut drawn = self.drawn;
        for step in params.samplers.iter() {
            match step {
                Step::Penalties if Penalties::window(params) > 0 => {
                    self.penalties.apply(params, recent, candidates, source)?;
                }
                Step::Dry if Dry::window(params) > 0 => self.dry.apply(params, recent, candidates, source)?,
                // Neither leaves anything for these to do.
                _ if greedy || params.mirostat => {}
                Step::TopNSigma if params.top_n_sigma > 0.0 => {
                    top_n_sigma::apply(params.top_n_sigma, candidates, source)?;
                }
                Step::TopK if params.top_k > 0 => {
                    candidates.list_first(source, usize::try_from(params.top_k).unwrap_or(usize::MAX))?;
                }
                Step::TypicalP if params.typical_p < 1.0 => {
                    candidates.list_all(source)?;
                    typical_p::apply(params.typical_p, candidates)?;
                }
                Step::TopP if params.top_p < 1.0 => {
                    candidates.list_all(source)?;
                    top_p::apply(params.top_p, candidates);
                }
                Step::MinP if params.min_p > 0.0 => {
                    candidates.list_all(source)?;
                    min_p::apply(params.min_p, candidates);
                }
                Step::Xtc if params.xtc_probability > 0.0 => {
                    candidates.list_all(source)?;
                    xtc::apply(params, rng::draw(params.seed, drawn), candidates);
                    drawn += 1;
                }
                Step::Temperature => temperature::apply(params, candidates, source)?,
                _ => {}
            }
        }
        if greedy {
            return candidates.best(source).map(|best| best.id()).ok_or(Error::NoCandidate);
        }
        candidates.list_all(source)?;
        if params.mirostat {
            candidates.set_temperature(f64::from(params.temperature));
            self.mirostat.apply(params, candidates)?;
        }
        let total = candidates.total();
        let passed = ((u128::from(total) * u128::from(rng::draw(params.seed, drawn))) >> 64) as u64;
        let at = candidates.first_where(|sum| sum > passed);
        let chosen = candidates.nth(at);
        if params.mirostat {
            self.mirostat.note(params, candidates.weight(chosen), total);
        }
        self.drawn = drawn + 1;
        Ok(chosen.id())
    }

    fn uses(&self, step: Step) -> bool {
        self.params.samplers.contains(&step)
    }
}
