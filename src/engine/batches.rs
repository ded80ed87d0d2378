//! Batches: rows of several sessions that run together.
//!
//! There is no thread for them. A caller puts its rows into the queue; whoever finds the backend idle takes the lead, runs
//! one batch made of the oldest requests, and wakes those it has served and the next leader.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::steps::{FEWEST_ROWS, Steps};
use super::{Engine, lock};
use crate::backend::{Backend, Draw, Row, SequenceId, Stop};
use crate::error::try_vec;
use crate::sampler::Sampler;
use crate::{Error, Result, panics};

/// How long a batch waits for those of the batch before who are not there again yet: a part of what that took, but so long at least
/// and at most. They come a little later than the first of them, and would else run in batches of their own by turns; what a
/// device has run ahead takes no time.
const PATIENCE: (u32, Duration, Duration) = (8, Duration::from_micros(300), Duration::from_millis(2));

/// Into so many parts a step is divided among prompts that want to run together.
const SHARE: usize = 4;

/// How often a caller whose rows wait for their turn looks whether it is cancelled: nothing wakes it for that.
const CANCEL_CHECK: Duration = Duration::from_millis(10);

#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<Arc<Request>>,
    /// Whether some caller is running a batch.
    led: bool,
    /// Whose rows the latest batch had, if they were those of one request.
    latest: Option<SequenceId>,
    /// What a batch costs that a device may still be computing, and when it began; not of a few rows.
    running: Option<(f64, Instant)>,
    /// How many callers may want something after the latest batch, and until when the next one waits for them.
    expected: usize,
    until: Option<Instant>,
}

impl Queue {
    /// Takes a request that no batch has taken out of the queue; false if one has.
    fn leave(&mut self, request: &Arc<Request>) -> bool {
        let Some(at) = self.waiting.iter().position(|waiting| Arc::ptr_eq(waiting, request)) else { return false };
        self.waiting.remove(at);
        if !self.led {
            // The lead may have been offered to the request that goes.
            self.wake_next();
        }
        true
    }

    /// Takes the oldest requests out that make a batch. Its leader began to wait for the device at `started`, and it is ready `now`.
    fn take_batch(&mut self, steps: &Steps, started: Instant, now: Instant) -> Vec<Arc<Request>> {
        let mut batch = Vec::new();
        let (mut n_rows, mut cost) = (0, 0.0);
        let is_shared = self.waiting.len() > 1;
        while let Some(request) = self.waiting.front() {
            if is_shared && request.is_part() {
                request.cut(steps.rows(request.start(), SHARE));
            }
            let more = (n_rows + request.rows().len(), cost + request.cost(steps));
            if !batch.is_empty() && !steps.allow(more.0, more.1) {
                break;
            }
            (n_rows, cost) = more;
            // Who waited for an earlier part of the own prompt did not wait for others.
            let is_next = self.latest.is_some() && self.latest == request.sequence();
            request.taken(if is_next { started } else { now });
            batch.extend(self.waiting.pop_front());
        }
        self.latest = if let [request] = &*batch { request.sequence() } else { None };
        self.running = (n_rows > FEWEST_ROWS).then_some((cost, now));
        batch
    }

    /// How long to wait before a batch is made of those that are there.
    fn patience(&self) -> Option<Duration> {
        let lacks = self.waiting.len() < self.expected;
        self.until.filter(|_| lacks)?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Wakes who may lead the next batch.
    fn wake_next(&self) {
        if let Some(next) = self.waiting.front() {
            next.wake.notify_one();
        }
    }
}

/// What a session wants of its rows.
pub(super) enum Wanted {
    /// The logits of the last row that wants them, in this buffer; nothing if none does.
    Logits(Vec<f32>),
    /// The token that this sampler draws after the last row, given the latest tokens of the sequence.
    Token(Box<Sampler>, Vec<u32>),
}

/// What a session wants done with its sequence, between two batches. It is done again when memory was made free for it.
pub(super) type Task = Box<dyn FnMut(&mut dyn Backend) -> Result<()> + Send>;

/// Rows of one session that run in one batch, or a task.
pub(super) struct Request {
    rows: Vec<Row>,
    /// How many of them run: not all of a part of a prompt, if others came before it had its turn.
    n_run: AtomicUsize,
    task: Mutex<Option<Task>>,
    /// The token, if one is wanted.
    outcome: Mutex<Option<Result<Option<u32>>>>,
    /// Whether a token is wanted.
    draws: bool,
    /// With what is the session's own, which it takes back with the outcome.
    wanted: Mutex<Wanted>,
    /// Whether nobody wants it any more.
    cancel: Arc<AtomicBool>,
    /// When it was put into the queue, and for how many nanoseconds it stood there.
    queued: Instant,
    waited: AtomicU64,
    /// Signalled, under the queue's lock, when there is an outcome or the lead is free.
    wake: Condvar,
}

impl Engine {
    /// Rows that a prompt may bring at once from position `start` on: fewer while others are there, so that steps are short and have
    /// room for them.
    pub fn chunk(&self, start: usize) -> usize {
        let queue = lock(&self.queue);
        let is_shared = queue.led || !queue.waiting.is_empty();
        self.steps.rows(start, if is_shared { SHARE } else { 1 })
    }

    /// Runs `rows` of one sequence, 1 to [`Self::n_batch`], with rows of other callers; of rows that want no logits only the first
    /// where others wait. Writes the logits of the last row that wants them to `logits` `[n_vocab]`; nothing if none does. Returns
    /// how many rows ran, and how long they waited for their turn.
    ///
    /// # Errors
    /// Those of the backend, its panics as [`Error::Internal`]; [`Error::Cancelled`] when `cancel` was set before the
    /// rows had their turn, or on the way, where only such rows run. The sequence is as before then.
    pub fn run(&self, rows: Vec<Row>, logits: &mut Vec<f32>, cancel: &Arc<AtomicBool>) -> Result<(usize, Duration)> {
        logits.clear();
        if rows.iter().any(|row| row.logits) && logits.capacity() < self.desc.n_vocab {
            *logits = try_vec(self.desc.n_vocab, "the logits")?;
        }
        let request = Request::new(rows, Wanted::Logits(std::mem::take(logits)), cancel);
        let outcome = self.finish(&request);
        if let Wanted::Logits(buffer) = &mut *lock(&request.wanted) {
            *logits = std::mem::take(buffer);
        }
        outcome.map(|_| (request.rows().len(), request.waited()))
    }

    /// Runs `rows` as [`Self::run`], the last of which wants logits, and draws the next token from these with `sampler`,
    /// which counts the draw. Returns the token, and how long the rows waited. `recent` are the latest tokens of the sequence, as many as the sampler's window takes.
    ///
    /// # Errors
    /// Those of [`Self::run`] and of [`Sampler::sample`]; nothing was drawn then.
    pub fn next_token(
        &self,
        rows: Vec<Row>,
        sampler: &mut Box<Sampler>,
        recent: Vec<u32>,
        cancel: &Arc<AtomicBool>,
    ) -> Result<(u32, Duration)> {
        let request = Request::new(rows, Wanted::Token(std::mem::take(sampler), recent), cancel);
        let outcome = self.finish(&request);
        if let Wanted::Token(own, _) = &mut *lock(&request.wanted) {
            *sampler = std::mem::take(own);
        }
        let token = outcome?.ok_or_else(|| Error::Internal("no token was drawn".into()))?;
        Ok((token, request.waited()))
    }

    /// Waits for the outcome of a request, leading batches meanwhile where nobody else does.
    fn finish(&self, request: &Arc<Request>) -> Result<Option<u32>> {
        let rows = &request.rows;
        if rows.is_empty() || rows.len() > self.n_batch() || rows.iter().any(|row| row.token as usize >= self.n_vocab())
        {
            return Err(Error::Internal(format!(
                "{} rows, expected 1 to {} of known tokens",
                rows.len(),
                self.n_batch()
            )));
        }
        self.wait(request)
    }

    pub(super) fn wait(&self, request: &Arc<Request>) -> Result<Option<u32>> {
        let mut queue = lock(&self.queue);
        queue.waiting.push_back(request.clone());
        loop {
            if let Some(outcome) = lock(&request.outcome).take() {
                return outcome;
            }
            if request.is_cancelled() && queue.leave(request) {
                return Err(Error::Cancelled);
            }
            let patience = if queue.led { Some(CANCEL_CHECK) } else { queue.patience() };
            queue = match patience {
                Some(time) => request.wake.wait_timeout(queue, time).unwrap_or_else(PoisonError::into_inner).0,
                None => self.lead(queue, request),
            };
        }
    }

    /// Runs one batch of the oldest requests for the caller of `own`, unless this is cancelled first, and passes the lead on.
    fn lead<'a>(&'a self, mut queue: MutexGuard<'a, Queue>, own: &Arc<Request>) -> MutexGuard<'a, Queue> {
        let started = Instant::now();
        queue.led = true;
        drop(queue);
        let mut backend = lock(&self.backend);
        // What fails here fails once more in the batch, where it concerns somebody.
        let has_waited = contained(|| backend.ready()).unwrap_or(false);
        let now = if has_waited { Instant::now() } else { started };
        let mut queue = lock(&self.queue);
        if let Some((cost, began)) = queue.running.take().filter(|_| has_waited) {
            self.steps.took(cost, now.saturating_duration_since(began));
        }
        if own.is_cancelled() {
            queue.led = false;
            queue.leave(own);
            own.finish(Err(Error::Cancelled));
            drop(queue);
            drop(backend);
            self.free_retired();
            return lock(&self.queue);
        }
        let batch = queue.take_batch(&self.steps, started, now);
        drop(queue);
        // Dropped on every way out, so that nobody waits for ever.
        let lead = Lead { engine: self, own, batch, started };
        self.run_batch(&mut **backend, &lead.batch);
        drop(backend);
        drop(lead);
        self.free_retired();
        lock(&self.queue)
    }

    fn run_batch(&self, backend: &mut dyn Backend, batch: &[Arc<Request>]) {
        let mut ready = Vec::with_capacity(batch.len());
        for request in batch {
            if let Some(mut task) = lock(&request.task).take() {
                request.finish(self.with_room(backend, |backend| task(backend)).map(|()| None));
                continue;
            }
            let Some(last) = request.rows().last() else { continue };
            let n_positions = last.position as usize + 1;
            match self.with_room(backend, |backend| backend.sequence_reserve(last.sequence, n_positions)) {
                Ok(()) => ready.push(&**request),
                Err(error) => request.finish(Err(error)),
            }
        }
        if ready.len() > 1 && run_together(backend, &self.steps, &ready).is_ok() {
            return;
        }
        // Alone, a request that cannot run does not take the others with it.
        for request in ready {
            if let Err(error) = self.with_room(backend, |backend| run_together(backend, &self.steps, &[request])) {
                request.finish(Err(error));
            }
        }
    }

    /// Frees what has retired, unless a batch is running, whose leader does it then.
    pub(super) fn free_retired(&self) {
        // Somebody may retire a sequence while one is freed, and leave it to us.
        while !lock(&self.retired).is_empty() {
            let mut backend = match self.backend.try_lock() {
                Ok(backend) => backend,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let retired = std::mem::take(&mut *lock(&self.retired));
            for retired in retired {
                lock(&self.prompts).end(&mut **backend, retired);
            }
        }
    }
}

/// Runs the rows of `requests` as one batch and finishes all of them, or none. It stops when all of them are cancelled.
fn run_together(backend: &mut dyn Backend, steps: &Steps, requests: &[&Request]) -> Result<()> {
    let n_parts = steps.parts(requests.iter().map(|request| request.cost(steps)).sum());
    let stop = Stop { is_given_up: &|| requests.iter().all(|request| request.is_cancelled()), n_parts };
    if let [request] = requests {
        contained(|| backend.forward_unless(request.rows(), stop))?;
    } else {
        let mut rows = try_vec(requests.iter().map(|request| request.rows().len()).sum(), "the rows of a batch")?;
        rows.extend(requests.iter().flat_map(|request| request.rows()));
        contained(|| backend.forward_unless(&rows, stop))?;
    }
    let mut wanted: Vec<MutexGuard<Wanted>> = try_vec(requests.len(), "the requests of a batch")?;
    wanted.extend(requests.iter().map(|request| lock(&request.wanted)));
    let mut draws: Vec<Draw> = try_vec(requests.len(), "the draws of a batch")?;
    let mut index = 0;
    for (request, wanted) in requests.iter().zip(&mut wanted) {
        let first = index;
        index += request.rows().iter().filter(|row| row.logits).count();
        match &mut **wanted {
            Wanted::Logits(_) if index == first => request.finish(Ok(None)),
            Wanted::Logits(out) => {
                let read = || {
                    out.clear();
                    out.extend_from_slice(backend.logits(index - 1)?);
                    Ok(())
                };
                request.finish(contained(read).map(|()| None));
            }
            Wanted::Token(sampler, recent) => {
                let sequence = request.sequence().unwrap_or(0);
                draws.push(Draw { index: index.saturating_sub(1), sequence, sampler, recent, outcome: None });
            }
        }
    }
    if draws.is_empty() {
        return Ok(());
    }
    let sampled = contained(|| {
        backend.sample(&mut draws);
        Ok(())
    });
    let failed = sampled.err().map(|error| error.to_string()).unwrap_or_default();
    for (request, draw) in requests.iter().filter(|request| request.draws).zip(draws) {
        request.finish(draw.outcome.unwrap_or_else(|| Err(Error::Internal(failed.clone()))).map(Some));
    }
    Ok(())
}

/// A panic of the backend concerns the requests that ran, not the caller that happened to lead.
pub(super) fn contained<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    panics::caught(body).unwrap_or_else(|text| Err(Error::Internal(text)))
}

impl Request {
    fn new(rows: Vec<Row>, wanted: Wanted, cancel: &Arc<AtomicBool>) -> Arc<Request> {
        Self::with(rows, None, wanted, cancel)
    }

    /// One with the task alone.
    pub(super) fn task(task: Task, cancel: &Arc<AtomicBool>) -> Arc<Request> {
        Self::with(Vec::new(), Some(task), Wanted::Logits(Vec::new()), cancel)
    }

    fn with(rows: Vec<Row>, task: Option<Task>, wanted: Wanted, cancel: &Arc<AtomicBool>) -> Arc<Request> {
        Arc::new(Request {
            n_run: AtomicUsize::new(rows.len()),
            rows,
            task: Mutex::new(task),
            outcome: Mutex::new(None),
            draws: matches!(wanted, Wanted::Token(..)),
            wanted: Mutex::new(wanted),
            cancel: cancel.clone(),
            queued: Instant::now(),
            waited: AtomicU64::new(0),
            wake: Condvar::new(),
        })
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// The rows that run.
    fn rows(&self) -> &[Row] {
        self.rows.get(..self.n_run.load(Ordering::Relaxed)).unwrap_or(&self.rows)
    }

    /// Whether its rows are a part of a prompt, of which nothing is wanted yet.
    fn is_part(&self) -> bool {
        !self.rows.iter().any(|row| row.logits)
    }

    /// Leaves all rows but the first `n` for another time.
    fn cut(&self, n: usize) {
        self.n_run.store(n.min(self.rows.len()), Ordering::Relaxed);
    }

    /// What its rows cost.
    fn cost(&self, steps: &Steps) -> f64 {
        steps.cost(self.start(), self.rows().len())
    }

    /// The position of the first.
    fn start(&self) -> usize {
        self.rows.first().map_or(0, |row| row.position as usize)
    }

    /// Whose rows it has, if any.
    fn sequence(&self) -> Option<SequenceId> {
        self.rows.last().map(|row| row.sequence)
    }

    /// Notes that a batch has taken it at `now`.
    fn taken(&self, now: Instant) {
        let waited = u64::try_from(now.saturating_duration_since(self.queued).as_nanos()).unwrap_or(u64::MAX);
        self.waited.store(waited, Ordering::Relaxed);
    }

    /// How long it waited for the batch that took it.
    fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Ordering::Relaxed))
    }

    fn finish(&self, outcome: Result<Option<u32>>) {
        *lock(&self.outcome) = Some(outcome);
    }
}

/// The right to run a batch; passed on when dropped.
struct Lead<'a> {
    engine: &'a Engine,
    /// That of the caller who leads.
    own: &'a Arc<Request>,
    batch: Vec<Arc<Request>>,
    started: Instant,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut queue = lock(&self.engine.queue);
        queue.led = false;
        let served = self.batch.iter().filter(|request| !request.rows.is_empty()).count();
        queue.expected = served + queue.waiting.len();
        // Nobody waits for one caller; that is asked of each token of a sequence alone.
        let now = (queue.expected > 1).then(Instant::now);
        let (part, least, most) = PATIENCE;
        queue.until = now.and_then(|now| now.checked_add(((now - self.started) / part).clamp(least, most)));
        // How long something took that was given up says nothing.
        queue.running.take_if(|_| self.batch.iter().any(|request| request.is_cancelled()));
        for request in &self.batch {
            let mut outcome = lock(&request.outcome);
            outcome.get_or_insert_with(|| Err(Error::Internal("the batch was not finished".into())));
            // To wake is a system call, and who leads is awake.
            if !Arc::ptr_eq(request, self.own) {
                request.wake.notify_one();
            }
        }
        queue.wake_next();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::backend::{Memory, Stop};
    use crate::engine::LoadOptions;
    use std::path::Path;
    use std::sync::Barrier;

    /// Does nothing; unless it has a token, it panics when a batch has a row of token 13, and for sequence 13.
    struct Faulty {
        logits: Vec<f32>,
        /// Drawn always, without a look at the logits, as a device would that has drawn before it is asked.
        token: Option<u32>,
        /// Where it stops once before it is ready: when it begins to wait, and until when.
        busy: Option<Arc<Barrier>>,
    }

    impl Backend for Faulty {
        fn device(&self) -> &str {
            "none"
        }
        fn weight_bytes(&self) -> u64 {
            0
        }
        fn memory(&self) -> Arc<dyn Memory> {
            unreachable!("the engine has that of the backend it was loaded with")
        }
        fn sequence_reserve(&mut self, sequence: SequenceId, _: usize) -> Result<()> {
            assert!(sequence != 13 || self.token.is_some(), "no room");
            Ok(())
        }
        fn sequence_free(&mut self, _: SequenceId) {}
        fn ready(&mut self) -> Result<bool> {
            let busy = self.busy.take();
            busy.iter().for_each(|barrier| {
                barrier.wait();
                barrier.wait();
            });
            Ok(busy.is_some())
        }
        fn sequence_holds(&self, _: SequenceId, _: usize) -> bool {
            false
        }
        fn sequence_rewind(&mut self, _: SequenceId, _: usize) -> Result<bool> {
            Ok(false)
        }
        fn sequence_fork(&mut self, _: SequenceId, _: SequenceId, _: usize) -> Result<bool> {
            Ok(false)
        }
        fn sequence_keep(&mut self, _: SequenceId) {}
        fn kept_bytes(&self) -> u64 {
            0
        }
        fn page_positions(&self) -> usize {
            1
        }
        fn cache_format(&self) -> String {
            String::new()
        }
        fn page_bytes(&self, _: usize, _: usize) -> Option<usize> {
            None
        }
        fn page_read(&mut self, _: SequenceId, _: usize, _: usize, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
        fn sequence_restore(&mut self, _: SequenceId, _: usize) -> Result<()> {
            Ok(())
        }
        fn page_write(&mut self, _: SequenceId, _: usize, _: usize, _: &[u8]) -> Result<()> {
            Ok(())
        }
        fn forward_unless(&mut self, rows: &[Row], _: Stop) -> Result<()> {
            assert!(self.token.is_some() || rows.iter().all(|row| row.token != 13), "unlucky");
            Ok(())
        }
        fn logits(&mut self, _: usize) -> Result<&[f32]> {
            Ok(&self.logits)
        }
        fn sample(&mut self, draws: &mut [Draw]) {
            for draw in draws {
                draw.outcome = Some(match self.token {
                    Some(token) => Ok(token),
                    None => draw.sampler.sample(&self.logits, draw.recent),
                });
            }
        }
        fn n_layer(&self) -> usize {
            0
        }
        fn begin(&mut self, _: &[Row]) -> Result<()> {
            Ok(())
        }
        fn embed(&mut self) -> Result<()> {
            Ok(())
        }
        fn attn_qkv(&mut self, _: usize) -> Result<()> {
            Ok(())
        }
        fn attn_mix(&mut self, _: usize) -> Result<()> {
            Ok(())
        }
        fn attn_output(&mut self, _: usize) -> Result<()> {
            Ok(())
        }
        fn ffn_up(&mut self, _: usize) -> Result<()> {
            Ok(())
        }
        fn ffn_down(&mut self, _: usize) -> Result<()> {
            Ok(())
        }
        fn output(&mut self) -> Result<()> {
            Ok(())
        }
    }

    /// An engine whose backend gives this token at once.
    pub(crate) fn instant(token: u32) -> Arc<Engine> {
        let engine = engine(128);
        *lock(&engine.backend) =
            Box::new(Faulty { logits: vec![1.0; engine.n_vocab()], token: Some(token), busy: None });
        engine
    }

    fn engine(n_batch: usize) -> Arc<Engine> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama.gguf");
        let options =
            LoadOptions { device: "cpu".into(), n_threads: Some(1), n_batch: Some(n_batch), ..LoadOptions::default() };
        let engine = Engine::load(&path, &options).unwrap();
        *lock(&engine.backend) = Box::new(Faulty { logits: vec![1.0; engine.n_vocab()], token: None, busy: None });
        engine
    }

    fn row(sequence: SequenceId, token: u32) -> Row {
        Row { token, position: 0, sequence, logits: true }
    }

    /// One caller's batch is led by another, alone (`n_batch` of 1) or with the leader's own rows.
    #[test]
    fn a_panic_concerns_the_requests_that_ran_and_not_their_leader() {
        for n_batch in [1, 8] {
            let engine = engine(n_batch);
            for (unlucky, text) in [(row(1, 13), "unlucky"), (row(13, 1), "no room")] {
                let theirs = Request::new(vec![unlucky], Wanted::Logits(Vec::new()), &Arc::default());
                lock(&engine.queue).waiting.push_back(theirs.clone());
                let mut logits = Vec::new();
                engine.run(vec![row(2, 1)], &mut logits, &Arc::default()).unwrap();
                assert_eq!(logits.len(), engine.n_vocab());
                let outcome = lock(&theirs.outcome).take();
                assert!(matches!(&outcome, Some(Err(Error::Internal(found))) if found.contains(text)), "{outcome:?}");
                assert!(lock(&engine.queue).waiting.is_empty() && !lock(&engine.queue).led);
            }
        }
    }

    #[test]
    fn prompts_leave_room_for_those_who_wait() {
        let engine = engine(8);
        assert_eq!(engine.chunk(0), 8);
        lock(&engine.queue).led = true;
        assert_eq!(engine.chunk(0), 2, "a batch of another runs");
        lock(&engine.queue).led = false;
        let waiting = Request::new(vec![row(1, 1)], Wanted::Logits(Vec::new()), &Arc::default());
        lock(&engine.queue).waiting.push_back(waiting);
        assert_eq!(engine.chunk(0), 2, "another waits");
    }

    /// Else those who come back first would run alone, and the others after them, by turns.
    #[test]
    fn a_batch_waits_a_little_for_those_of_the_batch_before() {
        let request = |sequence| Request::new(vec![row(sequence, 1)], Wanted::Logits(Vec::new()), &Arc::default());
        let in_a_minute = Instant::now().checked_add(Duration::from_secs(60));
        let mut queue = Queue { expected: 2, until: in_a_minute, ..Queue::default() };
        queue.waiting.push_back(request(1));
        assert!(queue.patience().is_some(), "one of two is there");
        queue.waiting.push_back(request(2));
        assert_eq!(queue.patience(), None, "both are");
        queue.expected = 3;
        queue.until = Some(Instant::now());
        assert_eq!(queue.patience(), None, "it has waited enough");

        // Two run, and meanwhile a third waits: all three are expected.
        let engine = engine(8);
        let own = request(4);
        let lead = |of: &[u32]| Lead {
            engine: &engine,
            own: &own,
            batch: of.iter().map(|&s| request(s.into())).collect(),
            started: Instant::now(),
        };
        let batch = lead(&[1, 2]);
        lock(&engine.queue).waiting.push_back(request(3));
        drop(batch);
        assert_eq!(lock(&engine.queue).expected, 3);
    }

    #[test]
    fn a_cancelled_caller_does_not_wait_for_its_turn() {
        let engine = engine(1);
        let batch = lock(&engine.backend);
        let cancel = Arc::new(AtomicBool::new(false));
        let run = |cancel: &Arc<AtomicBool>| engine.run(vec![row(1, 1)], &mut Vec::new(), cancel);
        std::thread::scope(|scope| {
            let leader = scope.spawn(|| run(&Arc::default()));
            while !lock(&engine.queue).led {
                std::thread::yield_now();
            }
            let waiting = scope.spawn(|| run(&cancel));
            while lock(&engine.queue).waiting.len() < 2 {
                std::thread::yield_now();
            }
            cancel.store(true, Ordering::Relaxed);
            assert!(matches!(waiting.join().unwrap(), Err(Error::Cancelled)), "while the batch of another runs");
            drop(batch);
            leader.join().unwrap().unwrap();
        });
        assert!(lock(&engine.queue).waiting.is_empty());
    }

    /// Else a prompt would have one more step after the one that the device was computing.
    #[test]
    fn a_leader_that_is_cancelled_before_the_device_is_ready_starts_nothing() {
        let engine = engine(8);
        let busy = Arc::new(Barrier::new(2));
        let logits = vec![1.0; engine.n_vocab()];
        *lock(&engine.backend) = Box::new(Faulty { logits, token: None, busy: Some(busy.clone()) });
        let cancel = Arc::new(AtomicBool::new(false));
        std::thread::scope(|scope| {
            // The row would end in a panic of the backend.
            let leader = scope.spawn(|| engine.run(vec![row(1, 13)], &mut Vec::new(), &cancel));
            busy.wait();
            let waiting = scope.spawn(|| engine.run(vec![row(2, 1)], &mut Vec::new(), &Arc::default()));
            while lock(&engine.queue).waiting.len() < 2 {
                std::thread::yield_now();
            }
            cancel.store(true, Ordering::Relaxed);
            busy.wait();
            assert!(matches!(leader.join().unwrap(), Err(Error::Cancelled)));
            waiting.join().unwrap().unwrap();
        });
        assert!(lock(&engine.queue).waiting.is_empty() && !lock(&engine.queue).led);
    }

    #[test]
    fn a_part_of_a_prompt_makes_room_for_who_comes_while_the_device_is_busy() {
        let engine = engine(8);
        let busy = Arc::new(Barrier::new(2));
        let logits = vec![1.0; engine.n_vocab()];
        *lock(&engine.backend) = Box::new(Faulty { logits, token: None, busy: Some(busy.clone()) });
        let part = |n: u32| (0..n).map(|position| Row { position, logits: false, ..row(1, 1) }).collect::<Vec<_>>();
        let run = |rows| engine.run(rows, &mut Vec::new(), &Arc::default()).unwrap().0;
        std::thread::scope(|scope| {
            let leader = scope.spawn(|| run(part(8)));
            busy.wait();
            let late = scope.spawn(|| run(vec![row(2, 1)]));
            while lock(&engine.queue).waiting.len() < 2 {
                std::thread::yield_now();
            }
            busy.wait();
            assert_eq!((leader.join().unwrap(), late.join().unwrap()), (2, 1));
        });
        assert_eq!(run(part(8)), 8, "alone");
        assert_eq!(run(vec![row(1, 1)]), 1);
    }

    #[test]
    fn a_prompt_goes_on_in_shorter_steps_where_one_took_too_long() {
        let engine = engine(128);
        let part = |n: u32| (0..n).map(|position| Row { position, logits: false, ..row(1, 1) }).collect::<Vec<_>>();
        let run = |rows| engine.run(rows, &mut Vec::new(), &Arc::default()).unwrap().0;
        assert_eq!((run(part(100)), engine.chunk(0)), (100, 128));
        let busy = Arc::new(Barrier::new(2));
        let logits = vec![1.0; engine.n_vocab()];
        *lock(&engine.backend) = Box::new(Faulty { logits, token: None, busy: Some(busy.clone()) });
        std::thread::scope(|scope| {
            let next = scope.spawn(|| run(part(100)));
            busy.wait();
            std::thread::sleep(Duration::from_millis(110));
            busy.wait();
            next.join().unwrap();
        });
        assert_eq!(engine.chunk(0), 64);
    }

    #[test]
    fn many_callers_are_all_woken_whatever_panics() {
        let engine = engine(4);
        std::thread::scope(|scope| {
            for caller in 100..108 {
                let engine = &engine;
                scope.spawn(move || {
                    let mut logits = Vec::new();
                    for turn in 0..2000 {
                        let token = if (turn + caller) % 17 == 0 { 13 } else { 1 };
                        let cancel = Arc::new(AtomicBool::new((turn + caller) % 5 == 0));
                        let outcome = engine.run(vec![row(caller, token)], &mut logits, &cancel);
                        match outcome {
                            Ok(_) => assert_ne!(token, 13),
                            Err(Error::Cancelled) => assert!(cancel.load(Ordering::Relaxed)),
                            Err(_) => assert_eq!(token, 13),
                        }
                        engine.sequence_free(caller);
                    }
                });
            }
        });
        assert!(lock(&engine.retired).is_empty() && lock(&engine.queue).waiting.is_empty());
    }
}
