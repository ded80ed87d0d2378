//! The prompt cache: which tokens the cache of the backend already has, so that a sequence that begins with the same ones need
//! not compute them.
//!
//! A sequence that ended is kept, as long as there is room: the ones that were used last stay. Those that are still running are
//! known too, with what they had when their prompt was done. Only whole pages are shared, so that nobody gets a page that
//! holds another's text. A page is found by a hash of its tokens and all before them; what decides is the tokens themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};

use super::sequences::Retired;
use crate::Result;
use crate::backend::{Backend, SequenceId};
use crate::error::try_vec;

/// What is known of the sequences.
pub struct Prompts {
    /// Most bytes of pages that are kept.
    limit: u64,
    /// Positions in a page.
    page: usize,
    /// Keyed with random numbers, so that nobody can make tokens whose hashes collide.
    hasher: RandomState,
    entries: BTreeMap<SequenceId, Entry>,
    /// The hashes of all entries with the sequences that have them.
    chains: BTreeSet<(u64, SequenceId)>,
    /// Counts uses.
    clock: u64,
    kept_bytes: u64,
}

struct Entry {
    /// Whole pages of them.
    tokens: Vec<u32>,
    /// A hash for each page.
    chain: Vec<u64>,
    /// When it was last of use.
    used: u64,
    is_kept: bool,
}

impl Prompts {
    /// None are known. At most `limit` bytes will be kept, in pages of `page` positions.
    pub fn new(limit: u64, page: usize) -> Prompts {
        Prompts {
            limit,
            page: page.max(1),
            hasher: RandomState::new(),
            entries: BTreeMap::new(),
            chains: BTreeSet::new(),
            clock: 0,
            kept_bytes: 0,
        }
    }

    /// Bytes of the pages of ended sequences.
    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    /// Whether anybody has the first page of `tokens`.
    pub fn may_know(&self, tokens: &[u32]) -> bool {
        let first = tokens.get(..self.page).filter(|_| tokens.len() > self.page);
        first.is_some_and(|first| self.with(self.hash(0, first)).next().is_some())
    }

    /// Makes `sequence` begin with as many of `tokens` as some other sequence has, and says how many. The last token is never
    /// among them, since what comes after it is wanted.
    pub fn begin(&mut self, backend: &mut dyn Backend, sequence: SequenceId, tokens: &[u32]) -> usize {
        // What an attempt that failed has left.
        backend.sequence_free(sequence);
        let most = tokens.len().saturating_sub(1) / self.page * self.page;
        let Ok(chain) = self.chain(&tokens[..most]) else { return 0 };
        for (index, hash) in chain.iter().enumerate().rev() {
            let n = (index + 1) * self.page;
            let has = |other: &SequenceId| {
                *other != sequence
                    && self.entries.get(other).is_some_and(|entry| entry.tokens.get(..n) == Some(&tokens[..n]))
                    && backend.sequence_holds(*other, n)
            };
            let Some(from) = self.with(*hash).find(has) else { continue };
            return match backend.sequence_fork(from, sequence, n) {
                Ok(true) => {
                    self.touch(from);
                    n
                }
                // Without it the tokens are computed, which says what is wrong if something is.
                _ => 0,
            };
        }
        0
    }

    /// Lets others begin with `tokens`, which a running sequence has in the cache.
    pub fn share(&mut self, sequence: SequenceId, tokens: &[u32]) {
        let n = tokens.len() / self.page * self.page;
        if self.limit == 0 || n == 0 {
            return;
        }
        let Ok(mut own) = try_vec(n, "the prompt cache") else { return };
        own.extend_from_slice(&tokens[..n]);
        self.insert(sequence, own, false);
    }

    /// Forgets a running sequence.
    pub fn unshare(&mut self, sequence: SequenceId) {
        self.remove(sequence);
    }

    /// Keeps a sequence that has ended, if there is room, or frees it.
    pub fn end(&mut self, backend: &mut dyn Backend, retired: Retired) {
        let Retired { sequence, tokens } = retired;
        self.remove(sequence);
        if !self.keep(backend, sequence, tokens) {
            backend.sequence_free(sequence);
        }
        while backend.kept_bytes() > self.limit && self.evict(backend) {}
        self.kept_bytes = backend.kept_bytes();
    }

    /// Whether the sequence is kept from now on.
    fn keep(&mut self, backend: &mut dyn Backend, sequence: SequenceId, mut tokens: Vec<u32>) -> bool {
        let mut n_pages = tokens.len() / self.page;
        // A text that is too long for the cache leaves its beginning.
        while n_pages > 0 {
            let (bytes, limit) = (pages_bytes(backend, n_pages * self.page), self.limit);
            if bytes <= limit {
                break;
            }
            let fitting = (u128::from(limit) * n_pages as u128 / u128::from(bytes)) as usize;
            n_pages = fitting.min(n_pages - 1);
        }
        let n = n_pages * self.page;
        tokens.truncate(n);
        let Ok(chain) = self.chain(&tokens) else { return false };
        let Some(last) = chain.last() else { return false };
        let is_known = |other: &SequenceId| {
            let same = |entry: &Entry| entry.is_kept && entry.tokens.get(..n) == Some(&*tokens);
            self.entries.get(other).is_some_and(same) && backend.sequence_holds(*other, n)
        };
        let known = self.with(*last).find(is_known);
        if let Some(other) = known {
            self.touch(other);
            return false;
        }
        if !matches!(backend.sequence_rewind(sequence, n), Ok(true)) {
            return false;
        }
        // What this one can serve as well needs not be kept twice.
        for (index, hash) in chain.iter().enumerate() {
            let n = (index + 1) * self.page;
            let is_part = |other: &SequenceId| {
                let part = |entry: &Entry| entry.is_kept && *entry.tokens == tokens[..n];
                self.entries.get(other).is_some_and(part) && backend.sequence_holds(sequence, n)
            };
            let part = self.with(*hash).find(is_part);
            if let Some(other) = part {
                self.remove(other);
                backend.sequence_free(other);
            }
        }
        tokens.shrink_to_fit();
        backend.sequence_keep(sequence);
        self.insert(sequence, tokens, true)
    }

    /// Frees the kept sequence that has not been used for longest; false if there is none.
    pub fn evict(&mut self, backend: &mut dyn Backend) -> bool {
        let kept = self.entries.iter().filter(|(_, entry)| entry.is_kept);
        let Some(oldest) = kept.min_by_key(|(_, entry)| entry.used).map(|(sequence, _)| *sequence) else {
            return false;
        };
        self.remove(oldest);
        backend.sequence_free(oldest);
        self.kept_bytes = backend.kept_bytes();
        true
    }

    /// Frees all kept sequences.
    pub fn clear(&mut self, backend: &mut dyn Backend) {
        while self.evict(backend) {}
        backend.release_reserve();
    }

    fn insert(&mut self, sequence: SequenceId, tokens: Vec<u32>, is_kept: bool) -> bool {
        self.remove(sequence);
        let Ok(chain) = self.chain(&tokens) else { return false };
        self.chains.extend(chain.iter().map(|hash| (*hash, sequence)));
        self.clock += 1;
        self.entries.insert(sequence, Entry { tokens, chain, used: self.clock, is_kept });
        true
    }

    fn remove(&mut self, sequence: SequenceId) {
        if let Some(entry) = self.entries.remove(&sequence) {
            for hash in entry.chain {
                self.chains.remove(&(hash, sequence));
            }
        }
    }

    fn touch(&mut self, sequence: SequenceId) {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(&sequence) {
            entry.used = self.clock;
        }
    }

    /// The sequences with this hash.
    fn with(&self, hash: u64) -> impl Iterator<Item = SequenceId> + '_ {
        self.chains.range((hash, SequenceId::MIN)..=(hash, SequenceId::MAX)).map(|(_, sequence)| *sequence)
    }

    /// The hash of each page of `tokens`, which are whole pages.
    fn chain(&self, tokens: &[u32]) -> Result<Vec<u64>> {
        let mut chain = try_vec(tokens.len() / self.page, "the prompt cache")?;
        let mut before = 0;
        for page in tokens.chunks_exact(self.page) {
            before = self.hash(before, page);
            chain.push(before);
        }
        Ok(chain)
    }

    fn hash(&self, before: u64, page: &[u32]) -> u64 {
        self.hasher.hash_one((before, page))
    }
}

/// Bytes of all pages of a sequence of `n` positions.
pub fn pages_bytes(backend: &dyn Backend, n: usize) -> u64 {
    (0..).map_while(|index| backend.page_bytes(n, index)).map(|bytes| bytes as u64).sum()
}
