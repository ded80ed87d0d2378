//! Attention as launches: of single rows, and of tiles of rows.

use std::sync::Arc;

use super::CudaBackend;
use super::blocks::{AttentionBlocks, Card};
use super::context::Context;
use super::handed::mix_operands;
use super::kv_cache::PAGE;
use super::module::{Function, Module, embedded};
use super::params::{KIGO_FLASH_SHARED, KigoAttention};
use super::stages::launch;
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

/// The attention kernels of a model.
pub struct Kernels {
    decode: Decode,
    /// That of few rows, where it has a kernel of its own.
    lone: Option<Decode>,
    prefill: Function,
    prefill_shared: u32,
    /// Attention of many rows where it has a kernel of its own, on sm_90a.
    flash: Option<Function>,
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
        let flash = if card.flashes(head_width) { Some(flash(context, head_width)?) } else { None };
        Ok(Kernels { decode, lone, prefill, prefill_shared, flash })
    }
}

/// Attention of many rows on sm_90a.
fn flash(context: &Arc<Context>, head_width: usize) -> Result<Function> {
    let flash = Module::load(context, embedded("flash")?)?.function(&format!("attn_flash_{head_width}"))?;
    flash.set_max_shared_bytes(KIGO_FLASH_SHARED)?;
    Ok(flash)
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
pub fn flash_of(b: &CudaBackend, layer: usize) -> Option<&Function> {
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
        return launch(b, flash, [b.kernels.card.n_sm, 1, 1], FLASH_THREADS, KIGO_FLASH_SHARED, &params);
    }
    let grid = [b.shape.n_tiles as u32, b.desc.n_head as u32, 1];
    launch(b, &kernels.prefill, grid, PREFILL_THREADS, kernels.prefill_shared, &params)
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
