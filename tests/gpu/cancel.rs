//! A prompt is cancelled within 100 ms, however far it is, and loses nothing by it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use kigo::engine::{Engine, LoadOptions};
use kigo::sampler::SamplingParams;
use kigo::session::{Prompt, Session, SessionOptions};
use kigo::{Error, Result};

use super::harness::*;
use super::models;

const BOUND: Duration = Duration::from_millis(100);

/// Where attention takes so much longer than all else that 2,048 rows at once would take more than the bound.
const N_PROMPT: usize = 250_000;

/// Steps of a prompt from one cancellation to the next.
const STEPS: usize = 2;

/// What comes of the next token of `session`, which is cancelled `wait` after its prompt has gone on by [`STEPS`] steps; and how
/// long that took from the cancellation on, nothing if the token came before it.
fn cancelled(session: &mut Session, wait: Duration) -> (Result<bool>, Duration) {
    let (cancel, past) = (session.cancel_flag(), session.past());
    thread::scope(|scope| {
        let call = scope.spawn(|| {
            let outcome = session.peek_token().map(|token| token.is_some());
            (outcome, Instant::now())
        });
        let mut seen = Vec::new();
        while seen.len() <= STEPS && !call.is_finished() {
            let now = past.get();
            if now > 0 && seen.last() != Some(&now) {
                seen.push(now);
            }
            thread::sleep(Duration::from_micros(50));
        }
        thread::sleep(wait);
        let at = Instant::now();
        cancel.store(true, Ordering::Relaxed);
        let (outcome, ended) = call.join().unwrap();
        (outcome, ended.saturating_duration_since(at))
    })
}

/// Computes the prompt of `session`, and says how long the longest step took, how many tokens it had, and how many came before.
fn longest_step(session: &mut Session) -> (Duration, usize, usize) {
    let past = session.past();
    thread::scope(|scope| {
        let call = scope.spawn(|| session.peek_token().map(|_| ()));
        let (mut since, mut from, mut longest) = (Instant::now(), 0, (Duration::ZERO, 0, 0));
        while !call.is_finished() {
            let now = past.get();
            if now > from {
                longest = longest.max((since.elapsed(), now - from, from));
                (since, from) = (Instant::now(), now);
            }
            thread::sleep(Duration::from_micros(50));
        }
        call.join().unwrap().unwrap();
        longest
    })
}

/// Each attempt goes on where the one before was cancelled, since that has left its pages to those with the same prompt.
#[test]
#[ignore = "needs a GPU"]
fn a_prompt_of_smollm2_is_cancelled_within_100_ms_at_any_depth() {
    let path = models::cached(models::SMOLLM2).unwrap();
    let (device, n_ctx, prompt_cache) = (gpu(), Some(N_PROMPT + 100), 1 << 36);
    let options = LoadOptions { device, n_ctx, prompt_cache, ..LoadOptions::default() };
    let engine = Engine::load(&path, &options).unwrap_or_else(|error| panic!("{error}"));
    let prompt: Vec<u32> = (0..N_PROMPT).map(|i| 1000 + (i * 7 % 20_011) as u32).collect();
    // Logits come to the host where log probabilities are wanted.
    let sampling = SamplingParams { temperature: 0.0, logprobs: 1, ..SamplingParams::default() };
    let settings = SessionOptions { sampling, ..SessionOptions::default() };
    let start = |engine: &Arc<Engine>| Session::start(engine, Prompt::Tokens(&prompt), &settings).unwrap();
    let outcome_of = |session: &Session| session.last_logits().map(|(token, logits)| (token, bits(logits))).unwrap();

    let (mut deepest, mut longest, mut n_cancelled) = (0, [(Duration::ZERO, 0); 2], 0);
    let found = loop {
        let mut session = start(&engine);
        // Somewhere in a step, others each time.
        let wait = Duration::from_millis(n_cancelled * 13 % 80);
        let (outcome, returned) = cancelled(&mut session, wait);
        match outcome {
            Ok(_) => break outcome_of(&session),
            Err(Error::Cancelled) => {}
            Err(error) => panic!("{error}"),
        }
        let depth = session.past().get();
        assert!(depth > deepest, "the attempt after {deepest} tokens ended at {depth}");
        let began = Instant::now();
        drop(session);
        let freed = returned + began.elapsed();
        for (most, time) in longest.iter_mut().zip([returned, freed]) {
            *most = (time, depth).max(*most);
        }
        (deepest, n_cancelled) = (depth, n_cancelled + 1);
    };
    let [(returned, _), (freed, _)] = longest;
    println!(
        "{n_cancelled} times, the last after {deepest} tokens; returned and freed after (at most, at): {longest:?}"
    );
    assert!(n_cancelled > 20 && deepest > N_PROMPT / 10 * 9);
    assert!(returned < BOUND && freed < BOUND, "returned after {returned:?}, freed after {freed:?}");

    engine.clear_prompt_cache().unwrap();
    let mut whole = start(&engine);
    let (step, n, at) = longest_step(&mut whole);
    println!("longest step: {step:?}, {n} tokens after {at}");
    assert_eq!(whole.cached_tokens(), 0);
    assert!(outcome_of(&whole) == found, "other logits than of a prompt that was never cancelled");
}
