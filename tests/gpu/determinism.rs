//! The same inputs give the same bits: again and again, in any chunks, in any company.

use std::sync::Barrier;

use kigo::session::{Prompt, Session};

use super::harness::*;
use super::models;

const N_REPEATS: usize = 1000;
const CHUNKS: [usize; 4] = [1, 7, 64, 512];

fn model() -> std::path::PathBuf {
    models::cached(models::SMOLLM2).unwrap_or_else(|| models::data("tiny-llama.gguf"))
}

/// A prompt for the model: of a golden, or of the tiny vocabulary.
fn prompt(name: &str) -> Vec<u32> {
    let (_, tokens) = prompts().into_iter().find(|(found, _)| found == name).unwrap();
    match models::cached(models::SMOLLM2) {
        Some(_) => tokens,
        None => tokens.iter().map(|token| token % 280).collect(),
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_thousand_generations_are_one() {
    let engine = load(&model(), &gpu(), 128);
    let prompt = prompt("prose-short");
    let first = generate(&engine, &prompt, &seeded(7, 24));
    assert!(!first.is_empty());
    for repeat in 1..N_REPEATS {
        assert_eq!(generate(&engine, &prompt, &seeded(7, 24)), first, "repeat {repeat}");
    }
    let other = (8..40).any(|seed| generate(&engine, &prompt, &seeded(seed, 24)) != first);
    assert!(other, "no other seed gives other tokens");
}

#[test]
#[ignore = "needs a GPU"]
fn chunks_of_the_prompt_change_nothing() {
    let prompt = prompt("prose-long");
    let run = |n_batch| {
        let engine = load(&model(), &gpu(), n_batch);
        let mut forced = Forced::new(&engine);
        let mut last = Vec::new();
        prompt.chunks(n_batch).for_each(|chunk| last = forced.push(chunk));
        (bits(&last), generate(&engine, &prompt, &seeded(3, 32)))
    };
    let (expected, tokens) = run(CHUNKS[0]);
    for n_batch in &CHUNKS[1..] {
        let (found, same) = run(*n_batch);
        let different = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
        assert_eq!(different, 0, "logits with other bits in chunks of {n_batch}");
        assert_eq!(same, tokens, "text in chunks of {n_batch}");
    }
}

/// Sequences of different lengths that run together, in batches that the engine puts together as it likes.
#[test]
#[ignore = "needs a GPU"]
fn company_changes_nothing() {
    let engine = load(&model(), &gpu(), 128);
    let long = prompt("prose-long");
    let given = |i: usize| &long[i * 11..i * 11 + 40 + i * 23];
    let logits = |i: usize| -> Vec<Vec<u32>> {
        let mut forced = Forced::new(&engine);
        given(i).chunks(1 + i * 5).map(|chunk| bits(&forced.push(chunk))).collect()
    };
    let text = |i: usize| generate(&engine, given(i), &seeded(i as u64, 48));
    let alone: Vec<_> = (0..9).map(|i| (logits(i), text(i))).collect();
    for n in [2, 3, 9] {
        let barrier = Barrier::new(n);
        std::thread::scope(|scope| {
            for (i, (expected, expected_text)) in alone.iter().enumerate().take(n) {
                let (barrier, logits, text) = (&barrier, &logits, &text);
                scope.spawn(move || {
                    barrier.wait();
                    assert!(logits(i) == *expected, "logits of sequence {i} among {n}");
                    assert_eq!(text(i), *expected_text, "text of sequence {i} among {n}");
                });
            }
        });
    }
}

/// Sessions that are dropped while others run leave nothing in the numbers of those that stay.
#[test]
#[ignore = "needs a GPU"]
fn sessions_that_go_change_nothing() {
    let engine = load(&model(), &gpu(), 32);
    let prompt = prompt("code-c");
    let expected = generate(&engine, &prompt, &seeded(1, 64));
    let mut kept = Session::start(&engine, Prompt::Tokens(&prompt), &seeded(1, 64)).unwrap();
    let mut found = Vec::new();
    while let Some((token, _)) = kept.peek_token().unwrap() {
        found.push(token);
        kept.take_token();
        let n = 1 + found.len() * 3 % prompt.len();
        let mut other = Session::start(&engine, Prompt::Tokens(&prompt[..n]), &seeded(n as u64, 4)).unwrap();
        other.peek_token().unwrap();
    }
    assert_eq!(found, expected);
}
