//! The steps of a sampler, and their order.

use crate::error::quoted;
use crate::{Error, Result};

/// What a sampler does to the candidates between the logits and the draw. The bias of logits and the grammar always come
/// first, since they say what may be chosen at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `repeat_penalty`, `presence_penalty`, `frequency_penalty`.
    Penalties,
    /// `dry_multiplier` and what belongs to it.
    Dry,
    /// `top_n_sigma`.
    TopNSigma,
    /// `top_k`.
    TopK,
    /// `typical_p`.
    TypicalP,
    /// `top_p`.
    TopP,
    /// `min_p`.
    MinP,
    /// `xtc_probability`, `xtc_threshold`.
    Xtc,
    /// `temperature`, `dynatemp_range`, `dynatemp_exponent`.
    Temperature,
}

impl Step {
    /// Every step, in the order of llama.cpp.
    pub const DEFAULT: [Step; 9] = [
        Step::Penalties,
        Step::Dry,
        Step::TopNSigma,
        Step::TopK,
        Step::TypicalP,
        Step::TopP,
        Step::MinP,
        Step::Xtc,
        Step::Temperature,
    ];

    /// What [`Step::parse_order`] takes, for messages.
    pub const EXPECTED: &str = "names with commas between, each once, of: penalties, dry, top_n_sigma, top_k, typical_p, \
                                top_p, min_p, xtc, temperature";

    /// The name of the step.
    pub fn name(self) -> &'static str {
        match self {
            Step::Penalties => "penalties",
            Step::Dry => "dry",
            Step::TopNSigma => "top_n_sigma",
            Step::TopK => "top_k",
            Step::TypicalP => "typical_p",
            Step::TopP => "top_p",
            Step::MinP => "min_p",
            Step::Xtc => "xtc",
            Step::Temperature => "temperature",
        }
    }

    /// The steps that `text` names, with commas or semicolons between; none for an empty text. Names that llama.cpp has
    /// for the same are understood.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that no step has, or that comes twice.
    pub fn parse_order(text: &str) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        for name in text.split([',', ';']).map(str::trim).filter(|_| !text.trim().is_empty()) {
            let known = match name {
                "typ_p" | "typical" => "typical_p",
                "temp" => "temperature",
                name => name,
            };
            let step = Step::DEFAULT.into_iter().find(|step| step.name() == known);
            let step = step.filter(|step| !steps.contains(step));
            steps.push(step.ok_or_else(|| refuse(quoted(name.as_bytes())))?);
        }
        Ok(steps)
    }

    /// Checks that no step comes twice.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`].
    pub(super) fn check_order(steps: &[Step]) -> Result<()> {
        let twice = (1..steps.len()).find(|&at| steps[..at].contains(&steps[at]));
        twice.map_or(Ok(()), |at| Err(refuse(format!("{} twice", steps[at].name()))))
    }
}

fn refuse(found: String) -> Error {
    Error::invalid_argument("samplers", Step::EXPECTED, found)
}
