//! The decoder loop on the CPU backend, judged by Hugging Face transformers in f32 on the dequantised weights.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/models.rs"]
mod models;

use kigo::backend::cpu::CpuBackend;
use kigo::backend::{Backend, Progress, Row};
use kigo::gguf::Gguf;
use kigo::model::{ModelDesc, Weights, arch};
use serde_json::Value;

fn load(path: &std::path::Path) -> (CpuBackend, ModelDesc) {
    let gguf = Gguf::open(path).unwrap();
    let desc = arch::describe(gguf.metadata()).unwrap();
    let plan = Weights::plan(&gguf, &desc).unwrap();
    (CpuBackend::load(&gguf, &desc, &plan, 2, &Progress::default()).unwrap(), desc)
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
        let logits = backend.logits(i);
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
    let mut next = argmax(backend.logits(wanted.len() - 1));
    for (i, &expected) in greedy.iter().enumerate() {
        assert_eq!(next, expected, "greedy token {i}");
        backend.forward(&[row(sequence, prompt.len() + i, next, true)]).unwrap();
        next = argmax(backend.logits(0));
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
