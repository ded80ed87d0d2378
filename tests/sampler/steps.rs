//! Every step of the sampler, in any order, against references that are as plain as can be.

use kigo::sampler::{Sampler, SamplingParams, Step, logprobs, rng};
use kigo::{Error, Status};
use proptest::prelude::*;

use super::{all, logits, sampler, support, uniform};

/// The candidates as a list of ids and logits, in f64 and in no order.
struct Plain {
    tokens: Vec<(u32, f64)>,
    temperature: f64,
}

impl Plain {
    fn sort(&mut self) {
        self.tokens.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    }

    /// Sorted, with their probabilities.
    fn softmax(&mut self) -> Vec<(u32, f64)> {
        self.sort();
        let largest = self.tokens[0].1;
        let weights: Vec<f64> = self.tokens.iter().map(|t| ((t.1 - largest) / self.temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        self.tokens.iter().zip(weights).map(|(t, w)| (t.0, w / total)).collect()
    }

    fn keep_first(&mut self, n: usize, min_keep: usize) {
        self.sort();
        self.tokens.truncate(n.max(min_keep));
    }

    fn change(&mut self, change: impl Fn(u32, f32) -> f32) {
        for (id, logit) in &mut self.tokens {
            let before = if self.temperature == 1.0 { *logit as f32 } else { (*logit / self.temperature) as f32 };
            *logit = f64::from(change(*id, before).clamp(f32::MIN, f32::MAX));
        }
        self.temperature = 1.0;
    }
}

fn last(tokens: &[u32], n: u32) -> &[u32] {
    &tokens[tokens.len().saturating_sub(n as usize)..]
}

/// How long a repetition token `next` would prolong, by comparing every end with every place.
fn repeated(tokens: &[u32], next: u32, breakers: &[u32]) -> usize {
    let n = tokens.len();
    let common = |at: usize| {
        (0..at)
            .take_while(|&i| tokens[at - 1 - i] == tokens[n - 1 - i] && !breakers.contains(&tokens[n - 1 - i]))
            .count()
    };
    (0..n).filter(|&at| tokens[at] == next).map(common).max().unwrap_or(0)
}

/// The tokens that may be drawn, with their probabilities; and the number of random numbers that were used before.
fn reference(
    params: &SamplingParams,
    logits: &[f32],
    recent: &[u32],
    breakers: &[u32],
    mut drawn: u64,
    limit: f64,
) -> (Vec<(u32, f64)>, u64) {
    let p = params;
    let min_keep = p.min_keep as usize;
    let bias = |id: u32| p.logit_bias.iter().find(|b| b.0 == id).map_or(0.0, |b| b.1);
    let tokens = (0..).zip(logits).map(|(id, logit)| (id, f64::from(logit + bias(id))));
    let mut plain = Plain { tokens: tokens.filter(|t| t.1 != f64::NEG_INFINITY).collect(), temperature: 1.0 };
    for step in p.samplers.iter() {
        match step {
            Step::Penalties => {
                let window = last(recent, p.repeat_last_n);
                plain.change(|id, logit| match window.iter().filter(|w| **w == id).count() {
                    0 => logit,
                    n => {
                        let scaled = if logit > 0.0 { logit / p.repeat_penalty } else { logit * p.repeat_penalty };
                        scaled - (n as f32 * p.frequency_penalty + p.presence_penalty)
                    }
                });
            }
            Step::Dry if p.dry_multiplier > 0.0 => {
                let window = last(recent, p.dry_penalty_last_n);
                plain.change(|id, logit| match repeated(window, id, breakers) {
                    0 => logit,
                    n if n < p.dry_allowed_length as usize || breakers.contains(&id) => logit,
                    n => {
                        let more = (n - p.dry_allowed_length as usize) as f64;
                        (f64::from(logit) - f64::from(p.dry_multiplier) * f64::from(p.dry_base).powf(more)) as f32
                    }
                });
            }
            _ if p.mirostat => {}
            Step::TopNSigma if p.top_n_sigma > 0.0 => {
                let n = plain.tokens.len() as f64;
                let mean = plain.tokens.iter().map(|t| t.1).sum::<f64>() / n;
                let deviation = (plain.tokens.iter().map(|t| (t.1 - mean).powi(2)).sum::<f64>() / n).sqrt();
                let largest = plain.tokens.iter().map(|t| t.1).fold(f64::MIN, f64::max);
                let least = largest - f64::from(p.top_n_sigma) * deviation;
                let n = plain.tokens.iter().filter(|t| t.1 >= least).count();
                plain.keep_first(n, min_keep);
            }
            Step::TopK if p.top_k > 0 => plain.keep_first(p.top_k as usize, min_keep),
            Step::TypicalP if p.typical_p < 1.0 => {
                let probabilities = plain.softmax();
                let surprise = |p: f64| -p.ln();
                let known = probabilities.iter().filter(|t| t.1 > 0.0);
                let entropy: f64 = known.map(|t| t.1 * surprise(t.1)).sum();
                let mut order: Vec<usize> = (0..probabilities.len()).collect();
                let distance = |i: usize| (surprise(probabilities[i].1) - entropy).abs();
                order.sort_by(|a, b| distance(*a).partial_cmp(&distance(*b)).unwrap().then(a.cmp(b)));
                let mut sum = 0.0;
                let mut kept = Vec::new();
                for i in order {
                    kept.push(plain.tokens[i]);
                    sum += probabilities[i].1;
                    if sum >= f64::from(p.typical_p) && kept.len() >= min_keep {
                        break;
                    }
                }
                plain.tokens = kept;
            }
            Step::TopP if p.top_p < 1.0 => {
                let mut sum = 0.0;
                let n = plain.softmax().iter().position(|t| {
                    sum += t.1;
                    sum >= f64::from(p.top_p)
                });
                plain.keep_first(n.map_or(usize::MAX, |n| n + 1), min_keep);
            }
            Step::MinP if p.min_p > 0.0 => {
                let probabilities = plain.softmax();
                let least = f64::from(p.min_p) * probabilities[0].1;
                let n = probabilities.iter().filter(|t| t.1 >= least).count();
                plain.keep_first(n, min_keep);
            }
            Step::Xtc if p.xtc_probability > 0.0 => {
                let hit = uniform(p.seed, drawn) < f64::from(p.xtc_probability);
                drawn += 1;
                let likely = plain.softmax().iter().filter(|t| t.1 >= f64::from(p.xtc_threshold)).count();
                let out = likely.saturating_sub(1);
                if hit && plain.tokens.len() - out >= min_keep {
                    plain.tokens.drain(..out);
                }
            }
            Step::Temperature if p.dynatemp_range > 0.0 => {
                let probabilities = plain.softmax();
                let entropy: f64 = -probabilities.iter().filter(|t| t.1 > 0.0).map(|t| t.1 * t.1.ln()).sum::<f64>();
                let (middle, range) = (f64::from(p.temperature), f64::from(p.dynatemp_range));
                if probabilities.len() > 1 {
                    let share = (entropy / (probabilities.len() as f64).ln()).clamp(0.0, 1.0);
                    let lowest = (middle - range).max(0.0);
                    let share = share.powf(f64::from(p.dynatemp_exponent));
                    plain.temperature *= (lowest + (middle + range - lowest) * share).max(1e-300);
                }
            }
            Step::Temperature => plain.temperature *= f64::from(p.temperature),
            _ => {}
        }
    }
    if p.mirostat {
        plain.temperature *= f64::from(p.temperature);
        let n = plain.softmax().iter().filter(|t| -t.1.log2() <= limit).count();
        plain.keep_first(n.max(1), min_keep);
    }
    (plain.softmax(), drawn)
}

/// Checks that `token` is where the cumulative probability of the reference passes the random number.
fn check(token: u32, reference: &[(u32, f64)], u: f64) -> Result<(), TestCaseError> {
    let at = reference.iter().position(|r| r.0 == token);
    prop_assert!(at.is_some(), "token {} is none of {:?}", token, reference);
    let before: f64 = reference[..at.unwrap()].iter().map(|r| r.1).sum();
    let after = before + reference[at.unwrap()].1;
    prop_assert!(before - 1e-9 <= u && u <= after + 1e-9, "u {} outside {}..{}", u, before, after);
    Ok(())
}

/// `off`, or something of `range`.
fn maybe(off: f32, range: std::ops::Range<f32>) -> impl Strategy<Value = f32> {
    prop_oneof![2 => Just(off), 1 => range]
}

prop_compose! {
    fn filters()(
        top_k in prop_oneof![Just(0u32), 1u32..50],
        top_p in maybe(1.0, 0.01..1.0),
        min_p in maybe(0.0, 0.001..0.9),
        typical_p in maybe(1.0, 0.05..1.0),
        top_n_sigma in maybe(0.0, 0.1..3.0),
        xtc_probability in maybe(0.0, 0.1..1.0),
        xtc_threshold in 0.0f32..0.6,
        min_keep in prop_oneof![3 => Just(1u32), 1 => 1u32..8],
        temperature in 0.05f32..2.0,
        (dynatemp_range, dynatemp_exponent) in (maybe(0.0, 0.1..1.9), 0.3f32..3.0),
    ) -> SamplingParams {
        SamplingParams { top_k, top_p, min_p, typical_p, top_n_sigma, xtc_probability, xtc_threshold, min_keep,
            temperature, dynatemp_range, dynatemp_exponent, ..SamplingParams::default() }
    }
}

prop_compose! {
    fn params()(
        filters in filters(),
        repeat_penalty in maybe(1.0, 0.5..2.0),
        presence_penalty in maybe(0.0, -2.0..2.0),
        frequency_penalty in maybe(0.0, -2.0..2.0),
        repeat_last_n in 0u32..70,
        dry_multiplier in maybe(0.0, 0.1..5.0),
        dry_base in 1.0f32..3.0,
        dry_allowed_length in 0u32..5,
        dry_penalty_last_n in prop_oneof![Just(u32::MAX), 0u32..70],
        samplers in Just(Step::DEFAULT.to_vec()).prop_shuffle(),
        bias in prop::collection::btree_map(0u32..30, prop_oneof![Just(f32::NEG_INFINITY), -5.0f32..5.0], 0..6),
        seed in any::<u64>(),
    ) -> SamplingParams {
        SamplingParams { repeat_penalty, presence_penalty, frequency_penalty, repeat_last_n, dry_multiplier, dry_base,
            dry_allowed_length, dry_penalty_last_n, samplers: samplers.into(), logit_bias: bias.into_iter().collect(), seed, ..filters }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() })]

    /// All steps together in any order: each draw is the token at which the reference's cumulative probability passes the
    /// random number. So the candidates are never none, never fewer than `min_keep`, and always in one order.
    #[test]
    fn any_chain_matches_the_reference(
        params in params(),
        n_vocab in 31usize..300,
        recent in prop::collection::vec(0u32..12, 0..80),
        breakers in prop::collection::vec(0u32..12, 0..3),
    ) {
        let logits = logits(n_vocab, params.seed ^ 1);
        let mut sampler = sampler(params.clone());
        sampler.set_breakers(breakers.clone());
        for _ in 0..4 {
            let (expected, drawn) = reference(&params, &logits, &recent, &breakers, sampler.drawn(), 0.0);
            let token = sampler.sample(&logits, &recent).unwrap();
            prop_assert_eq!(sampler.drawn(), drawn + 1);
            check(token, &expected, uniform(params.seed, drawn))?;
        }
        // At temperature 0 what is likeliest after bias and penalties.
        let greedy = SamplingParams { temperature: 0.0, ..params.clone() };
        let alone = SamplingParams {
            temperature: 1.0,
            samplers: params.samplers.iter().copied().filter(|s| matches!(s, Step::Penalties | Step::Dry)).collect(),
            ..params
        };
        let mut greedy = super::sampler(greedy);
        greedy.set_breakers(breakers.clone());
        let (expected, _) = reference(&alone, &logits, &recent, &breakers, 0, 0.0);
        prop_assert_eq!(greedy.sample(&logits, &recent).unwrap(), expected[0].0);
    }

    /// Equal logits are cut by id, whatever the order of the vocabulary's other tokens.
    #[test]
    fn ties_do_not_depend_on_anything_else(params in params(), n_vocab in 40usize..200) {
        let params = SamplingParams { typical_p: 1.0, samplers: Step::DEFAULT.to_vec().into(), ..params };
        let logits: Vec<f32> = logits(n_vocab, params.seed).iter().map(|l| (l / 4.0).round()).collect();
        let (expected, drawn) = reference(&params, &logits, &[], &[], 0, 0.0);
        let token = sampler(params.clone()).sample(&logits, &[]).unwrap();
        check(token, &expected, uniform(params.seed, drawn))?;
    }

    #[test]
    fn mirostat_matches_the_reference(
        seed in any::<u64>(),
        tau in 0.5f32..8.0,
        eta in 0.01f32..1.0,
        temperature in 0.3f32..2.0,
        repeat_penalty in maybe(1.0, 0.5..2.0),
    ) {
        let params = SamplingParams { mirostat: true, mirostat_tau: tau, mirostat_eta: eta, temperature, repeat_penalty,
            seed, ..SamplingParams::default() };
        let mut sampler = sampler(params.clone());
        let mut limit = 2.0 * f64::from(tau);
        let recent = [3, 4, 5];
        let mut tokens = Vec::new();
        for n in 0..20 {
            let logits = logits(200, seed ^ n);
            let (expected, drawn) = reference(&params, &logits, &recent, &[], n, limit);
            let token = sampler.sample(&logits, &recent).unwrap();
            check(token, &expected, uniform(seed, drawn))?;
            let probability = expected.iter().find(|t| t.0 == token).unwrap().1;
            limit -= f64::from(eta) * (-probability.log2() - f64::from(tau));
            tokens.push(token);
        }
        // Back to any draw, with the limit that held then.
        for back in [7, 0, 19] {
            let mut again = sampler.clone();
            again.set_drawn(back);
            for n in back..20 {
                prop_assert_eq!(again.sample(&logits(200, seed ^ n), &recent).unwrap(), tokens[n as usize]);
            }
        }
    }
}

/// Cases T11, T12, T15 and T16 for all parameters: every range ends where it says, and NaN is in none.
#[test]
fn ranges_end_where_they_say() {
    type Set = fn(&mut SamplingParams, f32);
    let ranges: [(&str, f32, f32, Set); 13] = [
        ("dynatemp_range", 0.0, 2.0, |p, x| p.dynatemp_range = x),
        ("dynatemp_exponent", f32::MIN_POSITIVE, 10.0, |p, x| p.dynatemp_exponent = x),
        ("typical_p", f32::MIN_POSITIVE, 1.0, |p, x| p.typical_p = x),
        ("top_n_sigma", 0.0, 100.0, |p, x| p.top_n_sigma = x),
        ("xtc_probability", 0.0, 1.0, |p, x| p.xtc_probability = x),
        ("xtc_threshold", 0.0, 1.0, |p, x| p.xtc_threshold = x),
        ("presence_penalty", -2.0, 2.0, |p, x| p.presence_penalty = x),
        ("frequency_penalty", -2.0, 2.0, |p, x| p.frequency_penalty = x),
        ("dry_multiplier", 0.0, 100.0, |p, x| p.dry_multiplier = x),
        ("dry_base", 1.0, 10.0, |p, x| p.dry_base = x),
        ("mirostat_tau", f32::MIN_POSITIVE, 100.0, |p, x| p.mirostat_tau = x),
        ("mirostat_eta", f32::MIN_POSITIVE, 1.0, |p, x| p.mirostat_eta = x),
        ("logit_bias", -1000.0, 1000.0, |p, x| p.logit_bias = vec![(3, x)]),
    ];
    let logits = logits(100, 1);
    for (name, lowest, highest, set) in ranges {
        let with = |x: f32| {
            let mut params = SamplingParams { xtc_probability: 0.5, dry_multiplier: 1.0, ..SamplingParams::default() };
            set(&mut params, x);
            params
        };
        for x in [lowest, highest] {
            for mirostat in [false, true] {
                let mut sampler = Sampler::new(SamplingParams { mirostat, ..with(x) }).unwrap();
                let recent: Vec<u32> = (0..20).map(|n| n % 3).collect();
                for _ in 0..20 {
                    assert!(sampler.sample(&logits, &recent).unwrap() < 100, "{name} {x}");
                }
            }
        }
        let step = highest.abs() * 1e-6;
        for x in [lowest - step, highest + step, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            if name == "logit_bias" && x == f32::NEG_INFINITY {
                continue;
            }
            let error = Sampler::new(with(x)).err().unwrap_or_else(|| panic!("{name} {x}"));
            assert_eq!(error.status(), Status::InvalidArgument);
            assert!(error.to_string().starts_with(&format!("{name}: expected ")), "{error}");
        }
    }
    let twice = SamplingParams { samplers: vec![Step::TopK, Step::TopK].into(), ..SamplingParams::default() };
    assert_eq!(Sampler::new(twice).unwrap_err().status(), Status::InvalidArgument);
    let beyond = SamplingParams { logit_bias: vec![(100, 0.0)], ..SamplingParams::default() };
    assert!(beyond.validate_for(101).is_ok());
    assert!(beyond.validate_for(100).unwrap_err().to_string().starts_with("logit_bias: expected ids from 0 to 99"));
}

/// Case T13: when all tokens are banned there is an error, no token, and no draw.
#[test]
fn nothing_left_is_an_error() {
    let ban: Vec<(u32, f32)> = (0..50).map(|id| (id, f32::NEG_INFINITY)).collect();
    let logits = logits(50, 1);
    for temperature in [0.0, 0.8] {
        for mirostat in [false, true] {
            for samplers in [Step::DEFAULT.to_vec(), vec![], vec![Step::TopNSigma, Step::TypicalP]] {
                let d = SamplingParams::default();
                let samplers = samplers.into();
                let params = SamplingParams { logit_bias: ban.clone(), temperature, mirostat, samplers, ..d };
                let mut sampler = sampler(SamplingParams { top_n_sigma: 1.0, typical_p: 0.5, ..params });
                assert!(matches!(sampler.sample(&logits, &[1, 2, 3]), Err(Error::NoCandidate)));
                assert_eq!(sampler.drawn(), 0);
            }
        }
    }
    // The last word on a token counts.
    let twice = SamplingParams { logit_bias: vec![(9, f32::NEG_INFINITY), (3, 1.0), (9, 1000.0)], ..all() };
    assert_eq!(support(twice, &logits, 20), [9]);
    // One that is left is always drawn.
    let mut one = sampler(SamplingParams { logit_bias: ban[1..].to_vec(), ..all() });
    assert_eq!(one.sample(&logits, &[]).unwrap(), 0);
}

#[test]
fn min_keep_holds_against_each_filter() {
    let logits = logits(300, 7);
    type Cut = fn(&mut SamplingParams);
    let cutting: [(&str, Cut); 5] = [
        ("top_k", |p| p.top_k = 1),
        ("top_p", |p| p.top_p = 1e-6),
        ("min_p", |p| p.min_p = 1.0),
        ("typical_p", |p| p.typical_p = 1e-6),
        ("top_n_sigma", |p| p.top_n_sigma = 1e-6),
    ];
    for (name, cut) in cutting {
        for min_keep in [1, 5] {
            let mut params = SamplingParams { min_keep, temperature: 2.0, ..all() };
            cut(&mut params);
            assert_eq!(support(params, &logits, 2000).len(), min_keep as usize, "{name}");
        }
    }
    // XTC leaves out nothing rather than too much.
    let flat = [1.0; 4];
    let xtc = SamplingParams { xtc_probability: 1.0, xtc_threshold: 0.1, ..all() };
    assert_eq!(support(xtc.clone(), &flat, 500), [3]);
    assert_eq!(support(SamplingParams { min_keep: 2, ..xtc }, &flat, 500).len(), 4);
}

#[test]
fn repetitions_are_penalized_as_far_as_they_go() {
    let params = SamplingParams { dry_multiplier: 1.0, dry_base: 2.0, temperature: 0.0, ..SamplingParams::default() };
    let greedy = |recent: &[u32], logits: &[f32], breakers: &[u32], change: fn(&mut SamplingParams)| {
        let mut params = params.clone();
        change(&mut params);
        let mut sampler = sampler(params);
        sampler.set_breakers(breakers.to_vec());
        sampler.sample(logits, recent).unwrap()
    };
    let none: fn(&mut SamplingParams) = |_| ();
    // 1 2 3 | 1 2: token 3 repeats two tokens, which costs 1 * 2^0; 3 tokens cost 2.
    assert_eq!(greedy(&[1, 2, 3, 1, 2], &[0.0, 0.0, 0.0, 0.9, 0.1], &[], none), 4);
    assert_eq!(greedy(&[1, 2, 3, 1, 2], &[0.0, 0.0, 0.0, 1.2, 0.1], &[], none), 3);
    assert_eq!(greedy(&[0, 1, 2, 3, 0, 1, 2], &[0.0, 0.0, 0.0, 2.05, 0.1], &[], none), 4);
    // A single token is free, and so is a breaker, and what is before one.
    assert_eq!(greedy(&[2, 3, 2], &[0.0, 0.0, 0.0, 0.9, 0.1], &[], none), 3);
    assert_eq!(greedy(&[1, 2, 3, 1, 2], &[0.0, 0.0, 0.0, 0.9, 0.1], &[3], none), 3);
    assert_eq!(greedy(&[1, 2, 3, 1, 2], &[0.0, 0.0, 0.0, 0.9, 0.1], &[1], none), 3);
    // Outside the window.
    assert_eq!(greedy(&[1, 2, 3, 1, 2], &[0.0, 0.0, 0.0, 0.9, 0.1], &[], |p| p.dry_penalty_last_n = 3), 3);
    // A penalty beyond f32 leaves a number.
    let long = vec![1; 10_000];
    assert_eq!(greedy(&long, &[0.0, 5.0], &[], |p| p.dry_base = 10.0), 0);
    assert_eq!(greedy(&long, &[5.0, 5.0], &[], |p| p.dry_base = 10.0), 0);
}

#[test]
fn orders_are_read_and_refused() {
    assert_eq!(
        Step::parse_order("penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature").unwrap(),
        Step::DEFAULT
    );
    assert_eq!(Step::parse_order(" top_p , temp").unwrap(), [Step::TopP, Step::Temperature]);
    assert_eq!(Step::parse_order(" ").unwrap(), []);
    for text in ["top_k,top_k", "top_q", "top_k,", ",", "infill", "TOP_K", "temp,temperature"] {
        let message = Step::parse_order(text).unwrap_err().to_string();
        assert!(message.starts_with("samplers: expected names"), "{text}: {message}");
    }
    assert_eq!(Step::parse_order(Step::EXPECTED.rsplit(": ").next().unwrap()).unwrap(), Step::DEFAULT);
}

#[test]
fn simple_parameters_are_those_that_devices_know() {
    let d = SamplingParams::default;
    let simple =
        SamplingParams { temperature: 1.5, top_k: 7, top_p: 0.5, min_p: 0.2, repeat_penalty: 1.3, seed: 9, ..d() };
    assert!(
        simple.is_simple() && SamplingParams { repeat_last_n: 3, xtc_threshold: 0.3, ..simple.clone() }.is_simple()
    );
    let changes: [fn(&mut SamplingParams); 12] = [
        |p| p.dynatemp_range = 0.1,
        |p| p.typical_p = 0.9,
        |p| p.top_n_sigma = 1.0,
        |p| p.xtc_probability = 0.1,
        |p| p.min_keep = 2,
        |p| p.presence_penalty = 0.1,
        |p| p.frequency_penalty = -0.1,
        |p| p.dry_multiplier = 0.8,
        |p| p.mirostat = true,
        |p| p.logit_bias = vec![(1, 0.0)],
        |p| p.logprobs = 1,
        |p| p.samplers.to_mut().swap(3, 5),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut params = simple.clone();
        change(&mut params);
        assert!(!params.is_simple() && !sampler(params).is_simple(), "change {index}");
    }
}

#[test]
fn logprobs_are_the_log_softmax() {
    let logits = logits(500, 3);
    let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
    let mut order: Vec<u32> = (0..500).collect();
    order.sort_by(|a, b| logits[*b as usize].partial_cmp(&logits[*a as usize]).unwrap().then(a.cmp(b)));
    for n in [0, 1, 5, 499, 500, 501] {
        let found = logprobs(&logits, 77, n).unwrap();
        let ids: Vec<u32> = found.iter().map(|f| f.0).collect();
        assert_eq!(ids[0], 77);
        assert_eq!(ids[1..], order[..n.min(500)]);
        for (id, logprob) in found {
            assert!((logprob - (f64::from(logits[id as usize]) - sum.ln())).abs() < 1e-12);
        }
    }
    // No overflow.
    let huge = logprobs(&[f32::MAX, f32::MIN, f32::MAX], 1, 2).unwrap();
    assert_eq!((huge[1].0, huge[2].0), (0, 2));
    assert!((huge[1].1 + std::f64::consts::LN_2).abs() < 1e-12 && huge[0].1 < -1e38);
}

/// What was drawn from is kept as the model gave it.
#[test]
fn the_last_logits_are_kept() {
    let params = SamplingParams { logprobs: 3, logit_bias: vec![(5, f32::NEG_INFINITY)], ..SamplingParams::default() };
    let mut sampler = sampler(params);
    assert!(sampler.last().is_none());
    for seed in 0..3 {
        let logits = logits(40, seed);
        let token = sampler.sample(&logits, &[1]).unwrap();
        assert_eq!(sampler.last(), Some((token, &*logits)));
    }
    assert!(sampler.sample(&[f32::NAN; 40], &[]).is_err());
    assert_eq!(sampler.last().unwrap().1, logits(40, 2));
}

/// XTC takes a draw of its own, so that a sequence can be continued from any token.
#[test]
fn a_token_takes_one_draw_and_with_xtc_two() {
    let logits = logits(100, 3);
    let params = SamplingParams { xtc_probability: 0.5, xtc_threshold: 0.02, top_k: 20, ..all() };
    let mut whole = sampler(params.clone());
    let tokens: Vec<u32> = (0..50).map(|_| whole.sample(&logits, &[]).unwrap()).collect();
    assert_eq!(whole.drawn(), 100);
    let mut resumed = sampler(params);
    resumed.set_drawn(40);
    assert!(tokens[20..].iter().all(|token| resumed.sample(&logits, &[]).unwrap() == *token));
    assert_ne!(rng::draw(0, 0), rng::draw(0, 1));
}
