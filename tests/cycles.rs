//! Ten thousand handles alive at once, and a hundred thousand made and freed: afterwards the process holds exactly what
//! it held before.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/alloc.rs"]
mod alloc;
#[path = "common/c_api.rs"]
mod c_api;
#[path = "common/held.rs"]
mod held;
#[path = "common/models.rs"]
mod models;

use c_api::Handle;
use kigo::Status;

const LIVE: usize = 10_000;
const CYCLES: usize = 100_000;
const MODELS: usize = 1000;

/// Has as many inferences, options and errors alive at once, each of which works.
fn alive(model: Handle, options: Handle) {
    let inferences: Vec<Handle> = (0..LIVE).map(|_| c_api::start(model, b"Once", options).unwrap()).collect();
    let others: Vec<Handle> = (0..LIVE).map(|_| c_api::options_new()).collect();
    c_api::live_errors(LIVE);
    for (at, inference) in inferences.iter().enumerate() {
        if at % 100 == 0 {
            assert!(c_api::next_token(*inference, &mut [0; 64]).is_ok());
        }
        assert_eq!(c_api::count(*inference, c"prompt_tokens"), Ok(4));
    }
    for (inference, other) in inferences.into_iter().zip(others) {
        c_api::inference_free(inference).unwrap();
        c_api::options_free(other).unwrap();
        assert_eq!(c_api::inference_free(inference), Err(Status::InvalidHandle));
    }
}

fn cycles(model: Handle, options: Handle) {
    for cycle in 0..CYCLES {
        let inference = c_api::start(model, b"Once", options).unwrap();
        if cycle % 50 == 0 {
            c_api::next_token(inference, &mut [0; 64]).unwrap();
        }
        c_api::inference_free(inference).unwrap();
        c_api::options_free(c_api::options_new()).unwrap();
        c_api::live_errors(1);
    }
}

fn loads(options: Handle) {
    for _ in 0..MODELS {
        let model = c_api::load(&models::data("tiny-llama.gguf"), options).unwrap();
        c_api::model_free(model).unwrap();
    }
}

#[test]
fn a_hundred_thousand_cycles_leave_nothing_c20() {
    let options = c_api::options(&[("n_threads", c_api::Setting::Integer(1))]);
    let model = c_api::load(&models::data("tiny-llama.gguf"), options).unwrap();
    held::leaves_nothing("handles", &|| {
        alive(model, options);
        cycles(model, options);
    });
    held::leaves_nothing("models", &|| loads(options));
    c_api::model_free(model).unwrap();
    c_api::options_free(options).unwrap();
}
