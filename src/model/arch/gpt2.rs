//! `gpt2`: LayerNorm, learned positions instead of rope, biases everywhere, GELU without a gate.

use crate::Result;
use crate::gguf::Metadata;
use crate::model::{Activation, ModelDesc, Norm};

pub(super) const NAME: &str = "gpt2";

pub(super) fn describe(metadata: &Metadata) -> Result<ModelDesc> {
    let mut desc = ModelDesc::from_metadata(metadata, NAME, Norm::Layer)?;
    desc.rope.n_rot = 0;
    desc.rope.kinds.clear();
    desc.layers.iter_mut().for_each(|layer| layer.rope = None);
    desc.learned_positions = true;
    desc.activation = Activation::GeluUngated;
    Ok(desc)
}
