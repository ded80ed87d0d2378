//! Files that say the same in another way, and files that say something else.

use serde_json::Value as Json;

use super::*;

/// The logits of a draft for [`TOKENS`].
fn logits_of(draft: &Draft) -> Vec<f32> {
    logits(&load(draft), &TOKENS, 40)
}

fn values(draft: &Draft, name: &str) -> Vec<f32> {
    draft.tensor(name).data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn a_tied_head_is_a_copy_of_the_embedding() {
    let tied = Draft::tiny().without_tensor("output.weight");
    let embedding = values(&tied, "token_embd.weight");
    let copied = tied.clone().with_tensor("output.weight", &[64, 280], &embedding);
    let expected = logits_of(&copied);
    assert_eq!(logits_of(&tied), expected);
    assert_ne!(logits_of(&Draft::tiny()), expected, "the tiny model has a head of its own");
}

#[test]
fn biases_are_added_where_a_file_has_them() {
    let expected = logits_of(&Draft::tiny());
    for (name, len) in [("attn_q.bias", 64), ("attn_k.bias", 32), ("attn_v.bias", 32), ("attn_output.bias", 64)] {
        let with = |value: f32| {
            let mut bias = vec![0.0; len];
            bias[len / 2 + 1] = value;
            logits_of(&Draft::tiny().with_tensor(&format!("blk.1.{name}"), &[len as u64], &bias))
        };
        assert_eq!(with(0.0), expected, "{name}");
        let error = relative_error(&with(0.5), &expected);
        assert!(error > 1e-4, "{name} changes the logits by {error}");
        let misshapen = Draft::tiny().with_tensor(&format!("blk.1.{name}"), &[len as u64 + 1], &vec![0.0; len + 1]);
        refused(&misshapen, Status::BadFile, &[&format!("tensor blk.1.{name}"), &format!("[{len}]")]);
    }
}

#[test]
fn rope_factors_divide_the_frequencies() {
    let expected = logits_of(&Draft::tiny());
    let with = |factors: &[f32; 8]| logits_of(&Draft::tiny().with_tensor("rope_freqs.weight", &[8], factors));
    assert_eq!(with(&[1.0; 8]), expected);
    let halved = with(&[2.0; 8]);
    assert!(relative_error(&halved, &expected) > 1e-4);
    let linear =
        Draft::tiny().with("llama.rope.scaling.type", "linear").with("llama.rope.scaling.factor", Value::F32(2.0));
    assert_eq!(logits_of(&linear), halved, "a factor on all frequencies is linear scaling");
    let refused_with = |n: usize| {
        let draft = Draft::tiny().with_tensor("rope_freqs.weight", &[n as u64], &vec![1.0; n]);
        refused(&draft, Status::BadFile, &["tensor rope_freqs.weight", "[8]", &format!("[{n}]")]);
    };
    refused_with(16);
    refused_with(4);
}

#[test]
fn linear_rope_scaling() {
    let expected = logits_of(&Draft::tiny());
    let scaled = |factor: f32| Draft::tiny().with("llama.rope.scaling.factor", Value::F32(factor));
    let typed = |factor, name: &str| logits_of(&scaled(factor).with("llama.rope.scaling.type", name));
    assert_eq!(typed(1.0, "linear"), expected);
    assert_eq!(typed(4.0, "none"), expected);
    let quartered = typed(4.0, "linear");
    assert!(relative_error(&quartered, &expected) > 1e-4);
    assert_eq!(logits_of(&scaled(4.0)), quartered, "scaling is linear where a file names no type");
    let old = Draft::tiny().with("llama.rope.scale_linear", Value::F32(4.0));
    assert_eq!(logits_of(&old), quartered, "the name of the factor in older files");
}

#[test]
fn rope_turns_part_of_a_head() {
    let part = Draft::tiny().with("llama.rope.dimension_count", Value::U32(8));
    assert!(relative_error(&logits_of(&part), &logits_of(&Draft::tiny())) > 1e-4);
}

#[test]
fn the_order_of_the_file_does_not_matter() {
    let mut reversed = Draft::tiny();
    reversed.pairs.reverse();
    reversed.tensors.reverse();
    assert_eq!(logits_of(&reversed), logits_of(&Draft::tiny()));
    let aligned = Draft::tiny().with("general.alignment", Value::U32(4096));
    assert_eq!(logits_of(&aligned), logits_of(&Draft::tiny()));
}

/// Both tiny models against Hugging Face transformers in f32 on the dequantised weights.
#[test]
fn logits_and_greedy_tokens_equal_transformers() {
    for stem in ["tiny-llama", "tiny-llama-q8_0"] {
        let engine = load_path(&models::data(&format!("{stem}.gguf"))).unwrap();
        let json = std::fs::read(models::data(&format!("{stem}.json"))).unwrap();
        let goldens: Json = serde_json::from_slice(&json).unwrap();
        let mut worst: f64 = 0.0;
        for (name, golden) in goldens.as_object().unwrap() {
            let numbers =
                |value: &Json| -> Vec<f64> { value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
            let prompt: Vec<u32> = numbers(&golden["tokens"]).iter().map(|&x| x as u32).collect();
            assert_eq!(golden["stride"], 1);
            let positions = golden["positions"].as_array().unwrap();
            assert!(!positions.is_empty());
            for position in positions {
                let expected: Vec<f32> = numbers(&position["logits"]).iter().map(|&x| x as f32).collect();
                let until = position["position"].as_u64().unwrap() as usize + 1;
                for chunk in [1, 7, 128] {
                    let error = relative_error(&logits(&engine, &prompt[..until], chunk), &expected);
                    assert!(error < 1e-3, "{stem}, {name}, position {}: {error:e}", until - 1);
                    worst = worst.max(error);
                }
            }
            let sampling = SamplingParams { temperature: 0.0, ..Default::default() };
            let greedy: Vec<u32> = numbers(&golden["greedy"]).iter().map(|&x| x as u32).collect();
            let n = greedy.len();
            let options = SessionOptions { sampling, max_tokens: Some(n), ..Default::default() };
            let mut session = Session::start(&engine, Prompt::Tokens(&prompt), &options).unwrap();
            let mut found = Vec::new();
            while let Some((token, _)) = session.peek_token().unwrap() {
                found.push(token);
                session.take_token();
            }
            // The token that ends a generation is not one of it.
            let expected = greedy.split(|&token| engine.tokenizer().is_eog(token)).next().unwrap();
            assert_eq!(found, expected, "{stem}, {name}");
        }
        println!("{stem}: relative error at most {worst:.1e}");
    }
}
