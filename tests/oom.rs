//! The k-th allocation of a call fails, for every k: the call says so, and the next one works (C19).
//!
//! Requests below [`SMALL`] are not refused, and the model has no chat template: those allocations cannot fail without
//! ending the process, as the header says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/alloc.rs"]
mod alloc;
#[path = "common/c_api.rs"]
mod c_api;
#[path = "common/folder.rs"]
mod folder;
#[path = "common/models.rs"]
mod models;
#[path = "common/tiny.rs"]
mod tiny;

use c_api::{Answer, Handle, Setting};
use kigo::Status;

/// Bytes of the smallest request that is refused.
const SMALL: usize = 4096;

/// Runs `call` while all its requests after the first k fail, for every k until none is refused; gives how many k there
/// were.
fn sweep<T>(what: &str, call: &dyn Fn() -> Answer<T>, end: &dyn Fn(T)) -> usize {
    for after in 0.. {
        let (answer, refused) = alloc::refusing(SMALL, after, call);
        match answer {
            Ok(value) => end(value),
            Err(status) => assert_eq!((status, refused > 0), (Status::OutOfMemory, true), "{what}, {after}"),
        }
        // The failure has changed nothing.
        end(call().unwrap());
        if refused == 0 {
            return after;
        }
    }
    unreachable!()
}

#[test]
fn every_allocation_of_a_call_may_fail_c19() {
    // What freed inferences leave would stand in for memory that is asked for.
    let options = c_api::options(&[
        ("n_threads", Setting::Integer(1)),
        ("n_ctx", Setting::Integer(3000)),
        ("prompt_cache_mib", Setting::Integer(0)),
    ]);
    let folder = folder::Folder::new();
    let path = folder.write("model.gguf", &tiny::Draft::tiny().without("tokenizer.chat_template").writer());
    let load = || c_api::load(&path, options);
    let free = |model: Handle| assert_eq!(c_api::model_free(model), Ok(0));
    let loads = sweep("load", &load, &free);
    let model = load().unwrap();
    let free = |inference: Handle| assert_eq!(c_api::inference_free(inference), Ok(0));
    let prompt = b"spring, ".repeat(300);
    let starts = sweep("start", &|| c_api::start(model, &prompt, options), &free);
    let texts = sweep(
        "text",
        &|| {
            let inference = c_api::start(model, &prompt[..160], options)?;
            let mut answer = Ok(0);
            for _ in 0..3 {
                answer = answer.and(c_api::next_token(inference, &mut [0; 64]));
            }
            c_api::inference_free(inference).unwrap();
            answer
        },
        &|_| (),
    );
    println!("load {loads}, start {starts}, text {texts}");
    assert!(loads > 10 && starts > 1 && texts > 2);
    c_api::model_free(model).unwrap();
    c_api::options_free(options).unwrap();
}
