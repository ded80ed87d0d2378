//! Small models for compute-sanitizer, under which everything is slow: two layers, odd sizes, many types.

use std::path::Path;
use std::sync::Arc;

use kigo::backend::DecodePath;
use kigo::engine::Engine;
use kigo::model::{Experts, ModelDesc};
use kigo::quant::QuantType;

use super::folder::Folder;
use super::harness::*;
use super::random_model::{Features, Shape, draft, draft_with};
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
    // Gate and up are of two types, which one kernel does not take.
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
}

#[test]
#[ignore = "needs a GPU"]
fn two_layers_as_one_kernel() {
    let folder = Folder::new();
    let tokens: Vec<u32> = (0..70).map(|i| i * 53 % 331).collect();
    // Seven matrices a layer: gate (the last of these) and up (the first) are of one type in all of them.
    let types = [
        QuantType::MXFP4,
        QuantType::F16,
        QuantType::Q5_1,
        QuantType::Q8_0,
        QuantType::F16,
        QuantType::Q4_0,
        QuantType::MXFP4,
    ];
    let path = folder.write("step.gguf", &draft(&SHAPE, &types, 1).writer());
    as_one_kernel(&path, &Features::default(), &tokens, &[usize::MAX, 0]);
    two_at_once(&load(&path, &gpu(), 33), &tokens);
    let features = Features {
        experts: Some(Experts { n_expert: 5, n_expert_used: 2 }),
        router: Some(QuantType::F32),
        ..Features::default()
    };
    let path = folder.write("experts.gguf", &draft_with(&SHAPE, &features, &[QuantType::MXFP4], 1).writer());
    as_one_kernel(&path, &features, &tokens, &[usize::MAX]);
}

/// Single rows as one kernel, beside kernel by kernel: pages come through its rings from each of these positions on.
fn as_one_kernel(path: &Path, features: &Features, tokens: &[u32], streams_from: &[usize]) {
    let describe = |desc: &mut ModelDesc| features.describe(desc);
    let mut stages = backend(path, &gpu(), DecodePath::Stages, describe).unwrap();
    let expected = last_logits(&mut *stages, 0, tokens, 4);
    let mut step = step_backend(path, describe);
    for (&from, sequence) in streams_from.iter().zip(0..) {
        step.stream_pages_from(from);
        let run = step.step_run(1, tokens.len() as u32 - 1);
        assert_eq!(run.map(|run| run.streams_pages), Some(from == 0));
        let found = last_logits(&mut step, sequence, tokens, 4);
        let same = found.iter().zip(&expected).all(|(found, expected)| bits(found) == bits(expected));
        assert!(same, "pages from {from}: {features:?}");
    }
    assert_eq!(step.step_run(2, 9).is_some(), features.experts.is_none());
}

/// Sampling, and two sequences at once.
fn two_at_once(engine: &Arc<Engine>, tokens: &[u32]) {
    std::thread::scope(|scope| {
        for seed in 0..2 {
            scope.spawn(move || assert!(!generate(engine, &tokens[..9], &seeded(seed, 4)).is_empty()));
        }
    });
}
