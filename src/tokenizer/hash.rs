//! Hash tables of the tokenizer: from a pair of symbols to a merge, and from a text to a token.
//!
//! Both are open-addressed with linear probing and never grow: the file says how many entries there are. Hashes
//! are keyed with random numbers of the process, so that no file can be made whose keys all collide.

use std::hash::{BuildHasher, RandomState};

use crate::error::{Result, try_vec};

/// No token, no rank.
pub const NONE: u32 = u32::MAX;

/// The random numbers that key a table.
#[derive(Debug, Clone, Copy)]
struct Seed(u64, u64);

impl Seed {
    fn new() -> Seed {
        let state = RandomState::new();
        Seed(state.hash_one(0_u8), state.hash_one(1_u8) | 1)
    }

    /// Multiplies to 128 bits and folds the halves: every bit of the result depends on every bit of `word`.
    #[inline]
    fn word(self, word: u64) -> u64 {
        let product = u128::from(word ^ self.0) * u128::from(self.1);
        (product as u64) ^ (product >> 64) as u64
    }

    fn bytes(self, bytes: &[u8]) -> u64 {
        let mut hash = self.word(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = self.word(hash.rotate_left(23) ^ u64::from_le_bytes(word));
        }
        hash
    }
}

/// Slots for `n` entries: three of five are taken, so that a miss costs 3.6 probes on average.
fn capacity(n: usize) -> usize {
    n.saturating_add(n / 3 * 2).saturating_add(2)
}

/// Scales a hash to `0..len` without a division.
#[inline]
fn slot(hash: u64, len: usize) -> usize {
    ((u128::from(hash) * len as u128) >> 64) as usize
}

/// What two adjacent symbols become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    /// Lower goes first.
    pub rank: u32,
    /// The symbol that replaces the two.
    pub id: u32,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    left: u32,
    right: u32,
    merge: Merge,
}

/// Merges by (left symbol, right symbol). 16 bytes per slot.
#[derive(Debug)]
pub struct PairTable {
    seed: Seed,
    entries: Vec<Entry>,
    free: usize,
}

impl PairTable {
    /// An empty table for up to `n` pairs.
    pub fn new(n: usize) -> Result<PairTable> {
        let capacity = capacity(n);
        let mut entries = try_vec(capacity, "the merges of the tokenizer")?;
        entries.resize(capacity, Entry { left: NONE, right: NONE, merge: Merge { rank: NONE, id: NONE } });
        Ok(PairTable { seed: Seed::new(), entries, free: n })
    }

    /// Where the pair is, or the free slot where it belongs. One slot is always free, so the search ends.
    #[inline]
    fn find(&self, left: u32, right: u32) -> usize {
        let key = u64::from(left) << 32 | u64::from(right);
        let mut at = slot(self.seed.word(key), self.entries.len());
        loop {
            let entry = &self.entries[at];
            if entry.left == NONE || (entry.left == left && entry.right == right) {
                return at;
            }
            at = if at + 1 == self.entries.len() { 0 } else { at + 1 };
        }
    }

    /// The merge of the pair; its rank is [`NONE`] when there is none.
    #[inline]
    pub fn get(&self, left: u32, right: u32) -> Merge {
        self.entries[self.find(left, right)].merge
    }

    /// Adds a pair whose symbols are not [`NONE`]; the first of equal pairs stays. Says whether it was added, which
    /// it is not when the table is full.
    pub fn insert(&mut self, left: u32, right: u32, merge: Merge) -> bool {
        let at = self.find(left, right);
        if self.entries[at].left != NONE || self.free == 0 {
            return false;
        }
        self.free -= 1;
        self.entries[at] = Entry { left, right, merge };
        true
    }
}

/// Token ids by text. The texts stay where they are: every call gets a function that finds the text of an id.
#[derive(Debug)]
pub struct TextIndex {
    seed: Seed,
    ids: Vec<u32>,
    free: usize,
}

impl TextIndex {
    /// An empty index for up to `n` texts.
    pub fn new(n: usize) -> Result<TextIndex> {
        let capacity = capacity(n);
        let mut ids = try_vec(capacity, "the index of token texts")?;
        ids.resize(capacity, NONE);
        Ok(TextIndex { seed: Seed::new(), ids, free: n })
    }

    fn find<'t>(&self, text: &[u8], text_of: &impl Fn(u32) -> &'t [u8]) -> usize {
        let mut at = slot(self.seed.bytes(text), self.ids.len());
        while self.ids[at] != NONE && text_of(self.ids[at]) != text {
            at = if at + 1 == self.ids.len() { 0 } else { at + 1 };
        }
        at
    }

    /// The id of the token with this text.
    pub fn get<'t>(&self, text: &[u8], text_of: impl Fn(u32) -> &'t [u8]) -> Option<u32> {
        let id = self.ids[self.find(text, &text_of)];
        (id != NONE).then_some(id)
    }

    /// Adds a text; the last of equal texts stays.
    pub fn insert<'t>(&mut self, text: &[u8], id: u32, text_of: impl Fn(u32) -> &'t [u8]) {
        let at = self.find(text, &text_of);
        if self.ids[at] == NONE {
            if self.free == 0 {
                return;
            }
            self.free -= 1;
        }
        self.ids[at] = id;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_pair_table_finds_every_pair_and_no_other() {
        let n = 10_000;
        let mut table = PairTable::new(n).unwrap();
        for i in 0..n as u32 {
            assert!(table.insert(i, i % 7, Merge { rank: i, id: i + 1 }));
        }
        for i in 0..n as u32 {
            assert_eq!(table.get(i, i % 7), Merge { rank: i, id: i + 1 });
            assert_eq!(table.get(i, 7).rank, NONE);
        }
        assert!(!table.insert(0, 7, Merge { rank: 0, id: 0 }), "full");
        assert!(!table.insert(3, 3, Merge { rank: 9, id: 9 }), "the first of equal pairs stays");
        assert_eq!(table.get(3, 3).rank, 3);
    }

    #[test]
    fn an_empty_table_has_nothing() {
        assert_eq!(PairTable::new(0).unwrap().get(0, 0).rank, NONE);
        assert_eq!(TextIndex::new(0).unwrap().get(b"", |_| b""), None);
    }

    #[test]
    fn the_last_of_equal_texts_stays() {
        let texts: [&[u8]; 4] = [b"a", b"", b"a", b"123456789"];
        let mut index = TextIndex::new(texts.len()).unwrap();
        for (id, text) in texts.iter().enumerate() {
            index.insert(text, id as u32, |id| texts[id as usize]);
        }
        assert_eq!(index.get(b"a", |id| texts[id as usize]), Some(2));
        assert_eq!(index.get(b"", |id| texts[id as usize]), Some(1));
        assert_eq!(index.get(b"123456789", |id| texts[id as usize]), Some(3));
        assert_eq!(index.get(b"12345678", |id| texts[id as usize]), None);
    }
}
