//! What a token costs, from the header of the file.

use std::path::Path;

use kigo::gguf::Gguf;
use kigo::model::{ModelDesc, Role, Weights, arch};

/// Facts of a file.
pub struct Model {
    pub desc: ModelDesc,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Bytes of the matrices that every token is multiplied with, the head included; not of the embedding, of which
    /// a token reads one row, unless it is the head too.
    pub matrix_bytes: u64,
    /// Weights in the matrices of the layers.
    pub layer_weights: u64,
    /// Weights in the head.
    pub head_weights: u64,
}

impl Model {
    /// Reads the header, and all tensors once, so that the system has them in memory.
    pub fn read(path: &Path) -> kigo::Result<Model> {
        let gguf = Gguf::open(path)?;
        let desc = arch::describe(gguf.metadata())?;
        let plan = Weights::plan(&gguf, &desc)?;
        let mut buffer = Vec::new();
        for tensor in gguf.tensors() {
            buffer.resize(tensor.n_bytes as usize, 0);
            gguf.read_tensor(tensor, &mut buffer)?;
        }
        let (mut bytes, mut weights) = (0, 0);
        plan.try_map(|role, tensor| {
            if role == Role::Matrix {
                bytes += tensor.n_bytes;
                weights += tensor.n_elements;
            }
            Ok(())
        })?;
        let (mut looked_up, mut head_weights) = ((0, 0), plan.token_embd.n_elements);
        if let Some(head) = &plan.output {
            looked_up = (plan.token_embd.n_bytes, plan.token_embd.n_elements);
            head_weights = head.n_elements;
        }
        Ok(Model {
            tensor_bytes: gguf.tensors().iter().map(|tensor| tensor.n_bytes).sum(),
            matrix_bytes: bytes - looked_up.0,
            layer_weights: weights - looked_up.1 - head_weights,
            head_weights,
            desc,
        })
    }

    /// Bytes of keys and values that a token at `position` reads.
    pub fn cache_bytes(&self, position: f64, device: &str) -> f64 {
        // The CPU keeps f32, GPUs f16.
        let value_bytes = if device == "cpu" { 4 } else { 2 };
        (2 * self.desc.n_layer * self.desc.n_embd_kv() * value_bytes) as f64 * (position + 1.0)
    }

    /// Floating-point operations of the matrices for a prompt of `n` tokens, of which the head sees the last.
    pub fn prefill_flop(&self, n: usize) -> f64 {
        2.0 * (self.layer_weights as f64 * n as f64 + self.head_weights as f64)
    }
}
