//! Hyperparameters, in GGUF's words.

use crate::gguf::Metadata;
use crate::{Error, Result};

/// Everything about a model but its weights.
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
    /// Layers (`block_count`; HF `num_hidden_layers`).
    pub n_layer: usize,
    /// Query heads (`attention.head_count`; HF `num_attention_heads`).
    pub n_head: usize,
    /// Key and value heads (`attention.head_count_kv`; HF `num_key_value_heads`); divides `n_head`.
    pub n_head_kv: usize,
    /// Width of a head (`attention.key_length`, else `n_embd / n_head`).
    pub head_dim: usize,
    /// Width of the feed-forward layer (`feed_forward_length`; HF `intermediate_size`).
    pub n_ff: usize,
    /// Size of the vocabulary: the length of `tokenizer.ggml.tokens`, else `vocab_size`.
    pub n_vocab: usize,
    /// Norm before the attention, the feed-forward layer and the head.
    pub norm: Norm,
    /// Added under the root of the norm, to the mean square (`attention.layer_norm_rms_epsilon`) or to the variance.
    pub norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Gate of the feed-forward layer.
    pub activation: Activation,
    /// Factor on q·k before the softmax.
    pub attn_scale: f32,
}

/// Rotary position embedding (Su et al. 2021): pair `i` turns by `position * freq_scale * freq_base^(-2i / n_rot)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Which elements of a head make a pair.
    pub pairing: RopePairing,
    /// Elements of a head that turn (`rope.dimension_count`); even, at most `head_dim`.
    pub n_rot: usize,
    /// `rope.freq_base`; HF `rope_theta`.
    pub freq_base: f32,
    /// 1 / `rope.scaling.factor` for linear scaling, else 1.
    pub freq_scale: f32,
}

/// Which elements of a head make a rope pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairing {
    /// Elements `2i` and `2i + 1`.
    Adjacent,
    /// Elements `i` and `i + n_rot / 2`.
    Halves,
}

/// How a row is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// `x / sqrt(mean(x^2) + eps) * weight` (RMSNorm, Zhang and Sennrich 2019).
    Rms,
    /// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` (LayerNorm, Ba et al. 2016); a file may have no biases.
    Layer,
}

/// Gate of the feed-forward layer (gated linear units, Shazeer 2020).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `silu(gate) * up` (SwiGLU).
    Silu,
    /// `gelu(gate) * up` (GEGLU), with the form of GELU that has a tanh (Hendrycks and Gimpel 2016).
    Gelu,
}

impl ModelDesc {
    /// Largest value of any one size; keeps every product of three within 64 bits.
    const MAX_SIZE: u64 = 1 << 20;
    /// Most layers of a model.
    const MAX_LAYERS: u64 = 1024;

    /// Width of k and of v of one token: `n_head_kv * head_dim`.
    pub fn n_embd_kv(&self) -> usize {
        self.n_head_kv * self.head_dim
    }

    /// Turn of every rope pair per position, in radians: `[n_rot / 2]`. `divisors` of the frequencies, where a file has them,
    /// are as many.
    pub fn rope_angles(&self, divisors: Option<&[f32]>) -> Vec<f64> {
        let rope = &self.rope;
        let angle = |i: usize| {
            let exponent = -2.0 * i as f64 / rope.n_rot as f64;
            let divisor = divisors.and_then(|divisors| divisors.get(i)).map_or(1.0, |&divisor| f64::from(divisor));
            f64::from(rope.freq_scale) * f64::from(rope.freq_base).powf(exponent) / divisor
        };
        (0..rope.n_rot / 2).map(angle).collect()
    }

    /// Width of q of one token: `n_head * head_dim`.
    pub fn n_embd_q(&self) -> usize {
        self.n_head * self.head_dim
    }

    /// Reads the keys that the llama-like architectures share; `prefix` is the architecture's name.
    ///
    /// # Errors
    /// A missing key, a wrong type, or a value that makes no sense, naming the key.
    pub fn from_metadata(metadata: &Metadata, prefix: &'static str) -> Result<ModelDesc> {
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
        Ok(ModelDesc {
            architecture: prefix,
            name: metadata.str("general.name").ok().flatten().unwrap_or_default().to_string(),
            n_ctx_train,
            n_embd,
            n_layer,
            n_head,
            n_head_kv,
            head_dim,
            n_ff: size("feed_forward_length", Self::MAX_SIZE)?,
            n_vocab: n_vocab(metadata, &key("vocab_size"))?,
            norm: Norm::Rms,
            norm_eps: in_range(metadata, &key("attention.layer_norm_rms_epsilon"), None, f32::MIN_POSITIVE, 0.1)?,
            rope: Rope {
                pairing: RopePairing::Adjacent,
                n_rot,
                freq_base: in_range(metadata, &key("rope.freq_base"), Some(10_000.0), 1.0, 1e12)?,
                freq_scale: rope_freq_scale(metadata, prefix)?,
            },
            activation: Activation::Silu,
            attn_scale: 1.0 / (head_dim as f32).sqrt(),
        })
    }
}

/// The number of tokens; of a file without any, whose tokenizer lies elsewhere, what it says of its size.
fn n_vocab(metadata: &Metadata, key: &str) -> Result<usize> {
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    match (tokens, metadata.u64(key)?) {
        (None, Some(_)) => required_size(metadata, key, ModelDesc::MAX_SIZE),
        (tokens, _) => Ok(Metadata::require("tokenizer.ggml.tokens", tokens)?.len()),
    }
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
fn in_range(metadata: &Metadata, key: &str, default: Option<f32>, low: f32, high: f32) -> Result<f32> {
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

/// The factor on positions: linear scaling only, which is meant where a file gives a factor and no type.
fn rope_freq_scale(metadata: &Metadata, prefix: &str) -> Result<f32> {
    let key = |name: &str| format!("{prefix}.rope.{name}");
    let range = |key: &str, default: f32| in_range(metadata, key, Some(default), 1e-3, 1e6);
    // Older files have the factor under the second name.
    let factor = range(&key("scaling.factor"), range(&key("scale_linear"), 1.0)?)?;
    let type_key = key("scaling.type");
    match metadata.str(&type_key)? {
        Some("none") => Ok(1.0),
        None | Some("linear") => Ok(1.0 / factor),
        Some(other) => Err(Error::bad_file(type_key, "none or linear", crate::error::quoted(other.as_bytes()))),
    }
}
