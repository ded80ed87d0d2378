//! What there is to know about a model, as JSON: what its file says, its tokenizer, the memory that it takes.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::steps::default_n_batch;
use super::{Engine, LoadOptions, check_numbers};
use crate::backend::{self, Device, Needs, Purpose, check_gpu};
use crate::gguf::Gguf;
use crate::model::{Weights, arch, info};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

impl Engine {
    /// The facts about the model, with the memory that one context of `n_ctx` tokens takes; its own when `None`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when no context is so long.
    pub fn info(&self, n_ctx: Option<usize>) -> Result<Json> {
        let n_ctx = n_ctx.unwrap_or(self.n_ctx);
        let device = Device::parse(&self.device).unwrap_or(Device::Cpu);
        let sizes = (n_ctx, self.n_batch(), self.n_threads);
        let needs = backend::context_needs(device, &self.desc, sizes)?;
        let weights = self.memory.bytes(Purpose::Weights);
        let mut facts = self.facts.clone();
        add_tokenizer(&mut facts, &self.tokenizer);
        facts.insert("memory".into(), memory(&self.device, sizes, weights, needs));
        Ok(facts.into())
    }
}

/// The facts about the model in the file at `path`, whose weights are not read. Where kigo cannot run it, `error` says
/// why, and there are no facts about its memory. The device need not be there.
///
/// # Errors
/// When the file is no GGUF file, or options are out of range.
pub fn file_info(path: &Path, options: &LoadOptions) -> Result<Json> {
    let n_threads = check_numbers(options)?;
    let device = match Device::parse(&options.device) {
        Some(Device::Auto) if check_gpu(0).is_ok() => Device::Cuda(0),
        Some(Device::Auto) => Device::Cpu,
        Some(device) => device,
        None => return Err(Error::invalid_argument("device", Device::EXPECTED, &options.device)),
    };
    let gguf = Gguf::open(path)?;
    let mut facts = info::facts(&gguf);
    let mut add = || {
        let desc = arch::describe(gguf.metadata());
        add_tokenizer(&mut facts, &Tokenizer::from_gguf(gguf.metadata())?);
        let desc = desc?;
        let n_ctx = options.n_ctx.unwrap_or(Engine::default_n_ctx(&desc));
        let plan = Weights::plan(&gguf, &desc)?;
        let n_batch = options.n_batch.unwrap_or_else(|| default_n_batch(device, &desc, &plan));
        let sizes = (n_ctx, n_batch, n_threads);
        let weights = backend::weight_bytes(device, &desc, &plan)?;
        let needs = backend::context_needs(device, &desc, sizes)?;
        let name = match device {
            Device::Cuda(ordinal) => format!("cuda:{ordinal}"),
            Device::Cpu | Device::Auto => "cpu".to_string(),
        };
        facts.insert("memory".into(), memory(&name, sizes, weights, needs));
        Ok(())
    };
    let outcome: Result<()> = add();
    if let Err(error) = outcome {
        facts.insert("error".into(), error.to_string().into());
    }
    Ok(facts.into())
}

fn memory(device: &str, (n_ctx, n_batch, _): (usize, usize, usize), weights: u64, needs: Needs) -> Json {
    let total = weights.saturating_add(needs.cache).saturating_add(needs.workspace);
    json!({
        "device": device,
        "n_ctx": n_ctx,
        "n_batch": n_batch,
        "weights": weights,
        "cache": needs.cache,
        "cache_per_token": needs.cache_per_token,
        "workspace": needs.workspace,
        "total": total,
    })
}

/// Adds the facts about the vocabulary, and the names of the chat templates.
fn add_tokenizer(facts: &mut Map<String, Json>, tokenizer: &Tokenizer) {
    let token = |id: u32| {
        let text = String::from_utf8_lossy(tokenizer.token_bytes(id, true)).into_owned();
        json!({ "id": id, "text": text })
    };
    let optional = |id: Option<u32>| id.map_or(Json::Null, token);
    facts.insert(
        "tokenizer".into(),
        json!({
            "n_vocab": tokenizer.n_vocab(),
            "bos": optional(tokenizer.bos()),
            "eos": optional(tokenizer.eos()),
            "eot": optional(tokenizer.eot()),
            "eom": optional(tokenizer.eom()),
            "unknown": optional(tokenizer.unknown()),
            "eog": tokenizer.eog().iter().map(|&id| token(id)).collect::<Json>(),
            "add_bos": tokenizer.add_bos(),
            "add_eos": tokenizer.add_eos(),
            "max_token_bytes": tokenizer.max_token_bytes(),
        }),
    );
    let names = tokenizer.chat_templates().iter().map(|(name, _)| name.as_str());
    facts.insert("chat_templates".into(), names.collect());
}
