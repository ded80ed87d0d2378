//! One loaded model.

use crate::{Error, Result};
use std::path::Path;
use std::sync::Arc;

/// What [`Engine::load`] may be told.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// `cuda`, `cuda:N`, `cpu` or `auto`.
    pub device: String,
    /// Size of the context in tokens.
    pub n_ctx: Option<usize>,
    /// Threads of the CPU backend.
    pub n_threads: Option<usize>,
    /// Most rows of one batch.
    pub n_batch: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { device: "cuda".into(), n_ctx: None, n_threads: None, n_batch: 512 }
    }
}

/// A loaded model.
#[derive(Debug)]
pub struct Engine {
    n_ctx: usize,
}

impl Engine {
    /// Loads the model of a file.
    ///
    /// # Errors
    /// `Io` when the file cannot be read, `NoBackend` for a device other than the CPU.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Arc<Engine>> {
        std::fs::read(path).map_err(|source| Error::Io { operation: "open".into(), source }.in_file(path))?;
        if options.device != "cpu" && options.device != "auto" {
            return Err(Error::NoBackend { device: options.device.clone(), backend: "cuda", known: "cpu" });
        }
        Ok(Arc::new(Engine { n_ctx: options.n_ctx.unwrap_or(256) }))
    }
    /// Where the weights are.
    pub fn device(&self) -> &str {
        "cpu"
    }
    /// `general.architecture`.
    pub fn architecture(&self) -> &str {
        "llama"
    }
    /// `general.name`.
    pub fn name(&self) -> &str {
        "stub"
    }
    /// Size of the context in tokens.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }
    /// Size of the context in training.
    pub fn n_ctx_train(&self) -> usize {
        256
    }
    /// Number of tokens.
    pub fn n_vocab(&self) -> usize {
        256
    }
    /// Width of the residual stream.
    pub fn n_embd(&self) -> usize {
        64
    }
    /// Number of layers.
    pub fn n_layer(&self) -> usize {
        2
    }
    /// Bytes of weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        1 << 20
    }
    /// Bytes of the longest token.
    pub fn max_token_bytes(&self) -> usize {
        16
    }
}
