//! What is told about a model, from its file and while it is loaded.

use super::*;
use kigo::backend::Purpose;
use kigo::engine::file_info;
use kigo::gguf::{Array, Gguf};
use kigo::model::{Weights, arch};
use serde_json::Value as Json;

fn options(n_ctx: usize) -> LoadOptions {
    LoadOptions {
        device: "cpu".into(),
        n_ctx: Some(n_ctx),
        n_batch: Some(32),
        n_threads: Some(2),
        ..LoadOptions::default()
    }
}

#[test]
fn a_file_tells_what_the_model_does() {
    let path = models::data("tiny-llama-q8_0.gguf");
    let engine = Engine::load(&path, &options(100)).unwrap();
    let info = file_info(&path, &options(100)).unwrap();
    assert_eq!(info, engine.info(None).unwrap());
    let other = engine.info(Some(1000)).unwrap();
    assert_eq!((&other["memory"]["n_ctx"], &other["sizes"]), (&Json::from(1000), &info["sizes"]));
    assert!(other["memory"]["cache"].as_u64() > info["memory"]["cache"].as_u64());

    let sizes =
        [("n_layer", 2), ("n_embd", 64), ("n_head", 4), ("n_head_kv", 2), ("n_vocab", 280), ("n_params", 97_600)];
    for (name, expected) in sizes {
        assert_eq!(info["sizes"][name], expected, "{name}");
    }
    let roles = info["roles"].as_array().unwrap();
    let sum = |key: &str| roles.iter().map(|role| role[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("count"), sum("n_params")), (21, 97_600));
    let by_type = info["types"].as_object().unwrap().values().map(|group| group["bytes"].as_u64().unwrap());
    assert_eq!(sum("bytes"), by_type.sum::<u64>());
    assert_eq!(info["file"]["bytes"], std::fs::metadata(&path).unwrap().len());
    assert_eq!(info["tokenizer"]["eos"]["text"], "<|im_end|>");
}

#[test]
fn the_size_of_batches_follows_device_and_model() {
    let n_batch = |device: &str| {
        let options = LoadOptions { device: device.into(), n_ctx: Some(100), ..LoadOptions::default() };
        file_info(&models::data("tiny-llama.gguf"), &options).unwrap()["memory"]["n_batch"].as_u64()
    };
    assert_eq!(n_batch("cpu"), Some(128));
    #[cfg(feature = "cuda")]
    assert_eq!(n_batch("cuda"), Some(2048));
}

/// A token is multiplied with the experts that it uses, and with everything else.
#[test]
fn the_weights_that_a_token_is_multiplied_with() {
    let weights = |file: &str| {
        let gguf = Gguf::open(&models::data(file)).unwrap();
        let desc = arch::describe(gguf.metadata()).unwrap();
        let plan = Weights::plan(&gguf, &desc).unwrap();
        (plan.layer_weights(&desc), desc)
    };
    let (dense, desc) = weights("tiny-llama.gguf");
    let attention = 2 * desc.n_embd * (desc.n_embd_q() + desc.n_embd_kv());
    assert_eq!(dense, (desc.n_layer() * (attention + 3 * desc.n_embd * desc.n_ff)) as u64);
    let (used, desc) = weights("arch/qwen3moe.gguf");
    let (attention, experts) = (2 * desc.n_embd * (desc.n_embd_q() + desc.n_embd_kv()), desc.experts.unwrap());
    let ffn = 3 * desc.n_embd * desc.n_ff * experts.n_expert_used + desc.n_embd * experts.n_expert;
    assert_eq!(used, (desc.n_layer() * (attention + ffn)) as u64);
}

/// The estimate is what is taken once a context is full and the largest batch has run.
#[test]
fn memory_is_what_the_model_takes() {
    let path = models::data("tiny-llama.gguf");
    let engine = Engine::load(&path, &options(96)).unwrap();
    let tokens: Vec<u32> = TOKENS.iter().cycle().take(96).copied().collect();
    let (sequence, mut logits) = (engine.sequence_new(), Vec::new());
    for start in (0..96).step_by(32) {
        let row = |i: usize| Row { token: tokens[i], position: i as u32, sequence, logits: i == 95 };
        engine.run((start..start + 32).map(row).collect(), &mut logits, &std::sync::Arc::default()).unwrap();
    }
    let memory = &engine.info(None).unwrap()["memory"];
    let told = |part: &str| memory[part].as_u64().unwrap();
    assert_eq!(told("weights"), engine.memory().bytes(Purpose::Weights));
    assert_eq!(told("cache"), engine.memory().bytes(Purpose::Cache));
    assert_eq!(told("cache"), 96 * told("cache_per_token"));
    let workspace = engine.memory().bytes(Purpose::Workspace);
    assert!(
        (workspace..workspace + workspace / 4).contains(&told("workspace")),
        "{} of {workspace}",
        told("workspace")
    );
    assert_eq!(told("total"), told("weights") + told("cache") + told("workspace"));
    engine.sequence_free(sequence);
}

#[test]
fn files_that_cannot_run_still_tell() {
    let folder = Folder::new();
    let told = |draft: Draft| file_info(&folder.write("model.gguf", &draft.writer()), &options(100)).unwrap();
    let unknown = told(Draft::tiny().with("general.architecture", "sandcastle"));
    assert!(unknown["error"].as_str().unwrap().contains("sandcastle"));
    assert_eq!((&unknown["sizes"]["n_params"], &unknown["tokenizer"]["n_vocab"]), (&97_600.into(), &280.into()));
    assert!(unknown.get("memory").is_none());
    let tokenizer = told(Draft::tiny().with("tokenizer.ggml.model", "runes"));
    assert!(tokenizer["error"].as_str().unwrap().contains("runes") && tokenizer.get("tokenizer").is_none());

    // Lists and texts without end are not repeated.
    let long = told(
        Draft::tiny()
            .with("llama.long", Value::Array(Array::U32(vec![7; 100_000])))
            .with("llama.text", Value::String(vec![0xFF; 100_000].into()))
            .with("llama.short", Value::Array(Array::F32(vec![0.1, 2.0]))),
    );
    assert_eq!(long["hyperparameters"]["long"], "100000 UINT32");
    assert_eq!(long["hyperparameters"]["short"].to_string(), "[0.1,2.0]");
    assert!(long.to_string().len() < 20_000);
    let error = file_info(&models::data("tiny-llama.gguf"), &LoadOptions { device: "gpu".into(), ..options(1) });
    check_error(&error.unwrap_err(), Status::InvalidArgument, &["device", "gpu"]);
    let error = file_info(&models::data("tiny-llama.gguf"), &options(0)).unwrap_err();
    check_error(&error, Status::InvalidArgument, &["n_ctx"]);
}
