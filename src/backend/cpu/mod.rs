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

use super::{Backend, Memory, Progress, Purpose, Residency, Row, SequenceId};
use crate::error::try_vec;
use crate::gguf::Gguf;
use crate::model::{Activation, ModelDesc, Norm, RopeTable, Weights};
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
    /// One for each kind of rope.
    ropes: Vec<RopeTable>,
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
    /// cos and sin of every rope pair, times the magnitude: `[kinds, n, n_rot / 2]`.
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

impl CpuBackend {
    /// Reads the planned tensors into memory, for contexts of up to `n_ctx` tokens, and starts `n_threads` threads.
    ///
    /// # Errors
    /// When the file cannot be read, memory cannot be had, threads cannot be started, or the load is cancelled.
    pub fn load(
        gguf: &Gguf,
        desc: &ModelDesc,
        plan: &Weights<crate::gguf::TensorInfo>,
        (n_ctx, n_threads): (usize, usize),
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
        let ropes = desc.rope.tables(weights.rope_divisors(desc, n_ctx).map(Tensor::vector));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .thread_name(|i| format!("kigo-cpu-{i}"))
            .start_handler(|_| crate::panics::own_thread())
            .build()
            .map_err(|_| no_threads(n_threads))?;
        Ok(CpuBackend {
            matmul: MatMul::new(n_threads, desc.n_embd.max(desc.n_ff).max(desc.n_embd_q()))?,
            cache: KvCache::new(desc.n_layer(), desc.n_embd_kv()),
            desc: desc.clone(),
            weights,
            weight_bytes,
            ropes,
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
        self.desc.n_layer()
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
        let n_turns = self.ropes.len() * n * (d.rope.n_rot / 2);
        w.turns.try_reserve(n_turns).map_err(|_| workspace_error(n_turns * size_of::<(f32, f32)>()))?;
        for (table, row) in self.ropes.iter().flat_map(|table| rows.iter().map(move |row| (table, row))) {
            w.turns.extend(table.angles.iter().map(|angle| {
                let (sin, cos) = (angle * f64::from(row.position)).sin_cos();
                let magnitude = f64::from(table.magnitude);
                ((cos * magnitude) as f32, (sin * magnitude) as f32)
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
        let input = norm(matmul.arch(), d, &w.x, l.attn_norm.as_ref(), l.attn_norm_bias.as_ref(), &mut w.normed);
        let q = (&l.attn_q, &mut w.q[..]);
        let k = (&l.attn_k, &mut w.k[..]);
        let v = (&l.attn_v, &mut w.v[..]);
        matmul.run(&mut [q, k, v], input)?;
        add_bias(&mut w.q, l.attn_q_bias.as_ref());
        add_bias(&mut w.k, l.attn_k_bias.as_ref());
        add_bias(&mut w.v, l.attn_v_bias.as_ref());
        if let Some(kind) = d.layers[layer].rope {
            let n_turns = w.rows.len() * (d.rope.n_rot / 2);
            let turns = &w.turns[kind * n_turns..][..n_turns];
            rope(d, turns, &mut w.q, d.n_head);
            rope(d, turns, &mut w.k, d.n_head_kv);
        }
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
        let input = norm(matmul.arch(), d, &w.x, l.ffn_norm.as_ref(), l.ffn_norm_bias.as_ref(), &mut w.normed);
        match &l.ffn_gate {
            Some(gate) => matmul.run(&mut [(gate, &mut w.gate), (&l.ffn_up, &mut w.up)], input)?,
            None => matmul.run(&mut [(&l.ffn_up, &mut w.up)], input)?,
        }
        match d.activation {
            Activation::Silu => vector::silu_mul(matmul.arch(), &mut w.gate, &w.up),
            Activation::Gelu => vector::gelu_mul(matmul.arch(), &mut w.gate, &w.up),
            Activation::GeluUngated | Activation::SiluClamped => return Err(Error::Internal("to come".into())),
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
        let x = &w.x[..n * d.n_embd];
        let normed = norm(matmul.arch(), d, x, Some(&weights.output_norm), bias, normed);
        let head = weights.output.as_ref().unwrap_or(&weights.token_embd);
        matmul.run(&mut [(head, &mut w.logits)], normed)
    }
}

/// Normalises every row of `x` `[n, n_embd]` into `out`, and gives that; `x` itself where there is no weight.
fn norm<'a>(
    arch: pulp::Arch,
    desc: &ModelDesc,
    x: &'a [f32],
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    out: &'a mut [f32],
) -> &'a [f32] {
    let Some(weight) = weight else { return x };
    let row = match desc.norm {
        Norm::Rms => vector::rms_norm,
        Norm::Layer => vector::layer_norm,
    };
    for (x, out) in x.chunks_exact(desc.n_embd).zip(out.chunks_exact_mut(desc.n_embd)) {
        row(arch, x, weight.vector(), desc.norm_eps, out);
    }
    add_bias(out, bias);
    out
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
