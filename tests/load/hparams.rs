//! Hyperparameters: missing, of another type, out of range.

use super::*;

const INTEGERS: [&str; 5] = [
    "llama.context_length",
    "llama.embedding_length",
    "llama.block_count",
    "llama.feed_forward_length",
    "llama.attention.head_count",
];
const OPTIONAL_INTEGERS: [&str; 2] = ["llama.attention.head_count_kv", "llama.rope.dimension_count"];
const EPSILON: &str = "llama.attention.layer_norm_rms_epsilon";

/// Checks that the tiny model with `key` = `value` is refused with a message about the key.
fn refused_with(key: &str, value: impl Into<Value>, words: &[&str]) {
    refused(&Draft::tiny().with(key, value), Status::BadFile, &[&[key], words].concat());
}

#[test]
fn architecture_g26() {
    const KEY: &str = "general.architecture";
    refused(&Draft::tiny().without(KEY), Status::BadFile, &[KEY, "no such key"]);
    refused_with(KEY, Value::U32(7), &["STRING", "UINT32 7"]);
    for unknown in ["llamaX", "", "Llama", "ll\u{e4}ma\n\x1b[31m", &"x".repeat(10_000)] {
        let shown = unknown.get(..2).filter(|_| unknown.is_ascii()).unwrap_or("");
        let draft = Draft::tiny().with(KEY, unknown);
        refused(&draft, Status::UnsupportedArchitecture, &[KEY, shown, "known: ", "llama"]);
    }
}

#[test]
fn required_keys_g27() {
    for key in INTEGERS.into_iter().chain([EPSILON]) {
        refused(&Draft::tiny().without(key), Status::BadFile, &[key, "no such key"]);
    }
    for key in INTEGERS.into_iter().chain(OPTIONAL_INTEGERS) {
        refused_with(key, "many", &["integer", "STRING \"many\""]);
        refused_with(key, Value::F32(4.0), &["integer", "FLOAT32 4"]);
        refused_with(key, Value::I32(-1), &["-1"]);
    }
    for key in [EPSILON, "llama.rope.freq_base", "llama.rope.scaling.factor"] {
        refused_with(key, "1e-5", &["FLOAT32", "STRING \"1e-5\""]);
    }
    refused_with("llama.rope.scaling.type", Value::U32(1), &["STRING", "UINT32"]);
}

#[test]
fn integers_of_any_width_g27() {
    let expected = logits(&load(&Draft::tiny()), &TOKENS, 40);
    let widened = INTEGERS.into_iter().chain(OPTIONAL_INTEGERS).fold(Draft::tiny(), |draft, key| {
        let Value::U32(n) = *draft.get(key) else { panic!("{key} is not UINT32") };
        draft.with(key, Value::U64(n.into()))
    });
    assert_eq!(logits(&load(&widened), &TOKENS, 40), expected);
    let mixed = widened
        .with("llama.block_count", Value::U8(2))
        .with("llama.embedding_length", Value::I16(64))
        .with("llama.rope.freq_base", Value::F64(10_000.0));
    assert_eq!(logits(&load(&mixed), &TOKENS, 40), expected);
}

#[test]
fn optional_keys_have_defaults() {
    let expected = logits(&load(&Draft::tiny()), &TOKENS, 40);
    let draft = Draft::tiny()
        .without("general.name")
        .without("llama.rope.dimension_count")
        .without("llama.rope.freq_base")
        .without("llama.vocab_size");
    let engine = load(&draft);
    assert_eq!(engine.name(), "");
    assert_eq!(logits(&engine, &TOKENS, 40), expected);
    assert_eq!(load(&draft.with("general.name", Value::U32(1))).name(), "", "a name is not worth refusing a model");
}

#[test]
fn block_count_g28() {
    const KEY: &str = "llama.block_count";
    for count in [0, 1025, u32::MAX] {
        refused_with(KEY, Value::U32(count), &["1 to 1024", &count.to_string()]);
    }
    refused_with(KEY, Value::U64(u64::MAX), &["1 to 1024", "18446744073709551615"]);
    let of = |count| Draft::tiny().with(KEY, Value::U32(count));
    refused(&of(1), Status::BadFile, &["tensor blk.1."]);
    refused(&of(3), Status::BadFile, &["tensor blk.2.", "no such tensor"]);
    refused(&of(1024), Status::BadFile, &["tensor blk.2.", "no such tensor"]);
}

#[test]
fn heads_g29() {
    let (heads, heads_kv) = ("llama.attention.head_count", "llama.attention.head_count_kv");
    refused_with(heads, Value::U32(0), &["0"]);
    refused_with(heads, Value::U32(u32::MAX), &["4294967295"]);
    refused_with(heads_kv, Value::U32(0), &["0"]);
    refused_with(heads_kv, Value::U32(8), &["divisor", "= 4", "8"]);
    refused_with(heads_kv, Value::U32(3), &["divisor", "= 4", "3"]);
    let six = Draft::tiny().with(heads, Value::U32(6));
    refused(&six, Status::BadFile, &[heads, "divisor", "llama.embedding_length = 64", "6"]);
    let without_kv = Draft::tiny().without(heads_kv);
    refused(&without_kv, Status::BadFile, &["tensor blk.0.attn_k.weight", "[64, 64]", "[64, 32]"]);
}

#[test]
fn sizes_beyond_any_model_are_refused() {
    for key in ["llama.embedding_length", "llama.feed_forward_length", "llama.attention.head_count"] {
        for size in [0, (1 << 20) + 1, 1 << 32, u64::MAX] {
            refused_with(key, Value::U64(size), &["1048576", &size.to_string()]);
        }
    }
    // The largest sizes together make a tensor that no file has, not an overflow.
    let largest = ["llama.feed_forward_length", "llama.attention.head_count", "llama.attention.head_count_kv"]
        .into_iter()
        .fold(Draft::tiny(), |draft, key| draft.with(key, Value::U32(1 << 20)))
        .with("llama.attention.key_length", Value::U32(1 << 20));
    refused(&largest, Status::BadFile, &["tensor blk.0.attn_q.weight", "1099511627776"]);
}

#[test]
fn epsilon_g30() {
    for value in [f32::NAN, 0.0, -0.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, 0.2] {
        refused_with(EPSILON, Value::F32(value), &[&value.to_string()]);
    }
    refused_with(EPSILON, Value::F64(1e-60), &["0"]);
}

#[test]
fn context_length_g31() {
    const KEY: &str = "llama.context_length";
    refused_with(KEY, Value::U32(0), &["at least 1", "0"]);
    for (length, n_ctx) in [(1, 1), (1 << 17, 1 << 17), ((1 << 17) + 1, 1 << 17), (u64::MAX, 1 << 17)] {
        let engine = load(&Draft::tiny().with(KEY, Value::U64(length)));
        assert_eq!((engine.n_ctx(), engine.n_ctx_train()), (n_ctx, length as usize));
        if length > 100 {
            assert_eq!(answer(&engine, QUESTION).unwrap(), HAIKU);
        }
    }
}

#[test]
fn experts_g38() {
    refused_with("llama.expert_count", Value::U32(u32::MAX), &["1 to 1024", "4294967295"]);
    let of = |n: u32, used: u32| {
        let draft = Draft::tiny().with("llama.expert_count", Value::U32(n));
        draft.with("llama.expert_used_count", Value::U32(used))
    };
    refused(&of(8, 2), Status::BadFile, &["tensor blk.0.ffn_gate_exps.weight", "[64, 96, 8]", "no such tensor"]);
    let without = Draft::tiny().with("llama.expert_count", Value::U32(8));
    refused(&without, Status::BadFile, &["llama.expert_used_count", "no such key"]);
    for used in [0, 9, u32::MAX] {
        refused(&of(8, used), Status::BadFile, &["llama.expert_used_count", "1 to 8", &used.to_string()]);
    }
    refused_with("llama.expert_count", "8", &["integer", "STRING"]);
    assert_eq!(answer(&load(&Draft::tiny().with("llama.expert_count", Value::U32(0))), QUESTION).unwrap(), HAIKU);
}

#[test]
fn rope_g46() {
    for base in [0.0, f32::NAN, -1.0, f32::INFINITY] {
        refused_with("llama.rope.freq_base", Value::F32(base), &[&base.to_string()]);
    }
    for factor in [0.0, f32::NAN, -1.0, f32::INFINITY] {
        let draft = Draft::tiny().with("llama.rope.scaling.type", "linear");
        let draft = draft.with("llama.rope.scaling.factor", Value::F32(factor));
        refused(&draft, Status::BadFile, &["llama.rope.scaling.factor", &factor.to_string()]);
    }
    for name in ["dynamic", "", "Linear"] {
        refused_with("llama.rope.scaling.type", name, &["none, linear, longrope or yarn", &format!("\"{name}\"")]);
    }
    let yarn = Draft::tiny().with("llama.rope.scaling.type", "yarn");
    for key in ["scaling.attn_factor", "scaling.yarn_beta_fast", "scaling.yarn_beta_slow"] {
        for value in [0.0, f32::NAN, -1.0, f32::INFINITY] {
            let key = format!("llama.rope.{key}");
            refused(&yarn.clone().with(&key, Value::F32(value)), Status::BadFile, &[&key, &value.to_string()]);
        }
    }
    let key = "llama.rope.scaling.original_context_length";
    refused(&yarn.with(key, Value::U32(0)), Status::BadFile, &[key, "at least 1"]);
    for count in [0, 1, 15, 18, u32::MAX] {
        refused_with("llama.rope.dimension_count", Value::U32(count), &["even", "16", &count.to_string()]);
    }
}

#[test]
fn an_odd_head_cannot_turn() {
    let draft = Draft::tiny().without("llama.rope.dimension_count").with("llama.attention.key_length", Value::U32(15));
    refused(&draft, Status::BadFile, &["llama.rope.dimension_count", "even", "15"]);
}

#[test]
fn values_are_as_wide_as_keys() {
    let key = "llama.attention.value_length";
    refused_with(key, Value::U32(8), &["16", "8"]);
    refused_with("llama.attention.key_length", Value::U32(0), &["0"]);
    let stated = Draft::tiny().with(key, Value::U32(16)).with("llama.attention.key_length", Value::U32(16));
    assert_eq!(answer(&load(&stated), QUESTION).unwrap(), HAIKU);
    let alone = Draft::tiny().with("llama.attention.key_length", Value::U32(32));
    refused(&alone, Status::BadFile, &["tensor blk.0.attn_q.weight", "[64, 128]", "[64, 64]"]);
}
