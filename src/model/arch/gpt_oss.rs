//! `gpt-oss`: experts with clamped SwiGLU and biases, attention sinks, YaRN; every second layer sees all. Its norm before the
//! experts is named `post_attention_norm`.

use crate::Result;
use crate::gguf::Metadata;
use crate::model::{Activation, ModelDesc, Norm, RopePairing};

pub(super) const NAME: &str = "gpt-oss";

pub(super) fn describe(metadata: &Metadata) -> Result<ModelDesc> {
    let mut desc = ModelDesc::from_metadata(metadata, NAME, Norm::Rms)?;
    desc.rope.pairing = RopePairing::Halves;
    desc.ffn_norm = "post_attention_norm";
    desc.activation = Activation::SiluClamped;
    desc.sinks = true;
    desc.set_windows(metadata, None, 2)?;
    Ok(desc)
}
