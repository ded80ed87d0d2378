//! Saved states: going on from one is as if nothing had happened, and no other file is taken for one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/folder.rs"]
mod folder;
#[path = "common/models.rs"]
mod models;
#[path = "common/tiny.rs"]
mod tiny;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use folder::Folder;
use kigo::backend::Purpose;
use kigo::engine::{Engine, LoadOptions};
use kigo::gguf::Value;
use kigo::sampler::{GrammarText, SamplingParams};
use kigo::session::{FinishReason, Prompt, Session, SessionOptions};
use kigo::{Error, Status};
use tiny::Draft;

const FILES: [&str; 4] = ["tiny-llama.gguf", "arch/gemma2.gguf", "arch/gpt-oss.gguf", "arch/phi3-window.gguf"];

fn load_path(path: &Path, n_ctx: usize) -> Arc<Engine> {
    let options =
        LoadOptions { device: "cpu".into(), n_threads: Some(1), n_ctx: Some(n_ctx), ..LoadOptions::default() };
    Engine::load(path, &options).unwrap()
}

fn load(file: &str) -> Arc<Engine> {
    load_path(&models::data(file), 400)
}

fn options(mirostat: bool) -> SessionOptions {
    let sampling = SamplingParams {
        temperature: 1.2,
        repeat_penalty: 1.1,
        xtc_probability: 0.5,
        mirostat,
        seed: 11,
        logprobs: 1,
        ..SamplingParams::default()
    };
    SessionOptions { sampling, max_tokens: Some(80), ..SessionOptions::default() }
}

fn take(session: &mut Session, n: usize) -> Vec<(u32, Vec<u32>)> {
    let mut all = Vec::new();
    while all.len() < n
        && let Some((token, _)) = session.peek_token().unwrap()
    {
        all.push((token, session.last_logits().unwrap().1.iter().map(|x| x.to_bits()).collect()));
        session.take_token();
    }
    all
}

fn text(session: &mut Session) -> String {
    let mut all = String::new();
    while let Some(piece) = session.peek_text().unwrap() {
        all.push_str(piece);
        session.take_text();
    }
    all
}

#[test]
fn what_was_saved_goes_on_in_another_process_as_it_were() {
    let folder = Folder::new();
    let path = folder.path("state");
    for file in FILES {
        for mirostat in [false, true] {
            let (engine, other) = (load(file), load(file));
            let n_vocab = engine.n_vocab();
            let prompt: Vec<u32> = (0..90).map(|i| ((i * 37 + 11) % (n_vocab - 8)) as u32 + 4).collect();
            let mut session = Session::start(&engine, Prompt::Tokens(&prompt), &options(mirostat)).unwrap();
            for n in [0, 1, 5, 40, 80] {
                take(&mut session, n);
                session.save(&path).unwrap();
                let at = session.generated_tokens();
                let mut loaded = Session::load(&other, &path, &options(mirostat)).unwrap();
                assert_eq!((loaded.prompt_tokens(), loaded.generated_tokens()), (90, at));
                let expected = take(&mut session.fork(None).unwrap(), 80);
                assert!(take(&mut loaded, 80) == expected, "{file}: after {at}");
                // It goes back as the other does.
                if at > 3 {
                    loaded.rewind(92).unwrap();
                    let mut first = Session::start(&engine, Prompt::Tokens(&prompt), &options(mirostat)).unwrap();
                    let again = take(&mut first, 20);
                    assert!(take(&mut loaded, 18) == again[2..], "{file}: after {at}");
                }
            }
        }
    }
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1, "nothing but the state is left");
}

#[test]
fn chats_texts_grammars_and_ends_are_part_of_it() {
    let folder = Folder::new();
    let path = folder.path("state");
    let (engine, other) = (load(FILES[0]), load(FILES[0]));
    let greedy = SessionOptions {
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        stop: vec!["never said".into()],
        ..SessionOptions::default()
    };
    let mut session = Session::start(&engine, Prompt::User("Schreibe es auf Japanisch."), &greedy).unwrap();
    let whole = text(&mut session.fork(None).unwrap());
    let mut shown = String::new();
    loop {
        session.save(&path).unwrap();
        let mut loaded = Session::load(&other, &path, &greedy).unwrap();
        assert_eq!(shown.clone() + &text(&mut loaded), whole);
        assert_eq!(loaded.finish_reason(), Some(FinishReason::EndOfGeneration));
        let Some(piece) = session.peek_text().unwrap() else { break };
        shown.push_str(piece);
        session.take_text();
    }
    // It has ended, and takes a further turn.
    session.save(&path).unwrap();
    let mut loaded = Session::load(&other, &path, &greedy).unwrap();
    assert_eq!(loaded.finish_reason(), Some(FinishReason::EndOfGeneration));
    for session in [&mut session, &mut loaded] {
        session.append(Prompt::User("Write a haiku.")).unwrap();
    }
    assert_eq!(text(&mut session), text(&mut loaded));
    session.save(&path).unwrap();
    let first = session.prompt_tokens() - 20;
    loaded = Session::load(&other, &path, &greedy).unwrap();
    for session in [&mut session, &mut loaded] {
        session.rewind(first).unwrap();
    }
    assert_eq!(text(&mut session), text(&mut loaded));
    drop((session, loaded));

    let options = SessionOptions { grammar: Some(GrammarText::Regex("[a-z]{4}-[0-9]{6}".into())), ..options(false) };
    let mut session = Session::start(&engine, Prompt::Text("Once"), &options).unwrap();
    take(&mut session, 4);
    session.save(&path).unwrap();
    session.cancel_flag().store(true, Ordering::Relaxed);
    let mut loaded = Session::load(&other, &path, &options).unwrap();
    assert!(take(&mut loaded, 50) == take(&mut session.fork(None).unwrap(), 50));
    assert_eq!(loaded.finish_reason(), Some(FinishReason::Grammar));
    let unlike = SessionOptions { grammar: Some(GrammarText::Regex("[0-9]+".into())), ..options.clone() };
    assert_eq!(Session::load(&other, &path, &unlike).err().unwrap().status(), Status::BadGrammar);
    drop((session, loaded));
    other.clear_prompt_cache().unwrap();
    assert_eq!(other.memory().bytes(Purpose::Cache), 0);
}

/// Every byte of a state changed in some ways, every length: an error that names the file, and nothing left of it.
#[test]
fn no_damaged_file_is_taken_for_a_state() {
    let folder = Folder::new();
    let (path, damaged) = (folder.path("state"), folder.path("damaged"));
    let engine = load(FILES[0]);
    let greedy = SessionOptions::default();
    let mut session = Session::start(&engine, Prompt::User("Who are you?"), &greedy).unwrap();
    for _ in 0..3 {
        session.peek_token().unwrap();
        session.take_token();
    }
    session.save(&path).unwrap();
    drop(session);
    engine.clear_prompt_cache().unwrap();
    let good = std::fs::read(&path).unwrap();
    let refused = |bytes: &[u8], about: &str| {
        std::fs::write(&damaged, bytes).unwrap();
        let error = Session::load(&engine, &damaged, &greedy).err().unwrap_or_else(|| panic!("{about}"));
        let statuses = [Status::BadState, Status::PromptTooLong];
        assert!(statuses.contains(&error.status()), "{about}: {error}");
        assert!(error.to_string().len() < 512, "{error}");
    };
    // Pages of the cache are most of it, and all alike.
    let header = good.len() - (good.len() - 8) / 4096 * 4096;
    assert!(header < 4200 && good.len() > 2 * 4096);
    let places = (0..good.len()).filter(|at| *at < 700 || at % 97 == 0 || at + 9 > good.len());
    for at in places {
        for change in [0x01, 0x80, 0xFF] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            refused(&bytes, &format!("byte {at} ^ {change:#x}"));
        }
    }
    for len in (0..good.len()).filter(|len| *len < 700 || len % 997 == 0 || len + 9 > good.len()) {
        refused(&good[..len], &format!("{len} bytes"));
    }
    refused(&[&good[..], &[0]].concat(), "a byte more");
    refused(&[&good[..], &good[..]].concat(), "twice");
    for (at, huge) in (8..700).flat_map(|at| [(at, u64::MAX), (at, 1 << 40), (at, 1 << 63)]) {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&huge.to_le_bytes());
        if bytes == good {
            continue;
        }
        refused(&bytes, &format!("{huge:#x} at {at}"));
    }
    refused(&std::fs::read(models::data(FILES[0])).unwrap()[..10_000], "a model");
    assert_eq!(engine.memory().bytes(Purpose::Cache), 0);
    assert!(Session::load(&engine, &path, &greedy).is_ok());
}

#[test]
fn a_state_belongs_to_its_model() {
    let folder = Folder::new();
    let path = folder.path("state");
    let engine = load(FILES[0]);
    let mut session = Session::start(&engine, Prompt::Text("Once upon a time"), &options(false)).unwrap();
    take(&mut session, 20);
    session.save(&path).unwrap();
    let said = |error: Error| {
        assert_eq!(error.status(), Status::BadState);
        let text = error.to_string();
        assert!(text.contains("state: saved state: "), "{text}");
        text
    };
    // Another model, one with other weights, one with other hyperparameters.
    let draft = || Draft::tiny();
    let weights = draft().changed("blk.1.ffn_up.weight", |tensor| {
        let middle = tensor.data.len() / 2;
        tensor.data[middle] ^= 1;
    });
    let eps = draft().with("llama.attention.layer_norm_rms_epsilon", Value::F32(1.1e-5));
    for (name, draft) in [("weights", weights), ("eps", eps)] {
        let other = load_path(&folder.write(name, &draft.writer()), 400);
        let error = Session::load(&other, &path, &options(false)).err().unwrap();
        assert!(said(error).contains("fingerprint: expected"), "{name}");
    }
    assert!(said(Session::load(&load(FILES[1]), &path, &options(false)).err().unwrap()).contains("fingerprint"));
    // The same model from another file, and with another context.
    let copy = folder.path("copy");
    std::fs::copy(models::data(FILES[0]), &copy).unwrap();
    for other in [load_path(&copy, 400), load_path(&copy, 300)] {
        assert!(Session::load(&other, &path, &options(false)).is_ok());
    }
    let n_tokens = session.prompt_tokens() + session.generated_tokens();
    let small = load_path(&copy, n_tokens - 1);
    assert_eq!(Session::load(&small, &path, &options(false)).err().unwrap().status(), Status::PromptTooLong);
    let error = Session::load(&engine, &folder.path("none"), &options(false)).err().unwrap();
    assert_eq!(error.status(), Status::Io);
    assert_eq!(Session::load(&engine, &folder.0, &options(false)).err().unwrap().status(), Status::Io);
    // What was there before stays when it cannot be written.
    let nowhere = folder.path("no/such/state");
    assert_eq!(session.save(&nowhere).unwrap_err().status(), Status::Io);
}
