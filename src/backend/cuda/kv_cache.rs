//! Keys and values of every sequence, in pages of device memory. A table in device memory says where the pages of a
//! sequence are, so that kernels find them and sequences only hold memory for the tokens they have.
//!
//! All work on pages and tables runs in one stream: a page that is given to another sequence is written after the
//! work of its earlier owner.

use std::collections::HashMap;
use std::sync::Arc;

use super::context::Context;
use super::memory::{DeviceBuffer, PinnedBuffer};
use super::params::KIGO_ALL_BEFORE;
use super::stream::Stream;
use crate::backend::{Purpose, SequenceId};
use crate::error::try_vec;
use crate::model::{LayerDesc, ModelDesc};
use crate::{Error, Result};

/// Positions in a page: `KIGO_PAGE` of `kernels/launch.h`.
pub const PAGE: usize = 64;

/// Widths of a head that the kernels have; others are padded with zeros to the next.
const HEAD_WIDTHS: [usize; 6] = [32, 64, 96, 128, 192, 256];

/// Bytes that are asked of the driver at once, unless a page is larger: an allocation takes as long as some tokens.
const CHUNK_BYTES: usize = 32 << 20;

/// What pages and tables start at a multiple of, as the driver's allocations do.
const ALIGNMENT: u64 = 256;

/// Width of a head in the cache: `head_dim`, padded.
///
/// # Errors
/// When it is wider than the kernels can do.
pub fn head_width(desc: &ModelDesc) -> Result<usize> {
    HEAD_WIDTHS.into_iter().find(|width| *width >= desc.head_dim).ok_or_else(|| {
        let expected = format!("at most {} on a GPU", HEAD_WIDTHS[HEAD_WIDTHS.len() - 1]);
        Error::bad_file(format!("{}.attention.key_length", desc.architecture), expected, desc.head_dim)
    })
}

/// Layers whose pages hold the same positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Layers.
    pub n_layer: usize,
    /// Bytes of a page: `[n_layer, n_head_kv, k and v, PAGE, head width]` f16, then the partial sums of attention
    /// `[n_head, 2 + head width]` f32.
    pub page: usize,
    /// Pages that a sequence has at most: entry i of a table is page i modulo this number.
    pub ring: usize,
    /// Bytes of the pages that are allocated at once.
    pub chunk: usize,
}

/// Where a layer finds its keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerPlace {
    /// Its group.
    pub group: usize,
    /// Its number in the group.
    pub index: usize,
    /// A row sees so many positions before its own, at most `KIGO_ALL_BEFORE`.
    pub before: u32,
}

/// What pages and tables take, in bytes.
///
/// Layers that see everything are one group, and those with a window another, whose pages are a ring: a page is written again
/// when no row can see what it held. A row sees the largest window, other rows of its batch are written before it reads, and
/// so are the steps that the device is ahead, which the host may repeat with another token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// One or two.
    pub groups: Vec<Group>,
    /// One for each layer of the model.
    pub layers: Vec<LayerPlace>,
    /// Entries of a table for each group: `n_ctx / PAGE`, rounded up.
    pub n_entries: usize,
    /// `[groups, n_entries]` u64.
    pub table: usize,
}

/// Positions that may be written beyond those that a row sees, besides the rest of its batch.
const AHEAD: usize = super::STEPS_AHEAD;

impl Sizes {
    /// For sequences of up to `n_ctx` positions in batches of up to `n_batch` rows.
    ///
    /// # Errors
    /// When a head is wider than the kernels can do, or a size beyond 64 bits.
    pub fn new(desc: &ModelDesc, n_ctx: usize, n_batch: usize) -> Result<Sizes> {
        let width = head_width(desc)? as u64;
        let too_large = || Error::OutOfMemory { what: "a page of the KV cache".into(), bytes: u64::MAX };
        let product = |factors: &[u64]| factors.iter().try_fold(1u64, |n, &factor| n.checked_mul(factor));
        let n_entries = n_ctx.div_ceil(PAGE);
        let group = |n_layer: usize, ring: usize| {
            let keys = product(&[n_layer as u64, desc.n_head_kv as u64, 2, PAGE as u64, width, 2])?;
            let partials = product(&[desc.n_head as u64, width + 2, 4])?;
            let page = keys.checked_add(partials)?.checked_next_multiple_of(ALIGNMENT)?;
            let chunk = page.checked_mul((CHUNK_BYTES as u64 / page).max(1))?;
            let size = |n: u64| usize::try_from(n).ok();
            Some(Group { n_layer, page: size(page)?, ring, chunk: size(chunk)? })
        };
        // A window that is never left is none.
        let window = |layer: &LayerDesc| layer.window.filter(|&window| window < n_ctx);
        let windows = || desc.layers.iter().filter_map(window);
        let n_windowed = windows().count();
        let n_full = desc.n_layer() - n_windowed;
        let mut groups = try_vec(2, "the groups of layers")?;
        if n_full > 0 {
            groups.push(group(n_full, n_entries).ok_or_else(too_large)?);
        }
        if let Some(largest) = windows().max() {
            let span = largest.saturating_add(n_batch).saturating_add(AHEAD);
            let ring = n_entries.min(span.div_ceil(PAGE).saturating_add(1));
            groups.push(group(n_windowed, ring).ok_or_else(too_large)?);
        }
        let mut layers = try_vec(desc.n_layer(), "the list of layers")?;
        let mut seen = [0, 0];
        for layer in &desc.layers {
            let window = window(layer);
            let group = usize::from(window.is_some() && n_full > 0);
            let before = window
                .map_or(KIGO_ALL_BEFORE, |window| (window.saturating_sub(1) as u64).min(KIGO_ALL_BEFORE.into()) as u32);
            layers.push(LayerPlace { group, index: seen[group], before });
            seen[group] += 1;
        }
        let table = product(&[groups.len() as u64, n_entries as u64, 8])
            .and_then(|bytes| bytes.checked_next_multiple_of(ALIGNMENT))
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or_else(too_large)?;
        Ok(Sizes { groups, layers, n_entries, table })
    }

    /// Tables that are allocated at once.
    fn tables_in_chunk(&self) -> usize {
        ((1 << 20) / self.table.max(1)).clamp(1, 256)
    }

    /// What [`KvCache::new`] allocates on the device.
    pub fn first_bytes(&self) -> u64 {
        let chunks = self.groups.iter().map(|group| group.chunk as u64).fold(0, u64::saturating_add);
        chunks.saturating_add((self.tables_in_chunk() as u64).saturating_mul(self.table as u64))
    }

    /// Bytes of the pages of a sequence of `n_positions`.
    pub fn sequence_bytes(&self, n_positions: usize) -> u64 {
        let n_pages = n_positions.div_ceil(PAGE);
        let bytes = |group: &Group| (n_pages.min(group.ring) as u64).saturating_mul(group.page as u64);
        self.groups.iter().map(bytes).fold(0, u64::saturating_add)
    }
}

/// The cache of one model.
pub struct KvCache {
    context: Arc<Context>,
    sizes: Sizes,
    n_ctx: usize,
    /// One for each group.
    pages: Vec<Pool>,
    tables: Pool,
    sequences: HashMap<SequenceId, Sequence>,
    /// What rows that pad a batch read and write: one page of each group, and nobody's.
    scratch: Sequence,
}

#[derive(Default)]
struct Sequence {
    table: Place,
    /// Of each group, in order.
    pages: [Vec<Place>; 2],
    /// Pages that its positions take, and entries of its table that are filled for each group.
    n_pages: usize,
}

/// One item of a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Place {
    chunk: u32,
    index: u32,
}

/// Items of one size in allocations that never move.
struct Pool {
    item_bytes: usize,
    items_in_chunk: usize,
    /// Whether the items have a copy in host memory, from which they are written.
    mirrored: bool,
    what: &'static str,
    chunks: Vec<Chunk>,
    /// Has room for all items.
    free: Vec<Place>,
}

struct Chunk {
    buffer: DeviceBuffer,
    mirror: Option<PinnedBuffer>,
}

impl KvCache {
    /// An empty cache for sequences of at most `n_ctx` positions, which come in batches of at most `n_batch` rows, with its
    /// first chunks. What it does on the device it queues into `stream`, which must be the stream of all kernels that use
    /// the cache.
    ///
    /// # Errors
    /// Those of [`Sizes::new`]; `OutOfMemory`, `DeviceLost`, `DeviceError`.
    pub fn new(
        context: &Arc<Context>,
        stream: &Stream,
        desc: &ModelDesc,
        (n_ctx, n_batch): (usize, usize),
    ) -> Result<KvCache> {
        let sizes = Sizes::new(desc, n_ctx, n_batch)?;
        let pool = |group: &Group| Pool::new(group.page, group.chunk / group.page, false, "the KV cache");
        let mut pages = try_vec(sizes.groups.len(), "the KV cache")?;
        pages.extend(sizes.groups.iter().map(pool));
        let tables = Pool::new(sizes.table, sizes.tables_in_chunk(), true, "page tables of the KV cache");
        let sequences = HashMap::new();
        let scratch = Sequence::default();
        let mut cache = KvCache { context: context.clone(), sizes, n_ctx, pages, tables, sequences, scratch };
        cache.scratch.table = cache.tables.take(context)?;
        cache.extend(stream, None, 1)?;
        Ok(cache)
    }

    /// What pages and tables take.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Adds pages, all zero, until positions `0..n_positions` of `sequence` have a place, and enters them in its
    /// table, which begins to exist with the first.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`, `DeviceError`; the sequence is as before, and the call may be made again.
    pub fn reserve(&mut self, stream: &Stream, sequence: SequenceId, n_positions: usize) -> Result<()> {
        if n_positions > self.n_ctx {
            return Err(Error::Internal(format!("{n_positions} positions in a context of {}", self.n_ctx)));
        }
        let chunks = (self.n_chunks(), self.tables.chunks.len());
        let is_new = !self.sequences.contains_key(&sequence);
        if is_new {
            let no_memory = |_| Error::OutOfMemory { what: "a sequence".into(), bytes: size_of::<Sequence>() as u64 };
            self.sequences.try_reserve(1).map_err(no_memory)?;
            let table = self.tables.take(&self.context)?;
            self.sequences.insert(sequence, Sequence { table, ..Sequence::default() });
        }
        let outcome = self.extend(stream, Some(sequence), n_positions.div_ceil(PAGE));
        if outcome.is_err() {
            if is_new {
                self.remove(sequence);
            }
            self.shrink(stream, chunks);
        }
        outcome
    }

    /// Frees a sequence; unknown ones are ignored. With the last one, all chunks but the first ones go back to the driver.
    pub fn free(&mut self, stream: &Stream, sequence: SequenceId) {
        self.remove(sequence);
        if self.sequences.is_empty() {
            self.sequences = HashMap::new();
            self.shrink(stream, ([1, 1], 1));
        }
    }

    /// Chunks of each group's pages.
    fn n_chunks(&self) -> [usize; 2] {
        std::array::from_fn(|group| self.pages.get(group).map_or(0, |pool| pool.chunks.len()))
    }

    /// Frees all chunks of pages and of tables but the first ones; all that is in the others is free.
    fn shrink(&mut self, stream: &Stream, (pages, tables): ([usize; 2], usize)) {
        let has_more = self.pages.iter().zip(pages).any(|(pool, n_chunks)| pool.chunks.len() > n_chunks);
        if !has_more && self.tables.chunks.len() <= tables {
            return;
        }
        // Work that was queued ahead may still use them. A lost device does no work, and keeps its memory.
        if stream.synchronize().is_ok() || self.context.is_lost() {
            self.pages.iter_mut().zip(pages).for_each(|(pool, n_chunks)| pool.shrink(n_chunks));
            self.tables.shrink(tables);
        }
    }

    /// Where the page table `[groups, n_entries]` u64 of a sequence is in device memory; `None` if it has no position.
    pub fn table_address(&self, sequence: SequenceId) -> Option<u64> {
        self.sequences.get(&sequence).map(|found| self.tables.address(found.table))
    }

    /// The table of rows that only pad a batch. They are at position 0.
    pub fn scratch_table_address(&self) -> u64 {
        self.tables.address(self.scratch.table)
    }

    /// Gives `sequence`, or the scratch sequence, room for `n_pages` pages of positions in all.
    fn extend(&mut self, stream: &Stream, sequence: Option<SequenceId>, n_pages: usize) -> Result<()> {
        let owner = match sequence {
            Some(sequence) => self.sequences.get_mut(&sequence),
            None => Some(&mut self.scratch),
        };
        let Some(owner) = owner else { return Ok(()) };
        if n_pages <= owner.n_pages {
            return Ok(());
        }
        let (pools, tables, sizes) = (&mut self.pages, &self.tables, &self.sizes);
        let had = owner.pages.each_ref().map(Vec::len);
        let mut more = || {
            for ((pool, group), pages) in pools.iter_mut().zip(&sizes.groups).zip(&mut owner.pages) {
                let n_more = n_pages.min(group.ring).saturating_sub(pages.len());
                let no_memory = |_| Error::OutOfMemory { what: "a sequence".into(), bytes: (n_more * 8) as u64 };
                pages.try_reserve(n_more).map_err(no_memory)?;
                for _ in 0..n_more {
                    let page = pool.take(&self.context)?;
                    pages.push(page);
                    pool.zero(stream, page)?;
                }
            }
            for (number, (pool, pages)) in pools.iter().zip(&owner.pages).enumerate() {
                let entries = owner.n_pages..n_pages;
                let first = number * sizes.n_entries;
                // As many as fit into the ring are there.
                for (entry, &page) in entries.clone().zip(pages.iter().cycle().skip(entries.start % pages.len().max(1)))
                {
                    tables.write(owner.table, first + entry, pool.address(page))?;
                }
                tables.upload(stream, owner.table, first + entries.start..first + entries.end)?;
            }
            Ok(())
        };
        let outcome = more();
        match outcome {
            Ok(()) => owner.n_pages = n_pages,
            Err(_) => {
                for ((pool, pages), had) in pools.iter_mut().zip(&mut owner.pages).zip(had) {
                    pages.drain(had..).for_each(|page| pool.give(page));
                }
            }
        }
        outcome
    }

    fn remove(&mut self, sequence: SequenceId) {
        if let Some(Sequence { table, pages, .. }) = self.sequences.remove(&sequence) {
            for (pool, pages) in self.pages.iter_mut().zip(pages) {
                pages.into_iter().for_each(|page| pool.give(page));
            }
            self.tables.give(table);
        }
    }
}

impl Pool {
    fn new(item_bytes: usize, items_in_chunk: usize, mirrored: bool, what: &'static str) -> Pool {
        Pool { item_bytes, items_in_chunk, mirrored, what, chunks: Vec::new(), free: Vec::new() }
    }

    fn take(&mut self, context: &Arc<Context>) -> Result<Place> {
        if self.free.is_empty() {
            self.grow(context)?;
        }
        self.free.pop().ok_or_else(|| Error::Internal(format!("no room in {}", self.what)))
    }

    /// Gives an item back; there is always room for it.
    fn give(&mut self, place: Place) {
        self.free.push(place);
    }

    fn grow(&mut self, context: &Arc<Context>) -> Result<()> {
        let n_items = (self.chunks.len() + 1) * self.items_in_chunk;
        let mut free = try_vec(n_items, self.what)?;
        let mut chunks = try_vec(self.chunks.len() + 1, self.what)?;
        let bytes = self.item_bytes * self.items_in_chunk;
        let buffer = DeviceBuffer::new(context, Purpose::Cache, bytes, self.what)?;
        let mirror = self.mirrored.then(|| PinnedBuffer::new(context, bytes, self.what)).transpose()?;
        chunks.append(&mut self.chunks);
        chunks.push(Chunk { buffer, mirror });
        free.append(&mut self.free);
        (self.chunks, self.free) = (chunks, free);
        // The first is taken first.
        let chunk = self.chunks.len() as u32 - 1;
        self.free.extend((0..self.items_in_chunk as u32).rev().map(|index| Place { chunk, index }));
        Ok(())
    }

    /// Frees all chunks but the first `n_chunks`; the items of the others are free.
    fn shrink(&mut self, n_chunks: usize) {
        self.chunks.truncate(n_chunks);
        self.free.retain(|place| (place.chunk as usize) < n_chunks);
    }

    fn offset(&self, place: Place) -> usize {
        place.index as usize * self.item_bytes
    }

    fn address(&self, place: Place) -> u64 {
        let chunk = self.chunks.get(place.chunk as usize);
        chunk.map_or(0, |chunk| chunk.buffer.address() + self.offset(place) as u64)
    }

    fn chunk(&self, place: Place) -> Result<&Chunk> {
        self.chunks.get(place.chunk as usize).ok_or_else(|| Error::Internal(format!("{place:?} of {}", self.what)))
    }

    /// Fills an item with zeros: what a freed sequence left must not reach another, least of all a NaN.
    fn zero(&self, stream: &Stream, place: Place) -> Result<()> {
        let start = self.offset(place);
        self.chunk(place)?.buffer.fill_part_u8(stream, start..start + self.item_bytes, 0)
    }

    /// Writes entry `index` of a table, in host memory.
    fn write(&self, table: Place, index: usize, entry: u64) -> Result<()> {
        let Some(mirror) = &self.chunk(table)?.mirror else { return Ok(()) };
        let at = self.offset(table) + index * 8;
        mirror.write_u32(at, entry as u32)?;
        mirror.write_u32(at + 4, (entry >> 32) as u32)
    }

    /// Queues the copy of some entries of a table to the device.
    fn upload(&self, stream: &Stream, table: Place, entries: std::ops::Range<usize>) -> Result<()> {
        let chunk = self.chunk(table)?;
        let Some(mirror) = &chunk.mirror else { return Ok(()) };
        let start = self.offset(table);
        let part = start + entries.start * 8..start + entries.end * 8;
        chunk.buffer.upload_async(stream, part.start, mirror, part)
    }
}
