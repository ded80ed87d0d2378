//! `gpt-oss`: experts with clamped SwiGLU and biases, attention sinks, YaRN; every second layer sees all. Its norm before the
//! experts is named `post_attention_norm`.

use crate::Result;
use crate::gguf::Metadata;
use crate::model::{Activation, ModelDesc, Norm, RopePairing};

pub(super) const NAME: &str = "gpt-oss";
const WINDOW: &str = "gpt-oss.attention.sliding_window";

pub(super) fn describe(metadata: &Metadata) -> Result<ModelDesc> {
    let mut desc = ModelDesc::from_metadata(metadata, NAME, Norm::Rms)?;
    desc.rope.pairing = RopePairing::Halves;
    desc.ffn_norm = "post_attention_norm";
    desc.activation = Activation::SiluClamped;
    desc.sinks = true;
    desc.require_experts()?;
    Metadata::require(WINDOW, metadata.u64(WINDOW)?)?;
    desc.set_windows(metadata, None, 2)?;
    Ok(desc)
}
