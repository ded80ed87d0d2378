//! A step of a single sequence as one kernel, `kernels/step.cu`, from the residual stream of the embedding to the logits.
//!
//! Its results have the same bits as those of the kernels of `stages.rs`, so that a sequence may go from one to the other. It
//! runs where all blocks fit on the card at the same time and exchange vectors through L2: from sm_90 on. Models that it
//! cannot run, and long contexts, whose attention it does not spread over blocks, go the way of larger batches.

use super::CudaBackend;
use super::attention;
use super::blocks::Card;
use super::kv_cache;
use super::layout::{Gate, LayerPlaces, NormPlace, Product, TILE_ROWS, WARPS, record_bytes, stride};
use super::memory::DeviceBuffer;
use super::module::{Function, Module, embedded};
use super::params::{
    KIGO_GELU, KIGO_NO_ATTENTION, KIGO_SILU, KIGO_SILU_CLAMPED, KIGO_STAGE_ATTENTION, KIGO_STAGE_GATED,
    KIGO_STAGE_LOGITS, KIGO_STAGE_UNGATED, KIGO_STAGE_VALUES, KIGO_STEP_ATTENTION, KIGO_STEP_MOST_COLUMNS,
    KIGO_STEP_OWN, KIGO_STEP_PAGES, KIGO_STEP_PAGES_AT_ONCE, KIGO_STEP_SLOTS, KIGO_STEP_STATIC, KIGO_STEP_THREADS,
    KIGO_TAKE_RESIDUAL, KIGO_TAKE_SAME, KIGO_TAKE_WORDS, KIGO_TYPE_F16, KIGO_TYPE_IQ4_NL, KIGO_TYPE_IQ4_XS,
    KIGO_TYPE_MXFP4, KIGO_TYPE_Q2_K, KIGO_TYPE_Q3_K, KIGO_TYPE_Q4_0, KIGO_TYPE_Q4_1, KIGO_TYPE_Q4_K, KIGO_TYPE_Q5_0,
    KIGO_TYPE_Q5_1, KIGO_TYPE_Q5_K, KIGO_TYPE_Q6_K, KIGO_TYPE_Q8_0, KigoStage, KigoStageAttention, KigoStep, bytes_of,
};
use super::stages;
use super::stream::{Launch, Order, Stream};
use crate::Result;
use crate::backend::{DecodePath, Purpose};
use crate::error::try_vec;
use crate::model::{Activation, ModelDesc, Norm, QkNorm};
use crate::quant::QuantType;

/// Bytes of the weights of a layer from which on it is faster than the kernels of larger batches: with the 10 MB of a Qwen2 of 0.5B
/// in `Q4_K_M` a token takes 8 % less on an H200, with those of Llamas of 1B and 8B 4 to 19 %. Smaller layers have not been measured
/// since it gained that.
const FEWEST_LAYER_BYTES: u64 = 8 << 20;
/// Positions up to which it is faster than the kernels of larger batches, which spread the attention of a row over blocks.
const MOST_POSITIONS: usize = 1024;
const _: () = assert!(MOST_POSITIONS.div_ceil(kv_cache::PAGE) < KIGO_STEP_PAGES as usize);
/// Widest heads that its registers hold.
const MOST_HEAD_WIDTH: usize = 128;
/// Bytes under way to a multiprocessor: with 48 KiB a Llama of 8B takes 2 % longer in f16 on an H200 and 18 % in `Q4_K_M`.
const UNDER_WAY: u32 = 64 << 10;
/// What records in a ring start at a multiple of: `kLine` of `kernels/common.cuh`.
const LINE: u32 = 128;
/// Bytes that are copied at a time, at most where a record is not larger: fewer keep those busy who copy, with 4 KiB whole
/// tokens of f16 took 6 % longer.
const PIECE: u32 = 2432;
/// Pieces of a warp that are sent for to L2 while its ring is full, from so many bytes of a layer on: a Llama of 8B takes 1 to 2 %
/// less so on an H200, smaller layers come too early: a Qwen2 of 0.5B in `Q4_K_M` takes 5 % longer, a Llama of 1B 1 %.
const MOST_AHEAD: u32 = 16;
const FEWEST_BYTES_AHEAD: u64 = 64 << 20;
/// Clocks for each byte between them: on an H200 3/4 make a Llama of 8B in f16 0.4 % slower; on an H100 1/4 made one of 1B 8 %
/// slower than 3/4.
const PACE: (u32, u32) = (1, 2);
/// Slots that a ring must have.
const FEWEST_SLOTS: u32 = 3;
/// Heads that a block attends to at a time.
const HEADS_OF_BLOCK: usize = 8;
/// Stages of a layer at most: q, k and v apart, attention, its output, gate and up, down.
const STAGES_OF_LAYER: usize = 7;
/// Sets of words, which steps use in turn: see kernels/step_words.cuh.
const WORD_SETS: usize = 2;
/// Bytes of the number of the step, and of the hole behind it.
const NUMBER_BYTES: usize = 256;

/// The kernel, and what it reads.
pub struct Step {
    kernel: Function,
    /// The number, stages, attentions, words.
    memory: DeviceBuffer,
    params: KigoStep,
    n_blocks: u32,
    shared_bytes: u32,
}

/// Words of a layer, and where they start: offsets in bytes from the layer's first.
#[derive(Debug, Clone, Copy)]
struct Words {
    qkv: usize,
    mix: usize,
    attn: usize,
    ff: usize,
    ffn: usize,
    bytes: usize,
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
        let ff = next(desc.n_ff);
        let ffn = next(desc.n_embd);
        Words { qkv, mix, attn, ff, ffn, bytes: end }
    }
}

/// Whether the kernel can run a model of this shape.
fn fits(desc: &ModelDesc) -> bool {
    desc.experts.is_none()
        && desc.norm == Norm::Rms
        && desc.qk_norm != Some(QkNorm::Row)
        && kv_cache::head_width(desc).is_ok_and(|width| width <= MOST_HEAD_WIDTH)
        && [desc.n_embd, desc.n_embd_q(), desc.n_ff].iter().all(|width| width.is_multiple_of(4))
        && desc.n_embd_q().max(desc.n_ff) <= KIGO_STEP_MOST_COLUMNS as usize
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
    Ok(NUMBER_BYTES + (stages + attentions).next_multiple_of(LINE as usize) + WORD_SETS * set_bytes(desc))
}

/// Bytes of the words of a step.
fn set_bytes(desc: &ModelDesc) -> usize {
    desc.n_layer() * Words::new(desc).bytes
}

/// Bytes of the weights of the smallest layer.
fn layer_bytes(b: &CudaBackend) -> u64 {
    let bytes = |layer: &LayerPlaces| -> u64 {
        products(layer)
            .map(|product| product.n_tiles as u64 * product.n_records as u64 * record_bytes(product.quant))
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

/// What the kernel calls a type; `None` for those that it cannot multiply with.
fn type_number(quant: QuantType) -> Option<u32> {
    Some(match quant {
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
        QuantType::F32 | QuantType::BF16 => return None,
    })
}

/// The list of stages while it is being made.
struct Listing<'a> {
    b: &'a CudaBackend,
    stages: Vec<KigoStage>,
    n_blocks: u32,
    /// Who takes the next stage's first item, so that all get equally much.
    next_block: u32,
    /// Bytes of the widest slot and of the widest activations as operands.
    slot: u32,
    columns: u32,
}

/// What a product takes.
#[derive(Clone, Copy)]
struct Taken {
    take: u32,
    input: u64,
    post_norm: Option<u64>,
    norm: Option<NormPlace>,
    /// The attention of the next layer.
    attention: u32,
}

/// What becomes of it.
#[derive(Clone, Copy)]
struct Given {
    kind: u32,
    out: u64,
    bias: [Option<u64>; 2],
}

impl Listing<'_> {
    /// Adds a product; `None` where the kernel cannot compute it.
    fn product(&mut self, product: &Product, taken: Taken, given: Given) -> Option<()> {
        let (b, d) = (self.b, &self.b.desc);
        let at = |offset: Option<u64>| offset.map_or(0, |offset| b.weights.address() + offset);
        let record = record_bytes(product.quant) as u32;
        let n_tiles = product.n_tiles as u32;
        let per_item = if given.kind == KIGO_STAGE_GATED || pays(n_tiles, self.n_blocks) { 2 } else { 1 };
        let n_items = n_tiles / per_item;
        let n_records = product.n_records as u32;
        self.stages.push(KigoStage {
            weights: b.weights.address() + product.offset,
            input: taken.input,
            post_norm: at(taken.post_norm),
            norm_weight: at(taken.norm.map(|norm| norm.weight)),
            out: given.out,
            bias: given.bias.map(at),
            kind: given.kind,
            take: taken.take,
            quant: type_number(product.quant)?,
            weight_scale: product.weight_scale,
            n_rows: product.n_rows as u32,
            n_records,
            record_bytes: record,
            per_item,
            n_items,
            first_block: self.next_block,
            k: product.k as u32,
            stride: stride(product.k) as u32,
            activation: match d.activation {
                Activation::Silu => KIGO_SILU,
                Activation::Gelu | Activation::GeluUngated => KIGO_GELU,
                Activation::SiluClamped => KIGO_SILU_CLAMPED,
            },
            residual_scale: d.residual_scale,
            eps: d.norm_eps,
            scale: d.logit_scale,
            softcap: d.logit_softcap.unwrap_or(0.0),
            attention: taken.attention,
        });
        self.next_block = (self.next_block + n_items) % self.n_blocks;
        let piece = (PIECE / record).max(1) * record;
        self.slot = self.slot.max(piece.next_multiple_of(LINE));
        self.columns = self.columns.max(n_records * record_units(product.quant));
        Some(())
    }

    /// Adds the stages of a layer; `before` are the words that the layer before adds to the residual stream.
    fn layer(&mut self, layer: usize, words: [u64; 5], before: (u64, Option<u64>)) -> Option<()> {
        let b = self.b;
        let l = &b.places.layers[layer];
        let [qkv, mix, attn, ff, ffn] = words;
        let residual = |input: u64, post_norm, norm| Taken {
            take: KIGO_TAKE_RESIDUAL,
            input,
            post_norm,
            norm,
            attention: KIGO_NO_ATTENTION,
        };
        let vector = |input: u64| Taken {
            take: KIGO_TAKE_WORDS,
            input,
            post_norm: None,
            norm: None,
            attention: KIGO_NO_ATTENTION,
        };
        let mut taken = residual(before.0, before.1, l.attn_norm);
        for product in &l.attn_qkv {
            let out = qkv + (product.first_tile * TILE_ROWS * 4) as u64;
            self.product(product, taken, Given { kind: KIGO_STAGE_VALUES, out, bias: [None; 2] })?;
            taken.take = KIGO_TAKE_SAME;
        }
        let mut attention = *self.stages.last()?;
        (attention.kind, attention.take) = (KIGO_STAGE_ATTENTION, KIGO_TAKE_SAME);
        self.stages.push(attention);
        let given = Given { kind: KIGO_STAGE_VALUES, out: attn, bias: [l.attn_output_bias, None] };
        self.product(&l.attn_output, vector(mix), given)?;
        let next = layer + 1;
        let attention = if next < b.desc.n_layer() { next as u32 } else { KIGO_NO_ATTENTION };
        let taken = Taken { attention, ..residual(attn, l.attn_post_norm, l.ffn_norm) };
        match &l.ffn_gate {
            Gate::Joint(product) => {
                self.product(product, taken, Given { kind: KIGO_STAGE_GATED, out: ff, bias: l.ffn_gate_bias })?;
            }
            Gate::None(product) => {
                let bias = [l.ffn_gate_bias[1], None];
                self.product(product, taken, Given { kind: KIGO_STAGE_UNGATED, out: ff, bias })?;
            }
            Gate::Apart { .. } => return None,
        }
        let given = Given { kind: KIGO_STAGE_VALUES, out: ffn, bias: [l.ffn_down_bias, None] };
        self.product(&l.ffn_down, vector(ff), given)
    }
}

/// Whether it pays that blocks multiply two tiles at a time: unless some get more of them then.
fn pays(n_tiles: u32, n_blocks: u32) -> bool {
    let (alone, pairs) = (n_tiles.div_ceil(n_blocks), (n_tiles / 2).div_ceil(n_blocks));
    n_tiles.is_multiple_of(2) && 2 * pairs <= alone + alone / 8
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
        if !wanted || !fits(desc) || !card.crowds {
            return Ok(None);
        }
        let memory = DeviceBuffer::new(&b.context, Purpose::Workspace, bytes(desc)?, "the workspace")?;
        memory.fill_u8(&b.stream, 0)?;
        let Some(listing) = list(b, &memory)? else { return Ok(None) };
        let n_layer = desc.n_layer();
        let Some((n_slots, shared_bytes)) = shared(desc, card, &listing, b.kernels.head_width) else {
            return Ok(None);
        };
        let stages_at = memory.address() + NUMBER_BYTES as u64;
        let attentions_at = stages_at + size_of_val(listing.stages.as_slice()) as u64;
        let mut lists = try_vec(
            size_of_val(listing.stages.as_slice()) + n_layer * size_of::<KigoStageAttention>(),
            "the stages of a step",
        )?;
        listing.stages.iter().for_each(|stage| lists.extend_from_slice(bytes_of(stage)));
        for layer in 0..n_layer {
            let [qkv, mix, ..] = words_of(b, &memory, layer);
            let attention = KigoStageAttention {
                attention: attention::params(b, layer, 1),
                heads: stages::heads(b, layer),
                input: qkv,
                out: mix,
            };
            lists.extend_from_slice(bytes_of(&attention));
        }
        memory.upload(&b.stream, NUMBER_BYTES, &lists)?;
        // No word is there.
        memory.fill_part_u8(&b.stream, memory.len() - WORD_SETS * set_bytes(desc)..memory.len(), 0xFF)?;
        let kernel = Module::load(&b.context, embedded("step")?)?.function("step")?;
        kernel.set_max_shared_bytes(card.block_shared.saturating_sub(KIGO_STEP_STATIC))?;
        let params = KigoStep {
            stages: stages_at,
            attentions: attentions_at,
            number: memory.address(),
            rows: b.work.rows.address(),
            x: b.work.x.address(),
            logits: b.work.logits.address(),
            n_stages: listing.stages.len() as u32,
            stride: stride(desc.n_embd) as u32,
            n_slots,
            slot_bytes: listing.slot,
            under_way: (UNDER_WAY / listing.slot).max(WARPS),
            most_ahead: if layer_bytes(b) >= FEWEST_BYTES_AHEAD { MOST_AHEAD } else { 0 },
            pace: listing.slot * PACE.0 / PACE.1,
            delay: 0,
            set_bytes: set_bytes(desc) as u32,
            pad: 0,
        };
        Ok(Some(Step { kernel, memory, params, n_blocks: card.n_sm, shared_bytes }))
    }

    /// Lets every warp sleep up to so many nanoseconds in every stage.
    pub fn set_delay(&mut self, nanoseconds: u32) {
        self.params.delay = nanoseconds;
    }

    /// Whether it runs steps at this position.
    pub fn takes(&self, position: u32) -> bool {
        (position as usize) < MOST_POSITIONS
    }

    /// Where the number of the step is, which `embed` raises.
    pub fn number(&self) -> u64 {
        self.memory.address()
    }

    /// Queues the step; `logits` `[n_vocab]` are written.
    ///
    /// # Errors
    /// `DeviceLost`, `DeviceError`.
    pub fn launch(&self, stream: &Stream, logits: u64) -> Result<()> {
        let launch = Launch {
            grid: [self.n_blocks, 1, 1],
            block: [KIGO_STEP_THREADS, 1, 1],
            shared_bytes: self.shared_bytes,
            order: Order::Cooperative,
        };
        stream.launch(&self.kernel, launch, &KigoStep { logits, ..self.params })
    }
}

/// Where the words of a layer are in the first set: of q, k and v, the mix, what attention adds, the gated values, what they add.
fn words_of(b: &CudaBackend, memory: &DeviceBuffer, layer: usize) -> [u64; 5] {
    let words = Words::new(&b.desc);
    let set = memory.address() + (memory.len() - WORD_SETS * set_bytes(&b.desc)) as u64;
    let first = set + (layer * words.bytes) as u64;
    [words.qkv, words.mix, words.attn, words.ff, words.ffn].map(|offset| first + offset as u64)
}

/// The stages of all layers and the head; `None` where some cannot be run.
fn list<'a>(b: &'a CudaBackend, memory: &DeviceBuffer) -> Result<Option<Listing<'a>>> {
    let desc = &b.desc;
    let mut listing = Listing {
        b,
        stages: try_vec(desc.n_layer() * STAGES_OF_LAYER + 1, "the stages of a step")?,
        n_blocks: b.kernels.card.n_sm,
        next_block: 0,
        slot: 0,
        columns: 0,
    };
    let mut before = (0, None);
    for layer in 0..desc.n_layer() {
        let words = words_of(b, memory, layer);
        if listing.layer(layer, words, before).is_none() {
            return Ok(None);
        }
        before = (words[4], b.places.layers[layer].ffn_post_norm);
    }
    let (input, post_norm) = before;
    let taken = Taken {
        take: KIGO_TAKE_RESIDUAL,
        input,
        post_norm,
        norm: Some(b.places.output_norm),
        attention: KIGO_NO_ATTENTION,
    };
    let given = Given { kind: KIGO_STAGE_LOGITS, out: 0, bias: [None; 2] };
    Ok(listing.product(&b.places.output, taken, given).map(|()| listing))
}

/// Slots of a ring, and bytes of shared memory; `None` where there is too little.
fn shared(desc: &ModelDesc, card: &Card, listing: &Listing, head_width: usize) -> Option<(u32, u32)> {
    let columns = listing.columns * 128;
    let heads = (desc.n_head / desc.n_head_kv).min(HEADS_OF_BLOCK);
    // `AttentionScratch` and the mixes of pages, see kernels/step_attention.cuh.
    let attention =
        36 * head_width + (KIGO_STEP_ATTENTION + KIGO_STEP_PAGES_AT_ONCE * KIGO_STEP_OWN * 4 * heads as u32) as usize;
    let row = stride(desc.n_embd) as u32 * 4;
    let scratch = columns.max(attention as u32).max(row).next_multiple_of(LINE);
    let rings = card.block_shared.checked_sub(KIGO_STEP_STATIC + row + scratch)?;
    let n_slots = (rings / (WARPS * listing.slot)).min(KIGO_STEP_SLOTS);
    let shared_bytes = n_slots * WARPS * listing.slot + row + scratch;
    (n_slots >= FEWEST_SLOTS).then_some((n_slots, shared_bytes))
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
