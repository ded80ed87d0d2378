//! Sessions that go back, branch off and go on, with and without the prompt cache: whatever way a session came to its tokens,
//! what follows is what a session that starts with them gets.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/models.rs"]
mod models;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kigo::backend::Purpose;
use kigo::engine::{Engine, LoadOptions};
use kigo::sampler::{GrammarText, SamplingParams};
use kigo::session::{FinishReason, Prompt, Session, SessionOptions};
use kigo::{Error, Status};

const CHATTY: &str = "tiny-llama.gguf";
/// One without a window, and some with windows of different sizes.
const FILES: [&str; 5] = [CHATTY, "arch/gemma2.gguf", "arch/gemma3.gguf", "arch/gpt-oss.gguf", "arch/phi3-window.gguf"];
const PAGE: usize = 32;

fn load(file: &str, change: impl FnOnce(&mut LoadOptions)) -> Arc<Engine> {
    let mut options =
        LoadOptions { device: "cpu".into(), n_threads: Some(1), n_ctx: Some(500), ..LoadOptions::default() };
    change(&mut options);
    Engine::load(&models::data(file), &options).unwrap()
}

fn without_cache(file: &str) -> Arc<Engine> {
    load(file, |options| options.prompt_cache = 0)
}

fn prompt(engine: &Engine, n: usize, salt: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 31 + salt * (i % 7) + 5) % (engine.n_vocab() - 8)) as u32 + 4).collect()
}

/// Everything that looks at tokens before, or draws more than once.
fn seeded(seed: u64, n: usize) -> SessionOptions {
    let sampling = SamplingParams {
        temperature: 1.2,
        repeat_penalty: 1.1,
        dry_multiplier: 0.5,
        xtc_probability: 0.5,
        seed,
        logprobs: 1,
        ..SamplingParams::default()
    };
    SessionOptions { sampling, max_tokens: Some(n), ..SessionOptions::default() }
}

fn mirostat(seed: u64, n: usize) -> SessionOptions {
    let mut options = seeded(seed, n);
    options.sampling.mirostat = true;
    options
}

fn greedy() -> SessionOptions {
    let sampling = SamplingParams { temperature: 0.0, logprobs: 1, ..SamplingParams::default() };
    SessionOptions { sampling, ..SessionOptions::default() }
}

/// The next tokens, up to `n`, with the bits of the logits that each was drawn from.
fn take(session: &mut Session, n: usize) -> Vec<(u32, Vec<u32>)> {
    let mut all = Vec::new();
    while all.len() < n
        && let Some((token, _)) = session.peek_token().unwrap()
    {
        let bits = session.last_logits().unwrap().1.iter().map(|x| x.to_bits()).collect();
        all.push((token, bits));
        session.take_token();
    }
    all
}

fn text(session: &mut Session) -> Result<String, Error> {
    let mut all = String::new();
    while let Some(piece) = session.peek_text()? {
        all.push_str(piece);
        session.take_text();
    }
    Ok(all)
}

fn start(engine: &Arc<Engine>, tokens: &[u32], options: &SessionOptions) -> Session {
    Session::start(engine, Prompt::Tokens(tokens), options).unwrap()
}

#[test]
fn after_going_back_the_same_tokens_come_again() {
    for file in FILES {
        for options in [seeded(3, 90), mirostat(4, 90), greedy()] {
            let engine = without_cache(file);
            let prompt = prompt(&engine, 100, 1);
            let mut session = start(&engine, &prompt, &options);
            let first = take(&mut session, 90);
            for n in [100 + first.len(), 100 + first.len() - 1, 140, 101, 100].map(|n| n.min(100 + first.len())) {
                session.rewind(n).unwrap();
                assert_eq!((session.prompt_tokens(), session.generated_tokens()), (100, n - 100));
                let again = take(&mut session, 100 + first.len() - n);
                assert!(again == first[n - 100..], "{file}: back to {n}");
            }
            // Into the prompt: what is left of it is the prompt.
            for n in [99, 70, 1] {
                session.rewind(n).unwrap();
                assert_eq!((session.prompt_tokens(), session.generated_tokens()), (n, 0));
                let fresh = take(&mut start(&engine, &prompt[..n], &options), 20);
                assert!(take(&mut session, 20) == fresh, "{file}: back to {n} of the prompt");
                session.rewind(n).unwrap();
            }
            let error = session.rewind(0).unwrap_err();
            assert_eq!(error.to_string(), "n_tokens: expected 1 to 1, the tokens of the inference, found 0");
            assert_eq!(session.rewind(2).unwrap_err().status(), Status::InvalidArgument);
        }
    }
}

#[test]
fn text_after_going_back_goes_on_where_the_tokens_do() {
    let engine = load(CHATTY, |_| ());
    let question = Prompt::User("Schreibe es auf Japanisch.");
    let whole = text(&mut Session::start(&engine, question, &greedy()).unwrap()).unwrap();
    let mut tokens = Session::start(&engine, question, &greedy()).unwrap();
    let pieces: Vec<Vec<u8>> = std::iter::from_fn(|| {
        let piece = tokens.peek_token().unwrap().map(|(_, bytes)| bytes.to_vec());
        tokens.take_token();
        piece
    })
    .collect();
    let stops = [vec![], vec!["蛙飛びこむ 水".to_string()], vec!["音 x".to_string()]];
    for stop in stops {
        let options = SessionOptions { stop, ..greedy() };
        let mut session = Session::start(&engine, question, &options).unwrap();
        let expected = text(&mut session).unwrap();
        let start = session.prompt_tokens();
        for n in (0..=session.generated_tokens()).rev() {
            session.rewind(start + n).unwrap();
            let bytes: Vec<u8> = pieces[..n].concat();
            let again = text(&mut session).unwrap();
            // Characters that were not complete at that place come whole.
            let before = String::from_utf8_lossy(&bytes);
            let before = before.trim_end_matches(char::REPLACEMENT_CHARACTER);
            assert!(expected.ends_with(&again), "{n}: {again}");
            assert!(again.len() + before.len() >= expected.len(), "{n}: {again} after {before}");
        }
        assert!(whole.starts_with(&expected));
    }
}

#[test]
fn a_grammar_goes_back_too() {
    let engine = load(CHATTY, |_| ());
    let options = SessionOptions { grammar: Some(GrammarText::Regex("[a-z]{4}-[0-9]{6}".into())), ..seeded(7, 50) };
    let mut session = Session::start(&engine, Prompt::Text("Once"), &options).unwrap();
    let first = take(&mut session, 50);
    assert_eq!(session.finish_reason(), Some(FinishReason::Grammar));
    let start = session.prompt_tokens();
    for n in (0..=first.len()).rev() {
        session.rewind(start + n).unwrap();
        assert_eq!(session.finish_reason(), None);
        assert!(take(&mut session, 50) == first[n..], "{n}");
        assert_eq!(session.finish_reason(), Some(FinishReason::Grammar));
    }
    // A further turn has the whole grammar before it, and so has a fork with options.
    session.append(Prompt::Text(" again: ")).unwrap();
    let more = text(&mut session).unwrap();
    assert!(more.len() == 11 && more.as_bytes()[4] == b'-', "{more}");
    session.rewind(start + 1).unwrap();
    let mut fork = session.fork(None).unwrap();
    assert!(take(&mut fork, 50) == first[1..]);
    assert!(take(&mut session, 50) == first[1..]);
}

#[test]
fn forks_go_their_own_ways() {
    for file in FILES {
        let engine = without_cache(file);
        let prompt = prompt(&engine, 90, 2);
        for options in [seeded(5, 80), mirostat(6, 80)] {
            let whole = take(&mut start(&engine, &prompt, &options), 80);
            for at in [0, 1, 7, 38, 50].map(|at| at.min(whole.len())) {
                let mut first = start(&engine, &prompt, &options);
                assert!(take(&mut first, at) == whole[..at]);
                let mut second = first.fork(None).unwrap();
                assert_eq!(second.generated_tokens(), at);
                let other = first.fork(Some(&seeded(99, 30))).unwrap();
                // Step by step in turns, and the first of them ends before the others do.
                let mut forks = [first, second.fork(None).unwrap()];
                for i in at..whole.len() {
                    assert!(forks.iter_mut().all(|fork| take(fork, 1) == whole[i..i + 1]), "{file} {at}: {i}");
                }
                drop(forks);
                assert!(take(&mut second, 80) == whole[at..], "{file} {at}");
                // With options it is a session that starts here.
                let mut other = other;
                let tokens: Vec<u32> = prompt.iter().copied().chain(whole[..at].iter().map(|step| step.0)).collect();
                assert_eq!((other.prompt_tokens(), other.generated_tokens()), (90 + at, 0));
                let fresh = take(&mut start(&engine, &tokens, &seeded(99, 30)), 30);
                assert!(take(&mut other, 30) == fresh, "{file} {at}");
                other.rewind(90 + at).unwrap();
                assert!(take(&mut other, 30) == fresh, "{file} {at}: again");
            }
        }
        drop_all(&engine);
    }
}

/// With all sessions gone and the prompt cache emptied, no page is left.
fn drop_all(engine: &Engine) {
    engine.clear_prompt_cache().unwrap();
    assert_eq!((engine.memory().bytes(Purpose::Cache), engine.prompt_cache_bytes()), (0, 0));
}

#[test]
fn a_fork_of_what_has_ended_has_ended_too_unless_it_has_options() {
    let engine = load(CHATTY, |_| ());
    let mut session = Session::start(&engine, Prompt::User("Write a haiku."), &greedy()).unwrap();
    let haiku = text(&mut session).unwrap();
    assert_eq!(text(&mut session.fork(None).unwrap()).unwrap(), "");
    let options = SessionOptions { stop: vec!["roof".into()], ..greedy() };
    let mut stopped = Session::start(&engine, Prompt::User("Write a haiku."), &options).unwrap();
    assert_eq!(text(&mut stopped).unwrap(), "Rain counts on the ");
    let mut further = stopped.fork(Some(&greedy())).unwrap();
    let rest = text(&mut further).unwrap();
    assert_eq!(further.finish_reason(), Some(FinishReason::EndOfGeneration));
    assert!(haiku.ends_with(&rest) && rest.len() > 20, "{rest}");
    let cancelled = Session::start(&engine, Prompt::User("Write a haiku."), &greedy()).unwrap();
    cancelled.cancel_flag().store(true, Ordering::Relaxed);
    assert_eq!(text(&mut cancelled.fork(None).unwrap()).unwrap(), haiku);
    drop((session, stopped, further, cancelled));
    drop_all(&engine);
}

#[test]
fn a_prompt_that_is_known_is_not_computed_again_and_gives_the_same_bits() {
    for file in FILES {
        let (with, without) = (load(file, |_| ()), without_cache(file));
        let base = prompt(&with, 200, 3);
        let mut n_reused = 0;
        // Whole prompts, beginnings, longer ones, others behind the same beginning.
        for (round, (n, more)) in
            [(200, 0), (200, 0), (120, 0), (120, 30), (64, 64), (200, 60), (33, 0), (32, 0), (5, 0), (200, 61)]
                .into_iter()
                .enumerate()
        {
            let tokens: Vec<u32> = base[..n].iter().copied().chain(prompt(&with, more, round)).collect();
            let options = seeded(round as u64, 40);
            let mut expected = start(&without, &tokens, &options);
            let mut found = start(&with, &tokens, &options);
            assert!(take(&mut found, 40) == take(&mut expected, 40), "{file}: round {round}");
            assert_eq!((expected.cached_tokens(), found.prompt_tokens()), (0, tokens.len()));
            assert!(found.cached_tokens().is_multiple_of(PAGE) && found.cached_tokens() < tokens.len());
            n_reused += found.cached_tokens();
            if file == CHATTY && round > 0 {
                let known = n.min(200).min(tokens.len() - 1) / PAGE * PAGE;
                assert!(found.cached_tokens() >= known, "round {round}: {}", found.cached_tokens());
            }
        }
        assert!(n_reused > 0, "{file}");
        assert!(with.prompt_cache_bytes() > 0);
        assert_eq!(without.prompt_cache_bytes(), 0);
        assert_eq!(with.prompt_cache_bytes(), with.memory().bytes(Purpose::Cache), "{file}");
        drop_all(&with);
    }
}

#[test]
fn a_session_that_still_runs_shares_its_prompt() {
    let engine = load(CHATTY, |_| ());
    let tokens = prompt(&engine, 100, 4);
    let mut first = start(&engine, &tokens, &seeded(1, 30));
    take(&mut first, 1);
    let before = engine.memory().bytes(Purpose::Cache);
    let mut second = start(&engine, &tokens, &seeded(2, 30));
    let found = take(&mut second, 1);
    assert_eq!(second.cached_tokens(), 96);
    assert!(engine.memory().bytes(Purpose::Cache) < before + before / 2, "full pages are shared");
    assert!(found == take(&mut start(&without_cache(CHATTY), &tokens, &seeded(2, 30)), 1));
    // One that went back has others' tokens no more.
    first.rewind(40).unwrap();
    second.rewind(10).unwrap();
    let mut third = start(&engine, &tokens, &seeded(2, 30));
    assert!(found == take(&mut third, 1));
    assert_eq!(third.cached_tokens(), 0);
    drop((first, second, third));
    drop_all(&engine);
}

#[test]
fn what_is_kept_stays_within_its_limit() {
    let page = 2 * 2 * PAGE as u64 * 4 * {
        let engine = load(CHATTY, |_| ());
        let mut session = start(&engine, &[5; 40], &greedy());
        take(&mut session, 1);
        engine.memory().bytes(Purpose::Cache) / (2 * 2 * 2 * PAGE as u64 * 4)
    };
    for n_pages in [1, 3, 10] {
        let engine = load(CHATTY, |options| options.prompt_cache = n_pages * page);
        for round in 0..20 {
            let tokens = prompt(&engine, 40 + round * 9 % 150, round);
            take(&mut start(&engine, &tokens, &greedy()), 2);
            assert!(engine.prompt_cache_bytes() <= n_pages * page);
            assert!(engine.prompt_cache_bytes() > 0);
            // The last one is there, or its beginning.
            let mut again = start(&engine, &tokens, &greedy());
            take(&mut again, 1);
            let most = (n_pages as usize).min((tokens.len() - 1) / PAGE) * PAGE;
            assert_eq!(again.cached_tokens(), most, "round {round} with {n_pages} pages");
        }
        drop_all(&engine);
    }
}

#[test]
fn a_further_turn_is_what_the_whole_chat_would_be() {
    let engine = load(CHATTY, |_| ());
    let fresh = without_cache(CHATTY);
    let mut session = Session::start(&engine, Prompt::User("Write a haiku."), &greedy()).unwrap();
    let haiku = text(&mut session).unwrap();
    let first = session.prompt_tokens() + session.generated_tokens();
    session.append(Prompt::User("Schreibe es auf Japanisch.")).unwrap();
    assert_eq!((session.finish_reason(), session.generated_tokens()), (None, 0));
    let whole = serde_json::json!([
        {"role": "user", "content": "Write a haiku."},
        {"role": "assistant", "content": haiku},
        {"role": "user", "content": "Schreibe es auf Japanisch."},
    ]);
    let mut expected = Session::start(&fresh, Prompt::Chat(&whole.to_string()), &greedy()).unwrap();
    let steps = take(&mut expected, 100);
    assert!(take(&mut session, 100) == steps);
    assert_eq!(session.prompt_tokens(), expected.prompt_tokens());
    assert!(session.cached_tokens() >= first - 1, "{} of {first}", session.cached_tokens());
    assert_eq!(session.finish_reason(), expected.finish_reason());
    // Back into the first answer and on from there, as a chat.
    session.rewind(first).unwrap();
    let mut again = session.fork(None).unwrap();
    session.append(Prompt::Chat(r#"[{"role": "user", "content": "Schreibe es auf Japanisch."}]"#)).unwrap();
    assert!(take(&mut session, 100) == steps);
    // The host may say what the answer was.
    let own = serde_json::json!([
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Write a haiku."},
    ]);
    again.append(Prompt::Chat(&own.to_string())).unwrap();
    let mut all = vec![serde_json::json!({"role": "user", "content": "Write a haiku."})];
    all.extend(own.as_array().unwrap().clone());
    let mut expected = Session::start(&fresh, Prompt::Chat(&serde_json::json!(all).to_string()), &greedy()).unwrap();
    assert!(take(&mut again, 20) == take(&mut expected, 20));
    drop((session, again));
    drop_all(&engine);
}

#[test]
fn a_further_turn_is_refused_whole() {
    let engine = load(CHATTY, |options| options.n_ctx = Some(200));
    let mut session = Session::start(&engine, Prompt::Text("Once upon"), &seeded(3, 20)).unwrap();
    take(&mut session, 7);
    let mut expected = session.fork(None).unwrap();
    let refused = |session: &mut Session, prompt: Prompt| session.append(prompt).unwrap_err().status();
    assert_eq!(refused(&mut session, Prompt::User("Hi")), Status::InvalidArgument);
    assert_eq!(refused(&mut session, Prompt::Chat("[]")), Status::InvalidArgument);
    assert_eq!(refused(&mut session, Prompt::Tokens(&[280])), Status::InvalidArgument);
    assert_eq!(refused(&mut session, Prompt::Tokens(&[5; 199])), Status::PromptTooLong);
    assert_eq!(refused(&mut session, Prompt::Text(&"no end ".repeat(100))), Status::PromptTooLong);
    assert!(take(&mut session, 100) == take(&mut expected, 100));
}

#[test]
fn tokens_and_texts_are_put_behind_whatever_way_it_ended() {
    for file in FILES {
        let engine = load(file, |_| ());
        let (a, b) = (prompt(&engine, 70, 5), prompt(&engine, 50, 6));
        for at in [0, 1, 20] {
            let mut session = start(&engine, &a, &seeded(8, at));
            let said = take(&mut session, at);
            session.cancel_flag().store(true, Ordering::Relaxed);
            session.append(Prompt::Tokens(&b)).unwrap();
            let tokens: Vec<u32> = a.iter().copied().chain(said.iter().map(|step| step.0)).chain(b.clone()).collect();
            assert_eq!((session.prompt_tokens(), session.generated_tokens()), (tokens.len(), 0));
            // The random numbers go on, so that only what draws none is the same.
            let mut session = session.fork(Some(&greedy())).unwrap();
            let expected = take(&mut start(&without_cache(file), &tokens, &greedy()), 20);
            assert!(take(&mut session, 20) == expected, "{file}: after {at}");
        }
    }
    let engine = load(CHATTY, |_| ());
    let mut session = Session::start(&engine, Prompt::Text("Once <|im_end|>"), &seeded(1, 0)).unwrap();
    session.append(Prompt::Text(" upon <|im_end|> a time")).unwrap();
    let mut whole =
        Session::start(&engine, Prompt::Text("Once <|im_end|> upon <|im_end|> a time"), &seeded(1, 0)).unwrap();
    assert!(session.prompt_tokens() >= whole.prompt_tokens(), "text in a prompt never becomes a control token");
    session.append(Prompt::Text("")).unwrap();
    assert!(take(&mut session, 5).is_empty() && take(&mut whole, 5).is_empty());
}
