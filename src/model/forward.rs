//! The one decoder loop.

use crate::Result;
use crate::backend::{Backend, Row};

/// Runs `rows` through the model; afterwards [`Backend::logits`] answers for the rows that wanted logits.
///
/// # Errors
/// What the stages return.
pub fn forward(backend: &mut dyn Backend, rows: &[Row]) -> Result<()> {
    backend.begin(rows)?;
    stages(backend)
}

/// The stages of a batch that [`Backend::begin`] has taken.
///
/// # Errors
/// What they return.
pub fn stages(backend: &mut dyn Backend) -> Result<()> {
    backend.embed()?;
    for layer in 0..backend.n_layer() {
        backend.attn_qkv(layer)?;
        backend.attn_mix(layer)?;
        backend.attn_output(layer)?;
        backend.ffn_up(layer)?;
        backend.ffn_down(layer)?;
    }
    backend.output()
}
