//! What is done to every row of a batch besides products and attention.

use pulp::Arch;
use rayon::prelude::*;

use super::tensor::Tensor;
use super::vector;
use crate::Result;
use crate::backend::Row;
use crate::error::try_vec;
use crate::model::{ModelDesc, Norm, RopeTable};

/// cos and sin of every pair of every row, times the magnitude: `[tables, n, n_rot / 2]`.
pub fn turns(tables: &[RopeTable], rows: &[Row], turns: &mut Vec<(f32, f32)>) -> Result<()> {
    let n_turns = rows.len() * tables.iter().map(|table| table.angles.len()).sum::<usize>();
    turns.clear();
    if turns.capacity() < n_turns {
        *turns = try_vec(n_turns, "the workspace")?;
    }
    for (table, row) in tables.iter().flat_map(|table| rows.iter().map(move |row| (table, row))) {
        turns.extend(table.angles.iter().map(|angle| {
            let (sin, cos) = (angle * f64::from(row.position)).sin_cos();
            let magnitude = f64::from(table.magnitude);
            ((cos * magnitude) as f32, (sin * magnitude) as f32)
        }));
    }
    Ok(())
}

/// Normalises every row of `x` `[n, n_embd]` into `out`, with a weight and perhaps a bias, and gives that; `x` itself where
/// there is no weight.
pub fn normed<'a>(
    arch: Arch,
    desc: &ModelDesc,
    x: &'a [f32],
    (weight, bias): (Option<&Tensor>, Option<&Tensor>),
    out: &'a mut [f32],
) -> &'a [f32] {
    let Some(weight) = weight else { return x };
    out.copy_from_slice(x);
    norm(arch, desc, out, weight);
    if let Some(bias) = bias {
        out.chunks_exact_mut(desc.n_embd).for_each(|row| vector::add(row, bias.vector()));
    }
    out
}

/// Adds `delta` `[n, n_embd]`, normalised where there is a weight for that, to `x`.
pub fn add(arch: Arch, desc: &ModelDesc, x: &mut [f32], delta: &mut [f32], post_norm: Option<&Tensor>) {
    if let Some(weight) = post_norm {
        norm(arch, desc, delta, weight);
    }
    vector::add_scaled(x, delta, desc.residual_scale);
}

fn norm(arch: Arch, desc: &ModelDesc, x: &mut [f32], weight: &Tensor) {
    let norm = match desc.norm {
        Norm::Rms => vector::rms_norm,
        Norm::Layer => vector::layer_norm,
    };
    x.chunks_exact_mut(desc.n_embd).for_each(|row| norm(arch, row, weight.vector(), desc.norm_eps));
}

/// Turns every head of `x` `[n, n_heads, head_dim]` by the turns `[n, n_rot / 2]` of its row.
pub fn rope(desc: &ModelDesc, turns: &[(f32, f32)], x: &mut [f32], n_heads: usize) {
    let rows = x.chunks_exact_mut(n_heads * desc.head_dim).zip(turns.chunks_exact(desc.rope.n_rot / 2));
    for (row, turns) in rows {
        for head in row.chunks_exact_mut(desc.head_dim) {
            vector::rope(desc.rope.pairing, head, turns);
        }
    }
}

/// Scales and caps logits.
pub fn finish_logits(desc: &ModelDesc, logits: &mut [f32]) {
    vector::scale(logits, desc.logit_scale);
    if let Some(cap) = desc.logit_softcap {
        logits.par_iter_mut().with_min_len(4096).for_each(|x| *x = cap * (*x / cap).tanh());
    }
}
