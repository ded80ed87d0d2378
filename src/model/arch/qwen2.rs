//! `qwen2`: Qwen2 and Qwen2.5. Like `llama`, with biases on q, k and v, and rope on halves.

use crate::Result;
use crate::gguf::Metadata;
use crate::model::{ModelDesc, Norm, RopePairing};

pub(super) const NAME: &str = "qwen2";

pub(super) fn describe(metadata: &Metadata) -> Result<ModelDesc> {
    let mut desc = ModelDesc::from_metadata(metadata, NAME, Norm::Rms)?;
    desc.rope.pairing = RopePairing::Halves;
    Ok(desc)
}
