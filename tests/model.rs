//! The decoder loop on the CPU backend, judged by Hugging Face transformers in f32 on the dequantised weights.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/folder.rs"]
mod folder;
#[path = "common/models.rs"]
mod models;
#[path = "common/tiny.rs"]
mod tiny;

use kigo::backend::cpu::CpuBackend;
use kigo::backend::{Backend, Progress, Row};
use kigo::gguf::Gguf;
use kigo::model::{Activation, ModelDesc, Norm, Weights, arch};
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

/// The logits of the first token of a sequence, in f64: at position 0 rope turns nothing and the attention is the value.
fn first_logits(draft: &Draft, desc: &ModelDesc, token: u32) -> Vec<f64> {
    let values = |name: &str| -> Vec<f64> {
        let data = draft.tensor(name).data.chunks_exact(4);
        data.map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
    };
    let product = |name: &str, x: &[f64]| -> Vec<f64> {
        values(name).chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
    };
    let norm = |name: &str, x: &[f64]| -> Vec<f64> {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let root = (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + f64::from(desc.norm_eps)).sqrt();
        let (weight, bias) = (values(&format!("{name}.weight")), values(&format!("{name}.bias")));
        (0..x.len()).map(|i| (x[i] - mean) / root * weight[i] + bias[i]).collect()
    };
    let gelu = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh());
    let add = |x: &mut [f64], delta: Vec<f64>| x.iter_mut().zip(delta).for_each(|(x, delta)| *x += delta);
    let mut x = values("token_embd.weight")[token as usize * desc.n_embd..][..desc.n_embd].to_vec();
    for layer in 0..desc.n_layer() {
        let name = |role: &str| format!("blk.{layer}.{role}");
        let v = product(&name("attn_v.weight"), &norm(&name("attn_norm"), &x));
        let group = desc.n_head / desc.n_head_kv;
        let mix: Vec<f64> =
            (0..desc.n_embd_q()).map(|i| v[i / desc.head_dim / group * desc.head_dim + i % desc.head_dim]).collect();
        add(&mut x, product(&name("attn_output.weight"), &mix));
        let normed = norm(&name("ffn_norm"), &x);
        let (gate, up) = (product(&name("ffn_gate.weight"), &normed), product(&name("ffn_up.weight"), &normed));
        let gated: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| gelu(*gate) * up).collect();
        add(&mut x, product(&name("ffn_down.weight"), &gated));
    }
    product("output.weight", &norm("output_norm", &x))
}

#[test]
fn layer_norm_with_biases_and_gelu_equal_the_decoder_written_out() {
    let plain = Draft::tiny();
    let names = |draft: &Draft| -> Vec<String> {
        let norms = draft.tensors.iter().filter_map(|tensor| tensor.name.strip_suffix("_norm.weight"));
        norms.map(|norm| format!("{norm}_norm.bias")).collect()
    };
    assert_eq!(names(&plain).len(), 5);
    let biased = names(&plain).into_iter().enumerate().fold(plain.clone(), |draft, (i, name)| {
        let bias: Vec<f32> = (0..64).map(|j| ((j * 7 + i * 3) as f32).sin() / 2.0).collect();
        draft.with_tensor(&name, &[64], &bias)
    });
    let folder = folder::Folder::new();
    let load = |draft: &Draft| {
        let gguf = Gguf::open(&folder.write("model.gguf", &draft.writer())).unwrap();
        let desc = arch::describe(gguf.metadata()).unwrap();
        assert_eq!((desc.norm, desc.activation), (Norm::Rms, Activation::Silu));
        let desc = ModelDesc { norm: Norm::Layer, activation: Activation::Gelu, ..desc };
        let plan = Weights::plan(&gguf, &desc).unwrap();
        (CpuBackend::load(&gguf, &desc, &plan, (4096, 2), &Progress::default()).unwrap(), desc)
    };
    let zeros = names(&plain).iter().fold(plain.clone(), |draft, name| draft.with_tensor(name, &[64], &[0.0; 64]));
    for (file, written_out) in [(&biased, &biased), (&plain, &zeros)] {
        let (mut backend, desc) = load(file);
        for (sequence, token) in [7, 200].into_iter().enumerate() {
            backend.sequence_reserve(sequence as u64, 1).unwrap();
            backend.forward(&[row(sequence as u64, 0, token, true)]).unwrap();
            let expected = first_logits(written_out, &desc, token);
            let largest = expected.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
            for (found, expected) in backend.logits(0).unwrap().iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-5 * largest, "{found} {expected}");
            }
        }
    }
}
