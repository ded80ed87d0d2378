//! Finds any of many byte strings in a text, in one pass.

use std::collections::{HashMap, VecDeque};

/// The automaton of Aho and Corasick (1975) over bytes, ASCII letters in lower case: its state after some text is the
/// longest suffix of the text that begins a pattern, state 0 the empty one.
#[derive(Debug)]
pub struct Automaton {
    edges: HashMap<(u32, u8), u32>,
    /// The edges of state 0.
    root: [u32; 256],
    states: Vec<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// Bytes of the prefix that this state is.
    depth: u32,
    /// The next longest suffix that begins a pattern.
    fail: u32,
    /// Whether a pattern ends here.
    end: bool,
}

impl Default for Automaton {
    fn default() -> Automaton {
        Automaton { edges: HashMap::new(), root: [0; 256], states: vec![State::default()] }
    }
}

impl Automaton {
    pub fn insert(&mut self, pattern: impl Iterator<Item = u8>) {
        let mut state = 0;
        for byte in pattern.map(|b| b.to_ascii_lowercase()) {
            let new = self.states.len() as u32;
            let next = *self.edges.entry((state, byte)).or_insert(new);
            if next == new {
                let depth = self.states[state as usize].depth + 1;
                self.states.push(State { depth, ..State::default() });
            }
            state = next;
        }
        self.states[state as usize].end = true;
    }

    /// Computes the fail links, after the last [`Automaton::insert`].
    pub fn link(&mut self) {
        let mut children: Vec<Vec<(u8, u32)>> = vec![Vec::new(); self.states.len()];
        for (&(state, byte), &next) in &self.edges {
            children[state as usize].push((byte, next));
            if state == 0 {
                self.root[byte as usize] = next;
            }
        }
        let mut queue: VecDeque<u32> = children[0].iter().map(|&(_, child)| child).collect();
        while let Some(state) = queue.pop_front() {
            for &(byte, child) in &children[state as usize] {
                let fail = self.step(self.states[state as usize].fail, byte);
                self.states[child as usize].fail = fail;
                self.states[child as usize].end |= self.states[fail as usize].end;
                queue.push_back(child);
            }
        }
    }

    pub fn step(&self, mut state: u32, byte: u8) -> u32 {
        let byte = byte.to_ascii_lowercase();
        while state != 0 {
            if let Some(&next) = self.edges.get(&(state, byte)) {
                return next;
            }
            state = self.states[state as usize].fail;
        }
        self.root[byte as usize]
    }

    pub fn run(&self, state: u32, bytes: impl Iterator<Item = u8>) -> u32 {
        bytes.fold(state, |state, byte| self.step(state, byte))
    }

    /// These states and all shorter suffixes of them but the empty one, sorted.
    pub fn with_suffixes(&self, states: &[u32]) -> Vec<u32> {
        let mut all = Vec::new();
        for &state in states {
            let mut state = state;
            while state != 0 {
                all.push(state);
                state = self.states[state as usize].fail;
            }
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether a proper start of `pattern`, which was inserted, is one of `states`, which are sorted.
    pub fn passes(&self, states: &[u32], pattern: impl ExactSizeIterator<Item = u8>) -> bool {
        let (mut state, n) = (0, pattern.len());
        pattern.take(n.saturating_sub(1)).any(|byte| {
            state = self.step(state, byte);
            states.binary_search(&state).is_ok()
        })
    }

    pub fn is_end(&self, state: u32) -> bool {
        self.states[state as usize].end
    }

    /// Bytes of the prefix that `state` is.
    pub fn depth(&self, state: u32) -> usize {
        self.states[state as usize].depth as usize
    }
}
