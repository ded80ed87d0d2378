//! What a token costs, from the header of the file.

use std::collections::BTreeMap;
use std::path::Path;

use kigo::gguf::{Gguf, TensorInfo};
use kigo::model::{LayerDesc, ModelDesc, Role, Weights, arch};

/// Facts of a file.
pub struct Model {
    pub desc: ModelDesc,
    /// Bytes of all files of the model.
    pub file_bytes: u64,
    /// Weights of all tensors.
    pub parameters: u64,
    /// Bytes of the tensors of each type, by its name.
    pub type_bytes: BTreeMap<&'static str, u64>,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Bytes of the matrices that a token is multiplied with, the head included; not of the embedding, of which it
    /// reads one row, unless it is the head too, nor of experts that it does not use.
    pub matrix_bytes: u64,
    /// Weights in those of the layers.
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
        let (mut buffer, mut type_bytes) = (Vec::new(), BTreeMap::new());
        for tensor in gguf.tensors() {
            *type_bytes.entry(tensor.quant_type.name()).or_default() += tensor.n_bytes;
            buffer.resize(tensor.n_bytes as usize, 0);
            gguf.read_tensor(tensor, &mut buffer)?;
        }
        let mut bytes = 0;
        plan.try_map(|role, tensor| {
            if role == Role::Matrix {
                bytes += tensor.n_bytes;
            }
            Ok(())
        })?;
        let looked_up = if plan.output.is_some() { plan.token_embd.n_bytes } else { 0 };
        Ok(Model {
            file_bytes: gguf.file_bytes(),
            parameters: gguf.tensors().iter().map(|tensor| tensor.n_elements).sum(),
            type_bytes,
            tensor_bytes: gguf.tensors().iter().map(|tensor| tensor.n_bytes).sum(),
            matrix_bytes: bytes - looked_up - idle_bytes(&plan, &desc),
            layer_weights: plan.layer_weights(&desc),
            head_weights: plan.output.as_ref().unwrap_or(&plan.token_embd).n_elements,
            desc,
        })
    }

    /// Bytes of keys and values that a token at `position` reads.
    pub fn cache_bytes(&self, position: f64, device: &str) -> f64 {
        // The CPU keeps f32, GPUs f16.
        let value_bytes = if device == "cpu" { 4 } else { 2 };
        let seen =
            |layer: &LayerDesc| layer.window.map_or(position + 1.0, |window| (position + 1.0).min(window as f64));
        let positions: f64 = self.desc.layers.iter().map(seen).sum();
        (2 * self.desc.n_embd_kv() * value_bytes) as f64 * positions
    }

    /// Floating-point operations of the matrices for a prompt of `n` tokens, of which the head sees the last.
    pub fn prefill_flop(&self, n: usize) -> f64 {
        2.0 * (self.layer_weights as f64 * n as f64 + self.head_weights as f64)
    }
}

/// Bytes of the experts that a token does not use.
fn idle_bytes(plan: &Weights<TensorInfo>, desc: &ModelDesc) -> u64 {
    let Some(experts) = desc.experts else { return 0 };
    let (n, n_used) = (experts.n_expert as u64, experts.n_expert_used as u64);
    let matrices = plan.layers.iter().flat_map(|l| l.ffn_gate.iter().chain([&l.ffn_up, &l.ffn_down]));
    matrices.map(|tensor| tensor.n_bytes / n * (n - n_used)).sum()
}
