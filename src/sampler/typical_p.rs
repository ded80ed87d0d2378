//! Locally typical sampling (Meister et al. 2022, "Locally Typical Sampling").

use super::candidates::{Candidate, Candidates};
use crate::Result;
use crate::error::try_vec;

/// Leaves the candidates whose surprise is nearest to the entropy, as few as have a probability of `typical_p` together.
/// Of equally near ones the more probable come first.
///
/// # Errors
/// `OutOfMemory`.
pub(super) fn apply(typical_p: f32, candidates: &mut Candidates) -> Result<()> {
    let (entropy, ln_sum) = candidates.entropy();
    let mut by_distance: Vec<(f64, Candidate)> = try_vec(candidates.len(), "the candidates of the sampler")?;
    by_distance.extend(candidates.list().iter().map(|candidate| {
        let surprise = ln_sum - candidates.exponent(*candidate);
        ((surprise - entropy).abs(), *candidate)
    }));
    by_distance.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let wanted = f64::from(typical_p) * candidates.total() as f64;
    let mut sum = 0;
    let enough = by_distance.iter().position(|(_, candidate)| {
        sum += candidates.weight(*candidate);
        sum as f64 >= wanted
    });
    let n = enough.map_or(by_distance.len(), |last| last + 1).max(candidates.min_keep());
    candidates.keep(|list| {
        list.clear();
        list.extend(by_distance.iter().take(n).map(|(_, candidate)| *candidate));
    });
    Ok(())
}
