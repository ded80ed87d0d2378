//! The one decoder loop.

use crate::backend::{Backend, Row, Stop};
use crate::{Error, Result};

/// Runs `rows` through the model; afterwards [`Backend::logits`] answers for the rows that wanted logits.
///
/// # Errors
/// What the stages return; [`Error::Cancelled`] where `stop` says so before a layer.
pub fn forward(backend: &mut dyn Backend, rows: &[Row], stop: Stop) -> Result<()> {
    backend.begin(rows)?;
    stages(backend, stop)
}

/// The stages of a batch that [`Backend::begin`] has taken.
///
/// # Errors
/// As [`forward`].
pub fn stages(backend: &mut dyn Backend, stop: Stop) -> Result<()> {
    backend.embed()?;
    for layer in 0..backend.n_layer() {
        if stop() {
            return Err(Error::Cancelled);
        }
        backend.attn_qkv(layer)?;
        backend.attn_mix(layer)?;
        backend.attn_output(layer)?;
        backend.ffn_up(layer)?;
        backend.ffn_down(layer)?;
    }
    backend.output()
}
