//! Exclude top choices (XTC, by p-e-w, 2024, text-generation-webui).

use super::SamplingParams;
use super::candidates::Candidates;

/// With a probability of `xtc_probability`, which `draw` decides, leaves out all candidates whose probability is at least
/// `xtc_threshold`, except the last of them; nothing if there are not two such, or fewer than `min_keep` would stay.
pub(super) fn apply(params: &SamplingParams, draw: u64, candidates: &mut Candidates) {
    // The upper 53 bits are a number below 1 that f64 holds exactly.
    let chance = (draw >> 11) as f64 / (1u64 << 53) as f64;
    if chance >= f64::from(params.xtc_probability) {
        return;
    }
    let least = f64::from(params.xtc_threshold) * candidates.total() as f64;
    let n = candidates.list().iter().filter(|candidate| candidates.weight(**candidate) as f64 >= least).count();
    let dropped = n.saturating_sub(1);
    if candidates.len() - dropped >= candidates.min_keep() {
        candidates.drop_first(dropped);
    }
}
