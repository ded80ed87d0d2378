//! What loads and generations tell the log: their steps, and what may surprise. One test, since the log is the process's.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/folder.rs"]
mod folder;
#[path = "common/models.rs"]
mod models;
#[path = "common/tiny.rs"]
mod tiny;

use std::path::Path;
use std::sync::{Arc, Mutex};

use kigo::engine::{Engine, LoadOptions};
use kigo::gguf::Value;
use kigo::log::{Level, set_queue, set_sink};
use tiny::Draft;

/// What is told while `body` runs.
fn told(body: impl FnOnce()) -> Vec<(Level, String)> {
    let all = Arc::new(Mutex::new(vec![]));
    let theirs = all.clone();
    let sink = move |level: Level, text: &str| theirs.lock().unwrap().push((level, text.to_owned()));
    set_sink(Some((Level::Debug, Box::new(sink)))).unwrap();
    body();
    set_sink(None).unwrap();
    Arc::try_unwrap(all).unwrap().into_inner().unwrap()
}

fn load(path: &Path, device: &str) -> kigo::Result<Arc<Engine>> {
    Engine::load(path, &LoadOptions { device: device.into(), n_threads: Some(1), ..LoadOptions::default() })
}

fn levels(told: &[(Level, String)], level: Level) -> Vec<&str> {
    told.iter().filter(|(found, _)| *found == level).map(|(_, text)| text.as_str()).collect()
}

#[test]
fn loads_tell_their_steps_and_what_may_surprise() {
    let good = models::data("tiny-llama.gguf");
    let quiet = told(|| drop(load(&good, "cpu").unwrap()));
    let steps = levels(&quiet, Level::Info);
    assert_eq!(steps.len(), quiet.len(), "{quiet:?}");
    for (step, words) in steps.iter().zip(["read the header in ", "made the tokenizer in ", "read ", "loaded in "]) {
        assert!(step.starts_with(&format!("{}: {words}", good.display())), "{step}");
    }
    assert!(steps[3].contains("device cpu") && steps[3].contains("n_ctx 512") && steps[3].contains("n_threads 1"));

    let folder = folder::Folder::new();
    let odd = Draft::tiny().with("tokenizer.chat_template", "{% for").with("general.sampling.warmth", Value::F32(1.0));
    let path = folder.write("odd.gguf", &odd.writer());
    let surprising = told(|| drop(load(&path, "auto").unwrap()));
    let warnings = levels(&surprising, Level::Warning);
    assert_eq!(warnings.len(), 2, "{surprising:?}");
    assert!(warnings[0].ends_with("general.sampling.warmth is ignored: no option has this default"));
    assert!(warnings[1].contains("the chat template default cannot be used: "), "{warnings:?}");
    assert!(levels(&surprising, Level::Info)[0].contains("device auto is "), "{surprising:?}");

    let failed = told(|| assert!(load(Path::new("/no\n/such"), "cpu").is_err()));
    assert_eq!(failed.len(), 1);
    assert!(failed[0].0 == Level::Error && failed[0].1.contains("not loaded: cannot open"), "{failed:?}");
    assert!(!failed[0].1.contains('\n'));

    // A sink cannot end itself, nor does it hear of what it does.
    let heard = Arc::new(Mutex::new(0));
    let counts = heard.clone();
    let sink = move |_: Level, _: &str| {
        *counts.lock().unwrap() += 1;
        assert!(set_sink(None).is_err());
        assert!(load(Path::new("/no/such"), "cpu").is_err());
    };
    set_sink(Some((Level::Error, Box::new(sink)))).unwrap();
    set_queue(Some(Level::Error)).unwrap();
    assert!(load(Path::new("/no/such"), "cpu").is_err());
    set_sink(None).unwrap();
    assert_eq!(*heard.lock().unwrap(), 1);
    let mut queued = 0;
    while kigo::log::next(|_| Ok(())).unwrap().is_some() {
        queued += 1;
    }
    assert_eq!(queued, 2, "the queue has both");
    set_queue(None).unwrap();
}
