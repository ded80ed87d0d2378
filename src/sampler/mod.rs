//! Chooses the next token from logits.
//!
//! The steps and their order are those of llama.cpp's usual chain:
//!
//! 1. `repeat_penalty`: the logit of each distinct token among the last `repeat_last_n` is divided by the penalty if it
//!    is positive, multiplied by it otherwise (Keskar et al. 2019, as llama.cpp corrects it for negative logits).
//! 2. `top_k`: the `top_k` largest logits stay.
//! 3. `top_p`: of the softmax over these, the shortest run of largest probabilities stays whose sum is at least `top_p`.
//! 4. `min_p`: tokens stay whose logit is at least that of the largest plus `ln(min_p)`.
//! 5. `temperature`: the logits that are left are divided by it.
//! 6. One of them is drawn, with the probabilities of their softmax.
//!
//! Candidates are in the order of descending logit, equal ones by ascending id, through all steps, and the first of them
//! always stays. The weight of a candidate is `floor(2^40 * exp((logit - largest) / temperature))`, with a temperature of
//! 1 in step 3; it is computed in f64, by operations that are written down in `exp.rs`. Weights are integers, so their
//! sums are exact in any order, and any device gets the same bits. Step 6 takes the first candidate at which the
//! cumulative weight exceeds `floor(total * draw / 2^64)`, where `draw` is [`rng::draw`] of the seed and the number of
//! draws so far; so a sequence can be continued from any draw. At temperature 0 step 1 is followed by the largest logit
//! (of equal ones the lowest id) and nothing is drawn.

mod exp;
mod params;
pub mod rng;

use crate::error::try_vec;
use crate::{Error, Result};

pub use params::SamplingParams;

/// The weight of the most probable candidate.
const ONE: f64 = (1u64 << 40) as f64;
/// Exponents below this give a weight of 0: `exp(-28) < 2^-40`.
const LEAST_EXPONENT: f64 = -28.0;
/// Largest vocabulary: the sum of its weights fits into 64 bits.
pub(crate) const MAX_VOCAB: usize = 1 << 23;
/// How many candidates are sorted first; more follow only as far as they are needed.
const FIRST_SORTED: usize = 256;

/// A token that may still be chosen. The integer order is that of candidates: the upper half falls as the logit
/// rises, the lower half is the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate(u64);

impl Candidate {
    fn new(id: u32, logit: f32) -> Candidate {
        // Adding 0 turns -0 into 0, which it has to equal.
        let bits = (logit + 0.0).to_bits();
        let falling = if bits >> 31 == 0 { !bits ^ (1 << 31) } else { bits };
        Candidate(u64::from(falling) << 32 | u64::from(id))
    }

    fn id(self) -> u32 {
        self.0 as u32
    }

    fn logit(self) -> f64 {
        let falling = (self.0 >> 32) as u32;
        let bits = if falling >> 31 == 0 { !falling ^ (1 << 31) } else { falling };
        f64::from(f32::from_bits(bits))
    }

    /// The weight beside a candidate whose logit is `largest`.
    fn weight(self, largest: f64, temperature: f32) -> u64 {
        // 0 or negative, over a positive number: never NaN.
        let exponent = (self.logit() - largest) / f64::from(temperature);
        if exponent < LEAST_EXPONENT { 0 } else { (ONE * exp::exp(exponent)) as u64 }
    }
}

/// Draws tokens with one set of parameters. Its buffers are reused from call to call.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    drawn: u64,
    /// Distinct tokens of the window, ascending.
    window: Vec<u32>,
    /// Of these, the first `sorted` are in their final places.
    candidates: Vec<Candidate>,
    sorted: usize,
}

impl Sampler {
    /// A sampler that has drawn nothing yet.
    ///
    /// # Errors
    /// Those of [`SamplingParams::validate`].
    pub fn new(params: SamplingParams) -> Result<Sampler> {
        params.validate()?;
        Ok(Sampler { params, drawn: 0, window: Vec::new(), candidates: Vec::new(), sorted: 0 })
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// How many random numbers were used.
    pub fn drawn(&self) -> u64 {
        self.drawn
    }

    /// Continues as if `drawn` random numbers had been used.
    pub fn set_drawn(&mut self, drawn: u64) {
        self.drawn = drawn;
    }

    /// The id of the next token, from `logits[n_vocab]` and the sequence so far, `recent`, of which the last
    /// `repeat_last_n` count (`recent` may be shorter or longer; ids outside the vocabulary are passed over).
    ///
    /// # Errors
    /// [`Error::Numeric`] names the first logit that is not finite, [`Error::Internal`] says that there are none or
    /// more than 2^23, and [`Error::OutOfMemory`] that there was no room for candidates. After an error nothing was drawn.
    pub fn sample(&mut self, logits: &[f32], recent: &[u32]) -> Result<u32> {
        // Without an early exit, so that the loop vectorises.
        if !logits.iter().fold(true, |finite, x| finite & x.is_finite()) {
            let (index, found) = logits.iter().enumerate().find(|(_, x)| !x.is_finite()).unwrap_or((0, &f32::NAN));
            return Err(Error::Numeric { what: "logit of token", index, found: *found });
        }
        if !(1..=MAX_VOCAB).contains(&logits.len()) {
            return Err(Error::Internal(format!("expected 1 to {MAX_VOCAB} logits, found {}", logits.len())));
        }
        self.note_window(recent, logits.len())?;
        if self.params.temperature == 0.0 {
            return Ok(self.greedy(logits));
        }
        self.top_k(logits)?;
        self.top_p();
        self.min_p();
        Ok(self.draw())
    }

    /// Writes the distinct tokens of the window to `window`; none when the penalty is off.
    fn note_window(&mut self, recent: &[u32], n_vocab: usize) -> Result<()> {
        self.window.clear();
        if self.params.repeat_penalty == 1.0 {
            return Ok(());
        }
        let last_n = usize::try_from(self.params.repeat_last_n).unwrap_or(usize::MAX);
        let recent = &recent[recent.len().saturating_sub(last_n)..];
        if self.window.capacity() < recent.len() {
            self.window = try_vec(recent.len(), "the window of the repetition penalty")?;
        }
        self.window.extend(recent.iter().filter(|&&id| (id as usize) < n_vocab));
        self.window.sort_unstable();
        self.window.dedup();
        Ok(())
    }

    /// Every token as a candidate, after the repetition penalty.
    fn penalized<'a>(&'a self, logits: &'a [f32]) -> impl Iterator<Item = Candidate> + 'a {
        let penalty = self.params.repeat_penalty;
        let mut window = self.window.iter().copied();
        let mut next = window.next();
        (0u32..).zip(logits).map(move |(id, &logit)| {
            if next != Some(id) {
                return Candidate::new(id, logit);
            }
            next = window.next();
            let scaled = if logit > 0.0 { logit / penalty } else { logit * penalty };
            // A tiny or large penalty may leave the range of f32.
            Candidate::new(id, scaled.clamp(f32::MIN, f32::MAX))
        })
    }

    /// The largest penalised logit, of equal ones the lowest id.
    fn greedy(&self, logits: &[f32]) -> u32 {
        self.penalized(logits).min().map_or(0, Candidate::id)
    }

    /// Fills `candidates` with the first `top_k`, or with all of them.
    fn top_k(&mut self, logits: &[f32]) -> Result<()> {
        let n_vocab = logits.len();
        let k = match usize::try_from(self.params.top_k) {
            Ok(0) | Err(_) => n_vocab,
            Ok(k) => k.min(n_vocab),
        };
        // Twice as many as wanted are gathered, then the better half stays: linear, and with few writes.
        let room = k.saturating_mul(2).min(n_vocab);
        let mut kept = std::mem::take(&mut self.candidates);
        kept.clear();
        if kept.capacity() < room {
            kept = try_vec(room, "the candidates of the sampler")?;
        }
        let mut worst = Candidate(u64::MAX);
        for candidate in self.penalized(logits) {
            if candidate >= worst {
                continue;
            }
            kept.push(candidate);
            if kept.len() == room && k < n_vocab {
                worst = *kept.select_nth_unstable(k - 1).1;
                kept.truncate(k);
            }
        }
        if kept.len() > k {
            kept.select_nth_unstable(k - 1);
            kept.truncate(k);
        }
        self.candidates = kept;
        self.sorted = 0;
        self.sort_up_to(0);
        Ok(())
    }

    /// Puts candidate `at` and those before it, and some more, into their final places.
    fn sort_up_to(&mut self, at: usize) {
        while self.sorted <= at && self.sorted < self.candidates.len() {
            let rest = &mut self.candidates[self.sorted..];
            // Four times as many each time keep the whole linear beside the sorting.
            let more = FIRST_SORTED.max(self.sorted.saturating_mul(3)).min(rest.len());
            if more < rest.len() {
                rest.select_nth_unstable(more - 1);
            }
            rest[..more].sort_unstable();
            self.sorted += more;
        }
    }

    /// The sum of all weights, at least 2^40.
    fn total(&self, temperature: f32) -> u64 {
        let largest = self.candidates[0].logit();
        self.candidates.iter().map(|c| c.weight(largest, temperature)).sum()
    }

    /// The first candidate at which the cumulative weight meets `enough`, which the total does.
    fn first_where(&mut self, temperature: f32, enough: impl Fn(u64) -> bool) -> usize {
        let largest = self.candidates[0].logit();
        let mut sum = 0;
        for at in 0..self.candidates.len() {
            self.sort_up_to(at);
            sum += self.candidates[at].weight(largest, temperature);
            if enough(sum) {
                return at;
            }
        }
        self.candidates.len() - 1
    }

    /// Leaves the shortest prefix whose probability is at least `top_p`.
    fn top_p(&mut self) {
        if self.params.top_p >= 1.0 {
            return;
        }
        let wanted = f64::from(self.params.top_p) * self.total(1.0) as f64;
        let last = self.first_where(1.0, |sum| sum as f64 >= wanted);
        self.candidates.truncate(last + 1);
        self.sorted = self.sorted.min(last + 1);
    }

    /// Leaves candidates at least `min_p` times as probable as the first.
    fn min_p(&mut self) {
        if self.params.min_p <= 0.0 {
            return;
        }
        let least = self.candidates[0].logit() + f64::from(self.params.min_p).ln();
        // Those that stay come before those that go, so the sorted prefix stays one.
        self.candidates.retain(|c| c.logit() >= least);
        self.sorted = self.sorted.min(self.candidates.len());
    }

    /// Draws one of the candidates at the temperature.
    fn draw(&mut self) -> u32 {
        let total = self.total(self.params.temperature);
        let draw = rng::draw(self.params.seed, self.drawn);
        self.drawn += 1;
        let passed = ((u128::from(total) * u128::from(draw)) >> 64) as u64;
        let at = self.first_where(self.params.temperature, |sum| sum > passed);
        self.candidates[at].id()
    }
}
