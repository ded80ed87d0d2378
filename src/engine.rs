//! One engine per model: it loads it, owns its backend, and knows what there is to know about it.

mod batches;
mod info;
mod loading;
mod prompts;
mod sequences;
mod steps;
mod told;

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::cpu::CpuBackend;
#[cfg(feature = "cuda")]
use crate::backend::cuda::{CudaBackend, context::Context};
use crate::backend::{Backend, DecodePath, Device, Memory, Progress, check_gpu};
use crate::error::quoted;
use crate::gguf::{DirectIo, Gguf, Metadata};
use crate::model::{ModelDesc, Weights, arch, fingerprint};
use crate::sampler::{Grammars, ModelDefault, model_defaults};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::chat::{ChatTemplate, ControlTokens};
use crate::{Error, Result};
use batches::Queue;
pub use info::file_info;
pub use loading::Loading;
use prompts::Prompts;
use sequences::Retired;
use steps::{LEAST_N_BATCH, Steps, default_n_batch};
pub use told::LoadTimes;
use told::Told;

/// How to load a model.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadOptions {
    /// `cuda`, `cuda:N`, `cpu` or `auto`.
    pub device: String,
    /// Most tokens of prompt and answer together; the model's own length when `None`.
    pub n_ctx: Option<usize>,
    /// Threads of the CPU backend; one per core when `None`.
    pub n_threads: Option<usize>,
    /// Most rows in a batch: the prompt is processed in chunks of this size at most, between which it can be cancelled. `None`:
    /// what suits model and device.
    pub n_batch: Option<usize>,
    /// A tokenizer.json to use; `auto` uses the one of the file, or where kigo does not know it one that lies beside the file.
    pub tokenizer: String,
    /// Whether the weights for a GPU are read past the system's cache where they are not in it.
    pub direct_io: DirectIo,
    /// How a GPU runs a step of a single sequence.
    pub decode_path: DecodePath,
    /// Most bytes of the pages that inferences leave for others that begin with the same tokens.
    pub prompt_cache: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            device: "cuda".into(),
            n_ctx: None,
            n_threads: None,
            n_batch: None,
            tokenizer: "auto".into(),
            direct_io: DirectIo::Auto,
            decode_path: DecodePath::Auto,
            prompt_cache: 1 << 30,
        }
    }
}

impl LoadOptions {
    /// Largest `n_ctx`.
    pub const MAX_CTX: usize = i32::MAX as usize;
    /// Largest `n_threads`.
    pub const MAX_THREADS: usize = 1024;
    /// Largest `n_batch`.
    pub const MAX_BATCH: usize = 65536;
}

/// Longest context that is used unasked, in tokens.
const MAX_DEFAULT_CTX: usize = 1 << 17;

/// A loaded model that any number of sessions share.
pub struct Engine {
    desc: ModelDesc,
    tokenizer: Tokenizer,
    /// The chat templates by name.
    templates: Vec<(String, Result<ChatTemplate>)>,
    /// In a box of their own: whoever allocates an engine cannot be told that there is no memory, so it has to be small.
    control_tokens: Box<ControlTokens>,
    sampling_defaults: Vec<ModelDefault>,
    grammars: OnceLock<Grammars>,
    device: String,
    n_ctx: usize,
    steps: Steps,
    n_threads: usize,
    /// What the file says.
    metadata: Metadata,
    /// The same, and what follows from it, for people.
    facts: serde_json::Map<String, serde_json::Value>,
    weight_bytes: u64,
    memory: Arc<dyn Memory>,
    queue: Mutex<Queue>,
    backend: Mutex<Box<dyn Backend>>,
    next_sequence: AtomicU64,
    /// Sequences whose sessions ended while a batch was running.
    retired: Mutex<Vec<Retired>>,
    prompts: Arc<Mutex<Prompts>>,
    load_times: LoadTimes,
    fingerprint: u64,
    cache_format: String,
}

impl Engine {
    /// Loads a model: header, hyperparameters, tokenizer, tensors, in this order, so that a bad file is refused early. On a
    /// GPU the tokenizer is made while the tensors are read.
    ///
    /// # Errors
    /// Whatever is wrong with the file, naming it; or with the options; or no memory.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Arc<Engine>> {
        Self::load_watched(path, options, &Progress::default())
    }

    /// [`Self::load`], watched and cancelled through `progress`.
    ///
    /// # Errors
    /// Those of [`Self::load`]; [`Error::LoadCancelled`].
    pub fn load_watched(path: &Path, options: &LoadOptions, progress: &Progress) -> Result<Arc<Engine>> {
        let mut told = Told::new(path);
        let outcome = check_options(options).and_then(|(device, n_threads)| {
            told.device(options, device);
            let loaded = Self::load_file(path, options, (device, n_threads), progress, &mut told);
            loaded.map_err(|error| match error {
                Error::InFile { .. } | Error::OutOfMemory { .. } | Error::InvalidArgument { .. } => error,
                // These are not the file's fault.
                Error::OutOfDeviceMemory { .. } | Error::OutOfDriverMemory { .. } | Error::LoadCancelled => error,
                Error::DeviceLost { .. } | Error::DeviceError { .. } | Error::UnsupportedGpu { .. } => error,
                error => error.in_file(path),
            })
        });
        told.ended(&outcome);
        outcome.map(Arc::new)
    }

    fn load_file(
        path: &Path,
        options: &LoadOptions,
        (device, n_threads): (Device, usize),
        progress: &Progress,
        told: &mut Told,
    ) -> Result<Engine> {
        progress.check()?;
        let mut gguf = Gguf::open(path)?;
        if matches!(device, Device::Cuda(_)) {
            gguf.set_direct(options.direct_io);
        }
        let desc = arch::describe(gguf.metadata())?;
        let n_ctx = match (options.n_ctx, desc.max_positions()) {
            (Some(n), Some(most)) if n > most => {
                return Err(Error::invalid_argument("n_ctx", format!("1 to {most}, the positions of this model"), n));
            }
            (n, _) => n.unwrap_or(Self::default_n_ctx(&desc)),
        };
        told.header(&gguf, &desc, options, n_ctx);
        progress.check()?;
        let sampling_defaults = model_defaults(gguf.metadata())?;
        let plan = Weights::plan(&gguf, &desc)?;
        let n_batch = options.n_batch.unwrap_or_else(|| default_n_batch(device, &desc, &plan));
        let mut texts = None;
        let mut make_texts = |told: &mut Told| {
            let began = Instant::now();
            let tokenizer = Tokenizer::choose(path, gguf.metadata(), desc.n_vocab, &options.tokenizer)?;
            told.tokenizer(&tokenizer, began.elapsed());
            let templates = tokenizer.chat_templates().iter();
            let templates = templates.map(|(name, source)| (name.clone(), ChatTemplate::new(source))).collect();
            let fingerprint = fingerprint(&gguf, &desc, &tokenizer, n_ctx)?;
            texts = Some((tokenizer, templates, fingerprint, crate::model::info::facts(&gguf)));
            Ok(())
        };
        let (backend, n_batch, prepare): (Box<dyn Backend>, _, _) = match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => {
                let opened = OnceLock::new();
                let open = || {
                    let began = Instant::now();
                    let context = Context::open(ordinal)?;
                    let _ = opened.set((began.elapsed(), Instant::now()));
                    Ok(context)
                };
                let least = options.n_batch.unwrap_or(LEAST_N_BATCH);
                let sizes = (n_ctx, least..=n_batch, options.decode_path);
                let mut meanwhile = || make_texts(told);
                let backend = CudaBackend::load(&gguf, &desc, &plan, open, sizes, progress, &mut meanwhile)?;
                if let Some((time, at)) = opened.get() {
                    told.opened(*time, *at);
                }
                let (n_batch, prepare) = (backend.n_batch(), backend.prepare_time());
                (Box::new(backend), n_batch, prepare)
            }
            _ => {
                make_texts(told)?;
                told.reading(Instant::now());
                let backend = CpuBackend::load(&gguf, &desc, &plan, (n_ctx, n_threads), progress)?;
                (Box::new(backend), n_batch, Duration::ZERO)
            }
        };
        told.weights(backend.device(), backend.weight_bytes(), prepare);
        let n_weights = plan.layer_weights(&desc);
        let steps = Steps::new(device, (n_weights, desc.n_embd_q()), &desc.layers, n_batch)?;
        let no_texts = || Error::Internal("no tokenizer was made".into());
        let (tokenizer, templates, fingerprint, facts) = texts.ok_or_else(no_texts)?;
        Ok(Engine {
            n_ctx,
            steps,
            n_threads,
            facts,
            fingerprint,
            cache_format: backend.cache_format(),
            metadata: gguf.into_metadata(),
            device: backend.device().to_string(),
            weight_bytes: backend.weight_bytes(),
            memory: backend.memory(),
            templates,
            control_tokens: Box::new(ControlTokens::new(tokenizer.control_tokens())),
            tokenizer,
            sampling_defaults,
            grammars: OnceLock::new(),
            desc,
            queue: Mutex::default(),
            prompts: Arc::new(Mutex::new(Prompts::new(options.prompt_cache, backend.page_positions()))),
            backend: Mutex::new(backend),
            load_times: told.times(),
            next_sequence: AtomicU64::new(0),
            retired: Mutex::default(),
        })
    }

    /// The context that a model gets unasked, in tokens.
    fn default_n_ctx(desc: &ModelDesc) -> usize {
        desc.n_ctx_train.min(MAX_DEFAULT_CTX)
    }

    /// The device that runs the model, such as `cpu`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// `general.architecture`.
    pub fn architecture(&self) -> &str {
        self.desc.architecture
    }

    /// `general.name`, or empty.
    pub fn name(&self) -> &str {
        &self.desc.name
    }

    /// Most tokens of prompt and answer together.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Context length in training, in tokens.
    pub fn n_ctx_train(&self) -> usize {
        self.desc.n_ctx_train
    }

    /// Size of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.desc.n_vocab
    }

    /// Width of the residual stream.
    pub fn n_embd(&self) -> usize {
        self.desc.n_embd
    }

    /// Layers.
    pub fn n_layer(&self) -> usize {
        self.desc.n_layer()
    }

    /// Most rows in a batch.
    pub fn n_batch(&self) -> usize {
        self.steps.n_batch()
    }

    /// Bytes of the weights, as they were read from the file.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// How long loading took.
    pub fn load_times(&self) -> &LoadTimes {
        &self.load_times
    }

    /// What tells this model from others.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// What the pages of its cache are.
    pub fn cache_format(&self) -> &str {
        &self.cache_format
    }

    /// The books of its memory; asking them never waits.
    pub fn memory(&self) -> &dyn Memory {
        &*self.memory
    }

    /// Longest text of a single token, in bytes.
    pub fn max_token_bytes(&self) -> usize {
        self.tokenizer.max_token_bytes()
    }

    /// Text to tokens and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The texts that user text must not be able to turn into tokens.
    pub fn control_tokens(&self) -> &ControlTokens {
        &self.control_tokens
    }

    /// What the model's file says, key by key.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What the model's file says about how to sample from it.
    pub fn sampling_defaults(&self) -> &[ModelDefault] {
        &self.sampling_defaults
    }

    /// The vocabulary as grammars need it, made when it is first asked for.
    ///
    /// # Errors
    /// Those of [`Grammars::new`].
    pub fn grammars(&self) -> Result<&Grammars> {
        if let Some(grammars) = self.grammars.get() {
            return Ok(grammars);
        }
        let grammars = Grammars::new(&self.tokenizer, self.n_vocab())?;
        Ok(self.grammars.get_or_init(|| grammars))
    }

    /// The name of the chat template that a file does not name.
    pub const DEFAULT_TEMPLATE: &str = Tokenizer::DEFAULT_TEMPLATE;

    /// The names of the model's chat templates.
    pub fn chat_template_names(&self) -> impl Iterator<Item = &str> {
        self.templates.iter().map(|(name, _)| name.as_str())
    }

    /// The model's chat template of this name.
    ///
    /// # Errors
    /// When the file has none, or it does not compile.
    pub fn chat_template(&self, name: &str) -> Result<&ChatTemplate> {
        match self.templates.iter().find(|(known, _)| known == name) {
            Some((_, Ok(template))) => Ok(template),
            Some((_, Err(Error::BadTemplate(text)))) => Err(Error::BadTemplate(text.clone())),
            Some((_, Err(error))) => Err(Error::BadTemplate(error.to_string())),
            None if self.templates.is_empty() => Err(Error::BadTemplate(
                "the model has none (tokenizer.chat_template); set the option chat_template, or use prompt_format=text"
                    .into(),
            )),
            None => {
                let known: Vec<&str> = self.chat_template_names().collect();
                let (found, known) = (quoted(name.as_bytes()), known.join(", "));
                Err(Error::BadTemplate(format!("the model has none called {found}, only {known}")))
            }
        }
    }
}

/// Checks the options, and returns the device to use and the number of threads.
fn check_options(options: &LoadOptions) -> Result<(Device, usize)> {
    let device = match Device::parse(&options.device) {
        Some(Device::Cuda(ordinal)) => check_gpu(ordinal).map(|()| Device::Cuda(ordinal))?,
        Some(Device::Auto) if check_gpu(0).is_ok() => Device::Cuda(0),
        Some(Device::Auto | Device::Cpu) => Device::Cpu,
        None => {
            let found = crate::error::quoted(options.device.as_bytes());
            return Err(Error::invalid_argument("device", Device::EXPECTED, found));
        }
    };
    Ok((device, check_numbers(options)?))
}

/// Checks the numbers among the options; returns the number of threads.
fn check_numbers(options: &LoadOptions) -> Result<usize> {
    let in_range = |name: &str, n: usize, most: usize| match n {
        n if (1..=most).contains(&n) => Ok(n),
        n => Err(Error::invalid_argument(name, format!("1 to {most}"), n)),
    };
    in_range("n_batch", options.n_batch.unwrap_or(1), LoadOptions::MAX_BATCH)?;
    in_range("n_ctx", options.n_ctx.unwrap_or(1), LoadOptions::MAX_CTX)?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get().min(LoadOptions::MAX_THREADS));
    in_range("n_threads", options.n_threads.unwrap_or(cores), LoadOptions::MAX_THREADS)
}

/// Locks, whatever a panic elsewhere has left: all that is behind these locks is valid at every moment.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) use batches::tests;
