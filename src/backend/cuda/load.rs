//! From files to device memory: plan everything, refuse what does not fit, then read with several threads.
//!
//! A reader reads some rows of a tensor into pinned memory, queues their copy to the device and there a kernel that
//! brings them into the layout of the products, and reads the next rows into its other slot meanwhile. No file is
//! mapped, and host memory is bounded by the slots: see [`Plan::host_bytes`].

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::context::Context;
use super::memory::{DeviceBuffer, PinnedBuffer};
use super::room;
use super::stream::{Event, Stream};
use crate::backend::{Progress, Purpose};
use crate::error::try_vec;
use crate::gguf::{Gguf, TensorInfo};
use crate::{Error, Result, panics};

/// The kernels that bring matrices into the layout of the products.
pub trait Repack: Sync {
    /// Where a matrix goes: whatever [`Self::repack`] needs to know of it.
    type Matrix: Sync;

    /// Rows that are repacked together: each part of a matrix but the last has a multiple of so many.
    fn rows(matrix: &Self::Matrix) -> u64;

    /// Queues the kernel that brings some rows of the matrix `info` into place. They lie at `source` in device memory
    /// as they do in the file, one after the other; the weights start at `weights`. `rows.start` is a multiple of
    /// [`Self::rows`]; so is `rows.end`, or it is the number of rows. The kernel writes only what is the matrix's.
    ///
    /// # Errors
    /// Those of a launch.
    fn repack(
        &self,
        stream: &Stream,
        source: u64,
        rows: Range<u64>,
        info: &TensorInfo,
        matrix: &Self::Matrix,
        weights: u64,
    ) -> Result<()>;
}

/// A tensor and where it goes.
#[derive(Debug)]
pub struct Piece<M> {
    /// What is read.
    pub info: TensorInfo,
    /// What becomes of it.
    pub target: Target<M>,
}

/// Where a tensor goes, in the one allocation of all weights.
#[derive(Debug)]
pub enum Target<M> {
    /// It becomes f32 and starts at this byte.
    Vector(u64),
    /// It is repacked.
    Matrix(M),
}

/// The room that weights take in their allocation.
#[derive(Debug, Default)]
pub struct Space {
    n_bytes: u64,
}

impl Space {
    /// Where so many bytes start, at a multiple of [`ALIGNMENT`]; `what` needs them. Sizes come from files, so they
    /// are computed with checked arithmetic: `bytes` is `None` when they are more than 64 bits can say.
    ///
    /// # Errors
    /// `OutOfMemory` when all bytes together are more than 64 bits can say.
    pub fn place(&mut self, bytes: Option<u64>, what: &str) -> Result<u64> {
        let end = bytes.and_then(|bytes| self.n_bytes.checked_add(bytes)?.checked_next_multiple_of(ALIGNMENT));
        let start = self.n_bytes;
        self.n_bytes = end.ok_or_else(|| Error::OutOfMemory { what: what.to_string(), bytes: u64::MAX })?;
        Ok(start)
    }

    /// Bytes of all that has a place.
    pub fn bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Where a vector starts.
    ///
    /// # Errors
    /// As [`Self::place`].
    pub fn place_vector(&mut self, info: &TensorInfo) -> Result<u64> {
        self.place(info.n_elements.checked_mul(size_of::<f32>() as u64), &info.name)
    }
}

/// What each weight starts at a multiple of, in bytes: what the driver gives to allocations.
pub const ALIGNMENT: u64 = 256;

/// What the driver rounds allocations up to, in bytes.
const GRANULE: u64 = 2 << 20;

/// Most readers. One copies 6 to 10 GB/s out of the system's page cache, and 12 loaded fastest on a host of 16 cores.
const MAX_READERS: usize = 12;

/// Slots of a reader: one is filled while the other is on its way.
const SLOTS: usize = 2;

/// Most bytes of a slot. The link takes 40 us for so many and a reader 250, beside which the calls of the driver, 10 us,
/// hardly count. All slots together are 48 MiB at most.
const SLOT_BYTES: u64 = 2 << 20;

/// Least bytes of a slot. Pinning is slow (1.7 GB/s where it was measured), so that a small model loads faster with small ones.
const LEAST_SLOT_BYTES: u64 = 1 << 20;

/// How often a reader fills each of its slots, where they need not be larger or smaller.
const FILLS: u64 = 4;

/// Elements of a vector that are read at once.
const MAX_ELEMENTS: u64 = 1 << 16;

/// How a model is loaded; nothing is allocated yet.
pub struct Plan<R: Repack> {
    pieces: Vec<Piece<R::Matrix>>,
    /// Bytes of the weights in device memory.
    n_bytes: u64,
    chunks: Vec<Chunk>,
    slot_bytes: u64,
    n_readers: usize,
}

/// What is read at once: rows of a matrix, or elements of a vector.
struct Chunk {
    piece: usize,
    part: Range<u64>,
}

impl<R: Repack> Plan<R> {
    /// Decides how `pieces`, which have their places in `space`, are read: by `n_readers` threads, or one per core up to
    /// 12 when that is `None`.
    ///
    /// # Errors
    /// `OutOfMemory` when a size is beyond 64 bits, or there is no memory for the plan.
    pub fn new(pieces: Vec<Piece<R::Matrix>>, space: Space, n_readers: Option<usize>) -> Result<Plan<R>> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let wanted = n_readers.unwrap_or(cores.min(MAX_READERS)).max(1);
        let n_bytes = pieces.iter().fold(0, |sum, piece| piece.info.n_bytes.saturating_add(sum));
        let mut slot_bytes = n_bytes / ((wanted * SLOTS) as u64 * FILLS);
        slot_bytes = slot_bytes.clamp(LEAST_SLOT_BYTES, SLOT_BYTES);
        for Piece { info, target } in &pieces {
            if let Target::Matrix(matrix) = target {
                let least = row_bytes(info).checked_mul(R::rows(matrix).min(rows(info)));
                let too_large = || Error::OutOfMemory { what: info.name.clone(), bytes: u64::MAX };
                slot_bytes = slot_bytes.max(least.ok_or_else(too_large)?);
            }
        }
        let chunks = chunks(&pieces, R::rows, slot_bytes)?;
        // Rows that need larger slots get fewer readers, so that the slots together stay as small.
        let most = if slot_bytes > SLOT_BYTES { SLOT_BYTES * MAX_READERS as u64 / slot_bytes } else { u64::MAX };
        let n_readers = wanted.min(chunks.len().max(1)).min(usize::try_from(most.max(1)).unwrap_or(usize::MAX));
        Ok(Plan { pieces, n_bytes: space.n_bytes, chunks, slot_bytes, n_readers })
    }

    /// Bytes of the weights in device memory.
    pub fn weight_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Bytes of host memory that loading takes at most: the slots, and what each reader needs to make f32 of a vector.
    /// With 12 readers these are 54 MiB, or 32 rows of the widest matrix and 4 MiB if that is more.
    pub fn host_bytes(&self) -> u64 {
        let values = MAX_ELEMENTS * 2 * size_of::<f32>() as u64 + (SLOTS * crate::gguf::room(0)) as u64;
        self.staging_bytes().saturating_add(self.n_readers as u64 * values)
    }

    /// Bytes of device memory that only loading takes: the slots once more.
    pub fn staging_bytes(&self) -> u64 {
        self.slot_bytes.saturating_mul((self.n_readers * SLOTS) as u64)
    }

    /// Free device memory that is needed, when what is allocated after loading takes `later_bytes`.
    pub fn needed_bytes(&self, later_bytes: u64) -> u64 {
        let weights = self.n_bytes.checked_next_multiple_of(GRANULE).unwrap_or(u64::MAX);
        weights.saturating_add(self.staging_bytes().max(later_bytes))
    }

    /// Refuses a model that does not fit beside `later_bytes` of workspace and cache. It allocates nothing.
    ///
    /// # Errors
    /// `OutOfMemory` with the bytes needed and free; `DeviceLost`, `DeviceError`.
    pub fn check(&self, context: &Context, later_bytes: u64) -> Result<()> {
        let (needed, free) = (self.needed_bytes(later_bytes), context.free_memory()?);
        if needed <= free {
            return Ok(());
        }
        let what = format!("the model ({} bytes of weights, the rest for loading and running it)", self.n_bytes);
        Err(Error::OutOfDeviceMemory { device: context.device(), what, needed, free })
    }

    /// Checks, allocates, and reads everything into the allocation it returns; this thread does something else meanwhile.
    /// Whoever drops the allocation sees to it that no kernel uses it.
    ///
    /// # Errors
    /// Those of [`Self::check`] before anything is allocated; those of reading and of `meanwhile`; `OutOfMemory`,
    /// `DeviceLost`, `DeviceError`, `LoadCancelled`. Of several, the first that happened; nothing stays allocated.
    pub fn load(
        &self,
        gguf: &Gguf,
        context: &Arc<Context>,
        kernels: &R,
        later_bytes: u64,
        progress: &Progress,
        meanwhile: &mut dyn FnMut() -> Result<()>,
    ) -> Result<DeviceBuffer> {
        progress.expect(self.pieces.iter().fold(0, |sum, piece| piece.info.n_bytes.saturating_add(sum)));
        self.check(context, later_bytes)?;
        let bytes = usize::try_from(self.n_bytes).unwrap_or(usize::MAX);
        let weights = DeviceBuffer::new(context, Purpose::Weights, bytes, "the weights")?;
        // What pads rows and columns counts as zero.
        let stream = Stream::new(context)?;
        weights.fill_u8(&stream, 0)?;
        stream.synchronize()?;
        let job = Job {
            gguf,
            context,
            kernels,
            progress,
            plan: self,
            weights: &weights,
            next: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            failure: Mutex::new(None),
            gate: Gate::default(),
        };
        job.run(meanwhile)?;
        Ok(weights)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn rows(matrix: &TensorInfo) -> u64 {
    matrix.n_elements / matrix.dims[0]
}

/// Rows are whole blocks, so this is no rounding.
fn row_bytes(matrix: &TensorInfo) -> u64 {
    matrix.n_bytes / rows(matrix)
}

/// What to read at once, in the order of the files, so that the system reads ahead.
fn chunks<M>(pieces: &[Piece<M>], group: fn(&M) -> u64, slot_bytes: u64) -> Result<Vec<Chunk>> {
    let mut order = try_vec(pieces.len(), "the order of the tensors")?;
    order.extend(0..pieces.len());
    order.sort_unstable_by_key(|&piece| (pieces[piece].info.shard, pieces[piece].info.offset));
    // What a tensor is divided into, and how many of these are read at once: whole groups of rows, or all rows where
    // there are fewer; whole blocks of elements.
    let step = |Piece { info, target }: &Piece<M>| match target {
        Target::Matrix(matrix) => {
            let (group, fit) = (group(matrix), slot_bytes / row_bytes(info));
            (rows(info), if fit < group { rows(info) } else { fit / group * group })
        }
        Target::Vector(_) => {
            let block = info.quant_type.block_len() as u64;
            (info.n_elements, MAX_ELEMENTS / block * block)
        }
    };
    let n_chunks = |piece| {
        let (units, step) = step(piece);
        units.div_ceil(step) as usize
    };
    let mut chunks = try_vec(pieces.iter().map(n_chunks).sum(), "the parts of the tensors")?;
    for piece in order {
        let (units, step) = step(&pieces[piece]);
        let mut start = 0;
        while start < units {
            let end = start.saturating_add(step).min(units);
            chunks.push(Chunk { piece, part: start..end });
            start = end;
        }
    }
    Ok(chunks)
}

/// What all readers share.
struct Job<'a, R: Repack> {
    gguf: &'a Gguf,
    context: &'a Arc<Context>,
    kernels: &'a R,
    progress: &'a Progress,
    plan: &'a Plan<R>,
    weights: &'a DeviceBuffer,
    /// The chunk that is read next.
    next: AtomicUsize,
    stopped: AtomicBool,
    /// The first that happened.
    failure: Mutex<Option<Error>>,
    gate: Gate,
}

/// Holds readers back until all have started: they start one by one, and nothing else takes the room for that.
#[derive(Default)]
struct Gate {
    /// How many have arrived, and whether they may go on.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Gate {
    fn arrive(&self) {
        let mut state = lock(&self.state);
        state.0 += 1;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(_, is_open)| !*is_open));
    }

    fn wait_for(&self, n: usize) {
        drop(self.changed.wait_while(lock(&self.state), |(arrived, _)| *arrived < n));
    }

    fn open(&self) {
        lock(&self.state).1 = true;
        self.changed.notify_all();
    }
}

impl<R: Repack> Job<'_, R> {
    /// Reads all chunks.
    fn run(self, meanwhile: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        std::thread::scope(|scope| {
            for i in 0..self.plan.n_readers {
                let thread = std::thread::Builder::new().name(format!("kigo-read-{i}"));
                let reader = || {
                    panics::own_thread();
                    self.gate.arrive();
                    let outcome = panics::caught(|| {
                        let _bound = self.context.bind()?;
                        Reader::new(&self)?.run()
                    });
                    if let Err(error) = outcome.unwrap_or_else(|text| Err(Error::Internal(text))) {
                        self.fail(error);
                    }
                };
                if !room::for_a_thread() || thread.spawn_scoped(scope, reader).is_err() {
                    let what = "a thread that reads".into();
                    self.fail(Error::OutOfMemory { what, bytes: room::THREAD_BYTES as u64 });
                    break;
                }
                self.gate.wait_for(i + 1);
            }
            self.gate.open();
            let outcome = panics::caught(meanwhile);
            if let Err(error) = outcome.unwrap_or_else(|text| Err(Error::Internal(text))) {
                self.fail(error);
            }
        });
        let failure = self.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
        failure.map_or(Ok(()), Err)
    }

    fn fail(&self, error: Error) {
        self.stopped.store(true, Ordering::Relaxed);
        lock(&self.failure).get_or_insert(error);
    }

    /// The next chunk; `None` when there is none, or another reader has failed.
    fn take(&self) -> Result<Option<&Chunk>> {
        self.progress.check()?;
        if self.stopped.load(Ordering::Relaxed) {
            return Ok(None);
        }
        Ok(self.plan.chunks.get(self.next.fetch_add(1, Ordering::Relaxed)))
    }
}

/// What a thread reads with.
struct Reader<'a, R: Repack> {
    job: &'a Job<'a, R>,
    stream: Stream,
    slots: Vec<Slot>,
    /// A part of a vector as it stands in the file.
    quantised: Vec<u8>,
    /// The same as numbers.
    values: Vec<f32>,
}

struct Slot {
    host: PinnedBuffer,
    device: DeviceBuffer,
    /// What was queued last is done with the slot.
    free: Event,
    /// Bytes of the file that are on their way.
    n_bytes: u64,
}

impl<'a, R: Repack> Reader<'a, R> {
    fn new(job: &'a Job<'a, R>) -> Result<Self> {
        let (stream, slots) = (Stream::new(job.context)?, try_vec(SLOTS, "the slots of a reader")?);
        Ok(Reader { job, stream, slots, quantised: Vec::new(), values: Vec::new() })
    }

    /// Makes one more slot, so that the first is on its way while the next is pinned.
    fn add_slot(&mut self) -> Result<()> {
        let (context, what) = (self.job.context, "a slot for loading");
        let bytes = usize::try_from(self.job.plan.slot_bytes).unwrap_or(usize::MAX);
        self.slots.push(Slot {
            host: PinnedBuffer::new(context, crate::gguf::room(bytes), what)?,
            device: DeviceBuffer::new(context, Purpose::Workspace, bytes, what)?,
            free: Event::new(context)?,
            n_bytes: 0,
        });
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        for turn in 0.. {
            let Some(chunk) = self.job.take()? else { break };
            let at = turn % SLOTS;
            if at == self.slots.len() {
                self.add_slot()?;
            }
            self.arrived(at)?;
            let Piece { info, target } = &self.job.plan.pieces[chunk.piece];
            let n_bytes = match target {
                Target::Matrix(matrix) => self.read_rows(at, info, matrix, &chunk.part)?,
                Target::Vector(offset) => self.read_elements(at, info, *offset, &chunk.part)?,
            };
            let slot = &mut self.slots[at];
            slot.free.record(&self.stream)?;
            slot.n_bytes = n_bytes;
        }
        (0..self.slots.len()).try_for_each(|at| self.arrived(at))
    }

    /// Waits until slot `at` is free.
    fn arrived(&mut self, at: usize) -> Result<()> {
        let slot = &mut self.slots[at];
        if slot.n_bytes > 0 {
            slot.free.synchronize()?;
            self.job.progress.advance(std::mem::take(&mut slot.n_bytes));
        }
        Ok(())
    }

    fn read_rows(&mut self, at: usize, info: &TensorInfo, matrix: &R::Matrix, rows: &Range<u64>) -> Result<u64> {
        let (job, slot) = (self.job, &mut self.slots[at]);
        let start = rows.start * row_bytes(info);
        let n_bytes = (rows.end * row_bytes(info) - start) as usize;
        let at = job.gguf.read_tensor_placed(info, start, n_bytes, slot.host.as_mut_slice())?;
        slot.device.upload_async(&self.stream, 0, &slot.host, at..at + n_bytes)?;
        let (source, weights) = (slot.device.address(), job.weights.address());
        job.kernels.repack(&self.stream, source, rows.clone(), info, matrix, weights)?;
        Ok(n_bytes as u64)
    }

    fn read_elements(&mut self, at: usize, info: &TensorInfo, offset: u64, elements: &Range<u64>) -> Result<u64> {
        let (job, slot, quant) = (self.job, &mut self.slots[at], info.quant_type);
        let bytes_to = |element: u64| element / quant.block_len() as u64 * quant.block_bytes() as u64;
        let start = bytes_to(elements.start);
        let (n_bytes, n) = ((bytes_to(elements.end) - start) as usize, (elements.end - elements.start) as usize);
        resize(&mut self.quantised, n_bytes, &info.name)?;
        resize(&mut self.values, n, &info.name)?;
        job.gguf.read_tensor_part(info, start, &mut self.quantised)?;
        quant.dequantize(&self.quantised, &mut self.values);
        for (to, value) in slot.bytes(n * 4)?.chunks_exact_mut(4).zip(&self.values) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        let offset = offset + elements.start * 4;
        job.weights.upload_async(&self.stream, offset as usize, &slot.host, 0..n * 4)?;
        Ok(n_bytes as u64)
    }
}

impl Slot {
    fn bytes(&mut self, n: usize) -> Result<&mut [u8]> {
        let too_long = || Error::Internal(format!("{n} bytes do not fit into a slot for loading"));
        self.host.as_mut_slice().get_mut(..n).ok_or_else(too_long)
    }
}

impl<R: Repack> Drop for Reader<'_, R> {
    fn drop(&mut self) {
        // What is queued uses the slots. A call that fails once is tried again; a lost device uses nothing.
        if self.stream.synchronize().is_err() {
            let _ = self.stream.synchronize();
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
