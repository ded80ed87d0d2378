//! The threads of a load: one makes the device ready and what a model needs there besides, the others read.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, Scope};

use super::context::{Bound, Context};
use super::load::{Loaded, Opened, Piece, Plan, Repack, Target};
use super::memory::{DeviceBuffer, PinnedPages};
use super::pages::Pages;
use super::room;
use super::stream::{Event, Stream};
use super::windows::Unit;
use crate::backend::{Progress, Purpose};
use crate::error::try_vec;
use crate::gguf::Gguf;
use crate::{Error, Result, panics};

/// What the slots are called in errors.
const WHAT: &str = "the slots for loading";

const BLOCK: u64 = crate::gguf::BLOCK as u64;

/// What the threads of a load share.
pub(super) struct Job<'a, R: Repack> {
    gguf: &'a Gguf,
    progress: &'a Progress,
    plan: &'a Plan<R>,
    /// Where the weights go, once that is ready.
    device: OnceLock<Device<R>>,
    /// The memory of all slots. Goes after what copies from it.
    slots: Arc<Pages>,
    /// The unit that is read next, and how many of each window are not there.
    next: AtomicUsize,
    left: Vec<AtomicUsize>,
    stopped: AtomicBool,
    /// The first that happened.
    failure: Mutex<Option<Error>>,
    gate: Gate,
}

/// What readers send to.
struct Device<R> {
    // What the streams use goes after them.
    streams: Streams,
    /// When what pads rows and columns is zero, if anything does.
    zeroed: Event,
    slots: Vec<Slot>,
    host: PinnedPages,
    /// The slots on the device.
    staging: DeviceBuffer,
    weights: DeviceBuffer,
    kernels: R,
    context: Arc<Context>,
}

/// What is known of a slot on the device.
struct Slot {
    /// What was queued last is done with it.
    free: Event,
    /// Bytes of the file that are on their way.
    n_bytes: AtomicU64,
}

/// Windows take turns: one is copied while the other is repacked. Each takes a millisecond to end.
struct Streams([Stream; 2]);

impl Slot {
    /// Waits until it is free.
    fn arrived(&self, progress: &Progress) -> Result<()> {
        self.free.synchronize()?;
        progress.advance(self.n_bytes.swap(0, Ordering::AcqRel));
        Ok(())
    }
}

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
    /// Windows that were sent from each slot.
    n_sent: Vec<usize>,
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
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(gguf: &'a Gguf, progress: &'a Progress, plan: &'a Plan<R>) -> Result<Job<'a, R>> {
        let windows = &plan.windows.windows;
        let mut left = try_vec(windows.len(), WHAT)?;
        left.extend(windows.iter().map(|window| AtomicUsize::new(window.n_units)));
        let mut n_sent = try_vec(plan.n_slots, WHAT)?;
        n_sent.resize(plan.n_slots, 0);
        Ok(Job {
            gguf,
            progress,
            plan,
            device: OnceLock::new(),
            slots: Arc::new(Pages::new(usize::try_from(plan.slots_bytes()).unwrap_or(usize::MAX), WHAT)?),
            next: AtomicUsize::new(0),
            left,
            stopped: AtomicBool::new(false),
            failure: Mutex::new(None),
            gate: Gate { state: Mutex::new(State { n_sent, ..State::default() }), changed: Condvar::new() },
        })
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
                all = all && job.start(scope, format!("kigo-read-{i}"), move || Reader::new(job).run());
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
        let device = self.device.into_inner().ok_or_else(no_device)?;
        let bound = device.context.bind()?;
        device.slots.iter().try_for_each(|slot| slot.arrived(self.progress))?;
        drop(bound);
        let Device { streams, zeroed, slots, host, staging, weights, kernels, context } = device;
        drop((streams, zeroed, slots, host, staging));
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
        // Nobody waits for what does not come any more.
        self.gate.change(|_| ());
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
        let host = self.slots.pin(&context)?;
        let mut slots = try_vec(self.plan.n_slots, WHAT)?;
        for _ in 0..self.plan.n_slots {
            slots.push(Slot { free: Event::new(&context)?, n_bytes: AtomicU64::new(0) });
        }
        let zeroed = Event::new(&context)?;
        let streams = Streams([Stream::new(&context)?, Stream::new(&context)?]);
        if self.plan.pads {
            let [first, second] = &streams.0;
            weights.fill_u8(first, 0)?;
            zeroed.record(first)?;
            second.wait(&zeroed)?;
        }
        let context = context.clone();
        let _ = self.device.set(Device { streams, zeroed, slots, host, staging, weights, kernels, context });
        Ok(())
    }

    /// The next unit; `None` when there is none, or something has failed.
    fn take(&self) -> Result<Option<&'a Unit>> {
        self.progress.check()?;
        if self.stopped.load(Ordering::Relaxed) {
            return Ok(None);
        }
        Ok(self.plan.windows.units.get(self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// Waits until the slot of a window, of which a unit is to be read, is free; false when something has failed.
    fn wait_for_slot(&self, window: usize) -> Result<bool> {
        let (slot, turn) = (window % self.plan.n_slots, window / self.plan.n_slots);
        if turn == 0 {
            return Ok(true);
        }
        let has_failed = || self.stopped.load(Ordering::Relaxed);
        self.gate.wait_until(|state| state.n_sent.get(slot).is_some_and(|n| *n >= turn) || has_failed());
        match self.device.get().and_then(|device| device.slots.get(slot)) {
            Some(slot) if !has_failed() => slot.arrived(self.progress).map(|()| true),
            _ => Ok(false),
        }
    }

    /// Queues what brings a window to its place, all of which has been read.
    fn send(&self, device: &Device<R>, window: usize) -> Result<()> {
        let (windows, number) = (&self.plan.windows, window % self.plan.n_slots);
        let (stream, slot) = (&device.streams.0[window % 2], &device.slots[number]);
        let (host, staging) = (number as u64 * windows.host_bytes, number as u64 * windows.device_bytes);
        let weights = device.weights.address();
        for part in &windows.parts[windows.windows[window].parts.clone()] {
            let Piece { info, target } = &self.plan.pieces[part.piece];
            let n_bytes = part.bytes_in_slot(info, target);
            let from = (host + part.at) as usize..(host + part.at + n_bytes) as usize;
            match target {
                Target::Matrix(matrix) => {
                    let offset = staging + part.device_at;
                    device.staging.upload_pages(stream, offset as usize, &device.host, from)?;
                    let source = device.staging.address() + offset;
                    device.kernels.repack(stream, source, part.range.clone(), info, matrix, weights)?;
                }
                Target::Vector(offset) => {
                    let offset = offset + part.range.start * size_of::<f32>() as u64;
                    device.weights.upload_pages(stream, offset as usize, &device.host, from)?;
                }
            }
        }
        slot.free.record(stream)?;
        slot.n_bytes.store(windows.windows[window].n_bytes, Ordering::Release);
        self.gate.change(|state| state.n_sent[number] += 1);
        Ok(())
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
    /// A part of a vector as it stands in the file.
    quantised: Vec<u8>,
    /// The same as numbers.
    values: Vec<f32>,
    /// Spares its calls from binding each.
    bound: Option<Bound<'a>>,
}

impl<'a, R: Repack> Reader<'a, R> {
    fn new(job: &'a Job<'a, R>) -> Self {
        Reader { job, quantised: Vec::new(), values: Vec::new(), bound: None }
    }

    fn run(&mut self) -> Result<()> {
        // Whether uncommonly large slots fit is known with the device.
        if !self.job.plan.has_usual_slots && self.device()?.is_none() {
            return Ok(());
        }
        while let Some(unit) = self.job.take()? {
            if !self.job.wait_for_slot(unit.window)? {
                break;
            }
            self.read(unit)?;
            let left = self.job.left.get(unit.window).map_or(0, |left| left.fetch_sub(1, Ordering::AcqRel));
            if left == 1 {
                let Some(device) = self.device()? else { break };
                self.job.send(device, unit.window)?;
            }
        }
        Ok(())
    }

    /// The device; `None` when there is none.
    fn device(&mut self) -> Result<Option<&'a Device<R>>> {
        let Some(device) = self.job.device() else { return Ok(None) };
        if self.bound.is_none() {
            self.bound = Some(device.context.bind()?);
        }
        Ok(Some(device))
    }

    fn read(&mut self, unit: &Unit) -> Result<()> {
        let (job, plan) = (self.job, self.job.plan);
        let part = &plan.windows.parts[unit.part];
        let Piece { info, target } = &plan.pieces[part.piece];
        let slot = (unit.window % plan.n_slots) as u64 * plan.windows.host_bytes;
        let (start, len) = (part.first_byte(info, target) + unit.bytes.start, unit.bytes.end - unit.bytes.start);
        match target {
            Target::Matrix(_) => {
                let at = slot + part.at + unit.bytes.start;
                let blocks = at / BLOCK * BLOCK..(at + len).next_multiple_of(BLOCK);
                // SAFETY: a unit has its blocks of the slot alone, and no other window is in the slot until this one is sent.
                let to =
                    unsafe { job.slots.part_mut(blocks.start as usize..blocks.end as usize) }.ok_or_else(no_place)?;
                job.gguf.read_tensor_placed(info, start, len as usize, to)
            }
            Target::Vector(_) => {
                let n = (part.range.end - part.range.start) as usize;
                resize(&mut self.quantised, len as usize, &info.name)?;
                resize(&mut self.values, n, &info.name)?;
                job.gguf.read_tensor_part(info, start, &mut self.quantised)?;
                info.quant_type.dequantize(&self.quantised, &mut self.values);
                let at = (slot + part.at) as usize;
                // SAFETY: as above; such a unit is all of its part.
                let to = unsafe { job.slots.part_mut(at..at + n * 4) }.ok_or_else(no_place)?;
                for (to, value) in to.chunks_exact_mut(4).zip(&self.values) {
                    to.copy_from_slice(&value.to_le_bytes());
                }
                Ok(())
            }
        }
    }
}

fn no_place() -> Error {
    Error::Internal("a part of a tensor has no place in the slots for loading".into())
}

/// Makes `buffer` exactly `len` long; what it holds is unspecified.
fn resize<T: Clone + Default>(buffer: &mut Vec<T>, len: usize, what: &str) -> Result<()> {
    if len > buffer.capacity() {
        *buffer = try_vec(len, what)?;
    }
    buffer.resize(len, T::default());
    Ok(())
}
