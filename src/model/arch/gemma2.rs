//! `gemma2`: norms before and after attention and feed-forward layer, GELU gates, soft caps; every second layer sees all.

use crate::Result;
use crate::gguf::Metadata;
use crate::model::{Activation, ModelDesc, Norm, RopePairing};

pub(super) const NAME: &str = "gemma2";

/// Layers of the model of 27B, whose scores are scaled by the width of a head that it does not have.
const LAYERS_OF_27B: usize = 46;

pub(super) fn describe(metadata: &Metadata) -> Result<ModelDesc> {
    let mut desc = ModelDesc::from_metadata(metadata, NAME, Norm::Rms)?;
    desc.rope.pairing = RopePairing::Halves;
    desc.post_norm = true;
    desc.activation = Activation::Gelu;
    desc.embd_scale = (desc.n_embd as f32).sqrt();
    if desc.n_layer() == LAYERS_OF_27B {
        desc.attn_scale = 1.0 / ((desc.n_embd / desc.n_head) as f32).sqrt();
    }
    desc.set_windows(metadata, Some(4096), 2)?;
    let freq_base = desc.rope.kinds.first().map_or(10_000.0, |kind| kind.freq_base);
    desc.set_window_rope(metadata, freq_base)?;
    // The defaults are what all models of the family have.
    desc.attn_softcap = desc.softcap(metadata, "attn_logit_softcapping", 50.0)?;
    desc.logit_softcap = desc.softcap(metadata, "final_logit_softcapping", 30.0)?;
    Ok(desc)
}
