//! `phi3`: Phi-3, Phi-3.5 and Phi-4 (dense). q, k and v in one tensor, gate and up in another; rope on halves, with divisors
//! for short and for long contexts. A sliding window, where the file has one, is that of all layers, as in transformers;
//! llama.cpp leaves it out.

use crate::Result;
use crate::gguf::Metadata;
use crate::model::{ModelDesc, Norm, RopePairing};

pub(super) const NAME: &str = "phi3";

pub(super) fn describe(metadata: &Metadata) -> Result<ModelDesc> {
    let mut desc = ModelDesc::from_metadata(metadata, NAME, Norm::Rms)?;
    desc.rope.pairing = RopePairing::Halves;
    desc.set_windows(metadata, None, u64::MAX)?;
    Ok(desc)
}
