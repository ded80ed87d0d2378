//! Hyperparameters, in GGUF's words.

use super::rope::{Rope, RopeKind, RopePairing};
use crate::error::try_vec;
use crate::gguf::{Array, Metadata, Value};
use crate::{Error, Result};

/// Everything about a model but its weights. What an architecture does not have keeps the value of [`ModelDesc::from_metadata`].
#[derive(Debug, Clone, PartialEq)]
pub struct ModelDesc {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// `general.name`, or empty.
    pub name: String,
    /// Context length in training (`context_length`; HF `max_position_embeddings`), in tokens.
    pub n_ctx_train: usize,
    /// Width of the residual stream (`embedding_length`; HF `hidden_size`).
    pub n_embd: usize,
    /// Query heads (`attention.head_count`; HF `num_attention_heads`).
    pub n_head: usize,
    /// Key and value heads (`attention.head_count_kv`; HF `num_key_value_heads`); divides `n_head`.
    pub n_head_kv: usize,
    /// Width of a head (`attention.key_length`, else `n_embd / n_head`).
    pub head_dim: usize,
    /// Width of the feed-forward layer (`feed_forward_length`; HF `intermediate_size`), or of one expert where there are some.
    pub n_ff: usize,
    /// Size of the vocabulary: the length of `tokenizer.ggml.tokens`.
    pub n_vocab: usize,
    /// What differs from layer to layer, one each (`block_count`; HF `num_hidden_layers`).
    pub layers: Vec<LayerDesc>,
    /// How rows are normalised.
    pub norm: Norm,
    /// Added under the root of the norm, to the mean square (`attention.layer_norm_rms_epsilon`) or to the variance
    /// (`attention.layer_norm_epsilon`).
    pub norm_eps: f32,
    /// Whether the input of the attention and of the feed-forward layer is normalised.
    pub pre_norm: bool,
    /// Whether their output is, before it is added to the residual stream.
    pub post_norm: bool,
    /// The tensor that is the norm before the feed-forward layer: `ffn_norm`, or another name for it.
    pub ffn_norm: &'static str,
    /// Norm of q and k before rope.
    pub qk_norm: Option<QkNorm>,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Whether rows of `position_embd`, one for each of `n_ctx_train` positions, are added to those of `token_embd`.
    pub learned_positions: bool,
    /// What happens between the two halves of the feed-forward layer.
    pub activation: Activation,
    /// The experts that share the place of a feed-forward layer.
    pub experts: Option<Experts>,
    /// Whether every head has a score of its own in the softmax that stands for no key (Xiao et al. 2023): `attn_sinks`.
    pub sinks: bool,
    /// Factor on q·k before the softmax.
    pub attn_scale: f32,
    /// c of `c * tanh(score / c)` for the scores of the attention, after `attn_scale` (Gemma 2).
    pub attn_softcap: Option<f32>,
    /// Factor on the rows of `token_embd`.
    pub embd_scale: f32,
    /// Factor on what the attention and the feed-forward layer add to the residual stream.
    pub residual_scale: f32,
    /// Factor on the logits.
    pub logit_scale: f32,
    /// c of `c * tanh(logit / c)`.
    pub logit_softcap: Option<f32>,
}

/// What one layer has of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerDesc {
    /// A row sees so many of the latest positions, its own included; `None`: all.
    pub window: Option<usize>,
    /// Which of [`Rope::kinds`] turns q and k; `None`: they do not turn.
    pub rope: Option<usize>,
}

/// How a row is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// `x / sqrt(mean(x^2) + eps) * weight` (RMSNorm, Zhang and Sennrich 2019).
    Rms,
    /// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` (LayerNorm, Ba et al. 2016); a file may have no biases.
    Layer,
}

/// RMSNorm of q and k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Of each head, with weights `[head_dim]` for all.
    Head,
    /// Of all heads of a row together, with weights `[n_head * head_dim]` and `[n_head_kv * head_dim]`.
    Row,
}

/// What becomes of gate and up (gated linear units, Shazeer 2020), or of up where there is no gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `silu(gate) * up` (SwiGLU).
    Silu,
    /// `gelu(gate) * up` (GEGLU), with the form of GELU that has a tanh (Hendrycks and Gimpel 2016).
    Gelu,
    /// `gelu(up)`, in the same form; there is no gate.
    GeluUngated,
    /// `g * sigmoid(1.702 g) * (u + 1)` of `g = min(gate, 7)` and `u = up` within -7..=7 (gpt-oss).
    SiluClamped,
}

impl Activation {
    /// Whether the layer has a gate.
    pub fn gated(self) -> bool {
        self != Activation::GeluUngated
    }
}

/// A mixture of experts (Shazeer et al. 2017). A router, `ffn_gate_inp`, gives each a logit; the `n_expert_used` largest are
/// used, of equal ones the first, and their outputs are added with the softmax of their logits as weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// `expert_count`.
    pub n_expert: usize,
    /// `expert_used_count`: experts that a row uses.
    pub n_expert_used: usize,
}

impl Experts {
    /// Most experts of a layer.
    const MAX: u64 = 1024;
}

impl ModelDesc {
    /// Largest value of any one size; keeps every product of three within 64 bits.
    const MAX_SIZE: u64 = 1 << 20;
    /// Most layers of a model.
    const MAX_LAYERS: u64 = 1024;

    /// Layers.
    pub fn n_layer(&self) -> usize {
        self.layers.len()
    }

    /// Width of k and of v of one token: `n_head_kv * head_dim`.
    pub fn n_embd_kv(&self) -> usize {
        self.n_head_kv * self.head_dim
    }

    /// Width of q of one token: `n_head * head_dim`.
    pub fn n_embd_q(&self) -> usize {
        self.n_head * self.head_dim
    }

    /// The most positions that a sequence can have, where the model has a bound.
    pub fn max_positions(&self) -> Option<usize> {
        self.learned_positions.then_some(self.n_ctx_train)
    }

    /// Reads the keys that architectures share, and describes a model like `llama`; `prefix` is the architecture's name.
    ///
    /// # Errors
    /// A missing key, a wrong type, or a value that makes no sense, naming the key.
    pub fn from_metadata(metadata: &Metadata, prefix: &'static str, norm: Norm) -> Result<ModelDesc> {
        let key = |name: &str| format!("{prefix}.{name}");
        let size = |name: &str, max: u64| required_size(metadata, &key(name), max);
        let n_layer = size("block_count", Self::MAX_LAYERS)?;
        let n_embd = size("embedding_length", Self::MAX_SIZE)?;
        let n_head = size("attention.head_count", Self::MAX_SIZE)?;
        let n_head_kv = match metadata.u64(&key("attention.head_count_kv"))? {
            Some(_) => size("attention.head_count_kv", Self::MAX_SIZE)?,
            None => n_head,
        };
        if n_head_kv > n_head || !n_head.is_multiple_of(n_head_kv) {
            let expected = format!("a divisor of {} = {n_head}", key("attention.head_count"));
            return Err(Error::bad_file(key("attention.head_count_kv"), expected, n_head_kv));
        }
        let head_dim = match metadata.u64(&key("attention.key_length"))? {
            Some(_) => size("attention.key_length", Self::MAX_SIZE)?,
            None if n_embd.is_multiple_of(n_head) => n_embd / n_head,
            None => {
                let expected = format!("a divisor of {} = {n_embd}", key("embedding_length"));
                return Err(Error::bad_file(key("attention.head_count"), expected, n_head));
            }
        };
        if let Some(value_length) = metadata.u64(&key("attention.value_length"))?
            && value_length != head_dim as u64
        {
            let expected = format!("the key length {head_dim}");
            return Err(Error::bad_file(key("attention.value_length"), expected, value_length));
        }
        let n_rot = match metadata.u64(&key("rope.dimension_count"))? {
            Some(n) if n >= 2 && n.is_multiple_of(2) && n <= head_dim as u64 => n as usize,
            None if head_dim.is_multiple_of(2) => head_dim,
            n => {
                let expected = format!("an even number from 2 to the head size {head_dim}");
                let found = n.map_or("none".to_string(), |n| n.to_string());
                return Err(Error::bad_file(key("rope.dimension_count"), expected, found));
            }
        };
        let n_ctx_train = match metadata.u64(&key("context_length"))? {
            Some(0) => return Err(Error::bad_file(key("context_length"), "at least 1", 0)),
            Some(n) => usize::try_from(n).unwrap_or(usize::MAX),
            None => return Err(Error::bad_file(key("context_length"), "a whole number", "no such key")),
        };
        let rope = Rope {
            pairing: RopePairing::Adjacent,
            n_rot,
            n_ctx_orig: super::rope::n_ctx_orig(metadata, prefix, n_ctx_train)?,
            kinds: vec![RopeKind::from_metadata(metadata, prefix)?],
        };
        let experts = experts(metadata, prefix)?;
        let n_ff = match metadata.u64(&key("expert_feed_forward_length"))?.filter(|_| experts.is_some()) {
            Some(_) => size("expert_feed_forward_length", Self::MAX_SIZE)?,
            None => size("feed_forward_length", Self::MAX_SIZE)?,
        };
        let mut layers = try_vec(n_layer, "the list of layers")?;
        layers.resize(n_layer, LayerDesc { window: None, rope: Some(0) });
        let epsilon = match norm {
            Norm::Rms => key("attention.layer_norm_rms_epsilon"),
            Norm::Layer => key("attention.layer_norm_epsilon"),
        };
        Ok(ModelDesc {
            architecture: prefix,
            name: metadata.str("general.name").ok().flatten().unwrap_or_default().to_string(),
            n_ctx_train,
            n_embd,
            n_head,
            n_head_kv,
            head_dim,
            n_ff,
            n_vocab: Metadata::require("tokenizer.ggml.tokens", metadata.strings("tokenizer.ggml.tokens")?)?.len(),
            layers,
            norm,
            norm_eps: in_range(metadata, &epsilon, None, f32::MIN_POSITIVE, 0.1)?,
            pre_norm: true,
            post_norm: false,
            ffn_norm: "ffn_norm",
            qk_norm: None,
            rope,
            learned_positions: false,
            activation: Activation::Silu,
            experts,
            sinks: false,
            attn_scale: 1.0 / (head_dim as f32).sqrt(),
            attn_softcap: None,
            embd_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_softcap: None,
        })
    }

    /// Gives layers the window of `attention.sliding_window`, where the file has one or there is a `default`: all but each
    /// `period`-th. `attention.sliding_window_pattern` says otherwise, as a period or for every layer.
    ///
    /// # Errors
    /// A value of a wrong type, or a pattern that makes no sense, naming the key.
    pub(super) fn set_windows(&mut self, metadata: &Metadata, default: Option<usize>, period: u64) -> Result<()> {
        let key = format!("{}.attention.sliding_window", self.architecture);
        let window = match metadata.u64(&key)? {
            // No window is closed, so that 0 can only mean that there is none.
            Some(0) => None,
            Some(n) => Some(usize::try_from(n).unwrap_or(usize::MAX)),
            None => default,
        };
        let key = format!("{key}_pattern");
        let n_layer = self.n_layer();
        let expected = format!("a number from 1 on, or {n_layer} bools");
        if let Some(Value::Array(array)) = metadata.get(&key) {
            let found = format!("{} of {}", array.len(), array.type_name());
            let Array::Bool(windowed) = array else { return Err(Error::bad_file(key, expected, found)) };
            if windowed.len() != n_layer {
                return Err(Error::bad_file(key, expected, found));
            }
            self.layers
                .iter_mut()
                .zip(windowed)
                .for_each(|(layer, &windowed)| layer.window = window.filter(|_| windowed));
            return Ok(());
        }
        let period = metadata.u64(&key)?.unwrap_or(period);
        if period == 0 {
            return Err(Error::bad_file(key, expected, period));
        }
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.window = window.filter(|_| !(i as u64 + 1).is_multiple_of(period));
        }
        Ok(())
    }

    /// Gives layers with a window, where there are some, a rope of their own kind: of `rope.freq_base_swa`, or else of
    /// `freq_base`, unscaled.
    ///
    /// # Errors
    /// A value of a wrong type or outside of its range, naming the key.
    pub(super) fn set_window_rope(&mut self, metadata: &Metadata, freq_base: f32) -> Result<()> {
        if self.layers.iter().all(|layer| layer.window.is_none()) {
            return Ok(());
        }
        let key = format!("{}.rope.freq_base_swa", self.architecture);
        let freq_base = in_range(metadata, &key, Some(freq_base), 1.0, 1e12)?;
        self.rope.kinds.push(RopeKind::unscaled(freq_base));
        self.layers.iter_mut().filter(|layer| layer.window.is_some()).for_each(|layer| layer.rope = Some(1));
        Ok(())
    }

    /// For architectures that are nothing without experts.
    ///
    /// # Errors
    /// When the file has none, naming the key.
    pub(super) fn require_experts(&self) -> Result<()> {
        match self.experts {
            Some(_) => Ok(()),
            None => Err(Error::bad_file(format!("{}.expert_count", self.architecture), "at least 1", "none")),
        }
    }

    /// Reads the factor `name`, `default` where the file has none.
    ///
    /// # Errors
    /// A value of a wrong type, or one that is not a positive number, naming the key.
    pub(super) fn factor(&self, metadata: &Metadata, name: &str, default: f32) -> Result<f32> {
        in_range(metadata, &format!("{}.{name}", self.architecture), Some(default), 1e-6, 1e6)
    }

    /// Reads the soft cap `name`; a file may say that there is none by 0.
    ///
    /// # Errors
    /// As [`Self::factor`].
    pub(super) fn softcap(&self, metadata: &Metadata, name: &str, default: f32) -> Result<Option<f32>> {
        match metadata.f32(&format!("{}.{name}", self.architecture))? {
            Some(0.0) => Ok(None),
            None if default == 0.0 => Ok(None),
            _ => self.factor(metadata, name, default).map(Some),
        }
    }
}

/// `expert_count` and `expert_used_count`; `None` for a dense model.
fn experts(metadata: &Metadata, prefix: &str) -> Result<Option<Experts>> {
    let key = |name: &str| format!("{prefix}.{name}");
    match metadata.u64(&key("expert_count"))? {
        None | Some(0) => return Ok(None),
        Some(_) => (),
    }
    let n_expert = required_size(metadata, &key("expert_count"), Experts::MAX)?;
    let n_expert_used = required_size(metadata, &key("expert_used_count"), n_expert as u64)?;
    Ok(Some(Experts { n_expert, n_expert_used }))
}

/// A whole number from 1 to `max` that must be there.
fn required_size(metadata: &Metadata, key: &str, max: u64) -> Result<usize> {
    let value = Metadata::require(key, metadata.u64(key)?)?;
    if value < 1 || value > max {
        return Err(Error::bad_file(key, format!("a whole number from 1 to {max}"), value));
    }
    Ok(value as usize)
}

/// A number within `low..=high`; NaN is not.
pub(super) fn in_range(metadata: &Metadata, key: &str, default: Option<f32>, low: f32, high: f32) -> Result<f32> {
    let value = match (metadata.f32(key)?, default) {
        (Some(value), _) => value,
        (None, Some(default)) => default,
        (None, None) => Metadata::require(key, None)?,
    };
    if !(value >= low && value <= high) {
        return Err(Error::bad_file(key, format!("a number from {low:e} to {high:e}"), value));
    }
    Ok(value)
}
