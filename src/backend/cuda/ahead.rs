//! Steps that the device runs before anybody asks for them: it draws the tokens itself, so it need not wait for the host.
//!
//! They are of sequences that ran together, one row each. A caller who wants something else makes them void, but never wrong:
//! positions are written again before they are read. Callers need not come together again: who asks for its row has it from the
//! step that ran it, whatever the others do.

use super::MAX_GRAPH_ROWS;
use crate::backend::{Row, SequenceId};

/// Steps that the device may be ahead of those that are awaited: sequences that run together may be apart by as many, and the host late.
pub(super) const STEPS_AHEAD: usize = 2;
/// The same of a sequence alone whose steps read so many bytes of weights: they take a millisecond or more, in which a host is there again,
/// and who comes after its end waits for all that were started.
const LONG_STEPS_AHEAD: usize = 1;
const LONG_STEP_BYTES: u64 = 4_000_000_000;

/// What is known of the steps; the queue of the device is not its business.
pub(super) struct Ahead {
    /// Of a sequence alone.
    most_alone: usize,
    /// The rows of the steps, or before the first those of the batch in hand; in the order of their sequences.
    rows: Vec<Member>,
    n_started: usize,
    /// The batch in hand, where a step has run it.
    in_hand: Vec<Row>,
    /// The sequences of the last batch that no step had run, in order, if each had one row or all rows were one's; and how many
    /// such batches before it had a row each of the same.
    last: Vec<SequenceId>,
    n_same: usize,
    /// Kept for its memory.
    sorted: Vec<Row>,
}

#[derive(Clone, Copy)]
struct Member {
    sequence: SequenceId,
    /// The position of its row in the first step.
    first: u32,
    /// The token of the row that it has to ask for next.
    token: Option<u32>,
    /// Steps of which it has had its row; whether it is having another one.
    n_had: usize,
    is_in_hand: bool,
}

impl Ahead {
    /// No steps, each of which will read so many bytes of weights.
    pub fn new(step_bytes: u64) -> Ahead {
        Ahead {
            most_alone: if step_bytes >= LONG_STEP_BYTES { LONG_STEPS_AHEAD } else { STEPS_AHEAD },
            rows: Vec::new(),
            n_started: 0,
            in_hand: Vec::new(),
            last: Vec::new(),
            n_same: 0,
            sorted: Vec::new(),
        }
    }

    /// Whether the next rows of some members are asked for, which are in hand then.
    pub fn takes(&mut self, rows: &[Row]) -> bool {
        self.in_hand.clear();
        self.rows.iter_mut().for_each(|member| member.is_in_hand = false);
        if self.n_started == 0 || rows.is_empty() || rows.len() > self.rows.len() {
            return false;
        }
        let is_next = |row: &Row| {
            row.logits
                && self.member(row.sequence).is_some_and(|member| {
                    member.n_had < self.n_started
                        && member.token == Some(row.token)
                        && (member.first as usize) + member.n_had == row.position as usize
                })
        };
        // A sequence that had two rows would have a second one that does not follow.
        if !rows.iter().all(is_next) {
            return false;
        }
        self.in_hand.extend_from_slice(rows);
        for row in rows {
            if let Some(at) = self.place(row.sequence) {
                self.rows[at].is_in_hand = true;
            }
        }
        true
    }

    /// Notes a batch that no step has run: who may go on from here. There are no steps.
    pub fn begin(&mut self, rows: &[Row]) {
        self.rows.clear();
        let sequence = rows.first().map(|row| row.sequence);
        let is_one = rows.iter().all(|row| Some(row.sequence) == sequence);
        let ends = if is_one { &rows[rows.len().saturating_sub(1)..] } else { rows };
        if ends.len() > MAX_GRAPH_ROWS || !ends.iter().all(|row| row.logits) {
            self.last.clear();
            return;
        }
        self.sorted.clear();
        self.sorted.extend_from_slice(ends);
        self.sorted.sort_unstable_by_key(|row| row.sequence);
        let sequences = || self.sorted.iter().map(|row| row.sequence);
        if self.sorted.windows(2).any(|pair| pair[0].sequence == pair[1].sequence) {
            self.last.clear();
            return;
        }
        self.n_same =
            if rows.len() == ends.len() && self.last.iter().copied().eq(sequences()) { self.n_same + 1 } else { 0 };
        self.last.clear();
        self.last.extend(sequences());
        self.rows.extend(self.sorted.iter().map(|row| Member {
            sequence: row.sequence,
            first: row.position + 1,
            token: None,
            n_had: 0,
            is_in_hand: false,
        }));
    }

    /// The batch in hand, where a step has run it.
    pub fn in_hand(&self) -> &[Row] {
        &self.in_hand
    }

    /// Whether it pays to start steps: there are some, or the same sequences ran before.
    pub fn goes_on(&self) -> bool {
        self.n_started > 0 || self.n_same > 0
    }

    /// Whether the device should have another step to run.
    pub fn wants_step(&self) -> bool {
        let slowest = self.rows.iter().map(|member| member.n_had + usize::from(member.is_in_hand)).min();
        let most = if self.rows.len() == 1 { self.most_alone } else { STEPS_AHEAD };
        slowest.is_some_and(|slowest| self.n_started - slowest < most)
    }

    /// The sequences of the next step, and the positions of their rows.
    pub fn next_step(&self) -> impl ExactSizeIterator<Item = (SequenceId, usize)> + '_ {
        self.rows.iter().map(|member| (member.sequence, member.first as usize + self.n_started))
    }

    /// Notes that the next step was queued.
    pub fn started(&mut self) {
        self.n_started += 1;
    }

    /// Notes the token that was drawn after a row in hand, or of the batch that began; `None` where that failed.
    pub fn drawn(&mut self, sequence: SequenceId, token: Option<u32>) {
        if let Some(at) = self.place(sequence) {
            let member = &mut self.rows[at];
            member.token = token;
            member.n_had += usize::from(std::mem::take(&mut member.is_in_hand));
        }
    }

    /// The batch in hand is finished.
    pub fn done(&mut self) {
        self.in_hand.clear();
    }

    /// Whether steps are of this sequence.
    pub fn concerns(&self, sequence: SequenceId) -> bool {
        self.n_started > 0 && self.place(sequence).is_some()
    }

    /// Makes what was started void; whose tokens were drawn in vain.
    pub fn forget(&mut self) -> impl Iterator<Item = SequenceId> + '_ {
        let n_started = std::mem::take(&mut self.n_started);
        self.in_hand.clear();
        self.rows.drain(..).filter(move |member| member.n_had < n_started).map(|member| member.sequence)
    }

    fn place(&self, sequence: SequenceId) -> Option<usize> {
        self.rows.binary_search_by_key(&sequence, |member| member.sequence).ok()
    }

    fn member(&self, sequence: SequenceId) -> Option<&Member> {
        self.place(sequence).map(|at| &self.rows[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(sequence: SequenceId, position: u32, token: u32) -> Row {
        Row { token, position, sequence, logits: true }
    }

    /// Starts as many steps as are wanted.
    fn start(ahead: &mut Ahead) -> usize {
        let before = ahead.n_started;
        while ahead.goes_on() && ahead.wants_step() {
            ahead.started();
        }
        ahead.n_started - before
    }

    /// Runs a batch; tokens are ten times the positions, and the sequence. Returns whether a step had run it, and how many were
    /// started.
    fn run(ahead: &mut Ahead, rows: &[Row]) -> (bool, usize) {
        let is_ahead = ahead.takes(rows);
        if !is_ahead {
            ahead.forget().for_each(drop);
            ahead.begin(rows);
        }
        let n = start(ahead);
        for row in rows {
            ahead.drawn(row.sequence, Some(10 * (row.position + 1) + row.sequence as u32));
        }
        ahead.done();
        (is_ahead, n)
    }

    fn next(sequence: SequenceId, position: u32) -> Row {
        row(sequence, position, 10 * position + sequence as u32)
    }

    #[test]
    fn one_sequence_is_ahead_from_its_second_batch_on() {
        let mut ahead = Ahead::new(0);
        assert_eq!(run(&mut ahead, &[row(3, 0, 7), row(3, 1, 8)]), (false, 0), "a prompt");
        assert_eq!(run(&mut ahead, &[next(3, 2)]), (false, STEPS_AHEAD));
        for position in 3..10 {
            assert_eq!(ahead.next_step().collect::<Vec<_>>(), [(3, position as usize + 2)]);
            assert_eq!(run(&mut ahead, &[next(3, position)]), (true, 1));
        }
        assert!(ahead.concerns(3) && !ahead.concerns(4));
        assert!(!run(&mut ahead, &[row(3, 10, 1)]).0, "another token");
        assert_eq!(run(&mut ahead, &[next(3, 11), next(4, 1)]), (false, 0), "company");
    }

    #[test]
    fn long_steps_are_fewer_where_nobody_may_be_apart() {
        let mut ahead = Ahead::new(LONG_STEP_BYTES);
        run(&mut ahead, &[row(3, 0, 7)]);
        assert_eq!(run(&mut ahead, &[next(3, 1)]), (false, 1));
        for position in 2..5 {
            assert_eq!(run(&mut ahead, &[next(3, position)]), (true, 1));
        }
        run(&mut ahead, &[next(3, 5), next(4, 1)]);
        assert_eq!(run(&mut ahead, &[next(3, 6), next(4, 2)]), (false, STEPS_AHEAD));
    }

    #[test]
    fn members_come_in_any_order_and_apart() {
        let mut ahead = Ahead::new(0);
        assert_eq!(run(&mut ahead, &[next(5, 8), next(2, 4), next(9, 6)]), (false, 0));
        assert_eq!(run(&mut ahead, &[next(2, 5), next(9, 7), next(5, 9)]), (false, STEPS_AHEAD));
        assert_eq!(run(&mut ahead, &[next(9, 8), next(5, 10), next(2, 6)]), (true, 1));
        // One is late: the others go on as far as steps were started.
        assert_eq!(run(&mut ahead, &[next(9, 9), next(5, 11)]), (true, 0));
        assert_eq!(run(&mut ahead, &[next(5, 12)]), (true, 0));
        assert_eq!(run(&mut ahead, &[next(2, 7)]), (true, 1));
        assert_eq!(run(&mut ahead, &[next(2, 8), next(9, 10)]), (true, 1));
        assert_eq!(run(&mut ahead, &[next(5, 13), next(2, 9)]), (true, 0));
        // One asks for what no step has run: those that have not had all drew in vain.
        let rows = [next(2, 10), next(2, 11)];
        assert!(!ahead.takes(&rows), "two rows of one");
        assert_eq!(ahead.forget().collect::<Vec<_>>(), [2, 5, 9]);
    }

    #[test]
    fn who_has_had_all_drew_nothing_in_vain() {
        let mut ahead = Ahead::new(0);
        for position in 1..3 {
            run(&mut ahead, &[next(1, position), next(2, position)]);
        }
        for position in 3..5 {
            assert!(run(&mut ahead, &[next(1, position)]).0);
        }
        assert!(!ahead.takes(&[next(1, 5)]), "no step has run that");
        assert_eq!(ahead.forget().collect::<Vec<_>>(), [2]);
        assert!(!ahead.concerns(2));
    }

    #[test]
    fn a_failed_draw_is_never_followed() {
        let mut ahead = Ahead::new(0);
        for position in 1..3 {
            run(&mut ahead, &[next(1, position)]);
        }
        assert!(ahead.takes(&[next(1, 3)]));
        ahead.drawn(1, None);
        ahead.done();
        assert!(!ahead.takes(&[next(1, 4)]));
        assert_eq!(ahead.forget().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn batches_that_are_no_steps_begin_nothing() {
        let mut ahead = Ahead::new(0);
        let without = |row: Row| Row { logits: false, ..row };
        let mixed = [row(1, 0, 1), row(1, 1, 1), row(2, 5, 1)];
        let many: Vec<Row> = (0..MAX_GRAPH_ROWS as u64 + 1).map(|sequence| next(sequence, 4)).collect();
        for rows in [&mixed[..], &[without(row(1, 3, 1))], &many] {
            for _ in 0..3 {
                assert_eq!(run(&mut ahead, rows), (false, 0));
            }
        }
    }
}
