//! The threads of a load: one makes the device ready and what a model needs there besides, the others read.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, Scope};

use super::context::{Bound, Context};
use super::load::{Chunk, Loaded, Opened, Piece, Plan, Repack, SLOTS, Target, row_bytes};
use super::memory::{DeviceBuffer, PinnedBuffer};
use super::pages::Pages;
use super::room;
use super::stream::{Event, Stream};
use crate::backend::{Progress, Purpose};
use crate::error::try_vec;
use crate::gguf::{Gguf, TensorInfo};
use crate::{Error, Result, panics};

/// What the slots are called in errors.
const WHAT: &str = "the slots for loading";

/// What the threads of a load share.
pub(super) struct Job<'a, R: Repack> {
    gguf: &'a Gguf,
    progress: &'a Progress,
    plan: &'a Plan<R>,
    /// Where the weights go, once that is ready.
    device: OnceLock<Device<R>>,
    /// The chunk that is read next.
    next: AtomicUsize,
    stopped: AtomicBool,
    /// The first that happened.
    failure: Mutex<Option<Error>>,
    gate: Gate,
}

/// What readers send to.
struct Device<R> {
    // What the streams use goes after them.
    streams: Streams,
    /// When what pads rows and columns is zero.
    zeroed: Event,
    /// The slots of all readers on the device.
    staging: DeviceBuffer,
    weights: DeviceBuffer,
    kernels: R,
    context: Arc<Context>,
}

/// Readers share them: one copies while the other repacks. Each takes a millisecond to end.
struct Streams([Stream; 2]);

impl Drop for Streams {
    fn drop(&mut self) {
        self.0.iter().for_each(finish);
    }
}

/// Waits until a stream uses nothing more. A call that fails once is tried again; a lost device uses nothing.
fn finish(stream: &Stream) {
    if stream.synchronize().is_err() {
        let _ = stream.synchronize();
    }
}

/// Holds threads back until all have started, since they start one by one and nothing else takes the room for that; and
/// readers that have something to send until there is a device, or will be none.
#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    n_arrived: usize,
    all_started: bool,
    device_is_known: bool,
}

impl Gate {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }

    fn wait_until(&self, mut is_so: impl FnMut(&State) -> bool) {
        drop(self.changed.wait_while(lock(&self.state), |state| !is_so(state)));
    }
}

/// Says, when it is dropped, that the device is known.
struct Known<'a>(&'a Gate);

impl Drop for Known<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.device_is_known = true);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a, R: Repack> Job<'a, R> {
    pub fn new(gguf: &'a Gguf, progress: &'a Progress, plan: &'a Plan<R>) -> Job<'a, R> {
        Job {
            gguf,
            progress,
            plan,
            device: OnceLock::new(),
            next: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            failure: Mutex::new(None),
            gate: Gate::default(),
        }
    }

    /// Makes the device ready, runs `prepare` and reads all chunks, while this thread runs `meanwhile`.
    pub fn run(
        self,
        open: impl FnOnce() -> Result<Opened<R>> + Send,
        prepare: impl FnOnce(&Arc<Context>, &R) -> Result<()> + Send,
        meanwhile: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Loaded<R>> {
        std::thread::scope(|scope| {
            let job = &self;
            let opener = move || {
                let known = Known(&job.gate);
                job.open(open)?;
                drop(known);
                job.device.get().map_or(Ok(()), |device| prepare(&device.context, &device.kernels))
            };
            let mut all = job.start(scope, "kigo-open".into(), opener);
            if !all {
                drop(Known(&job.gate));
            }
            for i in 0..job.plan.n_readers {
                all = all && job.start(scope, format!("kigo-read-{i}"), move || Reader::new(job, i)?.run());
            }
            job.gate.change(|state| state.all_started = true);
            let outcome = panics::caught(meanwhile);
            if let Err(error) = outcome.unwrap_or_else(|text| Err(Error::Internal(text))) {
                self.fail(error);
            }
        });
        if let Some(error) = self.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let no_device = || Error::Internal("no device was made ready".into());
        let Device { streams, zeroed, staging, weights, kernels, context } =
            self.device.into_inner().ok_or_else(no_device)?;
        drop((streams, zeroed, staging));
        Ok(Loaded { context, kernels, weights })
    }

    /// Starts a thread, which waits until all have started; false when it cannot be.
    fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        name: String,
        body: impl FnOnce() -> Result<()> + Send + 'scope,
    ) -> bool {
        let n_before = lock(&self.gate.state).n_arrived;
        let body = move || {
            panics::own_thread();
            self.gate.change(|state| state.n_arrived += 1);
            self.gate.wait_until(|state| state.all_started);
            let outcome = panics::caught(body);
            if let Err(error) = outcome.unwrap_or_else(|text| Err(Error::Internal(text))) {
                self.fail(error);
            }
        };
        let has_started = room::for_a_thread() && Builder::new().name(name).spawn_scoped(scope, body).is_ok();
        if has_started {
            self.gate.wait_until(|state| state.n_arrived > n_before);
        } else {
            self.fail(Error::OutOfMemory { what: "a thread that reads".into(), bytes: room::THREAD_BYTES as u64 });
        }
        has_started
    }

    fn fail(&self, error: Error) {
        self.stopped.store(true, Ordering::Relaxed);
        lock(&self.failure).get_or_insert(error);
    }

    /// Makes the device ready, unless the load has failed meanwhile.
    fn open(&self, open: impl FnOnce() -> Result<Opened<R>>) -> Result<()> {
        let Opened { context, kernels, other_bytes } = open()?;
        let _bound = context.bind()?;
        self.progress.check()?;
        if self.stopped.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.plan.check(&context, other_bytes)?;
        let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let weights = DeviceBuffer::new(&context, Purpose::Weights, bytes(self.plan.n_bytes), "the weights")?;
        let staging = DeviceBuffer::new(&context, Purpose::Workspace, bytes(self.plan.staging_bytes()), WHAT)?;
        let zeroed = Event::new(&context)?;
        let streams = Streams([Stream::new(&context)?, Stream::new(&context)?]);
        let [first, second] = &streams.0;
        weights.fill_u8(first, 0)?;
        zeroed.record(first)?;
        second.wait(&zeroed)?;
        let context = context.clone();
        let _ = self.device.set(Device { streams, zeroed, staging, weights, kernels, context });
        Ok(())
    }

    /// The next chunk; `None` when there is none, or something has failed.
    fn take(&self) -> Result<Option<&'a Chunk>> {
        self.progress.check()?;
        if self.stopped.load(Ordering::Relaxed) {
            return Ok(None);
        }
        Ok(self.plan.chunks.get(self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// Where weights go; `None` when there is no such thing. It waits until that is known.
    fn device(&self) -> Option<&Device<R>> {
        if self.device.get().is_none() {
            self.gate.wait_until(|state| state.device_is_known);
        }
        self.device.get()
    }
}

/// What a thread reads with.
struct Reader<'a, R: Repack> {
    job: &'a Job<'a, R>,
    index: usize,
    /// The memory of all its slots, before the device can reach it, and then.
    pages: Option<Pages>,
    pinned: Option<PinnedBuffer>,
    /// Its slots, from then on.
    slots: Vec<Slot>,
    /// A part of a vector as it stands in the file.
    quantised: Vec<u8>,
    /// The same as numbers.
    values: Vec<f32>,
    /// Goes last: what is freed is freed in its context.
    bound: Option<Bound<'a>>,
}

struct Slot {
    /// What was queued last is done with the slot.
    free: Event,
    /// Bytes of the file that are on their way.
    n_bytes: u64,
}

/// What was read.
struct Filled {
    /// Where it lies in the memory of the slots.
    part: Range<usize>,
    /// Bytes of the file.
    n_bytes: u64,
}

impl<'a, R: Repack> Reader<'a, R> {
    fn new(job: &'a Job<'a, R>, index: usize) -> Result<Self> {
        let (slots, quantised, values) = (try_vec(SLOTS, WHAT)?, Vec::new(), Vec::new());
        Ok(Reader { job, index, pages: None, pinned: None, slots, quantised, values, bound: None })
    }

    fn run(&mut self) -> Result<()> {
        // Whether uncommonly large slots fit is known with the device.
        if !self.job.plan.has_usual_slots() && self.job.device().is_none() {
            return Ok(());
        }
        let bytes = self.job.plan.host_stride().saturating_mul(SLOTS as u64);
        self.pages = Some(Pages::new(usize::try_from(bytes).unwrap_or(usize::MAX), WHAT)?);
        for turn in 0.. {
            let Some(chunk) = self.job.take()? else { break };
            let at = turn % SLOTS;
            self.arrived(at)?;
            let piece = &self.job.plan.pieces[chunk.piece];
            let filled = match &piece.target {
                Target::Matrix(_) => self.read_rows(at, &piece.info, &chunk.part)?,
                Target::Vector(_) => self.read_elements(at, &piece.info, &chunk.part)?,
            };
            let Some(device) = self.device()? else { break };
            self.send(device, at, piece, &chunk.part, filled)?;
        }
        (0..self.slots.len()).try_for_each(|at| self.arrived(at))
    }

    /// Waits until slot `at` is free.
    fn arrived(&mut self, at: usize) -> Result<()> {
        if let Some(slot) = self.slots.get_mut(at).filter(|slot| slot.n_bytes > 0) {
            slot.free.synchronize()?;
            self.job.progress.advance(std::mem::take(&mut slot.n_bytes));
        }
        Ok(())
    }

    /// The device, which can reach the slots then; `None` when there is none.
    fn device(&mut self) -> Result<Option<&'a Device<R>>> {
        let Some(device) = self.job.device() else { return Ok(None) };
        if let Some(pages) = self.pages.take() {
            self.bound = Some(device.context.bind()?);
            self.pinned = Some(pages.pin(&device.context, WHAT)?);
            for _ in 0..SLOTS {
                self.slots.push(Slot { free: Event::new(&device.context)?, n_bytes: 0 });
            }
        }
        Ok(Some(device))
    }

    /// The memory of slot `at`, and where it begins in that of all.
    fn slot(&mut self, at: usize) -> Result<(usize, &mut [u8])> {
        let bytes = match (&mut self.pinned, &mut self.pages) {
            (Some(pinned), _) => Some(pinned.as_mut_slice()),
            (None, pages) => pages.as_mut().map(Pages::as_mut_slice),
        };
        let stride = self.job.plan.host_stride() as usize;
        let slot = bytes.and_then(|bytes| bytes.get_mut(at * stride..(at + 1) * stride));
        slot.map(|slot| (at * stride, slot)).ok_or_else(|| Error::Internal(format!("there is no slot {at}")))
    }

    fn read_rows(&mut self, at: usize, info: &TensorInfo, rows: &Range<u64>) -> Result<Filled> {
        let start = rows.start * row_bytes(info);
        let n_bytes = (rows.end * row_bytes(info) - start) as usize;
        let gguf = self.job.gguf;
        let (first, slot) = self.slot(at)?;
        let first = first + gguf.read_tensor_placed(info, start, n_bytes, slot)?;
        Ok(Filled { part: first..first + n_bytes, n_bytes: n_bytes as u64 })
    }

    fn read_elements(&mut self, at: usize, info: &TensorInfo, elements: &Range<u64>) -> Result<Filled> {
        let quant = info.quant_type;
        let bytes_to = |element: u64| element / quant.block_len() as u64 * quant.block_bytes() as u64;
        let start = bytes_to(elements.start);
        let (n_bytes, n) = ((bytes_to(elements.end) - start) as usize, (elements.end - elements.start) as usize);
        resize(&mut self.quantised, n_bytes, &info.name)?;
        resize(&mut self.values, n, &info.name)?;
        self.job.gguf.read_tensor_part(info, start, &mut self.quantised)?;
        quant.dequantize(&self.quantised, &mut self.values);
        let values = std::mem::take(&mut self.values);
        let (first, slot) = self.slot(at)?;
        let too_long = || Error::Internal(format!("{n} numbers do not fit into a slot for loading"));
        let to = slot.get_mut(..n * 4).ok_or_else(too_long)?;
        for (to, value) in to.chunks_exact_mut(4).zip(&values) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        self.values = values;
        Ok(Filled { part: first..first + n * 4, n_bytes: n_bytes as u64 })
    }

    /// Queues what brings what was read to its place.
    fn send(
        &mut self,
        device: &Device<R>,
        at: usize,
        Piece { info, target }: &Piece<R::Matrix>,
        part: &Range<u64>,
        filled: Filled,
    ) -> Result<()> {
        let (Some(host), Some(slot)) = (&self.pinned, self.slots.get_mut(at)) else {
            return Err(Error::Internal(format!("slot {at} is not pinned")));
        };
        let stream = &device.streams.0[self.index % 2];
        match target {
            Target::Matrix(matrix) => {
                let offset = (self.index * SLOTS + at) * self.job.plan.device_stride() as usize;
                device.staging.upload_async(stream, offset, host, filled.part)?;
                let (source, weights) = (device.staging.address() + offset as u64, device.weights.address());
                device.kernels.repack(stream, source, part.clone(), info, matrix, weights)?;
            }
            Target::Vector(offset) => {
                let offset = offset + part.start * 4;
                device.weights.upload_async(stream, offset as usize, host, filled.part)?;
            }
        }
        slot.free.record(stream)?;
        slot.n_bytes = filled.n_bytes;
        Ok(())
    }
}

impl<R: Repack> Drop for Reader<'_, R> {
    fn drop(&mut self) {
        // What is queued uses the slots.
        if let (Some(_), Some(device)) = (&self.pinned, self.job.device.get()) {
            finish(&device.streams.0[self.index % 2]);
        }
    }
}

/// Makes `buffer` exactly `len` long; what it holds is unspecified.
fn resize<T: Clone + Default>(buffer: &mut Vec<T>, len: usize, what: &str) -> Result<()> {
    if len > buffer.capacity() {
        *buffer = try_vec(len, what)?;
    }
    buffer.resize(len, T::default());
    Ok(())
}
