//! What a load tells the log: its steps with their times, what was chosen, and what may surprise.

use std::path::Path;
use std::time::Instant;

use super::{Engine, LoadOptions};
use crate::backend::{Device, Purpose, check_gpu};
use crate::gguf::Gguf;
use crate::log::{Level, tell};
use crate::model::ModelDesc;
use crate::sampler::unknown_defaults;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Tells about one load. Nothing is computed while nobody listens.
pub(super) struct Told<'a> {
    path: &'a Path,
    begun: Instant,
    step: Instant,
}

impl<'a> Told<'a> {
    pub(super) fn new(path: &'a Path) -> Told<'a> {
        Told { path, begun: Instant::now(), step: Instant::now() }
    }

    fn tell(&self, level: Level, text: impl FnOnce() -> String) {
        tell(level, || format!("{}: {}", self.path.display(), text()));
    }

    /// Milliseconds since the last step, which ends with this.
    fn ms(&mut self) -> f64 {
        let ms = self.step.elapsed().as_secs_f64() * 1e3;
        self.step = Instant::now();
        ms
    }

    /// The device was chosen.
    pub(super) fn device(&self, options: &LoadOptions, device: Device) {
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
        let ms = self.ms();
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
    pub(super) fn tokenizer(&mut self, tokenizer: &Tokenizer) {
        let ms = self.ms();
        self.tell(Level::Info, || format!("made the tokenizer in {ms:.1} ms: {} tokens", tokenizer.n_vocab()));
    }

    /// The weights are where they belong.
    pub(super) fn weights(&mut self, device: &str, bytes: u64) {
        let ms = self.ms();
        self.tell(Level::Info, || format!("read {bytes} bytes of weights to {device} in {ms:.1} ms"));
    }

    /// The load has ended.
    pub(super) fn ended(&self, outcome: &Result<Engine>) {
        let ms = self.begun.elapsed().as_secs_f64() * 1e3;
        match outcome {
            Ok(engine) => {
                for (name, template) in &engine.templates {
                    if let Err(error) = template {
                        self.tell(Level::Warning, || format!("the chat template {name} cannot be used: {error}"));
                    }
                }
                self.tell(Level::Info, || {
                    let bytes: u64 = Purpose::ALL.into_iter().map(|purpose| engine.memory.bytes(purpose)).sum();
                    let Engine { device, n_ctx, n_batch, n_threads, .. } = engine;
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
