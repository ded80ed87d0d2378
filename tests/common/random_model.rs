//! Models of any shape with random weights, for comparing backends.

#![allow(dead_code, reason = "each test binary uses what it needs")]

use std::collections::HashMap;

use kigo::gguf::{Array, StringArray, Value};
use kigo::model::{Activation, Experts, LayerDesc, ModelDesc, Norm, QkNorm, RopeKind, RopePairing, RopeScaling};
use kigo::quant::QuantType;

use crate::random_blocks::{Random, blocks, is_moderate, tensor};
use crate::tiny::{Draft, Tensor};

/// The sizes of a model.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub n_layer: usize,
    pub n_embd: usize,
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    /// Elements of a head that turn.
    pub n_rot: usize,
    pub n_ff: usize,
    pub n_vocab: usize,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether q, k, v and the output of the attention have biases.
    pub biases: bool,
    /// Whether the norms have biases, as LayerNorm allows.
    pub norm_biases: bool,
}

/// What a model has that `llama` has not, in any combination: the file says it by its tensors, and [`Features::describe`]
/// says the rest.
#[derive(Debug, Clone)]
pub struct Features {
    pub norm: Norm,
    pub pre_norm: bool,
    pub post_norm: bool,
    pub qk_norm: Option<QkNorm>,
    pub sinks: bool,
    pub activation: Activation,
    pub experts: Option<Experts>,
    /// The type of the router, if its turn does not decide.
    pub router: Option<QuantType>,
    /// Whether the feed-forward layer, its experts and their router have biases.
    pub ffn_biases: bool,
    /// Whether q, k and v are one tensor, and so are gate and up where there are no experts.
    pub fused: bool,
    /// Of the layers in turn.
    pub layers: Vec<LayerDesc>,
    pub pairing: RopePairing,
    pub rope_kinds: Vec<RopeKind>,
    pub n_ctx_orig: usize,
    /// Whether the file has divisors of the angles.
    pub rope_freqs: bool,
    /// How many positions are learned.
    pub learned_positions: Option<usize>,
    /// 1 / sqrt(head_dim) if `None`.
    pub attn_scale: Option<f32>,
    pub attn_softcap: Option<f32>,
    pub embd_scale: f32,
    pub residual_scale: f32,
    pub logit_scale: f32,
    pub logit_softcap: Option<f32>,
}

impl Default for Features {
    fn default() -> Features {
        Features {
            norm: Norm::Rms,
            pre_norm: true,
            post_norm: false,
            qk_norm: None,
            sinks: false,
            activation: Activation::Silu,
            experts: None,
            router: None,
            ffn_biases: false,
            fused: false,
            layers: vec![LayerDesc { window: None, rope: Some(0) }],
            pairing: RopePairing::Adjacent,
            rope_kinds: vec![RopeKind { freq_base: 10_000.0, scaling: RopeScaling::Linear(1.0), attn_factor: 1.0 }],
            n_ctx_orig: 4096,
            rope_freqs: false,
            learned_positions: None,
            attn_scale: None,
            attn_softcap: None,
            embd_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_softcap: None,
        }
    }
}

impl Features {
    /// A combination that no architecture need have. The head has at least 4 elements, and a sequence at most 256 positions.
    pub fn random(random: &mut Random) -> Features {
        let kinds = [
            RopeKind { freq_base: 10_000.0, scaling: RopeScaling::Linear(4.0), attn_factor: 1.0 },
            RopeKind { freq_base: 500.0, scaling: RopeScaling::Linear(1.0), attn_factor: 1.2 },
            RopeKind {
                freq_base: 10_000.0,
                scaling: RopeScaling::Yarn { factor: 8.0, beta_fast: 32.0, beta_slow: 1.0 },
                attn_factor: 0.9,
            },
        ];
        let n_expert = random.pick(&[1, 4, 9]);
        let n_layer = random.pick(&[1, 2, 3]);
        let layer = |random: &mut Random| LayerDesc {
            window: random.pick(&[None, Some(1), Some(7), Some(32), Some(33), Some(64)]),
            rope: random.pick(&[None, Some(0), Some(1), Some(2)]),
        };
        let layers = (0..n_layer).map(|_| layer(random)).collect();
        let (pre_norm, post_norm) = random.pick(&[(true, false), (true, true), (false, true)]);
        Features {
            norm: random.pick(&[Norm::Rms, Norm::Layer]),
            pre_norm,
            post_norm,
            qk_norm: random.pick(&[None, Some(QkNorm::Head), Some(QkNorm::Row)]),
            sinks: random.pick(&[true, false]),
            activation: random.pick(&[
                Activation::Silu,
                Activation::Gelu,
                Activation::GeluUngated,
                Activation::SiluClamped,
            ]),
            experts: random.pick(&[
                None,
                Some(Experts { n_expert, n_expert_used: 1 }),
                Some(Experts { n_expert, n_expert_used: n_expert.div_ceil(2) }),
                Some(Experts { n_expert, n_expert_used: n_expert }),
            ]),
            router: None,
            ffn_biases: random.pick(&[true, false]),
            fused: random.pick(&[true, false]),
            layers,
            pairing: random.pick(&[RopePairing::Adjacent, RopePairing::Halves]),
            rope_kinds: kinds.to_vec(),
            n_ctx_orig: random.pick(&[64, 4096]),
            rope_freqs: random.pick(&[true, false]),
            learned_positions: random.pick(&[None, None, Some(256)]),
            attn_scale: random.pick(&[None, Some(0.4)]),
            attn_softcap: random.pick(&[None, Some(1.5), Some(50.0)]),
            embd_scale: random.pick(&[1.0, 12.0]),
            residual_scale: random.pick(&[1.0, 0.22]),
            logit_scale: random.pick(&[1.0, 0.125]),
            logit_softcap: random.pick(&[None, Some(2.0), Some(30.0)]),
        }
    }

    /// Gives the description of the file, which is that of a `llama`, these features.
    pub fn describe(&self, desc: &mut ModelDesc) {
        desc.norm = self.norm;
        desc.pre_norm = self.pre_norm;
        desc.post_norm = self.post_norm;
        desc.qk_norm = self.qk_norm;
        desc.sinks = self.sinks;
        desc.activation = self.activation;
        desc.experts = self.experts;
        desc.layers.iter_mut().zip(self.layers.iter().cycle()).for_each(|(layer, own)| *layer = *own);
        desc.rope.pairing = self.pairing;
        desc.rope.kinds = self.rope_kinds.clone();
        desc.rope.n_ctx_orig = self.n_ctx_orig;
        desc.learned_positions = self.learned_positions.is_some();
        desc.n_ctx_train = self.learned_positions.unwrap_or(desc.n_ctx_train);
        desc.attn_scale = self.attn_scale.unwrap_or(desc.attn_scale);
        desc.attn_softcap = self.attn_softcap;
        desc.embd_scale = self.embd_scale;
        desc.residual_scale = self.residual_scale;
        desc.logit_scale = self.logit_scale;
        desc.logit_softcap = self.logit_softcap;
    }
}

impl Shape {
    /// The width of the products: what a block of a matrix must divide.
    pub fn widths(&self) -> [usize; 3] {
        [self.n_embd, self.n_head * self.head_dim, self.n_ff]
    }

    /// Names and dimensions of the tensors, in the order of GGUF: columns first.
    fn tensors(&self, features: &Features) -> Vec<(String, Vec<usize>)> {
        let (d, q, kv) = (self.n_embd, self.n_head * self.head_dim, self.n_head_kv * self.head_dim);
        let mut all = vec![("token_embd.weight".to_string(), vec![d, self.n_vocab])];
        let mut add = |present: bool, name: String, dims: &[usize]| {
            if present {
                all.push((name, dims.to_vec()));
            }
        };
        add(true, "output_norm.weight".into(), &[d]);
        add(self.norm_biases, "output_norm.bias".into(), &[d]);
        add(!self.tied, "output.weight".into(), &[d, self.n_vocab]);
        add(features.rope_freqs, "rope_freqs.weight".into(), &[self.n_rot / 2]);
        let n_positions = features.learned_positions;
        add(n_positions.is_some(), "position_embd.weight".into(), &[d, n_positions.unwrap_or(0)]);
        for layer in 0..self.n_layer {
            let name = |role: &str| format!("blk.{layer}.{role}");
            for norm in ["attn_norm", "ffn_norm"] {
                add(features.pre_norm, name(&format!("{norm}.weight")), &[d]);
                add(features.pre_norm && self.norm_biases, name(&format!("{norm}.bias")), &[d]);
            }
            for norm in ["post_attention_norm", "post_ffw_norm"] {
                add(features.post_norm, name(&format!("{norm}.weight")), &[d]);
            }
            let fused = features.fused;
            for (present, role, dims) in [
                (fused, "attn_qkv", [d, q + 2 * kv]),
                (!fused, "attn_q", [d, q]),
                (!fused, "attn_k", [d, kv]),
                (!fused, "attn_v", [d, kv]),
                (true, "attn_output", [q, d]),
            ] {
                add(present, name(&format!("{role}.weight")), &dims);
                add(present && self.biases, name(&format!("{role}.bias")), &dims[1..]);
            }
            let (q_norm, k_norm) = match features.qk_norm {
                Some(QkNorm::Row) => (q, kv),
                Some(QkNorm::Head) | None => (self.head_dim, self.head_dim),
            };
            add(features.qk_norm.is_some(), name("attn_q_norm.weight"), &[q_norm]);
            add(features.qk_norm.is_some(), name("attn_k_norm.weight"), &[k_norm]);
            add(features.sinks, name("attn_sinks.weight"), &[self.n_head]);
            let (n_ff, gated) = (self.n_ff, features.activation.gated());
            let Some(Experts { n_expert, .. }) = features.experts else {
                // Biases of a gate have a tensor of their own.
                let fused = fused && gated && !features.ffn_biases;
                for (present, role, dims) in [
                    (gated && !fused, "ffn_gate", [d, n_ff]),
                    (true, "ffn_up", [d, if fused { 2 * n_ff } else { n_ff }]),
                    (true, "ffn_down", [n_ff, d]),
                ] {
                    add(present, name(&format!("{role}.weight")), &dims);
                    add(present && features.ffn_biases, name(&format!("{role}.bias")), &dims[1..]);
                }
                continue;
            };
            add(true, name("ffn_gate_inp.weight"), &[d, n_expert]);
            add(features.ffn_biases, name("ffn_gate_inp.bias"), &[n_expert]);
            for (present, role, dims) in [
                (gated, "ffn_gate_exps", [d, n_ff]),
                (true, "ffn_up_exps", [d, n_ff]),
                (true, "ffn_down_exps", [n_ff, d]),
            ] {
                add(present, name(&format!("{role}.weight")), &[dims[0], dims[1], n_expert]);
                add(present && features.ffn_biases, name(&format!("{role}.bias")), &[dims[1], n_expert]);
            }
        }
        all
    }
}

/// A `llama` file of this shape. Matrices are of `quant_types` in turn, or of Q8_0 where a block does not divide their
/// columns; vectors are f32. The tokenizer is a row of numbers.
pub fn draft(shape: &Shape, quant_types: &[QuantType], seed: u64) -> Draft {
    draft_with(shape, &Features::default(), quant_types, seed)
}

/// The same with the tensors that `features` ask for; [`Features::describe`] has to be applied to its description.
pub fn draft_with(shape: &Shape, features: &Features, quant_types: &[QuantType], seed: u64) -> Draft {
    let random = &mut Random(seed);
    let mut pools: HashMap<QuantType, Vec<Vec<u8>>> = HashMap::new();
    let mut n_matrices = 0;
    let tensors = shape.tensors(features).into_iter().map(|(name, dims)| {
        let n = dims.iter().product::<usize>();
        let mut quant_type = QuantType::F32;
        let data: Vec<u8> = if dims.len() == 1 || name.ends_with(".bias") {
            let around_1 = name.ends_with("norm.weight") || name.starts_with("rope_");
            let middle = if around_1 { 1.0 } else { 0.0 };
            (0..n).flat_map(|_| (middle + 0.2 * random.uniform()).to_le_bytes()).collect()
        } else {
            let of_turn = quant_types[n_matrices % quant_types.len()];
            quant_type = features.router.filter(|_| name.ends_with("ffn_gate_inp.weight")).unwrap_or(of_turn);
            if !dims[0].is_multiple_of(quant_type.block_len()) {
                quant_type = QuantType::Q8_0;
            }
            n_matrices += 1;
            let pool = pools.entry(quant_type).or_insert_with(|| blocks(quant_type, random, is_moderate));
            tensor(quant_type, n, pool, random)
        };
        Tensor { name, dims: dims.iter().map(|&n| n as u64).collect(), type_id: quant_type as u32, data }
    });
    Draft { tensors: tensors.collect(), pairs: pairs(shape) }
}

fn pairs(shape: &Shape) -> Vec<(String, Value)> {
    let size = |n: usize| Value::U32(n as u32);
    let hparam = |name: &str, value| (format!("llama.{name}"), value);
    let token = |i: usize| if i < 256 { format!("<0x{i:02X}>") } else { format!("w{i}") }.into_bytes();
    let tokens: Vec<Vec<u8>> = (0..shape.n_vocab).map(token).collect();
    let types = (0..shape.n_vocab).map(|i| if i < 256 { 6 } else { 1 }).collect();
    vec![
        ("general.architecture".into(), "llama".into()),
        ("general.name".into(), "random".into()),
        hparam("context_length", size(4096)),
        hparam("block_count", size(shape.n_layer)),
        hparam("embedding_length", size(shape.n_embd)),
        hparam("feed_forward_length", size(shape.n_ff)),
        hparam("attention.head_count", size(shape.n_head)),
        hparam("attention.head_count_kv", size(shape.n_head_kv)),
        hparam("attention.key_length", size(shape.head_dim)),
        hparam("attention.value_length", size(shape.head_dim)),
        hparam("rope.dimension_count", size(shape.n_rot)),
        hparam("attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.model".into(), "llama".into()),
        (
            "tokenizer.ggml.tokens".into(),
            Value::Array(Array::String(StringArray::try_from_iter(tokens.iter().map(Vec::as_slice)).unwrap())),
        ),
        ("tokenizer.ggml.scores".into(), Value::Array(Array::F32(vec![0.0; shape.n_vocab]))),
        ("tokenizer.ggml.add_bos_token".into(), Value::Bool(false)),
        ("tokenizer.ggml.token_type".into(), Value::Array(Array::I32(types))),
    ]
}
