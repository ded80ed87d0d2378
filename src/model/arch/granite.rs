//! `granite`: Granite 3 (dense). Like `llama`, with factors on embeddings, scores, residuals and logits.

use crate::Result;
use crate::gguf::Metadata;
use crate::model::{ModelDesc, Norm};

pub(super) const NAME: &str = "granite";
const LOGIT_SCALE: &str = "granite.logit_scale";

pub(super) fn describe(metadata: &Metadata) -> Result<ModelDesc> {
    let mut desc = ModelDesc::from_metadata(metadata, NAME, Norm::Rms)?;
    desc.embd_scale = desc.factor(metadata, "embedding_scale", 1.0)?;
    desc.residual_scale = desc.factor(metadata, "residual_scale", 1.0)?;
    desc.attn_scale = desc.factor(metadata, "attention.scale", desc.attn_scale)?;
    Metadata::require(LOGIT_SCALE, metadata.f32(LOGIT_SCALE)?)?;
    desc.logit_scale = 1.0 / desc.factor(metadata, "logit_scale", 1.0)?;
    // The key says whether the model was trained with rope at all.
    if metadata.bool("granite.rope.scaling.finetuned")? == Some(false) {
        desc.layers.iter_mut().for_each(|layer| layer.rope = None);
    }
    Ok(desc)
}
