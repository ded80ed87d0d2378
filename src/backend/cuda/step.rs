//! A step of a single sequence, or of some that decode together, as one kernel, `kernels/step.cu`, from the residual stream of the
//! embedding to the logits.
//!
//! Its results have the same bits as those of the kernels of `stages.rs`, so that a sequence may go from one to the other. It
//! runs where all blocks fit on the card at the same time and exchange vectors through L2: from sm_90 on. Models that it
//! cannot run, and contexts beyond what it reaches, go the way of larger batches.

mod list;

use super::CudaBackend;
use super::attention;
use super::blocks::Card;
use super::kv_cache;
use super::layout::{Gate, LayerPlaces, Product, TILE_ROWS, WARPS, record_bytes, stride};
use super::memory::DeviceBuffer;
use super::module::{Function, Module, embedded};
use super::params::{
    KIGO_STEP_ATTENTION, KIGO_STEP_EXPERTS, KIGO_STEP_MIX_TURNS, KIGO_STEP_MOST_COLUMNS, KIGO_STEP_PAGE_PIECE,
    KIGO_STEP_PAGES, KIGO_STEP_PAGES_AT_ONCE, KIGO_STEP_PAGES_ATTENTION, KIGO_STEP_PAGES_OF_ROUND, KIGO_STEP_PAGES_PAD,
    KIGO_STEP_ROWS, KIGO_STEP_ROWS_STATIC, KIGO_STEP_SLOTS, KIGO_STEP_STATIC, KIGO_STEP_THREADS, KigoStage,
    KigoStageAttention, KigoStep, bytes_of,
};
use super::stages;
use super::stream::{Launch, Order, Stream};
use crate::backend::{DecodePath, Purpose};
use crate::error::try_vec;
use crate::model::{Experts, ModelDesc, Norm, QkNorm};
use crate::{Error, Result};
use list::{Listing, Words, list, words_of};

/// Bytes of the weights of a layer from which on it is faster than the kernels of larger batches: with the 2.2 MB of SmolLM2 of 135M in
/// `Q4_1` a token takes 15 % less on an H200, with the 10 MB of a Qwen2 of 0.5B in `Q4_K_M` 8 %, with those of Llamas of 1B and 8B 4 to
/// 19 %. Smaller layers have not been measured.
const FEWEST_LAYER_BYTES: u64 = 2 << 20;
/// Positions of a chunk, the part of a context that a block attends to at a time: `kChunk` of `kernels/attention.cuh`.
const CHUNK: usize = 8 * kv_cache::PAGE;
/// Chunks whose pages a block loads at most: with more of them the kernels of larger batches are faster.
const CHUNKS_OF_BLOCK: usize = 2;
/// With those that it looks at ahead of a chunk, and asks for ahead of that.
const PAGES_AHEAD: usize = CHUNK / kv_cache::PAGE + KIGO_STEP_PAGES_AT_ONCE as usize;
const _: () =
    assert!(CHUNKS_OF_BLOCK * CHUNK + PAGES_AHEAD * kv_cache::PAGE <= KIGO_STEP_PAGES as usize * kv_cache::PAGE);
/// Chunks of a context at most, which decide what their partial results take.
const MOST_CHUNKS: usize = 80;
/// Bytes of an attention's keys and values for each block from which on they come through the rings, and the widths of heads that they can
/// have. On an H200 a Llama of 8B takes 5 % less after 4,100 positions in `Q4_K_M` and 2 % in f16, one of 1B 8 % after 8,100; with half as
/// many positions it takes 2 to 5 % longer, and so does a Qwen2 of 0.5B, whose two kv heads are few blocks' alone, after 16,000. Between
/// these, where the bound is, and on other cards nothing has been measured.
const FEWEST_STREAMED: usize = 96 << 10;
const STREAMED_WIDTHS: [usize; 2] = [64, 128];
/// Widest heads of which two warps hold a page, and positions up to which wider ones are faster than with the kernels of larger batches:
/// on an H200 Gemma 3 of 1B in `Q4_K_M` takes 4 % less after 128 positions and 6 % longer after 500, Gemma 2 of 2B 7 % less and 1 % longer.
const MOST_TEAM_WIDTH: usize = 128;
const WIDE_POSITIONS: usize = 256;
/// Elements of a head that a block mixes: `kOwn` of `kernels/step_share.cuh`.
const OWN: usize = 32;
/// Bytes under way to a multiprocessor, and in large layers with scales, most of whose records are smaller than the longest, which counts: with
/// 48 KiB a Llama of 8B takes 2 % longer in f16 on an H200 and 18 % in `Q4_K_M`, with 96 KiB 0.3 % longer in f16, 0.7 % less in `Q4_K_M`
/// and 0.6 % in `Q8_0`, and one of 1B in `Q4_K_M` 0.7 % longer; a mixture, gpt-oss of 20B, takes 0.4 % longer.
const UNDER_WAY: u32 = 64 << 10;
const UNDER_WAY_OF_LARGE: u32 = 96 << 10;
/// What records in a ring start at a multiple of: `kLine` of `kernels/common.cuh`.
const LINE: u32 = 128;
/// Pieces of a warp that are sent for to L2 while its ring is full, in large layers: see `looks_ahead`. With mixtures nothing is: a gpt-oss
/// of 20B took 4 % longer on an H100, a Qwen3 of 30B 2 %.
const MOST_AHEAD: u32 = 16;
/// Bytes a second of each multiprocessor's share of memory from which on weights below a byte gain nothing by going ahead: an H200 has
/// 37e9, an H100 25e9.
const FAST_SHARE: u64 = 30_000_000_000;
/// Bytes of the weights of a large layer.
const FEWEST_LARGE_BYTES: u64 = 64 << 20;
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
/// Quads that a thread of a warp holds of the vectors of experts: `kHeld` there.
const QUADS_OF_THREAD: usize = KIGO_STEP_MOST_COLUMNS as usize / 4 / (WARPS as usize * 32);
/// Sets of words of a row, which steps use in turn: see kernels/step_words.cuh.
const WORD_SETS: usize = 2;
/// Bytes of the rows' numbers of steps, and of the hole behind them.
const NUMBER_BYTES: usize = 256;
/// Rows that a step has at most, and up to which it is faster than the kernels of larger batches: on an H200 two rows of a Llama of 1B take
/// 22 % less in `Q4_K_M` and 15 % in f16, of one of 8B 8 and 5 %, of a Qwen2 of 0.5B 9 and 19 %; with three and more some models take longer. In
/// bfloat16 two of a Llama of 1B take as long, and with norms of what is added a Gemma 3 of 1B takes 3 % less, a Gemma 2 of 2B 1 % longer.
const MOST_ROWS: usize = KIGO_STEP_ROWS as usize;
const FAST_ROWS: usize = 2;
/// Bytes of a layer and of all rings from which on three rows are faster too: 10 and 11 % less for a Llama of 1B in `Q4_K_M` and f16, 9 % for
/// a Qwen2 of 0.5B in f16, whose rings have 128 KiB and more; with the small layers of that in `Q4_K_M` 4 % more, with the 80 KiB of one of 8B
/// as much in f16 and 10 % more in `Q4_K_M`.
const THREE_ROWS_FEWEST: (u64, u32) = (16 << 20, 112 << 10);
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
    /// That for one row after many positions, and from which one on it is faster.
    streaming: Option<Streaming>,
    /// The numbers, stages, attentions, partial results of attention, words.
    memory: DeviceBuffer,
    params: KigoStep,
    n_blocks: u32,
}

/// How a step is run as one kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StepRun {
    /// Rows, of different sequences.
    pub n_rows: usize,
    /// Whether the pages that they attend to come through the rings.
    pub streams_pages: bool,
}

/// The kernel whose pages come through the rings.
struct Streaming {
    kernel: Function,
    shared: Shared,
    from: usize,
}

/// What depends on how many rows there are, and on how their pages come.
#[derive(Debug, Clone, Copy)]
struct Shared {
    n_slots: u32,
    slot: u32,
    bytes: u32,
    operands_stride: u32,
    sums_at: u32,
    n_positions: usize,
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
    if desc.experts.is_some() {
        return 1;
    }
    let widest = desc.n_embd.max(desc.n_embd_q()).max(desc.n_ff);
    let row = (stride(desc.n_embd) * 4 + stride(widest) * 2) as u32 + SUMS_OF_ROW;
    let rings = FEWEST_SLOTS * WARPS * SMALLEST_SLOT;
    (MOST_SHARED.saturating_sub(rings) / row).clamp(1, MOST_ROWS as u32) as usize
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
    (n_blocks as usize / (n_groups(desc) * (head_width / OWN)) * CHUNKS_OF_BLOCK).min(MOST_CHUNKS) * CHUNK
}

/// The position from which on so many kv heads of this width have FEWEST_STREAMED bytes for each of so many blocks.
fn streams_from(n_groups: usize, head_width: usize, n_blocks: usize) -> usize {
    const BYTES_OF_ELEMENT: usize = 2 * 2;
    FEWEST_STREAMED * n_blocks / (n_groups * head_width * BYTES_OF_ELEMENT)
}

/// Kv heads, each as often as some of its heads are a block's.
fn n_groups(desc: &ModelDesc) -> usize {
    desc.n_head_kv * (desc.n_head / desc.n_head_kv).div_ceil(HEADS_OF_BLOCK)
}

/// Bytes of the words of a row's step.
fn set_bytes(desc: &ModelDesc) -> usize {
    desc.n_layer() * Words::new(desc).bytes
}

/// What a row takes of the weights of the smallest layer: how many bytes, and how many weights.
fn layer_weights(b: &CudaBackend) -> (u64, u64) {
    let n_used = b.desc.experts.map_or(1, |experts| experts.n_expert_used);
    let weights = |layer: &LayerPlaces| {
        products(layer).fold((0, 0), |(bytes, n), product| {
            let tiles = product.n_matrices.min(n_used) as u64 * product.n_tiles as u64;
            let (of_tile, columns) = (product.n_records as u64 * record_bytes(product.quant), stride(product.k) as u64);
            (bytes + tiles * of_tile, n + tiles * TILE_ROWS as u64 * columns)
        })
    };
    b.places.layers.iter().map(weights).min().unwrap_or((0, 0))
}

/// Bytes of weights that the layers of a step read at least.
pub fn step_bytes(b: &CudaBackend) -> u64 {
    layer_weights(b).0 * b.places.layers.len() as u64
}

/// Whether it pays that weights of such layers go ahead to L2 while rings are full, where a multiprocessor's share of memory gives so many
/// bytes a second, 0 if nobody knows. On an H200 a Llama of 8B takes 2 % less so in f16, and 1 % in `Q8_0`; in `Q4_K_M` it takes as long, but
/// 3 to 4 % longer after 1,000 to 2,000 positions, as weights are in the way of keys and values. Smaller layers come too early: a Qwen2 of
/// 0.5B in `Q4_K_M` takes 5 % longer, a Llama of 1B 1 %.
fn looks_ahead(layer_bytes: u64, n_layer_weights: u64, share: u64) -> bool {
    layer_bytes >= FEWEST_LARGE_BYTES && (layer_bytes >= n_layer_weights || share < FAST_SHARE)
}

/// Whether so many rows are faster in one kernel, with layers of so many bytes, of which all rings of a block keep so many.
fn rows_gain(n_rows: usize, layer_bytes: u64, ring_bytes: u32) -> bool {
    let (fewest_layer, fewest_ring) = THREE_ROWS_FEWEST;
    n_rows <= FAST_ROWS || (n_rows == FAST_ROWS + 1 && layer_bytes >= fewest_layer && ring_bytes >= fewest_ring)
}

/// The matrices of a layer.
fn products(layer: &LayerPlaces) -> impl Iterator<Item = &Product> {
    let gate = match &layer.ffn_gate {
        Gate::Joint(product) | Gate::None(product) => [Some(product), None],
        Gate::Apart { gate, up } => [Some(gate), Some(up)],
    };
    layer.attn_qkv.iter().chain([&layer.attn_output, &layer.ffn_down]).chain(gate.into_iter().flatten())
}

impl Step {
    /// Makes what the kernel needs to run the model; `None` where it cannot.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`, `DeviceError`.
    pub fn new(b: &CudaBackend, path: DecodePath) -> Result<Option<Step>> {
        let (desc, card) = (&b.desc, &b.kernels.card);
        let (layer_bytes, n_layer_weights) = layer_weights(b);
        let wanted = match path {
            DecodePath::Auto => layer_bytes >= FEWEST_LAYER_BYTES,
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
        let several_gain = !listing.has_pairs && !desc.post_norm;
        for (launch, n_rows) in launches.iter_mut().zip(1..=most_rows(desc)) {
            let gains = |of: &Shared| {
                n_rows == 1 || several_gain && rows_gain(n_rows, layer_bytes, of.n_slots * WARPS * listing.slot)
            };
            *launch = shared(desc, card, &listing, b.kernels.head_width, n_rows as u32)
                .filter(|of| path != DecodePath::Auto || gains(of))
                .map(|of| Shared { n_positions: of.n_positions.min(wanted_positions), ..of });
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
                out_halves: if list::takes_mix_halves(b, layer) { words.mix_halves } else { 0 },
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
        let streaming = match shared_of_pages(desc, card, &listing, b.kernels.head_width) {
            Some(shared) if name == "step" => Some(Streaming {
                kernel: kernel_of("step_pages", KIGO_STEP_STATIC)?,
                shared,
                from: streams_from(n_groups(desc), b.kernels.head_width, card.n_sm as usize),
            }),
            _ => None,
        };
        let has_many = launches[1..].iter().any(Option::is_some);
        let name = if listing.has_pairs { "step_rows_pairs" } else { "step_rows" };
        let many = if has_many { Some(kernel_of(name, KIGO_STEP_ROWS_STATIC)?) } else { None };
        let partials_stride = partial_bytes(desc, b.kernels.head_width);
        let is_large = layer_bytes >= FEWEST_LARGE_BYTES;
        let has_more = is_large && listing.has_scales && desc.experts.is_none();
        let share = b.context.info().memory_rate / u64::from(card.n_sm);
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
            slot_bytes: 0,
            under_way: (if has_more { UNDER_WAY_OF_LARGE } else { UNDER_WAY } / listing.slot).max(WARPS),
            most_ahead: if looks_ahead(layer_bytes, n_layer_weights, share) { MOST_AHEAD } else { 0 },
            pace: listing.slot * PACE.0 / PACE.1,
            delay: 0,
            set_bytes: set_bytes(desc) as u32,
            router_at: listing.router_at(),
            n_rows: 0,
            partials_stride: partials_stride as u32,
            operands_stride: 0,
            sums_at: 0,
        };
        Ok(Some(Step { one, many, launches, streaming, memory, params, n_blocks: card.n_sm }))
    }

    /// Lets every warp sleep up to so many nanoseconds in every stage.
    pub fn set_delay(&mut self, nanoseconds: u32) {
        self.params.delay = nanoseconds;
    }

    /// Lets pages come through the rings from this position on, where they can.
    pub fn set_streams_from(&mut self, position: usize) {
        if let Some(streaming) = &mut self.streaming {
            streaming.from = position;
        }
    }

    /// How it runs a step of so many sequences, none of them beyond this position; `None` if it does not.
    pub fn run_of(&self, n_rows: usize, position: u32) -> Option<StepRun> {
        let position = position as usize;
        let streams = |of: &Streaming| n_rows == 1 && (of.from..of.shared.n_positions).contains(&position);
        if self.streaming.as_ref().is_some_and(streams) {
            return Some(StepRun { n_rows, streams_pages: true });
        }
        let is_run = self.shared(n_rows).is_some_and(|shared| position < shared.n_positions);
        is_run.then_some(StepRun { n_rows, streams_pages: false })
    }

    fn shared(&self, n_rows: usize) -> Option<&Shared> {
        self.launches.get(n_rows.wrapping_sub(1))?.as_ref()
    }

    /// The kernel of a run, and its shared memory.
    fn kernel(&self, run: StepRun) -> Option<(&Function, &Shared)> {
        match run {
            StepRun { streams_pages: true, .. } => self.streaming.as_ref().map(|of| (&of.kernel, &of.shared)),
            StepRun { n_rows: 1, .. } => Some((&self.one, self.shared(1)?)),
            StepRun { n_rows, .. } => Some((self.many.as_ref()?, self.shared(n_rows)?)),
        }
    }

    /// Where the rows' numbers of steps are, which `embed` raises.
    pub fn number(&self) -> u64 {
        self.memory.address()
    }

    /// Queues a step, as `run_of` has it; `logits` `[n_rows][n_vocab]` are written.
    ///
    /// # Errors
    /// `DeviceLost`, `DeviceError`.
    pub fn launch(&self, stream: &Stream, run: StepRun, logits: u64) -> Result<()> {
        let (kernel, shared) = self.kernel(run).ok_or_else(|| Error::Internal(format!("no kernel for {run:?}")))?;
        let launch = Launch {
            grid: [self.n_blocks, 1, 1],
            block: [KIGO_STEP_THREADS, 1, 1],
            shared_bytes: shared.bytes,
            order: Order::Cooperative,
        };
        let params = KigoStep {
            logits,
            n_rows: run.n_rows as u32,
            n_slots: shared.n_slots,
            slot_bytes: shared.slot,
            operands_stride: shared.operands_stride,
            sums_at: shared.sums_at,
            ..self.params
        };
        stream.launch(kernel, launch, &params)
    }
}

/// The shared memory of so many rows; `None` where there is too little, or too few blocks to attend with all of them.
fn shared(desc: &ModelDesc, card: &Card, listing: &Listing, head_width: usize, n_rows: u32) -> Option<Shared> {
    // `AttentionScratch` and the mixes of pages in turns, see kernels/step_attention.cuh.
    let mixes = (KIGO_STEP_MIX_TURNS * KIGO_STEP_PAGES_AT_ONCE) as usize * heads_of_block(desc) * OWN * 4;
    let attention = 36 * head_width + KIGO_STEP_ATTENTION as usize + mixes;
    let n_positions = most_positions(desc, head_width, card.n_sm / n_rows);
    let shared = Shared { n_positions, ..divide(desc, card, listing, n_rows, attention as u32, listing.slot)? };
    (shared.n_slots >= FEWEST_SLOTS && n_positions > 0).then_some(shared)
}

/// The same of a row whose pages come through the rings; `None` also where heads have another width.
fn shared_of_pages(desc: &ModelDesc, card: &Card, listing: &Listing, head_width: usize) -> Option<Shared> {
    if !STREAMED_WIDTHS.contains(&head_width) || n_groups(desc) > card.n_sm as usize {
        return None;
    }
    // `PageScratch` and the mixes of pages, whose rows are padded, see kernels/step_pages.cuh.
    let row = head_width + KIGO_STEP_PAGES_PAD as usize;
    let mixes = KIGO_STEP_PAGES_OF_ROUND as usize * heads_of_block(desc) * row * 4;
    let attention = 36 * head_width + KIGO_STEP_PAGES_ATTENTION as usize + mixes;
    let slot = listing.slot.max(KIGO_STEP_PAGE_PIECE);
    let shared = divide(desc, card, listing, 1, attention as u32, slot)?;
    // A warp waits for half of a page's keys at a time.
    let fewest = FEWEST_SLOTS.max((kv_cache::PAGE * head_width) as u32 / KIGO_STEP_PAGE_PIECE);
    (shared.n_slots >= fewest).then_some(Shared { n_positions: MOST_CHUNKS * CHUNK, ..shared })
}

/// Heads that a block attends with at most.
fn heads_of_block(desc: &ModelDesc) -> usize {
    (desc.n_head / desc.n_head_kv).min(HEADS_OF_BLOCK)
}

/// Divides a block's shared memory between what so many rows have, beside so many bytes of attention, and rings of such slots; without the
/// positions that they reach. `None` where there is too little.
fn divide(desc: &ModelDesc, card: &Card, listing: &Listing, n_rows: u32, attention: u32, slot: u32) -> Option<Shared> {
    let is_one = n_rows == 1;
    let (besides, sums) = if is_one { (KIGO_STEP_STATIC, 0) } else { (KIGO_STEP_ROWS_STATIC, n_rows * SUMS_OF_ROW) };
    // The operands of two rows lie in different banks.
    let operands_stride = listing.columns * 128 + 64;
    let columns = if is_one { listing.columns * 128 } else { n_rows * operands_stride };
    let row = stride(desc.n_embd) as u32 * 4;
    let router = if listing.router > 0 { listing.router_at() + listing.router } else { 0 };
    let sums_at = columns.max(attention).max(row).max(router).next_multiple_of(LINE);
    let scratch = n_rows * row + sums_at + sums;
    let rings = card.block_shared.checked_sub(besides + scratch)?;
    let n_slots = (rings / (WARPS * slot)).min(KIGO_STEP_SLOTS);
    Some(Shared { n_slots, slot, bytes: n_slots * WARPS * slot + scratch, operands_stride, sums_at, n_positions: 0 })
}

#[cfg(test)]
mod tests {
    use super::{looks_ahead, rows_gain, streams_from};

    #[test]
    fn three_rows_gain_where_rings_keep_enough_of_large_layers() {
        // A Llama of 1B in Q4_K_M and f16, a Qwen2 of 0.5B in f16 and Q4_K_M, a Llama of 8B in f16.
        let shapes = [(36, 138, true), (121, 128, true), (30, 176, true), (10, 165, false), (436, 80, false)];
        for (layer_mb, ring_kb, three) in shapes {
            let gain = |n_rows| rows_gain(n_rows, layer_mb * 1_000_000, ring_kb << 10);
            assert!(gain(2) && gain(3) == three && !gain(4), "{layer_mb} MB");
        }
    }

    #[test]
    fn pages_come_through_rings_where_they_fill_them() {
        // A Llama of 8B, one of 1B, a Qwen2 of 0.5B.
        assert_eq!(
            [(8, 128), (8, 64), (2, 64)].map(|(groups, width)| streams_from(groups, width, 132)),
            [3168, 6336, 25_344]
        );
    }

    #[test]
    fn small_weights_go_ahead_only_where_memory_is_what_takes_time() {
        let (h100, h200) = (25_400_000_000, 37_300_000_000);
        // Layers of a Llama of 8B in f16, Q8_0 and Q4_K_M, and of one of 1B in f16.
        let weights = 218_000_000;
        assert!([h100, h200, 0].iter().all(|&share| looks_ahead(2 * weights, weights, share)));
        assert!([h100, h200, 0].iter().all(|&share| looks_ahead(weights * 17 / 16, weights, share)));
        assert!(looks_ahead(weights * 9 / 16, weights, h100) && looks_ahead(weights * 9 / 16, weights, 0));
        assert!(!looks_ahead(weights * 9 / 16, weights, h200));
        assert!([h100, h200, 0].iter().all(|&share| !looks_ahead(60_000_000, 30_000_000, share)));
    }
}
