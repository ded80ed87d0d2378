//! Whole models under a fake driver, through the C functions: whatever call of the driver fails, whatever kernel traps, the
//! host gets one clear error, loses no text, and has everything back when it has freed what it had.
//!
//! The kernels of the fake driver compute nothing; what its sampler writes depends on positions and tokens only. So these
//! tests say nothing about numbers, and everything about what kigo does around them.
//!
//! Each test runs ignored ones in processes of their own, because a driver is loaded once per process.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "fork, so that a device can be lost many times")]

#[path = "common/alloc.rs"]
mod alloc;
#[path = "common/c_api.rs"]
mod c_api;
mod fake_driver;
#[path = "common/folder.rs"]
mod folder;
#[path = "common/models.rs"]
mod models;
#[path = "common/random_blocks.rs"]
mod random_blocks;
#[path = "common/random_model.rs"]
mod random_model;
#[path = "common/tiny.rs"]
mod tiny;

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use c_api::{Handle, Setting};
use fake_driver::control::Driver;
use fake_driver::{Run, run, say};
use folder::Folder;
use kigo::backend::cuda::CudaBackend;
use kigo::backend::cuda::context::Context;
use kigo::backend::{Backend, DecodePath, Progress, Purpose, Row};
use kigo::engine::{Engine, LoadOptions};
use kigo::gguf::Gguf;
use kigo::model::{Weights, arch};
use kigo::quant::QuantType;
use kigo::sampler::SamplingParams;
use kigo::session::{Past, Prompt, Session, SessionOptions};
use kigo::{Error, Status};
use random_model::Shape;

fn variable(name: &str) -> Option<i64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Options that load on the GPU, in small chunks, and take `n` tokens of a plain text.
fn options(n: i64, more: &[(&str, Setting)]) -> Handle {
    let options = c_api::options(&[
        ("device", Setting::Text(b"cuda")),
        ("prompt_format", Setting::Text(b"text")),
        ("n_batch", Setting::Integer(8)),
        ("max_tokens", Setting::Integer(n)),
    ]);
    for (key, setting) in more {
        let setting = match setting {
            Setting::Text(text) => Setting::Text(text),
            Setting::Integer(value) => Setting::Integer(*value),
            Setting::Number(value) => Setting::Number(*value),
        };
        c_api::options_set(options, key.as_bytes(), setting).unwrap();
    }
    options
}

/// What a host came to that loaded a model, had two inferences at once, and freed all.
#[derive(Debug, Default, PartialEq)]
struct Life {
    /// Calls that failed.
    failures: Vec<(&'static str, Status)>,
    texts: [String; 2],
}

/// The options of its load and first inference, and of its second.
type Host = [Handle; 2];

fn host() -> Host {
    let penalty = [("repeat_penalty", Setting::Number(1.1)), ("temperature", Setting::Number(1.0))];
    [options(9, &[("decode_path", Setting::Text(b"step"))]), options(5, &penalty)]
}

/// A call for text that fails is made again, up to twice.
fn life(host: &Host) -> Life {
    let mut life = Life::default();
    let model = match c_api::load(&models::data("tiny-llama-q8_0.gguf"), host[0]) {
        Ok(model) => model,
        Err(status) => {
            life.failures.push(("load", status));
            return life;
        }
    };
    let prompts: [&[u8]; 2] = [b"spring, summer, autumn", b"a"];
    let inferences = [0, 1].map(|i| c_api::start(model, prompts[i], host[i]).unwrap());
    let mut ended = [false; 2];
    let mut buffer = [0; 64];
    while ended != [true; 2] {
        for i in 0..2 {
            let mut answer = if ended[i] { Ok(0) } else { c_api::next_text(inferences[i], &mut buffer) };
            for _ in 0..2 {
                if let Err(status) = answer {
                    life.failures.push(("text", status));
                    answer = c_api::next_text(inferences[i], &mut buffer);
                }
            }
            match answer {
                Ok(0) => ended[i] = true,
                Ok(n) => life.texts[i].push_str(std::str::from_utf8(&buffer[..n as usize]).unwrap()),
                Err(status) => {
                    life.failures.push(("text", status));
                    ended[i] = true;
                }
            }
        }
    }
    inferences.into_iter().for_each(|inference| assert_eq!(c_api::inference_free(inference), Ok(0)));
    c_api::model_free(model).unwrap();
    life
}

/// A life in which nothing fails.
fn good_life(host: &Host) -> Life {
    let life = life(host);
    assert!(life.failures.is_empty(), "{life:?}");
    assert_eq!(life.texts.each_ref().map(String::len), [9, 5], "{life:?}");
    life
}

/// What the process holds when the threads that end have given back what they held.
fn settled() -> alloc::Live {
    let (mut live, mut rounds) = (alloc::process(), 0);
    while rounds < 20 {
        std::thread::sleep(Duration::from_millis(1));
        let now = alloc::process();
        rounds = if now == live { rounds + 1 } else { 0 };
        live = now;
    }
    live
}

/// Waits until the process holds no more than `held`.
fn settles(held: alloc::Live, turn: i64) {
    let started = Instant::now();
    while alloc::process() != held {
        assert!(started.elapsed() < Duration::from_secs(5), "{turn}: expected {held:?}, found {:?}", alloc::process());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Every `STEP`th call from `FIRST` on fails once with `CODE`, in a life of its own.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_refused() {
    let (driver, host, code) = (Driver::get(), host(), variable("CODE").unwrap() as i32);
    let expected = good_life(&host);
    let (mut at, mut heard, mut held) = (variable("FIRST").unwrap(), 0, [None; 3]);
    loop {
        driver.fail(None, at, code);
        let life = life(&host);
        if !driver.failed(at) {
            break;
        }
        driver.assert_clean(&format!("call {at}"));
        let status = if code == 2 { Status::OutOfMemory } else { Status::DeviceError };
        match &life.failures[..] {
            [] => assert_eq!(life, expected, "call {at}"),
            [("load", found)] => assert_eq!(*found, status, "call {at}"),
            [("text", found)] => {
                assert_eq!(*found, status, "call {at}");
                assert_eq!(life.texts, expected.texts, "call {at}: what failed changed nothing");
            }
            more => panic!("call {at}: {more:?}"),
        }
        heard += life.failures.len();
        assert_eq!(good_life(&host), expected, "after call {at}");
        // The first failure of a kind prepares what is kept for ever.
        let kind = ["load", "text"].iter().position(|call| life.failures.iter().any(|failure| failure.0 == *call));
        drop(life);
        settles(*held[kind.unwrap_or(2)].get_or_insert_with(settled), at);
        at += variable("STEP").unwrap();
    }
    say(format!("{heard} heard"));
    host.into_iter().for_each(|options| assert_eq!(c_api::options_free(options), Ok(0)));
}

/// Runs `child` for `n` parts of what it does, some at a time.
fn in_parts(child: &str, n: i64, variables: &[(&str, &str)]) -> Vec<Run> {
    let part = |first: i64| {
        let (first, step) = ((first + 1).to_string(), n.to_string());
        run(child, &[variables, &[("FIRST", &*first), ("STEP", &*step)]].concat())
    };
    let part = &part;
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..n).map(|first| scope.spawn(move || part(first))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    })
}

#[test]
fn r07_r11_a_call_that_is_refused_is_one_error_and_nothing_is_lost() {
    for code in ["1", "2"] {
        for run in in_parts("child_refused", 4, &[("CODE", code)]) {
            run.assert_clean(code);
            let heard: i64 = run.said[0].split_once(' ').unwrap().0.parse().unwrap();
            assert!(heard > 20, "{run:?}");
        }
    }
}

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(process: i32, status: *mut i32, options: i32) -> i32;
    fn alarm(seconds: u32) -> u32;
    fn _exit(code: i32) -> !;
}

/// Runs `body` in a process of its own, and returns what it did. It fails the caller when it panics or takes 10 seconds. This
/// process must have done nothing with kigo, which works in one process only.
fn forked(about: &str, body: impl FnOnce() -> bool) -> bool {
    // SAFETY: this thread is the only one that holds locks: the harness waits for it, and kigo has not started.
    let process = unsafe { fork() };
    if process == 0 {
        // SAFETY: it takes a number.
        unsafe { alarm(10) };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: it ends the process without touching what belongs to the other.
        unsafe { _exit(outcome.map_or(2, i32::from)) };
    }
    let mut status = -1;
    // SAFETY: the process is a child of this one; the place is a local.
    assert_eq!(unsafe { waitpid(process, &raw mut status, 0) }, process);
    // What waitpid says of a process that ended by itself with 0 or 1.
    assert!(status == 0 || status == 1 << 8, "{about}: status {status:#x}");
    status == 1 << 8
}

/// A life in which the device is lost, and what follows: nothing comes any more, all is freed at once, and the host goes on
/// with the CPU. False when it was not lost, as `lost` says.
fn lost_life(driver: &Driver, about: &str, lost: impl FnOnce() -> bool) -> bool {
    let host = host();
    let life = life(&host);
    let calls = driver.count("calls");
    if !lost() {
        return false;
    }
    for (call, status) in &life.failures {
        // Before there is a device, it is the driver that fails.
        let early = *call == "load" && calls < 20 && *status == Status::DeviceError;
        assert!(early || *status == Status::DeviceLost, "{about}: {life:?}");
    }
    let expected = std::env::var("TEXTS").unwrap();
    for (text, whole) in life.texts.iter().zip(expected.split(' ')) {
        assert!(whole.starts_with(text.as_str()), "{about}: {life:?}");
    }
    let path = models::data("tiny-llama.gguf");
    let started = Instant::now();
    let again = c_api::load(&path, host[0]);
    assert!(again.is_err() && started.elapsed() < Duration::from_secs(1), "{about}: {again:?}");
    let cpu = c_api::options(&[("n_threads", Setting::Integer(1))]);
    c_api::model_free(c_api::load(&path, cpu).unwrap()).unwrap();
    assert_eq!((driver.count("misuse"), driver.count("unpopped")), (0, 0), "{about}");
    true
}

/// Says what a life writes, and how many calls and kernels it takes.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_life() {
    let driver = Driver::get();
    let life = good_life(&host());
    say(life.texts.join(" "));
    say(driver.count("calls"));
    say(driver.count("launches"));
}

/// Every `STEP`th call from `FIRST` on returns `CODE`, and with it all later ones.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_lost() {
    let (mut at, code) = (variable("FIRST").unwrap(), variable("CODE").unwrap() as i32);
    let attempt = |at: i64| {
        let about = format!("call {at}");
        forked(&about, || {
            let driver = Driver::get();
            driver.fail(None, at, code);
            let lost = lost_life(&driver, &about, || driver.count("counted") >= at);
            // Before there is a device, everything is tried again; the readers of a load may ask at once.
            let most = if at <= 3 { 8 } else { 4 };
            assert!(driver.count("calls_after_loss") <= most, "{about}");
            lost
        })
    };
    while attempt(at) {
        at += variable("STEP").unwrap();
    }
    // How often a thread asks whether another is done differs.
    assert!(at * 10 > variable("N").unwrap() * 9, "{at} calls");
}

/// Every `STEP`th kernel from `FIRST` on traps, with one code after another.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_trapped() {
    let mut at = variable("FIRST").unwrap();
    let attempt = |at: i64| {
        let code = [214, 700, 702, 710, 719][at as usize % 5];
        let about = format!("kernel {at}, {code}");
        forked(&about, || {
            let driver = Driver::get();
            driver.trap(at, code);
            let before = driver.count("launches");
            lost_life(&driver, &about, || driver.count("launches") >= before + at)
        })
    };
    while attempt(at) {
        at += variable("STEP").unwrap();
    }
    assert!(at >= variable("N").unwrap(), "{at} kernels");
}

#[test]
fn r10_r11_r14_a_device_that_is_lost_gives_no_token_and_nothing_hangs() {
    let whole = run("child_life", &[]);
    whole.assert_clean("a life");
    let [texts, calls, launches] = &whole.said[..] else { panic!("{whole:?}") };
    in_parts("child_lost", 4, &[("CODE", "999"), ("TEXTS", texts), ("N", calls)]);
    in_parts("child_trapped", 2, &[("TEXTS", texts), ("N", launches)]);
}

/// Every allocation of a load fails once.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_no_memory() {
    let driver = Driver::get();
    let (path, options) = (models::data("tiny-llama.gguf"), LoadOptions { n_batch: Some(8), ..LoadOptions::default() });
    for function in ["cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate", "cuEventCreate", "cuModuleLoadData"] {
        for at in 1.. {
            driver.fail(Some(function), at, 2);
            let outcome = Engine::load(&path, &options).map(drop);
            if !driver.failed(at) {
                outcome.unwrap();
                assert!(at > 1, "{function}");
                say(format!("{function} {}", at - 1));
                break;
            }
            let error = outcome.unwrap_err().to_string();
            let what = if function == "cuMemAlloc" { "out of GPU memory: " } else { "out of memory: " };
            assert!(error.starts_with(what) && !error.contains('\n'), "{function}: {error}");
            if function == "cuMemAlloc" {
                let (needed, free) =
                    error.split_once(" needs ").unwrap().1.split_once(" bytes, device \"cuda:0\" has ").unwrap();
                assert!(needed.parse::<u64>().unwrap() > 0, "{error}");
                assert!(free.strip_suffix(" free").unwrap().parse::<u64>().unwrap() > 0, "{error}");
            }
            driver.assert_clean(&format!("{function} {at}"));
            Engine::load(&path, &options).map(drop).unwrap();
        }
    }
}

#[test]
fn r07_a_load_that_finds_no_memory_says_how_much_and_the_next_one_works() {
    let run = run("child_no_memory", &[]);
    run.assert_clean("no memory");
    let n = |said: &String| said.split_once(' ').unwrap().1.parse::<u32>().unwrap();
    assert!(run.said.len() == 5 && run.said.iter().all(|said| n(said) > 0) && n(&run.said[0]) > 10, "{run:?}");
}

/// A model with pages of 2 MiB, of which 16 are allocated at once.
const LARGE_PAGES: Shape = Shape {
    n_layer: 8,
    n_embd: 64,
    n_head: 8,
    n_head_kv: 8,
    head_dim: 128,
    n_rot: 128,
    n_ff: 64,
    n_vocab: 300,
    tied: true,
    biases: false,
    norm_biases: false,
};

/// Eight inferences run; with `NINTH` another comes, for which there is no memory.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_ninth() {
    let (driver, folder) = (Driver::get(), Folder::new());
    let path = folder.write("model.gguf", &random_model::draft(&LARGE_PAGES, &[QuantType::F32], 1).writer());
    let options = options(100, &[("n_batch", Setting::Integer(128))]);
    let model = c_api::load(&path, options).unwrap();
    let prompt = |i: i32| [i % 256, 7, 9];
    let inferences = [1, 2, 3, 4, 5, 6, 7, 8].map(|i| c_api::start_tokens(model, &prompt(i), options).unwrap());
    let mut tokens = vec![Vec::new(); 8];
    let mut buffer = [0; 64];
    for turn in 0..50 {
        for (inference, tokens) in inferences.iter().zip(&mut tokens) {
            let n = c_api::next_token(*inference, &mut buffer).unwrap();
            tokens.extend_from_slice(&buffer[..n as usize]);
        }
        if turn == 20 && variable("NINTH").is_some() {
            let held = c_api::model_count(model, c"memory_bytes").unwrap();
            driver.leave(1 << 20);
            let ninth = c_api::start_tokens(model, &[5; 1200], options).unwrap();
            for _ in 0..3 {
                assert_eq!(c_api::next_token(ninth, &mut buffer), Err(Status::OutOfMemory));
                assert_eq!(c_api::last_error(ninth), Err(Status::OutOfMemory));
            }
            c_api::inference_free(ninth).unwrap();
            assert_eq!(c_api::model_count(model, c"memory_bytes").unwrap(), held);
            driver.leave(1 << 30);
            let ninth = c_api::start_tokens(model, &[5; 1200], options).unwrap();
            assert!(c_api::next_token(ninth, &mut buffer).is_ok(), "with memory it works");
            c_api::inference_free(ninth).unwrap();
        }
    }
    tokens.iter().for_each(|tokens| say(String::from_utf8_lossy(tokens)));
    inferences.into_iter().for_each(|inference| assert_eq!(c_api::inference_free(inference), Ok(0)));
    c_api::model_free(model).unwrap();
}

#[test]
fn r08_an_inference_that_finds_no_memory_leaves_the_others_as_they_are() {
    let (alone, disturbed) = (run("child_ninth", &[]), run("child_ninth", &[("NINTH", "1")]));
    alone.assert_clean("eight");
    disturbed.assert_clean("nine");
    assert!(alone.said.len() == 8 && alone.said.iter().all(|text| text.len() == 50), "{alone:?}");
    assert_eq!(disturbed.said, alone.said);
}

fn session_options(n: usize) -> SessionOptions {
    let sampling = SamplingParams { temperature: 1.0, repeat_penalty: 1.1, ..SamplingParams::default() };
    SessionOptions { sampling, max_tokens: Some(n), ..SessionOptions::default() }
}

/// The next tokens, up to `n`.
fn take(session: &mut Session, n: usize) -> Vec<u32> {
    let mut all = Vec::new();
    while all.len() < n
        && let Some((token, _)) = session.peek_token().unwrap()
    {
        all.push(token);
        session.take_token();
    }
    all
}

/// Sessions go back, branch off, go on, are saved and loaded, and find what others have computed. The sampler of the fake
/// driver goes by positions and tokens, so that a row at a wrong place or of a wrong token shows.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_turns() {
    let (driver, folder) = (Driver::get(), Folder::new());
    for file in ["tiny-llama-q8_0.gguf", "arch/gemma2.gguf", "arch/gpt-oss.gguf"] {
        let load = |prompt_cache| {
            let options = LoadOptions { n_batch: Some(30), n_ctx: Some(600), prompt_cache, ..LoadOptions::default() };
            Engine::load(&models::data(file), &options).unwrap()
        };
        let (engine, cached, other) = (load(0), load(1 << 30), load(0));
        let held = [&engine, &cached].map(|engine| engine.memory().bytes(Purpose::Cache));
        let prompt: Vec<u32> = (0..170).map(|i| (i * 31 + 5) % (engine.n_vocab() as u32 - 8) + 4).collect();
        let start = |engine, tokens| Session::start(engine, Prompt::Tokens(tokens), &session_options(100)).unwrap();
        let whole = take(&mut start(&engine, &prompt), 100);
        assert_eq!(whole.len(), 100, "{file}");

        let mut session = start(&engine, &prompt);
        assert_eq!(take(&mut session, 100), whole);
        for n in [100, 99, 90, 23, 22, 21, 0] {
            session.rewind(170 + n).unwrap();
            assert_eq!(take(&mut session, 100), whole[n..], "{file}: back to {n}");
        }
        for n in [169, 128, 60, 1] {
            session.rewind(n).unwrap();
            let fresh = take(&mut start(&engine, &prompt[..n]), 5);
            assert_eq!(take(&mut session, 5), fresh, "{file}: back to {n} of the prompt");
        }
        for at in [0, 1, 22, 50] {
            let mut session = start(&engine, &prompt);
            assert_eq!(take(&mut session, at), whole[..at]);
            let mut forks: Vec<Session> = (0..3).map(|_| session.fork(None).unwrap()).collect();
            forks.push(session);
            for i in at..100 {
                assert!(forks.iter_mut().all(|fork| take(fork, 1) == whole[i..i + 1]), "{file}: fork at {at}");
            }
            let path = folder.path("state");
            let mut session = start(&engine, &prompt);
            take(&mut session, at);
            session.save(&path).unwrap();
            let mut loaded = Session::load(&other, &path, &session_options(100)).unwrap();
            assert_eq!(take(&mut loaded, 100), whole[at..], "{file}: saved at {at}");
        }
        let mut n_reused = 0;
        for (n, expected) in [(170, 0), (170, 128), (150, 128), (65, 64), (64, 0), (170, 128)] {
            let mut session = start(&cached, &prompt[..n]);
            assert_eq!(take(&mut session, 3), take(&mut start(&engine, &prompt[..n]), 3), "{file}: {n} tokens");
            assert!(session.cached_tokens() == expected || file != "tiny-llama-q8_0.gguf");
            n_reused += session.cached_tokens();
            session.append(Prompt::Tokens(&prompt[..40])).unwrap();
            let said = take(&mut session, 3);
            session.rewind(n + 3 + 40).unwrap();
            assert_eq!(take(&mut session, 3), said);
        }
        assert!(n_reused > 0 && cached.prompt_cache_bytes() > 0, "{file}");
        drop(session);
        cached.clear_prompt_cache().unwrap();
        let after = [&engine, &cached].map(|engine| engine.memory().bytes(Purpose::Cache));
        assert_eq!(after, held, "{file}");
    }
    assert_eq!((driver.count("misuse"), driver.count("unpopped")), (0, 0));
    say("done");
}

#[test]
fn sessions_go_back_branch_off_and_go_on() {
    let run = run("child_turns", &[]);
    run.assert_clean("turns");
    assert_eq!(run.said, ["done"]);
}

/// How far the prompt of a session is, again and again while `call` runs.
fn watched(past: &Past, call: impl FnOnce() + Send) -> Vec<usize> {
    let mut seen = vec![past.get()];
    std::thread::scope(|scope| {
        let call = scope.spawn(call);
        while !call.is_finished() {
            seen.push(past.get());
            std::thread::sleep(Duration::from_micros(200));
        }
    });
    seen.push(past.get());
    seen.dedup();
    seen.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// A long prompt on a device whose steps take a while.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_long_prompts() {
    const STEPS: u32 = 12;
    let driver = Driver::get();
    let options = LoadOptions { n_batch: Some(128), n_ctx: Some(3000), prompt_cache: 0, ..LoadOptions::default() };
    let engine = Engine::load(&models::data("tiny-llama-q8_0.gguf"), &options).unwrap();
    let prompt: Vec<u32> = (0..128 * STEPS).map(|i| (i * 31 + 5) % (engine.n_vocab() as u32 - 8) + 4).collect();
    let start = |tokens: &[u32]| Session::start(&engine, Prompt::Tokens(tokens), &session_options(5)).unwrap();
    let launches = |tokens: &[u32]| {
        let before = driver.count("launches");
        let taken = take(&mut start(tokens), 5);
        (driver.count("launches") - before, taken)
    };
    let ((of_whole, whole), (of_two, _), (_, short)) =
        (launches(&prompt), launches(&prompt[..256]), launches(&prompt[..9]));
    let of_step = (of_whole - of_two) as u32 / (STEPS - 2);
    let slow = |step: Duration| driver.slow(step / of_step);

    // Who comes while it is busy is in the next step, for which the long prompt makes room.
    slow(Duration::from_millis(20));
    let mut session = start(&prompt);
    let past = session.past();
    let steps = watched(&past.clone(), || {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while past.get() < 2 * 128 {
                    std::thread::sleep(Duration::from_micros(200));
                }
                assert_eq!(take(&mut start(&prompt[..9]), 5), short);
            });
            assert_eq!(take(&mut session, 5), whole);
        });
    });
    // Some short ones may be seen as one.
    let is_cut = |step: &usize| *step < 128 && step.is_multiple_of(32);
    assert!(steps.iter().any(is_cut), "{steps:?}");
    drop(session);

    // Steps that take too long become shorter.
    slow(Duration::from_millis(120));
    let mut session = start(&prompt);
    let steps = watched(&session.past(), || assert_eq!(take(&mut session, 5), whole));
    let n_short = steps.iter().filter(|step| **step == 64).count();
    assert!(steps.starts_with(&[128, 128]) && n_short > 10, "{steps:?}");
    drop(session);

    // Who cancels while the device is busy: nothing is started any more.
    let step = Duration::from_millis(400);
    slow(step);
    let mut session = start(&prompt);
    let (cancel, past) = (session.cancel_flag(), session.past());
    let took = std::thread::scope(|scope| {
        let call = scope.spawn(|| (session.peek_token().map(|_| ()), Instant::now()));
        while past.get() < 3 * 64 {
            std::thread::sleep(Duration::from_micros(200));
        }
        // Until all of the step has been launched.
        let (mut launched, mut same) = (0, 0);
        while same < 10 {
            let now = driver.count("launches");
            same = if now == launched { same + 1 } else { 0 };
            launched = now;
            std::thread::sleep(Duration::from_millis(1));
        }
        cancel.store(true, Ordering::Relaxed);
        let at = Instant::now();
        let (outcome, ended) = call.join().unwrap();
        assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
        assert_eq!(driver.count("launches"), launched, "launches after a cancellation");
        ended.saturating_duration_since(at)
    });
    assert!(took < step && past.get() < prompt.len(), "{took:?}");
    drop(session);
    say("done");
}

#[test]
fn long_prompts_can_be_cancelled_and_let_others_in() {
    let run = run("child_long_prompts", &[]);
    run.assert_clean("long prompts");
    assert_eq!(run.said, ["done"]);
}

/// A step that takes a while, of a model with eight layers, is given up in one of them.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_long_step() {
    let (driver, folder) = (Driver::get(), Folder::new());
    let path = folder.write("model.gguf", &random_model::draft(&LARGE_PAGES, &[QuantType::F32], 1).writer());
    let options = LoadOptions { n_batch: Some(128), n_ctx: Some(4096), prompt_cache: 0, ..LoadOptions::default() };
    let engine = Engine::load(&path, &options).unwrap();
    let start = |n: u32| {
        let prompt: Vec<u32> = (0..n).map(|i| i * 31 % 280 + 4).collect();
        Session::start(&engine, Prompt::Tokens(&prompt), &session_options(1)).unwrap()
    };
    let launches = |n: u32| {
        let before = driver.count("launches");
        take(&mut start(n), 1);
        driver.count("launches") - before
    };
    let whole = take(&mut start(1280), 1);
    let of_step = (launches(1280) - launches(256)) / 8;
    // The first shows that the device is slow; the others have 64 rows and come in parts.
    let step = Duration::from_millis(800);
    driver.slow(step / of_step as u32);
    let mut session = start(1280);
    let (cancel, past) = (session.cancel_flag(), session.past());
    std::thread::scope(|scope| {
        let call = scope.spawn(|| (session.peek_token().map(|_| ()), Instant::now()));
        while past.get() < 128 + 64 {
            std::thread::sleep(Duration::from_micros(200));
        }
        let before = driver.count("launches");
        while driver.count("launches") < before + of_step / 2 {
            std::thread::sleep(Duration::from_micros(200));
        }
        cancel.store(true, Ordering::Relaxed);
        let (at, launched) = (Instant::now(), driver.count("launches"));
        let (outcome, ended) = call.join().unwrap();
        assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
        let (took, more) = (ended.saturating_duration_since(at), driver.count("launches") - launched);
        assert!(took < step / 2 && more < of_step / 4, "{took:?}, {more} of {of_step} launches");
    });
    drop(session);
    driver.slow(Duration::ZERO);
    assert_eq!(take(&mut start(1280), 1), whole, "after a step that was given up");
    say("done");
}

#[test]
fn a_long_step_is_given_up_within_two_of_its_parts() {
    let run = run("child_long_step", &[]);
    run.assert_clean("a long step");
    assert_eq!(run.said, ["done"]);
}

/// A further turn behind a long context is attended to in parts where there is memory for them, and as well without.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_parts() {
    // Less than the device has multiprocessors.
    const FEW_HEADS: Shape = Shape { n_head: 2, n_head_kv: 2, ..LARGE_PAGES };
    let (driver, folder) = (Driver::get(), Folder::new());
    let path = folder.write("model.gguf", &random_model::draft(&FEW_HEADS, &[QuantType::F32], 1).writer());
    let options = LoadOptions { n_ctx: Some(4096), prompt_cache: 0, ..LoadOptions::default() };
    let engine = Engine::load(&path, &options).unwrap();
    let prompt: Vec<u32> = (0..1200).map(|i| i * 31 % 280 + 4).collect();
    let turns = |left: usize| {
        let mut session = Session::start(&engine, Prompt::Tokens(&prompt), &session_options(3)).unwrap();
        take(&mut session, 3);
        driver.leave(left);
        let before = (driver.count("launches"), engine.memory().bytes(Purpose::Workspace));
        session.append(Prompt::Tokens(&prompt[..9])).unwrap();
        let said = take(&mut session, 3);
        let took = engine.memory().bytes(Purpose::Workspace) - before.1;
        driver.leave(1 << 29);
        (said, driver.count("launches") - before.0, took)
    };
    let (short, roomy, again) = (turns(1 << 20), turns(1 << 29), turns(1 << 20));
    assert_eq!((&short.0, &roomy.0), (&roomy.0, &again.0));
    assert_eq!((short.2, roomy.2, again.2), (0, 64 << 20, 0));
    // Each of eight layers has a kernel more that joins.
    assert_eq!((roomy.1, again.1), (short.1 + 8, short.1 + 8));
    // Where pages lack memory, they get that of the parts.
    let long: Vec<u32> = (0..3000).map(|i| i * 17 % 280 + 4).collect();
    let start = || Session::start(&engine, Prompt::Tokens(&long), &session_options(3)).unwrap();
    let (mut first, mut second) = (start(), start());
    take(&mut first, 3);
    driver.leave(1 << 20);
    let held = || [Purpose::Cache, Purpose::Workspace].map(|purpose| engine.memory().bytes(purpose));
    let before = held();
    take(&mut second, 3);
    assert!(held()[0] > before[0] && held()[1] + (64 << 20) <= before[1] + (1 << 20), "{before:?}, {:?}", held());
    assert_eq!((driver.count("misuse"), driver.count("unpopped")), (0, 0));
    say("done");
}

#[test]
fn attention_in_parts_needs_no_memory_that_is_not_there() {
    let run = run("child_parts", &[]);
    run.assert_clean("parts");
    assert_eq!(run.said, ["done"]);
}

/// What ended inferences have left makes room when there is no other memory.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_room() {
    let (driver, folder) = (Driver::get(), Folder::new());
    let path = folder.write("model.gguf", &random_model::draft(&LARGE_PAGES, &[QuantType::F32], 1).writer());
    let options = LoadOptions { n_ctx: Some(4096), ..LoadOptions::default() };
    let engine = Engine::load(&path, &options).unwrap();
    let tokens = |i: u32| vec![i + 4; 1000];
    let run = |i: u32| {
        let mut session = Session::start(&engine, Prompt::Tokens(&tokens(i)), &session_options(4)).unwrap();
        (take(&mut session, 4).len(), session.cached_tokens())
    };
    for i in 0..8 {
        assert_eq!(run(i), (4, 0));
    }
    assert_eq!(run(0), (4, 15 * 64));
    let kept = engine.prompt_cache_bytes();
    assert_eq!(kept, 8 * 15 * (2 << 20));
    // Nothing more is to be had: each takes the place of the one that was not used for longest.
    driver.leave(1 << 20);
    for i in 8..20 {
        assert_eq!(run(i), (4, 0), "{i}");
        assert!(engine.prompt_cache_bytes() <= kept);
    }
    assert_eq!(run(19), (4, 15 * 64));
    // One that needs all of it gets it, and then there is none.
    let long = vec![7; 4000];
    let mut session = Session::start(&engine, Prompt::Tokens(&long), &session_options(4)).unwrap();
    assert_eq!(take(&mut session, 4).len(), 4);
    drop(session);
    assert!(engine.prompt_cache_bytes() > 0);
    driver.leave(1 << 30);
    drop(engine);
    say("done");
}

#[test]
fn what_is_kept_makes_room() {
    let run = run("child_room", &[]);
    run.assert_clean("room");
    assert_eq!(run.said, ["done"]);
}

/// Loads and frees a model 250 times.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_reloads() {
    let (driver, host) = (Driver::get(), host());
    let path = models::data("tiny-llama.gguf");
    let load = || {
        let model = c_api::load(&path, host[0]).unwrap();
        let bytes = c_api::model_count(model, c"memory_bytes").unwrap();
        assert_eq!(driver.count("bytes"), bytes, "the books are what the driver gave");
        c_api::model_free(model).unwrap();
        bytes
    };
    let bytes = load();
    load();
    let held = settled();
    for turn in 0..250 {
        assert_eq!(load(), bytes, "load {turn}");
        driver.assert_clean(&format!("load {turn}"));
        settles(held, turn);
    }
}

#[test]
fn r12_a_thousand_loads_leave_nothing() {
    in_parts("child_reloads", 4, &[]).iter().for_each(|run| run.assert_clean("loads"));
}

fn on(device: &[u8]) -> Host {
    let host = host();
    for options in host {
        c_api::options_set(options, b"device", Setting::Text(device)).unwrap();
    }
    host
}

/// Lives on two devices at once; then one is lost, while an inference runs on the other.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_two_devices() {
    let (driver, expected) = (Driver::get(), good_life(&host()));
    let lives = std::thread::scope(|scope| {
        let lives = |device| scope.spawn(move || [good_life(&on(device)), good_life(&on(device))]);
        [lives(b"cuda:0"), lives(b"cuda:1"), lives(b"cuda:1")].map(|life| life.join().unwrap())
    });
    lives.iter().flatten().for_each(|life| assert_eq!(*life, expected));
    driver.assert_clean("two devices");

    let (first, second) = (on(b"cuda:0"), on(b"cuda:1"));
    let model = c_api::load(&models::data("tiny-llama-q8_0.gguf"), first[0]).unwrap();
    let inference = c_api::start(model, b"spring, summer, autumn", first[0]).unwrap();
    let mut buffer = [0; 64];
    let n = c_api::next_text(inference, &mut buffer).unwrap() as usize;
    driver.trap(80, 700);
    let lost = life(&second);
    assert!(lost.failures.iter().all(|(_, status)| *status == Status::DeviceLost), "{lost:?}");
    assert!(!lost.failures.is_empty() && lost.texts != expected.texts);
    let text = String::from_utf8_lossy(&buffer[..n]).into_owned() + &c_api::text(inference).unwrap();
    assert_eq!(text, expected.texts[0]);
    assert_eq!((c_api::inference_free(inference), c_api::model_free(model)), (Ok(0), Ok(0)));
    assert_eq!(good_life(&first), expected);
    assert_eq!(c_api::load(&models::data("tiny-llama.gguf"), second[0]), Err(Status::DeviceLost));
}

#[test]
fn r13_models_on_two_devices_write_what_they_write_alone_also_when_one_is_lost() {
    let run = run("child_two_devices", &[("FAKE_CUDA_DEVICES", "90,90")]);
    assert_eq!((run.count("misuse"), run.count("unpopped")), (0, 0), "{run:?}");
}

/// A model of 36 MB, almost all of it in its feed-forward layer.
const LARGE: Shape = Shape { n_layer: 1, n_ff: 8192, n_embd: 1024, n_vocab: 2048, tied: false, ..LARGE_PAGES };

fn large(folder: &Folder) -> PathBuf {
    folder.write("large.gguf", &random_model::draft(&LARGE, &[QuantType::Q8_0], 1).writer())
}

/// Loads a model that is larger than what the load may take of the host.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_bounded() {
    let (driver, folder) = (Driver::get(), Folder::new());
    let (path, options) = (large(&folder), options(1, &[]));
    let file_bytes = std::fs::metadata(&path).unwrap().len() as i64;
    let (before, mut most) = (alloc::process().bytes, 0);
    let load = c_api::load_start(&path, options).unwrap();
    while c_api::load_progress(load).unwrap().2 {
        most = most.max(alloc::process().bytes - before);
        std::thread::yield_now();
    }
    let model = c_api::load_finish(load).unwrap();
    // Two slots of 4 MiB for each of the readers, of which there are as many as cores, up to 12; the rows that they widen,
    // the tokenizer, the samplers.
    let n_readers = std::thread::available_parallelism().unwrap().get().min(12) as i64;
    let (bound, found) = (n_readers * (8 << 20) + (4 << 20), driver.count("most_pinned") + most as i64);
    say(format!("{found} of at most {bound}, in a file of {file_bytes}"));
    assert!(found <= bound && most > 0);
    assert_eq!(c_api::model_free(model), Ok(0));
}

/// Loads it again and again with more and more memory.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_limited() {
    let (driver, folder) = (Driver::get(), Folder::new());
    let (path, options) = (large(&folder), options(3, &[]));
    let mut n_failures = 0;
    // Around 64 MiB the heap of a thread takes what the start of the next would need.
    let limits = [4, 8, 16, 32, 48].into_iter().chain((50..84).step_by(2)).chain([96, 128, 160, 192, 256, 384, 512]);
    for megabytes in limits.clone() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
        let size: u64 = size.trim().strip_suffix(" kB").unwrap().parse().unwrap();
        limit_memory((size << 10) + (megabytes << 20));
        let outcome = c_api::load(&path, options);
        limit_memory(u64::MAX);
        match outcome {
            Ok(model) => assert_eq!(c_api::model_free(model), Ok(0)),
            Err(status) => {
                assert_eq!(status, Status::OutOfMemory, "{megabytes} MiB");
                n_failures += 1;
            }
        }
        say(format!("{megabytes} MiB: {outcome:?}"));
        driver.assert_clean(&format!("{megabytes} MiB"));
    }
    assert!((1..limits.count()).contains(&n_failures));
}

/// Sets how much address space the process may have.
fn limit_memory(bytes: u64) {
    #[repr(C)]
    struct Limit {
        now: u64,
        most: u64,
    }
    unsafe extern "C" {
        fn setrlimit(resource: i32, limit: *const Limit) -> i32;
    }
    const RLIMIT_AS: i32 = 9;
    let limit = Limit { now: bytes, most: u64::MAX };
    // SAFETY: it reads the limit, a local.
    assert_eq!(unsafe { setrlimit(RLIMIT_AS, &raw const limit) }, 0);
}

#[test]
fn r15_a_load_takes_no_more_of_the_host_than_it_says_and_survives_a_limit() {
    for child in ["child_bounded", "child_limited"] {
        let run = run(child, &[]);
        run.assert_clean(child);
    }
}

#[test]
fn r16_a_model_needs_no_home_and_writes_no_file() {
    let folder = Folder::new();
    let nowhere = "/proc/no/such/folder";
    let variables = [("HOME", ""), ("TMPDIR", nowhere), ("XDG_CACHE_HOME", nowhere), ("CUDA_CACHE_PATH", nowhere)];
    fake_driver::run_in(&folder.0, "child_life", &variables).assert_clean("nowhere to write");
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0);
}

/// Loads a model with what batches it likes.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_batches() {
    let options = LoadOptions { n_ctx: Some(64), ..LoadOptions::default() };
    say(match Engine::load(&models::data("tiny-llama.gguf"), &options) {
        Ok(engine) => engine.n_batch().to_string(),
        Err(error) => error.status().name().to_string(),
    });
    Driver::get().assert_clean("batches");
}

/// Batches are as large as the memory allows, where nobody says how large.
#[test]
fn batches_fit_into_the_memory() {
    let of = |mebibytes: u64| {
        let run = run("child_batches", &[("FAKE_CUDA_MEMORY", &(mebibytes << 20).to_string())]);
        run.assert_clean("batches");
        run.said[0].clone()
    };
    let found: Vec<String> = (50..76).step_by(2).map(of).collect();
    println!("{found:?}");
    let sizes: Vec<usize> = found.iter().filter_map(|text| text.parse().ok()).collect();
    assert!(found[..found.len() - sizes.len()].iter().all(|text| text == "OUT_OF_MEMORY"), "{found:?}");
    assert!(sizes.is_sorted() && sizes.iter().all(|n| (128..=2048).contains(n)), "{found:?}");
    assert!(sizes.first() < sizes.last() && sizes.last() == Some(&2048), "{found:?}");
}

/// Cards with less shared memory have blocks of their own; every launch fits, or the driver would refuse it.
#[test]
fn every_card_takes_every_launch() {
    let expected = run("child_life", &[]).said[0].clone();
    for architecture in ["80", "86", "89", "120"] {
        let run = run("child_life", &[("FAKE_CUDA_DEVICES", architecture)]);
        run.assert_clean(architecture);
        assert_eq!(run.said[0], expected, "sm_{architecture}");
    }
}

/// Every architecture: prompts in batches, single rows, and rows of several sequences, further than windows and rings go.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_architectures() {
    let mut names: Vec<PathBuf> = std::fs::read_dir(models::data("arch")).unwrap().map(|e| e.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    for path in names {
        let gguf = Gguf::open(&path).unwrap();
        let desc = arch::describe(gguf.metadata()).unwrap();
        let plan = Weights::plan(&gguf, &desc).unwrap();
        let (context, sizes) = (Context::open(0).unwrap(), (512, 80..=80, DecodePath::Auto));
        let mut backend =
            CudaBackend::load(&gguf, &desc, &plan, || Ok(context), sizes, &Progress::default(), &mut || Ok(()))
                .unwrap();
        let row = |sequence, position: usize| Row { token: 1, position: position as u32, sequence, logits: true };
        let mut run = |rows: &[Row]| {
            rows.iter().for_each(|row| backend.sequence_reserve(row.sequence, row.position as usize + 1).unwrap());
            backend.forward(rows).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            backend.logits(rows.len() - 1).unwrap();
        };
        let mut position = 0;
        for n in [80, 1, 5, 20, 1, 80, 80, 80, 80, 1] {
            if position + n > desc.max_positions().unwrap_or(512) {
                break;
            }
            run(&(position..position + n).map(|position| row(1, position)).collect::<Vec<_>>());
            position += n;
        }
        for position in 0..70 {
            run(&[2, 3, 4].map(|sequence| row(sequence, position)));
        }
        drop(backend);
    }
    say("done");
}

/// Pages of a ring that were written again are not there any more, whatever was taken away since.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_rings() {
    for file in ["arch/gemma2.gguf", "arch/gpt-oss.gguf", "arch/phi3-window.gguf"] {
        let gguf = Gguf::open(&models::data(file)).unwrap();
        let desc = arch::describe(gguf.metadata()).unwrap();
        let plan = Weights::plan(&gguf, &desc).unwrap();
        let (context, sizes) = (Context::open(0).unwrap(), (1024, 30..=30, DecodePath::Auto));
        let mut backend =
            CudaBackend::load(&gguf, &desc, &plan, || Ok(context), sizes, &Progress::default(), &mut || Ok(()))
                .unwrap();
        for end in (450..900).step_by(7) {
            backend.sequence_reserve(1, end).unwrap();
            let held: Vec<bool> = (0..end).map(|n| backend.sequence_holds(1, n)).collect();
            assert!(held[end - 1] && !held[1], "{file}: a ring as long as the text tells nothing");
            for to in (1..end).rev().filter(|to| to % 3 == 0) {
                if !backend.sequence_rewind(1, to).unwrap() {
                    break;
                }
                assert!((0..to).all(|n| held[n] || !backend.sequence_holds(1, n)), "{file}: from {end} back to {to}");
            }
            backend.sequence_free(1);
        }
    }
    say("done");
}

#[test]
fn pages_that_a_ring_has_lost_do_not_come_back() {
    let run = run("child_rings", &[("FAKE_CUDA_DEVICES", "90")]);
    assert_eq!(run.said, ["done"]);
    run.assert_clean("rings");
}

#[test]
fn every_architecture_takes_every_launch() {
    for architecture in ["80", "90"] {
        let run = run("child_architectures", &[("FAKE_CUDA_DEVICES", architecture)]);
        assert_eq!(run.said, ["done"]);
        run.assert_clean(architecture);
    }
}
