//! Sessions that go back, branch off and go on, and prompts that are known: the same bits as without all that. Steps are one kernel
//! where they can be, of several sequences too.

use std::sync::Arc;

use kigo::backend::{DecodePath, Purpose};
use kigo::engine::{Engine, LoadOptions};
use kigo::sampler::SamplingParams;
use kigo::session::{Prompt, Session, SessionOptions};

use super::folder::Folder;
use super::harness::*;
use super::models;

/// One without a window, and some with windows of different sizes.
const FILES: [&str; 4] = ["tiny-llama-q8_0.gguf", "arch/gemma2.gguf", "arch/gpt-oss.gguf", "arch/phi3-window.gguf"];
const PAGE: usize = 64;

fn engine(file: &str, prompt_cache: u64) -> Arc<Engine> {
    let (device, decode_path) = (gpu(), DecodePath::Step);
    let sizes = LoadOptions { n_batch: Some(50), n_ctx: Some(500), prompt_cache, ..LoadOptions::default() };
    let options = LoadOptions { device, decode_path, ..sizes };
    Engine::load(&models::data(file), &options).unwrap_or_else(|error| panic!("{error}"))
}

fn prompt(engine: &Engine, n: usize, salt: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 31 + salt * (i % 7) + 5) % (engine.n_vocab() - 8)) as u32 + 4).collect()
}

/// Drawn on the device, with a window of tokens there; and on the host, where the logits come too.
fn options() -> [SessionOptions; 2] {
    [0, 1].map(|logprobs| {
        let sampling =
            SamplingParams { temperature: 1.2, repeat_penalty: 1.1, seed: 5, logprobs, ..SamplingParams::default() };
        SessionOptions { sampling, max_tokens: Some(90), ..SessionOptions::default() }
    })
}

fn start(engine: &Arc<Engine>, tokens: &[u32], options: &SessionOptions) -> Session {
    Session::start(engine, Prompt::Tokens(tokens), options).unwrap()
}

/// The next tokens, up to `n`, with the bits of the logits where they are kept.
fn take(session: &mut Session, n: usize) -> Vec<(u32, Vec<u32>)> {
    let mut all = Vec::new();
    while all.len() < n
        && let Some((token, _)) = session.peek_token().unwrap_or_else(|error| panic!("{error}"))
    {
        let logits = session.last_logits().map(|(_, logits)| bits(logits)).unwrap_or_default();
        all.push((token, logits));
        session.take_token();
    }
    all
}

/// With all sessions gone and the prompt cache emptied, nothing but the first chunks is left.
fn check_empty(engine: &Engine, first: u64) {
    engine.clear_prompt_cache().unwrap();
    assert_eq!((engine.memory().bytes(Purpose::Cache), engine.prompt_cache_bytes()), (first, 0));
}

#[test]
#[ignore = "needs a GPU"]
fn after_going_back_the_same_tokens_come_again() {
    for file in FILES {
        let engine = engine(file, 0);
        let first_bytes = engine.memory().bytes(Purpose::Cache);
        for options in options() {
            let prompt = prompt(&engine, 150, 1);
            let mut session = start(&engine, &prompt, &options);
            let first = take(&mut session, 90);
            for n in [150 + first.len(), 150 + first.len() - 1, 210, 193, 192, 191, 151, 150] {
                let n = n.min(150 + first.len());
                session.rewind(n).unwrap();
                assert!(take(&mut session, 90) == first[n - 150..], "{file}: back to {n}");
            }
            for n in [149, 129, 128, 70, 1] {
                session.rewind(n).unwrap();
                let fresh = take(&mut start(&engine, &prompt[..n], &options), 20);
                assert!(take(&mut session, 20) == fresh, "{file}: back to {n} of the prompt");
                session.rewind(n).unwrap();
            }
        }
        check_empty(&engine, first_bytes);
    }
}

/// Sequences that share pages decode in one batch, each with partial sums of its own: contexts are long enough for several.
#[test]
#[ignore = "needs a GPU"]
fn forks_decode_side_by_side() {
    for file in FILES {
        let engine = engine(file, 0);
        let first_bytes = engine.memory().bytes(Purpose::Cache);
        let prompt = prompt(&engine, 300, 2);
        for options in options() {
            let whole = take(&mut start(&engine, &prompt, &options), 60);
            for at in [0, 1, 19, 20, 21, 40].map(|at| at.min(whole.len())) {
                let mut session = start(&engine, &prompt, &options);
                assert!(take(&mut session, at) == whole[..at], "{file} {at}");
                let forks: Vec<Session> = (0..7).map(|_| session.fork(None).unwrap()).collect();
                let barrier = std::sync::Barrier::new(forks.len());
                std::thread::scope(|scope| {
                    for mut fork in forks {
                        let (barrier, whole) = (&barrier, &whole);
                        scope.spawn(move || {
                            barrier.wait();
                            assert!(take(&mut fork, 60 - at) == whole[at..], "{file} {at}: a fork");
                        });
                    }
                });
                assert!(take(&mut session, 60 - at) == whole[at..], "{file} {at}");
            }
        }
        check_empty(&engine, first_bytes);
    }
}

/// The device runs steps for all of them before they ask: who comes late, ends, starts anew or wants logits changes nothing for the
/// others.
#[test]
#[ignore = "needs a GPU"]
fn company_may_come_late_and_go() {
    for file in FILES {
        let engine = engine(file, 0);
        let first_bytes = engine.memory().bytes(Purpose::Cache);
        let [on_device, with_logits] = options();
        let prompts: Vec<Vec<u32>> = (0..6).map(|salt| prompt(&engine, 20 + 30 * salt, salt)).collect();
        let options_of = |i: usize| if i == 5 { &with_logits } else { &on_device };
        let alone = |i: usize| take(&mut start(&engine, &prompts[i], options_of(i)), 80);
        let alone: Vec<_> = (0..prompts.len()).map(alone).collect();
        for round in 0..3 {
            let barrier = std::sync::Barrier::new(prompts.len());
            std::thread::scope(|scope| {
                for (i, whole) in alone.iter().enumerate() {
                    let (barrier, engine, prompt, options) = (&barrier, &engine, &prompts[i], options_of(i));
                    scope.spawn(move || {
                        let mut session = start(engine, prompt, options);
                        barrier.wait();
                        for at in 0..whole.len() {
                            // Later than the others wait for it.
                            if i == 0 && at % 7 == round {
                                std::thread::sleep(std::time::Duration::from_millis(4));
                            }
                            if i == 1 && at == 25 + round {
                                session = start(engine, prompt, options);
                                assert!(take(&mut session, at) == whole[..at], "{file} {round}: started anew");
                            }
                            if i == 5 && at == 40 {
                                return;
                            }
                            assert!(
                                take(&mut session, 1) == whole[at..at + 1],
                                "{file} {round}: session {i}, token {at}"
                            );
                        }
                    });
                }
            });
        }
        check_empty(&engine, first_bytes);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_prompt_that_is_known_gives_the_same_bits() {
    for file in FILES {
        let (with, without) = (engine(file, 1 << 30), engine(file, 0));
        let first_bytes = with.memory().bytes(Purpose::Cache);
        let base = prompt(&with, 300, 3);
        let mut n_reused = 0;
        for (round, (n, more)) in
            [(300, 0), (300, 0), (200, 0), (200, 90), (128, 128), (65, 0), (64, 0), (300, 61)].into_iter().enumerate()
        {
            let tokens: Vec<u32> = base[..n].iter().copied().chain(prompt(&with, more, round)).collect();
            for options in options() {
                let mut found = start(&with, &tokens, &options);
                let expected = take(&mut start(&without, &tokens, &options), 40);
                assert!(take(&mut found, 40) == expected, "{file}: round {round}");
                assert!(found.cached_tokens().is_multiple_of(PAGE) && found.cached_tokens() < tokens.len());
                n_reused += found.cached_tokens();
            }
        }
        assert!(n_reused > 0, "{file}");
        assert!(with.prompt_cache_bytes() > 0);
        check_empty(&with, first_bytes);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_further_turn_is_what_the_whole_would_be() {
    for file in FILES {
        let engine = engine(file, 1 << 30);
        let (a, b) = (prompt(&engine, 170, 5), prompt(&engine, 50, 6));
        for at in [0, 1, 22, 23] {
            let mut session = start(&engine, &a, &SessionOptions { max_tokens: Some(at), ..options()[0].clone() });
            let said = take(&mut session, at);
            session.append(Prompt::Tokens(&b)).unwrap();
            let tokens: Vec<u32> = a.iter().copied().chain(said.iter().map(|step| step.0)).chain(b.clone()).collect();
            for options in options() {
                let found = take(&mut session.fork(Some(&options)).unwrap(), 30);
                let expected = take(&mut start(&self::engine(file, 0), &tokens, &options), 30);
                assert!(found == expected, "{file}: after {at}");
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_saved_state_goes_on_in_another_engine() {
    let folder = Folder::new();
    let path = folder.path("state");
    for file in FILES {
        let (engine, other) = (engine(file, 0), engine(file, 0));
        let prompt = prompt(&engine, 150, 7);
        for options in options() {
            let mut session = start(&engine, &prompt, &options);
            for n in [0, 1, 41, 42, 90] {
                take(&mut session, n);
                session.save(&path).unwrap();
                let mut loaded = Session::load(&other, &path, &options).unwrap();
                let expected = take(&mut session.fork(None).unwrap(), 60);
                assert!(take(&mut loaded, 60) == expected, "{file}: after {}", session.generated_tokens());
            }
        }
        // The CPU keeps its cache otherwise, and says so.
        let cpu = LoadOptions { device: "cpu".into(), n_ctx: Some(500), ..LoadOptions::default() };
        let cpu = Engine::load(&models::data(file), &cpu).unwrap();
        let error = Session::load(&cpu, &path, &options()[0]).err().unwrap();
        assert_eq!(error.status(), kigo::Status::BadState);
        assert!(error.to_string().contains("format of the cache"), "{error}");
    }
}
