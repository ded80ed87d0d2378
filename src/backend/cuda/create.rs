//! How a backend comes to be: what a model takes of a device, how many rows its batches may have there, and the load itself.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::ahead::Ahead;
use super::context::Context;
use super::kv_cache::{self, KvCache};
use super::layout::{Places, Repackers, TypeTable};
use super::memory::PinnedBuffer;
use super::sample::{self, Samplers};
use super::stages::{self, Kernels, Shape, Workspace};
use super::step::{Step, step_bytes};
use super::stream::Stream;
use super::{Batch, CudaBackend, FIRST_LOGITS, N_SAMPLED, N_SLOTS, Slots, experts, load};
use crate::backend::{DecodePath, Needs, Progress};
use crate::error::try_vec;
use crate::gguf::{Gguf, TensorInfo};
use crate::model::{ModelDesc, RopeTable, Weights};
use crate::{Error, Result};

/// Bytes that the planned weights take in device memory. The driver is not asked.
///
/// # Errors
/// When the kernels cannot run the model, or there is no memory for the plan.
pub fn weight_bytes(desc: &ModelDesc, plan: &Weights<TensorInfo>) -> Result<u64> {
    check_desc(desc)?;
    let (_, _, space) = Places::new(plan, desc)?;
    Ok(space.bytes())
}

/// What a model needs in device memory besides its weights, while few sequences draw at once. The driver is not asked.
///
/// # Errors
/// When the kernels cannot run the model, or a size is beyond 64 bits.
pub fn context_needs(desc: &ModelDesc, n_ctx: usize, n_batch: usize) -> Result<Needs> {
    check_desc(desc)?;
    let cache = kv_cache::Sizes::new(desc, n_ctx, n_batch)?;
    let samplers = sample::device_bytes(desc.n_vocab, N_SLOTS, N_SAMPLED);
    Ok(Needs {
        cache: cache.cache_bytes(n_ctx),
        cache_per_token: cache.sequence_bytes(kv_cache::PAGE) / kv_cache::PAGE as u64,
        workspace: stages::Sizes::new(desc, n_batch)?.bytes(FIRST_LOGITS).saturating_add(samplers),
    })
}

/// The most rows of a batch, of those that are wanted, that fit beside the weights; their workspace, and the bytes of what is
/// allocated besides then. The fewest if none fit.
fn fitting_batch(
    context: &Context,
    load: &load::Plan<Repackers>,
    desc: &ModelDesc,
    n_ctx: usize,
    wanted: RangeInclusive<usize>,
) -> Result<(usize, stages::Sizes, u64)> {
    let (least, mut n_batch) = wanted.into_inner();
    loop {
        let cache = kv_cache::Sizes::new(desc, n_ctx, n_batch)?.first_bytes();
        let sizes = stages::Sizes::new(desc, n_batch)?;
        let besides = sizes.bytes(FIRST_LOGITS).saturating_add(cache);
        if n_batch <= least || load.needed_bytes(besides) <= context.free_memory()? {
            return Ok((n_batch, sizes, besides));
        }
        n_batch = (n_batch / 2).max(least);
    }
}

/// What a model has on its device besides its weights. It does not depend on them.
struct Beside {
    work: Workspace,
    kernels: Kernels,
    cache: KvCache,
    samplers: Samplers,
    staging: PinnedBuffer,
    stream: Arc<Stream>,
}

impl Beside {
    fn new(
        context: &Arc<Context>,
        repackers: &Repackers,
        desc: &ModelDesc,
        (n_ctx, n_batch, sizes): (usize, usize, stages::Sizes),
        ropes: &[RopeTable],
    ) -> Result<Beside> {
        let kernels = Kernels::new(context, TypeTable::load(context, repackers)?, desc)?;
        let stream = Arc::new(Stream::new(context)?);
        let work = Workspace::new(&stream, desc, sizes, FIRST_LOGITS, ropes)?;
        Ok(Beside {
            cache: KvCache::new(context, &stream, desc, (n_ctx, n_batch))?,
            samplers: Samplers::new(&stream, desc.n_vocab, n_ctx, N_SLOTS, N_SAMPLED)?,
            staging: PinnedBuffer::new(context, work.staging_bytes(), "the rows of a batch")?,
            work,
            kernels,
            stream,
        })
    }
}

impl CudaBackend {
    /// Loads the planned tensors into the memory of a GPU, for sequences of up to `n_ctx` tokens and batches of up to the
    /// end of `n_batch` rows: fewer where memory is short, but its start at least. Steps of single sequences take the
    /// `decode_path`. While others `open` the GPU and read, this thread runs `meanwhile`.
    ///
    /// # Errors
    /// When the model does not fit into the free memory (nothing is allocated then), the file cannot be read, the load is
    /// cancelled, the driver fails, or `meanwhile` does.
    pub fn load(
        gguf: &Gguf,
        desc: &ModelDesc,
        plan: &Weights<TensorInfo>,
        open: impl FnOnce() -> Result<Arc<Context>> + Send,
        (n_ctx, n_batch, decode_path): (usize, RangeInclusive<usize>, DecodePath),
        progress: &Progress,
        meanwhile: &mut dyn FnMut() -> Result<()>,
    ) -> Result<CudaBackend> {
        check_desc(desc)?;
        let n_ctx = desc.max_positions().map_or(n_ctx, |most| n_ctx.min(most));
        let (mut places, pieces, space) = Places::new(plan, desc)?;
        let load = load::Plan::new(pieces, space, None)?;
        let (fitting, mut beside) = (OnceLock::new(), None);
        let nothing_fits = || Error::Internal("no batch fits".into());
        let open = || {
            let context = open()?;
            let bound = context.bind()?;
            let kernels = Repackers::load(&context, load.pieces())?;
            let (n_batch, sizes, other_bytes) = fitting_batch(&context, &load, desc, n_ctx, n_batch)?;
            let _ = fitting.set((n_batch, sizes));
            drop(bound);
            Ok(load::Opened { context, kernels, other_bytes })
        };
        let prepare = |context: &Arc<Context>, repackers: &Repackers| {
            let _bound = context.bind()?;
            let (n_batch, sizes) = *fitting.get().ok_or_else(nothing_fits)?;
            let divisors = plan.rope_divisors(desc, n_ctx).map(|info| vector(gguf, info)).transpose()?;
            let ropes = desc.rope.tables(divisors.as_deref());
            beside = Some(Beside::new(context, repackers, desc, (n_ctx, n_batch, sizes), &ropes)?);
            Ok(())
        };
        let load::Loaded { context, weights, .. } = load.load(gguf, progress, open, prepare, meanwhile)?;
        let Beside { work, kernels, cache, samplers, staging, stream } = beside.ok_or_else(nothing_fits)?;
        let (n_batch, _) = *fitting.get().ok_or_else(nothing_fits)?;
        let bound = context.bind()?;
        let loaded = Instant::now();

        places.shift_scales(&kernels.types, &stream, weights.address())?;
        let mut free = try_vec(N_SLOTS, "the samplers")?;
        free.extend((0..N_SLOTS as u32).rev());
        let mut backend = CudaBackend {
            graphs: HashMap::new(),
            step: None,
            device: context.device(),
            desc: desc.clone(),
            n_ctx,
            file_bytes: plan.file_bytes(),
            places,
            kernels,
            cache,
            samplers,
            slots: Slots { free, of: HashMap::new() },
            staging,
            staged: false,
            work,
            shape: Shape::default(),
            wanted: try_vec(n_batch, "the rows of a batch")?,
            n_batch,
            host_logits: Vec::new(),
            ahead: Ahead::new(0),
            prepare_time: Duration::ZERO,
            weights,
            stream,
            context: context.clone(),
        };
        backend.step = Step::new(&backend, decode_path)?;
        backend.ahead = Ahead::new(step_bytes(&backend));
        // Whoever waits for a second token would wait for these.
        backend.capture((backend.batch(1, 0), None))?;
        backend.capture((Batch::Rows(1), None))?;
        backend.stream.synchronize()?;
        backend.prepare_time = loaded.elapsed();
        drop(bound);
        Ok(backend)
    }
}

/// What the kernels cannot do.
fn check_desc(desc: &ModelDesc) -> Result<()> {
    kv_cache::head_width(desc)?;
    if desc.experts.is_some() && !desc.pre_norm && !desc.post_norm {
        return Err(Error::Internal("nobody says how large the sum of experts is".into()));
    }
    experts::check(desc)?;
    if desc.head_dim.is_multiple_of(2) {
        return Ok(());
    }
    let field = format!("{}.attention.key_length", desc.architecture);
    Err(Error::bad_file(field, "an even number on a GPU", desc.head_dim))
}

/// Reads a vector to the host.
fn vector(gguf: &Gguf, info: &TensorInfo) -> Result<Vec<f32>> {
    let too_large = || Error::OutOfMemory { what: info.name.clone(), bytes: info.n_bytes };
    let mut blocks = try_vec(usize::try_from(info.n_bytes).map_err(|_| too_large())?, &info.name)?;
    blocks.resize(blocks.capacity().min(info.n_bytes as usize), 0);
    gguf.read_tensor(info, &mut blocks)?;
    let mut values = try_vec(info.n_elements as usize, &info.name)?;
    values.resize(info.n_elements as usize, 0.0);
    info.quant_type.dequantize(&blocks, &mut values);
    Ok(values)
}
