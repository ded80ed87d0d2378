//! The list of a step's stages, which says the kernel what each takes, multiplies with and gives, and the words that they exchange.

use super::super::CudaBackend;
use super::super::layout::{
    Gate, NormPlace, Product, TILE_ROWS, UNIT, record_bytes, record_columns, stride, wants_bf16,
};
use super::super::memory::DeviceBuffer;
use super::super::params::{
    KIGO_GELU, KIGO_NO_ATTENTION, KIGO_SILU, KIGO_SILU_CLAMPED, KIGO_STAGE_ATTENTION, KIGO_STAGE_GATED,
    KIGO_STAGE_LOGITS, KIGO_STAGE_MIXED, KIGO_STAGE_ROUTER, KIGO_STAGE_UNGATED, KIGO_STAGE_VALUES, KIGO_STEP_APART,
    KIGO_STEP_EXPERTS, KIGO_TAKE_EXPERTS, KIGO_TAKE_RESIDUAL, KIGO_TAKE_ROUTE, KIGO_TAKE_SAME, KIGO_TAKE_WORDS,
    KIGO_TYPE_BF16, KIGO_TYPE_F16, KIGO_TYPE_F32, KIGO_TYPE_IQ4_NL, KIGO_TYPE_IQ4_XS, KIGO_TYPE_MXFP4, KIGO_TYPE_Q2_K,
    KIGO_TYPE_Q3_K, KIGO_TYPE_Q4_0, KIGO_TYPE_Q4_1, KIGO_TYPE_Q4_K, KIGO_TYPE_Q5_0, KIGO_TYPE_Q5_1, KIGO_TYPE_Q5_K,
    KIGO_TYPE_Q6_K, KIGO_TYPE_Q8_0, KigoStage,
};
use super::{LINE, SLICES, STAGES_OF_LAYER, words_bytes};
use crate::Result;
use crate::error::try_vec;
use crate::model::{Activation, ModelDesc};
use crate::quant::QuantType;

/// Bytes that are copied at a time, at most where a record is not larger: fewer keep those busy who copy, with 4 KiB whole
/// tokens of f16 took 6 % longer.
const PIECE: u32 = 2432;
/// Bytes of the order and logits of experts, and of weights and activations of a record of the router: `RouterMemory` of
/// `kernels/step_experts.cuh`.
const ROUTER_BYTES: u32 = KIGO_STEP_EXPERTS * 8;
const ROUTER_RECORD: u32 = 4096 + 256;
/// Columns of what a block adds up of experts: what its threads hold in `take_residual` of `kernels/step.cu`.
const COLUMNS_APART: usize = 4096;

/// Words of a layer, and where they start: offsets in bytes from the layer's first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words {
    qkv: usize,
    mix: usize,
    mix_halves: usize,
    attn: usize,
    router: usize,
    ff: usize,
    ff_halves: usize,
    ffn: usize,
    pub bytes: usize,
}

/// Addresses of the words of a layer, in the first set.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerWords {
    pub qkv: u64,
    pub mix: u64,
    pub mix_halves: u64,
    attn: u64,
    router: u64,
    ff: u64,
    ff_halves: u64,
    ffn: u64,
}

impl Words {
    pub fn new(desc: &ModelDesc) -> Words {
        let mut end = 0;
        let mut next = |n: usize| {
            let start = end;
            end += (n * 4).next_multiple_of(LINE as usize);
            start
        };
        let n_heads = desc.n_head + 2 * desc.n_head_kv;
        let qkv = next(n_heads * desc.head_dim.next_multiple_of(TILE_ROWS));
        let mix = next(desc.n_embd_q());
        let mix_halves = next(desc.n_embd_q().div_ceil(2));
        let attn = next(desc.n_embd);
        let router =
            next(desc.experts.map_or(0, |experts| experts.n_expert.next_multiple_of(TILE_ROWS)) * SLICES as usize);
        let ff = next(desc.experts.map_or(desc.n_ff, |experts| experts.n_expert_used * stride(desc.n_ff)));
        let ff_halves = next(if desc.experts.is_some() { 0 } else { desc.n_ff.div_ceil(2) });
        let ffn = next(if fits_apart(desc) { most_vectors(desc) * stride(desc.n_embd) } else { desc.n_embd });
        Words { qkv, mix, mix_halves, attn, router, ff, ff_halves, ffn, bytes: end }
    }
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
pub(super) struct Listing<'a> {
    b: &'a CudaBackend,
    pub stages: Vec<KigoStage>,
    n_blocks: u32,
    /// Who takes the next stage's first item, so that all get equally much.
    next_block: u32,
    /// Whether some products are of pairs of bfloat16; of weights with scales.
    pub has_pairs: bool,
    pub has_scales: bool,
    /// Bytes of the widest slot, and units of halves of the widest activations as operands.
    pub slot: u32,
    pub columns: u32,
    /// Units of the widest activations that are there before the router is done, and bytes of what it needs.
    columns_beside: u32,
    pub router: u32,
}

/// What a product takes.
#[derive(Clone, Copy)]
struct Taken {
    take: u32,
    input: u64,
    /// The same as halves, or 0.
    halves: u64,
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
    fn words(input: u64, halves: u64) -> Taken {
        Taken {
            take: KIGO_TAKE_WORDS,
            input,
            halves,
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
    /// Where it is handed on as halves too, or 0.
    halves: u64,
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
            input_halves: taken.halves,
            out_halves: given.halves,
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
        let is_pair = wants_bf16(product.quant);
        let units = (1 + u32::from(is_pair)) * product.n_records as u32 * record_units(product.quant);
        self.has_pairs |= is_pair;
        self.has_scales |= product.quant.block_len() > 1;
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
            halves: 0,
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
            self.product(product, taken, Given { kind: KIGO_STAGE_VALUES, out, halves: 0, bias: [None; 2] });
            taken.take = KIGO_TAKE_SAME;
        }
        let mut attention = *self.stages.last()?;
        (attention.kind, attention.take, attention.attention) = (KIGO_STAGE_ATTENTION, KIGO_TAKE_SAME, layer as u32);
        self.stages.push(attention);
        let bias = [l.attn_output_bias, None];
        let given = Given { kind: KIGO_STAGE_VALUES, out: words.attn, halves: 0, bias };
        let mix_halves = if takes_mix_halves(b, layer) { words.mix_halves } else { 0 };
        self.product(&l.attn_output, Taken::words(words.mix, mix_halves), given);
        let next = layer + 1;
        let attention = if next < b.desc.n_layer() { next as u32 } else { KIGO_NO_ATTENTION };
        let attn = Added { words: words.attn, n_used: 1, post_norm: l.attn_post_norm, scale: b.desc.residual_scale };
        let taken = Taken { attention, ..residual(attn, l.ffn_norm) };
        let (gate, kind, bias) = match &l.ffn_gate {
            Gate::Joint(product) => (product, KIGO_STAGE_GATED, l.ffn_gate_bias),
            Gate::None(product) => (product, KIGO_STAGE_UNGATED, [l.ffn_gate_bias[1], None]),
            Gate::Apart { .. } => return None,
        };
        let down = [l.ffn_down_bias, None];
        let Some((router, router_bias)) = &l.ffn_gate_inp else {
            let halves = if takes_halves(&l.ffn_down) { words.ff_halves } else { 0 };
            self.product(gate, taken, Given { kind, out: words.ff, halves, bias });
            let given = Given { kind: KIGO_STAGE_VALUES, out: words.ffn, halves: 0, bias: down };
            self.product(&l.ffn_down, Taken::words(words.ff, halves), given);
            return Some(());
        };
        // What is normed later is not multiplied before.
        let scale = if l.ffn_post_norm.is_some() { 1.0 } else { b.desc.residual_scale };
        let mixture = Mixture { number: (layer + 1) as u32, router_bias: *router_bias, scale };
        self.router(router, Taken { attention: KIGO_NO_ATTENTION, ..taken }, words.router, mixture.number)?;
        let taken = Taken { take: KIGO_TAKE_ROUTE, norm: l.ffn_norm, attention, ..Taken::words(words.router, 0) };
        self.experts(gate, taken, Given { kind, out: words.ff, halves: 0, bias }, mixture)?;
        let taken = Taken { take: KIGO_TAKE_EXPERTS, ..Taken::words(words.ff, 0) };
        let kind = if self.is_apart(layer) { KIGO_STAGE_VALUES } else { KIGO_STAGE_MIXED };
        let given = Given { kind, out: words.ffn, halves: 0, bias: down };
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
    pub fn router_at(&self) -> u32 {
        let normed = if self.b.desc.post_norm { stride(self.b.desc.n_embd) as u32 * 4 } else { 0 };
        (self.columns_beside * 128).max(normed).next_multiple_of(LINE)
    }

    /// Adds the router, whose slices of tiles are one block's each; `None` where the kernel cannot compute it.
    fn router(&mut self, router: &Product, taken: Taken, out: u64, mixture: u32) -> Option<()> {
        let given = Given { kind: KIGO_STAGE_ROUTER, out, halves: 0, bias: [None; 2] };
        let stage = KigoStage { n_items: router.n_tiles as u32 * SLICES, mixture, ..self.stage(router, taken, given) };
        if router.quant != QuantType::F32 || stage.n_items > self.n_blocks {
            return None;
        }
        self.router = self.router.max(ROUTER_BYTES + stage.n_records.div_ceil(SLICES) * ROUTER_RECORD);
        self.push(stage);
        Some(())
    }
}

/// Whether a product takes its vector as words of halves: where whole units of halves are its operands.
fn takes_halves(product: &Product) -> bool {
    product.k.is_multiple_of(UNIT) && !wants_bf16(product.quant)
}

/// The same of the output of a layer's attention, whose heads have pairs of elements then.
pub(super) fn takes_mix_halves(b: &CudaBackend, layer: usize) -> bool {
    b.desc.head_dim.is_multiple_of(2) && takes_halves(&b.places.layers[layer].attn_output)
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

/// Units in a record.
fn record_units(quant: QuantType) -> u32 {
    (record_columns(quant) / UNIT) as u32
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

/// Where the words of a layer are in the first set: of q, k and v, the mix, what attention adds, the router, the gated values, what
/// they add.
pub(super) fn words_of(b: &CudaBackend, memory: &DeviceBuffer, layer: usize) -> LayerWords {
    let words = Words::new(&b.desc);
    let set = memory.address() + (memory.len() - words_bytes(&b.desc)) as u64;
    let at = |offset: usize| set + (layer * words.bytes + offset) as u64;
    LayerWords {
        qkv: at(words.qkv),
        mix: at(words.mix),
        mix_halves: at(words.mix_halves),
        attn: at(words.attn),
        router: at(words.router),
        ff: at(words.ff),
        ff_halves: at(words.ff_halves),
        ffn: at(words.ffn),
    }
}

/// The stages of all layers and the head; `None` where some cannot be run.
pub(super) fn list<'a>(b: &'a CudaBackend, memory: &DeviceBuffer) -> Result<Option<Listing<'a>>> {
    let desc = &b.desc;
    let mut listing = Listing {
        b,
        stages: try_vec(desc.n_layer() * STAGES_OF_LAYER + 1, "the stages of a step")?,
        n_blocks: b.kernels.card.n_sm,
        next_block: 0,
        has_pairs: false,
        has_scales: false,
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
        halves: 0,
        post_norm: before.post_norm,
        scale: before.scale,
        norm: Some(b.places.output_norm),
        attention: KIGO_NO_ATTENTION,
        n_used: before.n_used,
    };
    let given = Given { kind: KIGO_STAGE_LOGITS, out: 0, halves: 0, bias: [None; 2] };
    listing.product(&b.places.output, taken, given);
    // Kernels for mixtures have no code for pairs.
    Ok((desc.experts.is_none() || !listing.has_pairs).then_some(listing))
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
