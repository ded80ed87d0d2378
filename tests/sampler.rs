//! The sampler against naive references, and its distribution.
#![allow(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

use kigo::sampler::{Sampler, SamplingParams, rng};
use kigo::{Error, Status};
use proptest::prelude::*;

#[path = "sampler/steps.rs"]
mod steps;

fn all() -> SamplingParams {
    SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplingParams::default() }
}

fn sampler(params: SamplingParams) -> Sampler {
    Sampler::new(params).unwrap()
}

/// Draw `n` of `seed` as a number in 0..1.
fn uniform(seed: u64, n: u64) -> f64 {
    rng::draw(seed, n) as f64 / 2f64.powi(64)
}

/// Logits of a made-up model, uniform in -8..8.
fn logits(n_vocab: usize, seed: u64) -> Vec<f32> {
    (0..n_vocab as u64).map(|n| uniform(seed, n) as f32 * 16.0 - 8.0).collect()
}

/// Tokens that `n` draws give.
fn support(params: SamplingParams, logits: &[f32], n: usize) -> Vec<u32> {
    let mut sampler = sampler(params);
    let mut tokens: Vec<u32> = (0..n).map(|_| sampler.sample(logits, &[]).unwrap()).collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

/// Cases T11, T12 and T15: every parameter at and around the ends of its range.
#[test]
fn parameters_outside_their_range_are_named() {
    let d = SamplingParams::default;
    let good = [
        d(),
        SamplingParams { temperature: 0.0, ..d() },
        SamplingParams { temperature: -0.0, ..d() },
        SamplingParams { temperature: 2.0, ..d() },
        SamplingParams { temperature: 1e-5, ..d() },
        SamplingParams { temperature: 1e-40, ..d() },
        SamplingParams { top_k: 0, ..d() },
        SamplingParams { top_k: u32::MAX, ..d() },
        SamplingParams { top_p: 1.0, ..d() },
        SamplingParams { min_p: 0.0, ..d() },
        SamplingParams { min_p: 1.0, ..d() },
        SamplingParams { repeat_penalty: 10.0, ..d() },
        SamplingParams { repeat_last_n: u32::MAX, ..d() },
    ];
    for params in good {
        assert!(params.validate().is_ok(), "{params:?}");
        assert!(sampler(params.clone()).sample(&logits(100, 1), &[1, 2, 3]).unwrap() < 100, "{params:?}");
    }
    let mut bad = Vec::new();
    for x in [-1.0, -1e-40, 2.000_001, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        bad.push(("temperature", SamplingParams { temperature: x, ..d() }));
        bad.push(("min_p", SamplingParams { min_p: x, ..d() }));
    }
    for x in [0.0, -0.1, 1.000_001, 1.1, f32::NAN, f32::INFINITY] {
        bad.push(("top_p", SamplingParams { top_p: x, ..d() }));
    }
    for x in [0.0, -1.0, 10.001, f32::NAN, f32::INFINITY] {
        bad.push(("repeat_penalty", SamplingParams { repeat_penalty: x, ..d() }));
    }
    for (name, params) in bad {
        let error = Sampler::new(params.clone()).err().unwrap_or_else(|| panic!("{params:?}"));
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.to_string().starts_with(&format!("{name}: expected ")), "{error}");
    }
}

#[test]
fn greedy_takes_the_lowest_id_of_the_largest() {
    let mut greedy = sampler(SamplingParams { temperature: 0.0, ..SamplingParams::default() });
    assert_eq!(greedy.sample(&[0.0, 3.0, 3.0, -1.0, 3.0], &[]).unwrap(), 1);
    assert_eq!(greedy.sample(&[-0.0, 0.0], &[]).unwrap(), 0);
    assert_eq!(greedy.sample(&[f32::MIN], &[]).unwrap(), 0);
    assert_eq!(greedy.drawn(), 0);
}

#[test]
fn one_candidate_is_always_left() {
    let logits = logits(1000, 3);
    let best = sampler(SamplingParams { temperature: 0.0, ..all() }).sample(&logits, &[]).unwrap();
    for params in [
        SamplingParams { top_k: 1, ..all() },
        SamplingParams { top_p: f32::MIN_POSITIVE, ..all() },
        SamplingParams { min_p: 1.0, ..all() },
        SamplingParams { temperature: 1e-5, ..all() },
        SamplingParams { temperature: 1e-40, ..all() },
    ] {
        assert_eq!(support(params.clone(), &logits, 50), [best], "{params:?}");
    }
}

#[test]
fn equal_logits_are_cut_by_id() {
    let flat = [1.5f32; 64];
    assert_eq!(support(SamplingParams { top_k: 3, ..all() }, &flat, 200), [0, 1, 2]);
    assert_eq!(support(SamplingParams { top_p: 0.0625, ..all() }, &flat, 200), [0, 1, 2, 3]);
    assert_eq!(support(SamplingParams { min_p: 1.0, ..all() }, &flat, 4000).len(), 64);
    // -0 and 0 are equal.
    assert_eq!(support(SamplingParams { top_k: 1, ..all() }, &[-0.0, 0.0], 20), [0]);
}

/// Case T14: a logit that is not finite is an error, wherever it is, and costs no draw.
#[test]
fn logits_that_are_not_finite_are_refused() {
    for temperature in [0.0, 0.8] {
        let mut sampler = sampler(SamplingParams { temperature, ..SamplingParams::default() });
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 1, 498, 999] {
                let mut logits = logits(1000, 5);
                logits[at] = bad;
                match sampler.sample(&logits, &[]) {
                    Err(Error::Numeric { index, found, .. }) => {
                        assert!(index == at && found.to_bits() == bad.to_bits())
                    }
                    other => panic!("{bad} at {at}: {other:?}"),
                }
            }
        }
        assert_eq!(sampler.sample(&[f32::NAN; 8], &[]).unwrap_err().status(), Status::Numeric);
        assert_eq!(sampler.sample(&[], &[]).unwrap_err().status(), Status::Internal);
        assert_eq!(sampler.drawn(), 0);
        assert!(sampler.sample(&[f32::MAX, f32::MIN, 0.0], &[]).unwrap() < 3);
    }
}

#[test]
fn the_penalty_acts_once_per_token_of_the_window() {
    let greedy = |repeat_penalty, repeat_last_n, logits: &[f32], recent: &[u32]| {
        let params = SamplingParams { temperature: 0.0, repeat_penalty, repeat_last_n, ..all() };
        sampler(params).sample(logits, recent).unwrap()
    };
    // 4 / 2 = 2 < 3; twice would be 1 < 1.5.
    assert_eq!(greedy(2.0, 64, &[4.0, 3.0, 1.5], &[0]), 1);
    assert_eq!(greedy(2.0, 64, &[4.0, 1.5, 1.0], &[0, 0, 0]), 0);
    // -1 * 2 = -2 < -1.5.
    assert_eq!(greedy(2.0, 64, &[-1.0, -1.5], &[0]), 1);
    // Below 1 it rewards: 1 / 0.25 = 4, -4 * 0.25 = -1.
    assert_eq!(greedy(0.25, 64, &[1.0, 3.0], &[0]), 0);
    assert_eq!(greedy(0.25, 64, &[-4.0, -3.0], &[0]), 0);
    // Outside the window, or off.
    assert_eq!(greedy(2.0, 2, &[4.0, 3.0, 1.5], &[0, 2, 2]), 0);
    assert_eq!(greedy(2.0, 0, &[4.0, 3.0], &[0]), 0);
    // Tokens that the vocabulary does not have.
    assert_eq!(greedy(2.0, 64, &[4.0, 3.0], &[u32::MAX, 2, 7]), 0);
    // The largest logits and the tiniest penalty stay numbers.
    assert_eq!(greedy(f32::MIN_POSITIVE, 64, &[f32::MAX, f32::MIN], &[0, 1]), 0);
    let mut wild = sampler(SamplingParams { repeat_penalty: f32::MIN_POSITIVE, ..SamplingParams::default() });
    assert_eq!(wild.sample(&[f32::MAX, f32::MIN, 1.0], &[0, 1, 2]).unwrap(), 0);
}

/// Case T18: the same seed gives the same tokens, also from the middle.
#[test]
fn draws_are_a_function_of_seed_and_count() {
    let logits = logits(500, 11);
    let run = |seed| {
        let mut sampler = sampler(SamplingParams { seed, ..all() });
        (0..200).map(|_| sampler.sample(&logits, &[]).unwrap()).collect::<Vec<u32>>()
    };
    let tokens = run(42);
    assert!((0..50).all(|_| run(42) == tokens));
    assert_ne!(run(43), tokens);
    let mut resumed = sampler(SamplingParams { seed: 42, ..all() });
    resumed.set_drawn(150);
    let rest: Vec<u32> = (150..200).map(|_| resumed.sample(&logits, &[]).unwrap()).collect();
    assert_eq!(rest, tokens[150..]);
    assert_eq!(resumed.drawn(), 200);
}

/// Chi-square of 40,000 draws against the softmax at several temperatures.
#[test]
fn draws_follow_the_softmax() {
    let logits = [2.0f32, 1.0, 0.5, 0.0, -0.5, -1.0, 1.5, 0.25];
    for temperature in [0.5f32, 1.0, 2.0] {
        for seed in [1, 2, 3] {
            let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / f64::from(temperature)).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut counts = [0.0; 8];
            let mut sampler = sampler(SamplingParams { temperature, seed, ..all() });
            for _ in 0..40_000 {
                counts[sampler.sample(&logits, &[]).unwrap() as usize] += 1.0;
            }
            let chi2: f64 =
                weights.iter().zip(counts).map(|(w, c)| (c - w / total * 4e4).powi(2) / (w / total * 4e4)).sum();
            // 7 degrees of freedom: probability 0.0001 above 29.9.
            assert!(chi2 < 29.9, "temperature {temperature}, seed {seed}: chi-square {chi2}, {counts:?}");
        }
    }
}

/// The tokens that may be drawn and their probabilities, by sorting everything and without any of the sampler's code.
fn reference(params: &SamplingParams, logits: &[f32], recent: &[u32]) -> Vec<(u32, f64)> {
    let window = &recent[recent.len().saturating_sub(params.repeat_last_n as usize)..];
    let mut tokens: Vec<(u32, f64)> = logits
        .iter()
        .enumerate()
        .map(|(id, &logit)| {
            let id = id as u32;
            let penalty = params.repeat_penalty;
            match (window.contains(&id), logit > 0.0) {
                (false, _) => (id, f64::from(logit)),
                (true, true) => (id, f64::from(logit / penalty)),
                (true, false) => (id, f64::from(logit * penalty)),
            }
        })
        .collect();
    tokens.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap());
    if params.top_k > 0 {
        tokens.truncate(params.top_k as usize);
    }
    let softmax = |tokens: &[(u32, f64)], temperature: f64| -> Vec<f64> {
        let weights: Vec<f64> = tokens.iter().map(|t| ((t.1 - tokens[0].1) / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|w| w / total).collect()
    };
    if params.top_p < 1.0 {
        let mut left = f64::from(params.top_p);
        let mut kept = 0;
        for p in softmax(&tokens, 1.0) {
            kept += 1;
            left -= p;
            if left <= 0.0 {
                break;
            }
        }
        tokens.truncate(kept);
    }
    let probabilities = softmax(&tokens, 1.0);
    let kept = probabilities.iter().filter(|&&p| p >= f64::from(params.min_p) * probabilities[0]).count();
    tokens.truncate(kept.max(1));
    let probabilities = softmax(&tokens, f64::from(params.temperature));
    tokens.iter().zip(probabilities).map(|(t, p)| (t.0, p)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Each draw is the token at which the reference's cumulative probability passes the random number.
    #[test]
    fn draws_match_the_reference(
        seed in any::<u64>(),
        n_vocab in 1usize..400,
        coarse in any::<bool>(),
        temperature in 0.05f32..2.0,
        top_k in 0u32..50,
        top_p in prop_oneof![Just(1.0f32), 0.01f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..1.0],
        repeat_penalty in prop_oneof![Just(1.0f32), 0.5f32..2.0],
        recent in prop::collection::vec(0u32..500, 0..100),
    ) {
        let mut logits = logits(n_vocab, seed);
        if coarse {
            logits.iter_mut().for_each(|l| *l = l.round());
        }
        let params = SamplingParams { temperature, top_k, top_p, min_p, repeat_penalty, seed, ..SamplingParams::default() };
        let reference = reference(&params, &logits, &recent);
        let mut sampler = sampler(params);
        for n in 0..8 {
            let u = uniform(seed, n);
            let token = sampler.sample(&logits, &recent).unwrap();
            let at = reference.iter().position(|r| r.0 == token);
            prop_assert!(at.is_some(), "token {token} is none of {reference:?}");
            let before: f64 = reference[..at.unwrap()].iter().map(|r| r.1).sum();
            let after = before + reference[at.unwrap()].1;
            prop_assert!(before - 1e-9 <= u && u <= after + 1e-9, "u {u} outside {before}..{after}");
        }
    }

    /// A permutation of the vocabulary permutes the tokens, where no logits are equal.
    #[test]
    fn permutations_carry_over(seed in any::<u64>(), shift in 1usize..299, top_k in 0u32..50, top_p in 0.1f32..1.0) {
        let logits = logits(300, seed);
        let mut sorted = logits.clone();
        sorted.sort_by(f32::total_cmp);
        prop_assume!(sorted.windows(2).all(|w| w[0] != w[1]));
        let rotated: Vec<f32> = (0..300).map(|i| logits[(i + shift) % 300]).collect();
        let params = SamplingParams { top_k, top_p, seed, ..SamplingParams::default() };
        let (mut a, mut b) = (sampler(params.clone()), sampler(params));
        for _ in 0..8 {
            let (x, y) = (a.sample(&logits, &[]).unwrap(), b.sample(&rotated, &[]).unwrap());
            prop_assert_eq!(x as usize, (y as usize + shift) % 300);
        }
    }
}

/// Buffers left from a larger vocabulary do not reach into a smaller one.
#[test]
fn a_sampler_can_change_vocabularies() {
    let mut reused = sampler(all());
    reused.sample(&logits(5000, 1), &[]).unwrap();
    let mut fresh = sampler(all());
    fresh.set_drawn(1);
    assert_eq!(reused.sample(&logits(50, 2), &[]).unwrap(), fresh.sample(&logits(50, 2), &[]).unwrap());
}

/// Not a benchmark: a bound that only a change of complexity breaks.
#[test]
fn large_vocabularies_are_quick() {
    for n_vocab in [49_152, 131_072, 262_144] {
        let logits = logits(n_vocab, 9);
        let d = SamplingParams::default;
        let dry = SamplingParams { dry_multiplier: 0.8, presence_penalty: 0.1, ..d() };
        let typical = SamplingParams { top_k: 0, typical_p: 0.9, ..d() };
        let sigma = SamplingParams { top_k: 0, top_n_sigma: 1.0, xtc_probability: 0.5, ..d() };
        let mirostat = SamplingParams { mirostat: true, ..d() };
        let mut cases = vec![d(), SamplingParams { top_k: 0, ..d() }, all(), dry];
        if n_vocab < 262_144 {
            cases.extend([typical, sigma, mirostat]);
        }
        for params in cases {
            let mut sampler = sampler(SamplingParams { repeat_penalty: 1.1, ..params.clone() });
            let recent: Vec<u32> = (0..4096).map(|n| n % 1000).collect();
            // The quickest of some, which other work on the machine does not disturb.
            let time = |_| {
                let start = std::time::Instant::now();
                sampler.sample(&logits, &recent).unwrap();
                start.elapsed()
            };
            let quickest = (0..20).map(time).min().unwrap();
            let SamplingParams { top_k, top_p, typical_p, top_n_sigma, dry_multiplier, mirostat, .. } = params;
            print!(
                "{n_vocab} logits, top_k {top_k}, top_p {top_p}, typical_p {typical_p}, top_n_sigma {top_n_sigma}, "
            );
            println!("dry {dry_multiplier}, mirostat {mirostat}: {quickest:?}");
            assert!(quickest.as_millis() < 50, "{n_vocab} logits, {params:?}: {quickest:?}");
        }
    }
}
