//! `qwen3` and, with experts, `qwen3moe`. Rope on halves, and a norm of every head of q and k.

use crate::Result;
use crate::gguf::Metadata;
use crate::model::{ModelDesc, Norm, QkNorm, RopePairing};

pub(super) const NAME: &str = "qwen3";
pub(super) const MOE: &str = "qwen3moe";

pub(super) fn describe(metadata: &Metadata) -> Result<ModelDesc> {
    describe_as(metadata, NAME)
}

pub(super) fn describe_moe(metadata: &Metadata) -> Result<ModelDesc> {
    let desc = describe_as(metadata, MOE)?;
    desc.require_experts()?;
    Ok(desc)
}

fn describe_as(metadata: &Metadata, name: &'static str) -> Result<ModelDesc> {
    let mut desc = ModelDesc::from_metadata(metadata, name, Norm::Rms)?;
    desc.rope.pairing = RopePairing::Halves;
    desc.qk_norm = Some(QkNorm::Head);
    Ok(desc)
}
