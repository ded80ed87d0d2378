//! Keys and values of every sequence, in pages, so that a sequence only holds memory for the tokens it has.

use std::collections::HashMap;

use super::super::{Row, SequenceId};
use crate::error::try_vec;
use crate::{Error, Result};

/// Positions in a page.
pub const PAGE: usize = 32;

/// One page: `PAGE` positions of all layers, `[n_layer, k and v, PAGE, n_head_kv * head_dim]` f32.
type Page = Vec<f32>;

/// The cache of one model.
pub struct KvCache {
    n_layer: usize,
    /// `n_head_kv * head_dim`.
    width: usize,
    sequences: HashMap<SequenceId, Vec<Page>>,
    n_pages: usize,
}

impl KvCache {
    pub fn new(n_layer: usize, width: usize) -> KvCache {
        KvCache { n_layer, width, sequences: HashMap::new(), n_pages: 0 }
    }

    pub fn sequence_free(&mut self, sequence: SequenceId) {
        self.n_pages -= self.sequences.remove(&sequence).map_or(0, |pages| pages.len());
        if self.sequences.is_empty() {
            self.sequences = HashMap::new();
        }
    }

    /// Adds pages until positions `0..n_positions` have a place.
    pub fn reserve(&mut self, sequence: SequenceId, n_positions: usize) -> Result<()> {
        self.sequences.try_reserve(1).map_err(|_| out_of_memory(size_of::<Page>()))?;
        let page_len = self.page_len();
        let pages = self.sequences.entry(sequence).or_default();
        let n_before = pages.len();
        while pages.len() < n_positions.div_ceil(PAGE) {
            let page = try_vec(page_len, "the KV cache").and_then(|mut page: Page| {
                page.resize(page_len, 0.0);
                pages.try_reserve(1).map_err(|_| out_of_memory(size_of::<Page>()))?;
                Ok(page)
            });
            match page {
                Ok(page) => pages.push(page),
                Err(error) => {
                    pages.truncate(n_before);
                    return Err(error);
                }
            }
        }
        self.n_pages += pages.len() - n_before;
        Ok(())
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> usize {
        self.n_pages * self.page_len() * size_of::<f32>()
    }

    /// Bytes of the pages of a sequence of so many positions.
    pub fn sequence_bytes(&self, n_positions: usize) -> u64 {
        let page = (self.page_len() * size_of::<f32>()) as u64;
        (n_positions.div_ceil(PAGE) as u64).saturating_mul(page)
    }

    /// Numbers in a page.
    fn page_len(&self) -> usize {
        self.n_layer * 2 * PAGE * self.width
    }

    /// Writes k and v `[n_head_kv, head_dim]` of a row.
    pub fn store(&mut self, row: &Row, layer: usize, k: &[f32], v: &[f32]) {
        let (page, at) = (row.position as usize / PAGE, row.position as usize % PAGE);
        let (width, k_at) = (self.width, self.layer_at(layer));
        if let Some(pages) = self.sequences.get_mut(&row.sequence) {
            pages[page][k_at + at * width..][..width].copy_from_slice(k);
            pages[page][k_at + (PAGE + at) * width..][..width].copy_from_slice(v);
        }
    }

    /// k and v `[up to PAGE, n_head_kv, head_dim]` of all positions up to and including the row's own, in order.
    pub fn pages(&self, row: &Row, layer: usize) -> impl Iterator<Item = (&[f32], &[f32])> {
        let pages = self.sequences.get(&row.sequence);
        let (width, k_at) = (self.width, self.layer_at(layer));
        let n_positions = row.position as usize + 1;
        pages.into_iter().flatten().take(n_positions.div_ceil(PAGE)).enumerate().map(move |(i, page)| {
            let n = PAGE.min(n_positions - i * PAGE);
            (&page[k_at..][..n * width], &page[k_at + PAGE * width..][..n * width])
        })
    }

    /// Where the keys of a layer start in a page; its values follow after `PAGE * width`.
    fn layer_at(&self, layer: usize) -> usize {
        layer * 2 * PAGE * self.width
    }
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

    #[test]
    fn stores_and_returns_across_pages_and_sequences() {
        let mut cache = KvCache::new(2, 3);
        let (a, b) = (3, 7);
        for sequence in [a, b] {
            cache.reserve(sequence, PAGE + 5).unwrap();
            for position in 0..PAGE as u32 + 5 {
                for layer in 0..2 {
                    let value = (sequence as u32 * 10_000 + position * 10 + layer as u32) as f32;
                    cache.store(&row(sequence, position), layer, &[value; 3], &[-value; 3]);
                }
            }
        }
        for (sequence, layer, last) in [(a, 0, 0), (a, 1, PAGE as u32), (b, 1, PAGE as u32 + 4), (b, 0, 31)] {
            let k: Vec<f32> = cache.pages(&row(sequence, last), layer).flat_map(|(k, _)| k.to_vec()).collect();
            let v: Vec<f32> = cache.pages(&row(sequence, last), layer).flat_map(|(_, v)| v.to_vec()).collect();
            let expected: Vec<f32> =
                (0..=last).flat_map(|p| [(sequence as u32 * 10_000 + p * 10 + layer as u32) as f32; 3]).collect();
            assert_eq!(k, expected);
            assert_eq!(v, expected.iter().map(|x| -x).collect::<Vec<_>>());
        }
    }

    #[test]
    fn freed_and_unknown_sequences_hold_nothing() {
        let mut cache = KvCache::new(1, 1);
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
