//! Models of any shape with random weights, for comparing backends.

#![allow(dead_code, reason = "each test binary uses what it needs")]

use std::collections::HashMap;

use kigo::gguf::{Array, StringArray, Value};
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

impl Shape {
    /// The width of the products: what a block of a matrix must divide.
    pub fn widths(&self) -> [usize; 3] {
        [self.n_embd, self.n_head * self.head_dim, self.n_ff]
    }

    /// Names and dimensions of the tensors, in the order of GGUF: columns first.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
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
        for layer in 0..self.n_layer {
            let name = |role: &str| format!("blk.{layer}.{role}");
            for norm in ["attn_norm", "ffn_norm"] {
                add(true, name(&format!("{norm}.weight")), &[d]);
                add(self.norm_biases, name(&format!("{norm}.bias")), &[d]);
            }
            for (role, dims) in [("attn_q", [d, q]), ("attn_k", [d, kv]), ("attn_v", [d, kv]), ("attn_output", [q, d])]
            {
                add(true, name(&format!("{role}.weight")), &dims);
                add(self.biases, name(&format!("{role}.bias")), &dims[1..]);
            }
            for (role, dims) in [("ffn_gate", [d, self.n_ff]), ("ffn_up", [d, self.n_ff]), ("ffn_down", [self.n_ff, d])]
            {
                add(true, name(&format!("{role}.weight")), &dims);
            }
        }
        all
    }
}

/// A `llama` file of this shape. Matrices are of `quant_types` in turn, or of Q8_0 where a block does not divide their
/// columns; vectors are f32. The tokenizer is a row of numbers.
pub fn draft(shape: &Shape, quant_types: &[QuantType], seed: u64) -> Draft {
    let random = &mut Random(seed);
    let mut pools: HashMap<QuantType, Vec<Vec<u8>>> = HashMap::new();
    let mut n_matrices = 0;
    let tensors = shape.tensors().into_iter().map(|(name, dims)| {
        let n = dims.iter().product::<usize>();
        let mut quant_type = QuantType::F32;
        let data: Vec<u8> = if dims.len() == 1 {
            let middle = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
            (0..n).flat_map(|_| (middle + 0.2 * random.uniform()).to_le_bytes()).collect()
        } else {
            quant_type = quant_types[n_matrices % quant_types.len()];
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
