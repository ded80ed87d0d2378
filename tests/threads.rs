//! Threads that load, free and generate against each other, through the C functions.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/alloc.rs"]
mod alloc;
#[path = "common/c_api.rs"]
mod c_api;
#[path = "common/models.rs"]
mod models;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use c_api::{Answer, Handle, Setting};
use kigo::Status;

const HAIKU: &str = "Rain counts on the roof,\nthe old clock listens and learns\na number by heart.";

fn tiny(options: Handle) -> Answer<Handle> {
    c_api::load(&models::data("tiny-llama.gguf"), options)
}

fn haiku(model: Handle, options: Handle) -> Answer<String> {
    let inference = c_api::start(model, b"Write a haiku.", options)?;
    let text = c_api::text(inference);
    c_api::inference_free(inference).unwrap();
    text
}

fn user() -> Handle {
    c_api::options(&[("prompt_format", Setting::Text(b"user")), ("n_threads", Setting::Integer(1))])
}

#[test]
fn freeing_a_model_while_others_start_x05() {
    const STARTERS: usize = 4;
    let options = user();
    let (started, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let begun = Instant::now();
    let mut races = 0;
    while begun.elapsed() < Duration::from_secs(3) && races < 5000 {
        let model = tiny(options).unwrap();
        let barrier = Barrier::new(STARTERS + 1);
        thread::scope(|scope| {
            for _ in 0..STARTERS {
                scope.spawn(|| {
                    barrier.wait();
                    for n in 0.. {
                        match c_api::start(model, b"Write a haiku.", options) {
                            Ok(inference) => {
                                // An inference that started works, whatever became of its model.
                                if n == 0 && races % 8 == 0 {
                                    assert_eq!(c_api::text(inference).unwrap(), HAIKU);
                                }
                                c_api::inference_free(inference).unwrap();
                                started.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(status) => {
                                assert_eq!(status, Status::InvalidHandle);
                                break;
                            }
                        }
                    }
                    assert_eq!(c_api::start(model, b"a", options), Err(Status::InvalidHandle), "freed is freed");
                    refused.fetch_add(1, Ordering::Relaxed);
                });
            }
            barrier.wait();
            for _ in 0..races % 50 {
                std::hint::spin_loop();
            }
            c_api::model_free(model).unwrap();
            assert_eq!(c_api::model_free(model), Err(Status::InvalidHandle));
        });
        races += 1;
    }
    println!("{races} models freed, {started:?} inferences started");
    assert_eq!(refused.into_inner(), races * STARTERS);
    assert!(races > 20 && started.into_inner() > races / 10);
    c_api::options_free(options).unwrap();
}

#[test]
fn eight_threads_load_one_file_and_two_fail_x06() {
    for _ in 0..20 {
        let barrier = Barrier::new(8);
        let load = |i: usize| {
            let options = user();
            if i == 0 {
                c_api::options_set(options, b"device", Setting::Text(b"cuda:999")).unwrap();
            }
            barrier.wait();
            let attempt = || tiny(options);
            // The embedding takes more than this in one piece.
            let (model, n_refused) = if i == 1 { alloc::refusing(1 << 16, 0, attempt) } else { (attempt(), 0) };
            assert_eq!(n_refused > 0, i == 1);
            let answer = model.and_then(|model| {
                let answer = haiku(model, options);
                c_api::model_free(model).unwrap();
                answer
            });
            c_api::options_free(options).unwrap();
            answer
        };
        let load = &load;
        let answers: Vec<Answer<String>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|i| scope.spawn(move || load(i))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(answers[0], Err(c_api::missing_gpu()));
        assert_eq!(answers[1], Err(Status::OutOfMemory));
        assert!(answers[2..].iter().all(|answer| answer.as_deref() == Ok(HAIKU)), "{answers:?}");
    }
}

#[test]
fn loading_and_freeing_beside_a_generation_changes_nothing_x07() {
    let options = user();
    let model = tiny(options).unwrap();
    let done = AtomicBool::new(false);
    let (loads, answers) = thread::scope(|scope| {
        let loader = scope.spawn(|| {
            let mut loads = 0;
            while !done.load(Ordering::Relaxed) {
                let other = tiny(options).unwrap();
                if loads % 4 == 0 {
                    assert_eq!(haiku(other, options).unwrap(), HAIKU);
                }
                c_api::model_free(other).unwrap();
                loads += 1;
            }
            loads
        });
        let begun = Instant::now();
        let mut answers = 0;
        while begun.elapsed() < Duration::from_secs(2) || answers == 0 {
            assert_eq!(haiku(model, options).unwrap(), HAIKU);
            answers += 1;
        }
        done.store(true, Ordering::Relaxed);
        (loader.join().unwrap(), answers)
    });
    println!("{loads} loads beside {answers} generations");
    assert!(loads > 0);
    c_api::model_free(model).unwrap();
    c_api::options_free(options).unwrap();
}
