//! From files to device memory: plan everything, refuse what does not fit, then read with several threads.
//!
//! A reader reads some rows of a tensor into pinned memory, queues their copy to the device and there a kernel that
//! brings them into the layout of the products, and reads the next rows into its other slot meanwhile. Its first rows
//! it reads while the device is made ready. No file is mapped, and host memory is bounded by the slots: see
//! [`Plan::host_bytes`]. To register the pages of a mapped file with the driver, and copy from there, was slower on an H200
//! than reading them: 13 to 23 GB/s, by the system's pages, against 50.

use std::ops::Range;
use std::sync::Arc;

use super::context::Context;
use super::memory::DeviceBuffer;
use super::pages::PAGE;
use super::readers::Job;
use super::stream::Stream;
use crate::backend::Progress;
use crate::error::try_vec;
use crate::gguf::{Gguf, TensorInfo};
use crate::{Error, Result};

/// The kernels that bring matrices into the layout of the products.
pub trait Repack: Send + Sync {
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
pub(super) const SLOTS: usize = 2;

/// Most bytes of a slot. A copy takes 4 us besides the 19 us for each MiB: an H200 took 45 GB/s in copies of 1 MiB, 50 in
/// those of 2, 52.4 in those of 4, 54.7 in those of 16, whatever the number of streams. All slots are 96 MiB at most.
const SLOT_BYTES: u64 = 4 << 20;

/// Least bytes of a slot: a small model has something for every reader.
const LEAST_SLOT_BYTES: u64 = 1 << 20;

/// How often a reader fills each of its slots, where they need not be larger or smaller.
const FILLS: u64 = 4;

/// Elements of a vector that are read at once.
const MAX_ELEMENTS: u64 = 1 << 16;

/// How a model is loaded; nothing is allocated yet.
pub struct Plan<R: Repack> {
    pub(super) pieces: Vec<Piece<R::Matrix>>,
    /// Bytes of the weights in device memory.
    pub(super) n_bytes: u64,
    pub(super) chunks: Vec<Chunk>,
    slot_bytes: u64,
    pub(super) n_readers: usize,
}

/// What is read at once: rows of a matrix, or elements of a vector.
pub(super) struct Chunk {
    pub piece: usize,
    pub part: Range<u64>,
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

    /// What is read.
    pub fn pieces(&self) -> &[Piece<R::Matrix>] {
        &self.pieces
    }

    /// Bytes of the weights in device memory.
    pub fn weight_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Bytes of host memory that loading takes at most: the slots, and what each reader needs to make f32 of a vector.
    /// With 12 readers these are 102 MiB, or 32 rows of the widest matrix and 6 MiB if that is more.
    pub fn host_bytes(&self) -> u64 {
        let values = MAX_ELEMENTS * 2 * size_of::<f32>() as u64;
        let slots = (SLOTS as u64).saturating_mul(self.host_stride());
        (self.n_readers as u64).saturating_mul(slots.saturating_add(values))
    }

    /// From one slot of a reader to the next in host memory: direct reads want them to begin with a block.
    pub(super) fn host_stride(&self) -> u64 {
        let room = crate::gguf::room(usize::try_from(self.slot_bytes).unwrap_or(usize::MAX)) as u64;
        room.checked_next_multiple_of(PAGE as u64).unwrap_or(u64::MAX)
    }

    /// The same in device memory.
    pub(super) fn device_stride(&self) -> u64 {
        self.slot_bytes.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX)
    }

    /// Whether slots are no larger than for all usual matrices.
    pub(super) fn has_usual_slots(&self) -> bool {
        self.slot_bytes <= SLOT_BYTES
    }

    /// Bytes of device memory that only loading takes: the slots once more.
    pub fn staging_bytes(&self) -> u64 {
        self.device_stride().saturating_mul((self.n_readers * SLOTS) as u64)
    }

    /// Free device memory that is needed, when what is allocated besides takes `other_bytes`.
    pub fn needed_bytes(&self, other_bytes: u64) -> u64 {
        let weights = self.n_bytes.checked_next_multiple_of(GRANULE).unwrap_or(u64::MAX);
        weights.saturating_add(self.staging_bytes()).saturating_add(other_bytes)
    }

    /// Refuses a model that does not fit beside `other_bytes` of workspace and cache. It allocates nothing.
    ///
    /// # Errors
    /// `OutOfMemory` with the bytes needed and free; `DeviceLost`, `DeviceError`.
    pub fn check(&self, context: &Context, other_bytes: u64) -> Result<()> {
        let (needed, free) = (self.needed_bytes(other_bytes), context.free_memory()?);
        if needed <= free {
            return Ok(());
        }
        let what = format!("the model ({} bytes of weights, the rest for loading and running it)", self.n_bytes);
        Err(Error::OutOfDeviceMemory { device: context.device(), what, needed, free })
    }

    /// Reads everything into memory of the device that `open` makes ready on a thread of its own, when that fits; what else
    /// the device needs `prepare` makes there afterwards, beside the reading. This thread runs `meanwhile`. Whoever drops the
    /// weights sees to it that no kernel uses them.
    ///
    /// # Errors
    /// Those of reading, of `open`, `prepare` and `meanwhile`, and of [`Self::check`], before anything is allocated there;
    /// `OutOfMemory`, `DeviceLost`, `DeviceError`, `LoadCancelled`. Of several, the first that happened; nothing stays
    /// allocated.
    pub fn load(
        &self,
        gguf: &Gguf,
        progress: &Progress,
        open: impl FnOnce() -> Result<Opened<R>> + Send,
        prepare: impl FnOnce(&Arc<Context>, &R) -> Result<()> + Send,
        meanwhile: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Loaded<R>> {
        progress.expect(self.pieces.iter().fold(0, |sum, piece| piece.info.n_bytes.saturating_add(sum)));
        Job::new(gguf, progress, self).run(open, prepare, meanwhile)
    }
}

/// A device that is ready, and what is to be known of it.
pub struct Opened<R> {
    /// The device.
    pub context: Arc<Context>,
    /// Its kernels.
    pub kernels: R,
    /// Bytes of what is allocated there besides.
    pub other_bytes: u64,
}

/// What [`Plan::load`] leaves.
pub struct Loaded<R> {
    /// The device.
    pub context: Arc<Context>,
    /// Its kernels.
    pub kernels: R,
    /// The weights.
    pub weights: DeviceBuffer,
}

fn rows(matrix: &TensorInfo) -> u64 {
    matrix.n_elements / matrix.dims[0]
}

/// Rows are whole blocks, so this is no rounding.
pub(super) fn row_bytes(matrix: &TensorInfo) -> u64 {
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
