//! Generations on a tiny trained model that knows a few answers by heart.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/models.rs"]
mod models;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kigo::engine::{Engine, LoadOptions};
use kigo::sampler::{GrammarText, SamplingParams, Step};
use kigo::session::{FinishReason, Prompt, Session, SessionOptions};
use kigo::{Error, Status};

const HAIKU: &str = "Rain counts on the roof,\nthe old clock listens and learns\na number by heart.";
const JAPANESE: &str = "古池や 蛙飛びこむ 水の音 🐸🌸";

fn load_options() -> LoadOptions {
    LoadOptions { device: "cpu".into(), n_threads: Some(2), ..Default::default() }
}

fn engine_with(change: impl FnOnce(&mut LoadOptions)) -> Arc<Engine> {
    let mut options = load_options();
    change(&mut options);
    Engine::load(&models::data("tiny-llama.gguf"), &options).unwrap()
}

fn engine() -> Arc<Engine> {
    engine_with(|_| ())
}

fn greedy() -> SessionOptions {
    let sampling = SamplingParams { temperature: 0.0, ..Default::default() };
    SessionOptions { sampling, ..Default::default() }
}

fn seeded(seed: u64) -> SessionOptions {
    let sampling = SamplingParams { temperature: 1.5, top_k: 0, top_p: 1.0, min_p: 0.0, seed, ..Default::default() };
    SessionOptions { sampling, max_tokens: Some(40), ..Default::default() }
}

fn text(session: &mut Session) -> Result<String, Error> {
    let mut all = String::new();
    while let Some(piece) = session.peek_text()? {
        all.push_str(piece);
        session.take_text();
    }
    Ok(all)
}

fn tokens(session: &mut Session) -> Vec<u32> {
    let mut all = Vec::new();
    while let Some((token, _)) = session.peek_token().unwrap() {
        all.push(token);
        session.take_token();
    }
    all
}

fn answer(engine: &Arc<Engine>, prompt: Prompt, options: &SessionOptions) -> String {
    text(&mut Session::start(engine, prompt, options).unwrap()).unwrap()
}

#[test]
fn answers_and_ends() {
    let engine = engine();
    for (question, expected) in [("Write a haiku.", HAIKU), ("Schreibe es auf Japanisch.", JAPANESE)] {
        let mut session = Session::start(&engine, Prompt::User(question), &greedy()).unwrap();
        assert_eq!(session.finish_reason(), None);
        assert_eq!(text(&mut session).unwrap(), expected);
        assert_eq!(session.finish_reason(), Some(FinishReason::EndOfGeneration));
        assert_eq!(session.peek_text().unwrap(), None);
        assert!(session.generated_tokens() > 20 && session.prompt_tokens() > 20);
        assert!(session.prompt_time() > Duration::ZERO && session.generate_time() > Duration::ZERO);
    }
}

#[test]
fn the_prompt_forms_agree() {
    let engine = engine();
    let json = r#"[{"role": "user", "content": "Write a haiku."}]"#;
    assert_eq!(answer(&engine, Prompt::Chat(json), &greedy()), HAIKU);
    let ids = |special| kigo::tokenizer::EncodeOptions { parse_special: special, ..Default::default() };
    let rendered = "<|im_start|>user\nWrite a haiku.<|im_end|>\n<|im_start|>assistant\n";
    let trusted = engine.tokenizer().encode(rendered, ids(true)).unwrap();
    assert_eq!(answer(&engine, Prompt::Tokens(&trusted), &greedy()), HAIKU);
    let untrusted = Session::start(&engine, Prompt::Text(rendered), &greedy()).unwrap();
    assert!(untrusted.prompt_tokens() > trusted.len() + 20, "text in a prompt never becomes a control token");
}

#[test]
fn prompts_of_workers_are_rendered_once() {
    let engine = engine();
    let rendered = "<|im_start|>user\nWrite a haiku.<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(answer(&engine, Prompt::Rendered(rendered), &greedy()), HAIKU);
    assert_eq!(answer(&engine, Prompt::RenderedOrUser(rendered), &greedy()), HAIKU);
    assert_eq!(answer(&engine, Prompt::RenderedOrUser("Write a haiku."), &greedy()), HAIKU);
    let n_tokens = |prompt| Session::start(&engine, prompt, &greedy()).unwrap().prompt_tokens();
    let text = "Write a haiku.";
    assert_eq!(n_tokens(Prompt::Rendered(text)), n_tokens(Prompt::Text(text)), "nothing is added to a bare text");
    let with_control = n_tokens(Prompt::Rendered("Write<|im_end|>"));
    assert_eq!(n_tokens(Prompt::RenderedOrUser("Write<|im_end|>")), with_control);
    let too_long = "a".repeat(1 << 20);
    for prompt in [Prompt::Rendered(&too_long), Prompt::RenderedOrUser(&too_long)] {
        assert_eq!(Session::start(&engine, prompt, &greedy()).err().map(|e| e.status()), Some(Status::PromptTooLong));
    }
}

#[test]
fn pieces_are_whole_characters_and_concatenate_t09() {
    let engine = engine();
    let mut session = Session::start(&engine, Prompt::User("Schreibe es auf Japanisch."), &greedy()).unwrap();
    let mut bytes = Vec::new();
    while let Some((_, piece)) = session.peek_token().unwrap() {
        bytes.extend_from_slice(piece);
        session.take_token();
    }
    assert_eq!(String::from_utf8(bytes).unwrap(), JAPANESE, "raw bytes of tokens are the text too");

    let mut cut = greedy();
    cut.max_tokens = Some(1);
    let mut session = Session::start(&engine, Prompt::User("Schreibe es auf Japanisch."), &cut).unwrap();
    assert_eq!(text(&mut session).unwrap(), "\u{fffd}", "an incomplete character at the end is not lost in silence");
}

#[test]
fn pieces_stay_until_taken() {
    let engine = engine();
    let mut session = Session::start(&engine, Prompt::User("Write a haiku."), &greedy()).unwrap();
    let first = session.peek_text().unwrap().unwrap().to_string();
    assert_eq!(session.peek_text().unwrap().unwrap(), first);
    session.take_text();
    let second = session.peek_text().unwrap().unwrap().to_string();
    assert!(HAIKU.starts_with(&(first + &second)));
}

#[test]
fn stop_strings_cut_exactly_t10() {
    let engine = engine();
    let ask = |stop: &[&str]| {
        let options = SessionOptions { stop: stop.iter().map(|s| s.to_string()).collect(), ..greedy() };
        let mut session = Session::start(&engine, Prompt::User("Write a haiku."), &options).unwrap();
        let text = text(&mut session).unwrap();
        (text, session.finish_reason().unwrap())
    };
    assert_eq!(ask(&["clock lis"]), ("Rain counts on the roof,\nthe old ".into(), FinishReason::StopString));
    assert_eq!(ask(&["nothing", "roof,\nthe"]), ("Rain counts on the ".into(), FinishReason::StopString));
    assert_eq!(ask(&["Rain"]), (String::new(), FinishReason::StopString));
    assert_eq!(ask(&["heart. and"]), (HAIKU.into(), FinishReason::EndOfGeneration), "held text is released");
}

#[test]
fn max_tokens_t17_c13() {
    let engine = engine();
    for n in [0, 1, 5] {
        let options = SessionOptions { max_tokens: Some(n), ..greedy() };
        let mut session = Session::start(&engine, Prompt::Text("spring, "), &options).unwrap();
        assert_eq!(tokens(&mut session).len(), n);
        assert_eq!(session.finish_reason(), Some(FinishReason::MaxTokens));
        assert_eq!(session.generated_tokens(), n);
    }
}

#[test]
fn prompt_lengths_around_the_context_t01_t02() {
    let engine = engine_with(|o| o.n_ctx = Some(40));
    let start = |n: usize| Session::start(&engine, Prompt::Tokens(&vec![35; n]), &greedy());
    assert!(matches!(start(0), Err(Error::EmptyPrompt)));
    for n in [40, 41, 100_000] {
        let error = start(n).err().unwrap();
        assert_eq!(error.status(), Status::PromptTooLong);
        assert!(error.to_string().contains(&format!("{n} tokens")) && error.to_string().contains("of 40"), "{error}");
    }
    let mut session = start(39).unwrap();
    assert!(session.peek_token().unwrap().is_some());
    session.take_token();
    assert!(matches!(session.peek_token(), Err(Error::ContextFull { n_ctx: 40 })));
}

#[test]
fn long_texts_are_refused_before_they_are_tokenised_t05() {
    let engine = engine();
    let huge = "a".repeat(64 << 20);
    let started = Instant::now();
    let error = Session::start(&engine, Prompt::Text(&huge), &greedy()).err().unwrap();
    assert_eq!(error.status(), Status::PromptTooLong);
    assert!(started.elapsed() < Duration::from_millis(500));
}

#[test]
fn a_full_context_is_a_status_again_and_again_t03() {
    let engine = engine_with(|o| o.n_ctx = Some(60));
    let mut session = Session::start(&engine, Prompt::Text("spring, summer, "), &greedy()).unwrap();
    let mut all = String::new();
    let error = loop {
        match session.peek_text() {
            Ok(piece) => all.push_str(piece.unwrap()),
            Err(error) => break error,
        }
        session.take_text();
    };
    assert!(matches!(error, Error::ContextFull { n_ctx: 60 }));
    assert_eq!(session.prompt_tokens() + session.generated_tokens(), 60);
    assert!(all.contains("winter, spring, "), "{all}");
    for _ in 0..3 {
        assert!(matches!(session.peek_text(), Err(Error::ContextFull { .. })));
    }
    assert_eq!(session.finish_reason(), Some(FinishReason::ContextFull));
}

#[test]
fn seeds_decide_t18() {
    let engine = engine();
    let ask = |seed| answer(&engine, Prompt::User("Who are you?"), &seeded(seed));
    let first = ask(1);
    for _ in 0..20 {
        assert_eq!(ask(1), first);
    }
    let others: std::collections::HashSet<String> = (2..12).map(ask).collect();
    assert!(others.len() > 5, "{others:?}");
}

/// Options beyond the usual, some of which have a state.
fn unusual(seed: u64) -> Vec<SessionOptions> {
    let with = |change: fn(&mut SamplingParams)| {
        let mut options = seeded(seed);
        change(&mut options.sampling);
        options
    };
    let regex = Some(GrammarText::Regex("[a-z ]{10,60}[.!]".into()));
    vec![
        with(|p| p.mirostat = true),
        with(|p| (p.dry_multiplier, p.dry_allowed_length) = (2.0, 1)),
        with(|p| (p.xtc_probability, p.xtc_threshold) = (0.5, 0.05)),
        with(|p| (p.presence_penalty, p.frequency_penalty, p.repeat_last_n) = (1.0, 0.5, 20)),
        with(|p| (p.typical_p, p.top_n_sigma, p.min_keep) = (0.9, 1.5, 3)),
        with(|p| (p.dynatemp_range, p.samplers) = (0.5, vec![Step::Temperature, Step::TopP, Step::Penalties].into())),
        SessionOptions { grammar: regex, ..with(|p| p.logprobs = 5) },
    ]
}

#[test]
fn whatever_the_options_the_same_seed_gives_the_same_tokens_alone_and_in_company_t18() {
    let engine = engine();
    let run =
        |options: &SessionOptions| tokens(&mut Session::start(&engine, Prompt::Text("Tell me"), options).unwrap());
    let all: Vec<SessionOptions> = (0..3).flat_map(unusual).collect();
    let alone: Vec<Vec<u32>> = all.iter().map(run).collect();
    assert!(alone.iter().all(|tokens| !tokens.is_empty()));
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|options| scope.spawn(|| run(options))).collect();
        for (thread, expected) in threads.into_iter().zip(&alone) {
            assert_eq!(thread.join().unwrap(), *expected);
        }
    });
    assert_ne!(alone[0], alone[7], "another seed gives other tokens");
}

#[test]
fn the_logits_of_the_last_token_are_kept_on_request() {
    let engine = engine();
    let mut session = Session::start(&engine, Prompt::Text("Tell me"), &greedy()).unwrap();
    session.peek_token().unwrap();
    assert!(session.last_logits().is_none());
    let mut options = greedy();
    options.sampling.logprobs = 1;
    let mut session = Session::start(&engine, Prompt::Text("Tell me"), &options).unwrap();
    assert!(session.last_logits().is_none());
    for _ in 0..5 {
        let (token, _) = session.peek_token().unwrap().unwrap();
        session.take_token();
        let (last, logits) = session.last_logits().unwrap();
        assert_eq!((last, logits.len()), (token, engine.n_vocab()));
        let largest = logits.iter().copied().fold(f32::MIN, f32::max);
        assert_eq!(logits[token as usize], largest);
    }
}

#[test]
fn chunks_of_the_prompt_do_not_matter_t19() {
    let long = "spring, summer, autumn, winter, ".repeat(10);
    let run = |n_batch| {
        let engine = engine_with(|o| o.n_batch = Some(n_batch));
        let ask = |seed| tokens(&mut Session::start(&engine, Prompt::Text(&long), &seeded(seed)).unwrap());
        (0..4).map(ask).collect::<Vec<_>>()
    };
    let expected = run(512);
    assert!(expected.concat().len() > 40);
    for n_batch in [1, 7, 64] {
        assert_eq!(run(n_batch), expected, "chunks of {n_batch}");
    }
}

#[test]
fn threads_of_the_backend_do_not_matter() {
    let run = |n_threads| {
        let engine = engine_with(|o| o.n_threads = Some(n_threads));
        let ask = |seed| answer(&engine, Prompt::User("Who are you?"), &seeded(seed));
        (0..8).map(ask).collect::<Vec<_>>()
    };
    let expected = run(1);
    for n_threads in [2, 3, 8] {
        assert_eq!(run(n_threads), expected, "{n_threads} threads");
    }
}

#[test]
fn sixty_four_threads_get_what_each_would_get_alone_x01() {
    let engine = engine_with(|o| o.n_batch = Some(16));
    let questions = ["Write a haiku.", "Who are you?", "Schreibe es auf Japanisch.", "Something else entirely"];
    let ask = |i: u64| answer(&engine, Prompt::User(questions[i as usize % 4]), &seeded(i));
    let alone: Vec<String> = (0..64).map(ask).collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..64).map(|i| scope.spawn(move || ask(i))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}

/// A rayon worker that waits for another pool takes up other work of its own pool, which may be a second session.
#[test]
fn sessions_in_the_workers_of_a_host_that_uses_rayon() {
    use rayon::prelude::*;
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let engine = engine();
        let host = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let ask = |i: u64| answer(&engine, Prompt::User("Who are you?"), &seeded(i % 4));
        let together: Vec<String> =
            host.install(|| (0..48u32).into_par_iter().with_max_len(1).map(|i| ask(i.into())).collect());
        let alone: Vec<String> = (0..48).map(ask).collect();
        done.send(alone == together).unwrap();
    });
    assert!(finished.recv_timeout(Duration::from_secs(60)).expect("the sessions wait for each other"));
}

#[test]
fn cancel_from_another_thread_x03_x08() {
    let engine = engine_with(|o| o.n_batch = Some(1));
    let mut session = Session::start(&engine, Prompt::Text("spring, "), &greedy()).unwrap();
    let flag = session.cancel_flag();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        flag.store(true, Ordering::Relaxed);
    });
    let outcome = text(&mut session);
    canceller.join().unwrap();
    // The context may fill up first on a fast machine; either way the generation is over.
    assert!(matches!(outcome, Err(Error::Cancelled | Error::ContextFull { .. })), "{outcome:?}");

    let mut session = Session::start(&engine, Prompt::Text("spring, "), &greedy()).unwrap();
    session.cancel_flag().store(true, Ordering::Relaxed);
    for _ in 0..2 {
        assert!(matches!(session.peek_text(), Err(Error::Cancelled)));
    }
    assert_eq!(session.finish_reason(), Some(FinishReason::Cancelled));
    assert_eq!(session.generated_tokens(), 0);
}

#[test]
fn bad_prompts_name_what_is_wrong() {
    let engine = engine();
    let n_vocab = engine.n_vocab() as u32;
    let status = |prompt: Prompt<'_>| Session::start(&engine, prompt, &greedy()).err().unwrap();
    assert!(status(Prompt::Tokens(&[1, n_vocab])).to_string().contains("tokens[1]"));
    assert_eq!(status(Prompt::Tokens(&[u32::MAX])).status(), Status::InvalidArgument);
    for json in ["", "{}", "[", "[1]", "\"text\""] {
        assert_eq!(status(Prompt::Chat(json)).status(), Status::InvalidArgument, "{json}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(status(Prompt::Chat(&deep)).status(), Status::InvalidArgument);
    let options = SessionOptions {
        sampling: SamplingParams { temperature: f32::NAN, ..Default::default() },
        ..Default::default()
    };
    let error = Session::start(&engine, Prompt::Text("a"), &options).err().unwrap();
    assert_eq!(error.status(), Status::InvalidArgument);
}

#[test]
fn bad_load_options_name_what_is_wrong() {
    let load = |change: &dyn Fn(&mut LoadOptions)| {
        let mut options = load_options();
        change(&mut options);
        Engine::load(&models::data("tiny-llama.gguf"), &options).err().unwrap()
    };
    let missing = [Status::NoBackend, Status::NoDriver, Status::DriverTooOld, Status::NoDevice];
    assert!(missing.contains(&load(&|o| o.device = "cuda:999".into()).status()));
    assert_eq!(load(&|o| o.device = "cuda:-1".into()).status(), Status::InvalidArgument);
    assert_eq!(load(&|o| o.device = "tpu".into()).status(), Status::InvalidArgument);
    assert_eq!(load(&|o| o.n_ctx = Some(0)).status(), Status::InvalidArgument);
    assert_eq!(load(&|o| o.n_ctx = Some(1 << 32)).status(), Status::InvalidArgument);
    assert_eq!(load(&|o| o.n_batch = Some(0)).status(), Status::InvalidArgument);
    assert_eq!(load(&|o| o.n_threads = Some(0)).status(), Status::InvalidArgument);
}
