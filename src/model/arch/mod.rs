//! Architectures: one row of a table and one small file each. A file reads the model's metadata into a
//! [`ModelDesc`]; the decoder loop and the backends never ask which architecture they run.

mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_oss;
mod granite;
mod keys;
mod llama;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;

use super::ModelDesc;
use crate::gguf::Metadata;
use crate::{Error, Result};

/// One architecture.
pub struct Architecture {
    /// What `general.architecture` says.
    pub name: &'static str,
    /// Reads the hyperparameters.
    describe: fn(&Metadata) -> Result<ModelDesc>,
    /// The keys of [`keys`] that it reads.
    understands: &'static [&'static str],
}

/// Every architecture that kigo runs.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture { name: llama::NAME, describe: llama::describe, understands: &[WINDOW] },
    Architecture { name: qwen2::NAME, describe: qwen2::describe, understands: &[] },
    Architecture { name: qwen3::NAME, describe: qwen3::describe, understands: &[] },
    Architecture { name: qwen3::MOE, describe: qwen3::describe_moe, understands: &[] },
    Architecture { name: phi3::NAME, describe: phi3::describe, understands: &[WINDOW] },
    Architecture {
        name: gemma2::NAME,
        describe: gemma2::describe,
        understands: &[WINDOW, WINDOW_ROPE, "attn_logit_softcapping", LOGIT_SOFTCAP],
    },
    Architecture { name: gemma3::NAME, describe: gemma3::describe, understands: &[WINDOW, WINDOW_ROPE, LOGIT_SOFTCAP] },
    Architecture { name: gpt2::NAME, describe: gpt2::describe, understands: &[] },
    Architecture { name: gpt_oss::NAME, describe: gpt_oss::describe, understands: &[WINDOW] },
    Architecture { name: smollm3::NAME, describe: smollm3::describe, understands: &[] },
    Architecture { name: olmo2::NAME, describe: olmo2::describe, understands: &[WINDOW, WINDOW_ROPE] },
    Architecture {
        name: granite::NAME,
        describe: granite::describe,
        understands: &["attention.scale", "embedding_scale", "logit_scale", "residual_scale"],
    },
];

const WINDOW: &str = "attention.sliding_window";
const WINDOW_ROPE: &str = "rope.freq_base_swa";
const LOGIT_SOFTCAP: &str = "final_logit_softcapping";

/// Describes the model of a file.
///
/// # Errors
/// An architecture that is not in the table, hyperparameters that make no sense, or a key that it does not understand.
pub fn describe(metadata: &Metadata) -> Result<ModelDesc> {
    let name = Metadata::require("general.architecture", metadata.str("general.architecture")?)?;
    match ARCHITECTURES.iter().find(|a| a.name == name) {
        Some(architecture) => {
            keys::check(metadata, architecture.name, architecture.understands)?;
            (architecture.describe)(metadata)
        }
        None => Err(Error::UnsupportedArchitecture {
            found: name.bytes().take(64).flat_map(std::ascii::escape_default).map(char::from).collect(),
            known: ARCHITECTURES.iter().map(|a| a.name).collect::<Vec<_>>().join(", "),
        }),
    }
}
