//! The feed-forward layer as a mixture of experts: see `kernels/experts.cu`.
//!
//! A row has a slot for each expert that it uses. The slots of one or two rows are multiplied each on its own with the matrix of its
//! expert; those of a few in groups that share one, which every block of the product finds for itself (`kernels/slot_groups.cuh`). Of
//! many rows the slots of an expert stand side by side (`group`). How many rows an expert has only the device knows: launches are
//! for the most that there can be, and blocks without rows end at once.

use std::sync::Arc;

use super::CudaBackend;
use super::blocks::{Card, Job, Kernel, MOST_GROUPED};
use super::context::Context;
use super::layout::{Gate, Product, TILE_ROWS};
use super::memory::DeviceBuffer;
use super::module::{Function, Module, embedded};
use super::params::{
    KIGO_GATE, KIGO_MAX_EXPERTS_USED, KIGO_ROUTE_MOST_EXPERTS, KIGO_STORE, KigoGroup, KigoMatmul, KigoMixExperts,
    KigoRoute, KigoRouteFew,
};
use super::stages::{
    Outcome, Sizes, Source, add_normed, gate, job, launch, launch_product, matmul, multiply, plain, prepare, residual,
};
use crate::model::{Experts, ModelDesc};
use crate::quant::QuantType;
use crate::{Error, Result};

/// Most rows whose slots are multiplied singly, and whose experts are chosen by `route_few` (`kernels/notes.md`).
const MOST_SINGLE: usize = 2;
const MOST_ROUTED: usize = 32;
/// Most slots that are multiplied in groups: of all experts, and of each on average.
const MOST_FEW: usize = MOST_GROUPED;
const MOST_OF_EXPERT: usize = 8;

const THREADS: u32 = 256;
const WARPS: usize = 8;
const GROUP_THREADS: u32 = 1024;
/// Pieces of a tile along k: `kSlices` of `kernels/fragments.cuh`.
const SLICES: usize = WARPS;
/// Shared memory that `route_few` has for a record of a slice.
const ROUTE_UNIT: u32 = 4352;
/// Most shared memory that `route_few` has besides what it is given.
const ROUTE_STATIC: u32 = 13 << 10;

/// Rows of the products for `n` rows of a batch: their slots, those of each expert rounded up to 8.
pub fn n_products(experts: Experts, n: usize) -> usize {
    let n_slots = n * experts.n_expert_used;
    (n_slots + 7 * experts.n_expert.min(n_slots)).next_multiple_of(8)
}

/// Rows that there are operands of at most, for batches of up to `n`. Products of few rows have a half of them by turns.
pub fn n_operands(experts: Experts, n: usize) -> usize {
    let n_slots = (n * experts.n_expert_used).min(MOST_FEW);
    n_products(experts, n).max(n).max(2 * n_slots.next_multiple_of(8))
}

/// Bytes of each buffer, in the order of [`Workspace`], for batches of up to `n` rows.
pub fn bytes(experts: Experts, n: usize, n_embd: usize) -> [usize; 10] {
    let (n_slots, n_products) = (n * experts.n_expert_used, n_products(experts, n));
    let n_routed = n.min(MOST_ROUTED);
    [
        n * experts.n_expert * 4,
        n_slots * 4,
        n_slots * 4,
        n_slots * 4,
        n_products * 4,
        (experts.n_expert + 1) * 4,
        n_products * 4,
        n_products * super::layout::stride(n_embd) * 4,
        n_routed * SLICES * experts.n_expert.next_multiple_of(TILE_ROWS) * 4,
        n_routed * 4,
    ]
}

/// What passes from the router to the sum.
pub struct Workspace {
    experts: Experts,
    /// f32 `[n, n_expert]`
    logits: DeviceBuffer,
    /// u32 `[n, n_expert_used]`: the expert of each slot.
    chosen: DeviceBuffer,
    /// f32 `[n, n_expert_used]`
    weights: DeviceBuffer,
    /// u32 `[n, n_expert_used]`: which row of the products is the slot's.
    places: DeviceBuffer,
    /// u32 `[n_products]`: which row of the batch each row of the products takes.
    rows: DeviceBuffer,
    /// u32 `[n_expert + 1]`: where the rows of each expert start.
    starts: DeviceBuffer,
    /// u32 `[n_products]`: the largest magnitude of each row of `ff`.
    magnitudes: DeviceBuffer,
    /// f32 `[n_products, n_embd]`: what the experts give.
    products: DeviceBuffer,
    /// f32 `[rows of route_few, slices, n_expert]`: the sums of the router, and u32 `[rows of route_few]`.
    sums: DeviceBuffer,
    counters: DeviceBuffer,
}

impl Workspace {
    /// # Errors
    /// Those of `buffer`.
    pub fn new(experts: Experts, sizes: &Sizes, buffer: impl Fn(usize) -> Result<DeviceBuffer>) -> Result<Workspace> {
        let [logits, chosen, weights, places, rows, starts, magnitudes, products, sums, counters] =
            bytes(experts, sizes.n_rows, sizes.n_embd);
        Ok(Workspace {
            experts,
            logits: buffer(logits)?,
            chosen: buffer(chosen)?,
            weights: buffer(weights)?,
            places: buffer(places)?,
            rows: buffer(rows)?,
            starts: buffer(starts)?,
            magnitudes: buffer(magnitudes)?,
            products: buffer(products)?,
            sums: buffer(sums)?,
            counters: buffer(counters)?,
        })
    }
}

/// The kernels of `experts.cu`.
pub struct Kernels {
    route: Function,
    route_few: Function,
    group: Function,
    mix: Function,
}

impl Kernels {
    /// # Errors
    /// Those of loading kernels.
    pub fn new(context: &Arc<Context>, card: &Card) -> Result<Kernels> {
        let module = Module::load(context, embedded("experts")?)?;
        let route_few = module.function("route_few")?;
        route_few.set_max_shared_bytes(card.block_shared.saturating_sub(ROUTE_STATIC))?;
        Ok(Kernels {
            route: module.function("route")?,
            route_few,
            group: module.function("group")?,
            mix: module.function("mix_experts")?,
        })
    }
}

/// What the kernels cannot do.
///
/// # Errors
/// `BadFile`, naming the key.
pub fn check(desc: &ModelDesc) -> Result<()> {
    let Some(experts) = desc.experts else { return Ok(()) };
    let (most, found) = (KIGO_MAX_EXPERTS_USED as usize, experts.n_expert_used);
    if found > most {
        let key = format!("{}.expert_used_count", desc.architecture);
        return Err(Error::bad_file(key, format!("at most {most} on a GPU"), found));
    }
    Ok(())
}

/// How slots are multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Each on its own.
    Single,
    /// In groups, by [`Kernel::Grouped`].
    Few,
    /// Where they stand by expert.
    Many,
}

/// How the rows of a batch become rows of the products.
#[derive(Clone, Copy)]
struct Rows {
    /// Rows of the batch.
    n: usize,
    n_slots: usize,
    n_products: usize,
    way: Way,
}

impl Rows {
    fn of(b: &CudaBackend, layer: usize, experts: Experts) -> Rows {
        let (n, l) = (b.shape.n, &b.places.layers[layer]);
        let n_slots = n * experts.n_expert_used;
        let fits = |product: &Product| {
            let job = job(&plain(0, 1, product.k, 0).input, product, KIGO_STORE, 1);
            b.kernels.card.grouped(&job, n_slots as u32, experts.n_expert as u32).is_some()
        };
        let all_fit = fits(&l.ffn_down)
            && match &l.ffn_gate {
                Gate::Joint(product) | Gate::None(product) => fits(product),
                Gate::Apart { gate, up } => fits(gate) && fits(up),
            };
        let most_few = MOST_FEW.min(MOST_OF_EXPERT * experts.n_expert);
        let way = match n {
            ..=MOST_SINGLE => Way::Single,
            _ if n_slots <= most_few && all_fit => Way::Few,
            _ => Way::Many,
        };
        Rows { n, n_slots, n_products: if way == Way::Many { n_products(experts, n) } else { n_slots }, way }
    }
}

/// The router, and the first half of the experts: to `ff`.
///
/// # Errors
/// Those of launches.
pub fn ffn_up(b: &CudaBackend, layer: usize, router: &(Product, Option<u64>), w: &Workspace) -> Result<()> {
    let rows = Rows::of(b, layer, w.experts);
    let (router, bias) = router;
    let mut source = residual(b, layer, true, rows.n);
    let bias = [bias.map_or(0, |offset| b.weights.address() + offset), 0, 0];
    if !route_few(b, w, rows, &source, router, bias[0])? {
        let out_stride = w.experts.n_expert;
        let result = Outcome { kind: KIGO_STORE, out: w.logits.address(), out_stride, bias, ..Outcome::default() };
        multiply(b, &mut source, router, result)?;
        let grid = [rows.n.div_ceil(WARPS) as u32, 1, 1];
        launch(b, &kernels(b)?.route, grid, THREADS, 0, &route_params(w, rows))?;
    }
    if rows.way == Way::Many {
        group(b, w, rows)?;
    }

    // Slots by row take their row themselves; those by expert are told which.
    let mut source = residual(b, layer, true, if rows.way == Way::Few { rows.n } else { rows.n_products });
    if rows.way == Way::Many {
        source.input.select = w.rows.address();
    }
    let share = w.experts.n_expert_used;
    gate(b, layer, w.magnitudes.address(), &mut source, |source, product, result| {
        // The first of two follows the router.
        multiply_experts(b, w, rows, source, product, result, (share, result.kind != KIGO_GATE))
    })
}

/// The second half of the experts, and the sum: x += it, after a norm where there is one. `magnitudes` are those of x, or 0.
///
/// # Errors
/// Those of launches.
pub fn ffn_down(
    b: &CudaBackend,
    layer: usize,
    bias: [u64; 3],
    (post_norm, magnitudes): (Option<u64>, u64),
    w: &Workspace,
) -> Result<()> {
    let (d, rows, product) = (&b.desc, Rows::of(b, layer, w.experts), &b.places.layers[layer].ffn_down);
    let mut source = plain(b.work.ff.address(), rows.n_products, d.n_ff, w.magnitudes.address());
    let n_embd = b.work.sizes.n_embd;
    let result =
        Outcome { kind: KIGO_STORE, out: w.products.address(), out_stride: n_embd, bias, ..Outcome::default() };
    multiply_experts(b, w, rows, &mut source, product, result, (1, false))?;
    let params = KigoMixExperts {
        products: w.products.address(),
        weights: w.weights.address(),
        places: w.places.address(),
        out: if post_norm.is_some() { b.work.delta.address() } else { b.work.x.address() },
        scale: if post_norm.is_some() { 1.0 } else { d.residual_scale },
        store: u32::from(post_norm.is_some()),
        n_used: w.experts.n_expert_used as u32,
        n_columns: d.n_embd as u32,
        in_stride: n_embd as u32,
        out_stride: n_embd as u32,
    };
    launch(b, &kernels(b)?.mix, [params.n_columns.div_ceil(THREADS), rows.n as u32, 1], THREADS, 0, &params)?;
    match post_norm {
        Some(norm) => add_normed(b, norm, magnitudes),
        None => Ok(()),
    }
}

/// What the router is told of the experts.
fn route_params(w: &Workspace, rows: Rows) -> KigoRoute {
    KigoRoute {
        logits: w.logits.address(),
        experts: w.chosen.address(),
        weights: w.weights.address(),
        places: w.places.address(),
        magnitudes: w.magnitudes.address(),
        n: rows.n as u32,
        n_expert: w.experts.n_expert as u32,
        n_used: w.experts.n_expert_used as u32,
        n_products: rows.n_products as u32,
    }
}

/// The product of the router and the choice of experts in one, of few rows. False where the kernel cannot.
fn route_few(b: &CudaBackend, w: &Workspace, rows: Rows, source: &Source, router: &Product, bias: u64) -> Result<bool> {
    let n_units = router.n_records.div_ceil(SLICES) as u32;
    let shared_bytes = n_units * ROUTE_UNIT + source.input.stride * 4;
    let fits = shared_bytes + ROUTE_STATIC <= b.kernels.card.block_shared
        && w.experts.n_expert <= KIGO_ROUTE_MOST_EXPERTS as usize;
    if rows.n > MOST_ROUTED || router.quant != QuantType::F32 || !fits {
        return Ok(false);
    }
    let params = KigoRouteFew {
        input: source.input,
        weights: b.weights.address() + router.offset,
        bias,
        sums: w.sums.address(),
        counters: w.counters.address(),
        route: route_params(w, rows),
        n_tiles: router.n_tiles as u32,
        n_records: router.n_records as u32,
        weight_scale: router.weight_scale,
        pad: 0,
    };
    let grid = [(router.n_tiles * SLICES) as u32, rows.n as u32, 1];
    launch(b, &kernels(b)?.route_few, grid, THREADS, shared_bytes, &params)?;
    Ok(true)
}

/// Which rows experts have.
fn group(b: &CudaBackend, w: &Workspace, rows: Rows) -> Result<()> {
    let n_expert = w.experts.n_expert as u32;
    let params = KigoGroup {
        experts: w.chosen.address(),
        places: w.places.address(),
        rows: w.rows.address(),
        starts: w.starts.address(),
        n_slots: rows.n_slots as u32,
        n_used: w.experts.n_expert_used as u32,
        n_expert,
        n_products: rows.n_products as u32,
    };
    launch(b, &kernels(b)?.group, [1, 1, 1], GROUP_THREADS, n_expert * 4, &params)
}

/// Products with the matrices of experts; `share` slots take the same row of the source where they stand by row. `is_told` says
/// that the kernel ahead chooses the experts.
fn multiply_experts(
    b: &CudaBackend,
    w: &Workspace,
    rows: Rows,
    source: &mut Source,
    product: &Product,
    result: Outcome,
    (share, is_told): (usize, bool),
) -> Result<()> {
    let (n, n_expert, n_slots) = (rows.n as u32, w.experts.n_expert as u32, rows.n_slots as u32);
    let job = job(&source.input, product, result.kind, if rows.way == Way::Many { n } else { 1 });
    let (card, no_blocks) =
        (&b.kernels.card, || Error::Internal(format!("no block holds experts of {} columns", product.k)));
    let (experts, share) = (w.chosen.address(), share as u32);
    match rows.way {
        Way::Single => {
            let blocks = card.blocks(&Job { copies: n_slots, ..job });
            if blocks.kernel != Kernel::One {
                return Err(no_blocks());
            }
            let params = matmul(b, source, product, result, &blocks);
            let is_told = u32::from(is_told);
            launch_product(b, product, &blocks, &KigoMatmul { experts, share, is_told, ..params })
        }
        Way::Few => {
            let blocks = card.grouped(&job, n_slots, n_expert).ok_or_else(no_blocks)?;
            prepare(b, source, product, blocks.kernel)?;
            let params = matmul(b, source, product, result, &blocks);
            launch_product(b, product, &blocks, &KigoMatmul { experts, share, n: n_slots, ..params })
        }
        Way::Many => {
            let blocks = card.blocks(&Job { copies: n_expert, each: n_slots.div_ceil(n_expert.max(1)), ..job });
            prepare(b, source, product, blocks.kernel)?;
            let params = matmul(b, source, product, result, &blocks);
            launch_product(b, product, &blocks, &KigoMatmul { starts: w.starts.address(), n_expert, ..params })
        }
    }
}

fn kernels(b: &CudaBackend) -> Result<&Kernels> {
    b.kernels.experts.as_ref().ok_or_else(|| Error::Internal("no kernels for experts".into()))
}
