//! The seven stages as launches, and the memory that activations take.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::CudaBackend;
use super::attention::{self, HEADS_OF_BLOCK};
use super::blocks::{self, Blocks, Card, Job, Kernel};
use super::context::Context;
use super::experts;
use super::handed::{self, Handed, ff_operands, mix_operands};
use super::kv_cache::{self, PAGE};
use super::layout::{
    Gate, NormPlace, Product, THREADS, TILE_ROWS, TypeTable, WARPS, activation_bytes, stride, wants_bf16,
};
use super::memory::DeviceBuffer;
use super::module::{Function, KernelParams, Module, embedded};
use super::params::{
    KIGO_ADD, KIGO_GATE, KIGO_GATED, KIGO_GELU, KIGO_NORM_LAYER, KIGO_NORM_NONE, KIGO_NORM_RMS, KIGO_ORDER_FRAGMENTS,
    KIGO_ORDER_SWIZZLED, KIGO_QKV, KIGO_SILU, KIGO_SILU_CLAMPED, KIGO_STORE, KIGO_UNGATED, KigoAddNormed, KigoEmbed,
    KigoHeads, KigoInput, KigoMatmul, KigoPrep, KigoQkv, KigoRow, KigoTile,
};
use super::stream::{Launch, Order, Stream};
use crate::Result;
use crate::backend::Purpose;
use crate::error::try_vec;
use crate::model::{Activation, ModelDesc, Norm, QkNorm, RopePairing, RopeTable};

/// Columns of a row of `prep_normed` at most: a quad for each thread in each of the most turns of `kernels/prep.cu`.
const PREP_WIDTH: u32 = 8192;
/// Blocks of `prep` for each multiprocessor that there may be before a thread gets more than one load, and loads that it has
/// under way at most: `kMostAtOnce` of `kernels/activations.cuh`.
const PREP_BLOCKS: u32 = 4;
const PREP_LOADS: u32 = 4;
/// Threads of a block of `prep_few_normed` at most, and quads of a row that it takes: `kMostThreads`, `kMostQuads` for each of them.
const PREP_THREADS: u32 = 1024;
const PREP_NORMED: u32 = 2 * PREP_THREADS;

/// The shape of a batch.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shape {
    /// Rows.
    pub n: usize,
    /// Rows that want logits.
    pub n_logits: usize,
    /// Tiles of rows of one sequence; none where every row is of another.
    pub n_tiles: usize,
    /// Positions that the cache has of the longest sequence, those of these rows among them.
    pub n_positions: usize,
    /// The least position of a row.
    pub first_position: usize,
    /// Whether all rows want logits.
    pub all_want: bool,
}

/// What activations take.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub n_rows: usize,
    pub n_embd: usize,
    pub n_mix: usize,
    pub n_ff: usize,
    n_vocab: usize,
    /// Halves of q of a row.
    q: usize,
    /// q, k and v of a row before their norm, whole tiles for each head; 0 where they have none.
    n_heads: usize,
    /// Pairs of all kinds of rope.
    n_turns: usize,
    /// Rows of magnitudes.
    n_magnitudes: usize,
    n_layer: usize,
    pub counters: usize,
    /// Whether products take the residual stream after a norm; whether what is added to it is normed before.
    pre_norm: bool,
    post_norm: bool,
    /// Rows of the products of the feed-forward layer.
    pub n_products: usize,
    /// Rows that there are operands of at most.
    n_operands: usize,
    /// Bytes of [`experts::Workspace`].
    experts: usize,
    /// Bytes of what the kernel `step` has.
    pub step: usize,
}

impl Sizes {
    /// For batches of up to `n_batch` rows.
    ///
    /// # Errors
    /// When heads are too wide, or anything is beyond 64 bits.
    pub fn new(desc: &ModelDesc, n_batch: usize) -> Result<Sizes> {
        let group = desc.n_head / desc.n_head_kv;
        // Batches that are run as graphs are padded.
        let n_rows = n_batch.max(super::MAX_GRAPH_ROWS).next_multiple_of(8);
        let sizes = Sizes {
            n_rows,
            n_embd: stride(desc.n_embd),
            n_mix: stride(desc.n_embd_q()),
            n_ff: stride(desc.n_ff),
            n_vocab: desc.n_vocab,
            q: desc.n_head * kv_cache::head_width(desc)?,
            n_heads: desc
                .qk_norm
                .map_or(0, |_| (desc.n_head + 2 * desc.n_head_kv) * desc.head_dim.next_multiple_of(TILE_ROWS)),
            n_turns: desc.rope.kinds.len() * (desc.rope.n_rot / 2),
            n_magnitudes: desc.n_layer() * 4 + 1,
            n_layer: desc.n_layer(),
            counters: desc.n_head_kv * group.div_ceil(HEADS_OF_BLOCK),
            pre_norm: desc.pre_norm,
            post_norm: desc.post_norm,
            n_products: desc.experts.map_or(n_rows, |experts| experts::n_products(experts, n_rows)),
            n_operands: desc.experts.map_or(n_rows, |experts| experts::n_operands(experts, n_rows)),
            experts: desc.experts.map_or(0, |experts| experts::bytes(experts, n_rows, desc.n_embd).iter().sum()),
            step: super::step::bytes(desc)?,
        };
        // Each size is at most 2^20, rows are at most 2^17 and layers 2^10, so that products of three stay within 64 bits.
        Ok(sizes)
    }

    /// The widest row of activations.
    pub fn widest(&self) -> usize {
        self.n_embd.max(self.n_mix).max(self.n_ff)
    }

    /// Bytes of each buffer but the logits, in the order of [`Workspace`].
    fn buffers(&self) -> [usize; 16] {
        let n = self.n_rows;
        [
            n * self.n_embd * 4,
            n * self.q * 2,
            n * self.n_heads * 4,
            if self.post_norm { n * self.n_embd * 4 } else { 0 },
            n * self.n_mix * 4,
            self.n_products * self.n_ff * 4,
            n * self.n_turns * 8,
            self.n_turns * 16,
            self.n_magnitudes * n * 4,
            self.n_operands / 8 * self.widest() / 64 * activation_bytes(true),
            handed::bytes(self.n_embd, self.n_mix, self.n_ff).iter().sum(),
            self.n_operands * 4,
            blocks::LATE * 4,
            n * size_of::<KigoRow>(),
            n * size_of::<KigoTile>(),
            n * 4 + n * self.counters * 4,
        ]
    }

    /// Bytes of the workspace with `n_logits` rows of logits.
    pub fn bytes(&self, n_logits: usize) -> u64 {
        (self.buffers().iter().sum::<usize>() + n_logits * self.n_vocab * 4 + self.experts + self.step) as u64
    }
}

/// Activations and tables of a batch.
pub struct Workspace {
    pub sizes: Sizes,
    /// The residual stream: f32 `[n, n_embd]`. This and the other rows are padded with zeros to whole units.
    pub x: DeviceBuffer,
    /// f16 `[n, n_head, head width]`
    pub q: DeviceBuffer,
    /// q, k and v before their norm, in the rows of their tiles: f32 `[n, n_heads]`.
    heads: DeviceBuffer,
    /// What is added to the residual stream, before its norm: f32 `[n, n_embd]`.
    pub delta: DeviceBuffer,
    /// Output of the attention: f32 `[n, n_head, head_dim]`.
    pub mix: DeviceBuffer,
    /// f32 `[n_products, n_ff]`
    pub ff: DeviceBuffer,
    /// f32 `[n, kinds of rope, n_rot / 2, 2]`
    turns: DeviceBuffer,
    /// f64 `[kinds of rope, n_rot / 2, 2]`
    angles: DeviceBuffer,
    /// u32 `[n_layer, mix and ff, n]`, then `[n_layer, before attention and after, n]` and `[n]` after all layers: of x where products take it
    /// as it is, or where it is handed on of x times the weight of its norm.
    magnitudes: DeviceBuffer,
    /// Activations as operands. Those of few rows take its first half and its second by turns: a product that starts early may have
    /// a multiprocessor whose L1 holds what the product before it reads.
    pub records: DeviceBuffer,
    takes_second: AtomicBool,
    /// What kernels of few rows hand on: [`handed::bytes`].
    pub handed: DeviceBuffer,
    /// f32 `[n]`
    factors: DeviceBuffer,
    /// f32 `[LATE]`: results of a product that are not finished.
    late: DeviceBuffer,
    /// `KigoRow [n]`
    pub rows: DeviceBuffer,
    /// `KigoTile [n]`
    pub tiles: DeviceBuffer,
    /// What chunks of attention give, once it was wanted: [`super::attention::make_room`].
    pub partials: Option<DeviceBuffer>,
    /// u32 `[n]`: rows that want logits.
    pub select: DeviceBuffer,
    /// u32 `[n, blocks of a row]`
    pub counters: DeviceBuffer,
    /// f32 `[rows that want logits, n_vocab]`
    pub logits: DeviceBuffer,
    n_logits: usize,
    /// Where there are experts.
    pub experts: Option<experts::Workspace>,
}

impl Workspace {
    /// `ropes` has a table for each kind of rope.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`, `DeviceError`.
    pub fn new(
        stream: &Stream,
        desc: &ModelDesc,
        sizes: Sizes,
        n_logits: usize,
        ropes: &[RopeTable],
    ) -> Result<Workspace> {
        let context = stream.context();
        let [x, q, heads, delta, mix, ff, turns, angles, magnitudes, records, handed, factors, late, rows, tiles, _] =
            sizes.buffers();
        let buffer = |bytes: usize| -> Result<DeviceBuffer> {
            let buffer = DeviceBuffer::new(context, Purpose::Workspace, bytes, "the workspace")?;
            buffer.fill_u8(stream, 0)?;
            Ok(buffer)
        };
        let work = Workspace {
            x: buffer(x)?,
            q: buffer(q)?,
            heads: buffer(heads)?,
            delta: buffer(delta)?,
            mix: buffer(mix)?,
            ff: buffer(ff)?,
            turns: buffer(turns)?,
            angles: buffer(angles)?,
            magnitudes: buffer(magnitudes)?,
            records: buffer(records)?,
            takes_second: AtomicBool::new(false),
            handed: buffer(handed)?,
            factors: buffer(factors)?,
            late: buffer(late)?,
            rows: buffer(rows)?,
            tiles: buffer(tiles)?,
            partials: None,
            select: buffer(sizes.n_rows * 4)?,
            counters: buffer(sizes.n_rows * sizes.counters * 4)?,
            logits: buffer(n_logits * desc.n_vocab * 4)?,
            n_logits,
            experts: match desc.experts {
                Some(experts) => Some(experts::Workspace::new(experts, &sizes, buffer)?),
                None => None,
            },
            sizes,
        };
        let mut bytes = try_vec(angles, "the rope frequencies")?;
        for table in ropes {
            let pair = |angle: &f64| [angle / std::f64::consts::PI, f64::from(table.magnitude)];
            bytes.extend(table.angles.iter().flat_map(pair).flat_map(f64::to_le_bytes));
        }
        work.angles.upload(stream, 0, &bytes)?;
        Ok(work)
    }

    /// Bytes of rows, tiles and selection together.
    pub fn staging_bytes(&self) -> usize {
        self.rows.len() + self.tiles.len() + self.select.len()
    }

    /// Makes room for `n` rows of logits. True if they stand elsewhere now.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`, `DeviceError`; the room is as before.
    pub fn ensure_logits(&mut self, stream: &Stream, n: usize) -> Result<bool> {
        if n <= self.n_logits {
            return Ok(false);
        }
        let bytes = n.saturating_mul(self.sizes.n_vocab * 4);
        let logits = DeviceBuffer::new(stream.context(), Purpose::Workspace, bytes, "the logits")?;
        stream.synchronize()?;
        (self.logits, self.n_logits) = (logits, n);
        Ok(true)
    }

    /// Brings a row of logits to the host, after all that was queued.
    ///
    /// # Errors
    /// `DeviceLost`, `DeviceError`.
    pub fn download_logits(&self, stream: &Stream, index: usize, out: &mut [f32]) -> Result<()> {
        let start = index * out.len() * 4;
        // SAFETY: f32 has no padding and every pattern of bits is one.
        let bytes = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<u8>(), size_of_val(out)) };
        self.logits.download(stream, start, bytes)
    }

    pub fn magnitudes(&self, layer: usize, of_ff: bool) -> u64 {
        self.magnitudes.address() + ((2 * layer + usize::from(of_ff)) * self.sizes.n_rows * 4) as u64
    }

    /// Magnitudes of the residual stream before the attention of a layer or, if `after`, after it; 0 where nothing takes it
    /// as it is.
    fn x_magnitudes(&self, layer: usize, after: bool) -> u64 {
        if self.sizes.pre_norm || layer == self.sizes.n_layer { 0 } else { self.stream_magnitudes(layer, after) }
    }

    /// The same of what is handed on, too.
    pub fn stream_magnitudes(&self, layer: usize, after: bool) -> u64 {
        self.magnitudes(self.sizes.n_layer + layer, after)
    }
}

/// All kernels of a model.
pub struct Kernels {
    /// Those of tensor types.
    pub types: TypeTable,
    prep: Function,
    /// The same of halves in the order of sm_90a after an RMSNorm, of up to [`PREP_WIDTH`] columns.
    prep_normed: Function,
    /// The same for few rows, as they are and normed.
    prep_few: [Function; 2],
    add_slices: Function,
    heads: Function,
    add_normed: Function,
    /// Where there are experts.
    pub experts: Option<experts::Kernels>,
    pub attention: attention::Kernels,
    pub head_width: usize,
    pub card: Card,
}

impl Kernels {
    /// Loads what does not depend on tensor types.
    ///
    /// # Errors
    /// Those of loading kernels.
    pub fn new(context: &Arc<Context>, types: TypeTable, desc: &ModelDesc) -> Result<Kernels> {
        let head_width = kv_cache::head_width(desc)?;
        let rows = Module::load(context, embedded("rows")?)?;
        let card = Card::new(context.info());
        let preps = Module::load(context, embedded("prep")?)?;
        let prep = preps.function("prep")?;
        let few = Module::load(context, embedded("prep_few")?)?;
        // All but what it has besides: a number for each warp.
        prep.set_max_shared_bytes(card.block_shared.saturating_sub(1 << 10))?;
        Ok(Kernels {
            types,
            prep,
            prep_normed: preps.function("prep_normed")?,
            prep_few: [few.function("prep_few")?, few.function("prep_few_normed")?],
            add_slices: Module::load(context, embedded("slices")?)?.function("add_slices")?,
            heads: rows.function("heads")?,
            add_normed: rows.function("add_normed")?,
            experts: desc.experts.map(|_| experts::Kernels::new(context, &card)).transpose()?,
            attention: attention::Kernels::new(context, &card, desc, head_width)?,
            head_width,
            card,
        })
    }
}

/// Activations that a product takes.
pub struct Source {
    pub input: KigoInput,
    /// Where they stand when they are prepared.
    records: u64,
    /// Which records `prep` has written: whether of bfloat16, in which order.
    prepared: Option<(bool, u32)>,
    /// Where the kernel before has written them, but for rows that are multiplied with something; 0: it has not.
    pub operands: u64,
    /// Of those, where rows are normed, the squares of x.
    pub squares: u64,
}

impl Source {
    /// Whether the product has to see to the rest: `prep` is not asked to.
    fn is_handed(&self) -> bool {
        self.operands != 0 && self.prepared.is_some_and(|(_, order)| order == KIGO_ORDER_FRAGMENTS)
    }
}

/// What becomes of a product.
#[derive(Clone, Copy)]
pub struct Outcome {
    pub kind: u32,
    pub out: u64,
    pub out_stride: usize,
    pub bias: [u64; 3],
    pub magnitudes: u64,
    pub scale: f32,
    pub softcap: f32,
    pub layer: usize,
    pub operands: u64,
    /// What operands are multiplied with for the norm that follows, and where the squares go, or 0.
    pub norm: u64,
    pub squares: u64,
}

impl Default for Outcome {
    fn default() -> Outcome {
        Outcome {
            kind: KIGO_STORE,
            out: 0,
            out_stride: 0,
            bias: [0; 3],
            magnitudes: 0,
            scale: 1.0,
            softcap: 0.0,
            layer: 0,
            operands: 0,
            norm: 0,
            squares: 0,
        }
    }
}

pub fn launch<P: KernelParams>(
    b: &CudaBackend,
    kernel: &Function,
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    params: &P,
) -> Result<()> {
    b.stream.launch(kernel, Launch { grid, block: [threads, 1, 1], shared_bytes, order: Order::Dependent }, params)
}

fn norm_kind(norm: Norm) -> u32 {
    match norm {
        Norm::Rms => KIGO_NORM_RMS,
        Norm::Layer => KIGO_NORM_LAYER,
    }
}

/// Rows `x` `[n, width]` after a norm.
fn normed(b: &CudaBackend, x: u64, n: usize, width: usize, norm: NormPlace) -> Source {
    let at = |offset: u64| b.weights.address() + offset;
    let input = KigoInput {
        x,
        norm_weight: at(norm.weight),
        norm_bias: norm.bias.map_or(0, at),
        magnitudes: 0,
        select: 0,
        n: n as u32,
        k: width as u32,
        stride: stride(width) as u32,
        norm: norm_kind(b.desc.norm),
        eps: b.desc.norm_eps,
        pad: 0,
    };
    Source { input, records: 0, prepared: None, operands: 0, squares: 0 }
}

/// Rows `x` `[n, width]` as they are; `magnitudes` has their largest.
pub fn plain(x: u64, n: usize, width: usize, magnitudes: u64) -> Source {
    let input = KigoInput {
        x,
        norm_weight: 0,
        norm_bias: 0,
        magnitudes,
        select: 0,
        n: n as u32,
        k: width as u32,
        stride: stride(width) as u32,
        norm: KIGO_NORM_NONE,
        eps: 0.0,
        pad: 0,
    };
    Source { input, records: 0, prepared: None, operands: 0, squares: 0 }
}

/// The residual stream as a layer takes it, before its attention or, if `after`, after it, in `n` rows of a product.
pub fn residual(b: &CudaBackend, layer: usize, after: bool, n: usize) -> Source {
    let l = &b.places.layers[layer];
    let (x, width) = (b.work.x.address(), b.desc.n_embd);
    match if after { l.ffn_norm } else { l.attn_norm } {
        Some(norm) => Handed::of_stream(b, layer, after).take(normed(b, x, n, width, norm)),
        None => plain(x, n, width, b.work.x_magnitudes(layer, after)),
    }
}

/// What the kernels need to know of the heads of a layer, and of its cache.
fn qkv(b: &CudaBackend, layer: usize) -> KigoQkv {
    let (d, w) = (&b.desc, &b.work);
    let (cache, n_pairs) = (b.cache.sizes(), d.rope.n_rot / 2);
    let place = cache.layers[layer];
    let turns = d.layers[layer].rope.map_or(0, |kind| w.turns.address() + (kind * n_pairs * 8) as u64);
    KigoQkv {
        rows: w.rows.address(),
        q: w.q.address(),
        turns,
        turns_stride: w.sizes.n_turns as u32,
        n_head: d.n_head as u32,
        n_head_kv: d.n_head_kv as u32,
        head_dim: d.head_dim as u32,
        dp: b.kernels.head_width as u32,
        n_rot: d.rope.n_rot as u32,
        halves: u32::from(d.rope.pairing == RopePairing::Halves),
        table: (place.group * cache.n_entries) as u32,
        layer: place.index as u32,
        q_scale: d.attn_scale * std::f32::consts::LOG2_E,
    }
}

/// x += what `product` gives of `source`, after a norm where there is one. `magnitudes` are those of x, or 0; where it is not normed x may
/// be handed on.
fn add(
    b: &CudaBackend,
    source: &mut Source,
    product: &Product,
    bias: [u64; 3],
    (post_norm, magnitudes, handed): (Option<u64>, u64, Handed),
) -> Result<()> {
    let (w, scale) = (&b.work, b.desc.residual_scale);
    let result = Outcome { bias, out_stride: w.sizes.n_embd, ..Outcome::default() };
    let Some(norm) = post_norm else {
        let Handed { operands, squares, norm, .. } = handed;
        let magnitudes = if operands == 0 { magnitudes } else { handed.magnitudes };
        let out = w.x.address();
        let result = Outcome { kind: KIGO_ADD, out, magnitudes, scale, operands, norm, squares, ..result };
        return multiply(b, source, product, result);
    };
    multiply(b, source, product, Outcome { kind: KIGO_STORE, out: w.delta.address(), ..result })?;
    add_normed(b, norm, magnitudes)
}

/// x += the norm of `delta`. `magnitudes` are those of x, or 0.
pub fn add_normed(b: &CudaBackend, norm: u64, magnitudes: u64) -> Result<()> {
    let w = &b.work;
    let params = KigoAddNormed {
        x: w.x.address(),
        delta: w.delta.address(),
        norm_weight: b.weights.address() + norm,
        magnitudes,
        k: b.desc.n_embd as u32,
        stride: w.sizes.n_embd as u32,
        norm: norm_kind(b.desc.norm),
        eps: b.desc.norm_eps,
        scale: b.desc.residual_scale,
        pad: 0,
    };
    launch(b, &b.kernels.add_normed, [b.shape.n as u32, 1, 1], THREADS, 0, &params)
}

/// What a product is told; `blocks` are its own.
pub fn matmul(b: &CudaBackend, source: &Source, product: &Product, result: Outcome, blocks: &Blocks) -> KigoMatmul {
    let (input, records) = (source.input, source.records);
    let (d, w) = (&b.desc, &b.work);
    KigoMatmul {
        input,
        records,
        factors: w.factors.address(),
        weights: b.weights.address() + product.offset,
        out: result.out,
        bias: result.bias,
        magnitudes: result.magnitudes,
        operands: result.operands,
        out_norm: result.norm,
        out_squares: result.squares,
        squares: source.squares,
        is_handed: u32::from(source.is_handed()),
        pad: 0,
        late: w.late.address(),
        n: input.n,
        n_rows: product.n_rows as u32,
        n_tiles: product.n_tiles as u32,
        n_records: product.n_records as u32,
        out_stride: result.out_stride as u32,
        kind: result.kind,
        activation: match d.activation {
            Activation::Silu => KIGO_SILU,
            Activation::Gelu | Activation::GeluUngated => KIGO_GELU,
            Activation::SiluClamped => KIGO_SILU_CLAMPED,
        },
        first_tile: product.first_tile as u32,
        qkv: qkv(b, result.layer),
        scale: result.scale,
        softcap: result.softcap,
        n_slots: blocks.n_slots,
        sum_columns: blocks.sum_columns,
        n_wide: blocks.pieces.0,
        narrow_parts: blocks.pieces.1,
        experts: 0,
        starts: 0,
        share: 1,
        weight_scale: product.weight_scale,
        n_expert: 0,
        is_told: 0,
    }
}

/// What the blocks of a product with `n` rows depend on.
pub fn job(input: &KigoInput, product: &Product, kind: u32, n: u32) -> Job {
    Job {
        quant: product.quant,
        n,
        k: product.k,
        has_norm: input.norm != KIGO_NORM_NONE,
        n_tiles: product.n_tiles as u32,
        gated: kind == KIGO_GATED,
        copies: 1,
        each: n,
    }
}

/// Queues what brings the rows of a source into the form that a product of many takes, unless that was done.
pub fn prepare(b: &CudaBackend, source: &mut Source, product: &Product, kernel: Kernel) -> Result<()> {
    let (input, bf16, order) = (source.input, wants_bf16(product.quant), kernel.order());
    if source.prepared == Some((bf16, order)) {
        return Ok(());
    }
    if source.operands != 0 && order == KIGO_ORDER_FRAGMENTS {
        (source.prepared, source.records) = (Some((bf16, order)), source.operands);
        return Ok(());
    }
    let (buffer, factors) = (&b.work.records, b.work.factors.address());
    let is_few = matches!(kernel, Kernel::Few8 | Kernel::Grouped);
    let is_second = is_few && b.work.takes_second.fetch_xor(true, Ordering::Relaxed);
    let records = buffer.address() + if is_second { (buffer.len() / 2) as u64 } else { 0 };
    let prep = KigoPrep { input, records, factors, bf16: u32::from(bf16), order, is_rest: 0, pad: 0 };
    if source.operands != 0 {
        (source.prepared, source.records) = (Some((bf16, order)), source.operands);
        let rest = KigoPrep { records: source.operands, is_rest: 1, ..prep };
        return launch(b, &b.kernels.prep, [input.n.div_ceil(8), 1, 1], THREADS, 0, &rest);
    }
    let (n_rows, quads, has_norm) = (input.n.next_multiple_of(8), input.stride / 4, input.norm != KIGO_NORM_NONE);
    let is_rms = input.norm == KIGO_NORM_RMS;
    (source.prepared, source.records) = (Some((bf16, order)), records);
    let [few, few_normed] = &b.kernels.prep_few;
    if is_few && !has_norm {
        return launch(b, few, [n_rows, quads.div_ceil(THREADS), 1], THREADS, 0, &prep);
    }
    if is_few && is_rms && quads <= PREP_NORMED {
        let threads = quads.next_multiple_of(32).clamp(THREADS, PREP_THREADS);
        return launch(b, few_normed, [n_rows, 1, 1], threads, input.stride * 4, &prep);
    }
    if is_rms && order == KIGO_ORDER_SWIZZLED && !bf16 && input.stride <= PREP_WIDTH {
        return launch(b, &b.kernels.prep_normed, [n_rows, 1, 1], THREADS, 0, &prep);
    }
    // A norm is one block's. Other rows are spread over the card while they are few, down to a load for each thread.
    let most = if has_norm { 1 } else { quads.div_ceil(THREADS) };
    let parts = (PREP_BLOCKS * b.kernels.card.n_sm / n_rows).clamp(most.div_ceil(PREP_LOADS), most);
    let shared_bytes = if has_norm { input.stride * 4 } else { 0 };
    launch(b, &b.kernels.prep, [n_rows, parts, 1], THREADS, shared_bytes, &prep)
}

/// Queues a product whose rows stand as its kernel takes them.
pub fn launch_product(b: &CudaBackend, product: &Product, blocks: &Blocks, params: &KigoMatmul) -> Result<()> {
    let kernel = b.kernels.types.of(product.quant)?.of(blocks.kernel);
    launch(b, kernel, blocks.grid, blocks.kernel.threads(product.quant), blocks.shared_bytes, params)?;
    if blocks.kernel == Kernel::PrefillSplit {
        let grid = Card::adders(params.n, params.n_tiles);
        launch(b, &b.kernels.add_slices, grid, THREADS, 0, params)?;
    }
    Ok(())
}

/// Queues a product.
pub fn multiply(b: &CudaBackend, source: &mut Source, product: &Product, result: Outcome) -> Result<()> {
    let blocks = b.kernels.card.blocks(&job(&source.input, product, result.kind, source.input.n));
    if blocks.kernel != Kernel::One {
        prepare(b, source, product, blocks.kernel)?;
    }
    launch_product(b, product, &blocks, &matmul(b, source, product, result, &blocks))
}

/// x = rows of `token_embd`, and of `position_embd`; rope turns; the magnitudes of all layers become zero. The `number` of the
/// step is raised where there is one.
pub fn embed(b: &CudaBackend, number: u64) -> Result<()> {
    let (w, table) = (&b.work, &b.places.token_embd);
    let params = KigoEmbed {
        rows: w.rows.address(),
        weights: b.weights.address() + table.offset,
        x: w.x.address(),
        positions: b.places.position_embd.map_or(0, |offset| b.weights.address() + offset),
        angles: w.angles.address(),
        turns: w.turns.address(),
        magnitudes: w.magnitudes.address(),
        x_magnitudes: w.x_magnitudes(0, false),
        number,
        n_magnitudes: w.sizes.n_magnitudes as u32,
        magnitudes_stride: w.sizes.n_rows as u32,
        n_turns: w.sizes.n_turns as u32,
        n_records: table.n_records as u32,
        k: b.desc.n_embd as u32,
        stride: w.sizes.n_embd as u32,
        scale: b.desc.embd_scale * table.weight_scale,
        pad: 0,
    };
    // A warp for eight units while rows are few. Magnitudes of x are raised after they are zero, by the same block.
    let n_units = stride(b.desc.n_embd) as u32 / 64;
    let (n, most) = (b.shape.n as u32, n_units.div_ceil(8 * WARPS) + 1);
    let n_blocks = if params.x_magnitudes == 0 { (b.kernels.card.n_sm / n.max(1)).clamp(1, most) } else { 1 };
    launch(b, &b.kernels.types.of(table.quant)?.embed, [n, n_blocks, 1], THREADS, 0, &params)
}

/// What becomes of q, k and v of a layer.
pub fn heads(b: &CudaBackend, layer: usize) -> KigoHeads {
    let (l, w) = (&b.places.layers[layer], &b.work);
    let at = |offset: Option<u64>| offset.map_or(0, |offset| b.weights.address() + offset);
    KigoHeads {
        qkv: qkv(b, layer),
        x: w.heads.address(),
        bias: l.attn_bias.map(at),
        norm_weight: l.attn_qk_norm.map_or([0; 2], |norms| norms.map(|offset| at(Some(offset)))),
        stride: w.sizes.n_heads as u32,
        whole: u32::from(b.desc.qk_norm == Some(QkNorm::Row)),
        eps: b.desc.norm_eps,
        pad: 0,
    }
}

pub fn attn_qkv(b: &CudaBackend, layer: usize) -> Result<()> {
    let (l, d, w) = (&b.places.layers[layer], &b.desc, &b.work);
    let mut source = residual(b, layer, false, b.shape.n);
    let bias = l.attn_bias.map(|bias| bias.map_or(0, |offset| b.weights.address() + offset));
    let Some(norm) = d.qk_norm else {
        let result = Outcome { kind: KIGO_QKV, bias, layer, ..Outcome::default() };
        return l.attn_qkv.iter().try_for_each(|product| multiply(b, &mut source, product, result));
    };
    for product in &l.attn_qkv {
        let out = w.heads.address() + (product.first_tile * TILE_ROWS * 4) as u64;
        multiply(b, &mut source, product, Outcome { out, out_stride: w.sizes.n_heads, ..Outcome::default() })?;
    }
    let whole = norm == QkNorm::Row;
    let (n_blocks, n_heads) = if whole { (3, d.n_head) } else { (d.n_head + 2 * d.n_head_kv, 1) };
    let n_pairs = n_heads * d.head_dim.next_multiple_of(TILE_ROWS) / 2;
    let params = heads(b, layer);
    let threads = (n_pairs as u32).next_multiple_of(32).min(THREADS);
    launch(b, &b.kernels.heads, [b.shape.n as u32, n_blocks as u32, 1], threads, 0, &params)
}

pub fn attn_output(b: &CudaBackend, layer: usize) -> Result<()> {
    let (l, w) = (&b.places.layers[layer], &b.work);
    let mut source = plain(w.mix.address(), b.shape.n, b.desc.n_embd_q(), w.magnitudes(layer, false));
    source.operands = mix_operands(b, layer);
    let bias = [l.attn_output_bias.map_or(0, |offset| b.weights.address() + offset), 0, 0];
    let after = (l.attn_post_norm, w.x_magnitudes(layer, true), Handed::of_stream(b, layer, true));
    add(b, &mut source, &l.attn_output, bias, after)
}

pub fn ffn_up(b: &CudaBackend, layer: usize) -> Result<()> {
    let (l, w) = (&b.places.layers[layer], &b.work);
    if let (Some(router), Some(experts)) = (&l.ffn_gate_inp, &w.experts) {
        return experts::ffn_up(b, layer, router, experts);
    }
    let mut source = residual(b, layer, true, b.shape.n);
    let operands = ff_operands(b, layer);
    gate(b, layer, w.magnitudes(layer, true), &mut source, |source, product, result| {
        // Of gate and up apart, the second.
        let operands = if result.kind == KIGO_STORE { 0 } else { operands };
        multiply(b, source, product, Outcome { operands, ..result })
    })
}

/// The products of gate and up by `multiply`, and what becomes of them: to `ff`.
pub fn gate(
    b: &CudaBackend,
    layer: usize,
    magnitudes: u64,
    source: &mut Source,
    mut multiply: impl FnMut(&mut Source, &Product, Outcome) -> Result<()>,
) -> Result<()> {
    let l = &b.places.layers[layer];
    let [gate_bias, up_bias] = l.ffn_gate_bias.map(|bias| bias.map_or(0, |offset| b.weights.address() + offset));
    let out = Outcome { out: b.work.ff.address(), out_stride: b.work.sizes.n_ff, ..Outcome::default() };
    match &l.ffn_gate {
        Gate::Joint(both) => {
            multiply(source, both, Outcome { kind: KIGO_GATED, magnitudes, bias: [gate_bias, up_bias, 0], ..out })
        }
        Gate::None(up) => {
            multiply(source, up, Outcome { kind: KIGO_UNGATED, magnitudes, bias: [up_bias, 0, 0], ..out })
        }
        Gate::Apart { gate, up } => {
            multiply(source, gate, Outcome { kind: KIGO_STORE, bias: [gate_bias, 0, 0], ..out })?;
            multiply(source, up, Outcome { kind: KIGO_GATE, magnitudes, bias: [up_bias, 0, 0], ..out })
        }
    }
}

pub fn ffn_down(b: &CudaBackend, layer: usize) -> Result<()> {
    let (l, w) = (&b.places.layers[layer], &b.work);
    let magnitudes = w.x_magnitudes(layer + 1, false);
    let bias = [l.ffn_down_bias.map_or(0, |offset| b.weights.address() + offset), 0, 0];
    if let Some(experts) = &w.experts {
        return experts::ffn_down(b, layer, bias, (l.ffn_post_norm, magnitudes), experts);
    }
    let mut source = plain(w.ff.address(), b.shape.n, b.desc.n_ff, w.magnitudes(layer, true));
    source.operands = ff_operands(b, layer);
    let after = (l.ffn_post_norm, magnitudes, Handed::of_stream(b, layer + 1, false));
    add(b, &mut source, &l.ffn_down, bias, after)
}

pub fn output(b: &CudaBackend) -> Result<()> {
    let (w, n_vocab) = (&b.work, b.desc.n_vocab);
    if b.shape.n_logits == 0 {
        return Ok(());
    }
    let source = normed(b, w.x.address(), b.shape.n_logits, b.desc.n_embd, b.places.output_norm);
    let mut source = Handed::of_stream(b, b.places.layers.len(), false).take(source);
    if !b.shape.all_want {
        source.input.select = w.select.address();
    }
    let result = Outcome {
        out: w.logits.address(),
        out_stride: n_vocab,
        scale: b.desc.logit_scale,
        softcap: b.desc.logit_softcap.unwrap_or(0.0),
        ..Outcome::default()
    };
    multiply(b, &mut source, &b.places.output, result)
}

/// A page holds as many positions as the kernels think.
const _: () = assert!(PAGE == super::params::KIGO_PAGE as usize);
