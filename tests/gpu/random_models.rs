//! Models of odd shapes with random weights of every type, beside the CPU.

use kigo::backend::{Backend, DecodePath, Row};
use kigo::model::{Activation, Experts, LayerDesc, ModelDesc, Norm, QkNorm, RopeKind, RopePairing, RopeScaling};
use kigo::quant::QuantType;

use super::folder::Folder;
use super::harness::*;
use super::random_blocks::Random;
use super::random_model::{Features, Shape, draft, draft_with};
use super::stages::nmse;
use super::tiny::Draft;

/// Most that the squared error of all logits may be of their square.
const MAX_NMSE: f64 = 1e-4;
/// Two logits of the CPU are a tie when they differ by less than this part of the root mean square of all.
const TIE: f64 = 0.01;
/// Positions: more than one page of the cache.
const N_TOKENS: usize = 150;
const N_VOCAB: usize = 1003;

const fn shape(n_embd: usize, heads: (usize, usize), head_dim: usize, n_rot: usize, n_ff: usize) -> Shape {
    let (n_head, n_head_kv) = heads;
    let (tied, biases, norm_biases) = (n_ff.is_multiple_of(64), n_head == n_head_kv, false);
    Shape { n_layer: 2, n_embd, n_head, n_head_kv, head_dim, n_rot, n_ff, n_vocab: N_VOCAB, tied, biases, norm_biases }
}

/// Every size of head and of group, widths that are odd multiples of 32 and multiples of 256.
const SHAPES: [Shape; 8] = [
    shape(96, (3, 1), 32, 32, 160),
    shape(160, (4, 1), 80, 80, 288),
    shape(288, (6, 6), 48, 32, 96),
    shape(256, (8, 1), 64, 64, 512),
    shape(512, (8, 2), 128, 128, 768),
    shape(256, (3, 1), 256, 64, 256),
    shape(256, (8, 8), 96, 96, 1024),
    shape(320, (8, 1), 32, 16, 352),
];

fn tokens() -> Vec<u32> {
    (0..N_TOKENS as u32).map(|i| (i * 379 + 11) % N_VOCAB as u32).collect()
}

/// Compares both devices on one model; returns the error.
fn check(shape: &Shape, quant_types: &[QuantType], change: impl Fn(&mut ModelDesc)) -> f64 {
    let seed = shape.n_embd as u64 + quant_types[0] as u64;
    check_draft(shape, quant_types, &draft(shape, quant_types, seed), change)
}

/// The same with what a `llama` has not.
fn check_features(shape: &Shape, quant_types: &[QuantType], features: &Features) -> f64 {
    let seed = shape.n_embd as u64 + quant_types[0] as u64;
    let draft = draft_with(shape, features, quant_types, seed);
    check_draft(shape, quant_types, &draft, |desc| features.describe(desc))
}

fn check_draft(shape: &Shape, quant_types: &[QuantType], draft: &Draft, change: impl Fn(&mut ModelDesc)) -> f64 {
    let folder = Folder::new();
    let path = folder.write("model.gguf", &draft.writer());
    let tokens = tokens();
    let run = |device: &str, decode_path, chunks: &[usize]| -> Vec<Vec<Vec<f32>>> {
        let mut backend = backend(&path, device, decode_path, &change).unwrap_or_else(|error| panic!("{error}"));
        chunks.iter().zip(0..).map(|(&chunk, sequence)| all_logits(&mut *backend, sequence, &tokens, chunk)).collect()
    };
    let cpu = run("cpu", DecodePath::Auto, &[64]).remove(0);
    let mut found = run(&gpu(), DecodePath::Stages, &[1, 7, N_TOKENS]);
    found.extend(run(&gpu(), DecodePath::Step, &[1]));
    let gpu = found;
    let name = format!("{shape:?} in {}", quant_types[0].name());
    for other in &gpu[1..] {
        for (position, (a, b)) in gpu[0].iter().zip(other).enumerate() {
            assert!(bits(a) == bits(b), "{name}: other bits in other chunks, or as one kernel, at position {position}");
        }
    }
    let (found, expected) = (gpu[0].concat(), cpu.concat());
    let expected: Vec<f64> = expected.iter().map(|&x| f64::from(x)).collect();
    let size = (expected.iter().map(|x| x * x).sum::<f64>() / expected.len() as f64).sqrt();
    assert!(size > 0.01, "{name}: logits of {size} tell nothing");
    for (position, (found, expected)) in gpu[0].iter().zip(&cpu).enumerate() {
        let gap = f64::from(expected[argmax(expected)] - expected[argmax(found)]);
        assert!(gap < TIE * size, "{name}: another top token at position {position}, {gap} below that of the CPU");
    }
    let error = nmse(&found, &expected);
    assert!(error <= MAX_NMSE, "{name}: squared error {error:e} of the logits");
    error
}

/// Whether some matrix of the shape can have the type.
fn fits(shape: &Shape, quant_type: QuantType) -> bool {
    shape.widths().iter().any(|width| width.is_multiple_of(quant_type.block_len()))
}

#[test]
#[ignore = "needs a GPU"]
fn every_type_in_every_shape() {
    for &quant_type in QuantType::ALL {
        let fitting = SHAPES.iter().filter(|shape| fits(shape, quant_type));
        let errors: Vec<f64> = fitting.map(|shape| check(shape, &[quant_type], |_| ())).collect();
        assert!(errors.len() >= 4);
        println!("{}: squared error at most {:.1e}", quant_type.name(), errors.into_iter().fold(0.0, f64::max));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn types_may_be_mixed() {
    for shape in &SHAPES {
        check(shape, QuantType::ALL, |_| ());
    }
}

/// Combinations that no architecture has, but stages compute.
#[test]
#[ignore = "needs a GPU"]
fn pairings_norms_and_activations() {
    for quant_type in [QuantType::F16, QuantType::Q8_0, QuantType::Q4_K] {
        for shape in SHAPES.iter().filter(|shape| fits(shape, quant_type)) {
            for pairing in [RopePairing::Adjacent, RopePairing::Halves] {
                for (norm, activation) in [(Norm::Rms, Activation::Gelu), (Norm::Layer, Activation::Silu)] {
                    let shape = Shape { norm_biases: norm == Norm::Layer, ..*shape };
                    check(&shape, &[quant_type], |desc| {
                        desc.rope.pairing = pairing;
                        (desc.norm, desc.activation) = (norm, activation);
                    });
                }
            }
        }
    }
}

/// What an architecture may have beyond a `llama`, each alone.
fn features() -> Vec<(&'static str, Features)> {
    let base = Features::default;
    let kind = |freq_base, scaling, attn_factor| RopeKind { freq_base, scaling, attn_factor };
    let kinds = vec![
        kind(10_000.0, RopeScaling::Linear(4.0), 1.0),
        kind(500.0, RopeScaling::Linear(1.0), 1.2),
        kind(10_000.0, RopeScaling::Yarn { factor: 8.0, beta_fast: 32.0, beta_slow: 1.0 }, 0.9),
    ];
    let layers = |first: (Option<usize>, Option<usize>), second: (Option<usize>, Option<usize>)| {
        [first, second].map(|(window, rope)| LayerDesc { window, rope }).to_vec()
    };
    let ungated = Activation::GeluUngated;
    vec![
        ("norm of heads", Features { qk_norm: Some(QkNorm::Head), ..base() }),
        ("norm of heads, halves", Features { qk_norm: Some(QkNorm::Head), pairing: RopePairing::Halves, ..base() }),
        ("norm of rows", Features { qk_norm: Some(QkNorm::Row), ..base() }),
        ("norms after", Features { post_norm: true, ..base() }),
        ("norms only after", Features { pre_norm: false, post_norm: true, residual_scale: 0.5, ..base() }),
        ("a window of 1", Features { layers: layers((Some(1), Some(0)), (None, Some(0))), ..base() }),
        ("a window of 64", Features { layers: layers((None, Some(0)), (Some(64), Some(0))), ..base() }),
        ("two windows", Features { layers: layers((Some(33), Some(0)), (Some(100), Some(0))), ..base() }),
        ("sinks", Features { sinks: true, ..base() }),
        (
            "sinks and a window",
            Features { sinks: true, layers: layers((Some(20), Some(0)), (None, Some(0))), ..base() },
        ),
        ("capped scores", Features { attn_softcap: Some(1.5), ..base() }),
        ("capped logits", Features { logit_softcap: Some(2.0), logit_scale: 0.125, ..base() }),
        (
            "kinds of rope",
            Features { rope_kinds: kinds.clone(), layers: layers((None, Some(2)), (None, Some(1))), ..base() },
        ),
        ("divisors", Features { rope_kinds: kinds, rope_freqs: true, n_ctx_orig: 64, ..base() }),
        ("a layer without rope", Features { layers: layers((None, None), (None, Some(0))), ..base() }),
        ("factors", Features { attn_scale: Some(0.2), embd_scale: 12.0, residual_scale: 0.22, ..base() }),
        (
            "learned positions",
            Features { learned_positions: Some(256), layers: layers((None, None), (None, None)), ..base() },
        ),
        ("no gate, with biases", Features { activation: ungated, ffn_biases: true, norm: Norm::Layer, ..base() }),
        ("a clamped gate", Features { activation: Activation::SiluClamped, ffn_biases: true, ..base() }),
        ("tensors in one", Features { fused: true, activation: Activation::Gelu, ..base() }),
    ]
}

#[test]
#[ignore = "needs a GPU"]
fn every_feature_alone() {
    for (name, features) in features() {
        let mut worst: f64 = 0.0;
        for (i, shape) in SHAPES.iter().enumerate() {
            // Biases of norms where there may be some, and not everywhere.
            let shape = Shape { norm_biases: features.norm == Norm::Layer && i % 2 == 0, ..*shape };
            worst = worst.max(check_features(&shape, &[QuantType::F16, QuantType::Q8_0], &features));
        }
        println!("{name}: squared error at most {worst:.1e}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn features_in_any_combination() {
    let random = &mut Random(20);
    for (i, shape) in SHAPES.iter().cycle().take(48).enumerate() {
        let mut features = Features::random(random);
        if let Some(experts) = &mut features.experts {
            // A choice between experts that are nearly equal may well differ.
            experts.n_expert_used = experts.n_expert;
        }
        let shape = Shape { norm_biases: features.norm == Norm::Layer && i % 2 == 0, n_layer: 3, ..*shape };
        let types = [QuantType::F16, QuantType::Q8_0, QuantType::F32];
        let error = check_features(&shape, &types[i % 3..], &features);
        println!("{i}: squared error {error:.1e}: {features:?}");
    }
}

/// Blocks of the kernel that runs a step hand over to each other without a barrier: in whatever order they come.
#[test]
#[ignore = "needs a GPU"]
fn delays_change_nothing() {
    let tokens = &tokens()[..80];
    let folder = Folder::new();
    for shape in &SHAPES {
        for quant_type in [QuantType::F16, QuantType::Q8_0, QuantType::BF16, QuantType::F32] {
            let path = folder.write("model.gguf", &draft(shape, &[quant_type], 5).writer());
            let mut backend = step_backend(&path, |_| ());
            let expected = all_logits(&mut backend, 0, tokens, 1);
            for (nanoseconds, sequence) in [1_000, 10_000, 100_000].into_iter().zip(1..) {
                assert!(backend.delay_steps(nanoseconds), "{shape:?} is not run as one kernel");
                let found = all_logits(&mut backend, sequence, tokens, 1);
                let same = found.iter().zip(&expected).all(|(found, expected)| bits(found) == bits(expected));
                assert!(same, "{shape:?} in {}, delays of up to {nanoseconds} ns", quant_type.name());
            }
        }
    }
}

/// A half times 2^`power`, or zero where that is not a normal one.
fn shifted(bits: u16, power: i32) -> u16 {
    let exponent = i32::from(bits >> 10 & 31);
    let moved = exponent + power;
    if exponent == 0 || moved <= 0 {
        return 0;
    }
    assert!(moved < 31, "too large for a half");
    bits & 0x83ff | (moved as u16) << 10
}

/// Vectors that blocks hand to each other as halves, where halves do not do: what the gate and attention give is smaller or larger than
/// what is multiplied as it is, since what they take is. The matrices behind them make up for it in part.
#[test]
#[ignore = "needs a GPU"]
fn vectors_beyond_the_range_of_halves() {
    const MOST: i32 = 8;
    let has_whole_units =
        |shape: &&Shape| shape.n_ff.is_multiple_of(64) && (shape.n_head * shape.head_dim).is_multiple_of(64);
    for shape in SHAPES.iter().filter(has_whole_units) {
        for (norm, behind, power) in
            [("ffn_norm", "ffn_down", -6), ("ffn_norm", "ffn_down", 8), ("attn_norm", "attn_output", -10)]
        {
            let mut draft = draft(shape, &[QuantType::F16], 3);
            for tensor in &mut draft.tensors {
                if tensor.name.ends_with(&format!("{norm}.weight")) {
                    for weight in tensor.data.as_chunks_mut::<4>().0 {
                        *weight = (f32::from_le_bytes(*weight) * 2f32.powi(power)).to_le_bytes();
                    }
                } else if tensor.name.ends_with(&format!("{behind}.weight")) {
                    for half in tensor.data.as_chunks_mut::<2>().0 {
                        *half = shifted(u16::from_le_bytes(*half), (-power).clamp(-MOST, MOST)).to_le_bytes();
                    }
                }
            }
            check_draft(shape, &[QuantType::F16], &draft, |_| ());
        }
    }
}

/// Contexts of one chunk and of many, which blocks of the kernel share, with windows, sinks and capped scores: as one kernel, with
/// delays and without, beside kernel by kernel.
#[test]
#[ignore = "needs a GPU"]
fn long_contexts_as_one_kernel() {
    const LONGEST: usize = 20_000;
    const N_SINGLE: usize = 40;
    let tokens: Vec<u32> = (0..LONGEST as u32).map(|i| (i * 379 + 11) % N_VOCAB as u32).collect();
    let folder = Folder::new();
    let layers = |window| [Some(window), None].map(|window| LayerDesc { window, rope: Some(0) }).to_vec();
    let features = [
        Features { sinks: true, layers: layers(700), ..Features::default() },
        Features::default(),
        Features { attn_softcap: Some(1.5), layers: layers(513), ..Features::default() },
        Features { sinks: true, attn_softcap: Some(2.0), ..Features::default() },
        Features { qk_norm: Some(QkNorm::Head), layers: layers(70), ..Features::default() },
    ];
    // Twice, so that no shape has the same features again.
    for (shape, features) in SHAPES.iter().cycle().take(2 * SHAPES.len()).zip(features.iter().cycle()) {
        // Where pages come through the rings: nowhere, or everywhere if heads have such a width.
        let can_stream = [64, 128].contains(&shape.head_dim.next_multiple_of(32));
        let from = if can_stream { [usize::MAX, 0].as_slice() } else { &[usize::MAX] };
        let runs: Vec<_> =
            from.iter().flat_map(|from| [0, 2_000, 30_000].map(|nanoseconds| (*from, nanoseconds))).collect();
        let path = folder.write("model.gguf", &draft_with(shape, features, &[QuantType::F16], 9).writer());
        let describe = |desc: &mut ModelDesc| features.describe(desc);
        let mut stages = backend_for(&path, &gpu(), (LONGEST, MAX_ROWS, DecodePath::Stages), describe).unwrap();
        let mut step = step_backend_for(&path, LONGEST, describe);
        // In the first page and chunk; behind it; in the middle of one; up to more than are put together at a time, where kv heads are few.
        for (n_tokens, sequence) in [60, 530, 1_300, 4_110, 16_400, LONGEST].into_iter().zip((0..).step_by(runs.len()))
        {
            let tokens = &tokens[..n_tokens];
            let expected = last_logits(&mut *stages, sequence, tokens, N_SINGLE);
            for (&(from, nanoseconds), sequence) in runs.iter().zip(sequence..) {
                assert!(step.delay_steps(nanoseconds), "{shape:?} is not run as one kernel");
                step.stream_pages_from(from);
                let streams = step.step_run(1, n_tokens as u32 - 1).is_some_and(|run| run.streams_pages);
                assert_eq!(streams, from == 0, "{n_tokens} positions: {shape:?}");
                let found = last_logits(&mut step, sequence, tokens, N_SINGLE);
                let same = found.iter().zip(&expected).all(|(found, expected)| bits(found) == bits(expected));
                assert!(
                    same,
                    "{n_tokens} positions, pages from {from}, delays of up to {nanoseconds} ns: {shape:?}, {features:?}"
                );
            }
        }
    }
}

/// Sequences that decode together in one kernel, from step to step others and other numbers of them, at positions of the first chunk
/// and of later ones: with delays and without, beside each of them alone kernel by kernel.
#[test]
#[ignore = "needs a GPU"]
fn rows_as_one_kernel() {
    const N_SINGLE: usize = 40;
    /// Tokens of each sequence before the first step.
    const N_BEFORE: [usize; 8] = [1, 30, 60, 500, 130, 1_100, 7, 700];
    /// Sequences of the steps.
    const N_ROWS: [usize; 9] = [2, 3, 8, 5, 1, 4, 7, 2, 6];
    let tokens: Vec<u32> = (0..1_300).map(|i| (i * 379 + 11) % N_VOCAB as u32).collect();
    let folder = Folder::new();
    let layers = |window| [Some(window), None].map(|window| LayerDesc { window, rope: Some(0) }).to_vec();
    let features = [
        Features::default(),
        Features { qk_norm: Some(QkNorm::Head), layers: layers(70), ..Features::default() },
        Features { sinks: true, attn_softcap: Some(1.5), activation: Activation::GeluUngated, ..Features::default() },
        Features { residual_scale: 0.22, logit_softcap: Some(2.0), embd_scale: 40_000.0, ..Features::default() },
        Features { ffn_biases: true, layers: layers(513), ..Features::default() },
        Features { post_norm: true, ..Features::default() },
        Features { post_norm: true, pre_norm: false, residual_scale: 0.22, ..Features::default() },
        Features {
            post_norm: true,
            qk_norm: Some(QkNorm::Head),
            logit_softcap: Some(2.0),
            layers: layers(70),
            ..Features::default()
        },
    ];
    let types = [
        QuantType::F16,
        QuantType::Q8_0,
        QuantType::Q4_K,
        QuantType::Q6_K,
        QuantType::Q5_1,
        QuantType::BF16,
        QuantType::F32,
    ];
    let (mut n, mut n_steps) = (0, 0);
    for shape in SHAPES.iter().filter(|shape| shape.head_dim <= 128) {
        for &quant_type in types.iter().filter(|&&quant_type| fits(shape, quant_type)) {
            let features = &features[n % features.len()];
            n += 1;
            let path = folder.write("model.gguf", &draft_with(shape, features, &[quant_type], 11).writer());
            let describe = |desc: &mut ModelDesc| features.describe(desc);
            // Of sequence i the tokens from i on.
            let of = |i: usize| &tokens[i..i + N_BEFORE[i] + N_SINGLE];
            let expected: Vec<_> = {
                let mut stages = backend(&path, &gpu(), DecodePath::Stages, describe).unwrap();
                (0..N_BEFORE.len()).map(|i| last_logits(&mut *stages, i as u64, of(i), N_SINGLE)).collect()
            };
            let mut step = step_backend(&path, describe);
            for nanoseconds in [0, 2_000, 30_000] {
                assert!(step.delay_steps(nanoseconds), "{shape:?} is not run as one kernel");
                for (sequence, &n_before) in N_BEFORE.iter().enumerate() {
                    let row = |(position, &token): (usize, &u32)| Row {
                        token,
                        position: position as u32,
                        sequence: sequence as u64,
                        logits: false,
                    };
                    let rows: Vec<Row> = of(sequence)[..n_before].iter().enumerate().map(row).collect();
                    step.sequence_reserve(sequence as u64, of(sequence).len()).unwrap();
                    rows.chunks(MAX_ROWS).for_each(|rows| step.forward(rows).unwrap());
                }
                let mut n_had = [0; N_BEFORE.len()];
                for (round, &n_rows) in N_ROWS.iter().cycle().take(3 * N_SINGLE).enumerate() {
                    let company = (0..n_rows).map(|i| (3 * i + round) % N_BEFORE.len());
                    let company: Vec<usize> = company.filter(|&i| n_had[i] < N_SINGLE).collect();
                    let row = |&i: &usize| {
                        let position = N_BEFORE[i] + n_had[i];
                        Row { token: of(i)[position], position: position as u32, sequence: i as u64, logits: true }
                    };
                    let rows: Vec<Row> = company.iter().map(row).collect();
                    if rows.is_empty() {
                        continue;
                    }
                    let longest = rows.iter().map(|row| row.position).max().unwrap();
                    n_steps += usize::from(rows.len() > 1 && step.step_run(rows.len(), longest).is_some());
                    step.forward(&rows).unwrap_or_else(|error| panic!("{error}"));
                    for (row, &i) in company.iter().enumerate() {
                        let same = bits(step.logits(row).unwrap()) == bits(&expected[i][n_had[i]]);
                        let name = format!("{shape:?} in {}, {features:?}", quant_type.name());
                        assert!(
                            same,
                            "row {row} of {} in round {round}, delays of {nanoseconds} ns: {name}",
                            rows.len()
                        );
                        n_had[i] += 1;
                    }
                }
                (0..N_BEFORE.len()).for_each(|i| step.sequence_free(i as u64));
            }
        }
    }
    assert!(n_steps > 1_000, "only {n_steps} steps of several sequences were run as one kernel");
}

/// Mixtures of experts, whose choice on the CPU may differ where two are nearly equal: as one kernel, with delays and without,
/// beside kernel by kernel.
#[test]
#[ignore = "needs a GPU"]
fn mixtures_as_one_kernel() {
    let tokens = &tokens()[..70];
    let folder = Folder::new();
    let types = [QuantType::F16, QuantType::Q8_0, QuantType::MXFP4, QuantType::Q4_K, QuantType::Q6_K, QuantType::Q5_0];
    // Experts, and how many of them are used: all, one, odd and even numbers, more than a block has warps.
    let mixtures = [(32, 4), (128, 8), (9, 3), (4, 2), (5, 1), (40, 12), (6, 6), (256, 2), (17, 5)];
    let activations = [Activation::Silu, Activation::SiluClamped, Activation::GeluUngated, Activation::Gelu];
    let (mut n, mut n_compared) = (0, 0);
    for shape in &SHAPES {
        for &quant_type in types.iter().filter(|&&quant_type| fits(shape, quant_type)) {
            let (n_expert, n_expert_used) = mixtures[n % mixtures.len()];
            let features = Features {
                experts: Some(Experts { n_expert, n_expert_used }),
                router: Some(QuantType::F32),
                activation: activations[n / 2 % activations.len()],
                ffn_biases: n % 3 != 0,
                pre_norm: n % 5 != 4,
                post_norm: n % 5 >= 3,
                residual_scale: [1.0, 0.22][n % 7 / 6],
                sinks: n % 2 == 0,
                ..Features::default()
            };
            n += 1;
            let shape = Shape { n_layer: 3, ..*shape };
            let path = folder.write("model.gguf", &draft_with(&shape, &features, &[quant_type], 7).writer());
            let describe = |desc: &mut ModelDesc| features.describe(desc);
            let expected = {
                let mut stages = backend(&path, &gpu(), DecodePath::Stages, describe).unwrap();
                all_logits(&mut *stages, 0, tokens, 1)
            };
            let name = format!("{n_expert_used} of {n_expert} in {}, {shape:?}, {features:?}", quant_type.name());
            let mut step = step_backend(&path, describe);
            for (nanoseconds, sequence) in [0, 2_000, 30_000].into_iter().zip(0..) {
                assert!(step.delay_steps(nanoseconds), "not run as one kernel: {name}");
                let found = all_logits(&mut step, sequence, tokens, 1);
                for (position, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let differ = found.iter().zip(expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                    assert_eq!(differ, 0, "position {position}, delays of up to {nanoseconds} ns: {name}");
                }
            }
            n_compared += 1;
        }
    }
    assert!(n_compared >= 30);
}

/// Mixtures of experts, single rows of which take the matrix of each expert, few rows groups that share it, and many another product:
/// in batches of any size, of one sequence and of several.
#[test]
#[ignore = "needs a GPU"]
fn mixtures_in_any_company() {
    const N_SEQUENCES: usize = 32;
    const N_STEPS: usize = 5;
    let tokens = &tokens()[..140];
    let folder = Folder::new();
    let types = [QuantType::MXFP4, QuantType::Q4_K, QuantType::F16, QuantType::Q6_K, QuantType::F32, QuantType::Q8_0];
    let mixtures = [(32, 4), (128, 8), (9, 3), (4, 2), (5, 1), (40, 12)];
    for (n, &(n_expert, n_expert_used)) in mixtures.iter().enumerate() {
        let features = Features {
            experts: Some(Experts { n_expert, n_expert_used }),
            router: Some([QuantType::F32, QuantType::F16][n % 3 / 2]),
            activation: [Activation::SiluClamped, Activation::Silu, Activation::GeluUngated][n % 3],
            ffn_biases: n % 2 == 0,
            post_norm: n % 3 == 1,
            ..Features::default()
        };
        let shape = Shape { n_layer: 2, ..SHAPES[[3, 4, 6][n % 3]] };
        let path = folder.write("model.gguf", &draft_with(&shape, &features, &[types[n]], 9).writer());
        let mut backend = backend(&path, &gpu(), DecodePath::Stages, |desc| features.describe(desc)).unwrap();
        let name = format!("{n_expert_used} of {n_expert} in {}", types[n].name());
        let alone = all_logits(&mut *backend, 0, tokens, 1);
        for chunk in [2, 3, 5, 8, 9, 16, 31, 64, tokens.len()] {
            let found = all_logits(&mut *backend, 0, tokens, chunk);
            let same = found.iter().zip(&alone).all(|(found, alone)| bits(found) == bits(alone));
            assert!(same, "{name}: other logits in batches of {chunk}");
        }
        // Sequence i has the tokens from i on.
        let of = |i: usize| &tokens[i..i + N_STEPS];
        let alone: Vec<_> = (0..N_SEQUENCES).map(|i| all_logits(&mut *backend, 0, of(i), 1)).collect();
        for n_sequences in [2, 3, 4, 8, 13, N_SEQUENCES] {
            for i in 0..n_sequences {
                backend.sequence_reserve(i as u64, N_STEPS).unwrap();
            }
            for step in 0..N_STEPS {
                let row = |i| Row { token: of(i)[step], position: step as u32, sequence: i as u64, logits: true };
                backend.forward(&(0..n_sequences).map(row).collect::<Vec<_>>()).unwrap();
                for (i, alone) in alone.iter().enumerate().take(n_sequences) {
                    let same = bits(backend.logits(i).unwrap()) == bits(&alone[step]);
                    assert!(same, "{name}: other logits of sequence {i} among {n_sequences}");
                }
            }
            (0..n_sequences).for_each(|i| backend.sequence_free(i as u64));
        }
    }
}

/// The files themselves, on the CPU: every shape and type loads, and a change of the weights changes the logits.
#[test]
fn random_models_run_on_the_cpu() {
    let folder = Folder::new();
    let logits = |shape: &Shape, quant_type, seed| {
        let path = folder.write("model.gguf", &draft(shape, &[quant_type, QuantType::F32], seed).writer());
        let mut backend = backend(&path, "cpu", DecodePath::Auto, |_| ()).unwrap_or_else(|error| panic!("{error}"));
        all_logits(&mut *backend, 0, &tokens()[..3], 3).concat()
    };
    for (i, shape) in SHAPES.iter().enumerate() {
        for &quant_type in QuantType::ALL.iter().filter(|&&quant_type| fits(shape, quant_type)).skip(i).step_by(5) {
            let (a, b) = (logits(shape, quant_type, 1), logits(shape, quant_type, 2));
            let size = (a.iter().map(|x| x * x).sum::<f32>() / a.len() as f32).sqrt();
            assert!((0.05..20.0).contains(&size), "{shape:?} in {}: logits of {size}", quant_type.name());
            assert_ne!(a, b);
        }
    }
}
