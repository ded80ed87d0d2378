//! Logits and greedy tokens of real models beside those of the CPU.

use kigo::backend::{DecodePath, Row};

use super::harness::*;
use super::models;

/// Positions of the divergence test on a real model.
const N_POSITIONS: usize = 2000;
/// Largest mean divergence, in nats. Rounding activations to 11 bits gives about 1e-6 on the models here.
const MAX_DIVERGENCE: f64 = 1e-4;

/// Runs `tokens` on both devices one by one; returns the mean divergence, the worst, and how often both devices have
/// the same most likely token.
fn compare(path: &std::path::Path, tokens: &[u32]) -> (f64, f64, usize) {
    let (gpu, cpu) = (load(path, &gpu(), 512), load(path, "cpu", 512));
    let (mut on_gpu, mut on_cpu) = (Forced::new(&gpu), Forced::new(&cpu));
    let (mut sum, mut worst, mut same) = (0.0, 0.0f64, 0);
    for token in tokens {
        let (found, expected) = (on_gpu.push(&[*token]), on_cpu.push(&[*token]));
        let divergence = divergence(&found, &expected);
        assert!(divergence.is_finite(), "logits that are not finite");
        sum += divergence;
        worst = worst.max(divergence);
        same += usize::from(argmax(&found) == argmax(&expected));
    }
    (sum / tokens.len() as f64, worst, same)
}

fn check(path: &std::path::Path, tokens: &[u32]) {
    let (mean, worst, same) = compare(path, tokens);
    let (name, n) = (path.file_name().unwrap().display(), tokens.len());
    println!("{name}: {n} positions, mean divergence {mean:.2e} nats, worst {worst:.2e}, same top token {same}");
    assert!(mean <= MAX_DIVERGENCE, "{name}: mean divergence {mean:e}");
}

#[test]
#[ignore = "needs a GPU"]
fn tiny_models_diverge_little_from_the_cpu() {
    let tokens: Vec<u32> = (0..200).map(|i| (i * 37 + 5) % 280).collect();
    for file in ["tiny-llama.gguf", "tiny-llama-q8_0.gguf"] {
        check(&models::data(file), &tokens);
    }
}

/// The prompts one after the other, and over again in reverse.
#[test]
#[ignore = "needs a GPU"]
fn smollm2_diverges_little_from_the_cpu() {
    let Some(path) = models::cached(models::SMOLLM2) else { return };
    let once: Vec<u32> = prompts().into_iter().flat_map(|(_, tokens)| tokens).collect();
    let tokens: Vec<u32> = once.iter().chain(once.iter().rev()).copied().take(N_POSITIONS).collect();
    assert_eq!(tokens.len(), N_POSITIONS);
    check(&path, &tokens);
}

#[test]
#[ignore = "needs a GPU"]
fn smollm2_writes_the_greedy_tokens_of_the_cpu() {
    let Some(path) = models::cached(models::SMOLLM2) else { return };
    let (gpu, cpu) = (load(&path, &gpu(), 512), load(&path, "cpu", 512));
    let prompts = prompts();
    assert_eq!(prompts.len(), 8);
    for (name, prompt) in prompts {
        let (found, expected) = (generate(&gpu, &prompt, &greedy(64)), generate(&cpu, &prompt, &greedy(64)));
        let same = found.iter().zip(&expected).take_while(|(a, b)| a == b).count();
        println!("{name}: {same} of {} tokens are the same", expected.len());
        let ended_alike = found == expected && expected.len() < 64;
        assert!(same >= 32 || ended_alike, "{name}: {same} tokens are the same: {found:?} {expected:?}");
    }
}

/// What llama.cpp makes of Gemma 3 270M.
fn gemma3_golden() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(models::data("gemma3.json")).unwrap()).unwrap()
}

fn tokens(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

#[test]
#[ignore = "needs a GPU"]
fn gemma3_has_the_perplexity_of_llama_cpp() {
    // Rows of logits that are on the host at a time: 262,144 each.
    const CHUNK: usize = 100;
    let Some(path) = models::cached(models::GEMMA3) else { return };
    let golden = gemma3_golden();
    let (tokens, n_ctx) = (tokens(&golden["tokens"]), golden["n_ctx"].as_u64().unwrap() as usize);
    let mut backend =
        backend_for(&path, &gpu(), (n_ctx, CHUNK, DecodePath::Step), |_| ()).unwrap_or_else(|error| panic!("{error}"));
    backend.sequence_reserve(1, tokens.len()).unwrap();
    let row = |(i, &token): (usize, &u32)| Row { token, position: i as u32, sequence: 1, logits: true };
    let rows: Vec<Row> = tokens.iter().enumerate().map(row).collect();
    let mut sum = 0.0;
    for rows in rows.chunks(CHUNK) {
        backend.forward(rows).unwrap_or_else(|error| panic!("{error}"));
        for (i, row) in rows.iter().enumerate() {
            let Some(&next) = tokens.get(row.position as usize + 1) else { continue };
            let logits = backend.logits(i).unwrap();
            let largest = f64::from(logits[argmax(logits)]);
            let weights: f64 = logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
            sum += largest + weights.ln() - f64::from(logits[next as usize]);
        }
    }
    let (found, expected) = ((sum / (tokens.len() - 1) as f64).exp(), golden["perplexity"].as_f64().unwrap());
    println!("Gemma 3 270M: perplexity {found:.4}, of llama.cpp {expected:.4}");
    assert!((found / expected - 1.0).abs() <= 0.005, "perplexity {found}, expected {expected}");
}

#[test]
#[ignore = "needs a GPU"]
fn gemma3_writes_the_greedy_tokens_of_the_cpu() {
    let Some(path) = models::cached(models::GEMMA3) else { return };
    let golden = gemma3_golden();
    let (prompt, next) = (tokens(&golden["greedy"]["tokens"]), tokens(&golden["greedy"]["next"]));
    let (gpu, cpu) = (load(&path, &gpu(), 512), load(&path, "cpu", 512));
    let (found, expected) = (generate(&gpu, &prompt, &greedy(32)), generate(&cpu, &prompt, &greedy(32)));
    assert_eq!(found, expected);
    assert_eq!((found.len(), &found), (32, &next));
}
