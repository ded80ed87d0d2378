//! Probabilities of tokens as the model gives them, before anything is changed or left out.

use super::candidates::{Candidates, Source};
use crate::Result;
use crate::error::try_vec;

/// The logarithms of the softmax over `logits`, which are finite: of `token` first, and then of the `n` most probable
/// tokens, of equal ones the lower id first. In f64, summed by ascending id.
///
/// # Errors
/// `OutOfMemory`.
pub fn logprobs(logits: &[f32], token: u32, n: usize) -> Result<Vec<(u32, f64)>> {
    let n = n.min(logits.len());
    let largest = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
    let ln_sum = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum::<f64>().ln();
    let of = |logit: f64| (logit - largest) - ln_sum;
    let mut all = try_vec(n + 1, "the most probable tokens")?;
    all.extend(logits.get(token as usize).map(|logit| (token, of(f64::from(*logit)))));
    if n > 0 {
        let mut best = Candidates::default();
        best.list_first(Source { logits, allowed: None }, n)?;
        all.extend((0..n).map(|at| best.nth(at)).map(|candidate| (candidate.id(), of(candidate.logit()))));
    }
    Ok(all)
}
