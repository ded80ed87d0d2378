//! Where a model runs. A backend holds the weights and the KV cache of one model and computes the seven
//! stages that [`crate::model::forward`] strings together.
//!
//! Shapes are row-major. A batch has `n` rows, one per token; which sequence a row belongs to and whether the
//! batch is a prompt, one decode step or many sequences at once makes no difference to any stage, and the
//! numbers of a row do not depend on the other rows of its batch.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod progress;

use std::ops::Range;
use std::sync::Arc;

use crate::gguf::TensorInfo;
use crate::model::{ModelDesc, Weights};
use crate::sampler::Sampler;
use crate::{Error, Result};
pub use progress::Progress;

/// Where a model is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The GPU with this number.
    Cuda(u32),
    /// The host.
    Cpu,
    /// The first GPU, or the host if there is none.
    Auto,
}

impl Device {
    /// What [`Device::parse`] takes, for messages.
    pub const EXPECTED: &str = "\"cuda\", \"cuda:N\" with N from 0 to 999, \"cpu\" or \"auto\"";
    /// The names of devices that this build can run on, for messages.
    pub const BUILT: &str = if cfg!(feature = "cuda") { "cuda, cuda:N, cpu, auto" } else { "cpu, auto" };

    /// The device with this name; `cuda` is `cuda:0`.
    pub fn parse(name: &str) -> Option<Device> {
        match name.strip_prefix("cuda:") {
            Some(n) if matches!(n.len(), 1..=3) && n.bytes().all(|b| b.is_ascii_digit()) => {
                n.parse().ok().map(Device::Cuda)
            }
            Some(_) => None,
            None => match name {
                "cuda" => Some(Device::Cuda(0)),
                "cpu" => Some(Device::Cpu),
                "auto" => Some(Device::Auto),
                _ => None,
            },
        }
    }
}

/// How a GPU runs a step of a single sequence, or of a few that decode together. Every way gives the same bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DecodePath {
    /// As is fastest by what was measured.
    #[default]
    Auto,
    /// As one kernel, where that can run the model.
    Step,
    /// Stage by stage, as batches are run.
    Stages,
}

impl DecodePath {
    /// What [`DecodePath::parse`] takes, for messages.
    pub const EXPECTED: &str = "\"auto\", \"step\" or \"stages\"";

    /// The way with this name.
    pub fn parse(name: &str) -> Option<DecodePath> {
        [DecodePath::Auto, DecodePath::Step, DecodePath::Stages].into_iter().find(|path| path.name() == name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            DecodePath::Auto => "auto",
            DecodePath::Step => "step",
            DecodePath::Stages => "stages",
        }
    }
}

/// What the memory of a backend is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Matrices and vectors of the model.
    Weights,
    /// Keys and values of the sequences.
    Cache,
    /// Activations, logits, tables: whatever else computing takes.
    Workspace,
}

impl Purpose {
    /// Every purpose.
    pub const ALL: [Purpose; 3] = [Purpose::Weights, Purpose::Cache, Purpose::Workspace];
}

/// Where the bytes of a model really are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Residency {
    /// In the memory of the model's GPU, as its driver says.
    pub device_bytes: u64,
    /// In the memory of the host.
    pub host_bytes: u64,
}

/// The books of a backend's memory. They are kept apart from it, so that asking does not wait for a batch.
pub trait Memory: Send + Sync {
    /// Bytes that are allocated for `purpose`.
    fn bytes(&self, purpose: Purpose) -> u64;

    /// Looks where every allocation really is.
    ///
    /// # Errors
    /// When one is not where it belongs, or the driver cannot be asked.
    fn residency(&self) -> Result<Residency>;
}

/// Bytes that running a model takes besides its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// The cache, while one inference fills its context.
    pub cache: u64,
    /// What each token adds to that.
    pub cache_per_token: u64,
    /// Everything else, for the largest batches.
    pub workspace: u64,
}

/// Bytes that the planned weights take on `device`, which need not be there.
///
/// # Errors
/// When the device cannot run the model, or there is no memory to find out.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "the CPU takes what the file has"))]
pub fn weight_bytes(device: Device, desc: &ModelDesc, plan: &Weights<TensorInfo>) -> Result<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::weight_bytes(desc, plan),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(ordinal) => Err(no_backend(&format!("cuda:{ordinal}"))),
        Device::Cpu | Device::Auto => Ok(cpu::weight_bytes(plan)),
    }
}

/// What a model needs on `device`, which need not be there: for a context of `n_ctx` tokens, batches of `n_batch` rows and
/// `n_threads` threads.
///
/// # Errors
/// When the device cannot run the model.
pub fn context_needs(
    device: Device,
    desc: &ModelDesc,
    (n_ctx, n_batch, n_threads): (usize, usize, usize),
) -> Result<Needs> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::context_needs(desc, n_ctx, n_batch),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(ordinal) => Err(no_backend(&format!("cuda:{ordinal}"))),
        Device::Cpu | Device::Auto => Ok(cpu::context_needs(desc, n_ctx, n_batch, n_threads)),
    }
}

/// What there is to know about a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number among those that the process may use.
    pub ordinal: u32,
    /// Its name, such as "NVIDIA H200".
    pub name: String,
    /// Its memory in bytes.
    pub total_bytes: u64,
    /// Major and minor number of its architecture: (9, 0) is sm_90.
    pub compute_capability: (u32, u32),
    /// Its multiprocessors.
    pub n_sm: u32,
    /// Shared memory that a block of threads may have, in bytes.
    pub block_shared_bytes: u32,
    /// Shared memory of a multiprocessor, in bytes.
    pub sm_shared_bytes: u32,
    /// Bytes that its memory gives in a second at most, by its clock and width; 0 where the driver does not say.
    pub memory_rate: u64,
}

impl DeviceInfo {
    /// Its architecture, such as `sm_90`.
    pub fn architecture(&self) -> String {
        format!("sm_{}{}", self.compute_capability.0, self.compute_capability.1)
    }
}

/// How many GPUs the process may use.
///
/// # Errors
/// `NoBackend` in a build for the CPU only; `NoDriver`, `DriverTooOld`, `NoDevice` when there is none, `DeviceError`.
pub fn gpus() -> Result<u32> {
    #[cfg(feature = "cuda")]
    return Ok(cuda::driver::Driver::get()?.n_devices());
    #[cfg(not(feature = "cuda"))]
    Err(no_backend("cuda"))
}

/// What there is to know about one GPU, whether kigo can run on it or not.
///
/// # Errors
/// Those of [`gpus`], and `NoDevice`, `DeviceLost`.
pub fn gpu(ordinal: u32) -> Result<DeviceInfo> {
    #[cfg(feature = "cuda")]
    return cuda::context::Context::describe(ordinal);
    #[cfg(not(feature = "cuda"))]
    Err(no_backend(&format!("cuda:{ordinal}")))
}

/// Whether a model can run on this GPU: it exists, works, and has an architecture that there are kernels for.
///
/// # Errors
/// Those of [`gpu`], and `UnsupportedGpu`.
pub fn check_gpu(ordinal: u32) -> Result<()> {
    #[cfg(feature = "cuda")]
    return cuda::context::Context::check(ordinal);
    #[cfg(not(feature = "cuda"))]
    Err(no_backend(&format!("cuda:{ordinal}")))
}

/// This build has nothing for the device.
#[cfg(not(feature = "cuda"))]
fn no_backend(device: &str) -> Error {
    Error::NoBackend { device: device.to_string(), backend: "CUDA", known: Device::BUILT }
}

/// Names one sequence in a backend's KV cache; never used twice.
pub type SequenceId = u64;

/// One token of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The token to process, less than `n_vocab`.
    pub token: u32,
    /// Its position in its sequence, counted from 0. Rows of one sequence stand in ascending order without gaps.
    pub position: u32,
    /// The sequence it extends.
    pub sequence: SequenceId,
    /// Whether the logits after this token are wanted.
    pub logits: bool,
}

/// When a batch is given up that is computed.
#[derive(Clone, Copy)]
pub struct Stop<'a> {
    /// Whether it is of no use any more; asked from any thread, between layers.
    pub is_given_up: &'a (dyn Fn() -> bool + Sync),
    /// A device that computes beside the host is given the layers in so many parts, each when it begins with the one before; all at
    /// once if they are less than three.
    pub n_parts: usize,
}

impl Stop<'_> {
    /// The batch is computed whatever happens.
    pub const NEVER: Stop<'static> = Stop { is_given_up: &|| false, n_parts: 1 };

    /// # Errors
    /// [`Error::Cancelled`] if the batch is of no use any more.
    pub fn check(&self) -> Result<()> {
        if (self.is_given_up)() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// A token to be drawn after a batch.
pub struct Draw<'a> {
    /// From which of the rows that wanted logits.
    pub index: usize,
    /// Whose row that is.
    pub sequence: SequenceId,
    /// How to draw; it counts the draw.
    pub sampler: &'a mut Sampler,
    /// The latest tokens of the sequence, as many as the sampler's window takes.
    pub recent: &'a [u32],
    /// The token, or why there is none.
    pub outcome: Option<Result<u32>>,
}

/// The seven stages of a decoder, and the memory they work on.
pub trait Backend: Send {
    /// The device, such as `cpu`.
    fn device(&self) -> &str;

    /// Bytes of the weights as they stand in the file.
    fn weight_bytes(&self) -> u64;

    /// The books of its memory.
    fn memory(&self) -> Arc<dyn Memory>;

    /// Makes room in the cache for positions `0..n_positions` of `sequence`, which begins to exist with its first.
    ///
    /// # Errors
    /// When memory cannot be had; nothing changed then.
    fn sequence_reserve(&mut self, sequence: SequenceId, n_positions: usize) -> Result<()>;

    /// Frees a sequence; unknown ones are ignored.
    fn sequence_free(&mut self, sequence: SequenceId);

    /// Waits until the rows of the latest batch have been computed, where they are computed beside the host and nobody has asked
    /// for what came of them. Says whether they were not there yet.
    ///
    /// # Errors
    /// What went wrong with them; the next batch fails with it, too.
    fn ready(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// Whether `sequence` has all that a row at position `n_positions` would see of the positions before it. Layers with a
    /// window forget what they do not see any more.
    fn sequence_holds(&self, sequence: SequenceId, n_positions: usize) -> bool;

    /// Takes away all positions of `sequence` from `n_positions` on. False if it does not hold what comes then (see
    /// [`Backend::sequence_holds`]); nothing changed then.
    ///
    /// # Errors
    /// When memory cannot be had for a copy of a page that is shared; nothing changed then.
    fn sequence_rewind(&mut self, sequence: SequenceId, n_positions: usize) -> Result<bool>;

    /// Makes `to`, a new sequence, begin with the first `n_positions` of `from`, whose full pages both share. False if `from`
    /// does not hold what comes then; nothing changed then.
    ///
    /// # Errors
    /// When memory cannot be had; nothing changed then.
    fn sequence_fork(&mut self, from: SequenceId, to: SequenceId, n_positions: usize) -> Result<bool>;

    /// Keeps a sequence only for others to begin with: it gets no more rows, and holds no more than its pages.
    fn sequence_keep(&mut self, sequence: SequenceId);

    /// Bytes of the pages that kept sequences hold, each counted once.
    fn kept_bytes(&self) -> u64;

    /// Gives memory back that nothing uses, where this backend holds some in reserve.
    fn release_reserve(&mut self) {}

    /// Positions in a page of the cache.
    fn page_positions(&self) -> usize;

    /// What the pages of the cache are; another model with the same weights can take them over if it says the same.
    fn cache_format(&self) -> String;

    /// Bytes of the `index`-th of the pages that a row at position `n_positions` sees of those before it; `None` if there are
    /// not so many.
    fn page_bytes(&self, n_positions: usize, index: usize) -> Option<usize>;

    /// Copies that page of `sequence` to `bytes`, which has its size.
    ///
    /// # Errors
    /// When there is no such page, or it cannot be brought to the host.
    fn page_read(&mut self, sequence: SequenceId, n_positions: usize, index: usize, bytes: &mut [u8]) -> Result<()>;

    /// Makes a sequence of `n_positions` whose pages are to be written by [`Backend::page_write`].
    ///
    /// # Errors
    /// When memory cannot be had; nothing changed then.
    fn sequence_restore(&mut self, sequence: SequenceId, n_positions: usize) -> Result<()>;

    /// Copies `bytes` to that page of `sequence`.
    ///
    /// # Errors
    /// When there is no such page, or it cannot be brought to the device.
    fn page_write(&mut self, sequence: SequenceId, n_positions: usize, index: usize, bytes: &[u8]) -> Result<()>;

    /// Runs one batch through the whole model: [`crate::model::forward`], wherever this backend runs it best, unless `stop` says on
    /// the way that nobody wants it any more.
    ///
    /// # Errors
    /// What the stages return; [`crate::Error::Cancelled`]. Positions of earlier batches stay valid.
    fn forward_unless(&mut self, rows: &[Row], stop: Stop) -> Result<()>;

    /// Runs one batch through the whole model.
    ///
    /// # Errors
    /// What the stages return; positions of earlier batches stay valid.
    fn forward(&mut self, rows: &[Row]) -> Result<()> {
        self.forward_unless(rows, Stop::NEVER)
    }

    /// The logits of the `index`-th row of the last batch that wanted them, `[n_vocab]`.
    ///
    /// # Errors
    /// When they cannot be brought to the host.
    fn logits(&mut self, index: usize) -> Result<&[f32]>;

    /// Draws tokens from logits of the last batch, each as its sampler does it: whatever this backend does differently,
    /// the tokens are the same.
    fn sample(&mut self, draws: &mut [Draw]) {
        for draw in draws {
            draw.outcome = Some(self.logits(draw.index).and_then(|logits| draw.sampler.sample(logits, draw.recent)));
        }
    }

    /// Layers of the model.
    fn n_layer(&self) -> usize;

    /// Takes the batch: sizes the workspace, computes what only positions decide.
    fn begin(&mut self, rows: &[Row]) -> Result<()>;

    /// x `[n, n_embd]` = rows of `token_embd`.
    fn embed(&mut self) -> Result<()>;

    /// Norm, q `[n, n_head, head_dim]`, k and v `[n, n_head_kv, head_dim]`, bias, rope; k and v go into the cache.
    fn attn_qkv(&mut self, layer: usize) -> Result<()>;

    /// Attention of q over the cache, up to and including the row's own position: `[n, n_head, head_dim]`.
    fn attn_mix(&mut self, layer: usize) -> Result<()>;

    /// x += attn_output of the mix.
    fn attn_output(&mut self, layer: usize) -> Result<()>;

    /// Norm, gate and up, activation: `[n, n_ff]`.
    fn ffn_up(&mut self, layer: usize) -> Result<()>;

    /// x += ffn_down of it.
    fn ffn_down(&mut self, layer: usize) -> Result<()>;

    /// Norm and head of the rows that want logits.
    fn output(&mut self) -> Result<()>;
}

/// Which group and which of its pages the `index`-th page is, where each group has a range of pages and they follow each other.
fn nth_page(groups: impl Iterator<Item = Range<usize>>, mut index: usize) -> Option<(usize, usize)> {
    for (number, pages) in groups.enumerate() {
        if index < pages.len() {
            return Some((number, pages.start + index));
        }
        index -= pages.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_through_the_groups() {
        let page = |index| nth_page([3..5, 0..0, 7..8].into_iter(), index);
        assert_eq!([page(0), page(1), page(2), page(3)], [Some((0, 3)), Some((0, 4)), Some((2, 7)), None]);
    }
}
