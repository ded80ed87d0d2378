//! Every tensor type through the real products: the same logits as the same weights in f32.

use kigo::quant::QuantType;

use super::*;
use random_blocks::Random;
use tiny::Tensor;

const N_EMBD: u64 = 256;
const N_FF: u64 = 512;
const N_VOCAB: u64 = 280;

/// Whether the weights of a block are neither tiny nor huge.
fn is_good(weights: &[f32]) -> bool {
    let largest = weights.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
    (1e-3..1.0).contains(&largest)
}

/// A model of one layer, with the tokenizer of the tiny one and matrices of `quant_type`, 256 wide and so a multiple
/// of every block; and the same model in f32.
fn pair(quant_type: QuantType) -> (Draft, Draft) {
    let random = &mut Random(quant_type as u64);
    let blocks = random_blocks::blocks(quant_type, random, is_good);
    let mut quantised = [
        ("llama.embedding_length", N_EMBD),
        ("llama.feed_forward_length", N_FF),
        ("llama.block_count", 1),
        ("llama.rope.dimension_count", N_EMBD / 4),
    ]
    .into_iter()
    .fold(Draft::tiny(), |draft, (key, value)| draft.with(key, Value::U64(value)));
    quantised.tensors.clear();
    let mut plain = quantised.clone();
    for (name, dims) in [
        ("token_embd.weight", &[N_EMBD, N_VOCAB][..]),
        ("blk.0.attn_norm.weight", &[N_EMBD]),
        ("blk.0.attn_q.weight", &[N_EMBD, N_EMBD]),
        ("blk.0.attn_k.weight", &[N_EMBD, N_EMBD / 2]),
        ("blk.0.attn_v.weight", &[N_EMBD, N_EMBD / 2]),
        ("blk.0.attn_output.weight", &[N_EMBD, N_EMBD]),
        ("blk.0.ffn_norm.weight", &[N_EMBD]),
        ("blk.0.ffn_gate.weight", &[N_EMBD, N_FF]),
        ("blk.0.ffn_up.weight", &[N_EMBD, N_FF]),
        ("blk.0.ffn_down.weight", &[N_FF, N_EMBD]),
        ("output_norm.weight", &[N_EMBD]),
        ("output.weight", &[N_EMBD, N_VOCAB]),
    ] {
        let n = dims.iter().product::<u64>() as usize;
        let data = random_blocks::tensor(quant_type, n, &blocks, random);
        let mut weights = vec![0.0; n];
        quant_type.dequantize(&data, &mut weights);
        quantised.tensors.push(Tensor { name: name.into(), dims: dims.to_vec(), type_id: quant_type as u32, data });
        plain = plain.with_tensor(name, dims, &weights);
    }
    (quantised, plain)
}

#[test]
fn every_type_computes_as_its_weights_in_f32() {
    for &quant_type in QuantType::ALL {
        let (quantised, plain) = pair(quant_type);
        let (quantised, plain) = (load(&quantised), load(&plain));
        assert_eq!(quantised.weight_bytes() * 4 * quant_type.block_len() as u64, {
            plain.weight_bytes() * quant_type.block_bytes() as u64
        });
        let mut worst: f64 = 0.0;
        for chunk in [1, 3, 40] {
            let expected = logits(&plain, &TOKENS, chunk);
            assert!(expected.iter().any(|&logit| logit.abs() > 0.01), "{expected:?}");
            worst = worst.max(relative_error(&logits(&quantised, &TOKENS, chunk), &expected));
        }
        println!("{}: relative error {worst:.1e}", quant_type.name());
        assert!(worst <= 1e-5, "{}: relative error {worst:e}", quant_type.name());
    }
}
