//! `olmo2`: OLMo 2, and OLMo 3 with its sliding windows. Norms after attention and feed-forward layer only, a norm of all of q
//! and of all of k, rope on halves; layers with a window turn by unscaled angles.

use crate::Result;
use crate::gguf::Metadata;
use crate::model::{ModelDesc, Norm, QkNorm, RopePairing};

pub(super) const NAME: &str = "olmo2";

pub(super) fn describe(metadata: &Metadata) -> Result<ModelDesc> {
    let mut desc = ModelDesc::from_metadata(metadata, NAME, Norm::Rms)?;
    desc.rope.pairing = RopePairing::Halves;
    desc.pre_norm = false;
    desc.post_norm = true;
    desc.qk_norm = Some(QkNorm::Row);
    desc.set_windows(metadata, None, 4)?;
    let freq_base = desc.rope.kinds.first().map_or(10_000.0, |kind| kind.freq_base);
    desc.set_window_rope(metadata, freq_base)?;
    Ok(desc)
}
