//! Keys and values of every sequence, in pages of device memory. A table in device memory says where the pages of a
//! sequence are, so that kernels find them and sequences only hold memory for the tokens they have.
//!
//! Sequences share pages that are full. A page is written by one sequence only: one that begins with positions of another, or
//! goes back into a page that is shared, gets a copy of the last, partly filled page; one that would write a shared page of its
//! ring again gets another. The partial sums of attention have areas of their own for each sequence.
//!
//! All work on pages and tables runs in one stream: a page that is given to another sequence is written after the
//! work of its earlier owner.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::context::Context;
use super::memory::{DeviceBuffer, PinnedBuffer};
use super::params::KIGO_ALL_BEFORE;
use super::stream::Stream;
use crate::backend::{Purpose, SequenceId, nth_page};
use crate::error::try_vec;
use crate::model::{LayerDesc, ModelDesc};
use crate::{Error, Result};

/// Positions in a page: `KIGO_PAGE` of `kernels/launch.h`.
pub const PAGE: usize = 64;

/// Widths of a head that the kernels have; others are padded with zeros to the next.
const HEAD_WIDTHS: [usize; 6] = [32, 64, 96, 128, 192, 256];

/// Bytes that are asked of the driver at once, unless a page is larger: an allocation takes as long as some tokens.
const CHUNK_BYTES: usize = 32 << 20;

/// The same for areas of partial sums, which are small.
const AREAS_BYTES: usize = 4 << 20;

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
    /// Bytes of a page: `[n_layer, n_head_kv, k and v, PAGE, head width]` f16.
    pub page: usize,
    /// Pages that a sequence has at most: entry i of a table is page i modulo this number.
    pub ring: usize,
    /// Positions before its own that a row sees at most.
    pub before: usize,
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
    /// As if it were one more group: an area for each page, with the partial sums of attention `[n_head, 2 + head width]` f32.
    pub areas: Group,
    /// One for each layer of the model.
    pub layers: Vec<LayerPlace>,
    /// Entries of a table for each group: `n_ctx / PAGE`, rounded up.
    pub n_entries: usize,
    /// `[groups and areas, n_entries]` u64.
    pub table: usize,
}

/// Positions that may be written beyond those that a row sees, besides the rest of its batch.
const AHEAD: usize = super::ahead::STEPS_AHEAD;

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
        let items = |n_layer: usize, factors: &[u64], ring: usize, before: usize, at_once: usize| {
            let page = product(factors)?.checked_next_multiple_of(ALIGNMENT)?;
            let chunk = page.checked_mul((at_once as u64 / page).max(1))?;
            let size = |n: u64| usize::try_from(n).ok();
            Some(Group { n_layer, page: size(page)?, ring, before, chunk: size(chunk)? })
        };
        let group = |n_layer: usize, ring: usize, before: usize| {
            let factors = [n_layer as u64, desc.n_head_kv as u64, 2, PAGE as u64, width, 2];
            items(n_layer, &factors, ring, before, CHUNK_BYTES)
        };
        // A window that is never left is none.
        let window = |layer: &LayerDesc| layer.window.filter(|&window| window < n_ctx);
        let windows = || desc.layers.iter().filter_map(window);
        let n_windowed = windows().count();
        let n_full = desc.n_layer() - n_windowed;
        let mut groups = try_vec(2, "the groups of layers")?;
        if n_full > 0 {
            groups.push(group(n_full, n_entries, n_ctx).ok_or_else(too_large)?);
        }
        if let Some(largest) = windows().max() {
            let span = largest.saturating_add(n_batch).saturating_add(AHEAD);
            let ring = n_entries.min(span.div_ceil(PAGE).saturating_add(1));
            groups.push(group(n_windowed, ring, largest.saturating_sub(1)).ok_or_else(too_large)?);
        }
        let ring = groups.iter().map(|group| group.ring).max().unwrap_or(0);
        let factors = [desc.n_head as u64, width + 2, 4];
        let areas = items(0, &factors, ring, n_ctx, AREAS_BYTES).ok_or_else(too_large)?;
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
        let table = product(&[groups.len() as u64 + 1, n_entries as u64, 8])
            .and_then(|bytes| bytes.checked_next_multiple_of(ALIGNMENT))
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or_else(too_large)?;
        Ok(Sizes { groups, areas, layers, n_entries, table })
    }

    /// The groups, and last the areas.
    fn items(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().chain([&self.areas])
    }

    /// First entry of the areas in a table.
    pub fn areas_entry(&self) -> usize {
        self.groups.len() * self.n_entries
    }

    /// Tables that are allocated at once.
    fn tables_in_chunk(&self) -> usize {
        ((1 << 20) / self.table.max(1)).clamp(1, 256)
    }

    /// What a cache takes on the device while one sequence has `n_positions`, with the pages that belong to nobody.
    pub fn cache_bytes(&self, n_positions: usize) -> u64 {
        let bytes = |group: &Group| {
            let n_pages = n_positions.div_ceil(PAGE).min(group.ring).saturating_add(1);
            let n_chunks = n_pages.div_ceil((group.chunk / group.page.max(1)).max(1)) as u64;
            n_chunks.saturating_mul(group.chunk as u64)
        };
        let tables = (self.tables_in_chunk() as u64).saturating_mul(self.table as u64);
        self.items().map(bytes).fold(tables, u64::saturating_add)
    }

    /// What [`KvCache::new`] allocates on the device.
    pub fn first_bytes(&self) -> u64 {
        let chunks = self.items().map(|group| group.chunk as u64).fold(0, u64::saturating_add);
        chunks.saturating_add((self.tables_in_chunk() as u64).saturating_mul(self.table as u64))
    }

    /// Bytes of the pages of a sequence of `n_positions`.
    pub fn sequence_bytes(&self, n_positions: usize) -> u64 {
        let n_pages = n_positions.div_ceil(PAGE);
        let bytes = |group: &Group| (n_pages.min(group.ring) as u64).saturating_mul(group.page as u64);
        self.items().map(bytes).fold(0, u64::saturating_add)
    }
}

impl Group {
    /// The pages that a row at position `n` sees of those before its own position.
    fn pages_before(&self, n: usize) -> Range<usize> {
        n.saturating_sub(self.before) / PAGE..n.div_ceil(PAGE)
    }

    /// Which of the pages of a sequence has these positions.
    fn slot(&self, page: usize) -> usize {
        page % self.ring.max(1)
    }
}

/// The cache of one model.
pub struct KvCache {
    context: Arc<Context>,
    sizes: Sizes,
    n_ctx: usize,
    /// One for each group, and last that of the areas.
    pages: Vec<Pool>,
    tables: Pool,
    sequences: HashMap<SequenceId, Sequence>,
    /// How many of them are kept.
    n_kept: usize,
    /// What rows that pad a batch read and write: one page of each group, and nobody's.
    scratch: Sequence,
}

#[derive(Default)]
struct Sequence {
    /// A kept sequence has none.
    table: Option<Place>,
    /// Of each group, in order, and last the areas.
    pages: [Vec<Place>; 3],
    /// Pages that its positions take, and entries of its table that are filled for each group.
    n_pages: usize,
    /// The most that these ever were: pages of a ring hold what was written last, also where positions were taken away since.
    most_pages: usize,
    /// Whether it is only there for others to begin with.
    is_kept: bool,
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
    /// `None` where one was freed.
    chunks: Vec<Option<Chunk>>,
    /// Has room for all items.
    free: Vec<Place>,
    /// Items that kept sequences hold.
    n_kept: usize,
}

struct Chunk {
    buffer: DeviceBuffer,
    mirror: Option<PinnedBuffer>,
    /// For each item the sequences that hold it, and those among them that are kept.
    holders: Vec<(u32, u32)>,
    /// Items that somebody holds.
    n_used: usize,
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
        let mut pages = try_vec(sizes.groups.len() + 1, "the KV cache")?;
        pages.extend(sizes.items().map(pool));
        let tables = Pool::new(sizes.table, sizes.tables_in_chunk(), true, "page tables of the KV cache");
        let sequences = HashMap::new();
        let scratch = Sequence::default();
        let mut cache =
            KvCache { context: context.clone(), sizes, n_ctx, pages, tables, sequences, n_kept: 0, scratch };
        cache.scratch.table = Some(cache.tables.take(context)?);
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
        let is_new = !self.sequences.contains_key(&sequence);
        let outcome =
            self.begin(sequence).and_then(|()| self.extend(stream, Some(sequence), n_positions.div_ceil(PAGE)));
        if outcome.is_err() {
            if is_new {
                self.remove(sequence);
            }
            self.shrink(stream);
        }
        outcome
    }

    /// Gives a sequence that is not there a table.
    fn begin(&mut self, sequence: SequenceId) -> Result<()> {
        if self.sequences.contains_key(&sequence) {
            return Ok(());
        }
        let no_memory = |_| Error::OutOfMemory { what: "a sequence".into(), bytes: size_of::<Sequence>() as u64 };
        self.sequences.try_reserve(1).map_err(no_memory)?;
        let table = Some(self.tables.take(&self.context)?);
        self.sequences.insert(sequence, Sequence { table, ..Sequence::default() });
        Ok(())
    }

    /// Frees a sequence; unknown ones are ignored. With the last one that is not kept, all chunks that nobody uses go back to
    /// the driver, but the first ones.
    pub fn free(&mut self, stream: &Stream, sequence: SequenceId) {
        self.remove(sequence);
        if self.sequences.is_empty() {
            self.sequences = HashMap::new();
        }
        if self.sequences.len() == self.n_kept {
            self.shrink(stream);
        }
    }

    /// Frees all chunks of pages and of tables that nobody uses but the first ones.
    pub fn shrink(&mut self, stream: &Stream) {
        if !self.pages.iter().chain([&self.tables]).any(Pool::has_unused_chunk) {
            return;
        }
        // Work that was queued ahead may still use them. A lost device does no work, and keeps its memory.
        if stream.synchronize().is_ok() || self.context.is_lost() {
            self.pages.iter_mut().for_each(Pool::shrink);
            self.tables.shrink();
        }
    }

    /// Where the page table `[groups and areas, n_entries]` u64 of a sequence is in device memory; `None` if it has no position.
    pub fn table_address(&self, sequence: SequenceId) -> Option<u64> {
        self.sequences.get(&sequence).and_then(|found| found.table).map(|table| self.tables.address(table))
    }

    /// The table of rows that only pad a batch. They are at position 0.
    pub fn scratch_table_address(&self) -> u64 {
        self.scratch.table.map_or(0, |table| self.tables.address(table))
    }

    /// Gives `sequence`, or the scratch sequence, room for `n_pages` pages of positions in all.
    fn extend(&mut self, stream: &Stream, sequence: Option<SequenceId>, n_pages: usize) -> Result<()> {
        let owner = match sequence {
            Some(sequence) => self.sequences.get_mut(&sequence),
            None => Some(&mut self.scratch),
        };
        let Some(owner) = owner else { return Ok(()) };
        let (true, Some(table)) = (n_pages > owner.n_pages, owner.table) else { return Ok(()) };
        let (pools, tables, sizes) = (&mut self.pages, &self.tables, &self.sizes);
        let had = owner.pages.each_ref().map(Vec::len);
        // Pages of a ring that others hold too, which others take the place of: group, place in the ring, page.
        let mut replaced: Vec<(usize, usize, Place)> = Vec::new();
        let mut more = || {
            for (number, (group, pages)) in sizes.items().zip(&mut owner.pages).enumerate() {
                let pool = &mut pools[number];
                let n_more = n_pages.min(group.ring).saturating_sub(pages.len());
                let no_memory = |_| Error::OutOfMemory { what: "a sequence".into(), bytes: (n_more * 8) as u64 };
                pages.try_reserve(n_more).map_err(no_memory)?;
                for _ in 0..n_more {
                    let page = pool.take(&self.context)?;
                    pages.push(page);
                    pool.zero(stream, page)?;
                }
                for slot in (owner.n_pages..n_pages).take(group.ring).map(|page| group.slot(page)) {
                    if pool.is_shared(pages[slot]) {
                        replaced.try_reserve(1).map_err(no_memory)?;
                        let page = pool.take(&self.context)?;
                        replaced.push((number, slot, std::mem::replace(&mut pages[slot], page)));
                        pool.zero(stream, page)?;
                    }
                }
            }
            write_table(stream, tables, sizes, pools, table, &owner.pages, owner.n_pages..n_pages)
        };
        let outcome = more();
        match outcome {
            Ok(()) => {
                owner.n_pages = n_pages;
                owner.most_pages = owner.most_pages.max(n_pages);
                replaced.into_iter().for_each(|(number, _, page)| pools[number].release(page, false));
            }
            Err(_) => {
                for (number, slot, page) in replaced {
                    pools[number].release(std::mem::replace(&mut owner.pages[number][slot], page), false);
                }
                for ((pool, pages), had) in pools.iter_mut().zip(&mut owner.pages).zip(had) {
                    pages.drain(had..).for_each(|page| pool.release(page, false));
                }
            }
        }
        outcome
    }

    fn remove(&mut self, sequence: SequenceId) {
        if let Some(Sequence { table, pages, is_kept, .. }) = self.sequences.remove(&sequence) {
            for (pool, pages) in self.pages.iter_mut().zip(pages) {
                pages.into_iter().for_each(|page| pool.release(page, is_kept));
            }
            table.into_iter().for_each(|table| self.tables.release(table, false));
            self.n_kept -= usize::from(is_kept);
        }
    }

    /// Whether `sequence` has all that a row at position `n` sees of the positions before it.
    pub fn holds(&self, sequence: SequenceId, n: usize) -> bool {
        self.sequences.get(&sequence).is_some_and(|sequence| {
            let holds = |group: &Group| {
                let needed = group.pages_before(n);
                // A page of a ring is written again when the ring has come round.
                needed.end <= sequence.n_pages && needed.start + group.ring >= sequence.most_pages
            };
            self.sizes.groups.iter().all(holds)
        })
    }

    /// Takes away all positions from `n` on. False if the sequence does not hold what position `n` sees.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`, `DeviceError`; the sequence is as before.
    pub fn rewind(&mut self, stream: &Stream, sequence: SequenceId, n: usize) -> Result<bool> {
        if !self.holds(sequence, n) {
            return Ok(false);
        }
        let Some(owner) = self.sequences.get_mut(&sequence) else { return Ok(false) };
        let (last, n_pages) = (n / PAGE, n.div_ceil(PAGE));
        for (number, group) in self.sizes.groups.iter().enumerate().filter(|_| last < n_pages) {
            let (pool, slot) = (&mut self.pages[number], group.slot(last));
            let (Some(page), Some(table)) = (owner.pages[number].get(slot).copied(), owner.table) else { continue };
            if !pool.is_shared(page) {
                continue;
            }
            let own = pool.take(&self.context)?;
            let entry = number * self.sizes.n_entries + last;
            let enter = || {
                pool.copy(stream, page, own)?;
                self.tables.write(table, entry, pool.address(own))?;
                self.tables.upload(stream, table, entry..entry + 1)
            };
            if let Err(error) = enter() {
                // Whatever of the table has been uploaded, what comes next uploads the entry that stands here.
                self.tables.write(table, entry, pool.address(page))?;
                let _ = self.tables.upload(stream, table, entry..entry + 1);
                pool.release(own, false);
                return Err(error);
            }
            owner.pages[number][slot] = own;
            pool.release(page, false);
        }
        for ((pool, group), pages) in self.pages.iter_mut().zip(self.sizes.items()).zip(&mut owner.pages) {
            let n_slots = n_pages.min(group.ring).min(pages.len());
            pages.drain(n_slots..).for_each(|page| pool.release(page, false));
        }
        owner.n_pages = n_pages;
        Ok(true)
    }

    /// Makes `to`, which must not exist, a sequence with the first `n` positions of `from`. False if `from` does not hold what
    /// position `n` sees.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`, `DeviceError`; nothing changed then.
    pub fn fork(&mut self, stream: &Stream, from: SequenceId, to: SequenceId, n: usize) -> Result<bool> {
        if !self.holds(from, n) {
            return Ok(false);
        }
        let outcome = self.begin(to).and_then(|()| self.share(stream, from, to, n));
        if outcome.is_err() {
            self.remove(to);
        }
        outcome.map(|()| true)
    }

    fn share(&mut self, stream: &Stream, from: SequenceId, to: SequenceId, n: usize) -> Result<()> {
        let [Some(from), Some(to)] = self.sequences.get_disjoint_mut([&from, &to]) else { return Ok(()) };
        let (n_pages, context) = (n.div_ceil(PAGE), &self.context);
        for (number, group) in self.sizes.items().enumerate() {
            let (pool, n_slots) = (&mut self.pages[number], n_pages.min(group.ring));
            let pages = &mut to.pages[number];
            let no_memory = |_| Error::OutOfMemory { what: "a sequence".into(), bytes: (n_slots * 8) as u64 };
            pages.try_reserve(n_slots).map_err(no_memory)?;
            for slot in 0..n_slots {
                // The last of the pages that come to stand here.
                let page = slot + (n_pages - 1 - slot) / group.ring * group.ring;
                let place = from.pages[number].get(slot).copied();
                if number == self.sizes.groups.len() {
                    let area = pool.take(context)?;
                    pages.push(area);
                    pool.zero(stream, area)?;
                } else if let Some(place) = place.filter(|_| page >= group.pages_before(n).start) {
                    if (page + 1) * PAGE <= n {
                        pool.hold(place);
                        pages.push(place);
                    } else {
                        let own = pool.take(context)?;
                        pages.push(own);
                        pool.copy(stream, place, own)?;
                    }
                } else if let Some(nobodys) = self.scratch.pages[number].first() {
                    // No row sees it any more.
                    pool.hold(*nobodys);
                    pages.push(*nobodys);
                }
            }
        }
        let Some(table) = to.table else { return Ok(()) };
        write_table(stream, &self.tables, &self.sizes, &self.pages, table, &to.pages, 0..n_pages)?;
        (to.n_pages, to.most_pages) = (n_pages, n_pages);
        Ok(())
    }

    /// From now on the sequence gets no rows; it gives up its table and its areas, and its pages count as kept. No work that
    /// uses them may be under way.
    pub fn keep(&mut self, sequence: SequenceId) {
        let Some(kept) = self.sequences.get_mut(&sequence).filter(|sequence| !sequence.is_kept) else { return };
        kept.is_kept = true;
        self.n_kept += 1;
        kept.table.take().into_iter().for_each(|table| self.tables.release(table, false));
        for (number, (pool, pages)) in self.pages.iter_mut().zip(&mut kept.pages).enumerate() {
            if number == self.sizes.groups.len() {
                pages.drain(..).for_each(|area| pool.release(area, false));
            }
            pages.iter().for_each(|page| pool.keep(*page));
        }
    }

    /// Bytes of the pages that kept sequences hold, each counted once.
    pub fn kept_bytes(&self) -> u64 {
        self.pages.iter().map(|pool| pool.n_kept as u64 * pool.item_bytes as u64).sum()
    }

    /// Whether a sequence is there that is not kept.
    pub fn is_used(&self) -> bool {
        self.sequences.len() > self.n_kept
    }

    /// Group and number of the `index`-th of the pages that a row at position `n` sees of those before it.
    fn page_at(&self, n: usize, index: usize) -> Option<(usize, usize)> {
        nth_page(self.sizes.groups.iter().map(|group| group.pages_before(n)), index)
    }

    /// Bytes of the `index`-th of these pages; `None` if there are not so many.
    pub fn page_bytes(&self, n: usize, index: usize) -> Option<usize> {
        self.page_at(n, index).and_then(|(number, _)| self.sizes.groups.get(number)).map(|group| group.page)
    }

    /// The buffer with the `index`-th of these pages of a sequence, and where in it the page starts.
    pub fn page(&self, sequence: SequenceId, n: usize, index: usize) -> Result<(&DeviceBuffer, usize)> {
        let found = self.page_at(n, index).and_then(|(number, page)| {
            let slot = self.sizes.groups.get(number)?.slot(page);
            let place = *self.sequences.get(&sequence)?.pages.get(number)?.get(slot)?;
            Some((self.pages.get(number)?, place))
        });
        let (pool, place) = found.ok_or_else(|| Error::Internal("there is no such page".into()))?;
        Ok((&pool.chunk(place)?.buffer, pool.offset(place)))
    }

    /// What pages are, for states that are saved.
    pub fn format(&self, desc: &ModelDesc) -> String {
        let mut text = format!("f16 pages of {PAGE} positions, {} heads, layers", desc.n_head_kv);
        for layer in &self.sizes.layers {
            text.push_str(&format!(" {}.{}.{}", layer.group, layer.index, layer.before));
        }
        let bytes: Vec<String> = self.sizes.groups.iter().map(|group| group.page.to_string()).collect();
        text.push_str(&format!(", bytes {}", bytes.join(" ")));
        text
    }
}

/// Enters pages in a table, for `entries` of each group.
fn write_table(
    stream: &Stream,
    tables: &Pool,
    sizes: &Sizes,
    pools: &[Pool],
    table: Place,
    pages: &[Vec<Place>; 3],
    entries: Range<usize>,
) -> Result<()> {
    for (number, ((pool, group), pages)) in pools.iter().zip(sizes.items()).zip(pages).enumerate() {
        let first = number * sizes.n_entries;
        for entry in entries.clone() {
            let Some(page) = pages.get(group.slot(entry)) else { continue };
            tables.write(table, first + entry, pool.address(*page))?;
        }
        tables.upload(stream, table, first + entries.start..first + entries.end)?;
    }
    Ok(())
}

impl Pool {
    fn new(item_bytes: usize, items_in_chunk: usize, mirrored: bool, what: &'static str) -> Pool {
        Pool { item_bytes, items_in_chunk, mirrored, what, chunks: Vec::new(), free: Vec::new(), n_kept: 0 }
    }

    /// An item, held once.
    fn take(&mut self, context: &Arc<Context>) -> Result<Place> {
        if self.free.is_empty() {
            self.grow(context)?;
        }
        let place = self.free.pop().ok_or_else(|| Error::Internal(format!("no room in {}", self.what)))?;
        self.hold(place);
        Ok(place)
    }

    fn count(&mut self, place: Place) -> Option<(&mut (u32, u32), &mut usize)> {
        let chunk = self.chunks.get_mut(place.chunk as usize)?.as_mut()?;
        Some((chunk.holders.get_mut(place.index as usize)?, &mut chunk.n_used))
    }

    /// One more sequence holds an item.
    fn hold(&mut self, place: Place) {
        if let Some((holders, n_used)) = self.count(place) {
            *n_used += usize::from(holders.0 == 0);
            holders.0 += 1;
        }
    }

    /// A sequence that holds an item is kept from now on.
    fn keep(&mut self, place: Place) {
        if let Some((holders, _)) = self.count(place) {
            holders.1 += 1;
            if holders.1 == 1 {
                self.n_kept += 1;
            }
        }
    }

    /// A sequence, which is kept or not, holds an item no longer. There is always room for an item that nobody holds.
    fn release(&mut self, place: Place, is_kept: bool) {
        let Some((holders, n_used)) = self.count(place) else { return };
        holders.0 -= 1;
        holders.1 -= u32::from(is_kept);
        let (is_free, is_last_kept) = (holders.0 == 0, is_kept && holders.1 == 0);
        *n_used -= usize::from(is_free);
        self.n_kept -= usize::from(is_last_kept);
        if is_free {
            self.free.push(place);
        }
    }

    /// Whether more than one sequence holds an item.
    fn is_shared(&self, place: Place) -> bool {
        self.chunk(place)
            .is_ok_and(|chunk| chunk.holders.get(place.index as usize).is_some_and(|holders| holders.0 > 1))
    }

    fn grow(&mut self, context: &Arc<Context>) -> Result<()> {
        let number = self.chunks.iter().position(Option::is_none).unwrap_or(self.chunks.len());
        let n_chunks = self.chunks.len().max(number + 1);
        let mut free = try_vec(n_chunks * self.items_in_chunk, self.what)?;
        let mut chunks = try_vec(n_chunks, self.what)?;
        let mut holders = try_vec(self.items_in_chunk, self.what)?;
        holders.resize(self.items_in_chunk, (0, 0));
        let bytes = self.item_bytes * self.items_in_chunk;
        let buffer = DeviceBuffer::new(context, Purpose::Cache, bytes, self.what)?;
        let mirror = self.mirrored.then(|| PinnedBuffer::new(context, bytes, self.what)).transpose()?;
        chunks.append(&mut self.chunks);
        chunks.resize_with(n_chunks, || None);
        chunks[number] = Some(Chunk { buffer, mirror, holders, n_used: 0 });
        free.append(&mut self.free);
        (self.chunks, self.free) = (chunks, free);
        // The first is taken first.
        let chunk = number as u32;
        self.free.extend((0..self.items_in_chunk as u32).rev().map(|index| Place { chunk, index }));
        Ok(())
    }

    fn has_unused_chunk(&self) -> bool {
        self.chunks.iter().skip(1).flatten().any(|chunk| chunk.n_used == 0)
    }

    /// Frees all chunks that nobody uses but the first one.
    fn shrink(&mut self) {
        for chunk in self.chunks.iter_mut().skip(1) {
            chunk.take_if(|chunk| chunk.n_used == 0);
        }
        while self.chunks.last().is_some_and(Option::is_none) {
            self.chunks.pop();
        }
        let chunks = &self.chunks;
        self.free.retain(|place| chunks.get(place.chunk as usize).is_some_and(Option::is_some));
    }

    fn offset(&self, place: Place) -> usize {
        place.index as usize * self.item_bytes
    }

    fn address(&self, place: Place) -> u64 {
        let chunk = self.chunks.get(place.chunk as usize).and_then(Option::as_ref);
        chunk.map_or(0, |chunk| chunk.buffer.address() + self.offset(place) as u64)
    }

    fn chunk(&self, place: Place) -> Result<&Chunk> {
        let chunk = self.chunks.get(place.chunk as usize).and_then(Option::as_ref);
        chunk.ok_or_else(|| Error::Internal(format!("{place:?} of {}", self.what)))
    }

    /// Fills an item with zeros: what a freed sequence left must not reach another, least of all a NaN.
    fn zero(&self, stream: &Stream, place: Place) -> Result<()> {
        let start = self.offset(place);
        self.chunk(place)?.buffer.fill_part_u8(stream, start..start + self.item_bytes, 0)
    }

    /// Queues the copy of an item to another.
    fn copy(&self, stream: &Stream, from: Place, to: Place) -> Result<()> {
        let (start, source) = (self.offset(to), self.chunk(from)?);
        let part = self.offset(from)..self.offset(from) + self.item_bytes;
        self.chunk(to)?.buffer.copy_async(stream, start, &source.buffer, part)
    }

    /// Writes entry `index` of a table, in host memory.
    fn write(&self, table: Place, index: usize, entry: u64) -> Result<()> {
        let Some(mirror) = &self.chunk(table)?.mirror else { return Ok(()) };
        let at = self.offset(table) + index * 8;
        mirror.write_u32(at, entry as u32)?;
        mirror.write_u32(at + 4, (entry >> 32) as u32)
    }

    /// Queues the copy of some entries of a table to the device.
    fn upload(&self, stream: &Stream, table: Place, entries: Range<usize>) -> Result<()> {
        let chunk = self.chunk(table)?;
        let Some(mirror) = &chunk.mirror else { return Ok(()) };
        let start = self.offset(table);
        let part = start + entries.start * 8..start + entries.end * 8;
        chunk.buffer.upload_async(stream, part.start, mirror, part)
    }
}
