//! Keys and values of every sequence, in pages, so that a sequence only holds memory for the tokens it has, and layers with a
//! window only for those that they still see.

use std::collections::{HashMap, VecDeque};

use super::super::{Row, SequenceId};
use crate::error::try_vec;
use crate::{Error, Result};

/// Positions in a page.
pub const PAGE: usize = 32;

/// One page: `PAGE` positions of the layers of a group, `[layers, k and v, PAGE, n_head_kv * head_dim]` f32.
type Page = Vec<f32>;

/// The cache of one model.
pub struct KvCache {
    /// `n_head_kv * head_dim`.
    width: usize,
    groups: Vec<Group>,
    /// The group of each layer, and where its keys start in a page; its values follow after `PAGE * width`.
    layers: Vec<(usize, usize)>,
    sequences: HashMap<SequenceId, Sequence>,
    /// Batches so far.
    n_batches: u64,
    bytes: usize,
}

/// Layers that see equally far; they share pages.
struct Group {
    window: Option<usize>,
    /// Numbers in a page.
    page_len: usize,
}

/// The pages of one sequence.
struct Sequence {
    /// One for each group.
    pages: Vec<Pages>,
    /// The number of the batch that it was last part of.
    batch: u64,
}

/// Pages that follow each other.
#[derive(Default)]
struct Pages {
    /// How many were before them and are gone, since no row will see them.
    n_gone: usize,
    held: VecDeque<Page>,
}

impl Pages {
    /// Frees those before number `first`, and adds some until there are `n` with those that are gone.
    fn slide(&mut self, first: usize, n: usize, page_len: usize) -> Result<()> {
        while self.n_gone < first && self.held.pop_front().is_some() {
            self.n_gone += 1;
        }
        if self.held.is_empty() {
            self.n_gone = self.n_gone.max(first);
        }
        while self.n_gone + self.held.len() < n {
            let mut page: Page = try_vec(page_len, "the KV cache")?;
            page.resize(page_len, 0.0);
            self.held.try_reserve(1).map_err(|_| out_of_memory(size_of::<Page>()))?;
            self.held.push_back(page);
        }
        Ok(())
    }
}

impl KvCache {
    /// For layers with these windows.
    pub fn new(windows: impl Iterator<Item = Option<usize>>, width: usize) -> KvCache {
        let (mut groups, mut layers): (Vec<Group>, Vec<_>) = (Vec::new(), Vec::new());
        for window in windows {
            let group = groups.iter().position(|group| group.window == window).unwrap_or(groups.len());
            if group == groups.len() {
                groups.push(Group { window, page_len: 0 });
            }
            layers.push((group, groups[group].page_len));
            groups[group].page_len += 2 * PAGE * width;
        }
        KvCache { width, groups, layers, sequences: HashMap::new(), n_batches: 0, bytes: 0 }
    }

    pub fn sequence_free(&mut self, sequence: SequenceId) {
        for (group, pages) in self.sequences.remove(&sequence).iter().flat_map(|s| self.groups.iter().zip(&s.pages)) {
            self.bytes -= pages.held.len() * group.page_len * size_of::<f32>();
        }
        if self.sequences.is_empty() {
            self.sequences = HashMap::new();
        }
    }

    /// Adds pages until positions `0..n_positions` have a place in layers without a window; others get theirs batch by batch.
    pub fn reserve(&mut self, sequence: SequenceId, n_positions: usize) -> Result<()> {
        self.sequences.try_reserve(1).map_err(|_| out_of_memory(size_of::<Sequence>()))?;
        let empty = || Sequence { pages: self.groups.iter().map(|_| Pages::default()).collect(), batch: 0 };
        let pages = &mut self.sequences.entry(sequence).or_insert_with(empty).pages;
        for (group, pages) in self.groups.iter().zip(pages).filter(|(group, _)| group.window.is_none()) {
            let n_before = pages.held.len();
            // There is one such group at most, so that nothing else is to be undone.
            let outcome = pages.slide(0, n_positions.div_ceil(PAGE), group.page_len);
            if outcome.is_err() {
                pages.held.truncate(n_before);
            }
            self.bytes += (pages.held.len() - n_before) * group.page_len * size_of::<f32>();
            outcome?;
        }
        Ok(())
    }

    /// Makes room for the rows of a batch in layers with a window, and frees the pages that neither they nor later rows see.
    pub fn begin(&mut self, rows: &[Row]) -> Result<()> {
        self.n_batches += 1;
        for row in rows {
            let Some(sequence) = self.sequences.get_mut(&row.sequence) else { continue };
            let is_first = std::mem::replace(&mut sequence.batch, self.n_batches) != self.n_batches;
            for (group, pages) in self.groups.iter().zip(&mut sequence.pages) {
                let Some(window) = group.window else { continue };
                // The first row of a batch is the one that sees farthest back.
                let first = if is_first { first_seen(row, window) / PAGE } else { pages.n_gone };
                if first < pages.n_gone {
                    let position = row.position;
                    return Err(Error::Internal(format!("what position {position} sees is no longer in the cache")));
                }
                self.bytes -= pages.held.len() * group.page_len * size_of::<f32>();
                let outcome = pages.slide(first, row.position as usize / PAGE + 1, group.page_len);
                self.bytes += pages.held.len() * group.page_len * size_of::<f32>();
                outcome?;
            }
        }
        Ok(())
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes k and v `[n_head_kv, head_dim]` of a row.
    pub fn store(&mut self, row: &Row, layer: usize, k: &[f32], v: &[f32]) {
        let (group, k_at) = self.layers[layer];
        let (page, at, width) = (row.position as usize / PAGE, row.position as usize % PAGE, self.width);
        if let Some(sequence) = self.sequences.get_mut(&row.sequence) {
            let pages = &mut sequence.pages[group];
            let page = &mut pages.held[page - pages.n_gone];
            page[k_at + at * width..][..width].copy_from_slice(k);
            page[k_at + (PAGE + at) * width..][..width].copy_from_slice(v);
        }
    }

    /// k and v `[up to PAGE, n_head_kv, head_dim]` of all positions that a row sees, its own included, in order. Where a page
    /// begins depends on positions alone.
    pub fn pages(&self, row: &Row, layer: usize) -> impl Iterator<Item = (&[f32], &[f32])> {
        let (group, k_at) = self.layers[layer];
        let (width, end) = (self.width, row.position as usize + 1);
        let start = self.groups[group].window.map_or(0, |window| first_seen(row, window));
        let pages = self.sequences.get(&row.sequence).map(|sequence| &sequence.pages[group]);
        let seen = move |pages: &'_ Pages| start / PAGE - pages.n_gone;
        let held = pages.into_iter().flat_map(move |pages| pages.held.iter().zip(pages.n_gone..).skip(seen(pages)));
        held.take_while(move |(_, i)| i * PAGE < end).map(move |(page, i)| {
            let first = start.saturating_sub(i * PAGE);
            let n = PAGE.min(end - i * PAGE) - first;
            let part = |at: usize| &page[at + first * width..][..n * width];
            (part(k_at), part(k_at + PAGE * width))
        })
    }
}

/// The first position that a row sees.
fn first_seen(row: &Row, window: usize) -> usize {
    (row.position as usize + 1).saturating_sub(window)
}

fn out_of_memory(bytes: usize) -> Error {
    Error::OutOfMemory { what: "the KV cache".into(), bytes: bytes as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(sequence: SequenceId, position: u32) -> Row {
        Row { token: 0, position, sequence, logits: false }
    }

    fn value(sequence: SequenceId, position: u32, layer: usize) -> f32 {
        (sequence as u32 * 10_000 + position * 10 + layer as u32) as f32
    }

    /// Runs positions `from..to` of a sequence as one batch.
    fn run(cache: &mut KvCache, sequence: SequenceId, from: u32, to: u32) {
        cache.reserve(sequence, to as usize).unwrap();
        let rows: Vec<Row> = (from..to).map(|position| row(sequence, position)).collect();
        cache.begin(&rows).unwrap();
        for row in &rows {
            for layer in 0..cache.layers.len() {
                let value = value(sequence, row.position, layer);
                cache.store(row, layer, &[value; 3], &[-value; 3]);
            }
        }
    }

    fn check(cache: &KvCache, sequence: SequenceId, layer: usize, positions: std::ops::Range<u32>) {
        let row = row(sequence, positions.end - 1);
        let k: Vec<f32> = cache.pages(&row, layer).flat_map(|(k, _)| k.to_vec()).collect();
        let v: Vec<f32> = cache.pages(&row, layer).flat_map(|(_, v)| v.to_vec()).collect();
        let expected: Vec<f32> = positions.flat_map(|p| [value(sequence, p, layer); 3]).collect();
        assert_eq!(k, expected);
        assert_eq!(v, expected.iter().map(|x| -x).collect::<Vec<_>>());
    }

    #[test]
    fn stores_and_returns_across_pages_and_sequences() {
        let mut cache = KvCache::new([None, None].into_iter(), 3);
        let (a, b) = (3, 7);
        for sequence in [a, b] {
            run(&mut cache, sequence, 0, PAGE as u32 + 5);
        }
        for (sequence, layer, last) in [(a, 0, 0), (a, 1, PAGE as u32), (b, 1, PAGE as u32 + 4), (b, 0, 31)] {
            check(&cache, sequence, layer, 0..last + 1);
        }
    }

    #[test]
    fn a_window_holds_what_it_sees_in_batches_of_any_size() {
        for window in [1, 5, PAGE, PAGE + 1, 2 * PAGE] {
            for step in [1, 3, 50] {
                let mut cache = KvCache::new([Some(window), None, Some(window)].into_iter(), 3);
                for from in (0..300).step_by(step) {
                    let to = from + step as u32;
                    run(&mut cache, 1, from, to);
                    for end in from + 1..=to {
                        let start = end.saturating_sub(window as u32);
                        [0, 2].into_iter().for_each(|layer| check(&cache, 1, layer, start..end));
                        check(&cache, 1, 1, 0..end);
                    }
                    let page = 2 * PAGE * 3 * size_of::<f32>();
                    let whole = (to as usize).div_ceil(PAGE) * page;
                    let most = ((window + step).div_ceil(PAGE) + 1) * 2 * page;
                    assert!(cache.bytes() <= whole + most, "{window} {step}: {}", cache.bytes());
                }
                assert!(cache.begin(&[row(1, 10)]).is_err(), "what it sees is gone");
                cache.sequence_free(1);
                assert_eq!(cache.bytes(), 0);
            }
        }
    }

    /// A batch that failed is run again, in whatever pieces.
    #[test]
    fn a_batch_may_be_run_again() {
        let mut cache = KvCache::new([Some(4)].into_iter(), 3);
        run(&mut cache, 1, 0, 100);
        run(&mut cache, 1, 100, 200);
        run(&mut cache, 1, 100, 150);
        check(&cache, 1, 0, 96..100);
        check(&cache, 1, 0, 146..150);
    }

    #[test]
    fn freed_and_unknown_sequences_hold_nothing() {
        let mut cache = KvCache::new([None].into_iter(), 1);
        cache.reserve(4, 1).unwrap();
        cache.reserve(4, PAGE + 1).unwrap();
        assert_eq!(cache.bytes(), 2 * 2 * PAGE * 4);
        cache.sequence_free(99);
        cache.sequence_free(4);
        cache.sequence_free(4);
        assert_eq!(cache.bytes(), 0);
        assert_eq!(cache.pages(&row(4, 0), 0).count(), 0);
        assert_eq!(cache.sequences.capacity(), 0);
    }
}
