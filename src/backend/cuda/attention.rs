//! Attention as launches: of single rows, and of tiles of rows.

use std::sync::Arc;

use super::CudaBackend;
use super::blocks::{AttentionBlocks, Card};
use super::context::Context;
use super::handed::mix_operands;
use super::kv_cache::PAGE;
use super::memory::{DeviceBuffer, Purpose};
use super::module::{Function, Module, embedded};
use super::params::{KIGO_FIRST_TURN, KIGO_FLASH_SHARED, KIGO_LAST_TURN, KigoAttention, KigoAttentionParts};
use super::stages::{Shape, launch};
use crate::Result;
use crate::model::ModelDesc;

const PREFILL_THREADS: u32 = 128;
const FLASH_THREADS: u32 = 384;
/// From so many keys of a row on `attn_flash` is faster than `attn_prefill`: each tile begins and ends longer.
const FLASH_KEYS: u32 = 512;
/// Heads that a block for single rows takes.
pub const HEADS_OF_BLOCK: usize = 16;
/// Positions that one block attends to at most where there are more of them than `MOST_PAGE_UNITS` pages, as in
/// `kernels/attention.cu`.
const CHUNK: usize = 8 * PAGE;
const MOST_PAGE_UNITS: usize = 40;
/// Heads that a block of `attn_flash` computes at a time, threads of a block of `attn_join`, and heads that this takes.
const FLASH_HEADS: usize = 2;
const JOIN_THREADS: u32 = 128;
const JOIN_HEADS: usize = 4;
/// Most bytes of what chunks give before it is joined; if there is more, it is joined in turns.
const PARTIALS: usize = 64 << 20;
/// Chunks that a block attends to in the time that it takes to begin and to end a tile; to join, for each chunk that is joined, and for
/// each byte of what they give (`kernels/attention.md`, "By parts of chunks").
const TILE_COST: f64 = 0.6;
const JOIN_COST: f64 = 0.4;
const JOINED_COST: f64 = 0.025;
const PARTIALS_COST: f64 = 1.0 / 25e6;
/// Most parts of a tile that are thought about.
const MOST_PARTS: usize = 32;

/// The attention kernels of a model.
pub struct Kernels {
    decode: Decode,
    /// That of few rows, where it has a kernel of its own.
    lone: Option<Decode>,
    prefill: Function,
    prefill_shared: u32,
    /// Attention of many rows where it has kernels of its own, on sm_90a.
    flash: Option<Flash>,
}

/// Attention of many rows on sm_90a: a tile after the other, or by parts of their pages, which are joined.
pub struct Flash {
    whole: Function,
    parts: Function,
    join: Function,
}

impl Flash {
    fn new(context: &Arc<Context>, head_width: usize) -> Result<Flash> {
        let module = Module::load(context, embedded("flash")?)?;
        let of = |name: &str| module.function(&format!("attn_{name}_{head_width}"));
        let flash = Flash { whole: of("flash")?, parts: of("flash_parts")?, join: of("join")? };
        flash.whole.set_max_shared_bytes(KIGO_FLASH_SHARED)?;
        flash.parts.set_max_shared_bytes(KIGO_FLASH_SHARED)?;
        Ok(flash)
    }
}

/// How the chunks that a batch sees are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ChunkParts {
    /// The first that somebody sees, and how many there are.
    first: usize,
    n: usize,
    /// Those of a turn, and of a block in it.
    of_turn: usize,
    of_part: usize,
}

impl ChunkParts {
    /// For `n_head` heads of so many elements that share `n_head_kv`, a batch of `shape` and rows that see `before` positions before
    /// their own, on `n_sm` blocks. `None` where it is as soon done a tile after the other.
    fn of(
        [n_head, n_head_kv, head_width]: [usize; 3],
        n_sm: usize,
        shape: &Shape,
        before: usize,
    ) -> Option<ChunkParts> {
        let n_works = n_head_kv * (n_head / n_head_kv).div_ceil(FLASH_HEADS) * shape.n_tiles;
        let first = shape.first_position.saturating_sub(before) / CHUNK;
        let n = shape.n_positions.div_ceil(CHUNK).saturating_sub(first);
        let of_chunk = shape.n * n_head * (head_width + 2) * 4;
        // What there is of all turns takes as much as a chunk.
        let most = (PARTIALS / of_chunk.max(1)).saturating_sub(1);
        if n < 2 || most == 0 {
            return None;
        }
        // In the time that a block takes for a chunk.
        let time = |n_works: usize, n_chunks: usize| n_works.div_ceil(n_sm) as f64 * (n_chunks as f64 + TILE_COST);
        let n_turns = n.div_ceil(most);
        let of_turn = n.div_ceil(n_turns);
        let join = JOIN_COST + of_turn as f64 * (JOINED_COST + of_chunk as f64 * PARTIALS_COST);
        let in_parts = |n_parts: usize| {
            let of_part = of_turn.div_ceil(n_parts);
            let turn = time(n_works * of_turn.div_ceil(of_part), of_part) + join;
            (n_turns as f64 * turn, of_part)
        };
        let all = (1..=MOST_PARTS.min(of_turn)).map(in_parts);
        let (least, of_part) = all.min_by(|a, b| a.0.total_cmp(&b.0))?;
        // Less than a tenth is not worth the launches.
        (1.1 * least < time(n_works, n)).then_some(ChunkParts { first, n, of_turn, of_part })
    }
}

/// Attention of single rows.
struct Decode {
    kernel: Function,
    blocks: AttentionBlocks,
}

impl Decode {
    fn new(module: &Module, name: &str, blocks: AttentionBlocks) -> Result<Decode> {
        let kernel = module.function(name)?;
        kernel.set_max_shared_bytes(blocks.shared_bytes)?;
        Ok(Decode { kernel, blocks })
    }
}

impl Kernels {
    /// # Errors
    /// Those of loading kernels.
    pub fn new(context: &Arc<Context>, card: &Card, desc: &ModelDesc, head_width: usize) -> Result<Kernels> {
        let module = Module::load(context, embedded("attention")?)?;
        let group = desc.n_head / desc.n_head_kv;
        let decode = Decode::new(&module, &format!("attn_decode_{head_width}"), card.attention(head_width, group))?;
        let lone = card.lone_attention(head_width, group);
        let lone = lone.map(|blocks| Decode::new(&module, &format!("attn_decode_lone_{head_width}"), blocks));
        let lone = lone.transpose()?;
        let prefill = module.function(&format!("attn_prefill_{head_width}"))?;
        let prefill_shared = head_width as u32 * if head_width <= 128 { 512 } else { 384 };
        prefill.set_max_shared_bytes(prefill_shared)?;
        let flash = if card.flashes(head_width) { Some(Flash::new(context, head_width)?) } else { None };
        Ok(Kernels { decode, lone, prefill, prefill_shared, flash })
    }
}

/// The parameters of a layer's attention, of rows that are spread over up to `splits` blocks for each of their groups of heads.
pub fn params(b: &CudaBackend, layer: usize, splits: u32) -> KigoAttention {
    let (d, w) = (&b.desc, &b.work);
    let (cache, l) = (b.cache.sizes(), &b.places.layers[layer]);
    let place = cache.layers[layer];
    KigoAttention {
        rows: w.rows.address(),
        tiles: w.tiles.address(),
        q: w.q.address(),
        out: w.mix.address(),
        magnitudes: w.magnitudes(layer, false),
        counters: w.counters.address(),
        sinks: l.attn_sinks.map_or(0, |offset| b.weights.address() + offset),
        operands: 0,
        n_head: d.n_head as u32,
        n_head_kv: d.n_head_kv as u32,
        head_dim: d.head_dim as u32,
        table: (place.group * cache.n_entries) as u32,
        layer: place.index as u32,
        areas: cache.areas_entry() as u32,
        before: place.before,
        softcap: d.attn_softcap.map_or(0.0, |cap| cap * std::f32::consts::LOG2_E),
        softcap_rate: d.attn_softcap.map_or(0.0, |cap| 2.0 / cap),
        splits,
        out_stride: w.sizes.n_mix as u32,
        n_tiles: b.shape.n_tiles as u32,
        n: b.shape.n as u32,
        pad: 0,
    }
}

/// Attention of many rows of a layer, where they are attended to on the asynchronous tensor cores.
pub fn flash_of(b: &CudaBackend, layer: usize) -> Option<&Flash> {
    // What a window hides is not read, but for the rest of a page.
    let n_keys = (b.cache.sizes().layers[layer].before + 1).min(b.shape.n_positions as u32);
    b.kernels.attention.flash.as_ref().filter(|_| b.shape.n_tiles > 0 && n_keys >= FLASH_KEYS)
}

/// Queues a layer's attention: of all rows alone, or by the batch's tiles.
///
/// # Errors
/// `DeviceLost`, `DeviceError`.
pub fn attn_mix(b: &CudaBackend, layer: usize) -> Result<()> {
    let kernels = &b.kernels.attention;
    if b.shape.n_tiles == 0 {
        return decode(b, layer);
    }
    let params = KigoAttention { operands: mix_operands(b, layer), ..params(b, layer, 1) };
    if let Some(flash) = flash_of(b, layer) {
        return match (&b.work.partials, parts_of(b, layer)) {
            (Some(partials), Some(parts)) => in_parts(b, flash, params, parts, partials.address()),
            _ => launch(b, &flash.whole, [b.kernels.card.n_sm, 1, 1], FLASH_THREADS, KIGO_FLASH_SHARED, &params),
        };
    }
    let grid = [b.shape.n_tiles as u32, b.desc.n_head as u32, 1];
    launch(b, &kernels.prefill, grid, PREFILL_THREADS, kernels.prefill_shared, &params)
}

fn parts_of(b: &CudaBackend, layer: usize) -> Option<ChunkParts> {
    let (k, before) = (&b.kernels, b.cache.sizes().layers[layer].before);
    ChunkParts::of([b.desc.n_head, b.desc.n_head_kv, k.head_width], k.card.n_sm as usize, &b.shape, before as usize)
}

/// Sees to it that there is room for what chunks give, where the batch is attended to in parts; without it, it is not.
pub fn make_room(b: &mut CudaBackend) {
    let wants = |layer| flash_of(b, layer).is_some() && parts_of(b, layer).is_some();
    if b.work.partials.is_none() && (0..b.desc.n_layer()).any(wants) {
        b.work.partials =
            DeviceBuffer::new(&b.context, Purpose::Workspace, PARTIALS, "what chunks of attention give").ok();
    }
}

fn in_parts(b: &CudaBackend, flash: &Flash, attention: KigoAttention, parts: ChunkParts, partials: u64) -> Result<()> {
    let end = parts.first + parts.n;
    let mut first = parts.first;
    while first < end {
        let n = parts.of_turn.min(end - first);
        let turn = [(first == parts.first, KIGO_FIRST_TURN), (first + n == end, KIGO_LAST_TURN)];
        let params = KigoAttentionParts {
            attention,
            partials,
            first_chunk: first as u32,
            n_chunks: n as u32,
            of_part: parts.of_part as u32,
            turn: turn.iter().map(|(is, bit)| if *is { *bit } else { 0 }).sum(),
        };
        launch(b, &flash.parts, [b.kernels.card.n_sm, 1, 1], FLASH_THREADS, KIGO_FLASH_SHARED, &params)?;
        let n_joins = (b.shape.n * b.desc.n_head).div_ceil(JOIN_HEADS);
        launch(b, &flash.join, [n_joins as u32, 1, 1], JOIN_THREADS, 0, &params)?;
        first += n;
    }
    Ok(())
}

/// Attention of single rows. More blocks than their pages give work, or than fit on the device, gain nothing.
fn decode(b: &CudaBackend, layer: usize) -> Result<()> {
    let (n, n_blocks, kernels) = (b.shape.n as u32, b.work.sizes.counters as u32, &b.kernels.attention);
    // A block takes a page at a time, or eight of short and of long contexts.
    let most = b.n_ctx.div_ceil(PAGE).min(MOST_PAGE_UNITS).max(b.n_ctx.div_ceil(CHUNK) + 1).min(64);
    // Blocks that are alone on a multiprocessor, while there are no more of them.
    let n_sm = b.kernels.card.n_sm;
    let Decode { kernel, blocks } = kernels.lone.as_ref().filter(|_| n_blocks * n <= n_sm).unwrap_or(&kernels.decode);
    let splits = (blocks.per_sm * n_sm / (n_blocks * n)).clamp(1, most as u32);
    let params = KigoAttention { operands: mix_operands(b, layer), ..params(b, layer, splits) };
    launch(b, kernel, [n_blocks, n, splits], blocks.threads, blocks.shared_bytes, &params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::params::KIGO_ALL_BEFORE;

    const LLAMA_8B: [usize; 3] = [32, 8, 128];
    const SMOLLM2: [usize; 3] = [9, 3, 64];

    fn parts(heads: [usize; 3], start: usize, n: usize, before: usize) -> Option<[usize; 4]> {
        let (n_tiles, n_positions) = (n.div_ceil(64), start + n);
        let shape = Shape { n, n_tiles, n_positions, first_position: start, ..Shape::default() };
        ChunkParts::of(heads, 132, &shape, before).map(|parts| [parts.first, parts.n, parts.of_turn, parts.of_part])
    }

    #[test]
    fn few_tiles_are_divided_so_that_all_blocks_have_something_to_do() {
        let all = KIGO_ALL_BEFORE as usize;
        // A tile is 16 pairs of heads, so 8 parts of it.
        assert_eq!(parts(LLAMA_8B, 8192, 30, all), Some([0, 17, 17, 3]));
        assert_eq!(parts(LLAMA_8B, 8192, 130, all), Some([0, 17, 17, 4]), "48 in 5 parts");
        assert_eq!(parts(LLAMA_8B, 8192, 300, all), None, "80, which leave much to join");
        assert_eq!(parts(LLAMA_8B, 8192, 512, all), None, "128");
        assert_eq!(parts(LLAMA_8B, 0, 30, all), None, "one chunk");
        assert_eq!(parts(LLAMA_8B, 8192, 30, 1023), Some([14, 3, 3, 1]), "a window");
        assert_eq!(parts(SMOLLM2, 200_000, 512, all), Some([0, 392, 49, 10]), "turns that there is room for");
        for n in [128, 512, 1024, 2048] {
            assert_eq!((parts(LLAMA_8B, 0, n, all), parts([32, 8, 64], 0, n, all)), (None, None), "a prompt of {n}");
        }
    }

    #[test]
    fn what_chunks_give_fits_its_room() {
        for (heads, n) in [(LLAMA_8B, 1), (LLAMA_8B, 64), (LLAMA_8B, 256), (SMOLLM2, 704), ([128, 8, 128], 60)] {
            let [_, n_chunks, of_turn, of_part] = parts(heads, 130_000, n, KIGO_ALL_BEFORE as usize).unwrap();
            assert!((of_turn + 1) * n * heads[0] * (heads[2] + 2) * 4 <= PARTIALS, "{heads:?}, {n} rows");
            assert!(of_part <= of_turn && of_turn <= n_chunks);
        }
    }
}
