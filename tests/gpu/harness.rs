//! Models on both devices, and what their logits have in common.

use std::path::Path;
use std::sync::Arc;

use kigo::backend::cpu::CpuBackend;
use kigo::backend::cuda::CudaBackend;
use kigo::backend::cuda::context::Context;
use kigo::backend::{Backend, DecodePath, Device, Progress, Row, SequenceId};
use kigo::engine::{Engine, LoadOptions};
use kigo::gguf::Gguf;
use kigo::model::{ModelDesc, Weights, arch};
use kigo::sampler::SamplingParams;
use kigo::session::{Prompt, Session, SessionOptions};
use kigo::{Error, Result};

use super::models;

/// The device under test.
pub fn gpu() -> String {
    std::env::var("KIGO_TEST_DEVICE").unwrap_or("cuda".into())
}

/// Loads a model whose sequences decode in one kernel where they can, alone and in company.
pub fn load(path: &Path, device: &str, n_batch: usize) -> Arc<Engine> {
    let decode_path = DecodePath::Step;
    // Without a prompt cache, so that the same prompt is computed again.
    let options = LoadOptions {
        device: device.into(),
        n_batch: Some(n_batch),
        decode_path,
        prompt_cache: 0,
        ..LoadOptions::default()
    };
    let engine = Engine::load(path, &options).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(engine.device() == "cpu", device == "cpu", "asked for {device}, got {}", engine.device());
    engine
}

/// A model as a backend, with a description that may say what no architecture says.
pub fn backend(
    path: &Path,
    device: &str,
    decode_path: DecodePath,
    change: impl FnOnce(&mut ModelDesc),
) -> Result<Box<dyn Backend>> {
    backend_for(path, device, (MAX_POSITIONS, MAX_ROWS, decode_path), change)
}

/// The same for sequences of up to `n_ctx` positions and batches of up to `n_batch` rows.
pub fn backend_for(
    path: &Path,
    device: &str,
    (n_ctx, n_batch, decode_path): (usize, usize, DecodePath),
    change: impl FnOnce(&mut ModelDesc),
) -> Result<Box<dyn Backend>> {
    let gguf = Gguf::open(path)?;
    let mut desc = arch::describe(gguf.metadata())?;
    change(&mut desc);
    let plan = Weights::plan(&gguf, &desc)?;
    match Device::parse(device) {
        Some(Device::Cpu) => {
            let sizes = (n_ctx, cores());
            Ok(Box::new(CpuBackend::load(&gguf, &desc, &plan, sizes, &Progress::default())?))
        }
        Some(Device::Cuda(ordinal)) => {
            let (context, sizes) = (Context::open(ordinal)?, (n_ctx, n_batch..=n_batch, decode_path));
            Ok(Box::new(CudaBackend::load(
                &gguf,
                &desc,
                &plan,
                || Ok(context),
                sizes,
                &Progress::default(),
                &mut || Ok(()),
            )?))
        }
        _ => Err(Error::NoBackend { device: device.into(), backend: "CUDA", known: Device::BUILT }),
    }
}

/// A model on the GPU whose single sequences run as one kernel, with a description that may say what no architecture says.
pub fn step_backend(path: &Path, change: impl FnOnce(&mut ModelDesc)) -> CudaBackend {
    step_backend_for(path, MAX_POSITIONS, change)
}

/// The same for sequences of up to `n_ctx` positions.
pub fn step_backend_for(path: &Path, n_ctx: usize, change: impl FnOnce(&mut ModelDesc)) -> CudaBackend {
    let Some(Device::Cuda(ordinal)) = Device::parse(&gpu()) else { panic!("KIGO_TEST_DEVICE is {}", gpu()) };
    let gguf = Gguf::open(path).unwrap();
    let mut desc = arch::describe(gguf.metadata()).unwrap();
    change(&mut desc);
    let plan = Weights::plan(&gguf, &desc).unwrap();
    let (context, sizes) = (Context::open(ordinal).unwrap(), (n_ctx, MAX_ROWS..=MAX_ROWS, DecodePath::Step));
    let loaded = CudaBackend::load(&gguf, &desc, &plan, || Ok(context), sizes, &Progress::default(), &mut || Ok(()));
    loaded.unwrap_or_else(|error| panic!("{error}"))
}

/// Most positions of a sequence and rows of a batch in these tests.
const MAX_POSITIONS: usize = 4096;
pub const MAX_ROWS: usize = 512;

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// The logits after each of `tokens` `[tokens, n_vocab]`, run as batches of `chunk` rows.
pub fn all_logits(backend: &mut dyn Backend, sequence: SequenceId, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let row = |(position, &token): (usize, &u32)| Row { token, position: position as u32, sequence, logits: true };
    let rows: Vec<Row> = tokens.iter().enumerate().map(row).collect();
    backend.sequence_reserve(sequence, tokens.len()).unwrap();
    let mut all = Vec::new();
    for rows in rows.chunks(chunk) {
        backend.forward(rows).unwrap_or_else(|error| panic!("{error}"));
        all.extend((0..rows.len()).map(|i| backend.logits(i).unwrap().to_vec()));
    }
    backend.sequence_free(sequence);
    all
}

/// The logits after each of the last `n` of `tokens`, which are run row by row behind batches of the others.
pub fn last_logits(backend: &mut dyn Backend, sequence: SequenceId, tokens: &[u32], n: usize) -> Vec<Vec<f32>> {
    let n_before = tokens.len() - n;
    let row = |(position, &token): (usize, &u32)| Row {
        token,
        position: position as u32,
        sequence,
        logits: position >= n_before,
    };
    let rows: Vec<Row> = tokens.iter().enumerate().map(row).collect();
    backend.sequence_reserve(sequence, tokens.len()).unwrap();
    for rows in rows[..n_before].chunks(MAX_ROWS) {
        backend.forward(rows).unwrap_or_else(|error| panic!("{error}"));
    }
    let mut all = Vec::new();
    for row in rows[n_before..].chunks(1) {
        backend.forward(row).unwrap_or_else(|error| panic!("{error}"));
        all.push(backend.logits(0).unwrap().to_vec());
    }
    backend.sequence_free(sequence);
    all
}

/// A sequence whose tokens are given, not drawn.
pub struct Forced<'a> {
    engine: &'a Engine,
    sequence: SequenceId,
    position: u32,
}

impl<'a> Forced<'a> {
    pub fn new(engine: &'a Engine) -> Forced<'a> {
        Forced { engine, sequence: engine.sequence_new(), position: 0 }
    }

    /// Runs `tokens` as one batch; the logits after the last of them.
    pub fn push(&mut self, tokens: &[u32]) -> Vec<f32> {
        let row = |(i, &token): (usize, &u32)| Row {
            token,
            position: self.position + i as u32,
            sequence: self.sequence,
            logits: i + 1 == tokens.len(),
        };
        let rows = tokens.iter().enumerate().map(row).collect();
        assert!(self.position as usize + tokens.len() <= self.engine.n_ctx());
        let mut logits = Vec::new();
        self.engine.run(rows, &mut logits, &Arc::default()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(logits.len(), self.engine.n_vocab());
        self.position += tokens.len() as u32;
        logits
    }
}

impl Drop for Forced<'_> {
    fn drop(&mut self) {
        self.engine.sequence_free(self.sequence);
    }
}

/// The lowest token with the largest logit.
pub fn argmax(logits: &[f32]) -> usize {
    (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap()
}

/// The Kullback-Leibler divergence of the softmax of `found` from that of `expected`, in nats.
pub fn divergence(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let log_sum = |logits: &[f32]| {
        let largest = f64::from(logits[argmax(logits)]);
        largest + logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum::<f64>().ln()
    };
    let (found_sum, expected_sum) = (log_sum(found), log_sum(expected));
    let terms = found.iter().zip(expected).map(|(&found, &expected)| {
        let log_p = f64::from(expected) - expected_sum;
        log_p.exp() * (log_p - (f64::from(found) - found_sum))
    });
    terms.sum()
}

/// Bits, for comparisons in which a NaN equals itself.
pub fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// Draws with the defaults; every token may come.
pub fn seeded(seed: u64, max_tokens: usize) -> SessionOptions {
    let sampling = SamplingParams { seed, ..SamplingParams::default() };
    SessionOptions { sampling, max_tokens: Some(max_tokens), ..SessionOptions::default() }
}

pub fn greedy(max_tokens: usize) -> SessionOptions {
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    SessionOptions { sampling, max_tokens: Some(max_tokens), ..SessionOptions::default() }
}

/// The tokens that a session generates.
pub fn generate(engine: &Arc<Engine>, prompt: &[u32], options: &SessionOptions) -> Vec<u32> {
    let mut session = Session::start(engine, Prompt::Tokens(prompt), options).unwrap();
    let mut tokens = Vec::new();
    while let Some((token, _)) = session.peek_token().unwrap_or_else(|error| panic!("{error}")) {
        tokens.push(token);
        session.take_token();
    }
    tokens
}

/// The prompts of `tests/data/logits`, with their names, in order.
pub fn prompts() -> Vec<(String, Vec<u32>)> {
    let mut files: Vec<_> = std::fs::read_dir(models::data("logits")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let read = |path: &std::path::PathBuf| {
        let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let tokens = golden["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32);
        (path.file_stem().unwrap().to_string_lossy().into_owned(), tokens.collect())
    };
    files.iter().map(read).collect()
}

#[test]
fn divergence_is_that_of_the_formula() {
    let (found, expected) = ([0.5f32, -1.0, 2.0], [1.0f32, 0.0, 1.5]);
    let softmax = |x: [f32; 3]| {
        let e = x.map(|x| f64::from(x).exp());
        e.map(|x| x / e.iter().sum::<f64>())
    };
    let (q, p) = (softmax(found), softmax(expected));
    let kl: f64 = (0..3).map(|i| p[i] * (p[i] / q[i]).ln()).sum();
    assert!((divergence(&found, &expected) - kl).abs() < 1e-12);
    assert!(kl > 0.1 && divergence(&expected, &expected).abs() < 1e-15);
    assert!(divergence(&[f32::NAN, 0.0, 0.0], &expected).is_nan());
}

#[test]
fn a_device_that_is_not_there_is_no_pass() {
    let path = models::data("tiny-llama.gguf");
    assert!(backend(&path, "cuda:999", DecodePath::Auto, |_| ()).is_err());
    assert!(Engine::load(&path, &LoadOptions { device: "cuda:999".into(), ..LoadOptions::default() }).is_err());
}
