//! A cancelled inference ends within 100 ms, in the middle of a long prompt and while it generates (X03); how far a prompt is.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/c_api.rs"]
mod c_api;
#[path = "common/models.rs"]
mod models;

use std::ffi::CStr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use c_api::{Handle, Setting};
use kigo::Status;

const N_BATCH: usize = 64;
const CHUNKS: usize = 10;
const ATTEMPTS: usize = 3;
const BOUND: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_micros(100);

/// One test at a time, since one measures.
static ALONE: Mutex<()> = Mutex::new(());

fn tokens(n: usize) -> Vec<i32> {
    (0..n).map(|i| 1000 + (i * 7 % 20_000) as i32).collect()
}

/// How long calls for tokens go on after a cancellation, so long after `is_time`, which is asked again and again.
fn cancelled(inference: Handle, is_time: impl Fn() -> bool, later: Duration) -> Duration {
    thread::scope(|scope| {
        let call = scope.spawn(|| {
            loop {
                if let Err(status) = c_api::next_token(inference, &mut [0; 256]) {
                    return (status, Instant::now());
                }
            }
        });
        while !is_time() {
            assert!(!call.is_finished(), "it ended before it was cancelled");
            thread::sleep(POLL);
        }
        thread::sleep(later);
        let cancelled = Instant::now();
        c_api::cancel(inference).unwrap();
        let (status, ended) = call.join().unwrap();
        assert_eq!(status, Status::Cancelled);
        ended.saturating_duration_since(cancelled)
    })
}

#[test]
fn a_cancelled_call_returns_within_100_ms_x03() {
    let Some(path) = models::cached(models::SMOLLM2) else { return };
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let options = c_api::options(&[
        ("n_batch", Setting::Integer(N_BATCH as i64)),
        ("n_ctx", Setting::Integer((N_BATCH * CHUNKS + 10) as i64)),
        // So that each attempt computes its prompt.
        ("prompt_cache_mib", Setting::Integer(0)),
    ]);
    let model = c_api::load(&path, options).unwrap();

    let step = |n: usize| {
        let inference = c_api::start_tokens(model, &tokens(n), options).unwrap();
        let began = Instant::now();
        c_api::next_token(inference, &mut [0; 256]).unwrap();
        let took = began.elapsed();
        c_api::inference_free(inference).unwrap();
        took
    };
    // The machine has other things to do meanwhile, so the shortest of some counts, here and below.
    let chunk = (0..ATTEMPTS).map(|_| step(N_BATCH)).min().unwrap();
    let single = (0..ATTEMPTS).map(|_| step(1)).min().unwrap();

    let attempt = |n_tokens: usize, key: &CStr, n: i64, step: Duration| {
        let inference = c_api::start_tokens(model, &tokens(n_tokens), options).unwrap();
        let count = |key: &CStr| c_api::count(inference, key).unwrap();
        // In the middle of a step.
        let took = cancelled(inference, || count(key) >= n, step / 3);
        let [processed, generated] = [c"processed_tokens", c"generated_tokens"].map(count);
        c_api::inference_free(inference).unwrap();
        (took, processed as usize, generated)
    };
    let in_prompt = (0..ATTEMPTS).map(|_| attempt(N_BATCH * CHUNKS, c"processed_tokens", (N_BATCH * 2) as i64, chunk));
    let is_there = |processed: usize| (N_BATCH * 2..N_BATCH * CHUNKS).step_by(N_BATCH).any(|n| n == processed);
    let in_prompt = in_prompt.inspect(|&(_, processed, generated)| assert!(is_there(processed) && generated == 0));
    let in_prompt = in_prompt.min().unwrap().0;
    let in_text = (0..ATTEMPTS).map(|_| attempt(4, c"generated_tokens", 10, single));
    let in_text = in_text.inspect(|&(_, processed, generated)| assert!(processed == 4 && generated >= 10));
    let in_text = in_text.min().unwrap().0;

    println!("a chunk takes {chunk:?}, ended after {in_prompt:?}; a token {single:?}, ended after {in_text:?}");
    assert!(in_prompt <= BOUND, "{in_prompt:?} for chunks of {chunk:?}");
    assert!(in_text <= BOUND, "{in_text:?} for tokens of {single:?}");
    c_api::model_free(model).unwrap();
    c_api::options_free(options).unwrap();
}

#[test]
fn a_prompt_that_is_computed_can_be_watched() {
    let Some(path) = models::cached(models::SMOLLM2) else { return };
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let options = c_api::options(&[
        ("n_batch", Setting::Integer(N_BATCH as i64)),
        ("n_ctx", Setting::Integer((N_BATCH * CHUNKS) as i64)),
    ]);
    let model = c_api::load(&path, options).unwrap();
    let n = N_BATCH * 4 + 5;
    let inference = c_api::start_tokens(model, &tokens(n), options).unwrap();
    let processed = || c_api::count(inference, c"processed_tokens").unwrap() as usize;
    assert_eq!(processed(), 0);
    let mut seen = Vec::new();
    thread::scope(|scope| {
        let call = scope.spawn(|| c_api::next_token(inference, &mut [0; 256]).unwrap());
        while !call.is_finished() {
            seen.push(processed());
            thread::sleep(POLL);
        }
    });
    seen.dedup();
    assert!(seen.is_sorted() && seen.iter().all(|&at| at == n || at.is_multiple_of(N_BATCH)), "{seen:?}");
    assert!(seen.len() > 3, "only {seen:?} were seen of 5 steps");
    c_api::next_token(inference, &mut [0; 256]).unwrap();
    assert_eq!(processed(), n, "tokens of the answer do not count");
    c_api::inference_free(inference).unwrap();
    // Where another has computed the prompt, it is there from the start.
    let again = c_api::start_tokens(model, &tokens(n), options).unwrap();
    c_api::next_token(again, &mut [0; 256]).unwrap();
    let [processed, cached] = [c"processed_tokens", c"cached_tokens"].map(|key| c_api::count(again, key).unwrap());
    assert!(processed as usize == n && cached > 0);
    c_api::inference_free(again).unwrap();
    c_api::model_free(model).unwrap();
    c_api::options_free(options).unwrap();
}
