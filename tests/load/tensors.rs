//! Tensors: missing, misshapen, of no use, not finite.

use kigo::gguf::{Array, StringArray};
use kigo::quant::QuantType;

use super::*;

const OPTIONAL: [&str; 1] = ["output.weight"];

#[test]
fn a_missing_tensor_is_named_g37() {
    for tensor in &Draft::tiny().tensors {
        if OPTIONAL.contains(&&*tensor.name) {
            continue;
        }
        let draft = Draft::tiny().without_tensor(&tensor.name);
        let dims = format!("dimensions {:?}", tensor.dims);
        refused(&draft, Status::BadFile, &[&format!("tensor {}", tensor.name), &dims, "no such tensor"]);
    }
    let renamed = Draft::tiny().changed("blk.1.ffn_up.weight", |tensor| tensor.name = "blk.1.ffn_up.wait".into());
    refused(&renamed, Status::BadFile, &["tensor blk.1.ffn_up.weight", "no such tensor"]);
}

#[test]
fn a_transposed_tensor_is_named_with_both_shapes_g37() {
    for tensor in &Draft::tiny().tensors {
        let [cols, rows] = tensor.dims[..] else { continue };
        if cols == rows {
            continue;
        }
        let draft = Draft::tiny().changed(&tensor.name, |tensor| tensor.dims.reverse());
        let words = [&format!("tensor {}:", tensor.name), &format!("[{cols}, {rows}]"), &format!("[{rows}, {cols}]")];
        refused(&draft, Status::BadFile, &words.map(|word| word.as_str()));
    }
}

#[test]
fn a_misshapen_tensor_is_named_with_both_shapes_g37() {
    let with_dims = |name: &str, dims: &[u64]| {
        Draft::tiny().changed(name, |tensor| {
            tensor.dims = dims.to_vec();
            tensor.data.resize(dims.iter().product::<u64>() as usize * 4, 0);
        })
    };
    for (name, dims, found, expected) in [
        ("output_norm.weight", &[65][..], "[65]", "[64]"),
        ("output_norm.weight", &[64, 2], "[64, 2]", "[64]"),
        ("blk.0.attn_q.weight", &[4096], "[4096]", "[64, 64]"),
        ("blk.0.attn_q.weight", &[64, 64, 2], "[64, 64, 2]", "[64, 64]"),
        ("blk.1.ffn_down.weight", &[96, 63], "[96, 63]", "[96, 64]"),
        ("output.weight", &[64, 279], "[64, 279]", "[64, 280]"),
    ] {
        let words = [&format!("tensor {name}:"), found, expected, "F32"];
        refused(&with_dims(name, dims), Status::BadFile, &words);
    }
    let flat = with_dims("output_norm.weight", &[64, 1, 1]);
    assert_eq!(answer(&load(&flat), QUESTION).unwrap(), HAIKU, "dimensions of 1 at the end say nothing");
}

#[test]
fn the_vocabulary_has_a_row_for_each_token() {
    let Value::Array(Array::String(tokens)) = Draft::tiny().get("tokenizer.ggml.tokens").clone() else { panic!() };
    let one_more = tokens.iter().chain([b"zzzzzz".as_slice()]);
    let one_more = Value::Array(Array::String(StringArray::try_from_iter(one_more).unwrap()));
    let Value::Array(Array::I32(types)) = Draft::tiny().get("tokenizer.ggml.token_type").clone() else { panic!() };
    let types = Value::Array(Array::I32([types, vec![1]].concat()));
    let draft = Draft::tiny().with("tokenizer.ggml.tokens", one_more).with("tokenizer.ggml.token_type", types);
    refused(&draft, Status::BadFile, &["tensor token_embd.weight:", "[64, 281]", "[64, 280]"]);
}

#[test]
fn an_unsupported_type_is_named_with_the_known_ones_g37() {
    for (id, found) in [(16, "IQ2_XXS"), (24, "I8"), (28, "F64"), (4, "Q4_2"), (1000, "1000")] {
        let draft = Draft::tiny().changed("blk.0.ffn_gate.weight", |tensor| tensor.type_id = id);
        refused(&draft, Status::UnsupportedType, &["tensor blk.0.ffn_gate.weight:", found, "Q4_K", "F32"]);
    }
    let draft = Draft::tiny().changed("blk.0.ffn_gate.weight", |tensor| tensor.type_id = QuantType::Q4_K as u32);
    refused(&draft, Status::BadFile, &["tensor blk.0.ffn_gate.weight:", "256", "64"]);
}

#[test]
fn a_tensor_of_no_use_is_named_g37() {
    let norm_biases = ["blk.0.attn_norm.bias", "blk.1.ffn_norm.bias", "output_norm.bias"];
    for name in ["blk.2.attn_q.weight", "blk.0.attn_q_norm.weight", "token_types.weight", "blk.00.attn_q.bias", "%n \n"]
        .into_iter()
        .chain(norm_biases)
    {
        let draft = Draft::tiny().with_tensor(name, &[16], &[1.0; 16]);
        let shown = if name.starts_with('%') { "%n" } else { name };
        refused(&draft, Status::BadFile, &["tensor ", shown, "only tensors that this architecture uses"]);
    }
}

#[test]
fn not_finite_weights_are_an_error_at_every_token_t14() {
    let places =
        ["token_embd.weight", "blk.0.attn_v.weight", "blk.1.ffn_down.weight", "output_norm.weight", "output.weight"];
    for (name, value) in places.into_iter().flat_map(|name| [(name, f32::NAN), (name, f32::INFINITY)]) {
        let engine = load(&Draft::tiny().changed(name, |tensor| tensor.set(100 % (tensor.data.len() / 4), value)));
        for temperature in [0.0, 1.0] {
            let sampling = SamplingParams { temperature, ..Default::default() };
            // Token 1 is row 1 of `token_embd`, where the value is.
            let options = SessionOptions { sampling, ..Default::default() };
            let mut session = Session::start(&engine, Prompt::Tokens(&[1, 5]), &options).unwrap();
            for _ in 0..3 {
                let error = session.peek_text().expect_err(name);
                check_error(&error, Status::Numeric, &["finite"]);
                check_error(&session.peek_token().expect_err(name), Status::Numeric, &["finite"]);
            }
            assert_eq!(session.generated_tokens(), 0);
        }
    }
}

#[test]
fn weights_that_overflow_are_an_error_at_the_token() {
    let huge = |tensor: &mut tiny::Tensor| (0..64 * 64).for_each(|at| tensor.set(at, 3e38));
    let engine = load(&Draft::tiny().changed("blk.0.attn_output.weight", huge));
    let error = answer(&engine, Prompt::Tokens(&[1, 5])).expect_err("logits that are not finite");
    check_error(&error, Status::Numeric, &["finite"]);
}
