//! Logits and greedy tokens of real models beside those of the CPU.

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
