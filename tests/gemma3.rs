//! Gemma 3 270M in Q4_K_M on the CPU backend, judged by llama.cpp: the perplexity of a text, and the most likely tokens.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/models.rs"]
mod models;

use kigo::backend::cpu::CpuBackend;
use kigo::backend::{Backend, Progress, Row};
use kigo::gguf::Gguf;
use kigo::model::{Weights, arch};
use serde_json::Value;

/// Of the perplexity. llama.cpp rounds activations to 8 bits, which makes 0.2 %.
const MAX_DIFFERENCE: f64 = 0.005;
/// Rows of a batch, whose logits are 1 MiB each.
const CHUNK: usize = 64;

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(models::data("gemma3.json")).unwrap()).unwrap()
}

fn backend() -> Option<CpuBackend> {
    let gguf = Gguf::open(&models::cached("gemma-3-270m-q4_k_m.gguf")?).unwrap();
    let desc = arch::describe(gguf.metadata()).unwrap();
    let plan = Weights::plan(&gguf, &desc).unwrap();
    let n_threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    Some(CpuBackend::load(&gguf, &desc, &plan, (2048, n_threads), &Progress::default()).unwrap())
}

fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

/// The negative logarithm of the probability of `token`.
fn nll(logits: &[f32], token: u32) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let sum: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
    sum.ln() - f64::from(logits[token as usize] - largest)
}

/// Compares the perplexity of the first `n` tokens of the text, a multiple of 100.
fn check_perplexity(n: usize) {
    let Some(mut backend) = backend() else { return };
    let golden = golden();
    let tokens = &tokens(&golden["tokens"])[..n];
    let mut sum = 0.0;
    let row = |position: usize| Row {
        token: tokens[position],
        position: position as u32,
        sequence: 0,
        logits: position + 1 < n,
    };
    for start in (0..n).step_by(CHUNK) {
        let rows: Vec<Row> = (start..n.min(start + CHUNK)).map(row).collect();
        backend.sequence_reserve(0, start + rows.len()).unwrap();
        backend.forward(&rows).unwrap();
        for i in (0..rows.len()).filter(|i| start + i + 1 < n) {
            sum += nll(backend.logits(i).unwrap(), tokens[start + i + 1]);
        }
    }
    let expected: f64 = golden["nll"].as_array().unwrap()[..n / 100].iter().map(|x| x.as_f64().unwrap()).sum();
    let [found, expected] = [sum, expected].map(|sum| (sum / (n - 1) as f64).exp());
    println!("perplexity of {n} tokens: {found:.4}, of llama.cpp {expected:.4}");
    assert!((found / expected - 1.0).abs() <= MAX_DIFFERENCE, "{found} is not {expected}");
}

#[test]
fn perplexity_of_500_tokens_is_that_of_llama_cpp() {
    check_perplexity(500);
}

#[test]
#[ignore = "takes minutes on two cores"]
fn perplexity_of_2000_tokens_is_that_of_llama_cpp() {
    check_perplexity(2000);
}

#[test]
fn greedy_tokens_are_those_of_llama_cpp() {
    let Some(mut backend) = backend() else { return };
    let golden = golden();
    let (mut tokens, expected) = (tokens(&golden["greedy"]["tokens"]), tokens(&golden["greedy"]["next"]));
    let mut n_past = 0;
    let mut found = Vec::new();
    while found.len() < expected.len() {
        let row = |position: usize| Row {
            token: tokens[position],
            position: position as u32,
            sequence: 0,
            logits: position + 1 == tokens.len(),
        };
        let rows: Vec<Row> = (n_past..tokens.len()).map(row).collect();
        backend.sequence_reserve(0, tokens.len()).unwrap();
        backend.forward(&rows).unwrap();
        n_past = tokens.len();
        let logits = backend.logits(0).unwrap();
        let next = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
        found.push(next);
        tokens.push(next);
    }
    assert_eq!(found, expected);
}
