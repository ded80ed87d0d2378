//! Architectures: one row of a table and one small file each. A file reads the model's metadata into a
//! [`ModelDesc`]; the decoder loop and the backends never ask which architecture they run.

mod llama;

use super::ModelDesc;
use crate::gguf::Metadata;
use crate::{Error, Result};

/// One architecture.
pub struct Architecture {
    /// What `general.architecture` says.
    pub name: &'static str,
    /// Reads the hyperparameters.
    describe: fn(&Metadata) -> Result<ModelDesc>,
}

/// Every architecture that kigo runs.
pub const ARCHITECTURES: &[Architecture] = &[Architecture { name: llama::NAME, describe: llama::describe }];

/// Describes the model of a file.
///
/// # Errors
/// An architecture that is not in the table, or hyperparameters that make no sense.
pub fn describe(metadata: &Metadata) -> Result<ModelDesc> {
    let name = Metadata::require("general.architecture", metadata.str("general.architecture")?)?;
    match ARCHITECTURES.iter().find(|a| a.name == name) {
        Some(architecture) => (architecture.describe)(metadata),
        None => Err(Error::UnsupportedArchitecture {
            found: name.bytes().take(64).flat_map(std::ascii::escape_default).map(char::from).collect(),
            known: ARCHITECTURES.iter().map(|a| a.name).collect::<Vec<_>>().join(", "),
        }),
    }
}
