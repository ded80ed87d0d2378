//! How a product is cut into blocks: which kernel of `kernels/matmul.cu` computes it, with how many blocks, and how much
//! shared memory each has. All kernels add in one order, so that this changes no bit of a result.

use super::layout::{
    THREADS, TILE_ROWS, WARPS, activation_bytes, code_bits, record_bytes, record_columns, stride, wants_bf16,
};
use super::module::has_code_for;
use super::params::{
    KIGO_FLASH_SHARED, KIGO_LATE, KIGO_MAX_SLOTS, KIGO_ORDER_FRAGMENTS, KIGO_ORDER_SWIZZLED, KIGO_PIECE,
};
use crate::backend::DeviceInfo;
use crate::quant::QuantType;

/// Bytes under way to a multiprocessor that read fastest (`kernels/notes.md`): all slots of its rings but one of each.
const UNDER_WAY: u32 = 64 << 10;

/// Bytes of the pages that the blocks of a multiprocessor have at a time, `kPages` of `kernels/chunks.cuh`, and most shared memory
/// that a block has besides what it is given.
const CHUNKS_PAGES: u32 = 192 << 10;
const CHUNKS_STATIC: u32 = 4096;
/// Warps of the blocks of a multiprocessor that take chunks: `kLoneWarps` there.
const CHUNKS_WARPS: u32 = 8;
/// Threads of a block that takes pages one after the other: `kThreads` of `kernels/attention.cu`.
const PAGES_THREADS: u32 = 128;

/// What records in a ring start at a multiple of: `kLine` of `kernels/common.cuh`.
const LINE: u32 = 128;

/// Slots that a ring has at least, where there is room.
const FEWEST_SLOTS: u32 = 3;

/// By how many percent one block on a multiprocessor must have less to do than two before it is preferred: where a record is
/// multiplied as it is, and where its 8 warps would have to unpack what 16 do.
const LONE_GAIN: (u32, u32) = (5, 100);

/// Words of rings.
const RINGS_STATIC: u32 = WARPS * KIGO_MAX_SLOTS * 8;
/// Shared memory that `matmul_one` has besides: a number for each warp, sums of 8 turns, words of rings.
const ONE_STATIC: u32 = (WARPS * 8 + 8 * 2 * WARPS * TILE_ROWS as u32 * 4 + RINGS_STATIC).next_multiple_of(LINE);
/// Rows that `matmul_few8` takes at most.
pub const FEW_ROWS: u32 = 8;
/// What `matmul_few8`, `matmul_few16` and `matmul_few32` have besides: words of rings, of the first the factors of rows and a byte for each
/// warp.
const FEW_STATIC: u32 = (RINGS_STATIC + FEW_ROWS * 4 + WARPS).next_multiple_of(LINE);
/// Bytes that kernels for few rows copy together of each tile of a pair: `kPiece` of `kernels/matmul.cu`.
const PAIR_PIECE: u32 = 2432;
/// Slots of experts that `matmul_grouped` takes at most, and those of a group: `kMostGrouped` and `kGroupSlots` of
/// `kernels/slot_groups.cuh`.
pub const MOST_GROUPED: usize = 256;
const GROUP_SLOTS: u32 = 8;
/// The same of `matmul_grouped`, which has the groups besides: `SlotGroups`.
const GROUPED_STATIC: u32 =
    RINGS_STATIC + (5 * MOST_GROUPED as u32 + MOST_GROUPED as u32 / 8 + 8).next_multiple_of(LINE);
/// Dynamic shared memory of the kernels for sm_90a.
const PREFILL_SHARED: u32 = 227 << 10;
/// What the driver takes of each block (CUDA C++ Programming Guide, compute capabilities).
const RESERVED: u32 = 1 << 10;

/// A kernel of `kernels/matmul.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// One row, which it prepares itself.
    One,
    /// Up to 8 rows.
    Few8,
    /// Up to 16.
    Few16,
    /// Up to 32.
    Few32,
    /// Slots of experts, up to 8 of one expert at a time.
    Grouped,
    /// Any number.
    Many,
    /// The same with less shared memory.
    ManyNarrow,
    /// Any number, on sm_90a.
    Prefill,
    /// The same with more rows for a block.
    PrefillWide,
    /// The same where there are few items: a cluster has one or two slices of one, and `add_slices` of `kernels/slices.cu` adds them.
    PrefillSplit,
}

impl Kernel {
    /// Threads of a block, for a type.
    pub fn threads(self, quant: QuantType) -> u32 {
        match self {
            // Warpgroups that copy, finish and multiply.
            Kernel::Prefill if is_plain(quant) => (1 + 2 + 2) * 128,
            Kernel::Prefill | Kernel::PrefillWide => (1 + 1 + 2) * 128,
            Kernel::PrefillSplit => (1 + 2) * 128,
            _ => THREADS,
        }
    }

    /// In which order it takes activations, `KIGO_ORDER_...`.
    pub fn order(self) -> u32 {
        if self.prefills() { KIGO_ORDER_SWIZZLED } else { KIGO_ORDER_FRAGMENTS }
    }

    fn prefills(self) -> bool {
        matches!(self, Kernel::Prefill | Kernel::PrefillWide | Kernel::PrefillSplit)
    }
}

/// Blocks of a cluster of `matmul_prefill`.
pub const CLUSTER: u32 = 2;
/// Clusters of it at most.
pub const MOST_CLUSTERS: u32 = 72;
/// Rows of activations of a block of `matmul_many`.
const MANY_COLUMNS: u32 = 128;
/// Slices of a matrix along k, `kSlices` of `kernels/fragments.cuh`, and those that a block of `matmul_prefill_split` has at most.
const SLICES: u32 = WARPS;
const MOST_SLICES: u32 = 2;
/// Tiles of an item of a block, rows of a part of an item.
const ITEM_TILES: u32 = 8;
const PART_ROWS: u32 = 64;
/// Rows that a block of `add_slices` has: `kColumns` for each warp.
const ADDED_ROWS: u32 = 4 * WARPS;
/// Parts of an item at most, of `matmul_prefill_wide` and of the others.
const WIDE_PARTS: u32 = 3;
const NARROW_PARTS: u32 = 2;

/// How long items of the kernels for sm_90a take, as measured (`kernels/notes.md`): cycles for 64 columns of k, and what an item
/// takes besides.
struct Times {
    /// Of `matmul_prefill`, with 1 and 2 parts; what an item of gate and up takes besides.
    narrow: ([(u32, u32); NARROW_PARTS as usize], u32),
    /// Of `matmul_prefill_wide`, with 1, 2 and 3 parts; the same.
    wide: ([(u32, u32); WIDE_PARTS as usize], u32),
    /// Of `matmul_prefill_split` and `add_slices`, with 1 and 2 parts.
    split: [(u32, u32); NARROW_PARTS as usize],
    /// Cycles that finishing a part of gate and up takes, while the next item is multiplied: of the first, and of the second.
    finish: (u32, u32),
}

/// Of types whose records are multiplied as they are, and of others.
const PLAIN_TIMES: Times = Times {
    narrow: ([(555, 9500), (591, 10_350)], 8500),
    wide: ([(560, 14_600), (860, 14_600), (918, 14_600)], 7500),
    split: [(1440, 14_300), (1520, 18_300)],
    finish: (8500, 16_000),
};
const CODED_TIMES: Times = Times {
    narrow: ([(555, 500), (640, 500)], 500),
    wide: ([(560, 14_800), (760, 14_800), (816, 14_800)], 14_800),
    split: [(750, 29_000), (750, 29_000)],
    finish: (15_500, 18_000),
};

/// Whether the tensor cores take records of the type as they are.
fn is_plain(quant: QuantType) -> bool {
    code_bits(quant) == 16
}

impl Times {
    fn of(quant: QuantType) -> &'static Times {
        if is_plain(quant) { &PLAIN_TIMES } else { &CODED_TIMES }
    }

    /// Cycles of an item of so many units and parts, of which there may be none.
    fn item(&self, wide: bool, gated: bool, n_units: u32, n_parts: u32) -> u64 {
        let (parts, of_gated): (&[(u32, u32)], _) =
            if wide { (&self.wide.0, self.wide.1) } else { (&self.narrow.0, self.narrow.1) };
        let Some((of_unit, besides)) = parts.get((n_parts as usize).wrapping_sub(1)) else { return 0 };
        let besides = if gated { of_gated } else { *besides };
        let of_part = if wide { self.finish.1 } else { self.finish.0 };
        let finish = if gated { n_parts * of_part } else { 0 };
        (u64::from(n_units) * u64::from(*of_unit) + u64::from(besides)).max(u64::from(finish))
    }
}

/// A product, as far as its blocks depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// Type of the matrix.
    pub quant: QuantType,
    /// Rows of activations.
    pub n: u32,
    /// Their columns.
    pub k: usize,
    /// Whether they are normed.
    pub has_norm: bool,
    /// Tiles of the matrix.
    pub n_tiles: u32,
    /// Whether pairs of tiles belong together.
    pub gated: bool,
    /// How many such products are launched together: of single rows each with the matrix of an expert, or of all experts.
    pub copies: u32,
    /// Rows that each of them has on average; `n` is the most that one may have.
    pub each: u32,
}

impl Job {
    /// Numbers that all slices of the result have, as `slice_sums` of `kernels/prefill_finish.cuh` has them.
    pub fn sums(&self) -> u64 {
        let item = u64::from(ITEM_TILES) * TILE_ROWS as u64;
        u64::from(SLICES)
            * u64::from(self.n_tiles.div_ceil(ITEM_TILES))
            * u64::from(self.n.next_multiple_of(PART_ROWS))
            * item
    }
}

/// Numbers that `KigoMatmul::late` has room for: a part for each block, or the slices that it has of two.
pub const LATE: usize = (MOST_CLUSTERS * CLUSTER * NARROW_PARTS * MOST_SLICES * KIGO_LATE) as usize;

/// `pieces` of kernels that cut in another way.
const NO_PIECES: (u32, u32) = (0, 1);

/// The blocks of attention of single rows.
#[derive(Debug, Clone, Copy)]
pub struct AttentionBlocks {
    /// How many a multiprocessor has.
    pub per_sm: u32,
    /// Threads of each.
    pub threads: u32,
    /// Dynamic shared memory of each.
    pub shared_bytes: u32,
}

/// How a product is launched, with blocks of [`THREADS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// By this kernel.
    pub kernel: Kernel,
    /// Blocks in each dimension.
    pub grid: [u32; 3],
    /// Dynamic shared memory of each.
    pub shared_bytes: u32,
    /// `KigoMatmul::n_slots`
    pub n_slots: u32,
    /// `KigoMatmul::sum_columns`
    pub sum_columns: u32,
    /// `KigoMatmul::n_wide`, `KigoMatmul::narrow_parts`
    pub pieces: (u32, u32),
}

/// What a GPU has for blocks.
#[derive(Debug, Clone, Copy)]
pub struct Card {
    /// Multiprocessors.
    pub n_sm: u32,
    /// Bytes of shared memory that a block may have.
    pub block_shared: u32,
    /// Bytes of shared memory of a multiprocessor.
    pub sm_shared: u32,
    /// Whether blocks start while the kernel before is ending: they would crowd where it ends first.
    pub crowds: bool,
    /// Whether it is of the architecture sm_90a, and the kernels have code for it.
    pub sm_90a: bool,
}

impl Card {
    /// The device's.
    pub fn new(info: &DeviceInfo) -> Card {
        Card {
            n_sm: info.n_sm.max(1),
            block_shared: info.block_shared_bytes,
            sm_shared: info.sm_shared_bytes,
            crowds: info.compute_capability >= (9, 0),
            sm_90a: info.compute_capability == (9, 0) && has_code_for("90a"),
        }
    }

    /// Dynamic shared memory that launches of any product may ask for.
    pub fn most_shared(&self, kernel: Kernel) -> u32 {
        self.block_shared.saturating_sub(match kernel {
            Kernel::One => ONE_STATIC,
            Kernel::Few8 | Kernel::Few16 | Kernel::Few32 => FEW_STATIC,
            Kernel::Grouped => GROUPED_STATIC,
            _ => 0,
        })
    }

    /// Whether attention of many rows has a kernel for heads of this width.
    pub fn flashes(&self, head_width: usize) -> bool {
        self.sm_90a && KIGO_FLASH_SHARED <= self.block_shared && [64, 96, 128].contains(&head_width)
    }

    /// Whether products of so many rows with this type take activations in the order of sm_90a.
    pub fn swizzles(&self, quant: QuantType, n: usize) -> bool {
        n > 32 && self.prefills(quant)
    }

    fn prefills(&self, quant: QuantType) -> bool {
        self.sm_90a && quant != QuantType::F32 && PREFILL_SHARED <= self.most_shared(Kernel::Prefill)
    }

    /// The blocks of `attn_decode`, for groups of so many heads of this width: where it takes chunks, the dynamic shared memory is
    /// of pages and of two states of each head.
    pub fn attention(&self, head_width: usize, group: usize) -> AttentionBlocks {
        let takes = self.sm_90a && [64, 96, 128].contains(&head_width);
        let by_pages =
            AttentionBlocks { per_sm: if head_width <= 64 { 4 } else { 2 }, threads: PAGES_THREADS, shared_bytes: 0 };
        if takes { self.chunks(head_width, group, 2).unwrap_or(by_pages) } else { by_pages }
    }

    /// Those of `attn_decode_lone`, which are alone on a multiprocessor; `None` where there is no such kernel.
    pub fn lone_attention(&self, head_width: usize, group: usize) -> Option<AttentionBlocks> {
        if self.sm_90a && head_width == 128 { self.chunks(head_width, group, 1) } else { None }
    }

    fn chunks(&self, head_width: usize, group: usize, per_sm: u32) -> Option<AttentionBlocks> {
        let shared_bytes = CHUNKS_PAGES / per_sm + (2 * group.min(16) * (head_width + 8) * 4) as u32;
        let fits = shared_bytes + CHUNKS_STATIC <= self.block_shared;
        fits.then_some(AttentionBlocks { per_sm, threads: CHUNKS_WARPS / per_sm * 32, shared_bytes })
    }

    /// The blocks of a product: of the kernel that is made for so many rows, or the next one that has enough shared memory.
    pub fn blocks(&self, job: &Job) -> Blocks {
        let one = if job.n == 1 { self.one(job) } else { None };
        let few = || if job.n <= 32 && job.copies == 1 { self.few(job) } else { None };
        one.or_else(few).or_else(|| self.few_each(job)).unwrap_or_else(|| self.many(job))
    }

    /// Many rows of f32 by `matmul_few32_F32`, 32 for a block, where `matmul_many` would leave most multiprocessors without one: routers.
    fn few_each(&self, job: &Job) -> Option<Blocks> {
        let of_many = job.n.div_ceil(MANY_COLUMNS) * job.n_tiles.div_ceil(ITEM_TILES);
        if job.quant != QuantType::F32 || job.copies > 1 || of_many > self.n_sm / 2 {
            return None;
        }
        let n_items = job.n_tiles.div_ceil(2);
        let blocks = self.few_with(job, (Kernel::Few32, &[32, 16, 8]), 1, n_items.min(self.n_sm))?;
        Some(Blocks { grid: [blocks.grid[0], job.n.div_ceil(32), 1], ..blocks })
    }

    /// Two blocks on a multiprocessor wait for each other less, but where tiles do not go evenly into so many blocks, half
    /// of them idle in the last turn, and half the bytes are under way. One block with twice the slots has no such turn.
    fn one(&self, job: &Job) -> Option<Blocks> {
        let n_items = if job.gated { job.n_tiles / 2 } else { job.n_tiles } * job.copies;
        // Turns of tiles that a multiprocessor takes.
        let turns = |per_sm: u32| n_items.div_ceil(per_sm * self.n_sm) * per_sm;
        let gain = if code_bits(job.quant) >= 16 { LONE_GAIN.0 } else { LONE_GAIN.1 };
        let lone = n_items <= self.n_sm || turns(2) * 100 >= turns(1) * (100 + gain);
        let two = if lone { None } else { self.one_with(job, 2, n_items.min(2 * self.n_sm)) };
        two.or_else(|| self.one_with(job, 1, n_items.min(self.n_sm)))
    }

    /// `matmul_one` with so many blocks on a multiprocessor; one that is alone may have fewer slots than it should.
    fn one_with(&self, job: &Job, per_sm: u32, n_blocks: u32) -> Option<Blocks> {
        let piece = piece_bytes(job.quant, KIGO_PIECE);
        let (busy, of_piece) = slices(job);
        let wanted = slots(of_piece, per_sm * busy);
        let fewest = if per_sm == 1 { 2 } else { slots(piece, per_sm * WARPS).min(wanted) };
        let columns = stride(job.k) as u32;
        let row = columns * if wants_bf16(job.quant) { 4 } else { 2 };
        let staging = if job.has_norm { columns * 4 } else { 0 };
        let bytes = |n_slots: u32| n_slots * WARPS * piece.next_multiple_of(LINE) + row + staging;
        let fits = |n_slots: &u32| {
            let bytes = bytes(*n_slots);
            bytes <= self.most_shared(Kernel::One) && per_sm * (bytes + ONE_STATIC + RESERVED) <= self.sm_shared
        };
        let n_slots = (fewest..=wanted).rev().find(fits)?;
        let shared_bytes = self.spread(bytes(n_slots), ONE_STATIC, per_sm);
        let grid = [n_blocks.div_ceil(job.copies), job.copies, 1];
        Some(Blocks { kernel: Kernel::One, grid, shared_bytes, n_slots, sum_columns: 8, pieces: NO_PIECES })
    }

    fn few(&self, job: &Job) -> Option<Blocks> {
        let n_items = job.n_tiles.div_ceil(2);
        let choice: (_, &[u32]) = match job.n {
            ..=8 => (Kernel::Few8, &[8]),
            9..=16 => (Kernel::Few16, &[16, 8]),
            17.. => (Kernel::Few32, &[32, 16, 8]),
        };
        self.few_of(job, choice, n_items)
    }

    /// The blocks of `matmul_grouped` with the matrices of `n_expert` experts for so many slots, where it has enough shared memory. How
    /// many groups there are only the device knows.
    pub fn grouped(&self, job: &Job, n_slots: u32, n_expert: u32) -> Option<Blocks> {
        let most_groups = n_slots.min(n_expert + n_slots / GROUP_SLOTS);
        self.few_of(job, (Kernel::Grouped, &[GROUP_SLOTS]), job.n_tiles.div_ceil(2) * most_groups)
    }

    fn few_of(&self, job: &Job, choice: (Kernel, &[u32]), n_items: u32) -> Option<Blocks> {
        let two = if n_items <= self.n_sm { None } else { self.few_with(job, choice, 2, n_items.min(2 * self.n_sm)) };
        two.or_else(|| self.few_with(job, choice, 1, n_items.min(self.n_sm)))
    }

    /// A kernel of those for few rows with so many blocks on a multiprocessor, and with one of so many columns whose sums are added at a
    /// time.
    fn few_with(&self, job: &Job, (kernel, columns): (Kernel, &[u32]), per_sm: u32, n_blocks: u32) -> Option<Blocks> {
        let of_kernel = self.block_shared - self.most_shared(kernel);
        let piece = piece_bytes(job.quant, PAIR_PIECE);
        let slot = 2 * piece.next_multiple_of(LINE);
        // Teams of `matmul_grouped` may leave warps over, which have no ring.
        let busy = slices(job).0;
        let n_rings = if kernel == Kernel::Grouped { WARPS / busy * busy } else { WARPS };
        let bytes = |n_slots: u32, columns: u32| n_rings * n_slots * slot + WARPS * 2 * TILE_ROWS as u32 * columns * 4;
        let wanted = slots(2 * piece, per_sm * n_rings);
        // A block that is alone gains by as many bytes under way as two have, where nothing is unpacked and rows are few.
        let is_longer = per_sm == 1 && kernel == Kernel::Few8 && is_plain(job.quant);
        let wanted = if is_longer { 2 * wanted - 1 } else { wanted };
        let choices = (2..=wanted).rev().flat_map(|n| columns.iter().map(move |columns| (n, *columns)));
        let fits = |(n_slots, columns): &(u32, u32)| {
            let bytes = bytes(*n_slots, *columns);
            bytes <= self.most_shared(kernel) && per_sm * (bytes + of_kernel + RESERVED) <= self.sm_shared
        };
        let (n_slots, sum_columns) = choices.into_iter().find(fits)?;
        let shared_bytes = self.spread(bytes(n_slots, sum_columns), of_kernel, per_sm);
        Some(Blocks { kernel, grid: [n_blocks, 1, 1], shared_bytes, n_slots, sum_columns, pieces: NO_PIECES })
    }

    /// The shared memory of a block, padded so that no more than so many fit on a multiprocessor.
    fn spread(&self, bytes: u32, of_kernel: u32, per_sm: u32) -> u32 {
        let least = (self.sm_shared / (per_sm + 1)).saturating_sub(of_kernel + RESERVED) + 16;
        if self.crowds { bytes.max(least) } else { bytes }
    }

    /// Blocks that stay and share the items, or clusters that have one. An item that is wider has more to do for the bytes it
    /// reads, but there may be fewer than multiprocessors, or some of these have one more than others.
    fn prefill(&self, job: &Job) -> Blocks {
        let most = if wants_bf16(job.quant) { NARROW_PARTS } else { WIDE_PARTS };
        let (parts, n_units) = (job.n.div_ceil(PART_ROWS), (stride(job.k) / 64) as u32);
        let blocks = |kernel, n_blocks, pieces| {
            let grid = [n_blocks, 1, 1];
            Blocks { kernel, grid, shared_bytes: PREFILL_SHARED, n_slots: 2, sum_columns: 8, pieces }
        };
        let (n_groups, n_clusters) =
            (job.n_tiles.div_ceil(CLUSTER * ITEM_TILES), (self.n_sm / CLUSTER).clamp(1, MOST_CLUSTERS));
        let times = Times::of(job.quant);
        let of_item = |wide: bool, n_parts: u32| times.item(wide, job.gated, n_units, n_parts);
        if job.copies > 1 {
            // How many rows an expert has is only known when the kernel runs: they differ by about the root of their average.
            let differ = job.each.isqrt();
            let time = |wide: bool| -> u64 {
                let most = if wide { WIDE_PARTS } else { NARROW_PARTS };
                let of_rows = |rows: u32| {
                    let parts = rows.div_ceil(PART_ROWS);
                    u64::from(parts / most) * of_item(wide, most) + of_item(wide, parts % most)
                };
                of_rows(job.each - differ) + of_rows(job.each + differ)
            };
            let wide = most > NARROW_PARTS && time(true) < time(false);
            let (kernel, most) = if wide { (Kernel::PrefillWide, WIDE_PARTS) } else { (Kernel::Prefill, NARROW_PARTS) };
            let n_items = n_groups.saturating_mul(job.copies).saturating_mul(parts);
            return blocks(kernel, CLUSTER * n_items.clamp(1, n_clusters), (parts / most, most));
        }
        let n_items =
            |(n_wide, narrow): (u32, u32)| (n_groups * n_wide, n_groups * (parts - n_wide * most).div_ceil(narrow));
        let is_wide = |pieces: (u32, u32)| most > NARROW_PARTS && (pieces.0 > 0 || pieces.1 > NARROW_PARTS);
        // How long the busiest cluster takes, when they take turns.
        let time = |pieces: (u32, u32)| {
            let of_item = |n_parts| of_item(is_wide(pieces), n_parts);
            let (wide, narrow) = n_items(pieces);
            let of = |n: u32, at: u32| u64::from(n / n_clusters) + u64::from(at < n % n_clusters);
            let of_cluster = |at: u32| {
                let after_wide = (at + n_clusters - wide % n_clusters) % n_clusters;
                of(wide, at) * of_item(most) + of(narrow, after_wide) * of_item(pieces.1)
            };
            (0..n_clusters).map(of_cluster).max().unwrap_or(0)
        };
        let all = || (0..=parts / most).rev().flat_map(|n_wide| (1..=most).rev().map(move |narrow| (n_wide, narrow)));
        let pieces = all().min_by_key(|pieces| time(*pieces)).unwrap_or((parts / most, most));
        let split = parts.min(NARROW_PARTS);
        let n_split = |n_slots: u32| n_groups * parts.div_ceil(split) * (SLICES / n_slots);
        let of_split = |n_slots: u32| {
            let [one, two] = times.split;
            let (of_unit, besides) = if split > 1 { two } else { one };
            let of_block = (n_units * n_slots).div_ceil(SLICES) * of_unit + besides;
            u64::from(n_split(n_slots).div_ceil(n_clusters)) * u64::from(of_block)
        };
        let n_slots = if of_split(1) <= of_split(MOST_SLICES) { 1 } else { MOST_SLICES };
        if job.sums() <= LATE as u64 && of_split(n_slots) < time(pieces) {
            return Blocks { n_slots, ..blocks(Kernel::PrefillSplit, CLUSTER * n_split(n_slots), (0, split)) };
        }
        let (wide, narrow) = n_items(pieces);
        let kernel = if is_wide(pieces) { Kernel::PrefillWide } else { Kernel::Prefill };
        blocks(kernel, CLUSTER * (wide + narrow).clamp(1, n_clusters), pieces)
    }

    /// Blocks of `add_slices` after a product with so many rows and tiles.
    pub fn adders(n: u32, n_tiles: u32) -> [u32; 3] {
        [n.div_ceil(ADDED_ROWS), n_tiles.div_ceil(ITEM_TILES), 1]
    }

    fn many(&self, job: &Job) -> Blocks {
        if self.prefills(job.quant) {
            return self.prefill(job);
        }
        let blocks = |kernel, column_tiles: u32, most: u32| {
            let planes = |columns: usize| TILE_ROWS as u32 * columns as u32 * code_bits(job.quant) / 8;
            let scales = record_bytes(job.quant) as u32 - planes(record_columns(job.quant));
            let sums = 8 * column_tiles * THREADS * 4;
            let unit = 8 * (planes(64) + scales) + 2 * column_tiles * activation_bytes(wants_bf16(job.quant)) as u32;
            let shared_bytes = ((most - sums) / unit).min(4) * unit + sums;
            let grid = [job.n.div_ceil(16 * column_tiles), job.n_tiles.div_ceil(8), job.copies];
            Blocks { kernel, grid, shared_bytes, n_slots: 2, sum_columns: 8, pieces: NO_PIECES }
        };
        let wide = blocks(Kernel::Many, 8, 227 << 10);
        if wide.shared_bytes <= self.most_shared(wide.kernel) {
            return wide;
        }
        blocks(Kernel::ManyNarrow, if job.quant == QuantType::F32 { 2 } else { 4 }, 99 << 10)
    }
}

/// Bytes of the records that are copied together, where so many may be.
fn piece_bytes(quant: QuantType, most: u32) -> u32 {
    let record = record_bytes(quant) as u32;
    (most / record).max(1) * record
}

/// Warps of a block that have a slice of a tile, and bytes of a piece of theirs on average: narrow matrices have fewer slices, and
/// a slice may end within a piece.
fn slices(job: &Job) -> (u32, u32) {
    let record = record_bytes(job.quant) as u32;
    let n_records = stride(job.k).div_ceil(record_columns(job.quant)).max(1) as u32;
    let of_slice = n_records.div_ceil(WARPS);
    let n_pieces = (of_slice * record).div_ceil(piece_bytes(job.quant, KIGO_PIECE));
    (n_records.div_ceil(of_slice), of_slice * record / n_pieces)
}

/// Slots of so many bytes that a warp's ring has where so many warps of a multiprocessor read.
fn slots(bytes: u32, n_warps: u32) -> u32 {
    let under_way = (UNDER_WAY + n_warps * bytes / 2) / (n_warps * bytes);
    (under_way + 1).clamp(FEWEST_SLOTS, KIGO_MAX_SLOTS)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const H200: Card = Card { n_sm: 132, block_shared: 227 << 10, sm_shared: 228 << 10, crowds: true, sm_90a: true };
    /// The cards with the least shared memory that kernels are written for, sm_86 and sm_89, and sm_80.
    const SMALL: Card = Card { n_sm: 128, block_shared: 99 << 10, sm_shared: 100 << 10, crowds: false, sm_90a: false };
    const A100: Card = Card { n_sm: 108, block_shared: 163 << 10, sm_shared: 164 << 10, crowds: false, sm_90a: false };

    fn job(quant: QuantType, n: u32, k: usize, has_norm: bool, n_tiles: u32) -> Job {
        Job { quant, n, k, has_norm, n_tiles, gated: false, copies: 1, each: n }
    }

    #[test]
    fn blocks_that_take_chunks_fit_on_a_multiprocessor() {
        for (width, group) in [64, 96, 128].into_iter().flat_map(|width| (1..=8).map(move |group| (width, group))) {
            for blocks in [Some(H200.attention(width, group)), H200.lone_attention(width, group)].into_iter().flatten()
            {
                let bytes = blocks.shared_bytes + CHUNKS_STATIC + RESERVED;
                assert!(blocks.per_sm * bytes <= H200.sm_shared, "heads of {width}, {group} a group");
            }
        }
        assert!(H200.attention(128, 40).shared_bytes > 0);
        assert_eq!(H200.attention(256, 2).shared_bytes, 0);
        assert_eq!(A100.attention(64, 4).shared_bytes, 0);
    }

    #[test]
    fn blocks_fit_into_every_card_for_every_type_and_width() {
        for card in [H200, SMALL, A100] {
            for &quant in QuantType::ALL {
                for (k, has_norm) in
                    [(64, true), (576, true), (4096, true), (8192, true), (16384, true), (32768, false)]
                {
                    for n in [1, 2, 8, 9, 16, 17, 32, 33, 500] {
                        for n_tiles in [1, 2, 131, 256, 384, 8016] {
                            let job = job(quant, n, k, has_norm, n_tiles);
                            let blocks = card.blocks(&job);
                            let name = format!("{card:?} {job:?} {blocks:?}");
                            assert!(blocks.shared_bytes <= card.most_shared(blocks.kernel), "{name}");
                            assert!(blocks.shared_bytes.is_multiple_of(16), "{name}");
                            let fewest = if blocks.kernel == Kernel::PrefillSplit { 1 } else { 2 };
                            assert!((fewest..=KIGO_MAX_SLOTS).contains(&blocks.n_slots), "{name}");
                            assert!(blocks.kernel != Kernel::PrefillSplit || job.sums() <= LATE as u64, "{name}");
                            assert!(blocks.grid.iter().all(|n| *n > 0), "{name}");
                            let enough = match blocks.kernel {
                                Kernel::One => n == 1,
                                Kernel::Few8 => n <= 8,
                                Kernel::Few16 => n <= 16,
                                Kernel::Few32 => blocks.grid[1] * 32 >= n && (n <= 32 || quant == QuantType::F32),
                                Kernel::Grouped => false,
                                Kernel::Many => blocks.grid[0] * 128 >= n,
                                Kernel::Prefill | Kernel::PrefillWide | Kernel::PrefillSplit => card.sm_90a,
                                Kernel::ManyNarrow => {
                                    blocks.grid[0] * if quant == QuantType::F32 { 32 } else { 64 } >= n
                                }
                            };
                            assert!(enough, "{name}");
                            let swizzled = blocks.kernel.order() == KIGO_ORDER_SWIZZLED;
                            assert!(swizzled || !card.swizzles(quant, n as usize), "{name}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn kernels_are_those_for_the_number_of_rows_where_there_is_room() {
        let kernel = |card: Card, quant, n| card.blocks(&job(quant, n, 1024, true, 256)).kernel;
        for &quant in QuantType::ALL {
            let of_rows = [1, 2, 8, 9, 16, 17, 32, 33].map(|n| kernel(H200, quant, n));
            let few = [Kernel::Few8, Kernel::Few16, Kernel::Few32].map(|kernel| [kernel, kernel]);
            let expected = [&[Kernel::One][..], few.as_flattened(), &[Kernel::Prefill]].concat();
            if quant != QuantType::F32 {
                assert_eq!(expected, of_rows, "{}", quant.name());
            }
            let old = kernel(Card { sm_90a: false, ..H200 }, quant, 33);
            assert_eq!(old, if quant == QuantType::F32 { Kernel::Few32 } else { Kernel::Many }, "{}", quant.name());
            assert_eq!(kernel(SMALL, quant, 33), Kernel::ManyNarrow);
        }
        assert_eq!(kernel(SMALL, QuantType::Q4_K, 32), Kernel::Few32);
        assert_eq!(kernel(SMALL, QuantType::Q6_K, 2), Kernel::ManyNarrow, "two records of two tiles do not fit");
        let of_width = |k| SMALL.blocks(&job(QuantType::F16, 1, k, false, 512)).kernel;
        assert_eq!([14336, 32768].map(of_width), [Kernel::One, Kernel::Few8], "a row too wide for shared memory");
    }

    #[test]
    fn items_are_as_wide_as_the_busiest_cluster_is_done_first() {
        let prefill = |n, k, n_tiles, gated| {
            let blocks = H200.blocks(&Job { gated, ..job(QuantType::F16, n, k, true, n_tiles) });
            (blocks.kernel, blocks.pieces, blocks.grid[0])
        };
        // Gate and up, down and the output of a Llama of 8B; down of one of 1B.
        assert_eq!(prefill(2048, 4096, 1792, true), (Kernel::PrefillWide, (10, 2), 132));
        assert_eq!(prefill(2048, 14336, 256, false), (Kernel::Prefill, (0, 2), 132));
        assert_eq!(prefill(2048, 4096, 256, false), (Kernel::Prefill, (0, 2), 132));
        assert_eq!(prefill(2048, 2048, 1024, true), (Kernel::Prefill, (0, 2), 132), "finishing would take longer");
        assert_eq!(prefill(512, 4096, 256, false), (Kernel::Prefill, (0, 2), 128));
        assert_eq!(prefill(128, 8192, 128, false), (Kernel::PrefillSplit, (0, 2), 128));
        let slices = |n_tiles| H200.blocks(&job(QuantType::F16, 128, 4096, true, n_tiles)).n_slots;
        assert_eq!([128, 256].map(slices), [1, 2], "a slice for each block where not all multiprocessors have one");
        // Down of qwen2-0.5b, whose eighth slice is empty.
        assert_eq!(H200.blocks(&job(QuantType::Q4_K, 128, 4864, false, 56)).kernel, Kernel::PrefillSplit);
        // Of gpt-oss, and of one with many rows and columns.
        let experts = |each, k| {
            let blocks = H200.blocks(&Job { copies: 32, each, ..job(QuantType::Q4_K, 2048, k, true, 180) });
            (blocks.kernel, blocks.grid)
        };
        assert_eq!(experts(256, 2880), (Kernel::Prefill, [132, 1, 1]), "as wide as their rows let them be");
        assert_eq!(experts(1024, 14336), (Kernel::PrefillWide, [132, 1, 1]));
    }

    #[test]
    fn a_block_has_a_multiprocessor_alone_where_two_would_idle() {
        let one = |quant, n_tiles, gated| {
            let blocks = H200.blocks(&Job { gated, ..job(quant, 1, 4096, true, n_tiles) });
            (blocks.grid[0], blocks.n_slots)
        };
        // q, k and v, gate and up, the output and the head of a Llama of 8B.
        assert_eq!(one(QuantType::F16, 384, false), (132, 5));
        assert_eq!(one(QuantType::F16, 1792, true), (132, 5));
        assert_eq!(one(QuantType::F16, 256, false), (256, 3));
        assert_eq!(one(QuantType::F16, 8016, false), (264, 3));
        assert_eq!(one(QuantType::Q4_K, 384, false), (264, 3));
        assert_eq!(one(QuantType::Q4_0, 128, false), (128, 5), "fewer blocks than multiprocessors have all the slots");
    }

    #[test]
    fn copies_of_constants_are_those_of_the_kernels() {
        let (matmul, groups) =
            (include_str!("../../../kernels/matmul.cu"), include_str!("../../../kernels/slot_groups.cuh"));
        let chunks = include_str!("../../../kernels/chunks.cuh");
        for (source, line) in [
            (matmul, format!("kPiece = kTiles == 1 ? KIGO_PIECE : {PAIR_PIECE};")),
            (groups, format!("kGroupSlots = {GROUP_SLOTS}, kMostGrouped = {MOST_GROUPED};")),
            (chunks, format!("kLoneWarps = {CHUNKS_WARPS};")),
            (chunks, format!("kPages = kWarps * ({} << 10);", (CHUNKS_PAGES / CHUNKS_WARPS) >> 10)),
        ] {
            assert!(source.contains(&line), "{line}");
        }
    }

    #[test]
    fn groups_have_as_many_blocks_as_there_may_be_items() {
        let grouped =
            |card: Card, quant, n_tiles, n_slots| card.grouped(&job(quant, 1, 768, false, n_tiles), n_slots, 32);
        let n_blocks = |quant, n_tiles, n_slots| grouped(H200, quant, n_tiles, n_slots).unwrap().grid[0];
        assert_eq!(n_blocks(QuantType::MXFP4, 360, 32), 264);
        assert_eq!(n_blocks(QuantType::Q4_K, 4, 40), 74, "40 slots of 32 experts are 37 groups at most");
        assert_eq!(n_blocks(QuantType::Q4_K, 4, 12), 24, "and no more than slots");
        for (quant, card) in QuantType::ALL.iter().flat_map(|quant| [H200, SMALL, A100].map(|card| (*quant, card))) {
            let Some(blocks) = grouped(card, quant, 180, 32) else { continue };
            assert!(blocks.shared_bytes <= card.most_shared(blocks.kernel), "{} {card:?}", quant.name());
            assert!(blocks.shared_bytes as usize >= MOST_GROUPED * 4, "{}: slots are sorted there", quant.name());
        }
        let wide = |card: Card| card.grouped(&job(QuantType::Q6_K, 1, 4096, false, 180), 32, 32);
        assert!(wide(H200).is_some() && wide(SMALL).is_none(), "two records of two tiles do not fit into every card");
    }

    #[test]
    fn rings_are_longer_where_fewer_warps_read_or_pieces_are_short() {
        let slots = |quant, k| H200.blocks(&Job { copies: 8, ..job(quant, 1, k, false, 128) }).n_slots;
        // The experts of a Qwen3 of 30B: eight slices for gate and up, three for down. Those of gpt-oss: a slice of 6 records is one piece.
        assert_eq!([2048, 768].map(|k| slots(QuantType::Q4_K, k)), [3, 5]);
        assert_eq!([4096, 2880].map(|k| slots(QuantType::MXFP4, k)), [3, 3]);
        // A block for each item, and two on a multiprocessor.
        let of_few = |quant, n, n_tiles| H200.blocks(&job(quant, n, 4096, false, n_tiles)).n_slots;
        assert_eq!([256, 1024].map(|n_tiles| of_few(QuantType::F16, 8, n_tiles)), [5, 3]);
        assert_eq!([(QuantType::Q4_K, 8), (QuantType::F16, 16)].map(|(quant, n)| of_few(quant, n, 256)), [3, 3]);
    }

    #[test]
    fn blocks_spread_evenly_where_they_could_crowd() {
        for (n_tiles, per_sm) in [(128, 1), (256, 2), (384, 1), (8016, 2)] {
            let blocks = H200.blocks(&job(QuantType::F16, 1, 4096, true, n_tiles));
            let of_block = blocks.shared_bytes + ONE_STATIC + RESERVED;
            assert_eq!(H200.sm_shared / of_block, per_sm, "{blocks:?}");
        }
    }
}
