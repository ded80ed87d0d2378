//! `llama`: Llama 2 and 3, Mistral, Mixtral, SmolLM2 and others. RMSNorm, rotary positions on adjacent pairs (the converter
//! permutes q and k so), grouped-query attention, SwiGLU, dense or in experts. A sliding window, where the file has one, is
//! that of all layers, as in the first Mistral; llama.cpp leaves it out.

use crate::Result;
use crate::gguf::Metadata;
use crate::model::{ModelDesc, Norm};

pub(super) const NAME: &str = "llama";

pub(super) fn describe(metadata: &Metadata) -> Result<ModelDesc> {
    let mut desc = ModelDesc::from_metadata(metadata, NAME, Norm::Rms)?;
    desc.set_windows(metadata, None, u64::MAX)?;
    Ok(desc)
}
