//! The one decoder loop.

use crate::Result;
use crate::backend::{Backend, Row};

/// What is called before every layer, with its number. Its error ends the batch.
pub type BeforeLayer<'a> = &'a (dyn Fn(usize) -> Result<()> + Sync);

/// Runs `rows` through the model; afterwards [`Backend::logits`] answers for the rows that wanted logits.
///
/// # Errors
/// What the stages return, and `before`.
pub fn forward(backend: &mut dyn Backend, rows: &[Row], before: BeforeLayer) -> Result<()> {
    backend.begin(rows)?;
    stages(backend, before)
}

/// The stages of a batch that [`Backend::begin`] has taken.
///
/// # Errors
/// As [`forward`].
pub fn stages(backend: &mut dyn Backend, before: BeforeLayer) -> Result<()> {
    backend.embed()?;
    for layer in 0..backend.n_layer() {
        before(layer)?;
        backend.attn_qkv(layer)?;
        backend.attn_mix(layer)?;
        backend.attn_output(layer)?;
        backend.ffn_up(layer)?;
        backend.ffn_down(layer)?;
    }
    backend.output()
}
