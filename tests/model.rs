//! The decoder loop on the CPU backend, judged by Hugging Face transformers in f32 on the dequantised weights.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/folder.rs"]
mod folder;
#[path = "common/models.rs"]
mod models;
#[path = "common/random_blocks.rs"]
mod random_blocks;
#[path = "common/random_model.rs"]
mod random_model;
#[path = "common/tiny.rs"]
mod tiny;
#[path = "common/written_out.rs"]
mod written_out;

use kigo::backend::cpu::CpuBackend;
use kigo::backend::{Backend, Progress, Row};
use kigo::gguf::Gguf;
use kigo::model::{Activation, ModelDesc, Norm, Weights, arch};
use kigo::quant::QuantType;
use random_blocks::Random;
use random_model::{Features, Shape, draft_with};
use serde_json::Value;
use tiny::Draft;

fn load(path: &std::path::Path) -> (CpuBackend, ModelDesc) {
    let gguf = Gguf::open(path).unwrap();
    let desc = arch::describe(gguf.metadata()).unwrap();
    let plan = Weights::plan(&gguf, &desc).unwrap();
    (CpuBackend::load(&gguf, &desc, &plan, (4096, 2), &Progress::default()).unwrap(), desc)
}

fn row(sequence: u64, position: usize, token: u32, logits: bool) -> Row {
    Row { token, position: position as u32, sequence, logits }
}

/// The lowest token with the highest logit.
fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

/// Checks the logits at some positions and the greedy continuation of one golden; returns the largest error.
fn check_golden(backend: &mut CpuBackend, sequence: u64, golden: &Value) -> f64 {
    let prompt = tokens(&golden["tokens"]);
    let greedy = tokens(&golden["greedy"]);
    let stride = golden["stride"].as_u64().unwrap() as usize;
    backend.sequence_reserve(sequence, prompt.len() + greedy.len()).unwrap();
    let wanted: Vec<usize> =
        golden["positions"].as_array().unwrap().iter().map(|p| p["position"].as_u64().unwrap() as usize).collect();
    let rows: Vec<Row> = (0..prompt.len()).map(|p| row(sequence, p, prompt[p], wanted.contains(&p))).collect();
    backend.forward(&rows).unwrap();
    let mut worst: f64 = 0.0;
    for (i, position) in golden["positions"].as_array().unwrap().iter().enumerate() {
        let logits = backend.logits(i).unwrap();
        let expected = numbers(&position["logits"]);
        let found: Vec<f32> = logits.iter().step_by(stride).copied().collect();
        assert_eq!(found.len(), expected.len());
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let difference = norm(&mut found.iter().zip(&expected).map(|(a, b)| f64::from(a - b)));
        worst = worst.max(difference / norm(&mut expected.iter().map(|&x| f64::from(x))));
        let top = position["top"].as_array().unwrap();
        assert_eq!(u64::from(argmax(logits)), top[0][0].as_u64().unwrap());
        for pair in top {
            let (id, logit) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap());
            assert!((f64::from(logits[id]) - logit).abs() < 1e-3 * logit.abs().max(10.0), "{} {logit}", logits[id]);
        }
    }
    let mut next = argmax(backend.logits(wanted.len() - 1).unwrap());
    for (i, &expected) in greedy.iter().enumerate() {
        assert_eq!(next, expected, "greedy token {i}");
        backend.forward(&[row(sequence, prompt.len() + i, next, true)]).unwrap();
        next = argmax(backend.logits(0).unwrap());
    }
    worst
}

#[test]
fn smollm2_logits_and_greedy_tokens_equal_transformers() {
    let Some(path) = models::cached(models::SMOLLM2) else { return };
    let (mut backend, _) = load(&path);
    let mut goldens: Vec<_> = std::fs::read_dir(models::data("logits")).unwrap().map(|e| e.unwrap().path()).collect();
    goldens.sort();
    assert_eq!(goldens.len(), 8);
    for (i, path) in goldens.iter().enumerate() {
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let error = check_golden(&mut backend, i as u64, &golden);
        println!("{}: relative error {error:.1e}", path.display());
        assert!(error < 1e-3, "{}: relative error {error}", path.display());
    }
}

/// The largest error of the logits after each of some tokens, in `chunk`s, against the decoder written out, as a part of
/// their root mean square.
fn check_written_out(draft: &Draft, change: impl Fn(&mut ModelDesc), n_tokens: usize, chunk: usize) -> f64 {
    let folder = folder::Folder::new();
    let gguf = Gguf::open(&folder.write("model.gguf", &draft.writer())).unwrap();
    let mut desc = arch::describe(gguf.metadata()).unwrap();
    change(&mut desc);
    let plan = Weights::plan(&gguf, &desc).unwrap();
    let mut backend = CpuBackend::load(&gguf, &desc, &plan, (4096, 2), &Progress::default()).unwrap();
    let tokens: Vec<u32> = (0..n_tokens as u32).map(|i| (i * 379 + 11) % desc.n_vocab as u32).collect();
    backend.sequence_reserve(0, n_tokens).unwrap();
    let rows: Vec<Row> = (0..n_tokens).map(|p| row(0, p, tokens[p], true)).collect();
    let mut found = Vec::new();
    for rows in rows.chunks(chunk) {
        backend.forward(rows).unwrap();
        found.extend((0..rows.len()).flat_map(|i| backend.logits(i).unwrap().to_vec()));
    }
    let expected = written_out::logits(draft, &desc, &tokens).concat();
    assert_eq!(found.len(), expected.len());
    let size = (expected.iter().map(|x| x * x).sum::<f64>() / expected.len() as f64).sqrt();
    assert!(size.is_normal(), "logits of {size} tell nothing");
    let errors = found.iter().zip(expected).map(|(found, expected)| (f64::from(*found) - expected).abs());
    errors.fold(0.0, f64::max) / size
}

/// Most that rounding to f32 makes of it in a few layers.
const MAX_ROUNDING: f64 = 2e-5;

#[test]
fn layer_norm_with_biases_and_gelu_equal_the_decoder_written_out() {
    let plain = Draft::tiny();
    let norms = plain.tensors.iter().filter_map(|tensor| tensor.name.strip_suffix("_norm.weight"));
    let names: Vec<String> = norms.map(|norm| format!("{norm}_norm.bias")).collect();
    assert_eq!(names.len(), 5);
    let biased = names.iter().enumerate().fold(plain.clone(), |draft, (i, name)| {
        let bias: Vec<f32> = (0..64).map(|j| ((j * 7 + i * 3) as f32).sin() / 2.0).collect();
        draft.with_tensor(name, &[64], &bias)
    });
    for draft in [&biased, &plain] {
        let change = |desc: &mut ModelDesc| {
            assert_eq!((desc.norm, desc.activation), (Norm::Rms, Activation::Silu));
            (desc.norm, desc.activation) = (Norm::Layer, Activation::Gelu);
        };
        let error = check_written_out(draft, change, 40, 40);
        assert!(error < MAX_ROUNDING, "{error:e}");
    }
}

/// Combinations of features that no architecture has.
#[test]
fn any_features_equal_the_decoder_written_out() {
    let mut worst: f64 = 0.0;
    for seed in 0..60 {
        let random = &mut Random(seed);
        let (head_dim, n_head_kv) = (random.pick(&[4, 16, 20]), random.pick(&[1, 2, 3]));
        let shape = Shape {
            n_layer: random.pick(&[1, 2, 3]),
            n_embd: random.pick(&[32, 40, 96]),
            n_head: n_head_kv * random.pick(&[1, 2, 4]),
            n_head_kv,
            head_dim,
            n_rot: random.pick(&[2, head_dim / 2, head_dim]),
            n_ff: random.pick(&[24, 64]),
            n_vocab: 260,
            tied: random.pick(&[true, false]),
            biases: random.pick(&[true, false]),
            norm_biases: false,
        };
        let features = Features::random(random);
        let shape = Shape { norm_biases: features.norm == Norm::Layer && random.pick(&[true, false]), ..shape };
        let draft = draft_with(&shape, &features, &[QuantType::F32], seed);
        let error = check_written_out(&draft, |desc| features.describe(desc), 75, random.pick(&[1, 7, 75]));
        assert!(error < MAX_ROUNDING, "seed {seed}: error {error:e} of {shape:?} with {features:?}");
        worst = worst.max(error);
    }
    println!("error at most {worst:.1e}");
}
