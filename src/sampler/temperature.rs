//! The temperature, fixed or following the entropy ("dynamic temperature", by kalomaze, 2023, as in llama.cpp).

use super::SamplingParams;
use super::candidates::{Candidates, Source};
use crate::Result;

/// Divides the logits by the temperature. With a range, that lies between `temperature - dynatemp_range`, not below 0,
/// and `temperature + dynatemp_range`: at the entropy over the largest that as many candidates can have, to the power of
/// `dynatemp_exponent`.
///
/// # Errors
/// `OutOfMemory`, `NoCandidate`.
pub(super) fn apply(params: &SamplingParams, candidates: &mut Candidates, source: Source) -> Result<()> {
    let (middle, range) = (f64::from(params.temperature), f64::from(params.dynatemp_range));
    if range == 0.0 {
        candidates.set_temperature(middle);
        return Ok(());
    }
    candidates.list_all(source)?;
    if candidates.len() > 1 {
        let (entropy, _) = candidates.entropy();
        let share = (entropy / (candidates.len() as f64).ln()).clamp(0.0, 1.0);
        let (lowest, highest) = ((middle - range).max(0.0), middle + range);
        candidates.set_temperature(lowest + (highest - lowest) * share.powf(f64::from(params.dynatemp_exponent)));
    }
    Ok(())
}
