//! Loading a model, good and bad, the way every caller does it. Test names end with the case they cover.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/alloc.rs"]
mod alloc;
#[path = "../common/folder.rs"]
mod folder;
#[path = "../common/gguf_bytes.rs"]
mod gguf_bytes;
#[path = "../common/model_bytes.rs"]
mod model_bytes;
#[path = "../common/models.rs"]
mod models;
#[path = "../common/random_blocks.rs"]
mod random_blocks;
#[path = "../common/time.rs"]
mod time;
#[path = "../common/tiny.rs"]
mod tiny;

mod architectures;
mod files;
mod hparams;
mod info;
mod progress;
mod quant_types;
mod sweeps;
mod templates;
mod tensors;
mod variations;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use folder::Folder;
use gguf_bytes::check_message;
use kigo::backend::Row;
use kigo::engine::{Engine, LoadOptions};
use kigo::gguf::Value;
use kigo::sampler::SamplingParams;
use kigo::session::{Prompt, Session, SessionOptions};
use kigo::{Error, Status};
use tiny::Draft;

fn load_path(path: &Path) -> kigo::Result<Arc<Engine>> {
    Engine::load(path, &LoadOptions { device: "cpu".into(), n_threads: Some(2), ..Default::default() })
}

fn try_load(draft: &Draft) -> kigo::Result<Arc<Engine>> {
    let folder = Folder::new();
    load_path(&folder.write("model.gguf", &draft.writer()))
}

fn load(draft: &Draft) -> Arc<Engine> {
    try_load(draft).unwrap()
}

/// Checks that a file is refused with `status` by a message that names it and has all of `words`: in one printable
/// line, within two seconds, and leaving nothing in memory.
fn refused(draft: &Draft, status: Status, words: &[&str]) {
    let folder = Folder::new();
    let path = folder.write("model.gguf", &draft.writer());
    let attempt = || load_path(&path).err().unwrap_or_else(|| panic!("a bad file loaded, expected {words:?}"));
    // What the first call prepares for all later ones stays.
    drop(attempt());
    let (before, started) = (alloc::thread(), time::cpu());
    let error = attempt();
    assert!(time::cpu() - started < Duration::from_secs(2));
    check_error(&error, status, &[&["model.gguf"], words].concat());
    drop(error);
    assert_eq!(alloc::thread(), before, "{words:?}");
}

fn check_error(error: &Error, status: Status, words: &[&str]) {
    assert_eq!(error.status(), status, "{error}");
    check_message(error);
    for word in words {
        assert!(error.to_string().contains(word), "no {word:?} in: {error}");
    }
}

/// The logits after the last of `tokens`, run in chunks of `chunk`.
fn logits(engine: &Engine, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let (sequence, mut logits) = (engine.sequence_new(), Vec::new());
    let row = |(position, &token): (usize, &u32)| Row {
        token,
        position: position as u32,
        sequence,
        logits: position + 1 == tokens.len(),
    };
    let rows: Vec<Row> = tokens.iter().enumerate().map(row).collect();
    for rows in rows.chunks(chunk) {
        engine.run(rows.to_vec(), &mut logits, &Arc::default()).unwrap();
    }
    engine.sequence_free(sequence);
    assert_eq!(logits.len(), engine.n_vocab());
    logits
}

/// Norm of the difference over the norm.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
    difference / norm(&mut expected.iter().map(|&x| f64::from(x)))
}

/// The most likely answer.
fn answer(engine: &Arc<Engine>, prompt: Prompt) -> kigo::Result<String> {
    let sampling = SamplingParams { temperature: 0.0, ..Default::default() };
    let options = SessionOptions { sampling, max_tokens: Some(100), ..Default::default() };
    let mut session = Session::start(engine, prompt, &options)?;
    let mut text = String::new();
    while let Some(piece) = session.peek_text()? {
        text.push_str(piece);
        session.take_text();
    }
    Ok(text)
}

const QUESTION: Prompt<'static> = Prompt::User("Write a haiku.");
const HAIKU: &str = "Rain counts on the roof,\nthe old clock listens and learns\na number by heart.";
/// Some tokens of the tiny vocabulary, enough for more than one page of the cache.
const TOKENS: [u32; 40] = {
    let mut tokens = [0; 40];
    let mut i = 0;
    while i < 40 {
        tokens[i] = (i as u32 * 37 + 5) % 280;
        i += 1;
    }
    tokens
};
