//! Every architecture: the tiny files of `tests/data/arch`, beside the CPU and beside llama.cpp.

use kigo::backend::{Backend, DecodePath, Purpose};
use kigo::model::{LayerDesc, ModelDesc, arch};
use kigo::quant::QuantType;
use serde_json::Value;

use super::folder::Folder;
use super::harness::*;
use super::models;
use super::random_model::{Features, Shape, draft_with};

/// Largest mean divergence, in nats.
const MAX_DIVERGENCE: f64 = 1e-4;
const CHUNKS: [usize; 3] = [1, 7, 64];
/// Rows of a batch: no more than the chunks take, so that rings are short.
const N_BATCH: usize = 64;

/// The names of the tiny files.
fn names() -> Vec<String> {
    let files = std::fs::read_dir(models::data("arch")).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<String> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "gguf"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

fn open(name: &str, device: &str, n_ctx: usize) -> Box<dyn Backend> {
    let path = models::data(&format!("arch/{name}.gguf"));
    backend_for(&path, device, (n_ctx, N_BATCH, DecodePath::Step), |_| ())
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn describe(name: &str) -> ModelDesc {
    let gguf = kigo::gguf::Gguf::open(&models::data(&format!("arch/{name}.gguf"))).unwrap();
    arch::describe(gguf.metadata()).unwrap()
}

/// The logits after each of `tokens` on the GPU, which are the same bits in all chunks.
fn in_chunks(name: &str, n_ctx: usize, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut gpu = open(name, &gpu(), n_ctx);
    let [first, others @ ..] = [0, 1, 2].map(|i: usize| all_logits(&mut *gpu, i as u64, tokens, CHUNKS[i]));
    for (other, chunk) in others.iter().zip(&CHUNKS[1..]) {
        for (position, (a, b)) in first.iter().zip(other).enumerate() {
            assert!(bits(a) == bits(b), "{name}: other bits in chunks of {chunk} at position {position}");
        }
    }
    first
}

/// Mean divergence from the CPU.
fn divergence_from_cpu(name: &str, n_ctx: usize, tokens: &[u32], found: &[Vec<f32>]) -> f64 {
    let expected = all_logits(&mut *open(name, "cpu", n_ctx), 0, tokens, N_BATCH);
    let sum: f64 = found.iter().zip(&expected).map(|(found, expected)| divergence(found, expected)).sum();
    sum / tokens.len() as f64
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
#[ignore = "needs a GPU"]
fn logits_are_those_of_the_cpu_and_of_llama_cpp() {
    let names = names();
    assert!(names.len() >= arch::ARCHITECTURES.len());
    for name in names {
        let golden = std::fs::read(models::data(&format!("arch/{name}.json"))).unwrap();
        let golden: Value = serde_json::from_slice(&golden).unwrap();
        let mut worst: [f64; 2] = [0.0; 2];
        for prompt in golden["prompts"].as_array().unwrap() {
            let tokens: Vec<u32> = numbers(&prompt["tokens"]).iter().map(|&token| token as u32).collect();
            let n_ctx = prompt["n_ctx"].as_u64().unwrap() as usize;
            let found = in_chunks(&name, n_ctx, &tokens);
            let from_cpu = divergence_from_cpu(&name, n_ctx, &tokens, &found);
            let positions = numbers(&prompt["positions"]);
            let of_position = |(position, logits): (&f64, &Value)| {
                let expected: Vec<f32> = numbers(logits).iter().map(|&x| x as f32).collect();
                divergence(&found[*position as usize], &expected)
            };
            let sum: f64 = positions.iter().zip(prompt["logits"].as_array().unwrap()).map(of_position).sum();
            let from_golden = sum / positions.len() as f64;
            for (worst, divergence) in worst.iter_mut().zip([from_cpu, from_golden]) {
                let n = tokens.len();
                assert!(divergence <= MAX_DIVERGENCE, "{name}: divergence {divergence:e} over {n} tokens");
                *worst = worst.max(divergence);
            }
        }
        println!("{name}: mean divergence from the CPU {:.1e}, from the golden {:.1e}", worst[0], worst[1]);
    }
}

/// Long enough that rings of pages go round more than once.
#[test]
#[ignore = "needs a GPU"]
fn windows_go_round_their_rings() {
    let mut n_windowed = 0;
    for name in names() {
        let desc = describe(&name);
        if desc.layers.iter().all(|layer| layer.window.is_none()) {
            continue;
        }
        n_windowed += 1;
        let tokens: Vec<u32> = (0..500).map(|i| i * 37 % desc.n_vocab as u32).collect();
        let found = in_chunks(&name, 512, &tokens);
        // These tokens were not chosen so that no choice of experts is close.
        if desc.experts.is_none() {
            let divergence = divergence_from_cpu(&name, 512, &tokens, &found);
            println!("{name}: mean divergence {divergence:.1e}");
            assert!(divergence <= MAX_DIVERGENCE, "{name}: divergence {divergence:e}");
        }
    }
    assert!(n_windowed >= 5, "{n_windowed} tiny files have windows");
}

/// 32 layers with a page of 8 MiB: the cache takes another chunk of 32 MiB for every 256 positions, but where windows bound it.
#[test]
#[ignore = "needs a GPU"]
fn windows_bound_the_cache() {
    const SHAPE: Shape = Shape {
        n_layer: 32,
        n_embd: 64,
        n_head: 8,
        n_head_kv: 8,
        head_dim: 128,
        n_rot: 128,
        n_ff: 64,
        n_vocab: 300,
        tied: true,
        biases: false,
        norm_biases: false,
    };
    let folder = Folder::new();
    let bytes = |window: Option<usize>| {
        let features = Features { layers: vec![LayerDesc { window, rope: Some(0) }], ..Features::default() };
        let path = folder.write("model.gguf", &draft_with(&SHAPE, &features, &[QuantType::F16], 1).writer());
        let change = |desc: &mut ModelDesc| features.describe(desc);
        let mut backend = backend_for(&path, &gpu(), (1024, N_BATCH, DecodePath::Step), change).unwrap();
        let memory = backend.memory();
        let mut all = vec![memory.bytes(Purpose::Cache)];
        for n_positions in (1..=500).step_by(20) {
            backend.sequence_reserve(1, n_positions).unwrap();
            all.push(memory.bytes(Purpose::Cache));
        }
        backend.sequence_free(1);
        assert_eq!(memory.bytes(Purpose::Cache), all[0]);
        all
    };
    let (without, with) = (bytes(None), bytes(Some(64)));
    // From the 200 positions on that window and batch take together, nothing more.
    assert!(with[11..].iter().all(|bytes| *bytes == with[11]), "{with:?}");
    assert!(without.last().unwrap() > with.last().unwrap(), "{without:?}, {with:?}");
}
