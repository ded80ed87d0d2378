//! The plain backend: every stage in f32, on the weights as they stand in the file. It is the judge of every
//! other backend, so it stays simple; it is also fast enough to be used.
//!
//! Sums run in an order that depends neither on the batch nor on the number of threads.

mod activation;
mod attention;
mod experts;
mod kv_cache;
mod matmul;
mod memory;
mod pages;
mod rows;
mod tensor;
mod vector;

use std::sync::Arc;

use rayon::prelude::*;

use super::{Backend, Memory, Needs, Progress, Purpose, Row, SequenceId, Stop};
use crate::gguf::{Gguf, TensorInfo};
use crate::model::{ModelDesc, RopeTable, Weights};
use crate::{Error, Result};
use attention::Head;
use kv_cache::KvCache;
use matmul::MatMul;
use memory::{HostMemory, Workspace};
use tensor::{Linear, Tensor};

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
    let cache = KvCache::new(desc.layers.iter().map(|layer| layer.window), desc.n_embd_kv());
    let (n_embd, q, kv) = (desc.n_embd, desc.n_embd_q(), desc.n_embd_kv());
    let n_used = desc.experts.map_or(0, |experts| experts.n_expert_used);
    let ff = n_used.max(1) * desc.n_ff;
    let turns = 2 * desc.rope.kinds.len() * (desc.rope.n_rot / 2);
    let row = (3 + n_used) * n_embd + 2 * q + 2 * kv + 2 * ff + turns;
    let widest = n_embd.max(desc.n_ff).max(q);
    let products = (q + 2 * kv).max(2 * desc.n_ff).max(n_embd);
    let floats = |n: usize, width: usize| (n as u64).saturating_mul(width as u64).saturating_mul(4);
    let rows = (n_batch as u64).saturating_mul(size_of::<Row>() as u64);
    let workspace = [rows, floats(n_batch, row + products), floats(n_threads, widest), floats(1, desc.n_vocab)];
    let page = kv_cache::PAGE;
    let per_page = cache.sequence_bytes(page, n_batch);
    Needs {
        cache: cache.sequence_bytes(n_ctx, n_batch),
        cache_per_token: per_page / page as u64,
        workspace: workspace.into_iter().fold(0, u64::saturating_add),
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
        plan: &Weights<TensorInfo>,
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
            cache: KvCache::new(desc.layers.iter().map(|layer| layer.window), desc.n_embd_kv()),
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

impl CpuBackend {
    /// Changes the cache, and writes what it takes then into the books.
    fn on_cache<T>(&mut self, change: impl FnOnce(&mut KvCache) -> Result<T>) -> Result<T> {
        let outcome = change(&mut self.cache);
        self.memory.set(Purpose::Cache, self.cache.bytes());
        outcome
    }
}

fn no_page() -> Error {
    Error::Internal("there is no such page".into())
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
        self.on_cache(|cache| cache.reserve(sequence, n_positions))
    }

    fn sequence_free(&mut self, sequence: SequenceId) {
        self.cache.sequence_free(sequence);
        self.memory.set(Purpose::Cache, self.cache.bytes());
    }

    fn sequence_holds(&self, sequence: SequenceId, n_positions: usize) -> bool {
        self.cache.holds(sequence, n_positions)
    }

    fn sequence_rewind(&mut self, sequence: SequenceId, n_positions: usize) -> Result<bool> {
        self.on_cache(|cache| cache.rewind(sequence, n_positions))
    }

    fn sequence_fork(&mut self, from: SequenceId, to: SequenceId, n_positions: usize) -> Result<bool> {
        self.on_cache(|cache| cache.fork(from, to, n_positions))
    }

    fn sequence_keep(&mut self, sequence: SequenceId) {
        self.cache.keep(sequence);
    }

    fn kept_bytes(&self) -> u64 {
        self.cache.kept_bytes() as u64
    }

    fn page_positions(&self) -> usize {
        kv_cache::PAGE
    }

    fn cache_format(&self) -> String {
        format!("cpu, {}", self.cache.format())
    }

    fn page_bytes(&self, n_positions: usize, index: usize) -> Option<usize> {
        self.cache.page_bytes(n_positions, index)
    }

    fn page_read(&mut self, sequence: SequenceId, n_positions: usize, index: usize, bytes: &mut [u8]) -> Result<()> {
        let page = self.cache.page(sequence, n_positions, index).ok_or_else(no_page)?;
        for (to, number) in bytes.chunks_exact_mut(size_of::<f32>()).zip(page) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        Ok(())
    }

    fn sequence_restore(&mut self, sequence: SequenceId, n_positions: usize) -> Result<()> {
        self.on_cache(|cache| cache.restore(sequence, n_positions))
    }

    fn page_write(&mut self, sequence: SequenceId, n_positions: usize, index: usize, bytes: &[u8]) -> Result<()> {
        let page = self.cache.page_mut(sequence, n_positions, index).ok_or_else(no_page)?;
        for (number, from) in page.iter_mut().zip(bytes.as_chunks().0) {
            *number = f32::from_le_bytes(*from);
        }
        Ok(())
    }

    fn forward_unless(&mut self, rows: &[Row], stop: Stop) -> Result<()> {
        let pool = self.pool.clone();
        let mut run = || {
            let outcome = pool.install(|| crate::model::forward(self, rows, &|_| stop.check()));
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
        let (d, w) = (&self.desc, &mut self.work);
        if let Some(n_ctx) = d.max_positions().filter(|&n| rows.iter().any(|row| row.position as usize >= n)) {
            return Err(Error::ContextFull { n_ctx });
        }
        w.begin(d, rows)?;
        rows::turns(&self.ropes, rows, &mut w.turns)?;
        let outcome = self.cache.begin(rows);
        self.memory.set(Purpose::Cache, self.cache.bytes());
        outcome
    }

    fn embed(&mut self) -> Result<()> {
        let Self { desc: d, weights, work: w, .. } = self;
        for (row, x) in w.rows.iter().zip(w.x.chunks_exact_mut(d.n_embd)) {
            weights.token_embd.dequantize_row(row.token as usize, x);
            vector::scale(x, d.embd_scale);
            if let Some(positions) = &weights.position_embd {
                vector::add(x, &positions.vector()[row.position as usize * d.n_embd..][..d.n_embd]);
            }
        }
        Ok(())
    }

    fn attn_qkv(&mut self, layer: usize) -> Result<()> {
        let Self { desc: d, weights, cache, matmul, work: w, .. } = self;
        let (l, arch) = (&weights.layers[layer], matmul.arch());
        let input = rows::normed(arch, d, &w.x, (l.attn_norm.as_ref(), l.attn_norm_bias.as_ref()), &mut w.normed);
        let q = (Linear::new(&l.attn_q, l.attn_q_bias.as_ref()), &mut w.q[..]);
        let k = (Linear::new(&l.attn_k, l.attn_k_bias.as_ref()), &mut w.k[..]);
        let v = (Linear::new(&l.attn_v, l.attn_v_bias.as_ref()), &mut w.v[..]);
        matmul.run(&mut [q, k, v], input)?;
        for (x, weight) in [(&mut w.q, &l.attn_q_norm), (&mut w.k, &l.attn_k_norm)] {
            if let Some(weight) = weight.as_ref().map(Tensor::vector) {
                x.chunks_exact_mut(weight.len()).for_each(|x| vector::rms_norm(arch, x, weight, d.norm_eps));
            }
        }
        if let Some(kind) = d.layers[layer].rope {
            let n_turns = w.rows.len() * (d.rope.n_rot / 2);
            let turns = &w.turns[kind * n_turns..][..n_turns];
            rows::rope(d, turns, &mut w.q, d.n_head);
            rows::rope(d, turns, &mut w.k, d.n_head_kv);
        }
        let width = d.n_embd_kv();
        for ((row, k), v) in w.rows.iter().zip(w.k.chunks_exact(width)).zip(w.v.chunks_exact(width)) {
            cache.store(row, layer, k, v);
        }
        Ok(())
    }

    fn attn_mix(&mut self, layer: usize) -> Result<()> {
        let Self { desc: d, weights, cache, matmul, work: w, .. } = self;
        let (arch, group) = (matmul.arch(), d.n_head / d.n_head_kv);
        let sinks = weights.layers[layer].attn_sinks.as_ref().map(Tensor::vector);
        let heads = w.q.par_chunks_exact(d.head_dim).zip(w.mix.par_chunks_exact_mut(d.head_dim));
        heads.enumerate().for_each(|(i, (q, out))| {
            let (row, head) = (&w.rows[i / d.n_head], i % d.n_head);
            let head = Head {
                q,
                at: head / group * d.head_dim,
                width: d.n_embd_kv(),
                scale: d.attn_scale,
                softcap: d.attn_softcap,
                sink: sinks.map(|sinks| sinks[head]),
            };
            attention::attend(arch, head, cache.pages(row, layer), out);
        });
        Ok(())
    }

    fn attn_output(&mut self, layer: usize) -> Result<()> {
        let Self { desc: d, weights, matmul, work: w, .. } = self;
        let l = &weights.layers[layer];
        let output = Linear::new(&l.attn_output, l.attn_output_bias.as_ref());
        matmul.run(&mut [(output, &mut w.delta)], &w.mix)?;
        rows::add(matmul.arch(), d, &mut w.x, &mut w.delta, l.attn_post_norm.as_ref());
        Ok(())
    }

    fn ffn_up(&mut self, layer: usize) -> Result<()> {
        let Self { desc: d, weights, matmul, work: w, .. } = self;
        let l = &weights.layers[layer];
        let norm = (l.ffn_norm.as_ref(), l.ffn_norm_bias.as_ref());
        let input = rows::normed(matmul.arch(), d, &w.x, norm, &mut w.normed);
        if let (Some(experts), Some(router)) = (d.experts, &l.ffn_gate_inp) {
            let router = Linear::new(router, l.ffn_gate_inp_bias.as_ref());
            w.routing.choose(experts, router, matmul, input)?;
            let out = (&mut w.expert_rows[..], &mut w.gate[..], &mut w.up[..]);
            return experts::up(l, &w.routing, d.activation, matmul, input, out);
        }
        let gate = l.ffn_gate.as_ref().map(|gate| Linear::new(gate, l.ffn_gate_bias.as_ref()));
        let up = Linear::new(&l.ffn_up, l.ffn_up_bias.as_ref());
        activation::gated(matmul, d.activation, (gate, up), input, &mut w.gate, &mut w.up)
    }

    fn ffn_down(&mut self, layer: usize) -> Result<()> {
        let Self { desc: d, weights, matmul, work: w, .. } = self;
        let l = &weights.layers[layer];
        if d.experts.is_some() {
            experts::down(l, &w.routing, matmul, &w.gate, (&mut w.expert_rows, &mut w.delta))?;
        } else {
            let down = Linear::new(&l.ffn_down, l.ffn_down_bias.as_ref());
            matmul.run(&mut [(down, &mut w.delta)], &w.gate)?;
        }
        rows::add(matmul.arch(), d, &mut w.x, &mut w.delta, l.ffn_post_norm.as_ref());
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
        let norm = (Some(&weights.output_norm), weights.output_norm_bias.as_ref());
        let x = &w.x[..n * d.n_embd];
        let normed = rows::normed(matmul.arch(), d, x, norm, &mut w.normed[..n * d.n_embd]);
        let head = Linear::new(weights.output.as_ref().unwrap_or(&weights.token_embd), None);
        matmul.run(&mut [(head, &mut w.logits)], normed)?;
        rows::finish_logits(d, &mut w.logits);
        Ok(())
    }
}

/// The system refuses threads when it has no memory for them, or too many already.
fn no_threads(n: usize) -> Error {
    const STACK: u64 = 2 << 20;
    Error::OutOfMemory { what: format!("starting {n} more threads (n_threads)"), bytes: n as u64 * STACK }
}
