//! Top-n-sigma sampling (Tang et al. 2024, "Top-nσ: Not All Logits Are You Need").

use super::candidates::{Candidates, Source};
use crate::{Error, Result};

/// Leaves candidates whose logits are at least the largest less `n` standard deviations of all of them. A temperature
/// makes no difference.
///
/// # Errors
/// [`Error::OutOfMemory`], [`Error::NoCandidate`].
pub(super) fn apply(n: f32, candidates: &mut Candidates, source: Source) -> Result<()> {
    let largest = candidates.best(source).ok_or(Error::NoCandidate)?.logit();
    let (mut count, mut sum) = (0u32, 0.0);
    candidates.each(source, |candidate| {
        count += 1;
        sum += candidate.logit() - largest;
    });
    let mean = sum / f64::from(count);
    let mut squares = 0.0;
    candidates.each(source, |candidate| squares += (candidate.logit() - largest - mean).powi(2));
    let least = largest - f64::from(n) * (squares / f64::from(count)).sqrt();
    let all = candidates.min_keep() > 1;
    candidates.list_where(source, |candidate| all || candidate.logit() >= least)?;
    candidates.keep_while(|candidate| candidate.logit() >= least);
    Ok(())
}
