//! A cancelled inference ends within 100 ms or one step, in the middle of a long prompt and while it generates (X03).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/c_api.rs"]
mod c_api;
#[path = "common/models.rs"]
mod models;

use std::thread;
use std::time::{Duration, Instant};

use c_api::{Handle, Setting};
use kigo::Status;

const N_BATCH: usize = 32;
const CHUNKS: usize = 60;
const ATTEMPTS: usize = 3;
const BOUND: Duration = Duration::from_millis(100);

fn tokens(n: usize) -> Vec<i32> {
    (0..n).map(|i| 1000 + (i * 7 % 20_000) as i32).collect()
}

/// How long calls for tokens go on after a cancellation that comes when they have run for this long.
fn cancelled(inference: Handle, before: Duration) -> Duration {
    thread::scope(|scope| {
        let call = scope.spawn(|| {
            loop {
                if let Err(status) = c_api::next_token(inference, &mut [0; 256]) {
                    return (status, Instant::now());
                }
            }
        });
        thread::sleep(before);
        let cancelled = Instant::now();
        c_api::cancel(inference).unwrap();
        let (status, ended) = call.join().unwrap();
        assert_eq!(status, Status::Cancelled);
        ended.saturating_duration_since(cancelled)
    })
}

#[test]
fn a_cancelled_call_returns_within_100_ms_or_one_step_x03() {
    let Some(path) = models::cached(models::SMOLLM2) else { return };
    let options = c_api::options(&[
        ("n_batch", Setting::Integer(N_BATCH as i64)),
        ("n_ctx", Setting::Integer((N_BATCH * CHUNKS + 10) as i64)),
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

    let attempt = |n_tokens: usize, before: Duration| {
        let inference = c_api::start_tokens(model, &tokens(n_tokens), options).unwrap();
        let took = cancelled(inference, before);
        let generated = c_api::count(inference, c"generated_tokens").unwrap();
        c_api::inference_free(inference).unwrap();
        (took, generated)
    };
    let in_prompt = (0..ATTEMPTS).map(|_| attempt(N_BATCH * CHUNKS, chunk * 5));
    let in_prompt = in_prompt.inspect(|(_, generated)| assert_eq!(*generated, 0)).min().unwrap().0;
    let in_text = (0..ATTEMPTS).map(|_| attempt(4, BOUND + single * 10));
    let in_text = in_text.inspect(|(_, generated)| assert!(*generated > 0)).min().unwrap().0;

    println!("a chunk takes {chunk:?}, ended after {in_prompt:?}; a token {single:?}, ended after {in_text:?}");
    // A later chunk looks at more of the text, so it takes longer than the first.
    assert!(in_prompt <= BOUND.max(chunk * 2), "{in_prompt:?} for chunks of {chunk:?}");
    assert!(in_text <= BOUND.max(single * 2), "{in_text:?} for tokens of {single:?}");
    c_api::model_free(model).unwrap();
    c_api::options_free(options).unwrap();
}
