//! Nucleus sampling (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration").

use super::candidates::Candidates;

/// Leaves the shortest prefix whose probability is at least `top_p`.
pub(super) fn apply(top_p: f32, candidates: &mut Candidates) {
    let wanted = f64::from(top_p) * candidates.total() as f64;
    let last = candidates.first_where(|sum| sum as f64 >= wanted);
    candidates.shorten(last + 1);
}
