//! What a model's file says about how to sample from it, up to the C interface.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/c_api.rs"]
mod c_api;
#[path = "common/folder.rs"]
mod folder;
#[path = "common/models.rs"]
mod models;
#[path = "common/tiny.rs"]
mod tiny;

use c_api::{Setting, options_free, options_new, options_set};
use folder::Folder;
use kigo::Status;
use kigo::engine::{Engine, LoadOptions};
use kigo::gguf::Value;
use kigo::sampler::DefaultValue;
use tiny::Draft;

fn load(draft: &Draft) -> kigo::Result<std::sync::Arc<Engine>> {
    let folder = Folder::new();
    let options = LoadOptions { device: "cpu".into(), n_threads: Some(1), ..Default::default() };
    Engine::load(&folder.write("model.gguf", &draft.writer()), &options)
}

#[test]
fn all_keys_are_read() {
    assert!(load(&Draft::tiny()).unwrap().sampling_defaults().is_empty());
    let draft = Draft::tiny()
        .with("general.sampling.temp", Value::F32(0.25))
        .with("general.sampling.top_k", Value::I32(-1))
        .with("general.sampling.top_p", Value::F32(0.5))
        .with("general.sampling.min_p", Value::F32(0.125))
        .with("general.sampling.xtc_probability", Value::F32(0.75))
        .with("general.sampling.xtc_threshold", Value::F32(0.0625))
        .with("general.sampling.penalty_last_n", Value::I32(32))
        .with("general.sampling.penalty_repeat", Value::F32(1.5))
        .with("general.sampling.mirostat", Value::I32(2))
        .with("general.sampling.mirostat_tau", Value::F32(4.0))
        .with("general.sampling.mirostat_eta", Value::F32(0.25))
        .with("general.sampling.sequence", Value::String(b"top_k;temperature"[..].into()));
    let engine = load(&draft).unwrap();
    let found: Vec<(&str, DefaultValue)> =
        engine.sampling_defaults().iter().map(|default| (default.option, default.value.clone())).collect();
    let number = DefaultValue::Number;
    let expected = [
        ("temperature", number(0.25)),
        ("top_p", number(0.5)),
        ("min_p", number(0.125)),
        ("xtc_probability", number(0.75)),
        ("xtc_threshold", number(0.0625)),
        ("repeat_penalty", number(1.5)),
        ("mirostat_tau", number(4.0)),
        ("mirostat_eta", number(0.25)),
        ("top_k", DefaultValue::Integer(0)),
        ("repeat_last_n", DefaultValue::Integer(32)),
        ("mirostat", DefaultValue::Text("v2".into())),
        ("samplers", DefaultValue::Text("top_k;temperature".into())),
    ];
    assert_eq!(found, expected);
    let wrong = Draft::tiny().with("general.sampling.temp", Value::String(b"hot"[..].into()));
    assert_eq!(load(&wrong).err().unwrap().status(), Status::BadFile);
}

/// The text of a generation through the C interface, with a temperature of the host or without.
fn text(draft: &Draft, temperature: Option<f64>) -> Result<String, Status> {
    let folder = Folder::new();
    let path = folder.write("model.gguf", &draft.writer());
    let options = options_new();
    options_set(options, b"device", Setting::Text(b"cpu")).unwrap();
    options_set(options, b"max_tokens", Setting::Integer(30)).unwrap();
    if let Some(temperature) = temperature {
        options_set(options, b"temperature", Setting::Number(temperature)).unwrap();
    }
    let model = c_api::load(&path, options).unwrap();
    let outcome = c_api::start(model, b"zq", options).and_then(|inference| {
        let text = c_api::text(inference);
        c_api::inference_free(inference).unwrap();
        text
    });
    c_api::model_free(model).unwrap();
    options_free(options).unwrap();
    outcome
}

#[test]
fn they_hold_for_what_the_host_has_not_set() {
    let plain = Draft::tiny();
    let greedy = text(&plain, Some(0.0)).unwrap();
    let cold = plain.clone().with("general.sampling.temp", Value::F32(0.0));
    assert_eq!(text(&cold, None).unwrap(), greedy);
    assert_eq!(text(&cold, Some(2.0)).unwrap(), text(&plain, Some(2.0)).unwrap());
    // A default that no option allows is no reason to go on without it, but the host's own is.
    for bad in [
        plain.clone().with("general.sampling.temp", Value::F32(9.0)),
        plain.clone().with("general.sampling.temp", Value::F32(f32::NAN)),
    ] {
        assert_eq!(text(&bad, None), Err(Status::InvalidArgument));
        assert_eq!(text(&bad, Some(0.0)).unwrap(), greedy);
    }
    for (key, value) in [("sequence", "top_q"), ("sequence", "")] {
        let value = Value::String(value.as_bytes().into());
        let bad = plain.clone().with(&format!("general.sampling.{key}"), value);
        assert_eq!(text(&bad, Some(0.0)), Err(Status::InvalidArgument));
    }
    let first = plain.with("general.sampling.mirostat", Value::I32(1));
    assert_eq!(text(&first, Some(0.0)), Err(Status::InvalidArgument));
}
