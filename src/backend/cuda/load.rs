//! From files to device memory: plan everything, refuse what does not fit, then read with several threads.
//!
//! Readers fill the slots of a ring in pinned memory together. Who is the last in a slot queues the copy of its rows to the
//! device, and there the kernels that bring them into the layout of the products, while others go on with the next slot. The
//! first ones they fill while the device is made ready. No file is mapped, and host memory is bounded by the slots: see
//! [`Plan::host_bytes`]. To register the pages of a mapped file with the driver, and copy from there, was slower on an H200
//! than reading them: 13 to 23 GB/s, by the system's pages, against 50.

use std::ops::Range;
use std::sync::Arc;

use super::context::Context;
use super::memory::DeviceBuffer;
use super::readers::Job;
use super::stream::Stream;
use super::windows::{MAX_ELEMENTS, Windows};
use crate::backend::Progress;
use crate::gguf::{Gguf, TensorInfo};
use crate::{Error, Result};

/// The kernels that bring matrices into the layout of the products.
pub trait Repack: Send + Sync {
    /// Where a matrix goes: whatever [`Self::repack`] needs to know of it.
    type Matrix: Sync;

    /// Rows that are repacked together: each part of a matrix but the last has a multiple of so many.
    fn rows(matrix: &Self::Matrix) -> u64;

    /// Whether a matrix takes more than its rows fill, which is zero then.
    fn pads(info: &TensorInfo, matrix: &Self::Matrix) -> bool;

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

/// Slots: some are being filled while others are on their way.
const SLOTS: u64 = 6;

/// Most bytes of a slot. A copy takes 3 us besides the 19 us for each MiB: an H200 took 48.5 GB/s in copies of 1 MiB, 53.5 in those
/// of 4, 54.9 in those of 16, 55.2 in those of 32, with kernels behind them or not, in one stream or two. A Llama of 8B in f16 was
/// loaded by 12 readers in 340 ms with slots of 16 MiB, 350 with as few of 8, 360 with 4 of 8. All slots are pinned in 2.4 ms.
const SLOT_BYTES: u64 = 16 << 20;

/// Least bytes of a slot: a small model has something for every reader.
const LEAST_SLOT_BYTES: u64 = 1 << 20;

/// How often each slot is filled, where they need not be larger or smaller.
const FILLS: u64 = 4;

/// Most bytes that are read at once, and least: with 512 KiB the same took 20 ms longer than with 1 and 2 MiB.
const READ_BYTES: u64 = 2 << 20;
const LEAST_READ_BYTES: u64 = 128 << 10;

/// How a model is loaded; nothing is allocated yet.
pub struct Plan<R: Repack> {
    pub(super) pieces: Vec<Piece<R::Matrix>>,
    /// Bytes of the weights in device memory.
    pub(super) n_bytes: u64,
    pub(super) windows: Windows,
    pub(super) n_slots: usize,
    pub(super) n_readers: usize,
    /// Whether slots are no larger than for all usual matrices.
    pub(super) has_usual_slots: bool,
    /// Whether anything takes more than is read.
    pub(super) pads: bool,
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
        let mut slot_bytes = (n_bytes / (SLOTS * FILLS)).clamp(LEAST_SLOT_BYTES, SLOT_BYTES);
        let mut pads = false;
        for Piece { info, target } in &pieces {
            pads |= match target {
                Target::Matrix(matrix) => R::pads(info, matrix),
                // Kernels read vectors up to there.
                Target::Vector(_) => !info.n_elements.is_multiple_of(ALIGNMENT / size_of::<f32>() as u64),
            };
            if let Target::Matrix(matrix) = target {
                let least = row_bytes(info).checked_mul(R::rows(matrix).min(rows(info)));
                let too_large = || Error::OutOfMemory { what: info.name.clone(), bytes: u64::MAX };
                slot_bytes = slot_bytes.max(least.ok_or_else(too_large)?);
            }
        }
        let read_bytes = (slot_bytes / 8).clamp(LEAST_READ_BYTES, READ_BYTES);
        let windows = Windows::new(&pieces, R::rows, slot_bytes, read_bytes)?;
        let n_readers = wanted.min(windows.units.len().max(1));
        // Larger slots are fewer, so that all together stay as small.
        let n_slots = (SLOTS * SLOT_BYTES / slot_bytes.max(1)).clamp(2, SLOTS) as usize;
        let (n_bytes, n_slots) = (space.n_bytes, n_slots.min(windows.windows.len()));
        Ok(Plan { pieces, n_bytes, windows, n_slots, n_readers, has_usual_slots: slot_bytes <= SLOT_BYTES, pads })
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
    /// With 12 readers these are 102 MiB, or twice 16 rows of the widest matrix and 6 MiB if that is more.
    pub fn host_bytes(&self) -> u64 {
        let values = MAX_ELEMENTS * 2 * size_of::<f32>() as u64;
        self.slots_bytes().saturating_add((self.n_readers as u64).saturating_mul(values))
    }

    /// Bytes of all slots in host memory.
    pub(super) fn slots_bytes(&self) -> u64 {
        self.windows.host_bytes.saturating_mul(self.n_slots as u64)
    }

    /// Bytes of device memory that only loading takes: the slots once more.
    pub fn staging_bytes(&self) -> u64 {
        self.windows.device_bytes.saturating_mul(self.n_slots as u64)
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
        Job::new(gguf, progress, self)?.run(open, prepare, meanwhile)
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

pub(super) fn rows(matrix: &TensorInfo) -> u64 {
    matrix.n_elements / matrix.dims[0]
}

/// Rows are whole blocks, so this is no rounding.
pub(super) fn row_bytes(matrix: &TensorInfo) -> u64 {
    matrix.n_bytes / rows(matrix)
}
