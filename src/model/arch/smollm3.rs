//! `smollm3`: like `llama`; every fourth layer has no rope.

use crate::Result;
use crate::gguf::Metadata;
use crate::model::{ModelDesc, Norm};

pub(super) const NAME: &str = "smollm3";

pub(super) fn describe(metadata: &Metadata) -> Result<ModelDesc> {
    let mut desc = ModelDesc::from_metadata(metadata, NAME, Norm::Rms)?;
    desc.layers.iter_mut().skip(3).step_by(4).for_each(|layer| layer.rope = None);
    Ok(desc)
}
