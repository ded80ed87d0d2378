//! Every architecture on the CPU backend: tiny files with random weights, judged by llama.cpp and transformers in f32.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/models.rs"]
mod models;

use kigo::backend::cpu::CpuBackend;
use kigo::backend::{Backend, Progress, Purpose, Row};
use kigo::gguf::Gguf;
use kigo::model::{ModelDesc, Weights, arch};
use serde_json::Value;

/// Of the logits of a position against the golden, by Euclidean norm. Two implementations in f32 differ by up to 5e-5.
const MAX_ERROR: f64 = 2e-4;

fn load(name: &str, n_ctx: usize) -> (CpuBackend, ModelDesc) {
    let gguf = Gguf::open(&models::data(&format!("arch/{name}.gguf"))).unwrap();
    let desc = arch::describe(gguf.metadata()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let plan = Weights::plan(&gguf, &desc).unwrap_or_else(|error| panic!("{name}: {error}"));
    (CpuBackend::load(&gguf, &desc, &plan, (n_ctx, 2), &Progress::default()).unwrap(), desc)
}

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

struct Prompt {
    n_ctx: usize,
    tokens: Vec<u32>,
    /// Positions, and the logits after each.
    logits: Vec<(usize, Vec<f32>)>,
}

fn prompts(name: &str) -> Vec<Prompt> {
    let json = std::fs::read(models::data(&format!("arch/{name}.json"))).unwrap();
    let golden: Value = serde_json::from_slice(&json).unwrap();
    let numbers =
        |value: &Value| -> Vec<f64> { value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
    let prompt = |prompt: &Value| {
        let positions = numbers(&prompt["positions"]).into_iter().map(|p| p as usize);
        let logits = prompt["logits"].as_array().unwrap().iter();
        let logits = logits.map(|logits| numbers(logits).into_iter().map(|x| x as f32).collect());
        Prompt {
            n_ctx: prompt["n_ctx"].as_u64().unwrap() as usize,
            tokens: numbers(&prompt["tokens"]).into_iter().map(|t| t as u32).collect(),
            logits: positions.zip(logits).collect(),
        }
    };
    golden["prompts"].as_array().unwrap().iter().map(prompt).collect()
}

/// The rows of a sequence from position 0, all of which want logits.
fn rows(sequence: u64, tokens: &[u32]) -> Vec<Row> {
    let row = |(position, &token): (usize, &u32)| Row { token, position: position as u32, sequence, logits: true };
    tokens.iter().enumerate().map(row).collect()
}

/// The logits of the rows of the next batch.
fn run(backend: &mut CpuBackend, rows: &[Row]) -> Vec<Vec<f32>> {
    rows.iter().for_each(|row| backend.sequence_reserve(row.sequence, row.position as usize + 1).unwrap());
    backend.forward(rows).unwrap();
    (0..rows.len()).map(|i| backend.logits(i).unwrap().to_vec()).collect()
}

/// The logits after each of `tokens`, run in batches of `chunk`.
fn logits(backend: &mut CpuBackend, sequence: u64, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    rows(sequence, tokens).chunks(chunk).flat_map(|rows| run(backend, rows)).collect()
}

fn bits(logits: &[Vec<f32>]) -> Vec<u32> {
    logits.iter().flatten().map(|x| x.to_bits()).collect()
}

/// Norm of the difference over the norm.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
    difference / norm(&mut expected.iter().map(|&x| f64::from(x)))
}

#[test]
fn every_architecture_has_a_tiny_file() {
    let described: Vec<&str> = names().iter().map(|name| load(name, 64).1.architecture).collect();
    for architecture in arch::ARCHITECTURES {
        assert!(described.contains(&architecture.name), "{} has none", architecture.name);
    }
}

#[test]
fn logits_equal_those_of_llama_cpp_and_transformers() {
    for name in names() {
        let mut worst: f64 = 0.0;
        let prompts = prompts(&name);
        assert!(prompts.len() >= 3 && prompts.iter().any(|prompt| prompt.tokens.len() >= 200), "{name}");
        for prompt in prompts {
            let (mut backend, _) = load(&name, prompt.n_ctx);
            let found = logits(&mut backend, 1, &prompt.tokens, prompt.tokens.len());
            for (position, expected) in prompt.logits {
                let error = relative_error(&found[position], &expected);
                let n = prompt.tokens.len();
                assert!(error <= MAX_ERROR, "{name}: error {error:.1e} at position {position} of {n}");
                worst = worst.max(error);
            }
        }
        println!("{name}: relative error at most {worst:.1e}");
    }
}

#[test]
fn chunks_and_company_change_no_bit() {
    for name in names() {
        let (mut backend, desc) = load(&name, 256);
        let tokens = &prompts(&name).iter().find(|prompt| prompt.tokens.len() == 200).unwrap().tokens.clone();
        let expected = bits(&logits(&mut backend, 1, tokens, tokens.len()));
        for (chunk, sequence) in [1, 7, 64].into_iter().zip(2..) {
            assert!(bits(&logits(&mut backend, sequence, tokens, chunk)) == expected, "{name} in chunks of {chunk}");
        }
        // Others are ahead of it and behind it, and use other experts.
        let (company, n_vocab) = ([10, 11, 12, 13], desc.n_vocab as u32);
        let others: Vec<Vec<Row>> = company
            .map(|sequence| {
                let tokens: Vec<u32> = tokens.iter().map(|token| (token * 7 + sequence as u32) % n_vocab).collect();
                rows(sequence, &tokens)
            })
            .to_vec();
        logits(&mut backend, company[0], &others[0].iter().map(|row| row.token).collect::<Vec<_>>()[..40], 40);
        let mut found = Vec::new();
        for (p, row) in rows(99, tokens).into_iter().enumerate().take(100) {
            let ahead = others[0][40 + p];
            let batch: Vec<Row> = [ahead, others[1][p], row, others[2][p], others[3][p]].into();
            found.push(run(&mut backend, &batch).swap_remove(2));
        }
        assert!(bits(&found) == expected[..100 * desc.n_vocab], "{name} in company");
    }
}

#[test]
fn threads_change_no_bit() {
    for name in names() {
        let gguf = Gguf::open(&models::data(&format!("arch/{name}.gguf"))).unwrap();
        let desc = arch::describe(gguf.metadata()).unwrap();
        let plan = Weights::plan(&gguf, &desc).unwrap();
        let tokens = &prompts(&name)[1].tokens;
        let [one, two] = [1, 3].map(|n_threads| {
            let sizes = (256, n_threads);
            let mut backend = CpuBackend::load(&gguf, &desc, &plan, sizes, &Progress::default()).unwrap();
            bits(&logits(&mut backend, 0, tokens, 9))
        });
        assert!(one == two, "{name}");
    }
}

/// The cache of a layer with a window holds what its window and a batch take, however long the sequence grows.
#[test]
fn windows_bound_the_cache() {
    const PAGE: usize = 32;
    let mut n_windowed = 0;
    for name in names() {
        let (mut backend, desc) = load(&name, 512);
        let windows: Vec<usize> = desc.layers.iter().filter_map(|layer| layer.window).collect();
        if windows.is_empty() {
            continue;
        }
        n_windowed += 1;
        let memory = backend.memory();
        let per_position = 2 * desc.n_embd_kv() * size_of::<f32>();
        let tokens: Vec<u32> = (0..300).map(|i| i * 37 % desc.n_vocab as u32).collect();
        for (chunk, sequence) in [1, 16].into_iter().zip(0..) {
            for rows in rows(sequence, &tokens).chunks(chunk) {
                run(&mut backend, rows);
                let n = rows.last().unwrap().position as usize + 1;
                let whole = (desc.n_layer() - windows.len()) * n.next_multiple_of(PAGE);
                // Pages begin where they like, and one stays for a sequence that goes back.
                let kept = |window: usize| (window + chunk).next_multiple_of(PAGE) + 2 * PAGE;
                let most =
                    whole + windows.iter().map(|&window| kept(window).min(n.next_multiple_of(PAGE))).sum::<usize>();
                let bytes = memory.bytes(Purpose::Cache);
                assert!(bytes <= (most * per_position) as u64, "{name}: {bytes} bytes for {n} positions");
            }
            let without = (desc.n_layer() * 300usize.next_multiple_of(PAGE) * per_position) as u64;
            assert!(memory.bytes(Purpose::Cache) < without, "{name}");
            backend.sequence_free(sequence);
            assert_eq!(memory.bytes(Purpose::Cache), 0, "{name}");
        }
    }
    assert!(n_windowed >= 5, "{n_windowed} tiny files have windows");
}
