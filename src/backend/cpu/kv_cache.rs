//! Keys and values of every sequence, in pages, so that a sequence only holds memory for the tokens it has, and layers with a
//! window only for those that they still see.
//!
//! Sequences share pages that are full. A page is written by one sequence only: one that begins with positions of another, or
//! goes back into a page that is shared, gets a copy of the last, partly filled page.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use super::super::{Row, SequenceId, nth_page};
use super::pages::Pages;
use crate::{Error, Result};

/// Positions in a page.
pub const PAGE: usize = 32;

/// The cache of one model.
pub struct KvCache {
    /// `n_head_kv * head_dim`.
    width: usize,
    groups: Vec<Group>,
    /// The group of each layer, and where its keys start in a page; its values follow after `PAGE * width`.
    layers: Vec<(usize, usize)>,
    sequences: HashMap<SequenceId, Sequence>,
    /// Each is `PAGE` positions of the layers of a group: `[layers, k and v, PAGE, n_head_kv * head_dim]` f32.
    pages: Pages,
    /// Batches so far.
    n_batches: u64,
}

/// Layers that see equally far; they share pages.
struct Group {
    window: Option<usize>,
    /// Numbers in a page.
    page_len: usize,
}

impl Group {
    /// The pages that a row at position `n` sees of those before its own position.
    fn pages_before(&self, n: usize) -> Range<usize> {
        let first = self.window.map_or(0, |window| (n + 1).saturating_sub(window));
        first / PAGE..n.div_ceil(PAGE)
    }
}

/// One sequence.
struct Sequence {
    /// One for each group.
    tables: Vec<Table>,
    /// The number of the batch that it was last part of.
    batch: u64,
    /// Whether it is only there for others to begin with.
    is_kept: bool,
}

/// Numbers of pages that follow each other.
#[derive(Default)]
struct Table {
    /// How many were before them and are gone, since no row will see them.
    n_gone: usize,
    held: VecDeque<u32>,
}

impl Table {
    /// Frees those before number `first`, and adds some until there are `n` with those that are gone.
    fn slide(&mut self, pages: &mut Pages, first: usize, n: usize, page_len: usize) -> Result<()> {
        while self.n_gone < first
            && let Some(page) = self.held.pop_front()
        {
            pages.release(page, false);
            self.n_gone += 1;
        }
        if self.held.is_empty() {
            self.n_gone = self.n_gone.max(first);
        }
        while self.n_gone + self.held.len() < n {
            self.held.try_reserve(1).map_err(|_| out_of_memory(size_of::<u32>()))?;
            self.held.push_back(pages.take(page_len)?);
        }
        Ok(())
    }

    /// Frees all from number `n` on.
    fn cut(&mut self, pages: &mut Pages, n: usize) {
        while self.n_gone + self.held.len() > n
            && let Some(page) = self.held.pop_back()
        {
            pages.release(page, false);
        }
    }

    /// Page number `i`, if it is there.
    fn page(&self, i: usize) -> Option<u32> {
        self.held.get(i.checked_sub(self.n_gone)?).copied()
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
        KvCache { width, groups, layers, sequences: HashMap::new(), pages: Pages::default(), n_batches: 0 }
    }

    /// What pages are, for states that are saved: they can be read where this is the same.
    pub fn format(&self) -> String {
        let mut text = format!("f32 pages of {PAGE} positions, {} wide, layers", self.width);
        for (group, _) in &self.layers {
            match self.groups[*group].window {
                Some(window) => text.push_str(&format!(" {window}")),
                None => text.push_str(" all"),
            }
        }
        text
    }

    pub fn sequence_free(&mut self, sequence: SequenceId) {
        if let Some(sequence) = self.sequences.remove(&sequence) {
            for page in sequence.tables.iter().flat_map(|table| &table.held) {
                self.pages.release(*page, sequence.is_kept);
            }
        }
        if self.sequences.is_empty() {
            self.sequences = HashMap::new();
        }
    }

    /// The sequence, which begins to exist.
    fn sequence(&mut self, sequence: SequenceId) -> Result<(&mut Sequence, &mut Pages)> {
        self.sequences.try_reserve(1).map_err(|_| out_of_memory(size_of::<Sequence>()))?;
        let tables = || self.groups.iter().map(|_| Table::default()).collect();
        let empty = || Sequence { tables: tables(), batch: 0, is_kept: false };
        Ok((self.sequences.entry(sequence).or_insert_with(empty), &mut self.pages))
    }

    /// Adds pages until positions `0..n_positions` have a place in layers without a window; others get theirs batch by batch.
    pub fn reserve(&mut self, sequence: SequenceId, n_positions: usize) -> Result<()> {
        self.sequence(sequence)?;
        let Some(sequence) = self.sequences.get_mut(&sequence) else { return Ok(()) };
        for (group, table) in self.groups.iter().zip(&mut sequence.tables).filter(|(group, _)| group.window.is_none()) {
            let n_before = table.held.len();
            // There is one such group at most, so that nothing else is to be undone.
            let outcome = table.slide(&mut self.pages, 0, n_positions.div_ceil(PAGE), group.page_len);
            if outcome.is_err() {
                table.cut(&mut self.pages, n_before);
            }
            outcome?;
        }
        Ok(())
    }

    /// Whether `sequence` has all that a row at position `n` sees of the positions before it.
    pub fn holds(&self, sequence: SequenceId, n: usize) -> bool {
        self.sequences.get(&sequence).is_some_and(|sequence| {
            let mut tables = self.groups.iter().zip(&sequence.tables);
            tables.all(|(group, table)| {
                let needed = group.pages_before(n);
                needed.start >= table.n_gone && needed.end <= table.n_gone + table.held.len()
            })
        })
    }

    /// Takes away all positions from `n` on, which are written again by later batches. False if the sequence does not hold
    /// what position `n` sees; then it is as before.
    pub fn rewind(&mut self, sequence: SequenceId, n: usize) -> Result<bool> {
        if !self.holds(sequence, n) {
            return Ok(false);
        }
        let Some(sequence) = self.sequences.get_mut(&sequence) else { return Ok(false) };
        for table in sequence.tables.iter_mut().filter(|_| !n.is_multiple_of(PAGE)) {
            let at = (n / PAGE).checked_sub(table.n_gone);
            if let Some(page) = at.and_then(|at| table.held.get_mut(at))
                && self.pages.is_shared(*page)
            {
                let own = self.pages.copy(*page)?;
                self.pages.release(std::mem::replace(page, own), false);
            }
        }
        for table in &mut sequence.tables {
            table.cut(&mut self.pages, n.div_ceil(PAGE));
        }
        Ok(true)
    }

    /// Makes `to`, which must not exist, a sequence with the first `n` positions of `from`. False if `from` does not hold what
    /// position `n` sees; nothing changed then.
    pub fn fork(&mut self, from: SequenceId, to: SequenceId, n: usize) -> Result<bool> {
        if !self.holds(from, n) {
            return Ok(false);
        }
        let outcome = self.sequence(to).map(|_| ()).and_then(|()| self.share(from, to, n));
        if outcome.is_err() {
            self.sequence_free(to);
        }
        outcome.map(|()| true)
    }

    fn share(&mut self, from: SequenceId, to: SequenceId, n: usize) -> Result<()> {
        let [Some(from), Some(to)] = self.sequences.get_disjoint_mut([&from, &to]) else { return Ok(()) };
        for (group, (from, to)) in self.groups.iter().zip(from.tables.iter().zip(&mut to.tables)) {
            let range = group.pages_before(n);
            to.n_gone = range.start;
            to.held.try_reserve(range.len()).map_err(|_| out_of_memory(range.len() * size_of::<u32>()))?;
            for i in range {
                let Some(page) = from.page(i) else { break };
                if (i + 1) * PAGE <= n {
                    self.pages.hold(page);
                    to.held.push_back(page);
                } else {
                    to.held.push_back(self.pages.copy(page)?);
                }
            }
        }
        Ok(())
    }

    /// From now on the sequence gets no rows, and its pages count as kept.
    pub fn keep(&mut self, sequence: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(&sequence).filter(|sequence| !sequence.is_kept) {
            sequence.is_kept = true;
            sequence.tables.iter().flat_map(|table| &table.held).for_each(|page| self.pages.keep(*page));
        }
    }

    /// Group and number of the `index`-th of the pages that a row at position `n` sees of those before it.
    fn page_at(&self, n: usize, index: usize) -> Option<(usize, usize)> {
        nth_page(self.groups.iter().map(|group| group.pages_before(n)), index)
    }

    /// Bytes of the `index`-th of these pages; `None` if there are not so many.
    pub fn page_bytes(&self, n: usize, index: usize) -> Option<usize> {
        self.page_at(n, index).map(|(group, _)| self.groups[group].page_len * size_of::<f32>())
    }

    /// The `index`-th of these pages of a sequence.
    pub fn page(&self, sequence: SequenceId, n: usize, index: usize) -> Option<&[f32]> {
        let (group, number) = self.page_at(n, index)?;
        let page = self.sequences.get(&sequence)?.tables.get(group)?.page(number)?;
        Some(self.pages.get(page))
    }

    /// The same, to write; the sequence is one that [`KvCache::restore`] has made.
    pub fn page_mut(&mut self, sequence: SequenceId, n: usize, index: usize) -> Option<&mut [f32]> {
        let (group, number) = self.page_at(n, index)?;
        let page = self.sequences.get(&sequence)?.tables.get(group)?.page(number)?;
        Some(self.pages.get_mut(page))
    }

    /// Makes a sequence with all pages that a row at position `n` sees, for somebody to fill.
    pub fn restore(&mut self, sequence: SequenceId, n: usize) -> Result<()> {
        self.sequence(sequence)?;
        let Some(restored) = self.sequences.get_mut(&sequence) else { return Ok(()) };
        let mut outcome = Ok(());
        for (group, table) in self.groups.iter().zip(&mut restored.tables) {
            let pages = group.pages_before(n);
            outcome = outcome.and_then(|()| table.slide(&mut self.pages, pages.start, pages.end, group.page_len));
        }
        if outcome.is_err() {
            self.sequence_free(sequence);
        }
        outcome
    }

    /// Makes room for the rows of a batch in layers with a window, and frees the pages that neither they nor later rows see.
    pub fn begin(&mut self, rows: &[Row]) -> Result<()> {
        self.n_batches += 1;
        for row in rows {
            let Some(sequence) = self.sequences.get_mut(&row.sequence) else { continue };
            let is_first = std::mem::replace(&mut sequence.batch, self.n_batches) != self.n_batches;
            for (group, table) in self.groups.iter().zip(&mut sequence.tables) {
                let Some(window) = group.window else { continue };
                // The first row of a batch is the one that sees farthest back. A page more stays, so that the sequence can go
                // back to where its last full page ends.
                let first = if is_first { first_seen(row, window) / PAGE } else { table.n_gone };
                if first < table.n_gone {
                    let position = row.position;
                    return Err(Error::Internal(format!("what position {position} sees is no longer in the cache")));
                }
                table.slide(
                    &mut self.pages,
                    first.saturating_sub(1),
                    row.position as usize / PAGE + 1,
                    group.page_len,
                )?;
            }
        }
        Ok(())
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> usize {
        self.pages.bytes()
    }

    /// Bytes of the pages that kept sequences hold, each counted once.
    pub fn kept_bytes(&self) -> usize {
        self.pages.kept_bytes()
    }

    /// Bytes of the pages of a sequence of so many positions, whose batches have up to `n_batch` rows.
    pub fn sequence_bytes(&self, n_positions: usize, n_batch: usize) -> u64 {
        let all = n_positions.div_ceil(PAGE);
        let pages = |window: usize| all.min(window.saturating_add(n_batch).div_ceil(PAGE) + 2);
        let bytes = |group: &Group| {
            let page = (group.page_len * size_of::<f32>()) as u64;
            (group.window.map_or(all, pages) as u64).saturating_mul(page)
        };
        self.groups.iter().map(bytes).fold(0, u64::saturating_add)
    }

    /// Writes k and v `[n_head_kv, head_dim]` of a row.
    pub fn store(&mut self, row: &Row, layer: usize, k: &[f32], v: &[f32]) {
        let (group, k_at) = self.layers[layer];
        let (page, at, width) = (row.position as usize / PAGE, row.position as usize % PAGE, self.width);
        if let Some(sequence) = self.sequences.get(&row.sequence) {
            let table = &sequence.tables[group];
            let page = self.pages.get_mut(table.held[page - table.n_gone]);
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
        let table = self.sequences.get(&row.sequence).map(|sequence| &sequence.tables[group]);
        let seen = move |table: &'_ Table| start / PAGE - table.n_gone;
        let held = table.into_iter().flat_map(move |table| table.held.iter().zip(table.n_gone..).skip(seen(table)));
        held.take_while(move |(_, i)| i * PAGE < end).map(move |(page, i)| {
            let first = start.saturating_sub(i * PAGE);
            let n = PAGE.min(end - i * PAGE) - first;
            let part = |at: usize| &self.pages.get(*page)[at + first * width..][..n * width];
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
                    let most = ((window + step).div_ceil(PAGE) + 2) * 2 * page;
                    assert!(cache.bytes() <= whole + most, "{window} {step}: {}", cache.bytes());
                }
                assert!(cache.begin(&[row(1, 10)]).is_err(), "what it sees is gone");
                cache.sequence_free(1);
                assert_eq!(cache.bytes(), 0);
            }
        }
    }

    /// All of one sequence's positions `from..to` where layer 0 has a window, which sees `window`.
    fn check_both(cache: &KvCache, sequence: SequenceId, window: u32, from: u32, to: u32) {
        for end in from + 1..=to {
            check(cache, sequence, 0, end.saturating_sub(window)..end);
            check(cache, sequence, 1, 0..end);
        }
    }

    #[test]
    fn a_rewound_sequence_goes_on_as_if_it_had_never_been_longer() {
        let window = 40;
        for to in [200, 199, 192, 170, 161] {
            let mut cache = KvCache::new([Some(window), None].into_iter(), 3);
            run(&mut cache, 1, 0, 160);
            run(&mut cache, 1, 160, 200);
            let before = cache.bytes();
            assert!(cache.rewind(1, to as usize).unwrap(), "{to}");
            assert!(cache.bytes() <= before);
            run(&mut cache, 1, to, 230);
            check_both(&cache, 1, window as u32, to, 230);
        }
        let mut cache = KvCache::new([Some(window), None].into_iter(), 3);
        run(&mut cache, 1, 0, 200);
        run(&mut cache, 1, 200, 201);
        assert!(!cache.rewind(1, 100).unwrap(), "the window has moved on");
        assert!(!cache.rewind(1, 300).unwrap() && !cache.rewind(2, 0).unwrap(), "nothing is there");
        check_both(&cache, 1, window as u32, 200, 201);
    }

    /// Two sequences write different values behind what they share; one is freed, the other stays whole.
    #[test]
    fn forks_share_full_pages_and_copy_the_last() {
        let window = 40;
        for at in [1, 31, 32, 33, 64, 81, 100] {
            let mut cache = KvCache::new([Some(window), None].into_iter(), 3);
            run(&mut cache, 1, 0, at);
            let alone = cache.bytes();
            assert!(cache.fork(1, 2, at as usize).unwrap());
            let partial = if (at as usize).is_multiple_of(PAGE) { 0 } else { 2 * 2 * PAGE * 3 * 4 };
            assert_eq!(cache.bytes(), alone + partial, "{at}");
            // Each goes on with values of its own, which the other must not see.
            run(&mut cache, 1, at, at + 50);
            run(&mut cache, 2, at, at + 50);
            let k = |cache: &KvCache, sequence: SequenceId, layer| -> Vec<f32> {
                cache.pages(&row(sequence, at + 49), layer).flat_map(|(k, _)| k.to_vec()).collect()
            };
            for layer in [0, 1] {
                let start = if layer == 0 { (at + 50).saturating_sub(window as u32) } else { 0 };
                let owner = |sequence, position| if position < at { 1 } else { sequence };
                for sequence in [1, 2] {
                    let expected: Vec<f32> =
                        (start..at + 50).flat_map(|p| [value(owner(sequence, p), p, layer); 3]).collect();
                    assert_eq!(k(&cache, sequence, layer), expected, "{at} {sequence} {layer}");
                }
            }
            // Back into what is shared: that is copied before it is written. At 131 the window begins in the same page as at 127.
            if at + 50 == 131 {
                assert!(cache.fork(2, 3, 131).unwrap());
                assert!(cache.rewind(3, 127).unwrap());
                cache.reserve(3, 128).unwrap();
                cache.begin(&[row(3, 127)]).unwrap();
                cache.store(&row(3, 127), 1, &[7.0; 3], &[7.0; 3]);
                let expected: Vec<f32> =
                    (0..at + 50).flat_map(|p| [value(if p < at { 1 } else { 2 }, p, 1); 3]).collect();
                assert_eq!(k(&cache, 2, 1), expected, "{at}");
            }
            cache.keep(2);
            assert!(cache.kept_bytes() > 0 && cache.kept_bytes() <= cache.bytes());
            cache.sequence_free(1);
            cache.sequence_free(3);
            assert_eq!(cache.kept_bytes(), cache.bytes());
            cache.sequence_free(2);
            assert_eq!((cache.bytes(), cache.kept_bytes()), (0, 0));
            assert!(cache.pages.is_empty());
        }
    }

    #[test]
    fn pages_go_to_another_cache() {
        let window = 40;
        for n in [1, 32, 50, 200] {
            let new = || KvCache::new([Some(window), None].into_iter(), 3);
            let (mut from, mut to) = (new(), new());
            run(&mut from, 1, 0, n);
            to.restore(1, n as usize).unwrap();
            let mut index = 0;
            while let Some(bytes) = from.page_bytes(n as usize, index) {
                let page = from.page(1, n as usize, index).unwrap();
                assert_eq!(size_of_val(page), bytes);
                to.page_mut(1, n as usize, index).unwrap().copy_from_slice(page);
                index += 1;
            }
            assert!(from.page(1, n as usize, index).is_none());
            run(&mut to, 1, n, n + 40);
            check_both(&to, 1, window as u32, n, n + 40);
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
