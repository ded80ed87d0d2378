//! Which tensor plays which role: the names and shapes a model must have, checked once for all backends.

use super::{ModelDesc, Norm};
use crate::gguf::{Gguf, MAX_DIMS, TensorInfo};
use crate::{Error, Result};

/// The weights of a model, each a `T`: a [`TensorInfo`] in a plan, a buffer in a backend.
#[derive(Debug)]
pub struct Weights<T> {
    /// `[n_vocab, n_embd]`
    pub token_embd: T,
    /// `[n_embd]`
    pub output_norm: T,
    /// `[n_embd]`; this and the biases of the other norms only with [`Norm::Layer`].
    pub output_norm_bias: Option<T>,
    /// `[n_vocab, n_embd]`; `None` when the head is tied to `token_embd`.
    pub output: Option<T>,
    /// `[n_rot / 2]`: divisors of the rope frequencies, where a file has them.
    pub rope_freqs: Option<T>,
    /// One per layer.
    pub layers: Vec<Layer<T>>,
}

/// The weights of one layer.
#[derive(Debug)]
pub struct Layer<T> {
    /// `[n_embd]`
    pub attn_norm: T,
    /// `[n_embd]`
    pub attn_norm_bias: Option<T>,
    /// `[n_head * head_dim, n_embd]`
    pub attn_q: T,
    /// `[n_head_kv * head_dim, n_embd]`
    pub attn_k: T,
    /// `[n_head_kv * head_dim, n_embd]`
    pub attn_v: T,
    /// `[n_head * head_dim]`
    pub attn_q_bias: Option<T>,
    /// `[n_head_kv * head_dim]`
    pub attn_k_bias: Option<T>,
    /// `[n_head_kv * head_dim]`
    pub attn_v_bias: Option<T>,
    /// `[n_embd, n_head * head_dim]`
    pub attn_output: T,
    /// `[n_embd]`
    pub attn_output_bias: Option<T>,
    /// `[n_embd]`
    pub ffn_norm: T,
    /// `[n_embd]`
    pub ffn_norm_bias: Option<T>,
    /// `[n_ff, n_embd]`
    pub ffn_gate: T,
    /// `[n_ff, n_embd]`
    pub ffn_up: T,
    /// `[n_embd, n_ff]`
    pub ffn_down: T,
}

/// What a backend does with a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Multiplied with vectors, or looked up by row: stays in its quantised form. `[rows, cols]`.
    Matrix,
    /// Used element by element: norms, biases, factors. `[cols]`.
    Vector,
}

impl<T> Weights<T> {
    /// The same weights, each turned into a `U`.
    ///
    /// # Errors
    /// The first that `f` returns.
    pub fn try_map<U>(&self, mut f: impl FnMut(Role, &T) -> Result<U>) -> Result<Weights<U>> {
        let (m, v) = (Role::Matrix, Role::Vector);
        let mut layers = crate::error::try_vec(self.layers.len(), "the list of layers")?;
        let token_embd = f(m, &self.token_embd)?;
        let output_norm = f(v, &self.output_norm)?;
        let output_norm_bias = self.output_norm_bias.as_ref().map(|t| f(v, t)).transpose()?;
        let output = self.output.as_ref().map(|t| f(m, t)).transpose()?;
        let rope_freqs = self.rope_freqs.as_ref().map(|t| f(v, t)).transpose()?;
        for layer in &self.layers {
            layers.push(Layer {
                attn_norm: f(v, &layer.attn_norm)?,
                attn_norm_bias: layer.attn_norm_bias.as_ref().map(|t| f(v, t)).transpose()?,
                attn_q: f(m, &layer.attn_q)?,
                attn_k: f(m, &layer.attn_k)?,
                attn_v: f(m, &layer.attn_v)?,
                attn_q_bias: layer.attn_q_bias.as_ref().map(|t| f(v, t)).transpose()?,
                attn_k_bias: layer.attn_k_bias.as_ref().map(|t| f(v, t)).transpose()?,
                attn_v_bias: layer.attn_v_bias.as_ref().map(|t| f(v, t)).transpose()?,
                attn_output: f(m, &layer.attn_output)?,
                attn_output_bias: layer.attn_output_bias.as_ref().map(|t| f(v, t)).transpose()?,
                ffn_norm: f(v, &layer.ffn_norm)?,
                ffn_norm_bias: layer.ffn_norm_bias.as_ref().map(|t| f(v, t)).transpose()?,
                ffn_gate: f(m, &layer.ffn_gate)?,
                ffn_up: f(m, &layer.ffn_up)?,
                ffn_down: f(m, &layer.ffn_down)?,
            });
        }
        Ok(Weights { token_embd, output_norm, output_norm_bias, output, rope_freqs, layers })
    }
}

impl Weights<TensorInfo> {
    /// Finds every tensor that `desc` asks for and checks its shape.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape, or that no role uses, by name.
    pub fn plan(gguf: &Gguf, desc: &ModelDesc) -> Result<Weights<TensorInfo>> {
        let mut used = 0;
        let mut find = |name: String, shape: &[usize]| -> Result<Option<TensorInfo>> {
            let Some(tensor) = gguf.tensor(&name) else { return Ok(None) };
            used += 1;
            let expected: Vec<u64> = shape.iter().rev().map(|&n| n as u64).collect();
            // Dimensions beyond those expected may be there if they are 1.
            if !tensor.dims.iter().eq(expected.iter().chain(&[1; MAX_DIMS]).take(MAX_DIMS)) {
                return Err(Error::bad_file(
                    format!("tensor {name}"),
                    format!("dimensions {expected:?}"),
                    format!("{:?} of type {}", tensor.dims(), tensor.quant_type.name()),
                ));
            }
            Ok(Some(tensor.clone()))
        };
        let (n_embd, n_q, n_kv, n_ff) = (desc.n_embd, desc.n_embd_q(), desc.n_embd_kv(), desc.n_ff);
        let head = [desc.n_vocab, n_embd];
        let has_norm_bias = desc.norm == Norm::Layer;
        let token_embd = require(&mut find, "token_embd.weight".into(), &head)?;
        let output_norm = require(&mut find, "output_norm.weight".into(), &[n_embd])?;
        let output_norm_bias = if has_norm_bias { find("output_norm.bias".into(), &[n_embd])? } else { None };
        let output = find("output.weight".into(), &head)?;
        let rope_freqs = find("rope_freqs.weight".into(), &[desc.rope.n_rot / 2])?;
        let mut layers = crate::error::try_vec(desc.n_layer, "the list of layers")?;
        for i in 0..desc.n_layer {
            let name = |role: &str| format!("blk.{i}.{role}");
            layers.push(Layer {
                attn_norm: require(&mut find, name("attn_norm.weight"), &[n_embd])?,
                attn_norm_bias: if has_norm_bias { find(name("attn_norm.bias"), &[n_embd])? } else { None },
                attn_q: require(&mut find, name("attn_q.weight"), &[n_q, n_embd])?,
                attn_k: require(&mut find, name("attn_k.weight"), &[n_kv, n_embd])?,
                attn_v: require(&mut find, name("attn_v.weight"), &[n_kv, n_embd])?,
                attn_q_bias: find(name("attn_q.bias"), &[n_q])?,
                attn_k_bias: find(name("attn_k.bias"), &[n_kv])?,
                attn_v_bias: find(name("attn_v.bias"), &[n_kv])?,
                attn_output: require(&mut find, name("attn_output.weight"), &[n_embd, n_q])?,
                attn_output_bias: find(name("attn_output.bias"), &[n_embd])?,
                ffn_norm: require(&mut find, name("ffn_norm.weight"), &[n_embd])?,
                ffn_norm_bias: if has_norm_bias { find(name("ffn_norm.bias"), &[n_embd])? } else { None },
                ffn_gate: require(&mut find, name("ffn_gate.weight"), &[n_ff, n_embd])?,
                ffn_up: require(&mut find, name("ffn_up.weight"), &[n_ff, n_embd])?,
                ffn_down: require(&mut find, name("ffn_down.weight"), &[n_embd, n_ff])?,
            });
        }
        let plan = Weights { token_embd, output_norm, output_norm_bias, output, rope_freqs, layers };
        if used != gguf.tensors().len() {
            return Err(plan.unused(gguf));
        }
        Ok(plan)
    }

    /// Bytes of all tensors in the file. They do not overlap, so the sum is at most the length of the files.
    pub fn file_bytes(&self) -> u64 {
        let mut bytes = 0u64;
        let _ = self.try_map(|_, tensor| {
            bytes = bytes.saturating_add(tensor.n_bytes);
            Ok(())
        });
        bytes
    }

    /// The error for a file with a tensor that no role uses: running without it would give wrong text.
    fn unused(&self, gguf: &Gguf) -> Error {
        let mut known = std::collections::HashSet::new();
        let _ = self.try_map(|_, tensor| Ok(known.insert(tensor.name.clone())));
        let unknown = gguf.tensors().iter().find(|tensor| !known.contains(&tensor.name));
        Error::bad_file(
            format!("tensor {}", unknown.map_or(&[][..], |tensor| tensor.name.as_bytes()).escape_ascii()),
            "only tensors that this architecture uses",
            "one that it does not",
        )
    }
}

fn require(
    find: &mut impl FnMut(String, &[usize]) -> Result<Option<TensorInfo>>,
    name: String,
    shape: &[usize],
) -> Result<TensorInfo> {
    find(name.clone(), shape)?.ok_or_else(|| {
        let dims: Vec<usize> = shape.iter().rev().copied().collect();
        Error::bad_file(format!("tensor {name}"), format!("dimensions {dims:?}"), "no such tensor")
    })
}
