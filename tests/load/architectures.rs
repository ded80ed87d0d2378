//! What is wrong with files of architectures other than `llama`, and what these need.

use kigo::gguf::{Array, StringArray};
use kigo::quant::QuantType;

use super::*;

fn tiny(name: &str) -> Draft {
    Draft::of(&format!("arch/{name}.gguf"))
}

/// The tiny file of every architecture, and of what some have besides.
const FILES: [&str; 15] = [
    "gemma2",
    "gemma3",
    "gpt-oss",
    "gpt2",
    "granite",
    "llama3",
    "mixtral",
    "olmo2",
    "phi3",
    "phi3-longrope",
    "qwen2",
    "qwen3",
    "qwen3moe",
    "smollm3",
    "llama",
];

/// Tensors that a file may lack.
fn is_optional(name: &str) -> bool {
    name.ends_with(".bias") || ["output.weight", "rope_freqs.weight"].contains(&name)
}

#[test]
fn every_tensor_is_missed_by_name() {
    for file in FILES {
        let draft = tiny(file);
        for tensor in draft.tensors.iter().filter(|tensor| !is_optional(&tensor.name)) {
            // Without the one that holds all three, the first of three is what is missing.
            let missing = tensor.name.replace("attn_qkv", "attn_q");
            let words = [&format!("tensor {missing}:"), "no such tensor"];
            refused(&draft.clone().without_tensor(&tensor.name), Status::BadFile, &words);
        }
    }
}

#[test]
fn every_tensor_of_another_shape_is_named_with_both() {
    for file in FILES {
        let draft = tiny(file);
        for tensor in &draft.tensors {
            let mut dims = tensor.dims.clone();
            *dims.last_mut().unwrap() += 1;
            let found = format!("found {dims:?} of type F32");
            let changed = draft.clone().changed(&tensor.name, |tensor| {
                tensor.dims = dims.clone();
                tensor.data.resize(dims.iter().product::<u64>() as usize * 4, 0);
            });
            refused(&changed, Status::BadFile, &[&format!("tensor {}: expected dimensions [", tensor.name), &found]);
        }
    }
}

#[test]
fn every_tensor_of_a_type_that_kigo_does_not_know_is_named() {
    for file in ["gpt-oss", "gemma3", "gpt2", "olmo2"] {
        let draft = tiny(file);
        for tensor in &draft.tensors {
            let changed = draft.clone().changed(&tensor.name, |tensor| tensor.type_id = 24);
            refused(&changed, Status::UnsupportedType, &[&format!("tensor {}:", tensor.name), "I8", "MXFP4"]);
        }
    }
}

#[test]
fn keys_that_an_architecture_needs() {
    for (file, key) in [
        ("gpt-oss", "gpt-oss.attention.sliding_window"),
        ("gpt-oss", "gpt-oss.expert_count"),
        ("gpt-oss", "gpt-oss.expert_used_count"),
        ("qwen3moe", "qwen3moe.expert_count"),
        ("qwen3moe", "qwen3moe.expert_used_count"),
        ("mixtral", "llama.expert_used_count"),
        ("granite", "granite.logit_scale"),
        ("gpt2", "gpt2.attention.layer_norm_epsilon"),
        ("gpt2", "gpt2.context_length"),
        ("gemma3", "gemma3.attention.layer_norm_rms_epsilon"),
    ] {
        refused(&tiny(file).without(key), Status::BadFile, &[key]);
    }
}

#[test]
fn experts_that_do_not_fit() {
    for (file, prefix) in [("gpt-oss", "gpt-oss"), ("qwen3moe", "qwen3moe"), ("mixtral", "llama")] {
        let (count, used) = (format!("{prefix}.expert_count"), format!("{prefix}.expert_used_count"));
        let draft = tiny(file);
        let Value::U32(n) = *draft.get(&count) else { panic!("{count} is not UINT32") };
        for bad in [1025, u32::MAX] {
            refused(&draft.clone().with(&count, Value::U32(bad)), Status::BadFile, &[&count, "1 to 1024"]);
        }
        for bad in [0, n + 1, u32::MAX] {
            let words = [&used, &format!("1 to {n}"), &bad.to_string()];
            refused(&draft.clone().with(&used, Value::U32(bad)), Status::BadFile, &words.map(String::as_str));
        }
        for other in [n - 1, n + 1] {
            let words = ["tensor blk.0.ffn_", &format!(", {other}]"), &format!(", {n}]")];
            refused(&draft.clone().with(&count, Value::U32(other)), Status::BadFile, &words);
        }
        refused(&draft.with(&count, "8"), Status::BadFile, &[&count, "integer", "STRING"]);
    }
    let dense = tiny("qwen3moe").with("qwen3moe.expert_count", Value::U32(0));
    refused(&dense, Status::BadFile, &["qwen3moe.expert_count", "at least 1"]);
}

#[test]
fn windows_that_make_no_sense() {
    for name in ["gemma2", "gemma3", "gpt-oss", "olmo2", "phi3", "llama"] {
        let draft = tiny(name);
        let window = format!("{name}.attention.sliding_window");
        refused(&draft.clone().with(&window, "16"), Status::BadFile, &[&window, "integer", "STRING"]);
        refused(&draft.clone().with(&window, Value::I32(-1)), Status::BadFile, &[&window, "-1"]);
        let pattern = format!("{window}_pattern");
        let arrays = [Array::Bool(vec![true; 99]), Array::Bool(Vec::new()), Array::I32(vec![1; 2])].map(Value::Array);
        for value in arrays.into_iter().chain([Value::U32(0), Value::F32(2.0), Value::Bool(true)]) {
            refused(&draft.clone().with(&pattern, value), Status::BadFile, &[&pattern]);
        }
    }
}

#[test]
fn a_window_of_0_is_none_and_one_beyond_all_positions_cuts_nothing() {
    let logits_of = |draft: &Draft| logits(&load(draft), &TOKENS.map(|token| token % 100), 40);
    for name in ["gemma2", "gpt-oss", "llama"] {
        let key = format!("{name}.attention.sliding_window");
        let [none, cut, endless] = [Value::U32(0), Value::U32(5), Value::U64(u64::MAX)]
            .map(|window| logits_of(&tiny(name).with(&key, window)));
        assert_eq!(none, endless, "{name}");
        assert!(relative_error(&cut, &none) > 1e-4, "{name}");
    }
}

#[test]
fn factors_that_make_no_sense() {
    let bad = [f32::NAN, -1.0, f32::INFINITY, f32::NEG_INFINITY];
    for name in ["embedding_scale", "residual_scale", "attention.scale", "logit_scale"] {
        let key = format!("granite.{name}");
        for value in bad.into_iter().chain([0.0]) {
            let draft = tiny("granite").with(&key, Value::F32(value));
            refused(&draft, Status::BadFile, &[&key, &value.to_string()]);
        }
        refused(&tiny("granite").with(&key, Value::U32(1)), Status::BadFile, &[&key, "FLOAT32", "UINT32"]);
    }
    for (file, name) in
        [("gemma2", "attn_logit_softcapping"), ("gemma2", "final_logit_softcapping"), ("gemma3", "rope.freq_base_swa")]
    {
        let key = format!("{file}.{name}");
        for value in bad {
            refused(&tiny(file).with(&key, Value::F32(value)), Status::BadFile, &[&key, &value.to_string()]);
        }
    }
}

#[test]
fn keys_that_an_architecture_does_not_compute() {
    for (file, key, value) in [
        ("llama", "llama.attention.causal", Value::Bool(false)),
        ("llama", "llama.attn_logit_softcapping", Value::F32(50.0)),
        ("llama", "llama.logit_scale", Value::F32(8.0)),
        ("mixtral", "llama.expert_weights_scale", Value::F32(2.5)),
        ("mixtral", "llama.expert_gating_func", Value::U32(2)),
        ("qwen2", "qwen2.attention.sliding_window", Value::U32(4096)),
        ("qwen2", "qwen2.rope.dimension_sections", Value::Array(Array::I32(vec![16, 24, 24, 0]))),
        ("qwen3moe", "qwen3moe.expert_shared_count", Value::U32(1)),
        ("qwen3moe", "qwen3moe.expert_weights_norm", Value::Bool(false)),
        ("gemma3", "gemma3.attn_logit_softcapping", Value::F32(50.0)),
        ("gpt2", "gpt2.attention.max_alibi_bias", Value::F32(8.0)),
        ("granite", "granite.final_logit_softcapping", Value::F32(30.0)),
    ] {
        let found = value.describe();
        refused(&tiny(file).with(key, value), Status::BadFile, &[key, "no such key", &found]);
    }
    let harmless = tiny("llama").with("llama.attention.causal", Value::Bool(true));
    load(&harmless.with("llama.expert_shared_count", Value::U32(0)));
}

#[test]
fn the_vocabulary_has_a_row_for_each_token() {
    for file in ["gpt2", "gemma3", "gpt-oss"] {
        let draft = tiny(file);
        let n = draft.tensor("token_embd.weight").dims[1];
        let more = tiny(file).pairs.into_iter().fold(draft, |draft, (key, value)| match value {
            Value::Array(Array::String(tokens)) if key == "tokenizer.ggml.tokens" => {
                let more = StringArray::try_from_iter(tokens.iter().chain([b"zzzzzz".as_slice()])).unwrap();
                draft.with(&key, Value::Array(Array::String(more)))
            }
            Value::Array(Array::I32(types)) if key == "tokenizer.ggml.token_type" => {
                draft.with(&key, Value::Array(Array::I32([types, vec![1]].concat())))
            }
            Value::Array(Array::F32(scores)) if key == "tokenizer.ggml.scores" => {
                draft.with(&key, Value::Array(Array::F32([scores, vec![0.0]].concat())))
            }
            _ => draft,
        });
        refused(&more, Status::BadFile, &["tensor token_embd.weight:", &format!("{}]", n + 1), &format!("{n}]")]);
    }
}

#[test]
fn learned_positions_bound_the_context() {
    let folder = Folder::new();
    let path = folder.write("model.gguf", &tiny("gpt2").writer());
    let with = |n_ctx| {
        Engine::load(&path, &LoadOptions { device: "cpu".into(), n_ctx, n_threads: Some(2), ..Default::default() })
    };
    let most = with(None).unwrap().n_ctx();
    assert_eq!(Value::U32(most as u32), *tiny("gpt2").get("gpt2.context_length"));
    assert_eq!(with(Some(most)).unwrap().n_ctx(), most);
    let error = with(Some(most + 1)).err().unwrap();
    check_error(&error, Status::InvalidArgument, &["n_ctx", &format!("1 to {most}"), &(most + 1).to_string()]);
    let longer = tiny("gpt2").with("gpt2.context_length", Value::U32(most as u32 + 1));
    refused(&longer, Status::BadFile, &["tensor position_embd.weight", &format!("{}]", most + 1)]);
}

/// Experts and factors in the blocks that real files have.
#[test]
fn quantised_experts_load_and_run() {
    let draft = tiny("gpt-oss");
    let expected = logits(&load(&draft), &TOKENS.map(|token| token % 100), 40);
    let exps = |name: &str| name.contains("_exps.weight");
    let names: Vec<String> = draft.tensors.iter().map(|t| t.name.clone()).filter(|name| exps(name)).collect();
    assert!(!names.is_empty());
    let halved = names.iter().fold(draft, |draft, name| {
        draft.changed(name, |tensor| {
            let values = tensor.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            tensor.data = values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect();
            tensor.type_id = QuantType::F16 as u32;
        })
    });
    let error = relative_error(&logits(&load(&halved), &TOKENS.map(|token| token % 100), 7), &expected);
    assert!(error > 0.0 && error < 1e-2, "{error}");
}
