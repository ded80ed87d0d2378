//! Byte-pair merging: replaces adjacent symbols by the symbol they merge to, lowest rank first and leftmost among
//! equal ranks, until no pair merges.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::hash::{Merge, NONE, PairTable};
use crate::error::{Error, Result, try_vec};

/// Up to this many symbols a scan for the lowest rank is faster than a heap.
const SHORT: usize = 32;

/// Merges `symbols` in place. O(n log n) in their number.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn merge(table: &PairTable, symbols: &mut Vec<u32>) -> Result<()> {
    if symbols.len() <= SHORT {
        merge_short(table, symbols)
    } else {
        merge_long(table, symbols)?
    }
    Ok(())
}

fn merge_short(table: &PairTable, symbols: &mut Vec<u32>) {
    let mut n = symbols.len();
    let mut merges = [Merge { rank: NONE, id: NONE }; SHORT];
    for (merge, pair) in merges.iter_mut().zip(symbols.windows(2)) {
        *merge = table.get(pair[0], pair[1]);
    }
    loop {
        // merges[i] is that of symbols i and i + 1.
        let pairs = n.saturating_sub(1);
        let (mut at, mut best) = (0, NONE);
        for (i, merge) in merges[..pairs].iter().enumerate() {
            if merge.rank < best {
                (at, best) = (i, merge.rank);
            }
        }
        if best == NONE {
            break;
        }
        symbols[at] = merges[at].id;
        symbols.copy_within(at + 2..n, at + 1);
        merges.copy_within(at + 1..pairs, at);
        n -= 1;
        if at + 1 < n {
            merges[at] = table.get(symbols[at], symbols[at + 1]);
        }
        if at > 0 {
            merges[at - 1] = table.get(symbols[at - 1], symbols[at]);
        }
    }
    symbols.truncate(n);
}

/// A symbol in the list of those that are left.
#[derive(Clone, Copy)]
struct Node {
    id: u32,
    prev: u32,
    next: u32,
    /// The merge of this node and the next; rank [`NONE`] when they do not merge or the node is gone.
    merge: Merge,
}

fn merge_long(table: &PairTable, symbols: &mut Vec<u32>) -> Result<()> {
    let n = u32::try_from(symbols.len())
        .map_err(|_| Error::Limit { what: "bytes in one piece of text", limit: u64::from(u32::MAX) })?;
    let mut nodes: Vec<Node> = try_vec(symbols.len(), "the symbols of a text")?;
    let mut entries = try_vec(symbols.len(), "the merges of a text")?;
    for (i, &id) in (0..n).zip(symbols.iter()) {
        let next = if i + 1 < n { i + 1 } else { NONE };
        let merge = symbols.get(next as usize).map_or(Merge { rank: NONE, id: NONE }, |&right| table.get(id, right));
        nodes.push(Node { id, prev: i.wrapping_sub(1), next, merge });
        if merge.rank != NONE {
            entries.push(Reverse(entry(merge.rank, i)));
        }
    }
    let mut queue = Queue::new(entries);
    while let Some(entry) = queue.pop() {
        let (rank, at) = ((entry >> 32) as u32, entry as u32);
        let node = nodes[at as usize];
        if node.merge.rank != rank {
            continue;
        }
        let right = nodes[node.next as usize];
        nodes[node.next as usize].merge.rank = NONE;
        nodes[at as usize].id = node.merge.id;
        nodes[at as usize].next = right.next;
        if right.next != NONE {
            nodes[right.next as usize].prev = at;
        }
        for left in [node.prev, at] {
            if left != NONE
                && let Some(rank) = pair_up(table, &mut nodes, left)
            {
                queue.push(self::entry(rank, left))?;
            }
        }
    }
    symbols.clear();
    let mut at = 0;
    while at != NONE {
        symbols.push(nodes[at as usize].id);
        at = nodes[at as usize].next;
    }
    Ok(())
}

/// A rank above the position of its left symbol. It is stale when the symbol there no longer has that rank.
type Entry = u64;

fn entry(rank: u32, at: u32) -> Entry {
    u64::from(rank) << 32 | u64::from(at)
}

/// A priority queue, smallest entry first, made for a million equal ranks: entries that are there when the sorted
/// ones run out are sorted as a whole. A heap alone takes three times as long for a text of one character.
struct Queue {
    /// Smallest last.
    sorted: Vec<Reverse<Entry>>,
    later: BinaryHeap<Reverse<Entry>>,
}

impl Queue {
    /// Below this a heap is faster.
    const SORT: usize = 256;

    fn new(mut entries: Vec<Reverse<Entry>>) -> Queue {
        entries.sort_unstable();
        Queue { sorted: entries, later: BinaryHeap::new() }
    }

    fn push(&mut self, entry: Entry) -> Result<()> {
        let room = |_| Error::OutOfMemory { what: "the merges of a text".to_string(), bytes: 8 };
        self.later.try_reserve(1).map_err(room)?;
        self.later.push(Reverse(entry));
        Ok(())
    }

    fn pop(&mut self) -> Option<Entry> {
        if self.sorted.is_empty() && self.later.len() > Self::SORT {
            self.sorted = std::mem::take(&mut self.later).into_vec();
            self.sorted.sort_unstable();
        }
        let later = self.later.peek();
        let from = if later > self.sorted.last() { self.later.pop() } else { self.sorted.pop() };
        from.map(|Reverse(entry)| entry)
    }
}

/// Looks up the merge of node `left` and the next, and returns its rank if there is one.
fn pair_up(table: &PairTable, nodes: &mut [Node], left: u32) -> Option<u32> {
    let node = nodes[left as usize];
    let merge = match nodes.get(node.next as usize) {
        Some(right) => table.get(node.id, right.id),
        None => Merge { rank: NONE, id: NONE },
    };
    nodes[left as usize].merge = merge;
    (merge.rank != NONE).then_some(merge.rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: scan for the lowest rank, leftmost first, again and again.
    fn naive(table: &PairTable, mut symbols: Vec<u32>) -> Vec<u32> {
        loop {
            let ranks = symbols.windows(2).map(|p| table.get(p[0], p[1]).rank);
            match ranks.enumerate().min_by_key(|&(at, rank)| (rank, at)) {
                Some((at, rank)) if rank != NONE => {
                    symbols[at] = table.get(symbols[at], symbols[at + 1]).id;
                    symbols.remove(at + 1);
                }
                _ => return symbols,
            }
        }
    }

    proptest! {
        #[test]
        fn both_paths_agree_with_the_definition(
            merges in proptest::collection::vec((0..6_u32, 0..6_u32, 0..20_u32, 0..6_u32), 0..12),
            symbols in proptest::collection::vec(0..6_u32, 0..100),
        ) {
            let mut table = PairTable::new(merges.len()).unwrap();
            for (left, right, rank, id) in merges {
                table.insert(left, right, Merge { rank, id });
            }
            let expected = naive(&table, symbols.clone());
            let mut found = symbols.clone();
            merge(&table, &mut found).unwrap();
            prop_assert_eq!(&found, &expected);
            let mut found = symbols.clone();
            if !symbols.is_empty() {
                merge_long(&table, &mut found).unwrap();
                prop_assert_eq!(&found, &expected);
            }
        }
    }
}
