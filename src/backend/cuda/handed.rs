//! What kernels hand on as operands, so that the next product needs no `prep`: all of few rows, `kernels/handed.cuh`; of many, on sm_90a, what
//! attention, gate and up give.

use super::CudaBackend;
use super::attention::flash_of;
use super::blocks::{self, Kernel};
use super::layout::{Gate, Product, TILE_ROWS, wants_bf16};
use super::params::{KIGO_ADD, KIGO_GATED, KIGO_STORE};
use super::stages::{Source, job, plain};
use crate::model::Norm;

/// Rows that kernels hand on as operands at most: those of [`Kernel::Few8`].
const HANDED_ROWS: usize = blocks::FEW_ROWS as usize;
/// Elements of heads that `attn_flash` and `attn_prefill` hand on at most.
const FLASH_WIDTH: usize = 128;
const PREFILL_WIDTH: usize = 64;

/// What few rows have a place of their own for: operands of mix and ff, those of the residual stream before attention and after, which
/// take turns, and the squares of these.
enum Part {
    Mix,
    Ff,
    Stream { after: bool },
    Squares { after: bool },
}

/// Bytes of each part, in the order of [`Part`]; widths are whole units.
pub fn bytes(n_embd: usize, n_mix: usize, n_ff: usize) -> [usize; 6] {
    let operands = |width: usize| HANDED_ROWS * width * 2;
    let squares = HANDED_ROWS * n_embd / TILE_ROWS * 4;
    [operands(n_mix), operands(n_ff), operands(n_embd), operands(n_embd), squares, squares]
}

fn address(b: &CudaBackend, part: Part) -> u64 {
    let w = &b.work;
    let number = match part {
        Part::Mix => 0,
        Part::Ff => 1,
        Part::Stream { after } => 2 + usize::from(after),
        Part::Squares { after } => 4 + usize::from(after),
    };
    let before = &bytes(w.sizes.n_embd, w.sizes.n_mix, w.sizes.n_ff)[..number];
    w.handed.address() + before.iter().sum::<usize>() as u64
}

/// How the residual stream of few rows is handed on: as operands of the products that take it after their norm. Zeros: it is not.
#[derive(Clone, Copy, Default)]
pub struct Handed {
    pub operands: u64,
    pub squares: u64,
    pub magnitudes: u64,
    pub norm: u64,
}

impl Handed {
    /// Before the attention of a layer or, if `after`, after it; of the layer behind the last, what the output takes.
    pub fn of_stream(b: &CudaBackend, layer: usize, after: bool) -> Handed {
        let w = &b.work;
        let who = |product: &Product| takes_handed(b, product, KIGO_STORE);
        // Who adds to it, whether all who take it then can, and their norm.
        let (adder, all_take, norm) = if after {
            let l = &b.places.layers[layer];
            let all = l.ffn_gate_inp.is_none()
                && match &l.ffn_gate {
                    Gate::Joint(both) => takes_handed(b, both, KIGO_GATED),
                    Gate::None(up) => who(up),
                    Gate::Apart { gate, up } => who(gate) && who(up),
                };
            (&l.attn_output, all, l.ffn_norm)
        } else {
            let Some(before) = layer.checked_sub(1).filter(|_| w.experts.is_none()) else { return Handed::default() };
            let adder = &b.places.layers[before].ffn_down;
            match b.places.layers.get(layer) {
                Some(l) => (adder, l.attn_qkv.iter().all(who), l.attn_norm),
                None => {
                    let all = b.shape.all_want && b.shape.n_logits == b.shape.n;
                    (adder, all && who(&b.places.output), Some(b.places.output_norm))
                }
            }
        };
        let is_plain = !b.desc.post_norm && b.desc.norm == Norm::Rms;
        match norm.filter(|norm| is_plain && all_take && norm.bias.is_none() && is_few(b, adder, KIGO_ADD)) {
            Some(norm) => Handed {
                operands: address(b, Part::Stream { after }),
                squares: address(b, Part::Squares { after }),
                magnitudes: w.stream_magnitudes(layer, after),
                norm: b.weights.address() + norm.weight,
            },
            None => Handed::default(),
        }
    }

    /// A source that takes it.
    pub fn take(self, mut source: Source) -> Source {
        if self.operands != 0 {
            (source.operands, source.squares) = (self.operands, self.squares);
            source.input.magnitudes = self.magnitudes;
        }
        source
    }
}

/// Whether a product of the batch is one of few rows, none of them alone.
fn is_few(b: &CudaBackend, product: &Product, kind: u32) -> bool {
    let input = plain(0, b.shape.n, product.k, 0).input;
    (2..=HANDED_ROWS).contains(&b.shape.n)
        && matches!(b.kernels.card.blocks(&job(&input, product, kind, input.n)).kernel, Kernel::Few8)
}

/// Whether it can take what is handed on: halves of whole units.
fn takes_handed(b: &CudaBackend, product: &Product, kind: u32) -> bool {
    !wants_bf16(product.quant) && product.k.is_multiple_of(64) && is_few(b, product, kind)
}

/// Whether kernels before can write what the product of the batch takes: halves of whole units in the order of sm_90a.
fn takes_operands(b: &CudaBackend, product: &Product) -> bool {
    b.kernels.card.swizzles(product.quant, b.shape.n) && !wants_bf16(product.quant) && product.k.is_multiple_of(64)
}

/// Where attention writes what the output takes, or 0: where the product before it had its own.
pub fn mix_operands(b: &CudaBackend, layer: usize) -> u64 {
    let (d, output) = (&b.desc, &b.places.layers[layer].attn_output);
    let whole = d.head_dim == b.kernels.head_width && d.head_dim.is_multiple_of(64);
    let most = if flash_of(b, layer).is_some() { FLASH_WIDTH } else { PREFILL_WIDTH };
    match b.shape.n_tiles {
        0 if whole && takes_handed(b, output, KIGO_ADD) => address(b, Part::Mix),
        1.. if whole && d.head_dim <= most && takes_operands(b, output) => b.work.records.address(),
        _ => 0,
    }
}

/// Where gate and up write what down takes, or 0: of many rows behind their own, in the room that bfloat16 would take.
pub fn ff_operands(b: &CudaBackend, layer: usize) -> u64 {
    let (l, sizes) = (&b.places.layers[layer], &b.work.sizes);
    let (last, kind) = match &l.ffn_gate {
        Gate::Joint(both) => (both, KIGO_GATED),
        Gate::None(up) | Gate::Apart { up, .. } => (up, KIGO_STORE),
    };
    if is_few(b, last, kind) && takes_handed(b, &l.ffn_down, KIGO_ADD) {
        return address(b, Part::Ff);
    }
    match &l.ffn_gate {
        Gate::Joint(both) if takes_operands(b, both) && takes_operands(b, &l.ffn_down) => {
            b.work.records.address() + (sizes.n_rows * sizes.n_embd * 2) as u64
        }
        _ => 0,
    }
}
