//! The turns of a session: where each answer stands, so that the session can go back into any of them.

use super::chat::Chat;
use crate::{Error, Result};

/// A prompt and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Where the answer starts among the tokens.
    pub start: usize,
    /// Where it ends, once another turn has followed.
    pub end: usize,
    /// How many random numbers had been used when it started.
    pub drawn: u64,
    /// How many messages the chat had then; `None` if that is not known.
    pub n_messages: Option<usize>,
}

impl Turn {
    /// One whose answer is the last.
    pub fn new(start: usize, drawn: u64, chat: Option<&Chat>) -> Turn {
        Turn { start, end: usize::MAX, drawn, n_messages: chat.map(Chat::n_messages) }
    }
}

/// At least one turn, in order.
#[derive(Debug, Clone)]
pub struct Turns {
    earlier: Vec<Turn>,
    last: Turn,
}

impl Turns {
    pub fn new(first: Turn) -> Turns {
        Turns { earlier: Vec::new(), last: first }
    }

    /// The turn that goes on.
    pub fn last(&self) -> &Turn {
        &self.last
    }

    /// All in order.
    pub fn iter(&self) -> impl Iterator<Item = &Turn> {
        self.earlier.iter().chain([&self.last])
    }

    /// Room for one more.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn reserve(&mut self) -> Result<()> {
        let bytes = size_of::<Turn>() as u64;
        self.earlier.try_reserve(1).map_err(|_| Error::OutOfMemory { what: "a further turn".into(), bytes })
    }

    /// Adds a turn that follows as it is.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn add(&mut self, turn: Turn) -> Result<()> {
        self.reserve()?;
        self.earlier.push(std::mem::replace(&mut self.last, turn));
        Ok(())
    }

    /// Begins another turn, before which the first `kept` of `n` tokens stay as they are.
    pub fn push(&mut self, turn: Turn, n: usize, kept: usize) {
        let mut before = self.last;
        before.end = n;
        self.earlier.push(before);
        self.earlier.retain_mut(|earlier| {
            earlier.end = earlier.end.min(kept);
            earlier.start <= kept
        });
        self.last = turn;
    }

    /// The turn that goes on when the first `n` tokens are all there is. `per_token` is how many random numbers a token
    /// takes. Also how many turns stay before it.
    pub fn at(&self, n: usize, per_token: u64) -> (Turn, u64, usize) {
        let prompt_of = |turn: &Turn, index: usize| {
            let inside = Turn { start: n, end: usize::MAX, n_messages: None, ..*turn };
            (inside, turn.drawn, index)
        };
        let mut found = None;
        for (index, turn) in self.iter().enumerate() {
            if turn.start <= n && n <= turn.end {
                let drawn = turn.drawn + per_token * (n - turn.start) as u64;
                found = Some((Turn { end: usize::MAX, ..*turn }, drawn, index));
            } else if turn.start > n && found.is_none() {
                return prompt_of(turn, index);
            }
        }
        found.unwrap_or_else(|| prompt_of(&self.last, self.earlier.len()))
    }

    /// Makes `turn` the last one, after the first `n_before`.
    pub fn back_to(&mut self, turn: Turn, n_before: usize) {
        self.earlier.truncate(n_before);
        self.last = turn;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A prompt of 10, an answer of 5 and its end, a further prompt of 6, an answer.
    fn two() -> Turns {
        let mut turns = Turns::new(Turn { start: 10, end: usize::MAX, drawn: 0, n_messages: Some(1) });
        turns.push(Turn { start: 21, end: usize::MAX, drawn: 12, n_messages: Some(3) }, 15, 15);
        turns
    }

    #[test]
    fn each_place_is_in_a_turn() {
        let turns = two();
        let at = |n| {
            let (turn, drawn, n_before) = turns.at(n, 2);
            assert_eq!(turn.end, usize::MAX);
            (turn.start, drawn, n_before, turn.n_messages)
        };
        assert_eq!(at(1), (1, 0, 0, None));
        assert_eq!(at(10), (10, 0, 0, Some(1)));
        assert_eq!(at(12), (10, 4, 0, Some(1)));
        assert_eq!(at(15), (10, 10, 0, Some(1)));
        assert_eq!(at(16), (16, 12, 1, None), "in the prompt of the second turn");
        assert_eq!(at(21), (21, 12, 1, Some(3)));
        assert_eq!(at(30), (21, 30, 1, Some(3)));
    }

    #[test]
    fn turns_whose_answer_is_no_more_are_forgotten() {
        let mut turns = two();
        turns.push(Turn { start: 40, end: usize::MAX, drawn: 20, n_messages: Some(5) }, 30, 13);
        assert_eq!(turns.iter().map(|turn| (turn.start, turn.end)).collect::<Vec<_>>(), [(10, 13), (40, usize::MAX)]);
        let (turn, drawn, n_before) = turns.at(12, 1);
        assert_eq!((turn.start, drawn, n_before), (10, 2, 0));
        turns.back_to(turn, n_before);
        assert_eq!(turns.iter().count(), 1);
    }
}
