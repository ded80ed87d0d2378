//! After calls of every kind, failed or not, the process holds exactly what it held before: bytes, blocks, open
//! files and threads.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/alloc.rs"]
mod alloc;
#[path = "common/c_api.rs"]
mod c_api;
#[path = "common/folder.rs"]
mod folder;
#[path = "common/held.rs"]
mod held;
#[path = "common/models.rs"]
mod models;
#[path = "common/tiny.rs"]
mod tiny;

use std::path::Path;
use std::time::Duration;

use c_api::{Answer, Handle, Setting};
use folder::Folder;
use held::leaves_nothing;
use kigo::Status;
use kigo::gguf::{Array, Value};
use tiny::Draft;

fn fails<T: std::fmt::Debug + PartialEq>(answer: Answer<T>, status: Status) {
    assert_eq!(answer, Err(status));
}

/// The tiny model, loaded.
fn tiny(options: Handle) -> Handle {
    c_api::load(&models::data("tiny-llama.gguf"), options).unwrap()
}

fn drafts() -> Vec<(&'static str, Draft, Status)> {
    let tiny = Draft::tiny;
    let numbers = Value::Array(Array::U32(vec![1, 2, 3]));
    vec![
        ("architecture", tiny().with("general.architecture", "llamaX"), Status::UnsupportedArchitecture),
        ("hyperparameter", tiny().without("llama.block_count"), Status::BadFile),
        ("type of a key", tiny().with("llama.block_count", "2"), Status::BadFile),
        ("tokenizer", tiny().with("tokenizer.ggml.model", "other"), Status::UnsupportedTokenizer),
        ("tokens", tiny().with("tokenizer.ggml.tokens", numbers.clone()), Status::BadFile),
        ("token types", tiny().with("tokenizer.ggml.token_type", numbers), Status::BadFile),
        ("missing tensor", tiny().without_tensor("blk.1.ffn_up.weight"), Status::BadFile),
        ("shape", tiny().changed("output.weight", |tensor| tensor.dims.reverse()), Status::BadFile),
        ("type", tiny().changed("output.weight", |tensor| tensor.type_id = 16), Status::UnsupportedType),
        ("useless tensor", tiny().with_tensor("blk.2.attn_q.weight", &[1], &[1.0]), Status::BadFile),
    ]
}

fn failed_loads() {
    let (folder, options) = (Folder::new(), c_api::options(&[]));
    let path = folder.path("model.gguf");
    let attempt = |name: &str, path: &Path, options: Handle, status: Status| {
        leaves_nothing(&format!("a load that fails: {name}"), &|| fails(c_api::load(path, options), status));
    };
    attempt("missing file", &folder.path("missing.gguf"), options, Status::Io);
    attempt("directory", &folder.0, options, Status::Io);
    attempt("empty path", Path::new(""), options, Status::Io);
    let whole = std::fs::read(models::data("tiny-llama.gguf")).unwrap();
    for len in [0, 3, 100, whole.len() / 10, whole.len() - 1] {
        std::fs::write(&path, &whole[..len]).unwrap();
        attempt(&format!("{len} bytes"), &path, options, Status::Truncated);
    }
    std::fs::write(&path, b"<!DOCTYPE html><html></html>").unwrap();
    attempt("another format", &path, options, Status::NotGguf);
    for (name, draft, status) in drafts() {
        draft.writer().write(&path).unwrap();
        attempt(name, &path, options, status);
    }
    let good = models::data("tiny-llama.gguf");
    attempt("forged options", &good, 0xDEAD_BEEF, Status::InvalidHandle);
    let missing = c_api::options(&[("device", Setting::Text(b"cuda:999"))]);
    attempt("no such device", &good, missing, c_api::missing_gpu());
    c_api::options_free(missing).unwrap();
    c_api::options_free(options).unwrap();
    attempt("freed options", &good, options, Status::InvalidHandle);
}

fn loads_beside_the_host() {
    let (options, path) = (c_api::options(&[]), models::data("tiny-llama.gguf"));
    leaves_nothing("a load that is finished", &|| {
        let load = c_api::load_start(&path, options).unwrap();
        let model = c_api::load_finish(load).unwrap();
        fails(c_api::load_finish(load), Status::InvalidArgument);
        let (done, total, running) = c_api::load_progress(load).unwrap();
        assert!(total > 0 && done == total && !running);
        c_api::load_free(load).unwrap();
        c_api::model_free(model).unwrap();
        fails(c_api::load_free(load), Status::InvalidHandle);
        fails(c_api::load_progress(load), Status::InvalidHandle);
    });
    leaves_nothing("loads that are cancelled, freed, or both", &|| {
        for cancelled in [true, false] {
            for finished in [true, false] {
                let load = c_api::load_start(&path, options).unwrap();
                if cancelled {
                    c_api::load_cancel(load).unwrap();
                }
                match finished.then(|| c_api::load_finish(load)) {
                    Some(Ok(model)) => drop(c_api::model_free(model).unwrap()),
                    Some(Err(status)) => assert_eq!((status, cancelled), (Status::Cancelled, true)),
                    None => {}
                }
                c_api::load_free(load).unwrap();
            }
        }
    });
    leaves_nothing("loads that tell the host, and that it cancels", &|| {
        for answer in [0, 1] {
            c_api::options_tell(options, answer).unwrap();
            match c_api::load(&path, options) {
                Ok(model) => assert_eq!((answer, c_api::model_free(model)), (0, Ok(0))),
                Err(status) => assert_eq!((answer, status), (1, Status::Cancelled)),
            }
        }
    });
    leaves_nothing("a load that fails beside the host", &|| {
        let load = c_api::load_start(Path::new("no/such/file"), options).unwrap();
        fails(c_api::load_finish(load), Status::Io);
        c_api::load_free(load).unwrap();
    });
    c_api::options_free(options).unwrap();
}

fn options() {
    let options = c_api::options(&[]);
    leaves_nothing("options that are refused", &|| {
        let set = |key: &str, setting| c_api::options_set(options, key.as_bytes(), setting);
        fails(set("temprature", Setting::Number(1.0)), Status::UnknownOption);
        fails(set("temperature", Setting::Number(-1.0)), Status::InvalidArgument);
        fails(set("temperature", Setting::Number(f64::NAN)), Status::InvalidArgument);
        fails(set("temperature", Setting::Text(b"hot")), Status::InvalidArgument);
        fails(set("n_ctx", Setting::Integer(0)), Status::InvalidArgument);
        fails(set("device", Setting::Text(b"tpu")), Status::InvalidArgument);
        fails(set("stop", Setting::Text(b"")), Status::InvalidArgument);
        fails(set("stop", Setting::Text(b"a\xff")), Status::InvalidUtf8);
        fails(c_api::options_set(options, b"\xff", Setting::Integer(1)), Status::InvalidUtf8);
        fails(c_api::options_set(1, b"n_ctx", Setting::Integer(1)), Status::InvalidHandle);
    });
    leaves_nothing("options with stop strings", &|| {
        let options = c_api::options(&[]);
        for _ in 0..64 {
            c_api::options_set(options, b"stop", Setting::Text(b"a text that does not come")).unwrap();
        }
        fails(c_api::options_set(options, b"stop", Setting::Text(b"one more")), Status::Limit);
        c_api::options_free(options).unwrap();
        fails(c_api::options_free(options), Status::InvalidHandle);
    });
    c_api::options_free(options).unwrap();
}

fn failed_starts() {
    let options = c_api::options(&[("n_ctx", Setting::Integer(100))]);
    let chat = c_api::options(&[("prompt_format", Setting::Text(b"chat"))]);
    let model = tiny(options);
    leaves_nothing("prompts that are refused", &|| {
        let start = |prompt: &[u8]| c_api::start(model, prompt, options);
        fails(start(b"a\xff"), Status::InvalidUtf8);
        fails(start(b""), Status::EmptyPrompt);
        fails(start(&b"no end ".repeat(100)), Status::PromptTooLong);
        fails(start(&b"no end ".repeat(1_000_000)), Status::PromptTooLong);
        for json in [&b""[..], b"{}", b"[1]", b"[{\"role\": 1}", &b"[".repeat(10_000)] {
            fails(c_api::start(model, json, chat), Status::InvalidArgument);
        }
        let tokens = |tokens: &[i32]| c_api::start_tokens(model, tokens, options);
        fails(tokens(&[1, 280]), Status::InvalidArgument);
        fails(tokens(&[1, -1]), Status::InvalidArgument);
        fails(tokens(&[]), Status::EmptyPrompt);
        fails(tokens(&[1; 100]), Status::PromptTooLong);
        for handle in [0, 1, 0xDEAD_BEEF, usize::MAX, options] {
            fails(c_api::start(handle, b"a", options), Status::InvalidHandle);
            fails(c_api::model_count(handle, c"n_ctx"), Status::InvalidHandle);
            fails(c_api::model_text_size(handle, c"device"), Status::InvalidHandle);
        }
        fails(c_api::start(model, b"a", model), Status::InvalidHandle);
        fails(c_api::model_count(model, c"n_ctxx"), Status::InvalidArgument);
        fails(c_api::model_count(model, c"device"), Status::InvalidArgument);
        assert_eq!(c_api::model_count(model, c"n_ctx"), Ok(100));
        assert_eq!(c_api::model_text_size(model, c"device"), Ok(4));
    });
    c_api::model_free(model).unwrap();

    let folder = Folder::new();
    for template in ["{% for", "{{ raise_exception('no') }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"] {
        let path = folder.write("model.gguf", &Draft::tiny().with("tokenizer.chat_template", template).writer());
        let model = c_api::load(&path, options).unwrap();
        let prompt = br#"[{"role": "user", "content": "Hi"}]"#;
        leaves_nothing(template, &|| fails(c_api::start(model, prompt, chat), Status::BadTemplate));
        c_api::model_free(model).unwrap();
    }
    for options in [options, chat] {
        c_api::options_free(options).unwrap();
    }
}

fn failed_generations() {
    let options = c_api::options(&[("n_ctx", Setting::Integer(40))]);
    let model = tiny(options);
    let started = || c_api::start(model, b"spring, summer, ", options).unwrap();
    leaves_nothing("calls on an inference that fail", &|| {
        let inference = started();
        let mut buffer = [0; 64];
        for _ in 0..3 {
            fails(c_api::next_text(inference, &mut []), Status::BufferTooSmall);
            fails(c_api::next_text(inference, &mut buffer[..1]), Status::BufferTooSmall);
        }
        c_api::null_arguments(model, inference);
        assert!(c_api::next_text(inference, &mut buffer).unwrap() > 0);
        fails(c_api::next_token(inference, &mut buffer), Status::InvalidArgument);
        fails(c_api::last_error(inference), Status::InvalidArgument);
        fails(c_api::count(inference, c"no such key"), Status::InvalidArgument);
        for handle in [0, 1, usize::MAX, model, options] {
            fails(c_api::next_text(handle, &mut buffer), Status::InvalidHandle);
            fails(c_api::next_token(handle, &mut buffer), Status::InvalidHandle);
            fails(c_api::last_error(handle), Status::InvalidHandle);
            fails(c_api::cancel(handle), Status::InvalidHandle);
        }
        c_api::inference_free(inference).unwrap();
        fails(c_api::inference_free(inference), Status::InvalidHandle);
        fails(c_api::next_text(inference, &mut buffer), Status::InvalidHandle);
    });
    leaves_nothing("a full context", &|| {
        let inference = started();
        for _ in 0..3 {
            fails(c_api::text(inference), Status::ContextFull);
        }
        c_api::inference_free(inference).unwrap();
    });
    leaves_nothing("a cancelled inference", &|| {
        for before in [0, 3] {
            let inference = started();
            for _ in 0..before {
                c_api::next_token(inference, &mut [0; 64]).unwrap();
            }
            c_api::cancel(inference).unwrap();
            fails(c_api::next_token(inference, &mut [0; 64]), Status::Cancelled);
            c_api::inference_free(inference).unwrap();
        }
    });
    c_api::model_free(model).unwrap();

    let folder = Folder::new();
    let bad = Draft::tiny().changed("output_norm.weight", |tensor| tensor.set(0, f32::NAN));
    let path = folder.write("model.gguf", &bad.writer());
    leaves_nothing("weights that are not finite", &|| {
        let model = c_api::load(&path, options).unwrap();
        let inference = c_api::start(model, b"a", options).unwrap();
        fails(c_api::text(inference), Status::Numeric);
        fails(c_api::text(inference), Status::Numeric);
        c_api::inference_free(inference).unwrap();
        c_api::model_free(model).unwrap();
    });
    c_api::options_free(options).unwrap();
}

fn twenty_generations() {
    const HAIKU: &str = "Rain counts on the roof,\nthe old clock listens and learns\na number by heart.";
    let cycle = || {
        let user = Setting::Text(b"user");
        let options = c_api::options(&[("prompt_format", user), ("stop", Setting::Text(b"never said"))]);
        let model = tiny(options);
        let [whole, begun, idle] = [(); 3].map(|()| c_api::start(model, b"Write a haiku.", options).unwrap());
        assert_eq!(c_api::text(whole).unwrap(), HAIKU);
        assert!(c_api::next_token(begun, &mut [0; 64]).unwrap() > 0);
        // Inferences outlive the model and the options they were made with.
        c_api::options_free(options).unwrap();
        c_api::inference_free(idle).unwrap();
        c_api::model_free(model).unwrap();
        fails(c_api::model_free(model), Status::InvalidHandle);
        assert!(c_api::next_token(begun, &mut [0; 64]).unwrap() > 0);
        c_api::inference_free(begun).unwrap();
        c_api::inference_free(whole).unwrap();
    };
    leaves_nothing("a generation", &cycle);
    leaves_nothing("twenty generations", &|| (0..20).for_each(|_| cycle()));
    let options = c_api::options(&[]);
    let model = tiny(options);
    leaves_nothing("a hundred inferences of one model", &|| {
        for i in 0..100 {
            let inference = c_api::start(model, b"spring, ", options).unwrap();
            for _ in 0..i % 4 {
                c_api::next_token(inference, &mut [0; 64]).unwrap();
            }
            c_api::inference_free(inference).unwrap();
        }
    });
    c_api::model_free(model).unwrap();
    c_api::options_free(options).unwrap();
}

fn turns() {
    let folder = Folder::new();
    let file = folder.path("state");
    let user = Setting::Text(b"user");
    let options = c_api::options(&[("prompt_format", user), ("n_ctx", Setting::Integer(300))]);
    let other = c_api::options(&[("temperature", Setting::Number(1.0)), ("max_tokens", Setting::Integer(5))]);
    let model = tiny(options);
    leaves_nothing("turns, forks and states", &|| {
        let inference = c_api::start(model, b"Write a haiku.", options).unwrap();
        assert!(!c_api::text(inference).unwrap().is_empty());
        let forks = [0, other].map(|options| c_api::fork(inference, options).unwrap());
        c_api::append(inference, b"Write a haiku.").unwrap();
        assert!(!c_api::text(inference).unwrap().is_empty());
        c_api::rewind(inference, 40).unwrap();
        c_api::save(inference, &file).unwrap();
        let loaded = c_api::load_state(model, &file, options).unwrap();
        for inference in forks.into_iter().chain([inference, loaded]) {
            let _ = c_api::text(inference);
            c_api::inference_free(inference).unwrap();
        }
        c_api::clear_prompt_cache(model).unwrap();
        assert_eq!(c_api::model_count(model, c"cache_bytes"), Ok(0));
    });
    leaves_nothing("calls for turns that fail", &|| {
        let inference = c_api::start(model, b"Write a haiku.", options).unwrap();
        fails(c_api::rewind(inference, 0), Status::InvalidArgument);
        fails(c_api::rewind(inference, 1000), Status::InvalidArgument);
        fails(c_api::append(inference, b"\xff"), Status::InvalidUtf8);
        fails(c_api::append(inference, &b"no end ".repeat(200)), Status::PromptTooLong);
        fails(c_api::fork(inference, inference), Status::InvalidHandle);
        fails(c_api::save(inference, &folder.path("no/such/folder")), Status::Io);
        fails(c_api::load_state(model, &folder.path("missing"), options), Status::Io);
        fails(c_api::load_state(model, &models::data("tiny-llama.gguf"), options), Status::BadState);
        let good = std::fs::read(&file).unwrap();
        let damaged = folder.path("damaged");
        for at in [20, 100, good.len() / 2, good.len() - 1] {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            std::fs::write(&damaged, bytes).unwrap();
            fails(c_api::load_state(model, &damaged, options), Status::BadState);
        }
        c_api::inference_free(inference).unwrap();
        for handle in [0, 1, model, inference] {
            fails(c_api::rewind(handle, 1), Status::InvalidHandle);
            fails(c_api::fork(handle, 0), Status::InvalidHandle);
            fails(c_api::append(handle, b"a"), Status::InvalidHandle);
            fails(c_api::save(handle, &file), Status::InvalidHandle);
        }
        fails(c_api::load_state(inference, &file, options), Status::InvalidHandle);
        fails(c_api::clear_prompt_cache(inference), Status::InvalidHandle);
    });
    // Whatever comes again and again, the cache has it once; and cleared, nothing is left of a thousand different ones.
    leaves_nothing("the same inference many times", &|| {
        for _ in 0..300 {
            let inference = c_api::start(model, b"Write a haiku.", options).unwrap();
            c_api::next_token(inference, &mut [0; 64]).unwrap();
            c_api::inference_free(inference).unwrap();
        }
    });
    c_api::clear_prompt_cache(model).unwrap();
    leaves_nothing("many different inferences, and a cleared cache", &|| {
        for i in 0..300 {
            let inference = c_api::start(model, format!("{i} times: Write a haiku.").as_bytes(), options).unwrap();
            c_api::next_token(inference, &mut [0; 64]).unwrap();
            c_api::inference_free(inference).unwrap();
        }
        c_api::clear_prompt_cache(model).unwrap();
    });
    c_api::model_free(model).unwrap();
    for options in [options, other] {
        c_api::options_free(options).unwrap();
    }
}

/// A leak of one byte, once, is found.
fn control() {
    let (before, after) =
        held::around(Duration::from_millis(100), &|| std::mem::forget(std::hint::black_box(Box::new(7_u8))));
    assert_eq!((after.bytes, after.blocks), (before.bytes + 1, before.blocks + 1));
    let open = || std::mem::forget(std::fs::File::open("/dev/null").unwrap());
    let (before, after) = held::around(Duration::from_millis(100), &open);
    assert_eq!(after.open_files, before.open_files + 1);
}

#[test]
fn everything_is_given_back() {
    control();
    failed_loads();
    loads_beside_the_host();
    options();
    failed_starts();
    failed_generations();
    twenty_generations();
    turns();
}
