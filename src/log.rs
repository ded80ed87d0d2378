//! What kigo has to tell beside its answers: to a function of the host, into a queue that the host empties, or to nobody,
//! which is how it begins.
//!
//! A leaf. While nobody listens a message costs a look at two numbers; it is not even made. Nothing is told for a token.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::line::one_line;
use crate::{Error, Result, panics};

/// How much a message matters, and how much of them a host wants: a level comes with all above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// A call failed.
    Error = 1,
    /// Something works, but perhaps not as its owner thinks.
    Warning = 2,
    /// The steps of a load, and what was chosen.
    Info = 3,
    /// Every generation that ends.
    Debug = 4,
}

/// A message in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// How much it matters.
    pub level: Level,
    /// When it was told: milliseconds since 1970 in UTC.
    pub time_ms: i64,
    /// One printable line of at most 511 bytes, without NUL.
    pub text: String,
}

/// A function that is told messages, by one thread at a time.
pub type Sink = Box<dyn Fn(Level, &str) + Send>;

/// Most messages in the queue.
pub const QUEUE_LEN: usize = 1024;

/// No level.
const OFF: u8 = 0;

static SINK_LEVEL: AtomicU8 = AtomicU8::new(OFF);
static QUEUE_LEVEL: AtomicU8 = AtomicU8::new(OFF);

/// Locked while the sink runs, so that none runs any more when another has taken its place.
static SINK: Mutex<Option<Sink>> = Mutex::new(None);
static QUEUE: Mutex<Queue> = Mutex::new(Queue { messages: VecDeque::new(), lost: 0 });

thread_local! {
    /// Whether this thread is inside the sink.
    static TELLING: Cell<bool> = const { Cell::new(false) };
}

struct Queue {
    messages: VecDeque<Message>,
    /// How many had to go since the host last took one.
    lost: u64,
}

/// Whether somebody wants messages of this level.
pub fn wanted(level: Level) -> bool {
    wanted_by(&SINK_LEVEL, level) || wanted_by(&QUEUE_LEVEL, level)
}

fn wanted_by(listener: &AtomicU8, level: Level) -> bool {
    level as u8 <= listener.load(Ordering::Relaxed)
}

/// Tells a message, which is made only if somebody wants it. The caller holds no lock that others wait for: a sink may be
/// slow.
pub fn tell(level: Level, text: impl FnOnce() -> String) {
    if !wanted(level) {
        return;
    }
    let text = one_line(&text());
    // What a sink makes happen is not told to itself.
    if !TELLING.get() {
        let sink = lock(&SINK);
        if let Some(sink) = sink.as_ref().filter(|_| wanted_by(&SINK_LEVEL, level)) {
            let _inside = Inside::enter();
            panics::outside(|| sink(level, &text));
        }
    }
    let mut queue = lock(&QUEUE);
    if wanted_by(&QUEUE_LEVEL, level) {
        queue.add(Message { level, time_ms: now(), text });
    }
}

/// Marks a thread as being inside the sink, until dropped.
struct Inside;

impl Inside {
    fn enter() -> Inside {
        TELLING.set(true);
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        TELLING.set(false);
    }
}

/// Sets who is told messages from now on, or nobody. The former sink has returned for the last time when this returns.
///
/// # Errors
/// `InvalidArgument` from inside the sink, which cannot end itself.
pub fn set_sink(sink: Option<(Level, Sink)>) -> Result<()> {
    if TELLING.get() {
        return Err(Error::invalid_argument("sink", "a call from elsewhere", "a call from inside the sink"));
    }
    let (level, sink) = sink.map_or((OFF, None), |(level, sink)| (level as u8, Some(sink)));
    let mut place = lock(&SINK);
    SINK_LEVEL.store(level, Ordering::Relaxed);
    *place = sink;
    Ok(())
}

/// Sets what goes into the queue from now on; `None` closes it and frees what is in it.
///
/// # Errors
/// `OutOfMemory` for the queue; nothing changed then.
pub fn set_queue(level: Option<Level>) -> Result<()> {
    let mut queue = lock(&QUEUE);
    if level.is_none() {
        *queue = Queue { messages: VecDeque::new(), lost: 0 };
    } else {
        let room = QUEUE_LEN - queue.messages.len();
        queue.messages.try_reserve_exact(room).map_err(|_| Error::OutOfMemory {
            what: "the queue of messages".into(),
            bytes: (QUEUE_LEN * size_of::<Message>()) as u64,
        })?;
    }
    QUEUE_LEVEL.store(level.map_or(OFF, |level| level as u8), Ordering::Relaxed);
    Ok(())
}

/// Takes the oldest message out of the queue if `take` accepts it; `None` when the queue is empty. Where some were
/// lost, a message about them comes first.
///
/// # Errors
/// What `take` returns; the same message comes again then.
pub fn next<T>(take: impl FnOnce(&Message) -> Result<T>) -> Result<Option<T>> {
    let mut queue = lock(&QUEUE);
    if queue.lost > 0 {
        let text = format!("{} older messages were lost: the queue holds {QUEUE_LEN}", queue.lost);
        let taken = take(&Message { level: Level::Warning, time_ms: now(), text })?;
        queue.lost = 0;
        return Ok(Some(taken));
    }
    let Some(oldest) = queue.messages.front() else { return Ok(None) };
    let taken = take(oldest)?;
    queue.messages.pop_front();
    Ok(Some(taken))
}

impl Queue {
    /// Adds a message to a queue that is open, which has the room.
    fn add(&mut self, message: Message) {
        if self.messages.len() >= QUEUE_LEN {
            self.messages.pop_front();
            self.lost += 1;
        }
        self.messages.push_back(message);
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Locks, whatever a panic elsewhere has left: all that is behind these locks is valid at every moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
