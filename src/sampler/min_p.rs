//! Min-p sampling (Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs").

use super::candidates::Candidates;

/// Leaves candidates at least `min_p` times as probable as the first.
pub(super) fn apply(min_p: f32, candidates: &mut Candidates) {
    let least = candidates.nth(0).logit() + candidates.temperature() * f64::from(min_p).ln();
    candidates.keep_while(|candidate| candidate.logit() >= least);
}
