//! Keys and values of every sequence, in pages of device memory. A table in device memory says where the pages of a
//! sequence are, so that kernels find them and sequences only hold memory for the tokens they have.
//!
//! All work on pages and tables runs in one stream: a page that is given to another sequence is written after the
//! work of its earlier owner.

use std::collections::HashMap;
use std::sync::Arc;

use super::context::Context;
use super::memory::{DeviceBuffer, PinnedBuffer};
use super::stream::Stream;
use crate::backend::{Purpose, SequenceId};
use crate::error::try_vec;
use crate::model::ModelDesc;
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

/// What a page and a table take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// `[n_layer, n_head_kv, k and v, PAGE, head width]` f16, then the partial sums of attention
    /// `[n_head, 2 + head width]` f32.
    pub page: usize,
    /// `[n_ctx / PAGE, rounded up]` u64.
    pub table: usize,
    /// Pages that are allocated at once.
    pub chunk: usize,
}

impl Sizes {
    /// # Errors
    /// When a head is wider than the kernels can do, or a size beyond 64 bits.
    pub fn new(desc: &ModelDesc, n_ctx: usize) -> Result<Sizes> {
        let width = head_width(desc)? as u64;
        let product = |factors: &[u64]| factors.iter().try_fold(1u64, |n, &factor| n.checked_mul(factor));
        let sizes = || {
            let keys = product(&[desc.n_layer as u64, desc.n_head_kv as u64, 2, PAGE as u64, width, 2])?;
            let partials = product(&[desc.n_head as u64, width + 2, 4])?;
            let page = keys.checked_add(partials)?.checked_next_multiple_of(ALIGNMENT)?;
            let table = product(&[n_ctx.div_ceil(PAGE) as u64, 8])?.checked_next_multiple_of(ALIGNMENT)?;
            let chunk = page.checked_mul((CHUNK_BYTES as u64 / page).max(1))?;
            let size = |n: u64| usize::try_from(n).ok();
            Some(Sizes { page: size(page)?, table: size(table)?, chunk: size(chunk)? })
        };
        sizes().ok_or_else(|| Error::OutOfMemory { what: "a page of the KV cache".into(), bytes: u64::MAX })
    }

    /// Tables that are allocated at once.
    fn tables_in_chunk(&self) -> usize {
        ((1 << 20) / self.table.max(1)).clamp(1, 256)
    }

    /// What a cache takes on the device while one sequence has `n_positions`, with the page that belongs to nobody.
    pub fn sequence_bytes(&self, n_positions: usize) -> u64 {
        let n_pages = (n_positions.div_ceil(PAGE) as u64).saturating_add(1);
        let n_chunks = n_pages.div_ceil((self.chunk / self.page.max(1)).max(1) as u64);
        let tables = (self.tables_in_chunk() as u64).saturating_mul(self.table as u64);
        n_chunks.saturating_mul(self.chunk as u64).saturating_add(tables)
    }

    /// What [`KvCache::new`] allocates on the device.
    pub fn first_bytes(&self) -> u64 {
        self.chunk as u64 + (self.tables_in_chunk() as u64).saturating_mul(self.table as u64)
    }
}

/// The cache of one model.
pub struct KvCache {
    context: Arc<Context>,
    sizes: Sizes,
    n_ctx: usize,
    pages: Pool,
    tables: Pool,
    sequences: HashMap<SequenceId, Sequence>,
    /// What rows that pad a batch read and write: one page, and nobody's.
    scratch: Sequence,
}

#[derive(Default)]
struct Sequence {
    table: Place,
    pages: Vec<Place>,
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
    /// An empty cache for sequences of at most `n_ctx` positions, with its first chunk. What it does on the device it
    /// queues into `stream`, which must be the stream of all kernels that use the cache.
    ///
    /// # Errors
    /// Those of [`Sizes::new`]; `OutOfMemory`, `DeviceLost`, `DeviceError`.
    pub fn new(context: &Arc<Context>, stream: &Stream, desc: &ModelDesc, n_ctx: usize) -> Result<KvCache> {
        let sizes = Sizes::new(desc, n_ctx)?;
        let pages = Pool::new(sizes.page, sizes.chunk / sizes.page, false, "the KV cache");
        let tables = Pool::new(sizes.table, sizes.tables_in_chunk(), true, "page tables of the KV cache");
        let sequences = HashMap::new();
        let scratch = Sequence::default();
        let mut cache = KvCache { context: context.clone(), sizes, n_ctx, pages, tables, sequences, scratch };
        cache.scratch.table = cache.tables.take(context)?;
        cache.extend(stream, None, 1)?;
        Ok(cache)
    }

    /// Bytes of a page and of a table.
    pub fn sizes(&self) -> Sizes {
        self.sizes
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
        let chunks = (self.pages.chunks.len(), self.tables.chunks.len());
        let is_new = !self.sequences.contains_key(&sequence);
        if is_new {
            let no_memory = |_| Error::OutOfMemory { what: "a sequence".into(), bytes: size_of::<Sequence>() as u64 };
            self.sequences.try_reserve(1).map_err(no_memory)?;
            let table = self.tables.take(&self.context)?;
            self.sequences.insert(sequence, Sequence { table, pages: Vec::new() });
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

    /// Frees a sequence; unknown ones are ignored. With the last one, all chunks but the first go back to the driver.
    pub fn free(&mut self, stream: &Stream, sequence: SequenceId) {
        self.remove(sequence);
        if self.sequences.is_empty() {
            self.sequences = HashMap::new();
            self.shrink(stream, (1, 1));
        }
    }

    /// Frees all chunks of pages and of tables but the first ones; all that is in the others is free.
    fn shrink(&mut self, stream: &Stream, (pages, tables): (usize, usize)) {
        if self.pages.chunks.len() <= pages && self.tables.chunks.len() <= tables {
            return;
        }
        // Work that was queued ahead may still use them. A lost device does no work, and keeps its memory.
        if stream.synchronize().is_ok() || self.context.is_lost() {
            self.pages.shrink(pages);
            self.tables.shrink(tables);
        }
    }

    /// Where the page table `[n_ctx / PAGE]` u64 of a sequence is in device memory; `None` if it has no position.
    pub fn table_address(&self, sequence: SequenceId) -> Option<u64> {
        self.sequences.get(&sequence).map(|found| self.tables.address(found.table))
    }

    /// The table of rows that only pad a batch. They are at position 0.
    pub fn scratch_table_address(&self) -> u64 {
        self.tables.address(self.scratch.table)
    }

    /// Gives `sequence`, or the scratch sequence, `n_pages` pages in all.
    fn extend(&mut self, stream: &Stream, sequence: Option<SequenceId>, n_pages: usize) -> Result<()> {
        let owner = match sequence {
            Some(sequence) => self.sequences.get_mut(&sequence),
            None => Some(&mut self.scratch),
        };
        let Some(owner) = owner else { return Ok(()) };
        let first = owner.pages.len();
        let n_more = n_pages.saturating_sub(first);
        if n_more == 0 {
            return Ok(());
        }
        let no_memory = |_| Error::OutOfMemory { what: "a sequence".into(), bytes: (n_more * 8) as u64 };
        owner.pages.try_reserve(n_more).map_err(no_memory)?;
        let (pages, tables) = (&mut self.pages, &self.tables);
        let mut more = || {
            for _ in first..n_pages {
                owner.pages.push(pages.take(&self.context)?);
            }
            for (index, &page) in owner.pages.iter().enumerate().skip(first) {
                pages.zero(stream, page)?;
                tables.write(owner.table, index, pages.address(page))?;
            }
            tables.upload(stream, owner.table, first..n_pages)
        };
        let outcome = more();
        if outcome.is_err() {
            owner.pages.drain(first..).for_each(|page| pages.give(page));
        }
        outcome
    }

    fn remove(&mut self, sequence: SequenceId) {
        if let Some(Sequence { table, pages }) = self.sequences.remove(&sequence) {
            pages.into_iter().for_each(|page| self.pages.give(page));
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
