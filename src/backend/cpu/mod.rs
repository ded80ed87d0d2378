//! The plain backend: every stage in f32, on the weights as they stand in the file. It is the judge of every
//! other backend, so it stays simple; it is also fast enough to be used.
//!
//! Sums run in an order that depends neither on the batch nor on the number of threads.

mod attention;
mod kv_cache;
mod matmul;
mod tensor;
mod vector;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::{Backend, Memory, Needs, Progress, Purpose, Residency, Row, SequenceId};
use crate::error::try_vec;
use crate::gguf::{Gguf, TensorInfo};
use crate::model::{Activation, ModelDesc, Norm, Weights};
use crate::{Error, Result};
use attention::Head;
use kv_cache::KvCache;
use matmul::MatMul;
use tensor::Tensor;

/// A model in host memory, with its KV cache and its threads.
pub struct CpuBackend {
    desc: ModelDesc,
    weights: Weights<Tensor>,
    weight_bytes: u64,
    /// Turn of rope pair `i` per position, in radians: `[n_rot / 2]`.
    rope_angles: Vec<f64>,
    cache: KvCache,
    matmul: MatMul,
    pool: Arc<rayon::ThreadPool>,
    work: Workspace,
    memory: Arc<HostMemory>,
}

/// Bytes that the backend holds, as it last said.
#[derive(Default)]
struct HostMemory {
    bytes: [AtomicU64; Purpose::ALL.len()],
}

impl HostMemory {
    fn set(&self, purpose: Purpose, bytes: usize) {
        self.bytes[purpose as usize].store(bytes as u64, Ordering::Relaxed);
    }
}

impl Memory for HostMemory {
    fn bytes(&self, purpose: Purpose) -> u64 {
        self.bytes[purpose as usize].load(Ordering::Relaxed)
    }

    fn residency(&self) -> Result<Residency> {
        let host_bytes = Purpose::ALL.into_iter().map(|purpose| self.bytes(purpose)).sum();
        Ok(Residency { device_bytes: 0, host_bytes })
    }
}

/// Activations of one batch. Every buffer holds at least the batch's rows and is reused by the next batch.
#[derive(Default)]
struct Workspace {
    rows: Vec<Row>,
    /// cos and sin of every rope pair: `[n, n_rot / 2]`.
    turns: Vec<(f32, f32)>,
    /// The residual stream: `[n, n_embd]`.
    x: Vec<f32>,
    /// x after a norm: `[n, n_embd]`.
    normed: Vec<f32>,
    /// `[n, n_head, head_dim]`
    q: Vec<f32>,
    /// `[n, n_head_kv, head_dim]`
    k: Vec<f32>,
    /// `[n, n_head_kv, head_dim]`
    v: Vec<f32>,
    /// Output of the attention: `[n, n_head, head_dim]`.
    mix: Vec<f32>,
    /// `[n, n_ff]`
    gate: Vec<f32>,
    /// `[n, n_ff]`
    up: Vec<f32>,
    /// A product that is to be added to x: `[n, n_embd]`.
    delta: Vec<f32>,
    /// `[rows that want logits, n_vocab]`
    logits: Vec<f32>,
}

impl Workspace {
    fn bytes(&self) -> usize {
        let buffers = [
            &self.x,
            &self.normed,
            &self.q,
            &self.k,
            &self.v,
            &self.mix,
            &self.gate,
            &self.up,
            &self.delta,
            &self.logits,
        ];
        buffers.into_iter().map(Vec::capacity).sum::<usize>() * size_of::<f32>()
            + self.turns.capacity() * size_of::<(f32, f32)>()
            + self.rows.capacity() * size_of::<Row>()
    }
}

/// Bytes that the planned weights take.
pub fn weight_bytes(plan: &Weights<TensorInfo>) -> u64 {
    let mut bytes = 0u64;
    // The closure never fails, and a list of layers that there is no memory for is short of some bytes at most.
    let _ = plan.try_map(|role, info| {
        bytes = bytes.saturating_add(Tensor::bytes_of(info, role));
        Ok(())
    });
    bytes
}

/// What a model needs besides its weights. The workspace is what its largest parts come to.
pub fn context_needs(desc: &ModelDesc, n_ctx: usize, n_batch: usize, n_threads: usize) -> Needs {
    let cache = KvCache::new(desc.n_layer, desc.n_embd_kv());
    let (n_embd, q, kv) = (desc.n_embd, desc.n_embd_q(), desc.n_embd_kv());
    let row = 3 * n_embd + 2 * q + 2 * kv + 2 * desc.n_ff + 2 * (desc.rope.n_rot / 2);
    let widest = n_embd.max(desc.n_ff).max(q);
    let products = (q + 2 * kv).max(2 * desc.n_ff).max(n_embd);
    let floats = |n: usize, width: usize| (n as u64).saturating_mul(width as u64).saturating_mul(4);
    let rows = (n_batch as u64).saturating_mul(size_of::<Row>() as u64);
    let workspace = [rows, floats(n_batch, row + products), floats(n_threads, widest), floats(1, desc.n_vocab)];
    Needs {
        cache: cache.sequence_bytes(n_ctx),
        cache_per_token: cache.sequence_bytes(kv_cache::PAGE) / kv_cache::PAGE as u64,
        workspace: workspace.into_iter().fold(0, u64::saturating_add),
    }
}

impl CpuBackend {
    /// Reads the planned tensors into memory and starts `n_threads` threads.
    ///
    /// # Errors
    /// When the file cannot be read, memory cannot be had, threads cannot be started, or the load is cancelled.
    pub fn load(
        gguf: &Gguf,
        desc: &ModelDesc,
        plan: &Weights<TensorInfo>,
        n_threads: usize,
        progress: &Progress,
    ) -> Result<Self> {
        let weight_bytes = plan.file_bytes();
        progress.expect(weight_bytes);
        let (memory, mut held) = (Arc::new(HostMemory::default()), 0);
        let weights = plan.try_map(|role, info| {
            let tensor = Tensor::load(gguf, info, role, progress)?;
            held += tensor.bytes();
            Ok(tensor)
        })?;
        memory.set(Purpose::Weights, held);
        let rope_angles = desc.rope_angles(weights.rope_freqs.as_ref().map(Tensor::vector));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .thread_name(|i| format!("kigo-cpu-{i}"))
            .start_handler(|_| crate::panics::own_thread())
            .build()
            .map_err(|_| no_threads(n_threads))?;
        Ok(CpuBackend {
            matmul: MatMul::new(n_threads, desc.n_embd.max(desc.n_ff).max(desc.n_embd_q()))?,
            cache: KvCache::new(desc.n_layer, desc.n_embd_kv()),
            desc: desc.clone(),
            weights,
            weight_bytes,
            rope_angles,
            pool: Arc::new(pool),
            work: Workspace::default(),
            memory,
        })
    }
}

impl Backend for CpuBackend {
    fn device(&self) -> &str {
        "cpu"
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    fn memory(&self) -> Arc<dyn Memory> {
        self.memory.clone()
    }

    fn sequence_reserve(&mut self, sequence: SequenceId, n_positions: usize) -> Result<()> {
        self.cache.reserve(sequence, n_positions)?;
        self.memory.set(Purpose::Cache, self.cache.bytes());
        Ok(())
    }

    fn sequence_free(&mut self, sequence: SequenceId) {
        self.cache.sequence_free(sequence);
        self.memory.set(Purpose::Cache, self.cache.bytes());
    }

    fn forward(&mut self, rows: &[Row]) -> Result<()> {
        let pool = self.pool.clone();
        let mut run = || {
            let outcome = pool.install(|| crate::model::forward(self, rows));
            self.memory.set(Purpose::Workspace, self.work.bytes() + self.matmul.bytes());
            outcome
        };
        if rayon::current_thread_index().is_none() {
            return run();
        }
        // A worker of a pool of the host would take up other work while it waits, perhaps another session of this
        // model, which then waits for the batch below it on the same stack. A thread of its own only waits.
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("kigo-cpu-wait".into()).spawn_scoped(scope, || {
                crate::panics::own_thread();
                run()
            });
            let thread = thread.map_err(|_| no_threads(1))?;
            thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
        })
    }

    fn logits(&mut self, index: usize) -> Result<&[f32]> {
        Ok(&self.work.logits[index * self.desc.n_vocab..][..self.desc.n_vocab])
    }

    fn n_layer(&self) -> usize {
        self.desc.n_layer
    }

    fn begin(&mut self, rows: &[Row]) -> Result<()> {
        let (d, w, n) = (&self.desc, &mut self.work, rows.len());
        let n_logits = rows.iter().filter(|row| row.logits).count();
        w.rows.clear();
        w.rows.try_reserve(n).map_err(|_| workspace_error(n * size_of::<Row>()))?;
        w.rows.extend_from_slice(rows);
        for (buffer, width) in [
            (&mut w.x, d.n_embd),
            (&mut w.normed, d.n_embd),
            (&mut w.q, d.n_embd_q()),
            (&mut w.k, d.n_embd_kv()),
            (&mut w.v, d.n_embd_kv()),
            (&mut w.mix, d.n_embd_q()),
            (&mut w.gate, d.n_ff),
            (&mut w.up, d.n_ff),
            (&mut w.delta, d.n_embd),
        ] {
            resize(buffer, n, width)?;
        }
        resize(&mut w.logits, n_logits, d.n_vocab)?;
        w.turns.clear();
        let n_turns = n * self.rope_angles.len();
        w.turns.try_reserve(n_turns).map_err(|_| workspace_error(n_turns * size_of::<(f32, f32)>()))?;
        for row in rows {
            w.turns.extend(self.rope_angles.iter().map(|angle| {
                let (sin, cos) = (angle * f64::from(row.position)).sin_cos();
                (cos as f32, sin as f32)
            }));
        }
        Ok(())
    }

    fn embed(&mut self) -> Result<()> {
        let Self { desc: d, weights, work: w, .. } = self;
        for (row, x) in w.rows.iter().zip(w.x.chunks_exact_mut(d.n_embd)) {
            weights.token_embd.dequantize_row(row.token as usize, x);
        }
        Ok(())
    }

    fn attn_qkv(&mut self, layer: usize) -> Result<()> {
        let Self { desc: d, weights, cache, matmul, work: w, .. } = self;
        let l = &weights.layers[layer];
        norm(matmul.arch(), d, &w.x, &l.attn_norm, l.attn_norm_bias.as_ref(), &mut w.normed);
        let q = (&l.attn_q, &mut w.q[..]);
        let k = (&l.attn_k, &mut w.k[..]);
        let v = (&l.attn_v, &mut w.v[..]);
        matmul.run(&mut [q, k, v], &w.normed)?;
        add_bias(&mut w.q, l.attn_q_bias.as_ref());
        add_bias(&mut w.k, l.attn_k_bias.as_ref());
        add_bias(&mut w.v, l.attn_v_bias.as_ref());
        rope(d, &w.turns, &mut w.q, d.n_head);
        rope(d, &w.turns, &mut w.k, d.n_head_kv);
        let width = d.n_embd_kv();
        for ((row, k), v) in w.rows.iter().zip(w.k.chunks_exact(width)).zip(w.v.chunks_exact(width)) {
            cache.store(row, layer, k, v);
        }
        Ok(())
    }

    fn attn_mix(&mut self, layer: usize) -> Result<()> {
        let Self { desc: d, cache, matmul, work: w, .. } = self;
        let (arch, group) = (matmul.arch(), d.n_head / d.n_head_kv);
        let heads = w.q.par_chunks_exact(d.head_dim).zip(w.mix.par_chunks_exact_mut(d.head_dim));
        heads.enumerate().for_each(|(i, (q, out))| {
            let (row, at) = (&w.rows[i / d.n_head], i % d.n_head / group * d.head_dim);
            let head = Head { q, at, width: d.n_embd_kv(), scale: d.attn_scale };
            attention::attend(arch, head, cache.pages(row, layer), out);
        });
        Ok(())
    }

    fn attn_output(&mut self, layer: usize) -> Result<()> {
        let Self { weights, matmul, work: w, .. } = self;
        let l = &weights.layers[layer];
        matmul.run(&mut [(&l.attn_output, &mut w.delta)], &w.mix)?;
        add_bias(&mut w.delta, l.attn_output_bias.as_ref());
        vector::add(&mut w.x, &w.delta);
        Ok(())
    }

    fn ffn_up(&mut self, layer: usize) -> Result<()> {
        let Self { desc: d, weights, matmul, work: w, .. } = self;
        let l = &weights.layers[layer];
        norm(matmul.arch(), d, &w.x, &l.ffn_norm, l.ffn_norm_bias.as_ref(), &mut w.normed);
        matmul.run(&mut [(&l.ffn_gate, &mut w.gate), (&l.ffn_up, &mut w.up)], &w.normed)?;
        match d.activation {
            Activation::Silu => vector::silu_mul(matmul.arch(), &mut w.gate, &w.up),
            Activation::Gelu => vector::gelu_mul(matmul.arch(), &mut w.gate, &w.up),
        }
        Ok(())
    }

    fn ffn_down(&mut self, layer: usize) -> Result<()> {
        let Self { weights, matmul, work: w, .. } = self;
        matmul.run(&mut [(&weights.layers[layer].ffn_down, &mut w.delta)], &w.gate)?;
        vector::add(&mut w.x, &w.delta);
        Ok(())
    }

    fn output(&mut self) -> Result<()> {
        let Self { desc: d, weights, matmul, work: w, .. } = self;
        let mut n = 0;
        for (i, _) in w.rows.iter().enumerate().filter(|(_, row)| row.logits) {
            w.x.copy_within(i * d.n_embd..(i + 1) * d.n_embd, n * d.n_embd);
            n += 1;
        }
        if n == 0 {
            return Ok(());
        }
        let normed = &mut w.normed[..n * d.n_embd];
        let bias = weights.output_norm_bias.as_ref();
        norm(matmul.arch(), d, &w.x[..n * d.n_embd], &weights.output_norm, bias, normed);
        let head = weights.output.as_ref().unwrap_or(&weights.token_embd);
        matmul.run(&mut [(head, &mut w.logits)], normed)
    }
}

/// Normalises every row of `x` `[n, n_embd]` into `out`.
fn norm(arch: pulp::Arch, desc: &ModelDesc, x: &[f32], weight: &Tensor, bias: Option<&Tensor>, out: &mut [f32]) {
    let row = match desc.norm {
        Norm::Rms => vector::rms_norm,
        Norm::Layer => vector::layer_norm,
    };
    for (x, out) in x.chunks_exact(desc.n_embd).zip(out.chunks_exact_mut(desc.n_embd)) {
        row(arch, x, weight.vector(), desc.norm_eps, out);
    }
    add_bias(out, bias);
}

/// Adds the bias `[width]`, where there is one, to every row of `x` `[n, width]`.
fn add_bias(x: &mut [f32], bias: Option<&Tensor>) {
    if let Some(bias) = bias {
        x.chunks_exact_mut(bias.vector().len()).for_each(|row| vector::add(row, bias.vector()));
    }
}

/// Turns every head of `x` `[n, n_heads, head_dim]` by the turns of its row.
fn rope(desc: &ModelDesc, turns: &[(f32, f32)], x: &mut [f32], n_heads: usize) {
    let rows = x.chunks_exact_mut(n_heads * desc.head_dim).zip(turns.chunks_exact(desc.rope.n_rot / 2));
    for (row, turns) in rows {
        for head in row.chunks_exact_mut(desc.head_dim) {
            vector::rope(desc.rope.pairing, head, turns);
        }
    }
}

/// Makes `buffer` exactly `n * width` long; what it holds is unspecified.
fn resize(buffer: &mut Vec<f32>, n: usize, width: usize) -> Result<()> {
    let len = n.checked_mul(width).ok_or_else(|| workspace_error(usize::MAX))?;
    if len > buffer.capacity() {
        *buffer = Vec::new();
        *buffer = try_vec(len, "the workspace")?;
    }
    buffer.resize(len, 0.0);
    Ok(())
}

/// The system refuses threads when it has no memory for them, or too many already.
fn no_threads(n: usize) -> Error {
    const STACK: u64 = 2 << 20;
    Error::OutOfMemory { what: format!("starting {n} more threads (n_threads)"), bytes: n as u64 * STACK }
}

fn workspace_error(bytes: usize) -> Error {
    Error::OutOfMemory { what: "the workspace".into(), bytes: bytes as u64 }
}
