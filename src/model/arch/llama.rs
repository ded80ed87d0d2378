//! `llama`: Llama 2 and 3, Mistral, SmolLM2 and others. RMSNorm, rotary positions on adjacent pairs (the
//! converter permutes q and k so), grouped-query attention, SwiGLU.

use crate::gguf::Metadata;
use crate::model::ModelDesc;
use crate::{Error, Result};

pub(super) const NAME: &str = "llama";

pub(super) fn describe(metadata: &Metadata) -> Result<ModelDesc> {
    let key = "llama.expert_count";
    if let Some(n_expert) = metadata.u64(key)?
        && n_expert != 0
    {
        return Err(Error::bad_file(key, "0, a dense model", n_expert));
    }
    ModelDesc::from_metadata(metadata, NAME)
}
