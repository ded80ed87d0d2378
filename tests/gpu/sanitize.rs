//! A small model for compute-sanitizer, under which everything is slow: two layers, odd sizes, many types.

use std::sync::Arc;

use kigo::engine::Engine;
use kigo::quant::QuantType;

use super::folder::Folder;
use super::harness::*;
use super::random_model::{Shape, draft};
use super::stages::nmse;

const SHAPE: Shape = Shape {
    n_layer: 2,
    n_embd: 96,
    n_head: 6,
    n_head_kv: 2,
    head_dim: 48,
    n_rot: 48,
    n_ff: 160,
    n_vocab: 331,
    tied: false,
    biases: true,
    norm_biases: false,
};

#[test]
#[ignore = "needs a GPU"]
fn two_layers_of_odd_sizes() {
    let folder = Folder::new();
    let types = [QuantType::F16, QuantType::Q4_0, QuantType::Q8_0, QuantType::MXFP4, QuantType::F32, QuantType::Q5_1];
    let path = folder.write("model.gguf", &draft(&SHAPE, &types, 1).writer());
    let tokens: Vec<u32> = (0..70).map(|i| i * 53 % 331).collect();
    let (gpu, cpu) = (load(&path, &gpu(), 33), load(&path, "cpu", 33));
    let (mut on_gpu, mut on_cpu) = (Forced::new(&gpu), Forced::new(&cpu));
    let mut rest = &tokens[..];
    for n in [33, 1, 30, 1, 5] {
        let (chunk, tail) = rest.split_at(n);
        rest = tail;
        let expected: Vec<f64> = on_cpu.push(chunk).iter().map(|&x| f64::from(x)).collect();
        let error = nmse(&on_gpu.push(chunk), &expected);
        assert!(error <= 1e-4, "squared error {error:e} after {n} rows");
    }
    drop((on_gpu, on_cpu));
    two_at_once(&gpu, &tokens);
    // In one kernel too, which takes no f32.
    let path = folder.write("rows.gguf", &draft(&SHAPE, &[QuantType::F16, QuantType::Q5_1], 1).writer());
    two_at_once(&load(&path, &self::gpu(), 33), &tokens);
    // And so that pages come through the rings of that kernel.
    let mut step = step_backend_for(&path, tokens.len(), |_| ());
    let mut after_all = |sequence, from| {
        step.stream_pages_from(from);
        let streams = step.step_run(1, 69).is_some_and(|run| run.streams_pages);
        (streams, last_logits(&mut step, sequence, &tokens, 4))
    };
    let (streamed, loaded) = (after_all(0, 0), after_all(1, usize::MAX));
    assert!(streamed.0 && !loaded.0 && streamed.1 == loaded.1);
}

/// Sampling, and two sequences at once.
fn two_at_once(engine: &Arc<Engine>, tokens: &[u32]) {
    std::thread::scope(|scope| {
        for seed in 0..2 {
            scope.spawn(move || assert!(!generate(engine, &tokens[..9], &seeded(seed, 4)).is_empty()));
        }
    });
}
