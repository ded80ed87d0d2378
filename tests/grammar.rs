//! Grammars: what they allow, what is refused, what they may cost, and whole generations that follow them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/models.rs"]
mod models;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kigo::engine::{Engine, LoadOptions};
use kigo::gguf::Gguf;
use kigo::sampler::{Grammar, GrammarText, Grammars, SamplingParams};
use kigo::session::{FinishReason, Prompt, Session, SessionOptions};
use kigo::tokenizer::Tokenizer;
use kigo::{Error, Status};
use serde_json::Value;

fn load(path: &std::path::Path) -> Arc<Engine> {
    let options = LoadOptions { device: "cpu".into(), n_ctx: Some(512), ..LoadOptions::default() };
    Engine::load(path, &options).unwrap()
}

fn tiny() -> Arc<Engine> {
    load(&models::data("tiny-llama.gguf"))
}

fn json(text: &str) -> GrammarText {
    GrammarText::JsonSchema(text.into())
}

fn regex(text: &str) -> GrammarText {
    GrammarText::Regex(text.into())
}

fn lark(text: &str) -> GrammarText {
    GrammarText::Lark(text.into())
}

fn start(engine: &Engine, text: &GrammarText) -> Grammar {
    engine.grammars().unwrap().start(text).unwrap()
}

fn options(grammar: GrammarText, seed: u64, max_tokens: usize) -> SessionOptions {
    let sampling = SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed, ..Default::default() };
    SessionOptions { sampling, grammar: Some(grammar), max_tokens: Some(max_tokens), ..Default::default() }
}

/// The text of a generation and why it ended.
fn generate(engine: &Arc<Engine>, prompt: &str, options: &SessionOptions) -> (String, FinishReason) {
    let mut session = Session::start(engine, Prompt::Text(prompt), options).unwrap();
    let mut all = String::new();
    while let Some(text) = session.peek_text().unwrap() {
        all.push_str(text);
        session.take_text();
    }
    (all, session.finish_reason().unwrap())
}

/// Whether `text` is a whole text of the grammar, token by token as the tokenizer cuts it.
fn accepts(engine: &Engine, grammar: &GrammarText, text: &str) -> bool {
    let mut grammar = start(engine, grammar);
    for token in engine.tokenizer().encode(text, Default::default()).unwrap() {
        if !grammar.prepare().unwrap() || !grammar.allows(token) {
            return false;
        }
        grammar.accept(token).unwrap();
    }
    !grammar.prepare().unwrap() || engine.tokenizer().eog().iter().any(|id| grammar.allows(*id))
}

const PERSON: &str = r#"{"type": "object", "additionalProperties": false, "required": ["name", "age", "tags"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bc", "def"]}, "maxItems": 3}}}"#;

/// Checks a value against `PERSON` by hand.
fn is_person(text: &str) -> bool {
    let value: Value = serde_json::from_str(text).unwrap();
    let object = value.as_object().unwrap();
    let name = object["name"].as_str().unwrap().chars().count();
    let tags = object["tags"].as_array().unwrap();
    object.len() == 3
        && (1..=12).contains(&name)
        && object["age"].as_u64().unwrap() <= 150
        && tags.len() <= 3
        && tags.iter().all(|tag| ["a", "bc", "def"].contains(&tag.as_str().unwrap()))
}

fn twenty_seeds(engine: &Arc<Engine>, prompt: &str) {
    for seed in 0..20 {
        let (text, reason) = generate(engine, prompt, &options(json(PERSON), seed, 400));
        assert!(matches!(reason, FinishReason::Grammar | FinishReason::EndOfGeneration), "{reason:?}: {text}");
        assert!(is_person(&text), "{text}");
    }
}

#[test]
fn twenty_seeds_give_twenty_values_of_the_schema() {
    twenty_seeds(&tiny(), "Once");
}

#[test]
fn smollm2_gives_twenty_values_of_the_schema() {
    let Some(path) = models::cached(models::SMOLLM2) else { return };
    twenty_seeds(&load(&path), "A person as JSON: ");
}

#[test]
fn the_end_of_the_grammar_is_the_end_of_the_text() {
    let engine = tiny();
    for temperature in [0.0, 1.0] {
        for (grammar, expected) in [(regex("abc"), "abc"), (lark("start: \"x\" y\ny: \"z\"~3"), "xzzz")] {
            let mut options = options(grammar, 1, 100);
            options.sampling.temperature = temperature;
            assert_eq!(generate(&engine, "Once", &options), (expected.into(), FinishReason::Grammar));
        }
    }
    let mut session = Session::start(&engine, Prompt::Text("Once"), &options(regex(""), 1, 100)).unwrap();
    assert!(session.peek_token().unwrap().is_none());
    assert_eq!(session.generated_tokens(), 0);
}

/// Case: a grammar that never ends is ended by the limits of the generation.
#[test]
fn endless_grammars_end_at_the_limits() {
    let engine = tiny();
    for grammar in [
        regex("(ab)+c{1000000000,}"),
        regex("x+y"),
        regex("((a{1000}){1000}){1000}"),
        regex("(a?){2000}(a|b)*a(a|b){2000}"),
        lark("start: \"(\" start \")\""),
        lark("start: start start | \"a\" | \"ab\" | \"b\""),
    ] {
        let outcome = Session::start(&engine, Prompt::Text("Once"), &options(grammar.clone(), 3, 60));
        let Ok(mut session) = outcome else { continue };
        let started = Instant::now();
        loop {
            match session.peek_token() {
                Ok(Some(_)) => session.take_token(),
                Ok(None) => break,
                // Too much at this place is an error too, again and again.
                Err(error) => {
                    assert_eq!(error.status(), Status::BadGrammar, "{grammar:?}: {error}");
                    assert_eq!(session.peek_token().unwrap_err().status(), Status::BadGrammar);
                    break;
                }
            }
        }
        println!("{grammar:?}: {} tokens in {:?}", session.generated_tokens(), started.elapsed());
        assert!(session.generated_tokens() <= 60 && started.elapsed() < Duration::from_secs(20), "{grammar:?}");
    }
    let (text, reason) = generate(&engine, "Once", &options(lark("start: \"(\" start \")\""), 3, 60));
    assert!(text.bytes().all(|byte| byte == b'('), "{text}");
    assert_eq!(reason, FinishReason::MaxTokens);
}

#[test]
fn texts_are_accepted_or_not() {
    let engine = tiny();
    for (grammar, good, bad) in [
        (json("{}"), r#"[1, {"a": null}, "b", true, -2.5e3]"#, "[1,"),
        (json(r#"{"type": "integer"}"#), "42", "4.5"),
        (json(r#"{"enum": ["red", "blue"]}"#), "\"blue\"", "\"green\""),
        (
            json(r##"{"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"}"##),
            "[[],[[]]]",
            "[1]",
        ),
        (regex("[a-c]{2}-[0-9]+"), "ab-17", "ad-17"),
        (regex("naïve (日本|x)"), "naïve 日本", "naive x"),
        (lark("start: greeting \" \" NAME\ngreeting: \"hi\" | \"hello\"\nNAME: /[a-z]+/"), "hello bob", "hey bob"),
    ] {
        assert!(accepts(&engine, &grammar, good), "{grammar:?} {good}");
        assert!(!accepts(&engine, &grammar, bad), "{grammar:?} {bad}");
    }
}

#[test]
fn control_tokens_are_not_text() {
    let engine = tiny();
    let mut grammar = start(&engine, &regex("(.|\n)*"));
    assert!(grammar.prepare().unwrap());
    let tokenizer = engine.tokenizer();
    for id in 0..engine.n_vocab() as u32 {
        let silent = tokenizer.token_bytes(id, false).is_empty();
        assert!(!silent || !grammar.allows(id) || tokenizer.is_eog(id), "token {id}");
    }
}

#[test]
fn going_back_gives_the_same_again() {
    let engine = tiny();
    let mut grammar = start(&engine, &json(PERSON));
    let mut masks = Vec::new();
    let mask = |grammar: &mut Grammar| -> Vec<bool> {
        assert!(grammar.prepare().unwrap());
        (0..engine.n_vocab() as u32).map(|id| grammar.allows(id)).collect()
    };
    let tokens = engine.tokenizer().encode("{\"name\": \"abc\", \"age\": 1", Default::default()).unwrap();
    for token in &tokens {
        masks.push(mask(&mut grammar));
        grammar.accept(*token).unwrap();
    }
    for back in [1, 3, tokens.len()] {
        let mut again = grammar.clone();
        again.rewind(back).unwrap();
        for (token, expected) in tokens.iter().zip(&masks).skip(tokens.len() - back) {
            assert!(mask(&mut again) == *expected);
            again.accept(*token).unwrap();
        }
    }
    assert!(grammar.clone().rewind(tokens.len() + 1).is_err());
}

#[test]
fn invalid_grammars_are_refused_at_the_start() {
    let engine = tiny();
    let many = |n: usize, of: &str| of.repeat(n);
    let cases = [
        json(""),
        json("{"),
        json("[]"),
        json("7"),
        json(r#"{"type": "nothing"}"#),
        json(r#"{"type": "object", "properties": 3}"#),
        json(r##"{"$ref": "#/missing"}"##),
        json(&format!("{}{}", many(1000, "{\"not\":"), many(1000, "}"))),
        json(&many(100_000, "[")),
        regex("("),
        regex("a{2,1}"),
        regex("[z-a]"),
        regex("(?<=a)b"),
        regex("\\"),
        regex(&many(100_000, "(")),
        regex(&format!("{}{}", many(200, "("), many(200, ")"))),
        regex(&"x".repeat(regex("").max_bytes() + 1)),
        lark(""),
        lark("start"),
        lark("start: missing"),
        lark("start: \"unclosed"),
        lark("begin: \"a\""),
        lark("start: A\nA: A \"a\""),
        lark("%import python.x\nstart: \"a\""),
        lark("start: <unknown>"),
        lark("\0\u{1}\u{fffd}"),
    ];
    let mut taken = Vec::new();
    for grammar in cases {
        let started = Instant::now();
        let outcome = Session::start(&engine, Prompt::Text("Once"), &options(grammar.clone(), 1, 10));
        let Some(error) = outcome.err() else {
            taken.push(grammar);
            continue;
        };
        let text = error.to_string();
        assert_eq!(error.status(), Status::BadGrammar, "{text}");
        assert!(text.starts_with(&format!("{}: ", grammar.option())), "{text}");
        assert!(text.len() < 400 && !text.contains('\n') && !text.contains("panic"), "{text}");
        assert!(started.elapsed() < Duration::from_secs(10), "{text}: {:?}", started.elapsed());
    }
    assert!(taken.is_empty(), "{taken:?}");
}

/// Compiling recurses along rules and terminals; the longest chains that fit must not overflow a stack.
#[test]
fn long_chains_of_rules_do_not_end_the_process() {
    let engine = tiny();
    let letters: Vec<char> = ('a'..='z').collect();
    let name = |i: usize| -> String { [i / 676, i / 26, i].iter().map(|i| letters[i % 26]).collect() };
    for (deep, upper) in [(0, false), (0, true), (120, false), (120, true)] {
        let rule = |i: usize| if upper { name(i).to_uppercase() } else { name(i) };
        let (open, close) = ("(".repeat(deep), ")".repeat(deep));
        let mut text = format!("start: {}\n", rule(0));
        for i in 0.. {
            let line = format!("{}:{open}{}{close}\n", rule(i), rule(i + 1));
            if text.len() + line.len() + 16 > lark("").max_bytes() || i + 2 == 26 * 26 * 26 {
                text.push_str(&format!("{}: \"a\"\n", rule(i)));
                break;
            }
            text.push_str(&line);
        }
        let started = Instant::now();
        match engine.grammars().unwrap().start(&lark(&text)) {
            Ok(mut grammar) => assert!(grammar.prepare().is_ok()),
            Err(error) => assert!(matches!(error, Error::BadGrammar { .. }), "{error}"),
        }
        println!("{} bytes, {deep} brackets: {:?}", text.len(), started.elapsed());
    }
}

/// Checks that the vocabulary spells JSON, and returns the time that masks took, ascending.
fn spell(tokenizer: &Tokenizer) -> Vec<Duration> {
    let grammars = Grammars::new(tokenizer, tokenizer.n_vocab()).unwrap();
    let mut grammar = grammars.start(&json(PERSON)).unwrap();
    let text = r#"{ "name": "Ada 日本 é", "age": 36, "tags": ["a", "def"] }"#;
    let mut tokens = tokenizer.encode(text, Default::default()).unwrap();
    if tokenizer.adds_space_prefix() {
        // The answer goes on from a prompt: it begins without the space.
        let brace = (0..tokenizer.n_vocab() as u32).find(|id| tokenizer.token_bytes(*id, false) == b"{").unwrap();
        let first = (1..=tokens.len()).find(|n| tokenizer.decode(&tokens[..*n], false).unwrap() == b"{").unwrap();
        tokens.splice(..first, [brace]);
    }
    let mut times = Vec::new();
    for token in tokens {
        let started = Instant::now();
        assert!(grammar.prepare().unwrap());
        times.push(started.elapsed());
        let bytes = tokenizer.token_bytes(token, true).escape_ascii();
        assert!(grammar.allows(token), "{bytes} after {} tokens", times.len());
        grammar.accept(token).unwrap();
    }
    assert!(!grammar.prepare().unwrap(), "complete");
    times.sort_unstable();
    times
}

#[test]
fn every_vocabulary_spells_json_and_masks_are_quick() {
    for name in ["gpt-2", "llama-bpe", "qwen2", "llama-spm", "phi-3"] {
        let Some(path) = models::cached(&format!("vocabs/ggml-vocab-{name}.gguf")) else { return };
        let tokenizer = Tokenizer::from_gguf(Gguf::open(&path).unwrap().metadata()).unwrap();
        let times = spell(&tokenizer);
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        println!("{name}: {} tokens: median {median:?}, worst {worst:?}", tokenizer.n_vocab());
        // Not a benchmark: a bound that only a change of complexity breaks.
        assert!(median < Duration::from_millis(5), "{name}: {times:?}");
    }
}
