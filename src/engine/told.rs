//! What a load tells the log: its steps with their times, what was chosen, and what may surprise.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Engine, LoadOptions};
use crate::backend::{Device, Purpose, check_gpu};
use crate::gguf::Gguf;
use crate::log::{Level, tell};
use crate::model::ModelDesc;
use crate::sampler::unknown_defaults;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// How long a load took, and its steps.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadTimes {
    /// All of it.
    pub total: Duration,
    /// Reading the header and its metadata.
    pub header: Duration,
    /// Making the tokenizer, on a GPU beside what follows.
    pub tokenizer: Duration,
    /// Starting its driver, and making the device ready.
    pub device: Duration,
    /// Bringing the weights to their device, with the kernels that this takes.
    pub weights: Duration,
    /// What follows, before the first token can be computed.
    pub prepare: Duration,
}

/// Tells about one load. No text is made while nobody listens.
pub(super) struct Told<'a> {
    path: &'a Path,
    begun: Instant,
    /// When the device was known, and the file could be read.
    chosen: Instant,
    /// When the weights began to be read.
    read: Instant,
    times: LoadTimes,
}

impl<'a> Told<'a> {
    pub(super) fn new(path: &'a Path) -> Told<'a> {
        let now = Instant::now();
        Told { path, begun: now, chosen: now, read: now, times: LoadTimes::default() }
    }

    fn tell(&self, level: Level, text: impl FnOnce() -> String) {
        tell(level, || format!("{}: {}", self.path.display(), text()));
    }

    /// How long it took so far.
    pub(super) fn times(&self) -> LoadTimes {
        LoadTimes { total: self.begun.elapsed(), ..self.times }
    }

    /// The device was chosen, for which its driver may have been started.
    pub(super) fn device(&mut self, options: &LoadOptions, device: Device) {
        self.chosen = Instant::now();
        self.times.device = self.chosen - self.begun;
        if options.device == "auto" {
            self.tell(Level::Info, || match (device, check_gpu(0)) {
                (Device::Cpu, Err(error)) => format!("device auto is cpu: {error}"),
                (Device::Cpu, Ok(())) => "device auto is cpu".into(),
                _ => "device auto is cuda:0".into(),
            });
        }
    }

    /// The header was read.
    pub(super) fn header(&mut self, gguf: &Gguf, desc: &ModelDesc, options: &LoadOptions, n_ctx: usize) {
        self.times.header = self.chosen.elapsed();
        let ms = ms(self.times.header);
        self.tell(Level::Info, || {
            let (n_tensors, bytes, architecture) = (gguf.tensors().len(), gguf.file_bytes(), desc.architecture);
            let n_layer = desc.n_layer();
            format!(
                "read the header in {ms:.1} ms: {architecture}, {n_layer} layers, {n_tensors} tensors, {bytes} bytes"
            )
        });
        if options.n_ctx.is_none() && n_ctx < desc.n_ctx_train {
            self.tell(Level::Info, || {
                format!(
                    "n_ctx is {n_ctx}, the model was trained for {}; the option n_ctx sets another",
                    desc.n_ctx_train
                )
            });
        }
        for key in unknown_defaults(gguf.metadata()) {
            self.tell(Level::Warning, || format!("{key} is ignored: no option has this default"));
        }
    }

    /// The tokenizer was made.
    pub(super) fn tokenizer(&mut self, tokenizer: &Tokenizer, time: Duration) {
        self.times.tokenizer = time;
        let ms = ms(self.times.tokenizer);
        self.tell(Level::Info, || format!("made the tokenizer in {ms:.1} ms: {} tokens", tokenizer.n_vocab()));
    }

    /// The device took so long besides to be ready, at that moment.
    #[cfg(feature = "cuda")]
    pub(super) fn opened(&mut self, time: Duration, at: Instant) {
        self.times.device += time;
        self.reading(at);
    }

    /// The weights are brought to their device from then on.
    pub(super) fn reading(&mut self, at: Instant) {
        self.read = at;
    }

    /// The weights are where they belong, and what follows took `prepare`.
    pub(super) fn weights(&mut self, device: &str, bytes: u64, prepare: Duration) {
        self.times.weights = self.read.elapsed().saturating_sub(prepare);
        self.times.prepare = prepare;
        let [ready, weights, prepare] = [self.times.device, self.times.weights, prepare].map(ms);
        self.tell(Level::Info, || {
            format!(
                "read {bytes} bytes of weights to {device} in {weights:.1} ms; {ready:.1} ms until it was ready, and {prepare:.1} \
                 ms for what followed"
            )
        });
    }

    /// The load has ended.
    pub(super) fn ended(&self, outcome: &Result<Engine>) {
        let ms = ms(self.begun.elapsed());
        match outcome {
            Ok(engine) => {
                for (name, template) in &engine.templates {
                    if let Err(error) = template {
                        self.tell(Level::Warning, || format!("the chat template {name} cannot be used: {error}"));
                    }
                }
                self.tell(Level::Info, || {
                    let bytes: u64 = Purpose::ALL.into_iter().map(|purpose| engine.memory.bytes(purpose)).sum();
                    let (n_batch, Engine { device, n_ctx, n_threads, .. }) = (engine.n_batch(), engine);
                    format!(
                        "loaded in {ms:.1} ms: device {device}, {bytes} bytes there, n_ctx {n_ctx}, n_batch {n_batch}, \
                         n_threads {n_threads}"
                    )
                });
            }
            Err(Error::InFile { error, .. }) => self.tell(Level::Error, || format!("not loaded: {error}")),
            Err(error) => self.tell(Level::Error, || format!("not loaded: {error}")),
        }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
