//! The books of the backend's memory, and the buffers of a batch.

use std::sync::atomic::{AtomicU64, Ordering};

use super::experts::Routing;
use crate::backend::{Memory, Purpose, Residency, Row};
use crate::error::try_vec;
use crate::model::ModelDesc;
use crate::{Error, Result};

/// Bytes that the backend holds, as it last said.
#[derive(Default)]
pub struct HostMemory {
    bytes: [AtomicU64; Purpose::ALL.len()],
}

impl HostMemory {
    pub fn set(&self, purpose: Purpose, bytes: usize) {
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
pub struct Workspace {
    pub rows: Vec<Row>,
    /// cos and sin of every rope pair, times the magnitude: `[kinds of rope, n, n_rot / 2]`.
    pub turns: Vec<(f32, f32)>,
    /// The residual stream: `[n, n_embd]`.
    pub x: Vec<f32>,
    /// x after a norm: `[n, n_embd]`.
    pub normed: Vec<f32>,
    /// `[n, n_head, head_dim]`
    pub q: Vec<f32>,
    /// `[n, n_head_kv, head_dim]`
    pub k: Vec<f32>,
    /// `[n, n_head_kv, head_dim]`
    pub v: Vec<f32>,
    /// Output of the attention: `[n, n_head, head_dim]`.
    pub mix: Vec<f32>,
    /// `[n, n_ff]`, or `[n * n_expert_used, n_ff]` in the order of [`Routing`]. What goes into `ffn_down` stands here.
    pub gate: Vec<f32>,
    /// As `gate`; empty where there is no gate.
    pub up: Vec<f32>,
    /// A product that is to be added to x: `[n, n_embd]`.
    pub delta: Vec<f32>,
    /// Which experts the rows use.
    pub routing: Routing,
    /// What goes into experts, then what comes out: `[n * n_expert_used, n_embd]` in the order of [`Routing`].
    pub expert_rows: Vec<f32>,
    /// `[rows that want logits, n_vocab]`
    pub logits: Vec<f32>,
}

impl Workspace {
    /// Sizes the buffers for a batch; `turns` stays as it is.
    pub fn begin(&mut self, desc: &ModelDesc, rows: &[Row]) -> Result<()> {
        let n = rows.len();
        let n_logits = rows.iter().filter(|row| row.logits).count();
        self.rows.clear();
        self.rows.try_reserve(n).map_err(|_| workspace_error(size_of_val(rows)))?;
        self.rows.extend_from_slice(rows);
        let n_used = desc.experts.map_or(0, |experts| experts.n_expert_used);
        let n_ffn = n * n_used.max(1);
        for (buffer, n, width) in [
            (&mut self.x, n, desc.n_embd),
            (&mut self.normed, n, desc.n_embd),
            (&mut self.q, n, desc.n_embd_q()),
            (&mut self.k, n, desc.n_embd_kv()),
            (&mut self.v, n, desc.n_embd_kv()),
            (&mut self.mix, n, desc.n_embd_q()),
            (&mut self.gate, n_ffn, desc.n_ff),
            (&mut self.up, if desc.activation.gated() { n_ffn } else { 0 }, desc.n_ff),
            (&mut self.delta, n, desc.n_embd),
            (&mut self.expert_rows, n * n_used, desc.n_embd),
            (&mut self.logits, n_logits, desc.n_vocab),
        ] {
            resize(buffer, n, width)?;
        }
        Ok(())
    }

    /// Bytes of the buffers.
    pub fn bytes(&self) -> usize {
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
            &self.expert_rows,
            &self.logits,
        ];
        buffers.into_iter().map(Vec::capacity).sum::<usize>() * size_of::<f32>()
            + self.turns.capacity() * size_of::<(f32, f32)>()
            + self.rows.capacity() * size_of::<Row>()
            + self.routing.bytes()
    }
}

/// Makes `buffer` exactly `n * width` long; what it holds is unspecified.
pub fn resize<T: Clone + Default>(buffer: &mut Vec<T>, n: usize, width: usize) -> Result<()> {
    let len = n.checked_mul(width).ok_or_else(|| workspace_error(usize::MAX))?;
    if len > buffer.capacity() {
        *buffer = Vec::new();
        *buffer = try_vec(len, "the workspace")?;
    }
    buffer.resize(len, T::default());
    Ok(())
}

fn workspace_error(bytes: usize) -> Error {
    Error::OutOfMemory { what: "the workspace".into(), bytes: bytes as u64 }
}
