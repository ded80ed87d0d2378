//! Five seconds of anything at once from eight threads, and an exact account at the end.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/alloc.rs"]
mod alloc;
#[path = "common/c_api.rs"]
mod c_api;
#[path = "common/held.rs"]
mod held;
#[path = "common/models.rs"]
mod models;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use c_api::{Answer, Handle, Setting};
use kigo::Status;

const THREADS: u64 = 8;
const MAX_MODELS: usize = 4;
const MAX_INFERENCES: usize = 48;

/// A fixed sequence of random numbers (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }
}

/// Handles that all threads share, so that one frees what another is using.
#[derive(Default)]
struct Shared {
    models: Mutex<Vec<Handle>>,
    inferences: Mutex<Vec<Handle>>,
    made: Mutex<BTreeMap<&'static str, usize>>,
    freed: Mutex<BTreeMap<&'static str, usize>>,
    answers: Mutex<BTreeMap<i32, usize>>,
}

impl Shared {
    /// Any of `handles`, live or not any more, which stays where it is.
    fn any(handles: &Mutex<Vec<Handle>>, random: &mut Random) -> Handle {
        let handles = handles.lock().unwrap();
        if handles.is_empty() { 0 } else { handles[random.below(handles.len())] }
    }

    fn add(&self, kind: &'static str, handles: &Mutex<Vec<Handle>>, handle: Answer<Handle>) -> Answer<i32> {
        handles.lock().unwrap().push(handle?);
        *self.made.lock().unwrap().entry(kind).or_default() += 1;
        Ok(0)
    }

    /// Frees `handle`, which several threads may try at once: one of them does it.
    fn free(&self, kind: &'static str, handles: &Mutex<Vec<Handle>>, handle: Handle) -> Answer<i32> {
        let free = if kind == "model" { c_api::model_free } else { c_api::inference_free };
        free(handle)?;
        if handle != 0 {
            *self.freed.lock().unwrap().entry(kind).or_default() += 1;
            handles.lock().unwrap().retain(|live| *live != handle);
        }
        Ok(0)
    }

    fn act(&self, random: &mut Random, options: Handle) -> (Answer<i32>, &'static [Status]) {
        use Status::*;
        let model = Shared::any(&self.models, random);
        let inference = Shared::any(&self.inferences, random);
        let (n_models, n_inferences) = (self.models.lock().unwrap().len(), self.inferences.lock().unwrap().len());
        let mut buffer = [0; 64];
        match random.below(100) {
            0..3 if n_models < MAX_MODELS => {
                let path = models::data("tiny-llama.gguf");
                (self.add("model", &self.models, c_api::load(&path, options)), &[])
            }
            3..5 => (c_api::load(&models::data("missing.gguf"), options).map(|_| 0), &[Io]),
            5..7 => {
                let missing = c_api::options(&[("device", Setting::Text(b"cuda:999"))]);
                let answer = c_api::load(&models::data("tiny-llama.gguf"), missing).map(|_| 0);
                c_api::options_free(missing).unwrap();
                (answer, &[NoBackend, NoDriver, DriverTooOld, NoDevice])
            }
            7..8 => (self.free("model", &self.models, model), &[InvalidHandle]),
            8..20 if n_inferences < MAX_INFERENCES => {
                let made = c_api::start(model, b"Write a haiku.", options);
                (self.add("inference", &self.inferences, made), &[InvalidHandle])
            }
            20..24 => (c_api::start(model, b"a\xff", options).map(|_| 0), &[InvalidHandle, InvalidUtf8]),
            24..27 => (c_api::start_tokens(model, &[-1], options).map(|_| 0), &[InvalidHandle, InvalidArgument]),
            27..38 => (self.free("inference", &self.inferences, inference), &[InvalidHandle]),
            38..45 => (c_api::cancel(inference), &[InvalidHandle]),
            45..50 => (
                c_api::next_text(inference, &mut []),
                &[InvalidHandle, InvalidArgument, BufferTooSmall, Busy, Cancelled, ContextFull],
            ),
            50..55 => (c_api::next_text(model, &mut buffer), &[InvalidHandle]),
            55..60 => (
                c_api::last_error(inference),
                &[InvalidHandle, InvalidArgument, BufferTooSmall, Cancelled, ContextFull],
            ),
            60..65 => (c_api::count(inference, c"generated_tokens").map(|_| 0), &[InvalidHandle]),
            65..70 => (c_api::model_count(model, c"n_ctx").map(|_| 0), &[InvalidHandle]),
            70..74 => {
                (c_api::rewind(inference, 1 + random.below(40)), &[InvalidHandle, InvalidArgument, Busy, Cancelled])
            }
            74..77 if n_inferences < MAX_INFERENCES => {
                let options = if random.below(2) == 0 { 0 } else { options };
                (self.add("inference", &self.inferences, c_api::fork(inference, options)), &[InvalidHandle, Busy])
            }
            77..80 => {
                let prompt = [&b"Write a haiku."[..], b"\xff"][random.below(8) / 7];
                let answer = c_api::append(inference, prompt);
                (answer, &[InvalidHandle, InvalidArgument, InvalidUtf8, Busy, PromptTooLong])
            }
            80..81 => (c_api::clear_prompt_cache(model), &[InvalidHandle]),
            _ => (
                c_api::next_text(inference, &mut buffer),
                &[InvalidHandle, InvalidArgument, Busy, Cancelled, ContextFull],
            ),
        }
    }
}

/// Lets all threads do anything for a while and frees what is left; returns how often each answer came.
fn churn(time: Duration, seed: u64, options: Handle) -> BTreeMap<i32, usize> {
    let shared = Shared::default();
    let begun = Instant::now();
    thread::scope(|scope| {
        for i in 0..THREADS {
            let shared = &shared;
            scope.spawn(move || {
                let mut random = Random(seed.wrapping_mul(1_000_003) + i + 1);
                while begun.elapsed() < time {
                    let (answer, allowed) = shared.act(&mut random, options);
                    let number = match answer {
                        Ok(_) => 0,
                        Err(status) => {
                            assert!(allowed.contains(&status), "{status:?} is none of {allowed:?}");
                            status as i32
                        }
                    };
                    *shared.answers.lock().unwrap().entry(number).or_default() += 1;
                }
            });
        }
    });
    // Models first: the inferences live on without them.
    let [models, inferences] = [&shared.models, &shared.inferences].map(|handles| handles.lock().unwrap().clone());
    for model in models {
        shared.free("model", &shared.models, model).unwrap();
    }
    for inference in inferences {
        let _ = c_api::next_text(inference, &mut [0; 64]);
        shared.free("inference", &shared.inferences, inference).unwrap();
    }
    assert_eq!(shared.made.into_inner().unwrap(), shared.freed.into_inner().unwrap());
    shared.answers.into_inner().unwrap()
}

/// Has more handles of each kind live at once than the threads ever will, so that the tables do not grow later.
fn fill_the_tables(options: Handle) {
    let loads = 0..MAX_MODELS + THREADS as usize;
    let models: Vec<Handle> = loads.map(|_| c_api::load(&models::data("tiny-llama.gguf"), options).unwrap()).collect();
    let starts = 0..MAX_INFERENCES + THREADS as usize;
    let inferences: Vec<Handle> = starts.map(|_| c_api::start(models[0], b"a", options).unwrap()).collect();
    c_api::live_errors(THREADS as usize);
    let others: Vec<Handle> = (0..THREADS).map(|_| c_api::options(&[])).collect();
    for other in others {
        c_api::options_free(other).unwrap();
    }
    for inference in inferences {
        c_api::inference_free(inference).unwrap();
    }
    for model in models {
        c_api::model_free(model).unwrap();
    }
}

#[test]
fn nothing_is_lost_in_five_seconds_of_anything_x10() {
    let options = c_api::options(&[("prompt_format", Setting::Text(b"user")), ("n_threads", Setting::Integer(1))]);
    fill_the_tables(options);
    churn(Duration::from_millis(300), 1, options);
    let before = held::settled();
    let answers = churn(Duration::from_secs(5), 2, options);
    let statuses =
        [Status::Ok, Status::InvalidHandle, Status::Busy, Status::Cancelled, Status::InvalidUtf8, Status::Io];
    for status in statuses {
        assert!(answers.contains_key(&(status as i32)), "{status:?} never came: {answers:?}");
    }
    let n_answers: usize = answers.into_values().sum();
    let begun = Instant::now();
    let mut after = held::settled();
    while after != before && begun.elapsed() < Duration::from_secs(5) {
        after = held::settled();
    }
    assert_eq!(after, before);
    println!("{n_answers} answers");
    c_api::options_free(options).unwrap();
}
