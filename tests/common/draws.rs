//! Logits and settings for tests of drawing on a device.

#![allow(dead_code, reason = "each test binary uses what it needs")]

use kigo::sampler::SamplingParams;

use super::random_blocks::Random;

/// Logits of a row: about normal; the same with few different values; all equal; one far above the others.
pub fn logits(n_vocab: usize, kind: usize, random: &mut Random) -> Vec<f32> {
    let mut normal = || (0..6).map(|_| random.uniform()).sum::<f32>();
    let mut logits: Vec<f32> = (0..n_vocab).map(|_| 2.0 * normal()).collect();
    match kind {
        1 => logits.iter_mut().for_each(|x| *x = x.round()),
        2 => logits.fill(-1.5),
        3 => logits[n_vocab / 3] = 40.0,
        _ => {}
    }
    logits
}

pub fn choices() -> Vec<SamplingParams> {
    let d = SamplingParams::default;
    vec![
        SamplingParams { temperature: 0.0, ..d() },
        SamplingParams { temperature: 0.0, repeat_penalty: 1.3, ..d() },
        d(),
        SamplingParams { temperature: 1.0, top_k: 1, ..d() },
        SamplingParams { temperature: 1.7, top_k: 400, top_p: 0.99, min_p: 0.0, ..d() },
        SamplingParams { top_k: 900, top_p: 1.0, ..d() },
        SamplingParams { repeat_penalty: 1.2, ..d() },
        SamplingParams { top_k: 0, top_p: 0.95, min_p: 0.0, ..d() },
        SamplingParams { temperature: 2.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..d() },
        SamplingParams { top_k: 0, top_p: 0.4, repeat_penalty: 0.8, ..d() },
        SamplingParams { temperature: 1.1, top_k: 30_000, min_p: 0.02, ..d() },
    ]
}
