//! Locally typical sampling (Meister et al. 2022, "Locally Typical Sampling").

use super::candidates::{Candidate, Candidates, sort_up_to};
use crate::Result;
use crate::error::try_vec;

/// Leaves the candidates whose surprise is nearest to the entropy, as few as have a probability of `typical_p` together.
/// Of equally near ones the more probable come first.
///
/// # Errors
/// `OutOfMemory`.
pub(super) fn apply(typical_p: f32, candidates: &mut Candidates) -> Result<()> {
    let (entropy, ln_sum) = candidates.entropy();
    let mut by_distance: Vec<(u64, Candidate)> = try_vec(candidates.len(), "the candidates of the sampler")?;
    by_distance.extend(candidates.list().iter().map(|candidate| {
        let surprise = ln_sum - candidates.exponent(*candidate);
        // The bits of numbers that are not negative are in the order of these.
        ((surprise - entropy).abs().to_bits(), *candidate)
    }));
    let wanted = f64::from(typical_p) * candidates.total() as f64;
    let (mut n, mut sorted, mut sum) = (0, 0, 0);
    while n < by_distance.len() && (n < candidates.min_keep() || (sum as f64) < wanted) {
        sort_up_to(&mut by_distance, &mut sorted, n);
        sum += candidates.weight(by_distance[n].1);
        n += 1;
    }
    candidates.keep(|list| {
        list.clear();
        list.extend(by_distance.iter().take(n).map(|(_, candidate)| *candidate));
    });
    Ok(())
}
