//! A step of a single sequence, or of some that decode together, as one kernel, `kernels/step.cu`, from the residual stream of the
//! embedding to the logits.
//!
//! Its results have the same bits as those of the kernels of `stages.rs`, so that a sequence may go from one to the other. It
//! runs where all blocks fit on the card at the same time and exchange vectors through L2: from sm_90 on. Models that it
//! cannot run, and contexts longer than what blocks can note pages of, go the way of larger batches.

use super::CudaBackend;
use super::attention;
use super::blocks::Card;
use super::kv_cache;
use super::layout::{Gate, LayerPlaces, NormPlace, Product, TILE_ROWS, WARPS, record_bytes, stride, wants_bf16};
use super::memory::DeviceBuffer;
use super::module::{Function, Module, embedded};
use super::params::{
    KIGO_GELU, KIGO_NO_ATTENTION, KIGO_SILU, KIGO_SILU_CLAMPED, KIGO_STAGE_ATTENTION, KIGO_STAGE_GATED,
    KIGO_STAGE_LOGITS, KIGO_STAGE_MIXED, KIGO_STAGE_ROUTER, KIGO_STAGE_UNGATED, KIGO_STAGE_VALUES, KIGO_STEP_APART,
    KIGO_STEP_ATTENTION, KIGO_STEP_EXPERTS, KIGO_STEP_MOST_COLUMNS, KIGO_STEP_PAGES, KIGO_STEP_PAGES_AT_ONCE,
    KIGO_STEP_ROWS, KIGO_STEP_ROWS_STATIC, KIGO_STEP_SLOTS, KIGO_STEP_STATIC, KIGO_STEP_THREADS, KIGO_TAKE_EXPERTS,
    KIGO_TAKE_RESIDUAL, KIGO_TAKE_ROUTE, KIGO_TAKE_SAME, KIGO_TAKE_WORDS, KIGO_TYPE_BF16, KIGO_TYPE_F16, KIGO_TYPE_F32,
    KIGO_TYPE_IQ4_NL, KIGO_TYPE_IQ4_XS, KIGO_TYPE_MXFP4, KIGO_TYPE_Q2_K, KIGO_TYPE_Q3_K, KIGO_TYPE_Q4_0,
    KIGO_TYPE_Q4_1, KIGO_TYPE_Q4_K, KIGO_TYPE_Q5_0, KIGO_TYPE_Q5_1, KIGO_TYPE_Q5_K, KIGO_TYPE_Q6_K, KIGO_TYPE_Q8_0,
    KigoStage, KigoStageAttention, KigoStep, bytes_of,
};
use super::stages;
use super::stream::{Launch, Order, Stream};
use crate::backend::{DecodePath, Purpose};
use crate::error::try_vec;
use crate::model::{Activation, Experts, ModelDesc, Norm, QkNorm};
use crate::quant::QuantType;
use crate::{Error, Result};

/// Bytes of the weights of a layer from which on it is faster than the kernels of larger batches: with the 2.2 MB of SmolLM2 of 135M in
/// `Q4_1` a token takes 15 % less on an H200, with the 10 MB of a Qwen2 of 0.5B in `Q4_K_M` 8 %, with those of Llamas of 1B and 8B 4 to
/// 19 %. Smaller layers have not been measured.
const FEWEST_LAYER_BYTES: u64 = 2 << 20;
/// Positions of a chunk, the part of a context that a block attends to at a time: `kChunk` of `kernels/attention.cuh`.
const CHUNK: usize = 8 * kv_cache::PAGE;
/// Chunks that a block takes at most: with more of them the kernels of larger batches are faster.
const CHUNKS_OF_BLOCK: usize = 2;
/// With those that it looks at ahead of a chunk, and asks for ahead of that.
const PAGES_AHEAD: usize = CHUNK / kv_cache::PAGE + KIGO_STEP_PAGES_AT_ONCE as usize;
const _: () =
    assert!(CHUNKS_OF_BLOCK * CHUNK + PAGES_AHEAD * kv_cache::PAGE <= KIGO_STEP_PAGES as usize * kv_cache::PAGE);
/// Chunks of a context at most, which decide what their partial results take.
const MOST_CHUNKS: usize = 80;
/// Widest heads of which two warps hold a page, and positions up to which wider ones are faster than with the kernels of larger batches:
/// on an H200 Gemma 3 of 1B in `Q4_K_M` takes 4 % less after 128 positions and 6 % longer after 500, Gemma 2 of 2B 7 % less and 1 % longer.
const MOST_TEAM_WIDTH: usize = 128;
const WIDE_POSITIONS: usize = 256;
/// Elements of a head that a block mixes: `kOwn` of `kernels/step_attention.cuh`.
const OWN: usize = 32;
/// Bytes under way to a multiprocessor: with 48 KiB a Llama of 8B takes 2 % longer in f16 on an H200 and 18 % in `Q4_K_M`.
const UNDER_WAY: u32 = 64 << 10;
/// What records in a ring start at a multiple of: `kLine` of `kernels/common.cuh`.
const LINE: u32 = 128;
/// Bytes that are copied at a time, at most where a record is not larger: fewer keep those busy who copy, with 4 KiB whole
/// tokens of f16 took 6 % longer.
const PIECE: u32 = 2432;
/// Pieces of a warp that are sent for to L2 while its ring is full, from so many bytes of a layer on: a Llama of 8B takes 1 to 2 %
/// less so on an H200, smaller layers come too early: a Qwen2 of 0.5B in `Q4_K_M` takes 5 % longer, a Llama of 1B 1 %. With mixtures nothing
/// is: a gpt-oss of 20B took 4 % longer on an H100, a Qwen3 of 30B 2 %.
const MOST_AHEAD: u32 = 16;
const FEWEST_BYTES_AHEAD: u64 = 64 << 20;
/// Clocks for each byte between them: on an H200 3/4 make a Llama of 8B in f16 0.4 % slower; on an H100 1/4 made one of 1B 8 %
/// slower than 3/4.
const PACE: (u32, u32) = (1, 2);
/// Slots that a ring must have, and their bytes at least.
const FEWEST_SLOTS: u32 = 3;
const SMALLEST_SLOT: u32 = 1 << 10;
/// Heads that a block attends to at a time.
const HEADS_OF_BLOCK: usize = 8;
/// Stages of a layer at most: q, k and v apart, attention, its output, router, gate and up, down.
const STAGES_OF_LAYER: usize = 8;
/// Slices of a tile, a warp's each: `kSlices` of `kernels/fragments.cuh`.
const SLICES: u32 = WARPS;
/// Bytes of the order and logits of experts, and of weights and activations of a record of the router: `RouterMemory` of
/// `kernels/step_experts.cuh`.
const ROUTER_BYTES: u32 = KIGO_STEP_EXPERTS * 8;
const ROUTER_RECORD: u32 = 4096 + 256;
/// Quads that a thread of a warp holds of the vectors of experts: `kHeld` there.
const QUADS_OF_THREAD: usize = KIGO_STEP_MOST_COLUMNS as usize / 4 / (WARPS as usize * 32);
/// Columns of what a block adds up of experts: what its threads hold in `take_residual` of `kernels/step.cu`.
const COLUMNS_APART: usize = 4096;
/// Sets of words of a row, which steps use in turn: see kernels/step_words.cuh.
const WORD_SETS: usize = 2;
/// Bytes of the rows' numbers of steps, and of the hole behind them.
const NUMBER_BYTES: usize = 256;
/// Rows that a step has at most, and up to which it is faster than the kernels of larger batches: two rows of a Llama of 1B take 17 % less on
/// an H200 in `Q4_K_M` and 12 % in f16, of one of 8B in `Q4_K_M` 3 %, of a Qwen2 of 0.5B 5 %; with three and more some models take longer.
const MOST_ROWS: usize = KIGO_STEP_ROWS as usize;
const FAST_ROWS: usize = 2;
/// Bytes that a row's sums take where there are several: `kTurns` and `kMostTiles` of `kernels/step_finish.cuh`, a tile of f32 each slice.
const SUMS_OF_ROW: u32 = 2 * 2 * SLICES * TILE_ROWS as u32 * 4;
/// Shared memory that a block has at most on any card that can run it.
const MOST_SHARED: u32 = 227 << 10;

/// The kernels, and what they read.
pub struct Step {
    /// The kernel for one row, and that for several, which have a launch for each number of rows.
    one: Function,
    many: Option<Function>,
    launches: [Option<Shared>; MOST_ROWS],
    /// The numbers, stages, attentions, partial results of attention, words.
    memory: DeviceBuffer,
    params: KigoStep,
    n_blocks: u32,
}

/// What depends on how many rows there are.
#[derive(Debug, Clone, Copy)]
struct Shared {
    n_slots: u32,
    bytes: u32,
    operands_stride: u32,
    sums_at: u32,
    n_positions: usize,
}

/// Words of a layer, and where they start: offsets in bytes from the layer's first.
#[derive(Debug, Clone, Copy)]
struct Words {
    qkv: usize,
    mix: usize,
    attn: usize,
    router: usize,
    ff: usize,
    ffn: usize,
    bytes: usize,
}

/// Addresses of the words of a layer, in the first set.
#[derive(Debug, Clone, Copy)]
struct LayerWords {
    qkv: u64,
    mix: u64,
    attn: u64,
    router: u64,
    ff: u64,
    ffn: u64,
}

impl Words {
    fn new(desc: &ModelDesc) -> Words {
        let mut end = 0;
        let mut next = |n: usize| {
            let start = end;
            end += (n * 4).next_multiple_of(LINE as usize);
            start
        };
        let n_heads = desc.n_head + 2 * desc.n_head_kv;
        let qkv = next(n_heads * desc.head_dim.next_multiple_of(TILE_ROWS));
        let mix = next(desc.n_embd_q());
        let attn = next(desc.n_embd);
        let router =
            next(desc.experts.map_or(0, |experts| experts.n_expert.next_multiple_of(TILE_ROWS)) * SLICES as usize);
        let ff = next(desc.experts.map_or(desc.n_ff, |experts| experts.n_expert_used * stride(desc.n_ff)));
        let ffn = next(if fits_apart(desc) { most_vectors(desc) * stride(desc.n_embd) } else { desc.n_embd });
        Words { qkv, mix, attn, router, ff, ffn, bytes: end }
    }
}

/// Whether the kernel can run a model of this shape.
fn fits(desc: &ModelDesc) -> bool {
    desc.experts.is_none_or(|experts| fits_experts(experts, desc.n_ff))
        && desc.norm == Norm::Rms
        && desc.qk_norm != Some(QkNorm::Row)
        && kv_cache::head_width(desc).is_ok()
        && [desc.n_embd, desc.n_embd_q(), desc.n_ff].iter().all(|width| width.is_multiple_of(4))
        && desc.n_embd_q().max(desc.n_ff) <= KIGO_STEP_MOST_COLUMNS as usize
}

/// Rows that there is memory for: as many as leave room for the shortest rings, one of a model that several rows cannot have.
fn most_rows(desc: &ModelDesc) -> usize {
    if desc.experts.is_some() || desc.post_norm {
        return 1;
    }
    let widest = desc.n_embd.max(desc.n_embd_q()).max(desc.n_ff);
    let row = (stride(desc.n_embd) * 4 + stride(widest) * 2) as u32 + SUMS_OF_ROW;
    let rings = FEWEST_SLOTS * WARPS * SMALLEST_SLOT;
    (MOST_SHARED.saturating_sub(rings) / row).clamp(1, MOST_ROWS as u32) as usize
}

/// Experts that a token uses, or 1.
fn most_vectors(desc: &ModelDesc) -> usize {
    desc.experts.map_or(1, |experts| experts.n_expert_used)
}

/// Whether what experts give can be handed on one by one, for who takes it to add up.
fn fits_apart(desc: &ModelDesc) -> bool {
    most_vectors(desc) <= KIGO_STEP_APART as usize
        && stride(desc.n_embd) <= COLUMNS_APART
        && desc.residual_scale == 1.0
        && !desc.post_norm
}

/// Whether a block can choose among so many experts, and its threads hold what they give.
fn fits_experts(experts: Experts, n_ff: usize) -> bool {
    let n_teams = experts.n_expert_used.min(WARPS as usize);
    let threads_of_team = WARPS as usize / n_teams * 32;
    experts.n_expert <= KIGO_STEP_EXPERTS as usize && stride(n_ff) <= 4 * QUADS_OF_THREAD * threads_of_team
}

/// Device memory that it needs for models of this shape.
///
/// # Errors
/// None yet; sizes are bounded by those of the description.
pub fn bytes(desc: &ModelDesc) -> Result<usize> {
    if !fits(desc) {
        return Ok(0);
    }
    let n_layer = desc.n_layer();
    let stages = (n_layer * STAGES_OF_LAYER + 1) * size_of::<KigoStage>();
    let attentions = n_layer * size_of::<KigoStageAttention>();
    let lists = (stages + attentions).next_multiple_of(LINE as usize);
    let of_row = partial_bytes(desc, kv_cache::head_width(desc)?) + WORD_SETS * set_bytes(desc);
    Ok(NUMBER_BYTES + lists + most_rows(desc) * of_row)
}

/// Bytes of the words of all rows, which are the last.
fn words_bytes(desc: &ModelDesc) -> usize {
    most_rows(desc) * WORD_SETS * set_bytes(desc)
}

/// Bytes of what attention hands on of chunks of a row: marked words of the mix of each head, of its largest score and the sum of its weights.
fn partial_bytes(desc: &ModelDesc, head_width: usize) -> usize {
    MOST_CHUNKS * desc.n_head * (head_width + 2) * 8
}

/// Positions up to which so many blocks attend with a row: one has a kv head with some of its heads, a part of their elements, and some
/// chunks.
fn most_positions(desc: &ModelDesc, head_width: usize, n_blocks: u32) -> usize {
    let n_groups = desc.n_head_kv * (desc.n_head / desc.n_head_kv).div_ceil(HEADS_OF_BLOCK) * (head_width / OWN);
    (n_blocks as usize / n_groups * CHUNKS_OF_BLOCK).min(MOST_CHUNKS) * CHUNK
}

/// Bytes of the words of a row's step.
fn set_bytes(desc: &ModelDesc) -> usize {
    desc.n_layer() * Words::new(desc).bytes
}

/// Bytes of the weights that a row takes of the smallest layer.
fn layer_bytes(b: &CudaBackend) -> u64 {
    let n_used = b.desc.experts.map_or(1, |experts| experts.n_expert_used);
    let bytes = |layer: &LayerPlaces| -> u64 {
        let matrices = |product: &Product| product.n_matrices.min(n_used) as u64;
        products(layer)
            .map(|product| {
                matrices(product) * product.n_tiles as u64 * product.n_records as u64 * record_bytes(product.quant)
            })
            .sum()
    };
    b.places.layers.iter().map(bytes).min().unwrap_or(0)
}

/// The matrices of a layer.
fn products(layer: &LayerPlaces) -> impl Iterator<Item = &Product> {
    let gate = match &layer.ffn_gate {
        Gate::Joint(product) | Gate::None(product) => [Some(product), None],
        Gate::Apart { gate, up } => [Some(gate), Some(up)],
    };
    layer.attn_qkv.iter().chain([&layer.attn_output, &layer.ffn_down]).chain(gate.into_iter().flatten())
}

/// What the kernel calls a type.
fn type_number(quant: QuantType) -> u32 {
    match quant {
        QuantType::F32 => KIGO_TYPE_F32,
        QuantType::BF16 => KIGO_TYPE_BF16,
        QuantType::F16 => KIGO_TYPE_F16,
        QuantType::Q4_0 => KIGO_TYPE_Q4_0,
        QuantType::Q4_1 => KIGO_TYPE_Q4_1,
        QuantType::Q5_0 => KIGO_TYPE_Q5_0,
        QuantType::Q5_1 => KIGO_TYPE_Q5_1,
        QuantType::Q8_0 => KIGO_TYPE_Q8_0,
        QuantType::Q2_K => KIGO_TYPE_Q2_K,
        QuantType::Q3_K => KIGO_TYPE_Q3_K,
        QuantType::Q4_K => KIGO_TYPE_Q4_K,
        QuantType::Q5_K => KIGO_TYPE_Q5_K,
        QuantType::Q6_K => KIGO_TYPE_Q6_K,
        QuantType::IQ4_NL => KIGO_TYPE_IQ4_NL,
        QuantType::IQ4_XS => KIGO_TYPE_IQ4_XS,
        QuantType::MXFP4 => KIGO_TYPE_MXFP4,
    }
}

/// The mixture of experts of a layer: its number, from 1 on, the bias of the router, and what the sum is multiplied with.
#[derive(Clone, Copy)]
struct Mixture {
    number: u32,
    router_bias: Option<u64>,
    scale: f32,
}

/// The list of stages while it is being made.
struct Listing<'a> {
    b: &'a CudaBackend,
    stages: Vec<KigoStage>,
    n_blocks: u32,
    /// Who takes the next stage's first item, so that all get equally much.
    next_block: u32,
    /// Whether some products are of pairs of bfloat16.
    has_pairs: bool,
    /// Bytes of the widest slot, and units of halves of the widest activations as operands.
    slot: u32,
    columns: u32,
    /// Units of the widest activations that are there before the router is done, and bytes of what it needs.
    columns_beside: u32,
    router: u32,
}

/// What a product takes.
#[derive(Clone, Copy)]
struct Taken {
    take: u32,
    input: u64,
    post_norm: Option<u64>,
    /// Factor on what is added to the residual stream.
    scale: f32,
    norm: Option<NormPlace>,
    /// The attention of the next layer.
    attention: u32,
    /// How many vectors are added.
    n_used: u32,
}

impl Taken {
    /// A vector as it is.
    fn words(input: u64) -> Taken {
        Taken {
            take: KIGO_TAKE_WORDS,
            input,
            post_norm: None,
            scale: 1.0,
            norm: None,
            attention: KIGO_NO_ATTENTION,
            n_used: 1,
        }
    }
}

/// Words that are added to the residual stream, after a norm where there is one, times a factor.
#[derive(Clone, Copy)]
struct Added {
    words: u64,
    /// How many vectors there are, of experts that are not mixed yet.
    n_used: u32,
    post_norm: Option<u64>,
    scale: f32,
}

/// What becomes of it.
#[derive(Clone, Copy)]
struct Given {
    kind: u32,
    out: u64,
    bias: [Option<u64>; 2],
}

impl Listing<'_> {
    /// A product with one matrix.
    fn stage(&self, product: &Product, taken: Taken, given: Given) -> KigoStage {
        let (b, d) = (self.b, &self.b.desc);
        let at = |offset: Option<u64>| offset.map_or(0, |offset| b.weights.address() + offset);
        let n_tiles = product.n_tiles as u32;
        let per_item = if given.kind == KIGO_STAGE_GATED || pays(n_tiles, self.n_blocks) { 2 } else { 1 };
        KigoStage {
            weights: b.weights.address() + product.offset,
            input: taken.input,
            post_norm: at(taken.post_norm),
            norm_weight: at(taken.norm.map(|norm| norm.weight)),
            out: given.out,
            bias: given.bias.map(at),
            route_bias: 0,
            kind: given.kind,
            take: taken.take,
            quant: type_number(product.quant),
            weight_scale: product.weight_scale,
            n_rows: product.n_rows as u32,
            n_records: product.n_records as u32,
            record_bytes: record_bytes(product.quant) as u32,
            per_item,
            n_items: n_tiles / per_item,
            first_block: self.next_block,
            k: product.k as u32,
            stride: stride(product.k) as u32,
            activation: match d.activation {
                Activation::Silu => KIGO_SILU,
                Activation::Gelu | Activation::GeluUngated => KIGO_GELU,
                Activation::SiluClamped => KIGO_SILU_CLAMPED,
            },
            residual_scale: taken.scale,
            eps: d.norm_eps,
            scale: d.logit_scale,
            softcap: d.logit_softcap.unwrap_or(0.0),
            attention: taken.attention,
            mixture: 0,
            n_expert: 0,
            n_used: taken.n_used,
            n_tiles,
            per_expert: 0,
            n_slices: SLICES,
            n_turns: 1,
            out_stride: 0,
        }
    }

    /// Adds a stage whose items go round the blocks after those of the stage before.
    fn push(&mut self, stage: KigoStage) {
        self.next_block = (self.next_block + stage.n_items) % self.n_blocks;
        self.stages.push(stage);
    }

    /// Makes room for the records of a product, and for `n_vectors` that it takes.
    fn make_room(&mut self, product: &Product, n_vectors: u32) -> u32 {
        let record = record_bytes(product.quant) as u32;
        let piece = (PIECE / record).max(1) * record;
        let n_pairs = if wants_bf16(product.quant) { 2 } else { 1 };
        let units = n_pairs * product.n_records as u32 * record_units(product.quant);
        self.has_pairs |= n_pairs == 2;
        self.slot = self.slot.max(piece.next_multiple_of(LINE));
        self.columns = self.columns.max(n_vectors * units);
        units
    }

    /// Adds a product.
    fn product(&mut self, product: &Product, taken: Taken, given: Given) {
        let stage = self.stage(product, taken, given);
        let units = self.make_room(product, 1);
        if stage.kind != KIGO_STAGE_LOGITS {
            self.columns_beside = self.columns_beside.max(units);
        }
        self.push(stage);
    }

    /// Adds a product with the matrices of the experts that are used; `None` where the kernel cannot compute it.
    fn experts(&mut self, product: &Product, taken: Taken, given: Given, of: Mixture) -> Option<()> {
        let experts = self.b.desc.experts?;
        let mixes = given.kind == KIGO_STAGE_MIXED;
        let n_used = experts.n_expert_used as u32;
        let is_own = taken.take == KIGO_TAKE_EXPERTS;
        let stage = self.stage(product, taken, given);
        self.make_room(product, if is_own { n_used } else { 1 });
        let shared = KigoStage {
            route_bias: of.router_bias.map_or(0, |offset| self.b.weights.address() + offset),
            mixture: of.number,
            n_expert: experts.n_expert as u32,
            n_used,
            out_stride: stride(product.n_rows) as u32,
            ..stage
        };
        let stage = if mixes {
            let (n_slices, is_shared) = slices(stage.n_records, n_used);
            KigoStage {
                per_item: 1,
                n_items: stage.n_tiles,
                n_slices: if is_shared { n_slices } else { SLICES },
                n_turns: if is_shared { n_used / 2 } else { n_used },
                scale: of.scale,
                ..shared
            }
        } else {
            let per_item = if stage.n_tiles.is_multiple_of(2) { 2 } else { 1 };
            let per_expert = stage.n_tiles / per_item;
            KigoStage { per_item, per_expert, n_items: n_used * per_expert, ..shared }
        };
        self.push(stage);
        Some(())
    }

    /// Adds the stages of a layer; `before` are the words that the layer before adds to the residual stream.
    fn layer(&mut self, layer: usize, words: LayerWords, before: Added) -> Option<()> {
        let b = self.b;
        let l = &b.places.layers[layer];
        let residual = |added: Added, norm| Taken {
            take: KIGO_TAKE_RESIDUAL,
            input: added.words,
            post_norm: added.post_norm,
            scale: added.scale,
            norm,
            attention: KIGO_NO_ATTENTION,
            n_used: added.n_used,
        };
        let mut taken = residual(before, l.attn_norm);
        // They share operands.
        if l.attn_qkv.iter().any(|product| wants_bf16(product.quant) != wants_bf16(l.attn_qkv[0].quant)) {
            return None;
        }
        for product in &l.attn_qkv {
            let out = words.qkv + (product.first_tile * TILE_ROWS * 4) as u64;
            self.product(product, taken, Given { kind: KIGO_STAGE_VALUES, out, bias: [None; 2] });
            taken.take = KIGO_TAKE_SAME;
        }
        let mut attention = *self.stages.last()?;
        (attention.kind, attention.take) = (KIGO_STAGE_ATTENTION, KIGO_TAKE_SAME);
        self.stages.push(attention);
        let given = Given { kind: KIGO_STAGE_VALUES, out: words.attn, bias: [l.attn_output_bias, None] };
        self.product(&l.attn_output, Taken::words(words.mix), given);
        let next = layer + 1;
        let attention = if next < b.desc.n_layer() { next as u32 } else { KIGO_NO_ATTENTION };
        let attn = Added { words: words.attn, n_used: 1, post_norm: l.attn_post_norm, scale: b.desc.residual_scale };
        let taken = Taken { attention, ..residual(attn, l.ffn_norm) };
        let (gate, kind, bias) = match &l.ffn_gate {
            Gate::Joint(product) => (product, KIGO_STAGE_GATED, l.ffn_gate_bias),
            Gate::None(product) => (product, KIGO_STAGE_UNGATED, [l.ffn_gate_bias[1], None]),
            Gate::Apart { .. } => return None,
        };
        let up = Given { kind, out: words.ff, bias };
        let down = [l.ffn_down_bias, None];
        let Some((router, router_bias)) = &l.ffn_gate_inp else {
            self.product(gate, taken, up);
            let given = Given { kind: KIGO_STAGE_VALUES, out: words.ffn, bias: down };
            self.product(&l.ffn_down, Taken::words(words.ff), given);
            return Some(());
        };
        // What is normed later is not multiplied before.
        let scale = if l.ffn_post_norm.is_some() { 1.0 } else { b.desc.residual_scale };
        let mixture = Mixture { number: (layer + 1) as u32, router_bias: *router_bias, scale };
        self.router(router, Taken { attention: KIGO_NO_ATTENTION, ..taken }, words.router, mixture.number)?;
        let taken = Taken { take: KIGO_TAKE_ROUTE, norm: l.ffn_norm, attention, ..Taken::words(words.router) };
        self.experts(gate, taken, up, mixture)?;
        let taken = Taken { take: KIGO_TAKE_EXPERTS, ..Taken::words(words.ff) };
        let kind = if self.is_apart(layer) { KIGO_STAGE_VALUES } else { KIGO_STAGE_MIXED };
        let given = Given { kind, out: words.ffn, bias: down };
        self.experts(&l.ffn_down, taken, given, mixture)
    }

    /// Whether what the experts of a layer give is handed on one by one: where blocks have fewer tiles then.
    fn is_apart(&self, layer: usize) -> bool {
        let (desc, product) = (&self.b.desc, &self.b.places.layers[layer].ffn_down);
        let (n_used, n_tiles, n_blocks) = (most_vectors(desc) as u32, product.n_tiles as u32, self.n_blocks);
        let (_, is_shared) = slices(product.n_records as u32, n_used);
        let mixed = n_tiles.div_ceil(n_blocks) * if is_shared { n_used / 2 } else { n_used };
        let apart = 2 * (n_used * n_tiles / 2).div_ceil(n_blocks);
        n_used > 1 && fits_apart(desc) && n_tiles.is_multiple_of(2) && apart < mixed
    }

    /// Where the memory of the router starts, behind what is in use meanwhile: operands, or what is normed before it is added.
    fn router_at(&self) -> u32 {
        let normed = if self.b.desc.post_norm { stride(self.b.desc.n_embd) as u32 * 4 } else { 0 };
        (self.columns_beside * 128).max(normed).next_multiple_of(LINE)
    }

    /// Adds the router, whose slices of tiles are one block's each; `None` where the kernel cannot compute it.
    fn router(&mut self, router: &Product, taken: Taken, out: u64, mixture: u32) -> Option<()> {
        let given = Given { kind: KIGO_STAGE_ROUTER, out, bias: [None; 2] };
        let stage = KigoStage { n_items: router.n_tiles as u32 * SLICES, mixture, ..self.stage(router, taken, given) };
        if router.quant != QuantType::F32 || stage.n_items > self.n_blocks {
            return None;
        }
        self.router = self.router.max(ROUTER_BYTES + stage.n_records.div_ceil(SLICES) * ROUTER_RECORD);
        self.push(stage);
        Some(())
    }
}

/// Whether it pays that blocks multiply two tiles at a time: unless some get more of them then.
fn pays(n_tiles: u32, n_blocks: u32) -> bool {
    let (alone, pairs) = (n_tiles.div_ceil(n_blocks), (n_tiles / 2).div_ceil(n_blocks));
    n_tiles.is_multiple_of(2) && 2 * pairs <= alone + alone / 8
}

/// Slices of a tile that have records, and whether warps take two experts at a time with them.
fn slices(n_records: u32, n_used: u32) -> (u32, bool) {
    let n_slices = SLICES.min(n_records.div_ceil(n_records.div_ceil(SLICES)));
    (n_slices, 2 * n_slices <= SLICES && n_used.is_multiple_of(2))
}

/// Units of 64 columns in a record.
fn record_units(quant: QuantType) -> u32 {
    (super::layout::record_columns(quant) / 64) as u32
}

impl Step {
    /// Makes what the kernel needs to run the model; `None` where it cannot.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`, `DeviceError`.
    pub fn new(b: &CudaBackend, path: DecodePath) -> Result<Option<Step>> {
        let (desc, card) = (&b.desc, &b.kernels.card);
        let wanted = match path {
            DecodePath::Auto => layer_bytes(b) >= FEWEST_LAYER_BYTES,
            DecodePath::Step => true,
            DecodePath::Stages => false,
        };
        let is_wide = b.kernels.head_width > MOST_TEAM_WIDTH;
        let wanted_positions = if path == DecodePath::Auto && is_wide { WIDE_POSITIONS } else { usize::MAX };
        if !wanted || !fits(desc) || !card.crowds {
            return Ok(None);
        }
        let memory = DeviceBuffer::new(&b.context, Purpose::Workspace, bytes(desc)?, "the workspace")?;
        memory.fill_u8(&b.stream, 0)?;
        let Some(listing) = list(b, &memory)? else { return Ok(None) };
        let n_layer = desc.n_layer();
        let mut launches = [None; MOST_ROWS];
        // For several rows there is no code for pairs.
        let fastest = if path == DecodePath::Auto { FAST_ROWS } else { MOST_ROWS };
        let most = if listing.has_pairs { 1 } else { most_rows(desc).min(fastest) };
        for (launch, n_rows) in launches.iter_mut().zip(1..=most as u32) {
            *launch = shared(desc, card, &listing, b.kernels.head_width, n_rows)
                .map(|shared| Shared { n_positions: shared.n_positions.min(wanted_positions), ..shared });
        }
        if launches[0].is_none() {
            return Ok(None);
        }
        let stages_at = memory.address() + NUMBER_BYTES as u64;
        let attentions_at = stages_at + size_of_val(listing.stages.as_slice()) as u64;
        let mut lists = try_vec(
            size_of_val(listing.stages.as_slice()) + n_layer * size_of::<KigoStageAttention>(),
            "the stages of a step",
        )?;
        listing.stages.iter().for_each(|stage| lists.extend_from_slice(bytes_of(stage)));
        for layer in 0..n_layer {
            let words = words_of(b, &memory, layer);
            let attention = KigoStageAttention {
                attention: attention::params(b, layer, 1),
                heads: stages::heads(b, layer),
                input: words.qkv,
                out: words.mix,
            };
            lists.extend_from_slice(bytes_of(&attention));
        }
        memory.upload(&b.stream, NUMBER_BYTES, &lists)?;
        // No word is there.
        let words = memory.len() - words_bytes(desc);
        memory.fill_part_u8(&b.stream, words..memory.len(), 0xFF)?;
        let name = match (desc.experts, listing.has_pairs) {
            (Some(_), _) => "step_experts",
            (None, true) => "step_pairs",
            (None, false) => "step",
        };
        let module = Module::load(&b.context, embedded("step")?)?;
        let kernel_of = |name, besides| -> Result<Function> {
            let kernel = module.function(name)?;
            kernel.set_max_shared_bytes(card.block_shared.saturating_sub(besides))?;
            Ok(kernel)
        };
        let one = kernel_of(name, KIGO_STEP_STATIC)?;
        let has_many = launches[1..].iter().any(Option::is_some);
        let many = if has_many { Some(kernel_of("step_rows", KIGO_STEP_ROWS_STATIC)?) } else { None };
        let partials_stride = partial_bytes(desc, b.kernels.head_width);
        let params = KigoStep {
            stages: stages_at,
            attentions: attentions_at,
            number: memory.address(),
            rows: b.work.rows.address(),
            x: b.work.x.address(),
            logits: b.work.logits.address(),
            partials: memory.address() + (words - most_rows(desc) * partials_stride) as u64,
            n_stages: listing.stages.len() as u32,
            stride: stride(desc.n_embd) as u32,
            n_slots: 0,
            slot_bytes: listing.slot,
            under_way: (UNDER_WAY / listing.slot).max(WARPS),
            most_ahead: if layer_bytes(b) >= FEWEST_BYTES_AHEAD { MOST_AHEAD } else { 0 },
            pace: listing.slot * PACE.0 / PACE.1,
            delay: 0,
            set_bytes: set_bytes(desc) as u32,
            router_at: listing.router_at(),
            n_rows: 0,
            partials_stride: partials_stride as u32,
            operands_stride: 0,
            sums_at: 0,
        };
        Ok(Some(Step { one, many, launches, memory, params, n_blocks: card.n_sm }))
    }

    /// Lets every warp sleep up to so many nanoseconds in every stage.
    pub fn set_delay(&mut self, nanoseconds: u32) {
        self.params.delay = nanoseconds;
    }

    /// Whether it runs steps of so many sequences, none of them beyond this position.
    pub fn takes(&self, n_rows: usize, position: u32) -> bool {
        self.shared(n_rows).is_some_and(|shared| (position as usize) < shared.n_positions)
    }

    fn shared(&self, n_rows: usize) -> Option<&Shared> {
        self.launches.get(n_rows.wrapping_sub(1))?.as_ref()
    }

    /// Where the rows' numbers of steps are, which `embed` raises.
    pub fn number(&self) -> u64 {
        self.memory.address()
    }

    /// Queues the step of so many rows, which it takes; `logits` `[n_rows][n_vocab]` are written.
    ///
    /// # Errors
    /// `DeviceLost`, `DeviceError`.
    pub fn launch(&self, stream: &Stream, n_rows: usize, logits: u64) -> Result<()> {
        let kernel = if n_rows == 1 { Some(&self.one) } else { self.many.as_ref() };
        let (Some(kernel), Some(shared)) = (kernel, self.shared(n_rows)) else {
            return Err(Error::Internal(format!("no step of {n_rows} rows")));
        };
        let launch = Launch {
            grid: [self.n_blocks, 1, 1],
            block: [KIGO_STEP_THREADS, 1, 1],
            shared_bytes: shared.bytes,
            order: Order::Cooperative,
        };
        let params = KigoStep {
            logits,
            n_rows: n_rows as u32,
            n_slots: shared.n_slots,
            operands_stride: shared.operands_stride,
            sums_at: shared.sums_at,
            ..self.params
        };
        stream.launch(kernel, launch, &params)
    }
}

/// Where the words of a layer are in the first set: of q, k and v, the mix, what attention adds, the router, the gated values, what
/// they add.
fn words_of(b: &CudaBackend, memory: &DeviceBuffer, layer: usize) -> LayerWords {
    let words = Words::new(&b.desc);
    let set = memory.address() + (memory.len() - words_bytes(&b.desc)) as u64;
    let at = |offset: usize| set + (layer * words.bytes + offset) as u64;
    LayerWords {
        qkv: at(words.qkv),
        mix: at(words.mix),
        attn: at(words.attn),
        router: at(words.router),
        ff: at(words.ff),
        ffn: at(words.ffn),
    }
}

/// The stages of all layers and the head; `None` where some cannot be run.
fn list<'a>(b: &'a CudaBackend, memory: &DeviceBuffer) -> Result<Option<Listing<'a>>> {
    let desc = &b.desc;
    let mut listing = Listing {
        b,
        stages: try_vec(desc.n_layer() * STAGES_OF_LAYER + 1, "the stages of a step")?,
        n_blocks: b.kernels.card.n_sm,
        next_block: 0,
        has_pairs: false,
        slot: 0,
        columns: 0,
        columns_beside: 0,
        router: 0,
    };
    let mut before = Added { words: 0, n_used: 1, post_norm: None, scale: 1.0 };
    for layer in 0..desc.n_layer() {
        let words = words_of(b, memory, layer);
        if listing.layer(layer, words, before).is_none() {
            return Ok(None);
        }
        let post_norm = b.places.layers[layer].ffn_post_norm;
        // Of experts the sum comes with it.
        let has_scale = desc.experts.is_some() && post_norm.is_none();
        let n_used = if listing.is_apart(layer) { most_vectors(desc) as u32 } else { 1 };
        before =
            Added { words: words.ffn, n_used, post_norm, scale: if has_scale { 1.0 } else { desc.residual_scale } };
    }
    let taken = Taken {
        take: KIGO_TAKE_RESIDUAL,
        input: before.words,
        post_norm: before.post_norm,
        scale: before.scale,
        norm: Some(b.places.output_norm),
        attention: KIGO_NO_ATTENTION,
        n_used: before.n_used,
    };
    let given = Given { kind: KIGO_STAGE_LOGITS, out: 0, bias: [None; 2] };
    listing.product(&b.places.output, taken, given);
    // Kernels for mixtures have no code for pairs.
    Ok((desc.experts.is_none() || !listing.has_pairs).then_some(listing))
}

/// The shared memory of so many rows; `None` where there is too little, or too few blocks to attend with all of them.
fn shared(desc: &ModelDesc, card: &Card, listing: &Listing, head_width: usize, n_rows: u32) -> Option<Shared> {
    let is_one = n_rows == 1;
    let (besides, sums) = if is_one { (KIGO_STEP_STATIC, 0) } else { (KIGO_STEP_ROWS_STATIC, n_rows * SUMS_OF_ROW) };
    // The operands of two rows lie in different banks.
    let operands_stride = listing.columns * 128 + 64;
    let columns = if is_one { listing.columns * 128 } else { n_rows * operands_stride };
    let heads = (desc.n_head / desc.n_head_kv).min(HEADS_OF_BLOCK);
    // `AttentionScratch` and the mixes of pages, see kernels/step_attention.cuh.
    let mixes = KIGO_STEP_PAGES_AT_ONCE as usize * heads * OWN * 4;
    let attention = 36 * head_width + KIGO_STEP_ATTENTION as usize + mixes;
    let row = stride(desc.n_embd) as u32 * 4;
    let router = if listing.router > 0 { listing.router_at() + listing.router } else { 0 };
    let sums_at = columns.max(attention as u32).max(row).max(router).next_multiple_of(LINE);
    let scratch = n_rows * row + sums_at + sums;
    let rings = card.block_shared.checked_sub(besides + scratch)?;
    let n_slots = (rings / (WARPS * listing.slot)).min(KIGO_STEP_SLOTS);
    let bytes = n_slots * WARPS * listing.slot + scratch;
    let n_positions = most_positions(desc, head_width, card.n_sm / n_rows);
    let fits = n_slots >= FEWEST_SLOTS && n_positions > 0;
    fits.then_some(Shared { n_slots, bytes, operands_stride, sums_at, n_positions })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_tiles_where_no_block_gets_more() {
        // The attention output and the rows of q, k and v of a Llama of 8B, and the output of one of 1B, on 132 multiprocessors.
        assert!(pays(256, 132));
        assert!(!pays(384, 132));
        assert!(pays(8016, 132));
        assert!(!pays(128, 132), "half of the blocks would have none");
        assert!(!pays(257, 132), "one tile would be alone");
    }
}
