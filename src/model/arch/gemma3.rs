//! `gemma3`: like `gemma2`, with a norm of every head of q and k in place of soft caps; every sixth layer sees all, and the
//! others have a rope of their own.

use crate::Result;
use crate::gguf::Metadata;
use crate::model::{Activation, ModelDesc, Norm, QkNorm, RopePairing};

pub(super) const NAME: &str = "gemma3";

/// Layers of the model of 27B, whose scores are scaled by the width of a head that it does not have.
const LAYERS_OF_27B: usize = 62;

pub(super) fn describe(metadata: &Metadata) -> Result<ModelDesc> {
    let mut desc = ModelDesc::from_metadata(metadata, NAME, Norm::Rms)?;
    desc.rope.pairing = RopePairing::Halves;
    desc.post_norm = true;
    desc.qk_norm = Some(QkNorm::Head);
    desc.activation = Activation::Gelu;
    desc.embd_scale = (desc.n_embd as f32).sqrt();
    if desc.n_layer() == LAYERS_OF_27B {
        desc.attn_scale = 1.0 / ((desc.n_embd / desc.n_head) as f32).sqrt();
    }
    desc.set_windows(metadata, None, 6)?;
    desc.set_window_rope(metadata, 10_000.0)?;
    desc.logit_softcap = desc.softcap(metadata, "final_logit_softcapping", 0.0)?;
    Ok(desc)
}
